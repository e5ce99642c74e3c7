//! The main arena's memory: where it begins, and where its pieces are.

use super::Heap;
use super::areas::Areas;
use super::arena::{self, Arena};
use super::chain::{PLAUSIBLE, Region, leads_on, resume};
use super::layout::{Layout, NONCONTIGUOUS, PAGE, align};
use crate::read::Cache;
use leakscope_target::Snapshot;

/// The regions of the main arena.
pub(crate) fn main(
    snapshot: &Snapshot,
    arena: &Arena,
    layout: &Layout,
    writable: &Areas,
    taken: &Areas,
    heap: &mut Heap,
) -> Vec<Region> {
    if arena.has_no_memory(layout) {
        return Vec::new();
    }
    let mut cache = Cache::new(&*snapshot.memory);
    let end = arena::top_end(&*snapshot.memory, arena.top, writable);
    if arena.flags & NONCONTIGUOUS != 0 {
        return scattered(snapshot, arena, writable, taken, heap);
    }
    let Some(area) = writable.find(arena.top) else {
        heap.torn.push(format!("the top chunk of the main arena, {:#x}, is not in memory", arena.top));
        return Vec::new();
    };
    if end.is_none() {
        heap.torn.push(format!("the top chunk of the main arena, {:#x}, has no plausible end", arena.top));
    }
    let end = end.unwrap_or(area.end);
    // `system_mem` counts from the first address that brk gave, foreign pieces between included.
    let start = end.checked_sub(arena.system_mem).and_then(|start| align(start, 0x10));
    let mut region = Region { start: start.unwrap_or(area.start), end, top: Some(arena.top), main: true };
    if start.is_some_and(|start| start <= arena.top && leads_on(&mut cache, &region, start, 1)) {
        return vec![region];
    }
    // Somebody moved the break in a way that malloc does not count, or the account is torn.
    match resume(&mut cache, &region, area.start) {
        Some(found) => {
            heap.notes.push(format!("the main heap begins at {found:#x}, not where malloc's account has it"));
            region.start = found;
        }
        None => heap.torn.push("the main heap's first chunk was not found".to_owned()),
    }
    vec![region]
}

/// An arena that had to take memory from `mmap` because the break could not move: nothing lists its pieces, each of
/// which (but the one with top) ends with fenceposts.
fn scattered(
    snapshot: &Snapshot,
    arena: &Arena,
    writable: &Areas,
    taken: &Areas,
    heap: &mut Heap,
) -> Vec<Region> {
    /// Pages looked at.
    const BUDGET: u64 = 4 << 20;
    let mut cache = Cache::new(&*snapshot.memory);
    let (mut found, mut bytes, mut budget) = (Vec::new(), 0u64, BUDGET);
    // The one with top first, then the rest; brk memory may begin with somebody else's.
    let mut areas: Vec<(u64, u64)> = Vec::new();
    for mapping in
        snapshot.mappings.iter().filter(|mapping| mapping.inode == 0 && writable.contains(mapping.start))
    {
        let mut start = mapping.start;
        if mapping.path == b"[heap]" {
            let region = Region { start, end: mapping.end, top: Some(arena.top), main: true };
            start = resume(&mut cache, &region, start).unwrap_or(start);
        }
        if !mapping.path.starts_with(b"[stack") {
            areas.push((start, mapping.end));
        }
    }
    areas.sort_by_key(|&(start, end)| !(start..end).contains(&arena.top));
    for (start, end) in areas {
        let mut at = start;
        while at < end && bytes < arena.system_mem && budget > 0 {
            budget -= 1;
            if let Some(heap) = taken.find(at) {
                at = heap.end;
                continue;
            }
            // A piece may reach into adjacent mappings; one that was reached already is not looked at again.
            if let Some(known) = found.iter().find(|known: &&Region| (known.start..known.end).contains(&at)) {
                at = known.end;
                continue;
            }
            let whole = writable.find(at).map_or(end, |area| area.end);
            let mut region = Region { start: at, end: whole, top: Some(arena.top), main: true };
            match chain_end(&mut cache, &region) {
                Some(end) => {
                    region.end = end;
                    bytes = bytes.saturating_add(end - at);
                    region.top = region.top.filter(|top| (at..end).contains(top));
                    found.push(region);
                    at = end;
                }
                None => at = (at & !(PAGE - 1)) + PAGE,
            }
        }
    }
    found.sort_by_key(|region| region.start);
    if bytes != arena.system_mem {
        heap.notes.push(format!(
            "the main arena has {} bytes in scattered pieces, of which {bytes} were found",
            arena.system_mem
        ));
    }
    found
}

/// Where the chain of chunks from the region's start on ends, if it ends as a piece does: with fenceposts up to a page
/// boundary, or with top.
fn chain_end(cache: &mut Cache, region: &Region) -> Option<u64> {
    let first = cache.word(region.start.checked_add(8)?)?;
    if first & super::layout::PREV_INUSE == 0 || !leads_on(cache, region, region.start, PLAUSIBLE) {
        return None;
    }
    let end = super::chain::end_of_piece(cache, region, region.start)?;
    (end % PAGE == 0 && end <= region.end).then_some(end)
}
