//! Anonymous mappings that the program itself makes: a kind of allocation of their own.
//!
//! They are kept in the block table in state `slot::MAPPED`, with their size in pages, in regions of their own
//! (`MAPPED_SPACE` is added to their addresses), so that looking for one never meets heap blocks. Mappings that the
//! allocator makes for its own needs are not counted: it is the caller, whether a hook is at work or (when allocations
//! are sampled) was passed by. libc's internal calls do not come here.

use crate::blocks::{self, Found};
use crate::real;
use crate::thread::{self, Entered, Thread};
use core::ffi::c_void;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::layout::{MAPPED_SPACE, REGION_SHIFT, SPAN_SHIFT, Window, slot};

/// Unit of mapped sizes in bytes.
pub(crate) const PAGE: usize = 4096;
/// How far below a range a mapping that reaches into it is looked for, in bytes.
const REACH: u64 = 64 << 30;

/// Mappings recorded in this process; none to look for if it is 0.
static RECORDED: AtomicUsize = AtomicUsize::new(0);
/// Nothing has been recorded yet, in the arena in use.
pub(crate) fn forget_all() {
    RECORDED.store(0, Relaxed);
}

/// End of the addresses that a mapping can have.
const ADDRESS_END: u64 = 1 << 47;

const MAP_FIXED: i32 = 0x10;
const MAP_ANONYMOUS: i32 = 0x20;
const MAP_FIXED_NOREPLACE: i32 = 0x10_0000;
const MREMAP_FIXED: i32 = 2;
const FAILED: usize = usize::MAX;

type Address = *mut c_void;

#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn mmap(
    address: Address,
    length: usize,
    protection: i32,
    flags: i32,
    fd: i32,
    offset: i64,
    sp: usize,
    bp: usize,
) -> Address {
    type Real = unsafe extern "C" fn(Address, usize, i32, i32, i32, i64) -> Address;
    real::resolve();
    let function = real::mmap();
    if function == 0 {
        return FAILED as Address;
    }
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    let call = || unsafe {
        core::mem::transmute::<usize, Real>(function)(address, length, protection, flags, fd, offset)
    };
    if thread::is_called_by_allocator(sp) {
        return call();
    }
    let thread = match thread::enter(sp) {
        Entered::Recording(thread) => thread,
        Entered::Nested(window) => {
            if flags & MAP_ANONYMOUS != 0 {
                thread::miss_nested(window, sp);
            }
            return call();
        }
        Entered::Off => return call(),
    };
    let start = call();
    if start as usize != FAILED {
        let pages = length.div_ceil(PAGE);
        if flags & MAP_FIXED != 0 && flags & MAP_FIXED_NOREPLACE == 0 {
            forget(thread, start as u64, (start as u64).saturating_add((pages * PAGE) as u64));
        }
        if flags & MAP_ANONYMOUS != 0 {
            let stack = thread.mapping_stack(sp, bp);
            record(thread, start as u64, pages as u64, stack);
        }
    }
    thread.leave();
    start
}

pub(crate) unsafe extern "C" fn munmap(address: Address, length: usize, sp: usize, _bp: usize) -> i32 {
    type Real = unsafe extern "C" fn(Address, usize) -> i32;
    real::resolve();
    let function = real::munmap();
    if function == 0 {
        return -1;
    }
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    let call = || unsafe { core::mem::transmute::<usize, Real>(function)(address, length) };
    let start = address as u64;
    let end = start.checked_add(length as u64).and_then(|end| end.checked_next_multiple_of(PAGE as u64));
    let possible = length != 0 && start.is_multiple_of(PAGE as u64);
    let Some(end) = end.filter(|&end| possible && end <= ADDRESS_END) else { return call() };
    if thread::is_called_by_allocator(sp) {
        return call();
    }
    let thread = match thread::enter(sp) {
        Entered::Recording(thread) => thread,
        Entered::Nested(window) => {
            forget_nested(window, start, end);
            return call();
        }
        Entered::Off => return call(),
    };
    forget(thread, start, end);
    let status = call();
    thread.leave();
    status
}

#[allow(clippy::too_many_arguments)]
pub(crate) unsafe extern "C" fn mremap(
    old: Address,
    old_length: usize,
    length: usize,
    flags: i32,
    target: Address,
    _unused: usize,
    sp: usize,
    bp: usize,
) -> Address {
    type Real = unsafe extern "C" fn(Address, usize, usize, i32, ...) -> Address;
    real::resolve();
    let function = real::mremap();
    if function == 0 {
        return FAILED as Address;
    }
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    let call =
        || unsafe { core::mem::transmute::<usize, Real>(function)(old, old_length, length, flags, target) };
    if thread::is_called_by_allocator(sp) {
        return call();
    }
    let Entered::Recording(thread) = thread::enter(sp) else { return call() };
    let tracked = find(thread, old as u64).is_some();
    let start = call();
    if start as usize != FAILED {
        let end = |start: Address, length: usize| {
            (start as u64).saturating_add((length.div_ceil(PAGE) * PAGE) as u64)
        };
        if old_length != 0 {
            forget(thread, old as u64, end(old, old_length));
        }
        if flags & MREMAP_FIXED != 0 {
            forget(thread, start as u64, end(start, length));
        }
        if tracked && old_length != 0 {
            let stack = thread.mapping_stack(sp, bp);
            record(thread, start as u64, length.div_ceil(PAGE) as u64, stack);
        }
    }
    thread.leave();
    start
}

/// Records a new mapping.
fn record(thread: &mut Thread, start: u64, pages: u64, stack: u32) {
    if thread.put_mapping(start | MAPPED_SPACE, clamp(pages), stack, None) {
        RECORDED.fetch_add(1, Relaxed);
        thread.count_mapping(stack, pages * PAGE as u64);
    }
}

fn clamp(pages: u64) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

fn find(thread: &mut Thread, start: u64) -> Option<Found> {
    let page = thread.span_page(start | MAPPED_SPACE, false)?;
    blocks::find(thread.arena, page, start, slot::MAPPED)
}

/// A nested `munmap` of a whole mapping: forgotten, so that its address can be used again, but not counted.
fn forget_nested(window: &Window, start: u64, end: u64) {
    let arena = crate::process::arena();
    let key = start | MAPPED_SPACE;
    let page = blocks::span_page(arena, window, blocks::span_of(key), false);
    if let Some(found) = page.and_then(|page| blocks::find(arena, page, key, slot::MAPPED))
        && start + bytes(&found) <= end
    {
        found.remove();
        RECORDED.fetch_sub(1, Relaxed);
        window.missed_nested.fetch_add(1, Relaxed);
    }
}

/// Takes `start..end` out of the recorded mappings, wholly or in part.
fn forget(thread: &mut Thread, start: u64, end: u64) {
    if RECORDED.load(Relaxed) == 0 {
        return;
    }
    if let Some(found) = find(thread, start)
        && start + bytes(&found) == end
    {
        cut(thread, (start, found), start, end);
        return;
    }
    if let Some(before) = predecessor(thread, start) {
        cut(thread, before, start, end);
    }
    while let Some(first) = first_in(thread, start, end) {
        cut(thread, first, start, end);
    }
}

fn bytes(found: &Found) -> u64 {
    u64::from(slot::size(found.word1)) * PAGE as u64
}

/// Removes one mapping and puts back what of it lies outside `start..end`.
fn cut(thread: &mut Thread, (address, found): (u64, Found), start: u64, end: u64) {
    let own_end = address + bytes(&found);
    if own_end <= start {
        return;
    }
    let (stack, birth) = (slot::stack(found.word0), slot::birth(found.word1));
    found.remove();
    RECORDED.fetch_sub(1, Relaxed);
    let mut left = 0;
    for (from, to) in [(address, start), (end, own_end)] {
        if from < to
            && thread.put_mapping(from | MAPPED_SPACE, clamp((to - from) / PAGE as u64), stack, Some(birth))
        {
            RECORDED.fetch_add(1, Relaxed);
            left += 1;
        }
    }
    // A mapping that was cut in two counts as one block until both parts are gone.
    let gone = own_end.min(end) - address.max(start);
    thread.count_unmapping(stack, u64::from(left == 0), gone);
}

/// A mapping that starts inside the range.
fn first_in(thread: &mut Thread, start: u64, end: u64) -> Option<(u64, Found)> {
    let mut at = start;
    while at < end {
        let Some(page) = thread.span_page(at | MAPPED_SPACE, false) else {
            at = ((at >> SPAN_SHIFT) + 1) << SPAN_SHIFT;
            continue;
        };
        let mut hit = None;
        blocks::scan_region(thread.arena, page, at, slot::MAPPED, |address, found| {
            let inside = (start..end).contains(&address);
            if inside {
                hit = Some((address, found));
            }
            inside
        });
        if hit.is_some() {
            return hit;
        }
        at = ((at >> REGION_SHIFT) + 1) << REGION_SHIFT;
    }
    None
}

/// The nearest mapping that starts below `limit`; since mappings do not overlap, only that one can reach it.
fn predecessor(thread: &mut Thread, limit: u64) -> Option<(u64, Found)> {
    let lowest = limit.saturating_sub(REACH);
    let mut at = limit;
    while at > lowest {
        let Some(page) = thread.span_page(at | MAPPED_SPACE, false) else {
            at = (at >> SPAN_SHIFT << SPAN_SHIFT).checked_sub(1)?;
            continue;
        };
        let mut nearest: Option<(u64, Found)> = None;
        blocks::scan_region(thread.arena, page, at, slot::MAPPED, |address, found| {
            if address < limit && nearest.as_ref().is_none_or(|(best, _)| *best < address) {
                nearest = Some((address, found));
            }
            false
        });
        if nearest.is_some() {
            return nearest;
        }
        at = (at >> REGION_SHIFT << REGION_SHIFT).checked_sub(1)?;
    }
    None
}
