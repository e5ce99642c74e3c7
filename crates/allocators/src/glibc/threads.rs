//! What threads hold of the heap: their caches (found through static TLS), and the loader's own blocks.

use super::areas::Areas;
use super::layout::{FLAGS, HEADER, Layout, Tcache};
use super::lists::{self, Contents};
use super::stacks;
use crate::read::{Cache, bytes, word_at};
use leakscope_target::{Memory, Snapshot, Thread};
use std::collections::BTreeMap;

/// Static TLS searched below (x86-64) a thread pointer; programs with large thread-local arrays have it far away.
const FARTHEST: u64 = 16 << 20;
/// Threads whose whole static TLS is searched for the place of the cache; it is the same in all.
const SEARCHED: usize = 8;
/// And so many in which it is looked for far away.
const FAR_SEARCHED: usize = 32;
/// Read at once.
const PIECE: u64 = 1 << 16;
/// Distance of `tcache` and `thread_arena`, two thread-local variables of one source file.
const NEAR: usize = 64;

/// The caches of all threads.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    /// Address of the structure (a block), its size class's layout, and its contents; per thread that has one.
    pub found: Vec<(u64, Contents)>,
    /// What was odd about them.
    pub torn: Vec<String>,
    /// Threads whose thread pointer is not known.
    pub unknown: usize,
    /// The offset from the thread pointer, if any thread has a cache.
    pub offset: Option<i64>,
    /// The layout that was found.
    pub kind: Option<Tcache>,
}

/// A place in static TLS where a thread's cache might be, with what speaks for it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Evidence {
    threads: usize,
    /// In so many threads a pointer to an arena is near.
    near_arena: usize,
    /// Whole lists with entries.
    lists: usize,
}

/// Reads the caches of all threads. `arenas` are the addresses of arenas, sorted.
pub(crate) fn caches(
    snapshot: &Snapshot,
    cache: &mut Cache,
    layout: &Layout,
    heaps: &Areas,
    writable: &Areas,
    arenas: &[u64],
) -> Caches {
    let memory = &*snapshot.memory;
    let mut result = Caches::default();
    let threads: Vec<&Thread> =
        snapshot.threads.iter().filter(|thread| thread.registers.thread_pointer != 0).collect();
    result.unknown = snapshot.threads.len() - threads.len();
    let mut votes: BTreeMap<(u64, i64), (Evidence, Tcache)> = BTreeMap::new();
    let mut searched = 0;
    // Nearly always it is near; far away it is looked for in a few threads only, since that reads whole stacks.
    let near = threads.iter().map(|thread| (thread, PIECE));
    let far = threads.iter().take(FAR_SEARCHED).map(|thread| (thread, FARTHEST));
    for (number, (thread, farthest)) in near.chain(far).enumerate() {
        if number == threads.len() && !votes.is_empty() {
            break;
        }
        let pointer = thread.registers.thread_pointer;
        let mut told = false;
        for (offset, value, near) in pointers(memory, pointer, farthest, writable, heaps, arenas) {
            for kind in layout.tcaches() {
                let Some(contents) = validate(cache, value, &kind, layout, heaps, writable) else { continue };
                let (evidence, _) = votes.entry((kind.chunk, offset)).or_insert((Evidence::default(), kind));
                evidence.threads += 1;
                told = true;
                evidence.near_arena += usize::from(near);
                evidence.lists += contents.whole;
            }
        }
        // A thread that never allocated tells nothing; do not let many of those use the search up.
        searched += usize::from(told);
        if searched >= SEARCHED {
            break;
        }
    }
    let order = |evidence: &Evidence| (evidence.near_arena, evidence.threads, evidence.lists);
    let Some((&(_, offset), &(_, kind))) = votes.iter().max_by_key(|(_, (evidence, _))| order(evidence))
    else {
        return result;
    };
    (result.offset, result.kind) = (Some(offset), Some(kind));
    for thread in &threads {
        let place = thread.registers.thread_pointer.wrapping_add_signed(offset);
        let Some(value) = memory.word(place) else {
            result.torn.push(format!("static TLS of thread {} cannot be read", thread.tid));
            continue;
        };
        // Null, or the library's own empty dummy: the thread has none (yet, or any more).
        if value == 0 || !heaps.contains(value) {
            continue;
        }
        match structure(cache, value, &kind)
            .then(|| lists::tcache(cache, value, &kind, layout, heaps, writable))
            .flatten()
        {
            Some(contents) => {
                for list in &contents.broken {
                    result
                        .torn
                        .push(format!("list {list} of the cache of thread {} does not end", thread.tid));
                }
                result.found.push((value, contents));
            }
            None => {
                result.torn.push(format!("the cache of thread {} is not where it was expected", thread.tid))
            }
        }
    }
    result
}

/// Words of a thread's static TLS that point into a heap: offset, value, and whether a pointer to an arena is near.
/// Those near the thread pointer come first; the search ends behind a piece where one with an arena near was found.
fn pointers(
    memory: &dyn Memory,
    pointer: u64,
    farthest: u64,
    writable: &Areas,
    heaps: &Areas,
    arenas: &[u64],
) -> Vec<(i64, u64, bool)> {
    let mut found = Vec::new();
    let Some(area) = writable.find(pointer) else { return found };
    // x86-64 has static TLS below the thread pointer, aarch64 above.
    let below = cfg!(target_arch = "x86_64");
    let mut done = 0;
    while done < farthest {
        let (start, end) = if below {
            let end = pointer - done;
            (end.saturating_sub(PIECE).max(area.start), end)
        } else {
            let start = pointer + done;
            (start, start.saturating_add(PIECE).min(area.end))
        };
        if start >= end {
            break;
        }
        // Some bytes more on either side for the neighbours.
        let from = start.saturating_sub(NEAR as u64).max(area.start);
        let data = bytes(memory, from, (end - from) as usize + if below { 0 } else { NEAR });
        let mut settled = false;
        for offset in ((start - from) as usize..data.len()).step_by(8) {
            let Some(value) = word_at(&data, offset) else { break };
            if value % 16 != 0 || value == 0 || !heaps.contains(value) {
                continue;
            }
            let neighbours = offset.saturating_sub(NEAR)..(offset + NEAR).min(data.len());
            let near = neighbours.step_by(8).any(|at| {
                at != offset && word_at(&data, at).is_some_and(|word| arenas.binary_search(&word).is_ok())
            });
            let place = from + offset as u64;
            found.push((place.wrapping_sub(pointer) as i64, value, near));
            settled |= near;
        }
        done += end - start;
        if settled && done >= PIECE {
            break;
        }
    }
    found
}

/// Whether the block at `address` is a chunk of the right size.
fn structure(cache: &mut Cache, address: u64, kind: &Tcache) -> bool {
    let size = address.checked_sub(8).and_then(|place| cache.word(place));
    // IS_MMAPPED would be one of a strange configuration, but is possible.
    size.is_some_and(|size| kind.is_chunk(size & !FLAGS) && size & 8 == 0)
}

/// The contents of the block at `address`, if it looks like a cache in every respect.
fn validate(
    cache: &mut Cache,
    address: u64,
    kind: &Tcache,
    layout: &Layout,
    heaps: &Areas,
    writable: &Areas,
) -> Option<Contents> {
    if !structure(cache, address, kind) {
        return None;
    }
    let contents = lists::tcache(cache, address, kind, layout, heaps, writable)?;
    // One list may be in the middle of a change.
    (contents.broken.len() <= 1).then_some(contents)
}

/// Blocks that are the loader's: the table of each thread's TLS blocks (DTV), and those blocks.
pub(crate) fn loader_blocks(snapshot: &Snapshot, heaps: &Areas) -> Vec<u64> {
    let memory = &*snapshot.memory;
    let mut own = Vec::new();
    let mut pointers: Vec<u64> =
        snapshot.threads.iter().map(|thread| thread.registers.thread_pointer).collect();
    pointers.extend(stacks::control_blocks(snapshot));
    for pointer in pointers {
        // `tcbhead_t`: on x86-64 the second word is the DTV, on aarch64 the first.
        let place = if cfg!(target_arch = "x86_64") { pointer.checked_add(8) } else { Some(pointer) };
        let Some(table) = place.filter(|_| pointer != 0).and_then(|place| memory.word(place)) else {
            continue;
        };
        // The pointer skips one entry, which holds how many there are.
        let Some(length) = table.checked_sub(HEADER).and_then(|start| memory.word(start)) else { continue };
        if length > 1 << 16 || table % 8 != 0 {
            continue;
        }
        if heaps.contains(table - HEADER) {
            own.push(table - HEADER);
        }
        let entries = bytes(memory, table.saturating_add(16), (length as usize) * 16);
        for entry in entries.chunks_exact(16) {
            // Value, and what to give to free() for it: null for static TLS.
            let free = word_at(entry, 8).unwrap_or(0);
            if free != 0 && heaps.contains(free) {
                own.push(free);
            }
        }
    }
    own
}
