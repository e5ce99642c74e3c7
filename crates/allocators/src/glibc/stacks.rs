//! Stacks that glibc made for threads: those of live ones, and those of ended ones, which it keeps for the next thread
//! or until somebody joins.
//!
//! The thread control block (`struct pthread`) lies at the upper end of a stack. It is in one of three circular lists:
//! stacks in use, stacks that the program provided, stacks in the cache; their heads lie next to each other in the
//! loader's (before 2.34 libpthread's) data.

use crate::read::{bytes, word_at};
use leakscope_target::{Mapping, Memory, Snapshot};
use std::collections::BTreeSet;
use std::ops::Range;

// `struct pthread`, x86-64, glibc 2.26 to 2.43.
/// `list`, then the next field.
const LIST: u64 = 0x2c0;
/// `tid`, which the kernel clears at the thread's end, and which is -1 once it was joined.
const TID: u64 = 0x2d0;
/// `cancelhandling`.
const CANCELHANDLING: u64 = 0x308;
/// Its bit that says that the thread is on its way out. Both are reset before the next thread gets the stack.
const EXITING: u64 = 0x10;
/// The structure's size at most.
const SIZE: usize = 0xa00;
/// Distance of list heads, and how many to each side are looked at.
const HEAD: u64 = 16;
const HEADS: u64 = 4;
const PAGE: u64 = 4096;
/// More threads than a kernel allows.
const MAX_THREADS: usize = 1 << 22;

/// Addresses of all thread control blocks that can be found.
pub(super) fn control_blocks(snapshot: &Snapshot) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    // aarch64's control block has no pointer to itself, by which it is recognised.
    if !cfg!(target_arch = "x86_64") {
        return found;
    }
    let memory = &*snapshot.memory;
    found.extend(snapshot.mappings.iter().filter_map(|mapping| at_end(memory, mapping)));
    let mut heads = BTreeSet::new();
    let mut followed = BTreeSet::new();
    for thread in &snapshot.threads {
        let block = thread.registers.thread_pointer;
        if is_block(memory, block) && !followed.contains(&block) {
            follow(memory, block + LIST, &mut followed, &mut heads);
        }
    }
    for head in heads.clone() {
        for place in (1..=HEADS).flat_map(|n| [head.wrapping_sub(n * HEAD), head.wrapping_add(n * HEAD)]) {
            // A list's first node points back to its head.
            let first = memory.word(place).filter(|&first| first != place);
            let first = first.filter(|&first| memory.word(first.wrapping_add(8)) == Some(place));
            if let Some(first) = first.filter(|first| is_block(memory, first.wrapping_sub(LIST))) {
                follow(memory, first, &mut followed, &mut heads);
            }
        }
    }
    found.extend(followed);
    found
}

/// Follows a list from one of its nodes until a node comes again; what is no control block is its head.
fn follow(memory: &dyn Memory, node: u64, found: &mut BTreeSet<u64>, heads: &mut BTreeSet<u64>) {
    let start = node;
    let mut node = node;
    for _ in 0..MAX_THREADS {
        let block = node.wrapping_sub(LIST);
        if is_block(memory, block) {
            found.insert(block);
        } else if !heads.insert(node) {
            break;
        }
        match memory.word(node) {
            Some(next) if next != start => node = next,
            _ => break,
        }
    }
}

/// The control block at the end of a mapping, which is where it lies if no other mapping adjoins. (In a static executable
/// the heads of the lists are not next to each other.)
fn at_end(memory: &dyn Memory, mapping: &Mapping) -> Option<u64> {
    if mapping.inode != 0 || !mapping.writable || mapping.shared || mapping.end - mapping.start < PAGE {
        return None;
    }
    let start = mapping.end - PAGE;
    let page = bytes(memory, start, PAGE as usize);
    let is_block = |&offset: &usize| {
        let own = start + offset as u64;
        word_at(&page, offset) == Some(own) && word_at(&page, offset + 16) == Some(own)
    };
    (0..page.len()).step_by(64).find(is_block).map(|offset| start + offset as u64)
}

/// Whether a thread control block is at `block`: its first and its third word are its own address.
fn is_block(memory: &dyn Memory, block: u64) -> bool {
    block != 0
        && block.is_multiple_of(16)
        && memory.word(block) == Some(block)
        && memory.word(block.wrapping_add(16)) == Some(block)
}

/// Stacks, with static TLS, of threads that have ended. What is left there is of no use to anybody. (The control block
/// above may hold the thread's result.)
pub(super) fn dead(snapshot: &Snapshot) -> Vec<Range<u64>> {
    let live: Vec<u64> = snapshot.threads.iter().map(|thread| thread.registers.thread_pointer).collect();
    if live.contains(&0) {
        return Vec::new();
    }
    let field = |block: u64, offset| snapshot.memory.word(block + offset).map(|word| word & 0xffff_ffff);
    let has_ended = |&block: &u64| {
        !live.contains(&block)
            && field(block, TID).is_some_and(|tid| (tid as u32).cast_signed() <= 0)
            && field(block, CANCELHANDLING).is_some_and(|state| state & EXITING != 0)
    };
    let blocks = control_blocks(snapshot).into_iter().filter(has_ended);
    blocks.filter_map(|block| Some(stack(&*snapshot.memory, block)?.start..block)).collect()
}

/// Stacks that glibc made, live and kept ones, with what lies on them.
pub(super) fn all(snapshot: &Snapshot) -> Vec<Range<u64>> {
    let blocks = control_blocks(snapshot).into_iter();
    blocks.filter_map(|block| stack(&*snapshot.memory, block)).collect()
}

/// The stack, its guard pages too, that a control block is on: `stackblock` and `stackblock_size` are found by what they
/// say, since their place differs between versions.
fn stack(memory: &dyn Memory, block: u64) -> Option<Range<u64>> {
    let fields = bytes(memory, block, SIZE);
    let is_end = |end: u64| end.is_multiple_of(PAGE) && end > block && end - block <= 2 * PAGE;
    (0x600..SIZE.saturating_sub(8)).step_by(8).find_map(|at| {
        let (start, size) = (word_at(&fields, at)?, word_at(&fields, at + 8)?);
        let end = start.checked_add(size)?;
        (start.is_multiple_of(PAGE) && start < block && is_end(end)).then_some(start..end)
    })
}
