//! Arenas and their heaps, as `struct malloc_state` and `heap_info` say; every claim is checked against the mappings.

use super::areas::Areas;
use super::layout::{BINS, FLAGS, HEADER, HEAP_SIZES, IS_MMAPPED, Layout, NON_MAIN_ARENA, PAGE, PREV_INUSE};
use crate::read::{bytes, half_at, word_at};
use leakscope_target::Memory;
use std::ops::Range;

/// More heaps and arenas than any process has; ends a cyclic list.
pub(crate) const MOST: usize = 1 << 16;

/// The fields of one arena.
#[derive(Debug, Clone)]
pub(crate) struct Arena {
    pub address: u64,
    /// Somebody holds its lock: an operation is in progress.
    pub locked: bool,
    pub flags: u32,
    /// Heads of the fastbins.
    pub fastbins: Vec<u64>,
    pub top: u64,
    pub next: u64,
    pub system_mem: u64,
    /// `fd` and `bk` of each bin.
    bins: Vec<(u64, u64)>,
}

impl Arena {
    pub(crate) fn read(memory: &dyn Memory, address: u64, layout: &Layout) -> Option<Arena> {
        let state = bytes(memory, address, usize::try_from(layout.state.size).ok()?);
        Arena::parse(&state, address, layout)
    }

    pub(crate) fn parse(state: &[u8], address: u64, layout: &Layout) -> Option<Arena> {
        let word = |offset: u64| word_at(state, offset as usize);
        let fastbins = match layout.state.fastbins {
            Some(offset) => {
                (0..super::layout::FASTBINS).map(|bin| word(offset + bin * 8)).collect::<Option<_>>()?
            }
            None => Vec::new(),
        };
        let bins = (0..BINS as u64).map(|bin| {
            let at = layout.state.bins + bin * 16;
            Some((word(at)?, word(at + 8)?))
        });
        Some(Arena {
            address,
            locked: half_at(state, 0)? != 0,
            flags: half_at(state, 4)?,
            fastbins,
            top: word(layout.state.top)?,
            next: word(layout.state.next)?,
            system_mem: word(layout.state.system_mem)?,
            bins: bins.collect::<Option<_>>()?,
        })
    }

    /// The address that an empty bin points to: a chunk whose links would be the bin.
    pub(crate) fn bin_chunk(&self, layout: &Layout, bin: usize) -> u64 {
        self.address.wrapping_add(layout.state.bins).wrapping_add(bin as u64 * 16).wrapping_sub(HEADER)
    }

    /// Initialised but without memory of its own yet.
    pub(crate) fn has_no_memory(&self, layout: &Layout) -> bool {
        self.top == 0 || self.top == self.bin_chunk(layout, 0)
    }

    /// How many bins are empty, and how many are neither empty nor lead to chunks that lead back.
    pub(crate) fn bins(&self, memory: &dyn Memory, layout: &Layout, writable: &Areas) -> (usize, usize) {
        let (mut empty, mut broken) = (0, 0);
        for (index, &(fd, bk)) in self.bins.iter().enumerate() {
            let own = self.bin_chunk(layout, index);
            if (fd, bk) == (own, own) {
                empty += 1;
                continue;
            }
            let chunk = |address: u64| address.is_multiple_of(16) && writable.holds(address, 0x20);
            let linked = chunk(fd)
                && chunk(bk)
                && memory.word(fd.wrapping_add(24)) == Some(own)
                && memory.word(bk.wrapping_add(16)) == Some(own);
            broken += usize::from(!linked);
        }
        (empty, broken)
    }
}

/// The end of a main arena's top chunk, if top looks like one: in writable memory, ending on a page boundary.
pub(crate) fn top_end(memory: &dyn Memory, top: u64, writable: &Areas) -> Option<u64> {
    let area = writable.find(top).filter(|_| top.is_multiple_of(16))?;
    let size = memory.word(top.checked_add(8)?)?;
    let end = top.checked_add(size & !FLAGS)?;
    let plausible = size & FLAGS == PREV_INUSE && size & !FLAGS >= HEADER && size & 8 == 0;
    (plausible && end % PAGE == 0 && end <= area.end).then_some(end)
}

/// A heap of another arena than the main one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heap {
    pub start: u64,
    /// Bytes in use by the arena, from `start`.
    pub size: u64,
    /// Bytes that were ever made accessible, from `start`.
    pub accessible: u64,
    pub arena: u64,
    pub previous: u64,
    /// Alignment, and largest size.
    pub limit: u64,
}

impl Heap {
    /// The heap that starts at `start`, if its header is plausible.
    pub(crate) fn read(memory: &dyn Memory, start: u64, writable: &Areas) -> Option<Heap> {
        let header = bytes(memory, start, 0x20);
        let word = |offset| word_at(&header, offset);
        let (arena, previous, size, accessible) = (word(0)?, word(8)?, word(16)?, word(24)?);
        let limit = HEAP_SIZES.into_iter().find(|&limit| start.is_multiple_of(limit) && size <= limit)?;
        let plausible = start != 0
            && size >= PAGE
            && size % PAGE == 0
            && accessible >= size
            && accessible <= limit
            && arena % 16 == 0
            && previous % PAGE == 0
            && writable.holds(start, size);
        plausible.then_some(Heap { start, size, accessible, arena, previous, limit })
    }

    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    pub(crate) fn area(&self) -> Range<u64> {
        self.start..self.start.saturating_add(self.accessible)
    }
}

/// The heap that holds the structure of a non-main arena at `address`: the structure lies right behind its header.
pub(crate) fn first_heap(
    memory: &dyn Memory,
    address: u64,
    layout: &Layout,
    writable: &Areas,
) -> Option<Heap> {
    let start = address.checked_sub(layout.heap_info)?;
    Heap::read(memory, start, writable).filter(|heap| heap.arena == address)
}

/// The heaps of a non-main arena, newest (the one with top) first, and whether the list is whole.
pub(crate) fn heaps(
    memory: &dyn Memory,
    arena: &Arena,
    layout: &Layout,
    writable: &Areas,
) -> (Vec<Heap>, bool) {
    let Some(first) = first_heap(memory, arena.address, layout, writable) else { return (Vec::new(), false) };
    let own = |heap: &Heap| heap.arena == arena.address;
    let mut newest = None;
    for limit in [first.limit].into_iter().chain(HEAP_SIZES) {
        let candidate = Heap::read(memory, arena.top & !(limit - 1), writable).filter(own);
        newest = newest.or(candidate.filter(|heap| arena.top < heap.end()));
    }
    let mut found: Vec<Heap> = Vec::new();
    let Some(newest) = newest else { return (vec![first], false) };
    let mut next = Some(newest);
    while let Some(heap) = next.take() {
        if heap.start == first.start {
            found.push(heap);
            return (found, true);
        }
        if found.len() >= MOST {
            break;
        }
        next = Heap::read(memory, heap.previous, writable).filter(own);
        found.push(heap);
    }
    // Cyclic or cut: keep each once, and the first in any case.
    found.sort_by_key(|heap| heap.start);
    found.dedup();
    if !found.contains(&first) {
        found.push(first);
    }
    (found, false)
}

/// The ring of arenas from `main` on, without it, and whether it is closed.
pub(crate) fn ring(
    memory: &dyn Memory,
    main: &Arena,
    layout: &Layout,
    writable: &Areas,
) -> (Vec<Arena>, bool) {
    let mut found: Vec<Arena> = Vec::new();
    let mut at = main.next;
    while at != main.address {
        // Brent would do as well; there are never many arenas, and the list is short where it is broken.
        let known = first_heap(memory, at, layout, writable).and_then(|_| Arena::read(memory, at, layout));
        match known {
            Some(arena) if found.len() < MOST && found.first().is_none_or(|first| first.address != at) => {
                at = arena.next;
                found.push(arena);
            }
            _ => {
                found.sort_by_key(|arena| arena.address);
                found.dedup_by_key(|arena| arena.address);
                return (found, false);
            }
        }
    }
    (found, true)
}

/// The size in a chunk's size word, if the flags are those of a chunk in an arena: aligned, not mmapped, and in the
/// main arena not another's. (Other arenas mark chunks that are or were in use, but not free ones.)
pub(crate) fn size_of(word: u64, main: bool) -> Option<u64> {
    let foreign = if main { NON_MAIN_ARENA } else { 0 };
    (word & (8 | IS_MMAPPED | foreign) == 0).then_some(word & !FLAGS)
}
