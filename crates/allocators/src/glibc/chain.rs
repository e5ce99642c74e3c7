//! Walking the chunks of one heap in the order of addresses.
//!
//! A chunk is in use if the next one's `PREV_INUSE` says so and it is in no cache or fastbin. What does not fit (a
//! size that leads out of the heap, flags that no chunk has, a free chunk whose footer differs) is reported; the walk
//! goes on at the next place from where a chain of chunks leads on.

use super::arena::size_of;
use super::layout::{FLAGS, HEADER, MIN_CHUNK, NON_MAIN_ARENA, PAGE, PREV_INUSE};
use super::lists::Cached;
use crate::read::{Cache, Window};
use leakscope_reach::Block;
use leakscope_target::Memory;
use std::ops::Range;

/// A run of chunks.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    /// First chunk.
    pub start: u64,
    /// One past the last byte that can belong to a chunk.
    pub end: u64,
    /// The top chunk, if it is here.
    pub top: Option<u64>,
    /// Of the main arena.
    pub main: bool,
}

/// Sums over chunks, in bytes with their headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub inuse_blocks: u64,
    pub inuse_bytes: u64,
    pub free_bytes: u64,
    pub tcache_bytes: u64,
    pub fastbin_bytes: u64,
    pub top_bytes: u64,
}

/// Problems, bounded in number.
#[derive(Debug, Clone, Default)]
pub(crate) struct Torn {
    pub messages: Vec<String>,
    more: u64,
}

impl Torn {
    pub(crate) fn add(&mut self, message: impl FnOnce() -> String) {
        const MOST: usize = 20;
        if self.messages.len() < MOST {
            self.messages.push(message());
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn finish(mut self) -> Vec<String> {
        if self.more > 0 {
            self.messages.push(format!("and {} more", self.more));
        }
        self.messages
    }
}

/// What a chunk header says in its place.
enum Place {
    Top,
    /// A chunk of this size.
    Chunk(u64),
    /// The end of a piece of heap: where it was closed because the next memory is not adjacent.
    Fencepost,
    Nonsense,
}

/// How many plausible chunks in a row make a place to go on from.
pub(crate) const PLAUSIBLE: usize = 64;

pub(crate) struct Walker<'a> {
    window: Window<'a>,
    /// For looking ahead.
    cache: Cache<'a>,
    cached: &'a Cached,
    /// Chunks that threads inside malloc have in their hands.
    suspects: &'a Cached,
    sink: &'a mut dyn FnMut(Block),
    pub ambiguous: Vec<Block>,
    pub torn: Torn,
}

impl<'a> Walker<'a> {
    pub(crate) fn new(
        memory: &'a dyn Memory,
        cached: &'a Cached,
        suspects: &'a Cached,
        sink: &'a mut dyn FnMut(Block),
    ) -> Walker<'a> {
        Walker {
            window: Window::new(memory),
            cache: Cache::new(memory),
            cached,
            suspects,
            sink,
            ambiguous: Vec::new(),
            torn: Torn::default(),
        }
    }

    /// Reports a block that is not part of any region, such as an mmapped one.
    pub(crate) fn single(&mut self, chunk: u64, block: Block) {
        (self.sink)(block);
        if self.suspects.contains(chunk) {
            self.ambiguous.push(block);
        }
    }

    /// Walks a region. Returns the pieces that hold chunks: all of it but the gaps that other users of `brk` left.
    pub(crate) fn region(&mut self, region: &Region, totals: &mut Totals) -> Vec<Range<u64>> {
        let mut pieces = Vec::new();
        let mut at = region.start;
        while at < region.end {
            let start = at;
            let (stopped, whole) = self.piece(region, at, totals);
            pieces.push(start..stopped.min(region.end));
            if stopped >= region.end || Some(stopped) == region.top {
                break;
            }
            // Behind fenceposts other memory follows; behind nonsense the rest of the heap.
            // (Past the chunk that does not fit, in any case: the walk must move on.)
            let from = if whole { stopped } else { stopped.saturating_add(HEADER) };
            let Some(next) = resume(&mut self.cache, region, from) else {
                if !whole {
                    self.torn.add(|| format!("no chunk is found from {stopped:#x} on to {:#x}", region.end));
                    pieces.push(stopped..region.end);
                }
                break;
            };
            if !whole {
                self.torn.add(|| format!("chunks from {stopped:#x} to {next:#x} are not consistent"));
                pieces.push(stopped..next);
                let block =
                    Block { address: stopped + HEADER, size: (next - stopped).saturating_sub(HEADER) };
                (self.sink)(block);
                self.ambiguous.push(block);
            }
            at = next;
        }
        pieces
    }

    /// Walks from the chunk at `at` to top, to a fencepost (both: whole) or to where the chain breaks. Returns where
    /// the next chunk would start, or the address of top's end.
    fn piece(&mut self, region: &Region, mut at: u64, totals: &mut Totals) -> (u64, bool) {
        let mut cursor = self.cached.from(at);
        let mut suspects = self.suspects.from(at);
        let Some((_, mut word)) = self.window.header(at) else { return (at, false) };
        loop {
            let size = match place(region, at, word) {
                Place::Chunk(size) => size,
                Place::Top => {
                    totals.top_bytes = word & !FLAGS;
                    return (region.end, true);
                }
                Place::Fencepost if self.is_fence(region, at, word) => {
                    return (fence_end(region, at, word), true);
                }
                Place::Fencepost | Place::Nonsense => return (at, false),
            };
            let next = at + size;
            // The next header decides about this chunk, so it must be sound.
            let Some((footer, next_word)) = self.window.header(next) else { return (at, false) };
            if matches!(place(region, next, next_word), Place::Nonsense) {
                return (at, false);
            }
            // Other arenas' chunks in use carry their flag; what looks used without it closes a heap.
            let used = next_word & PREV_INUSE != 0;
            let unmarked = !region.main && word & NON_MAIN_ARENA == 0;
            if used && unmarked && next_word & !PREV_INUSE == 0 {
                return (region.end, true);
            }
            if !used && footer == size {
                totals.free_bytes += size;
            } else if let Some(fastbin) = cursor.free(at) {
                *(if fastbin { &mut totals.fastbin_bytes } else { &mut totals.tcache_bytes }) += size;
            } else {
                let block = Block { address: at + HEADER, size: size - 8 };
                totals.inuse_blocks += 1;
                totals.inuse_bytes += size;
                (self.sink)(block);
                if used && unmarked {
                    self.torn.add(|| format!("the chunk at {at:#x} of {size} bytes lacks its arena's flag"));
                    self.ambiguous.push(block);
                } else if !used {
                    self.torn.add(|| {
                        format!("the free chunk at {at:#x} of {size} bytes has a footer of {footer}")
                    });
                    self.ambiguous.push(block);
                } else if suspects.free(at).is_some() {
                    self.ambiguous.push(block);
                }
            }
            (at, word) = (next, next_word);
        }
    }

    /// Whether there are as many posts as there must be, and in the main heap where a page ends.
    fn is_fence(&mut self, region: &Region, at: u64, word: u64) -> bool {
        if word & !FLAGS == 0 {
            return true;
        }
        let second = self.window.header(at + HEADER).map(|(_, word)| word & !FLAGS);
        match region.main {
            true => second == Some(HEADER) && fence_end(region, at, word).is_multiple_of(PAGE),
            false => second == Some(0),
        }
    }
}

/// The first place from `from` on, aligned to 16, from which a chain of chunks leads to top, to a fencepost, or far.
pub(crate) fn resume(cache: &mut Cache, region: &Region, from: u64) -> Option<u64> {
    let mut at = from;
    while at < region.end {
        match cache.word(at.checked_add(8)?) {
            // The first chunk of memory new to the heap has PREV_INUSE set, as there is nothing to merge it with.
            Some(word) if word & PREV_INUSE != 0 && leads_on(cache, region, at, PLAUSIBLE) => {
                return Some(at);
            }
            Some(_) => at += 0x10,
            // A hole: nothing on this page.
            None => at = (at & !0xfff) + 0x1000,
        }
    }
    None
}

/// Whether so many chunks follow each other from `at` on, or as many as there are to the end.
pub(crate) fn leads_on(cache: &mut Cache, region: &Region, mut at: u64, chunks: usize) -> bool {
    for count in 0..chunks {
        let Some(word) = at.checked_add(8).and_then(|place| cache.word(place)) else { return false };
        match place(region, at, word) {
            Place::Chunk(size) => at += size,
            Place::Top => return true,
            // A lone pattern that looks like a fencepost is not a heap.
            Place::Fencepost => return count > 0,
            Place::Nonsense => return false,
        }
    }
    true
}

/// The end of the piece whose chunks start at `at`: behind its top or its fenceposts.
pub(crate) fn end_of_piece(cache: &mut Cache, region: &Region, mut at: u64) -> Option<u64> {
    loop {
        let word = cache.word(at.checked_add(8)?)?;
        match place(region, at, word) {
            Place::Chunk(size) => at += size,
            Place::Top => return at.checked_add(word & !FLAGS),
            Place::Fencepost => return Some(fence_end(region, at, word)),
            Place::Nonsense => return None,
        }
    }
}

#[inline]
fn place(region: &Region, at: u64, word: u64) -> Place {
    if region.top == Some(at) {
        return Place::Top;
    }
    // The first post's PREV_INUSE is clear if the old top before it was free; the last one of other arenas is of no size.
    let post = |size| size == HEADER || (size == 0 && !region.main && word & PREV_INUSE != 0);
    match size_of(word, region.main) {
        Some(size) if size >= MIN_CHUNK && size <= region.end.saturating_sub(at) => {
            // Nothing but top may end where the region does.
            if size == region.end - at { Place::Nonsense } else { Place::Chunk(size) }
        }
        Some(size) if post(size) => Place::Fencepost,
        _ => Place::Nonsense,
    }
}

/// The end of the memory that a fencepost closes.
fn fence_end(region: &Region, at: u64, word: u64) -> u64 {
    // Main: two posts of 16 bytes; others: a post of 16 or 32 bytes and one of none, and nothing follows.
    if region.main { at.saturating_add(2 * (word & !FLAGS)) } else { region.end }
}
