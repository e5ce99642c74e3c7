//! The stack trie: one node per distinct (caller, program counter), and a number for each distinct stack.
//!
//! Insert-only. The index that finds a node may forget or duplicate entries under races and growth, which costs
//! a duplicate node and nothing else: readers merge equal stacks. So nobody ever waits for an index.

use crate::arena::Arena;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{
    MAX_STACKS, MODULE_PSEUDO, NODE_BLOCK, NODE_BLOCKS, NodeIndex, NodeRecord, PC_BITS, PSEUDO_MAPPED,
    STACK_BLOCK, STACK_BLOCKS, UNIT, Window,
};

const FIRST_INDEX_SLOTS: u32 = 4096;
const PROBES: u32 = 16;
const MAX_INDEX_SLOTS: u32 = 1 << 26;

/// The root of the trie, and the answer when there is no space for more nodes.
pub(crate) const ROOT: u32 = 0;

/// The node of `key` under `parent`, made if need be. None if the heap file is full.
pub(crate) fn intern(arena: Arena, window: &Window, parent: u32, key: u64) -> Option<u32> {
    let hash = hash(parent, key);
    let newest = window.node_index.load(Acquire);
    let mut offset = newest;
    let mut steps = 0;
    while offset != 0 && steps < 16 {
        let index: &NodeIndex = arena.at(offset)?;
        if let Some(number) = search(arena, window, index, offset, hash, parent, key) {
            if offset != newest {
                remember(arena, window, hash, number);
            }
            return Some(number);
        }
        offset = index.older;
        steps += 1;
    }
    let number = new_node(arena, window, parent, key)?;
    remember(arena, window, hash, number);
    Some(number)
}

/// The number of the stack whose innermost frame is `node`; 0 when there are too many stacks.
pub(crate) fn stack_of(arena: Arena, window: &Window, number: u32) -> u32 {
    let Some(record) = node(arena, window, number) else { return 0 };
    let known = record.stack.load(Acquire);
    if known != 0 {
        return known;
    }
    new_stack(arena, window, number, record).unwrap_or(0)
}

/// The number of the stack that stands for mappings made under `stack`.
pub(crate) fn mapping_of(arena: Arena, window: &Window, stack: u32) -> u32 {
    let node = window.stack_blocks.get(stack as usize / STACK_BLOCK).and_then(|block| {
        let block = u64::from(block.load(Acquire)) * UNIT;
        let place: &AtomicU32 = arena.at(block + (stack as usize % STACK_BLOCK * 4) as u64)?;
        (stack != 0 && block != 0).then(|| place.load(Acquire))
    });
    let key = u64::from(MODULE_PSEUDO) << PC_BITS | PSEUDO_MAPPED;
    intern(arena, window, node.unwrap_or(ROOT), key).map_or(0, |node| stack_of(arena, window, node))
}

/// The record of a node.
#[inline]
pub(crate) fn node(arena: Arena, window: &Window, number: u32) -> Option<&'static NodeRecord> {
    let block = window.node_blocks.get(number as usize / NODE_BLOCK)?.load(Acquire);
    if block == 0 {
        return None;
    }
    let within = (number as usize % NODE_BLOCK * size_of::<NodeRecord>()) as u64;
    arena.at(u64::from(block) * UNIT + within)
}

fn hash(parent: u32, key: u64) -> u64 {
    let mixed = (key ^ u64::from(parent).rotate_left(40)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93)
}

fn slots_of(arena: Arena, index: &NodeIndex, offset: u64) -> Option<&'static [AtomicU32]> {
    if !index.slots.is_power_of_two() || index.slots > MAX_INDEX_SLOTS {
        return None;
    }
    arena.slice(offset + size_of::<NodeIndex>() as u64, index.slots as usize)
}

fn search(
    arena: Arena,
    window: &Window,
    index: &NodeIndex,
    offset: u64,
    hash: u64,
    parent: u32,
    key: u64,
) -> Option<u32> {
    let slots = slots_of(arena, index, offset)?;
    let mask = slots.len() - 1;
    let start = (hash >> 20) as usize;
    for probe in 0..PROBES as usize {
        let number = slots.get((start + probe) & mask)?.load(Acquire);
        if number == 0 {
            return None;
        }
        let record = node(arena, window, number)?;
        if record.key.load(Relaxed) == key && record.parent.load(Relaxed) == parent {
            return Some(number);
        }
    }
    None
}

/// Puts a node into the newest index, which grows when it is full.
fn remember(arena: Arena, window: &Window, hash: u64, number: u32) {
    for _ in 0..2 {
        let offset = window.node_index.load(Acquire);
        if let Some(index) = (offset != 0).then(|| arena.at::<NodeIndex>(offset)).flatten()
            && let Some(slots) = slots_of(arena, index, offset)
        {
            let roomy = index.used.load(Relaxed) < index.slots / 4 * 3;
            let mask = slots.len() - 1;
            let start = (hash >> 20) as usize;
            let free = (0..PROBES as usize).find(|probe| {
                slots.get((start + probe) & mask).is_some_and(|slot| {
                    slot.load(Relaxed) == 0 && slot.compare_exchange(0, number, AcqRel, Relaxed).is_ok()
                })
            });
            if free.is_some() {
                index.used.fetch_add(1, Relaxed);
                if roomy {
                    return;
                }
            }
            if !grow(arena, window, offset, index.slots.saturating_mul(4)) || free.is_some() {
                return;
            }
        } else if !grow(arena, window, 0, FIRST_INDEX_SLOTS) {
            return;
        }
    }
}

/// Puts a larger, empty index in front. The old ones still answer; what they answer moves over.
fn grow(arena: Arena, window: &Window, older: u64, slots: u32) -> bool {
    if slots > MAX_INDEX_SLOTS {
        return false;
    }
    let bytes = size_of::<NodeIndex>() as u64 + u64::from(slots) * 4;
    let Some(offset) = arena.allocate(window, bytes) else { return false };
    let Some(index) = arena.at::<NodeIndex>(offset) else { return false };
    // SAFETY: the space was just handed out to this thread and is published below.
    unsafe {
        let place = core::ptr::from_ref(index).cast_mut();
        (*place).older = older;
        (*place).slots = slots;
    }
    // A thread that was faster has grown it already; this one's space stays unused until the process ends.
    let _ = window.node_index.compare_exchange(older, offset, AcqRel, Relaxed);
    true
}

fn new_node(arena: Arena, window: &Window, parent: u32, key: u64) -> Option<u32> {
    if window.nodes.load(Relaxed) as usize >= NODE_BLOCK * NODE_BLOCKS {
        return None;
    }
    let number = window.nodes.fetch_add(1, Relaxed);
    let slot = window.node_blocks.get(number as usize / NODE_BLOCK)?;
    ensure_block(arena, window, slot, NODE_BLOCK * size_of::<NodeRecord>())?;
    let record = node(arena, window, number)?;
    record.parent.store(parent, Relaxed);
    record.key.store(key, Release);
    Some(number)
}

fn new_stack(arena: Arena, window: &Window, number: u32, record: &NodeRecord) -> Option<u32> {
    if window.stacks.load(Relaxed) >= MAX_STACKS {
        return None;
    }
    let stack = window.stacks.fetch_add(1, Relaxed);
    let slot = window.stack_blocks.get(stack as usize / STACK_BLOCK)?;
    let block = ensure_block(arena, window, slot, STACK_BLOCK * 4)?;
    let place: &AtomicU32 = arena.at(u64::from(block) * UNIT + (stack as usize % STACK_BLOCK * 4) as u64)?;
    place.store(number, Release);
    // Whoever comes first names the stack; a number that lost stays without counters.
    match record.stack.compare_exchange(0, stack, AcqRel, Acquire) {
        Ok(_) => Some(stack),
        Err(first) => Some(first),
    }
}

fn ensure_block(arena: Arena, window: &Window, slot: &AtomicU32, bytes: usize) -> Option<u32> {
    let known = slot.load(Acquire);
    if known != 0 {
        return Some(known);
    }
    let fresh = (arena.allocate(window, bytes as u64)? / UNIT) as u32;
    match slot.compare_exchange(0, fresh, AcqRel, Acquire) {
        Ok(_) => Some(fresh),
        Err(first) => Some(first),
    }
}

const _: () = assert!(MAX_STACKS as usize == STACK_BLOCK * STACK_BLOCKS);

#[cfg(test)]
mod tests;
