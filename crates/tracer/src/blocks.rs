//! The live blocks: by region of address space, in segments of 16-byte slots.
//!
//! Each 128 KiB region of the target's address space has a chain of segments; a segment is an array of buckets
//! of four slots; an address has two candidate buckets in each. A new region's segment is made as large as
//! recent regions needed, so most regions have one; what does not fit goes to further, smaller segments.
//!
//! Invariants:
//!
//! 1. A block lives in exactly one slot from its publication to its removal, and slots never move, so growth
//!    can neither drop nor double one.
//! 2. A free slot is taken by one 16-byte compare-and-exchange that also publishes the block; in a process with one
//!    thread by two stores, the second of which publishes it.
//! 3. Only the thread that frees (or reallocates) a block writes its slot: a correct program frees a block
//!    once, after `malloc` returned it and before its address can be handed out again.
//! 4. Segments and region entries are only added.

use crate::arena::Arena;
use crate::{arch, real};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicU64};
use leakscope_heapfile::layout::{
    BUCKET_SLOTS, HUGE, REGION_SHIFT, SPAN_PROBES, SPAN_REGIONS, SPAN_SHIFT, SPAN_SLOTS, Segment, UNIT,
    Window, bucket_pair, slot,
};

/// One cache line of slots.
#[repr(C, align(64))]
pub(crate) struct Bucket([[AtomicU64; 2]; BUCKET_SLOTS]);

/// A page of region entries: `segment units | buckets << 32`, 0 = none.
pub(crate) type SpanPage = [AtomicU64; SPAN_REGIONS];

/// Buckets that a new region's segment gets, learned from earlier regions.
static EXPECTED: AtomicU32 = AtomicU32::new(INITIAL_BUCKETS);
const INITIAL_BUCKETS: u32 = 128;
/// Segment (units) and buckets of recently made regions, whose filling is looked at once they are a few
/// regions old.
static RECENT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static MADE: AtomicU32 = AtomicU32::new(0);

const MIN_BUCKETS: u32 = 4;
/// 8 KiB of slots per block of at least 32 bytes.
const MAX_BUCKETS: u32 = 2560;
/// Blocks this large do not share their region with many others.
const LARGE: u64 = 1 << 15;
const MAX_CHAIN: usize = 64;

/// Span number of an address.
pub(crate) fn span_of(address: u64) -> u64 {
    address >> SPAN_SHIFT
}

/// The page of region entries for a span; made if `create`.
pub(crate) fn span_page(arena: Arena, window: &Window, span: u64, create: bool) -> Option<&'static SpanPage> {
    let start = (span as usize).wrapping_mul(0x9E37_79B1) % SPAN_SLOTS;
    for probe in 0..SPAN_PROBES {
        let entry = window.spans.get((start + probe) % SPAN_SLOTS)?;
        let mut word = entry.load(Acquire);
        if word == 0 {
            if !create {
                return None;
            }
            let page = arena.allocate(window, size_of::<SpanPage>() as u64)? / UNIT;
            match entry.compare_exchange(0, span << 32 | page, AcqRel, Acquire) {
                Ok(_) => word = span << 32 | page,
                Err(now) => word = now,
            }
        }
        if word >> 32 == span {
            return arena.unit(word as u32);
        }
    }
    None
}

/// A segment, checked.
#[derive(Clone, Copy)]
struct View {
    offset: u64,
    buckets: &'static [Bucket],
}

impl View {
    fn of_entry(arena: Arena, entry: u64) -> Option<View> {
        Self::new(arena, u64::from(entry as u32) * UNIT, (entry >> 32) as u32)
    }
    fn new(arena: Arena, offset: u64, buckets: u32) -> Option<View> {
        if offset == 0 || buckets == 0 {
            return None;
        }
        let buckets = arena.slice(offset + size_of::<Segment>() as u64, buckets as usize)?;
        Some(View { offset, buckets })
    }
    fn header(self, arena: Arena) -> Option<&'static Segment> {
        arena.at(self.offset)
    }
    fn next(self, arena: Arena) -> Option<View> {
        let units = self.header(arena)?.next.load(Acquire);
        let segment: &Segment = arena.unit(units)?;
        View::new(arena, u64::from(units) * UNIT, segment.buckets.load(Relaxed))
    }
    #[inline(always)]
    fn candidates(self, address: u64) -> [Option<&'static Bucket>; 2] {
        let (first, second) = bucket_pair(address, self.buckets.len() as u32);
        [self.buckets.get(first as usize), self.buckets.get(second as usize)]
    }
}

fn region_entry(page: &SpanPage, address: u64) -> &AtomicU64 {
    &page[(address >> REGION_SHIFT) as usize % SPAN_REGIONS]
}

/// The candidate buckets of an address in its region's first segment.
///
/// Which of their eight slots holds a block, or is free, is as good as random, so it is computed and not branched on:
/// a processor that guesses wrong here waits for the slots' cache lines before it can go on.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    first: &'static Bucket,
    second: &'static Bucket,
}

/// Finds the place of an address, and asks for its cache lines. None if its region has no segment yet.
#[inline(always)]
pub(crate) fn locate(arena: Arena, page: &SpanPage, address: u64) -> Option<Place> {
    let view = View::of_entry(arena, region_entry(page, address).load(Acquire))?;
    let [Some(first), Some(second)] = view.candidates(address) else { return None };
    arch::prefetch(core::ptr::from_ref(first).cast());
    arch::prefetch(core::ptr::from_ref(second).cast());
    Some(Place { first, second })
}

impl Place {
    /// The first words of all eight slots.
    #[inline(always)]
    fn words(self) -> [u64; 2 * BUCKET_SLOTS] {
        // Written out: iterators over both buckets compile to branches.
        let word = |slot: &[AtomicU64; 2]| slot[0].load(Relaxed);
        let (Bucket([a, b, c, d]), Bucket([e, f, g, h])) = (self.first, self.second);
        [word(a), word(b), word(c), word(d), word(e), word(f), word(g), word(h)]
    }

    /// Publishes a block in a free slot. False if there is none.
    #[inline(always)]
    fn take(self, words: (u64, u64)) -> bool {
        loop {
            let free = roomier(select(self.words(), |word| word == 0));
            if free == 0 {
                return false;
            }
            if publish(self.slot(free), words) {
                return true;
            }
        }
    }

    /// The first of the selected slots; one must be.
    #[inline(always)]
    fn slot(self, selected: u32) -> &'static [AtomicU64; 2] {
        let number = selected.trailing_zeros() as usize;
        let bucket = core::hint::select_unpredictable(number < BUCKET_SLOTS, self.first, self.second);
        &bucket.0[number % BUCKET_SLOTS]
    }
}

/// Where a block was found.
pub(crate) struct Found {
    words: &'static [AtomicU64; 2],
    /// Its content.
    pub(crate) word0: u64,
    /// See `word0`.
    pub(crate) word1: u64,
}

impl Found {
    /// Removes the block. Its second word stays, so that the slot's content does not repeat.
    #[inline(always)]
    pub(crate) fn remove(&self) {
        self.words[0].store(0, Release);
    }
    /// Sets the block's state (`slot::HEAP` or `slot::IN_FLIGHT`).
    pub(crate) fn set_state(&self, state: u64) {
        self.words[0].store(self.word0 & !3 | state, Release);
    }
}

/// Finds the block in state `state` at `address`.
#[inline(always)]
pub(crate) fn find(arena: Arena, page: &SpanPage, address: u64, state: u64) -> Option<Found> {
    let key = slot::key(state, address);
    let place = locate(arena, page, address)?;
    let selected = select(place.words(), |word| word & slot::KEY_MASK == key);
    if selected == 0 {
        return find_further(arena, page, address, key);
    }
    let words = place.slot(selected);
    Some(Found { words, word0: words[0].load(Acquire), word1: words[1].load(Relaxed) })
}

/// Finds a block that had no space in its region's first segment.
#[cold]
#[inline(never)]
fn find_further(arena: Arena, page: &SpanPage, address: u64, key: u64) -> Option<Found> {
    let mut view = View::of_entry(arena, region_entry(page, address).load(Acquire))?;
    for _ in 0..MAX_CHAIN {
        for bucket in view.candidates(address).into_iter().flatten() {
            for words in &bucket.0 {
                let word0 = words[0].load(Acquire);
                if word0 & slot::KEY_MASK == key {
                    return Some(Found { words, word0, word1: words[1].load(Relaxed) });
                }
            }
        }
        view = view.next(arena)?;
    }
    None
}

/// How publishing a block went.
pub(crate) enum Inserted {
    Yes,
    /// In place of a block at the same address, which must have been freed without a hook's knowledge.
    Replaced(u64, u64),
    /// There is no space.
    No,
}

/// Publishes a block at its place (see [`locate`]). `size` is the allocation's, for sizing a new region.
#[inline(always)]
pub(crate) fn insert(
    arena: Arena,
    window: &Window,
    page: &SpanPage,
    place: Option<Place>,
    address: u64,
    words: (u64, u64),
    size: u64,
) -> Inserted {
    if let Some(place) = place {
        let now = place.words();
        if select(now, |word| (word ^ words.0) & slot::KEY_MASK == 0) != 0 {
            for bucket in [place.first, place.second] {
                if let Some((word0, word1)) = replace(bucket, words) {
                    return Inserted::Replaced(word0, word1);
                }
            }
        }
        let free = roomier(select(now, |word| word == 0));
        if free != 0 && publish(place.slot(free), words) {
            return Inserted::Yes;
        }
    }
    let entry = region_entry(page, address);
    if insert_slowly(arena, window, entry, address, words, size) { Inserted::Yes } else { Inserted::No }
}

/// The words that are wanted: a bit each.
#[inline(always)]
fn select(words: [u64; 2 * BUCKET_SLOTS], wanted: impl Fn(u64) -> bool) -> u32 {
    words.into_iter().zip(0..).fold(0, |bits, (word, number)| bits | u32::from(wanted(word)) << number)
}

/// Of the free slots of two buckets, those of the bucket that has more of them. Filled evenly, buckets run full much
/// later (the power of two choices, Azar et al. 1994): a block more in the chain's next segment costs more than this.
#[inline(always)]
fn roomier(free: u32) -> u32 {
    /// How many bits each number of four bits has: `popcnt` is not in every x86-64 processor's set.
    const COUNTS: u64 = 0x4332_3221_3221_2110;
    let count = |bits: u32| (COUNTS >> (4 * bits)) & 0xf;
    let (first, second) = (free & 0xf, free >> 4);
    core::hint::select_unpredictable(count(second) > count(first), second << 4, first)
}

/// Puts a block into a slot that was free when last looked at. False if another thread has taken it.
#[inline(always)]
fn publish(slot: &[AtomicU64; 2], words: (u64, u64)) -> bool {
    if real::is_single_threaded() {
        // Nobody else takes slots: a signal handler that came in between would find this hook at work.
        slot[1].store(words.1, Relaxed);
        slot[0].store(words.0, Release);
        return true;
    }
    let old = slot[1].load(Relaxed);
    let place = core::ptr::from_ref(slot).cast::<u64>().cast_mut();
    // SAFETY: a slot is 16 bytes at a multiple of 16 in the writable arena.
    unsafe { arch::compare_exchange_16(place, (0, old), words) }
}

/// Puts a block in place of one with the same address, and returns that one.
#[cold]
fn replace(bucket: &Bucket, words: (u64, u64)) -> Option<(u64, u64)> {
    let slot = bucket.0.iter().find(|slot| (slot[0].load(Acquire) ^ words.0) & slot::KEY_MASK == 0)?;
    let old = (slot[0].load(Acquire), slot[1].load(Relaxed));
    let place = core::ptr::from_ref(slot).cast::<u64>().cast_mut();
    // SAFETY: a slot is 16 bytes at a multiple of 16 in the writable arena.
    unsafe { arch::compare_exchange_16(place, old, words) }.then_some(old)
}

#[cold]
fn insert_slowly(
    arena: Arena,
    window: &Window,
    entry: &AtomicU64,
    address: u64,
    words: (u64, u64),
    size: u64,
) -> bool {
    for _ in 0..8 {
        let word = entry.load(Acquire);
        if word == 0 {
            let buckets = if size >= LARGE { MIN_BUCKETS } else { expected_buckets(arena) };
            let Some(offset) = new_segment(arena, window, buckets) else { return false };
            let fresh = (offset / UNIT) | (u64::from(buckets) << 32);
            if entry.compare_exchange(0, fresh, AcqRel, Acquire).is_ok() && size < LARGE {
                note_region(fresh);
            }
            continue;
        }
        let Some(head) = View::of_entry(arena, word) else { return false };
        let mut total = 0;
        let mut view = Some(head);
        let mut length = 0;
        while let Some(current) = view {
            let taken = match current.candidates(address) {
                [Some(first), Some(second)] => Place { first, second }.take(words),
                _ => false,
            };
            if taken {
                return true;
            }
            total += current.buckets.len() as u32;
            length += 1;
            if length >= MAX_CHAIN {
                return false;
            }
            view = current.next(arena);
        }
        // Every candidate is taken. The first times that is chance, and a small segment will do; after that the
        // region turns out to be denser than expected. A new segment goes in front if it is the largest, else
        // behind the first.
        let buckets = if length < 4 { total / 16 } else { total / 2 }.max(MIN_BUCKETS);
        let Some(offset) = new_segment(arena, window, buckets) else { return false };
        let Some(segment) = arena.at::<Segment>(offset) else { return false };
        let units = (offset / UNIT) as u32;
        if buckets as usize >= head.buckets.len() {
            segment.next.store(word as u32, Relaxed);
            let fresh = u64::from(units) | u64::from(buckets) << 32;
            let _ = entry.compare_exchange(word, fresh, AcqRel, Acquire);
        } else if let Some(header) = head.header(arena) {
            let next = header.next.load(Acquire);
            segment.next.store(next, Relaxed);
            let _ = header.next.compare_exchange(next, units, AcqRel, Acquire);
        }
    }
    false
}

fn new_segment(arena: Arena, window: &Window, buckets: u32) -> Option<u64> {
    let bytes = size_of::<Segment>() as u64 + u64::from(buckets) * size_of::<Bucket>() as u64;
    let offset = arena.allocate(window, bytes)?;
    arena.at::<Segment>(offset)?.buckets.store(buckets, Relaxed);
    Some(offset)
}

/// Forgets what earlier regions taught: they are of another arena.
pub(crate) fn forget_regions() {
    EXPECTED.store(INITIAL_BUCKETS, Relaxed);
    for recent in &RECENT {
        recent.store(0, Relaxed);
    }
    MADE.store(0, Relaxed);
}

/// Remembers a new region, to learn from it when it is four regions old.
fn note_region(entry: u64) {
    let turn = MADE.fetch_add(1, Relaxed) as usize % RECENT.len();
    if let Some(place) = RECENT.get(turn) {
        place.store(entry, Relaxed);
    }
}

/// How many buckets a new region should start with: what an earlier region has come to need, plus a tenth.
fn expected_buckets(arena: Arena) -> u32 {
    let turn = MADE.load(Relaxed) as usize % RECENT.len();
    let expected = EXPECTED.load(Relaxed);
    let Some(view) = RECENT.get(turn).and_then(|recent| View::of_entry(arena, recent.load(Relaxed))) else {
        return expected;
    };
    let mut used = 0usize;
    let mut view = Some(view);
    let mut length = 0;
    while let Some(current) = view {
        used += current
            .buckets
            .iter()
            .map(|bucket| bucket.0.iter().filter(|slot| slot[0].load(Relaxed) != 0).count())
            .sum::<usize>();
        length += 1;
        view = if length < MAX_CHAIN { current.next(arena) } else { None };
    }
    // At nine tenths about one in fifteen finds both its buckets taken and goes to a second, small segment.
    let needed = (used * 5 / 18) as u32;
    if needed < MIN_BUCKETS {
        return expected;
    }
    let expected = ((expected + needed) / 2).clamp(MIN_BUCKETS, MAX_BUCKETS);
    EXPECTED.store(expected, Relaxed);
    expected
}

/// Notes the size of a block that does not fit its slot. False if there is no space left.
pub(crate) fn set_huge(window: &Window, address: u64, size: u64) -> bool {
    window.huge.iter().take(HUGE).any(|entry| {
        entry.address.load(Relaxed) == 0
            && entry.address.compare_exchange(0, address, AcqRel, Relaxed).is_ok()
            && {
                entry.size.store(size, Release);
                true
            }
    })
}

/// Takes such a note out again.
pub(crate) fn take_huge(window: &Window, address: u64) -> Option<u64> {
    let entry = window.huge.iter().find(|entry| entry.address.load(Acquire) == address)?;
    let size = entry.size.load(Acquire);
    entry.address.store(0, Release);
    Some(size)
}

/// Calls `visit` for the blocks in state `state` in the region of `address`, until it returns true.
pub(crate) fn scan_region(
    arena: Arena,
    page: &SpanPage,
    address: u64,
    state: u64,
    mut visit: impl FnMut(u64, Found) -> bool,
) -> bool {
    let base = address >> REGION_SHIFT << REGION_SHIFT;
    let mut view = View::of_entry(arena, region_entry(page, address).load(Acquire));
    let mut length = 0;
    while let Some(current) = view {
        for words in current.buckets.iter().flat_map(|bucket| &bucket.0) {
            let word0 = words[0].load(Acquire);
            if slot::state(word0) == state {
                let found = Found { words, word0, word1: words[1].load(Relaxed) };
                if visit(base + slot::offset(word0), found) {
                    return true;
                }
            }
        }
        length += 1;
        view = if length < MAX_CHAIN { current.next(arena) } else { None };
    }
    false
}

#[cfg(test)]
mod tests;
