//! A thread's state, and what a hook does with it.
//!
//! The state has two parts. The private one lives in the process's own memory: registers of the last walk,
//! caches. The shared one (`Shard`, `Counters`) lives in the heap file; this thread alone writes it, readers
//! sum it. A thread that ends leaves both to the next new thread, so the number of states is the largest number
//! of threads at one time. Nothing has to run when a thread ends: the next one asks the kernel whether the
//! owner of a state still exists.

use crate::arena::Arena;
use crate::blocks::{self, Inserted, SpanPage};
use crate::sample::{self, Chance};
use crate::unwind::{Context, Walked, Walker};
use crate::{arch, filter, process, real, stacks, sys};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64};
use leakscope_heapfile::layout::{
    COUNTER_DIR, COUNTER_PAGE, Counters, SHARDS, Shard, Superblock, THREADS, UNIT, Window, slot,
};
use leakscope_heapfile::sampling::Weight;

/// A nested hook (a signal handler's, or the allocator's own call) is at most this far down the stack.
const NESTING_REACH: usize = 64 << 10;
/// Change in bytes that a thread may keep to itself.
const MAX_PENDING: i64 = 64 << 10;
const CACHED_COUNTERS: usize = 256;
/// Events between two looks at the clock, less one: a mask. Samples are rare events.
const CLOCK_CHECK: u32 = 4095;
const CLOCK_CHECK_SAMPLED: u32 = 15;

/// Private states by shard number: a shard's next owner takes its private state over, too.
static STATES: [AtomicPtr<Thread>; SHARDS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; SHARDS];

/// The private part.
pub(crate) struct Thread {
    /// Stack pointer at the entry of the hook at work; 0 if none is.
    busy: usize,
    /// What stood there: its return address.
    busy_pc: usize,
    pub(crate) arena: Arena,
    pub(crate) window: &'static Window,
    superblock: &'static Superblock,
    shard: &'static Shard,
    sequence: u32,
    /// See [`sample::interval`].
    interval: u64,
    chance: Chance,
    /// Address that this thread recorded last, unless it was freed since.
    last_allocated: usize,
    /// The countdown then: as long as it stays, the thread has allocated nothing else.
    last_countdown: u64,
    flush_at: i64,
    events: u32,
    clock_check: u32,
    /// Ticks come from the clock: the holder has stopped keeping them.
    own_clock: bool,
    span: u64,
    span_page: Option<&'static SpanPage>,
    counters: [(u32, Option<&'static Counters>); CACHED_COUNTERS],
    walker: Walker,
}

/// What a hook may do.
pub(crate) enum Entered {
    /// Record.
    Recording(&'static mut Thread),
    /// Forward only: a hook of this thread is at work already.
    Nested(&'static Window),
    /// Forward only: this process is not traced (yet).
    Off,
}

/// Begins a hook whose entry stack pointer was `sp`.
#[inline(always)]
pub(crate) fn enter(sp: usize) -> Entered {
    let (state, epoch) = arch::tls_read();
    if state == 0 || epoch != process::epoch() {
        return enter_slowly(sp);
    }
    begin(state, sp)
}

#[inline(always)]
fn begin(state: usize, sp: usize) -> Entered {
    // SAFETY: the thread-local word was written by this thread for its own state, which stays mapped. A second
    // reference to it exists only while a nested hook runs, which `busy` turns away before it uses the state.
    let thread = unsafe { &mut *(state as *mut Thread) };
    if thread.busy != 0 && thread.is_nested(sp) {
        return Entered::Nested(thread.window);
    }
    thread.busy = sp;
    // SAFETY: at entry the stack pointer points to the return address.
    thread.busy_pc = unsafe { *(sp as *const usize) };
    Entered::Recording(thread)
}

#[cold]
#[inline(never)]
fn enter_slowly(sp: usize) -> Entered {
    if process::is_off() || !process::ensure() {
        return Entered::Off;
    }
    let epoch = process::epoch();
    let Some(window) = process::window() else { return Entered::Off };
    let (state, known) = arch::tls_read();
    if state != 0 && known == epoch {
        return begin(state, sp);
    }
    match Thread::create(window) {
        Some(created) => {
            if state == 0 {
                // A forked child's first thread goes on where it was.
                // SAFETY: this thread's own, and no hook is at work.
                unsafe { (*created).draw() };
            }
            arch::tls_write(created as usize, epoch);
            begin(created as usize, sp)
        }
        None => {
            window.missed_full.fetch_add(1, Relaxed);
            Entered::Off
        }
    }
}

/// Gives all private states back. Only while no thread is inside of the tracer; their thread-local words are void.
pub(crate) fn release_states() {
    for place in &STATES {
        let state = place.swap(core::ptr::null_mut(), AcqRel);
        if !state.is_null() {
            // SAFETY: mapped by `create` for a `Thread`, and nobody uses it any more.
            unsafe { sys::munmap(state.cast(), size_of::<Thread>()) };
        }
    }
}

impl Thread {
    /// Whether the hook that set `busy` is still at work below the present one. A hook that a signal handler
    /// left by `longjmp` leaves `busy` set, but then its frame is gone: either the present one is further up,
    /// or its return address has been overwritten.
    #[cold]
    fn is_nested(&self, sp: usize) -> bool {
        if self.walker.owns(self.busy) {
            // SAFETY: on this thread's own stack, in the part that is known to be mapped.
            let intact = unsafe { *(self.busy as *const usize) } == self.busy_pc;
            return intact && !(self.walker.owns(sp) && sp >= self.busy);
        }
        sp < self.busy && self.busy - sp < NESTING_REACH
    }

    /// Takes a shard for this thread.
    fn create(window: &'static Window) -> Option<*mut Thread> {
        let arena = process::arena();
        let superblock = arena.superblock()?;
        let tid = sys::gettid();
        let (number, shard) = take_shard(arena, window, tid)?;
        let place = STATES.get(number)?;
        let mut state = place.load(Acquire);
        if state.is_null() {
            state = sys::map_private(size_of::<Thread>())?.cast();
            place.store(state, Release);
        }
        let sequence = window.thread_count.fetch_add(1, Relaxed) + 1;
        shard.sequence.store(sequence, Relaxed);
        shard.private_len.store(size_of::<Thread>() as u64, Relaxed);
        shard.private.store(state as u64, Relaxed);
        if let Some(record) = window.threads.get(sequence as usize % THREADS) {
            record.tid.store(0, Relaxed);
            record.sequence.store(sequence, Relaxed);
            record.started.store(process::now(superblock), Relaxed);
            record.tid.store(tid, Release);
        }
        // SAFETY: mapped for a `Thread` and owned by this thread; every field is set before it is read, and
        // the large arrays are valid when zero or as the previous owner left them.
        unsafe {
            let thread = &raw mut *state;
            (*thread).busy = 0;
            (*thread).busy_pc = 0;
            (*thread).arena = arena;
            (*thread).window = window;
            (*thread).superblock = superblock;
            (*thread).shard = shard;
            (*thread).sequence = sequence;
            (*thread).interval = sample::interval();
            (*thread).chance = Chance::new(window, sequence);
            (*thread).last_allocated = 0;
            (*thread).last_countdown = 0;
            (*thread).flush_at = 1024;
            (*thread).events = 0;
            (*thread).clock_check = if sample::interval() == 0 { CLOCK_CHECK } else { CLOCK_CHECK_SAMPLED };
            (*thread).own_clock = false;
            (*thread).span = 0;
            (*thread).span_page = None;
            (*thread).counters = [(0, None); CACHED_COUNTERS];
            (*thread).walker.reset();
        }
        Some(state)
    }

    /// Ends a hook.
    #[inline(always)]
    pub(crate) fn leave(&mut self) {
        self.busy = 0;
    }

    /// Whether an allocation of `size` bytes is to be recorded. To be asked once for each.
    #[inline(always)]
    pub(crate) fn samples(&mut self, size: usize) -> bool {
        if self.interval == 0 {
            return true;
        }
        let sampled = !sample::passes(size);
        if sampled {
            self.draw();
        }
        sampled
    }

    /// Draws the next sample point.
    fn draw(&mut self) {
        if self.interval != 0 {
            arch::set_countdown(self.chance.distance(self.interval));
        }
    }

    /// What a block stands for.
    #[inline(always)]
    fn weight(&self, size: u64) -> Weight {
        match self.interval {
            0 => Weight { blocks: 1, bytes: size },
            interval => sample::weight(size, interval),
        }
    }

    /// Records a block that the real allocator has just handed out.
    #[inline(always)]
    pub(crate) fn allocated(&mut self, address: usize, size: usize, sp: usize, bp: usize) {
        if self.interval != 0 {
            filter::add(address);
        }
        let page = self.span_page(address as u64, true);
        let place = page.and_then(|page| blocks::locate(self.arena, page, address as u64));
        let tick = self.tick();
        let context = Context { arena: self.arena, window: self.window, tick };
        let Walked { stack, truncated } = self.walker.walk(context, sp, bp);
        if truncated {
            bump(&self.window.truncated, 1);
        }
        let inserted = page.map_or(Inserted::No, |page| {
            let size_field = self.size_field(address as u64, size);
            let words = (
                slot::word0(slot::HEAP, address as u64, self.sequence, stack),
                slot::word1(size_field, tick),
            );
            blocks::insert(self.arena, self.window, page, place, address as u64, words, size as u64)
        });
        match inserted {
            Inserted::Yes => {}
            Inserted::Replaced(word0, word1) => {
                filter::remove(address);
                self.count_moved(address, word0, word1);
            }
            Inserted::No => {
                filter::remove(address);
                self.window.missed_full.fetch_add(1, Relaxed);
                return;
            }
        }
        self.last_allocated = address;
        let weight = match self.interval {
            0 => Weight { blocks: 1, bytes: size as u64 },
            interval => {
                self.last_countdown = arch::countdown();
                sample::weight(size as u64, interval)
            }
        };
        if let Some(counters) = self.counters(stack) {
            self.stamp(counters);
            bump(&counters.allocated_blocks, weight.blocks);
            bump(&counters.allocated_bytes, weight.bytes);
            if self.interval != 0 {
                counters.samples.store(counters.samples.load(Relaxed).wrapping_add(1), Relaxed);
            }
        }
        bump(&self.shard.allocated_blocks, weight.blocks);
        bump(&self.shard.allocated_bytes, weight.bytes);
        self.changed(weight.bytes as i64);
    }

    /// Forgets a block that is about to be freed.
    #[inline(always)]
    pub(crate) fn freed(&mut self, address: usize) {
        // The allocator will touch these lines next; fetch them while the block is looked up.
        arch::prefetch((address.wrapping_sub(16)) as *const u8);
        arch::prefetch(address as *const u8);
        let found = self
            .span_page(address as u64, false)
            .and_then(|page| blocks::find(self.arena, page, address as u64, slot::HEAP));
        let Some(found) = found else {
            self.unknown_free(address);
            return;
        };
        found.remove();
        if self.interval != 0 {
            filter::remove(address);
        }
        self.count_free(address, found.word0, found.word1);
    }

    /// Counts a block as freed; its slot has been dealt with.
    #[inline(always)]
    pub(crate) fn count_free(&mut self, address: usize, word0: u64, word1: u64) {
        let weight = self.weight(self.size_of(address as u64, word1));
        let temporary = self.last_allocated == address
            && (self.interval == 0 || self.last_countdown == arch::countdown());
        if temporary {
            self.last_allocated = 0;
        }
        if let Some(counters) = self.counters(slot::stack(word0)) {
            self.stamp(counters);
            bump(&counters.freed_blocks, weight.blocks);
            bump(&counters.freed_bytes, weight.bytes);
            if temporary {
                bump(&counters.temporary, weight.blocks);
            }
        }
        bump(&self.shard.freed_blocks, weight.blocks);
        bump(&self.shard.freed_bytes, weight.bytes);
        self.changed(-(weight.bytes as i64));
    }

    /// Counts a reallocated block's old life as over; that is not what "temporary" means.
    pub(crate) fn count_moved(&mut self, address: usize, word0: u64, word1: u64) {
        if self.last_allocated == address {
            self.last_allocated = 0;
        }
        self.count_free(address, word0, word1);
    }

    /// Finds a live heap block.
    pub(crate) fn find(&mut self, address: usize) -> Option<blocks::Found> {
        let page = self.span_page(address as u64, false)?;
        blocks::find(self.arena, page, address as u64, slot::HEAP)
    }

    /// The stack of the present call, for a mapping made by the program itself.
    pub(crate) fn mapping_stack(&mut self, sp: usize, bp: usize) -> u32 {
        let tick = self.tick();
        let context = Context { arena: self.arena, window: self.window, tick };
        let walked = self.walker.walk(context, sp, bp);
        stacks::mapping_of(self.arena, self.window, walked.stack)
    }

    /// Publishes a mapping of `pages` pages under `key`. False (and counted as missed) if there is no space.
    pub(crate) fn put_mapping(&mut self, key: u64, pages: u32, stack: u32, birth: Option<u32>) -> bool {
        let tick = birth.unwrap_or_else(|| self.tick());
        let words = (slot::word0(slot::MAPPED, key, self.sequence, stack), slot::word1(pages, tick));
        let inserted = self
            .span_page(key, true)
            .map(|page| {
                let place = blocks::locate(self.arena, page, key);
                blocks::insert(self.arena, self.window, page, place, key, words, u64::MAX)
            })
            .is_some_and(|inserted| !matches!(inserted, Inserted::No));
        if !inserted {
            self.window.missed_full.fetch_add(1, Relaxed);
        }
        inserted
    }

    /// Counts a new mapping.
    pub(crate) fn count_mapping(&mut self, stack: u32, bytes: u64) {
        let weight = Weight::exact(bytes, self.interval);
        if let Some(counters) = self.counters(stack) {
            self.stamp(counters);
            bump(&counters.allocated_blocks, weight.blocks);
            bump(&counters.allocated_bytes, weight.bytes);
        }
    }

    /// Counts bytes, and with the last of them the mapping, as gone.
    pub(crate) fn count_unmapping(&mut self, stack: u32, blocks: u64, bytes: u64) {
        let weight = Weight::exact(bytes, self.interval);
        if let Some(counters) = self.counters(stack) {
            self.stamp(counters);
            bump(&counters.freed_blocks, blocks * weight.blocks);
            bump(&counters.freed_bytes, weight.bytes);
        }
    }

    /// The page of region entries for an address.
    #[inline(always)]
    pub(crate) fn span_page(&mut self, address: u64, create: bool) -> Option<&'static SpanPage> {
        let span = blocks::span_of(address);
        if span == self.span && self.span_page.is_some() {
            return self.span_page;
        }
        let page = blocks::span_page(self.arena, self.window, span, create)?;
        self.span = span;
        self.span_page = Some(page);
        Some(page)
    }

    /// The present tick.
    #[inline(always)]
    pub(crate) fn tick(&mut self) -> u32 {
        self.events = self.events.wrapping_add(1);
        if self.events & self.clock_check == 0 || self.own_clock {
            return self.check_clock();
        }
        process::now(self.superblock)
    }

    /// Whether the holder still keeps the clock: a second's lag says no.
    #[cold]
    fn check_clock(&mut self) -> u32 {
        const LAG: u32 = 125;
        if sys::is_strict() {
            return process::now(self.superblock);
        }
        let real = process::clock_tick(self.superblock);
        let kept = process::now(self.superblock);
        self.own_clock = real.saturating_sub(kept) > LAG;
        if self.own_clock { real } else { kept }
    }

    #[inline(always)]
    fn size_field(&self, address: u64, size: usize) -> u32 {
        match u32::try_from(size) {
            Ok(size) if size != slot::HUGE_SIZE => size,
            _ => {
                // Without space for its size the block counts as 4 GiB.
                let _ = blocks::set_huge(self.window, address, size as u64);
                slot::HUGE_SIZE
            }
        }
    }

    /// The size of a block that is going away.
    #[inline(always)]
    fn size_of(&self, address: u64, word1: u64) -> u64 {
        let size = slot::size(word1);
        if size == slot::HUGE_SIZE {
            return blocks::take_huge(self.window, address).unwrap_or(u64::from(slot::HUGE_SIZE));
        }
        u64::from(size)
    }

    /// This thread's counters for a stack; none if there is no space for them.
    #[inline(always)]
    fn counters(&mut self, stack: u32) -> Option<&'static Counters> {
        let index = stack as usize % CACHED_COUNTERS;
        if let Some((known, Some(counters))) = self.counters.get(index)
            && *known == stack
        {
            return Some(counters);
        }
        self.find_counters(stack, index)
    }

    #[inline(never)]
    fn find_counters(&mut self, stack: u32, index: usize) -> Option<&'static Counters> {
        let (page, place) = (stack as usize / COUNTER_PAGE, stack as usize % COUNTER_PAGE);
        let upper = self.shard.counters.get(page / COUNTER_DIR)?;
        let lower: &[AtomicU32; COUNTER_DIR] = self.arena.unit(self.child(upper, COUNTER_DIR * 4)?)?;
        let entry = lower.get(page % COUNTER_DIR)?;
        let units = self.child(entry, COUNTER_PAGE * size_of::<Counters>())?;
        let counters = self.arena.at(u64::from(units) * UNIT + (place * size_of::<Counters>()) as u64)?;
        if let Some(cached) = self.counters.get_mut(index) {
            *cached = (stack, Some(counters));
        }
        Some(counters)
    }

    /// What a directory entry of this thread's own refers to, made if need be.
    fn child(&self, entry: &AtomicU32, bytes: usize) -> Option<u32> {
        let known = entry.load(Relaxed);
        if known != 0 {
            return Some(known);
        }
        let fresh = (self.arena.allocate(self.window, bytes as u64)? / UNIT) as u32;
        entry.store(fresh, Release);
        Some(fresh)
    }

    /// Keeps the numbers of the last peak before they change for the first time since.
    #[inline(always)]
    fn stamp(&self, counters: &Counters) {
        let epoch = self.window.epoch.load(Relaxed);
        if counters.epoch.load(Relaxed) != epoch {
            let difference = |plus: &AtomicU64, minus: &AtomicU64| {
                plus.load(Relaxed).wrapping_sub(minus.load(Relaxed)) as i64
            };
            counters.peak_bytes.store(difference(&counters.allocated_bytes, &counters.freed_bytes), Relaxed);
            counters
                .peak_blocks
                .store(difference(&counters.allocated_blocks, &counters.freed_blocks), Relaxed);
            counters.epoch.store(epoch, Release);
        }
    }

    /// Tells the process about a change of its heap, once it is worth telling.
    #[inline(always)]
    fn changed(&mut self, bytes: i64) {
        let pending = self.shard.pending.load(Relaxed) + bytes;
        if pending.abs() < self.flush_at {
            self.shard.pending.store(pending, Relaxed);
        } else {
            self.flush(pending);
        }
    }

    #[inline(never)]
    fn flush(&mut self, pending: i64) {
        self.shard.pending.store(0, Relaxed);
        let now = self.window.inuse.fetch_add(pending, AcqRel) + pending;
        let peak = self.window.peak.load(Relaxed);
        self.flush_at = (peak >> 7).clamp(1024, MAX_PENDING);
        if now > peak + (peak >> 7) && raise(&self.window.peak, now) {
            self.window.epoch.fetch_add(1, AcqRel);
        }
    }

    /// A free of a block that is not in the table: inherited at fork, older than the tracing, missed, or not sampled.
    #[cold]
    fn unknown_free(&mut self, address: usize) {
        if self.interval != 0 {
            // Unlike where everything is recorded, a block that took an inherited one's place is not known; it must
            // not pass for that one.
            if self.find_inherited(address).is_some() && filter::give_up_inherited(address) {
                filter::remove(address);
                self.free_inherited(address);
            }
        } else if self.free_inherited(address).is_none() {
            self.window.unknown_frees.fetch_add(1, Relaxed);
        }
    }

    /// Counts an inherited block as freed.
    fn free_inherited(&self, address: usize) -> Option<()> {
        let word1 = self.find_inherited(address)?;
        let weight = self.weight(u64::from(slot::size(word1)));
        self.window.inherited_freed_blocks.fetch_add(weight.blocks, Relaxed);
        self.window.inherited_freed_bytes.fetch_add(weight.bytes, Relaxed);
        Some(())
    }

    /// The second word of the block that was at `address` at the fork.
    fn find_inherited(&self, address: usize) -> Option<u64> {
        let fork_tick = process::FORK_TICK.load(Relaxed);
        for ancestor in &process::ANCESTORS {
            let offset = ancestor.load(Relaxed);
            if offset == 0 {
                return None;
            }
            let window: &Window = self.arena.at(offset)?;
            let page = blocks::span_page(self.arena, window, blocks::span_of(address as u64), false);
            let found = page.and_then(|page| blocks::find(self.arena, page, address as u64, slot::HEAP));
            if let Some(found) = found.filter(|found| slot::birth(found.word1) <= fork_tick) {
                return Some(found.word1);
            }
        }
        None
    }
}

/// Whether a block at `address` is in the table, or may be in that of a process that this one was forked from. Nothing of a
/// thread's state is needed, so this may be asked in any hook.
pub(crate) fn may_know(address: usize) -> bool {
    let Some(window) = process::window() else { return true };
    let arena = process::arena();
    let inherits = process::ANCESTORS.first().is_some_and(|ancestor| ancestor.load(Relaxed) != 0);
    let page = blocks::span_page(arena, window, blocks::span_of(address as u64), false);
    inherits || page.is_some_and(|page| blocks::find(arena, page, address as u64, slot::HEAP).is_some())
}

/// A free by a nested hook.
#[cold]
pub(crate) fn free_nested(window: &Window, address: usize, sp: usize) {
    // Of a block that was not sampled nothing is missed.
    if forget_nested(window, address) || sample::interval() == 0 {
        miss_nested(window, sp);
    }
}

/// Forgets a block, if it is known: this thread's own counters are being written further up the stack, so it is only
/// noted that one is missing there.
#[cold]
pub(crate) fn forget_nested(window: &Window, address: usize) -> bool {
    let arena = process::arena();
    let page = blocks::span_page(arena, window, blocks::span_of(address as u64), false);
    let found = page.and_then(|page| blocks::find(arena, page, address as u64, slot::HEAP));
    if let Some(found) = &found {
        found.remove();
        filter::remove(address);
        window.orphan_frees.fetch_add(1, Relaxed);
    }
    found.is_some()
}

/// Counts a nested call that is not recorded, unless the allocator itself made it.
#[cold]
pub(crate) fn miss_nested(window: &Window, sp: usize) {
    if !is_called_by_allocator(sp) {
        window.missed_nested.fetch_add(1, Relaxed);
    }
}

/// Whether the caller of the hook whose entry stack pointer was `sp` is the allocator itself.
pub(crate) fn is_called_by_allocator(sp: usize) -> bool {
    // SAFETY: at entry the stack pointer points to the return address.
    real::is_allocator(unsafe { *(sp as *const usize) })
}

/// An allocation by a nested hook. The point that it may have reached is given up, and the next one drawn: what comes after
/// is sampled as if this allocation had been.
#[cold]
pub(crate) fn allocate_nested(window: &Window, size: usize, sp: usize) {
    if sample::interval() != 0 {
        if sample::passes(size) {
            return;
        }
        let (state, _) = arch::tls_read();
        // SAFETY: a nested hook's thread has a state. What is interrupted may be drawing, too: then both get the
        // same number, which is as good as any.
        let distance = unsafe { (*(state as *mut Thread)).chance.distance(sample::interval()) };
        arch::set_countdown(distance);
    }
    miss_nested(window, sp);
}

/// Adds to a counter that only this thread writes.
#[inline(always)]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
}

fn raise(peak: &AtomicI64, to: i64) -> bool {
    peak.fetch_max(to, AcqRel) < to
}

/// A shard for the new thread `tid`: one whose owner is gone, else a new one.
fn take_shard(arena: Arena, window: &'static Window, tid: u32) -> Option<(usize, &'static Shard)> {
    let count = (window.shard_count.load(Acquire) as usize).min(SHARDS);
    // A few candidates per new thread keep the number of shards near the number of live threads.
    let begin = window.thread_count.load(Relaxed) as usize;
    for turn in 0..count.min(4) {
        let number = (begin * 3 + turn) % count;
        let Some(shard) =
            window.shards.get(number).and_then(|units| arena.unit::<Shard>(units.load(Acquire)))
        else {
            continue;
        };
        let owner = shard.owner.load(Acquire);
        let gone = owner == tid || sys::thread_is_gone(process::pid(), owner);
        if owner != 0 && gone && shard.owner.compare_exchange(owner, tid, AcqRel, Relaxed).is_ok() {
            return Some((number, shard));
        }
    }
    let number = window.shard_count.fetch_add(1, AcqRel) as usize;
    let Some(place) = window.shards.get(number) else {
        window.shard_count.store(SHARDS as u32, Relaxed);
        return None;
    };
    let units = (arena.allocate(window, size_of::<Shard>() as u64)? / UNIT) as u32;
    let shard: &Shard = arena.unit(units)?;
    shard.owner.store(tid, Relaxed);
    place.store(units, Release);
    Some((number, shard))
}
