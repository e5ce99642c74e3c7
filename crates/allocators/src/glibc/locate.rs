//! Finding `main_arena`: it is static, so nothing exports it.
//!
//! Three ways, each checked by the same strict test: the symbol (the library's own table, or separate debug symbols by
//! build id), the ring of arenas that every thread's heap leads into, and the look of the structure in the library's
//! writable data. A wrong arena would make every later answer wrong, so the test accepts nothing that is merely likely.

use super::areas::Areas;
use super::arena::{self, Arena};
use super::layout::{BINS, HEAP_SIZES, Layout, NONCONTIGUOUS, Version};
use crate::elf;
use crate::modules::Module;
use crate::read::{bytes, word_at};
use leakscope_target::{Memory, Snapshot};
use std::collections::BTreeSet;

/// Where the main arena is, and how its layout is.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub arena: Arena,
    pub layout: Layout,
    /// How it was found.
    pub how: &'static str,
}

/// Largest writable data searched: a C library has 100 KiB, a static executable seldom more than some MiB.
const LARGEST_DATA: u64 = 256 << 20;

/// Finds the main arena of the C library in `module`. The error says what was tried.
pub(crate) fn main_arena(
    snapshot: &Snapshot,
    module: &Module,
    version: Option<Version>,
    writable: &Areas,
    debug_symbols: bool,
) -> Result<Located, String> {
    let memory = &*snapshot.memory;
    let layouts = layouts(version);
    let mut tried = Vec::new();
    if debug_symbols {
        match symbol(snapshot, module) {
            Some(address) => {
                for layout in &layouts {
                    if let Some(arena) = Arena::read(memory, address, layout)
                        && (is_main(memory, &arena, layout, writable, true) || is_unused(&arena))
                    {
                        return Ok(Located { arena, layout: *layout, how: "by its symbol" });
                    }
                }
                tried.push("what its symbol names is not a consistent arena");
            }
            None => tried.push("there are no symbols for it"),
        }
    }
    match by_heaps(snapshot, module, &layouts, writable) {
        Some(located) => return Ok(located),
        None => tried.push("no other thread's arena leads to it"),
    }
    let found = scan(memory, module, &layouts, writable);
    match (found.first(), found.len()) {
        (Some(located), 1) => return Ok(located.clone()),
        (Some(_), _) => tried.push("several places in the library's data look like it"),
        _ => tried.push("nothing in the library's data looks like it"),
    }
    Err(tried.join(", "))
}

/// The layouts to try, the version's own first. Distributions carry changes back, so the others follow, but only
/// where the structure differs.
fn layouts(version: Option<Version>) -> Vec<Layout> {
    let mut layouts: Vec<Layout> = version.map(Layout::of).into_iter().collect();
    for (_, layout) in Layout::all() {
        let known = |other: &Layout| other.state == layout.state && (version.is_some() || *other == layout);
        if !layouts.iter().any(known) {
            layouts.push(layout);
        }
    }
    layouts
}

fn symbol(snapshot: &Snapshot, module: &Module) -> Option<u64> {
    let wanted = |name: &[u8]| name == b"main_arena";
    let object = elf::object(snapshot, module, &wanted)?;
    if let Some(symbol) = object.symbols.first() {
        return object.place(module, symbol);
    }
    let mut hex = object.build_id.iter().map(|byte| format!("{byte:02x}"));
    let first = hex.next()?;
    let rest: String = hex.take(64).collect();
    let path = format!("/usr/lib/debug/.build-id/{first}/{rest}.debug");
    let debug = elf::file_at(&elf::outside(snapshot, path.as_bytes()), &wanted)?;
    if debug.build_id != object.build_id {
        return None;
    }
    let symbol = debug.symbols.first()?;
    module.start.checked_add(symbol.address.checked_sub(object.base)?)
}

/// The static initialiser's state: nothing was ever allocated.
fn is_unused(arena: &Arena) -> bool {
    arena.top == 0 && arena.system_mem == 0 && arena.next == arena.address
}

/// Whether everything about `arena` agrees with being the main arena. With `named` by a symbol, the address is known
/// and only consistency is asked for.
fn is_main(memory: &dyn Memory, arena: &Arena, layout: &Layout, writable: &Areas, named: bool) -> bool {
    let (empty, broken) = arena.bins(memory, layout, writable);
    // A list of chunks is torn in one place at most while an operation is in progress.
    let tolerated = if arena.locked { 2 } else { 0 };
    if broken > tolerated || empty < 8 || empty + broken > BINS {
        return false;
    }
    let (_, closed) = arena::ring(memory, arena, layout, writable);
    if !closed {
        return false;
    }
    if arena.has_no_memory(layout) {
        return arena.system_mem == 0 && arena.top != 0;
    }
    let Some(end) = arena::top_end(memory, arena.top, writable) else {
        return named && arena.locked && writable.contains(arena.top);
    };
    // What the arena says it has must be there: in one piece up to the end of top, or somewhere in all.
    if arena.flags & NONCONTIGUOUS != 0 {
        return arena.system_mem >= end - arena.top && arena.system_mem <= writable.bytes();
    }
    let start = end.checked_sub(arena.system_mem).filter(|&start| start <= arena.top);
    named || arena.locked || start.is_some_and(|start| writable.contains(start))
}

/// By the ring of arenas, from any heap of another thread.
fn by_heaps(snapshot: &Snapshot, module: &Module, layouts: &[Layout], writable: &Areas) -> Option<Located> {
    let memory = &*snapshot.memory;
    let in_data = |address: u64| module.data.iter().any(|range| range.contains(&address));
    let mut tried = BTreeSet::new();
    for mapping in &snapshot.mappings {
        let aligned = mapping.writable && HEAP_SIZES.iter().any(|size| mapping.start % size == 0);
        let Some(heap) =
            Some(mapping.start).filter(|_| aligned).and_then(|at| arena::Heap::read(memory, at, writable))
        else {
            continue;
        };
        for layout in layouts {
            // Each arena's ring is followed once; it ends in the library's data or is none.
            let mut at = heap.arena;
            for _ in 0..arena::MOST {
                if in_data(at) {
                    let arena = Arena::read(memory, at, layout);
                    match arena.filter(|arena| is_main(memory, arena, layout, writable, true)) {
                        Some(arena) => {
                            return Some(Located { arena, layout: *layout, how: "by the ring of arenas" });
                        }
                        None => break,
                    }
                }
                if !tried.insert((at, layout.state.next, layout.heap_info))
                    || arena::first_heap(memory, at, layout, writable).is_none()
                {
                    break;
                }
                match at.checked_add(layout.state.next).and_then(|place| memory.word(place)) {
                    Some(next) => at = next,
                    None => break,
                }
            }
        }
    }
    None
}

/// By the look of it: everywhere in the writable data.
fn scan(memory: &dyn Memory, module: &Module, layouts: &[Layout], writable: &Areas) -> Vec<Located> {
    let mut found: Vec<Located> = Vec::new();
    let mut budget = LARGEST_DATA;
    for range in &module.data {
        const PIECE: u64 = 1 << 20;
        const OVERLAP: u64 = 0x1000;
        let mut start = range.start;
        while start < range.end && budget > 0 {
            let length = (range.end - start).min(PIECE);
            let data = bytes(memory, start, length as usize);
            for layout in layouts {
                for address in candidates(&data, start, layout) {
                    let offset = (address - start) as usize;
                    let Some(arena) =
                        data.get(offset..).and_then(|state| Arena::parse(state, address, layout))
                    else {
                        continue;
                    };
                    let known = |other: &Located| other.arena.address == address;
                    if !found.iter().any(known) && is_main(memory, &arena, layout, writable, false) {
                        found.push(Located {
                            arena,
                            layout: *layout,
                            how: "by its look in the library's data",
                        });
                    }
                }
            }
            budget = budget.saturating_sub(length);
            if start + length >= range.end {
                break;
            }
            start += length - OVERLAP;
        }
        // The version's own layout comes first; a find in it settles the matter.
        if !found.is_empty() {
            break;
        }
    }
    found
}

/// Addresses in `data` (which starts at `start`) where several bins are empty as an arena's are.
fn candidates(data: &[u8], start: u64, layout: &Layout) -> Vec<u64> {
    let mut found = Vec::new();
    let bins = layout.state.bins as usize;
    let last = data.len().saturating_sub(layout.state.size as usize);
    // Large and seldom used ones among them: at least some are empty in any process.
    const SAMPLES: [usize; 12] = [126, 125, 124, 120, 110, 100, 96, 80, 64, 40, 20, 2];
    for offset in (0..=last).step_by(8) {
        let empty = SAMPLES.iter().filter(|&&bin| {
            let at = offset + bins + bin * 16;
            let own = start.wrapping_add(at as u64).wrapping_sub(16);
            word_at(data, at) == Some(own) && word_at(data, at + 8) == Some(own)
        });
        if empty.count() >= 2 {
            found.push(start + offset as u64);
        }
    }
    found
}
