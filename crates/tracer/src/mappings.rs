//! Anonymous mappings that the program itself makes: a kind of allocation of their own.
//!
//! They are kept in the block table in state `slot::MAPPED`, with their size in pages. Mappings that the
//! allocator makes for its own needs are nested calls and not counted; libc's internal calls do not come here.

use crate::blocks::{self, Found};
use crate::real;
use crate::thread::{self, Entered, Thread};
use core::ffi::c_void;
use leakscope_heapfile::layout::{REGION_SHIFT, SPAN_SHIFT, slot};

/// Unit of mapped sizes in bytes.
pub(crate) const PAGE: usize = 4096;
/// How far below a range a mapping that reaches into it is looked for, in bytes.
const REACH: u64 = 64 << 30;

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
    let Entered::Recording(thread) = thread::enter(sp) else { return call() };
    let start = call();
    if start as usize != FAILED {
        let pages = length.div_ceil(PAGE);
        if flags & MAP_FIXED != 0 && flags & MAP_FIXED_NOREPLACE == 0 {
            forget(thread, start as u64, (start as u64).saturating_add((pages * PAGE) as u64));
        }
        if flags & MAP_ANONYMOUS != 0 {
            let stack = thread.mapping_stack(sp, bp);
            thread.mapped(start as usize, clamp(pages), stack, None);
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
    if length == 0 || !start.is_multiple_of(PAGE as u64) {
        return call();
    }
    let Entered::Recording(thread) = thread::enter(sp) else { return call() };
    forget(thread, start, start.saturating_add((length.div_ceil(PAGE) * PAGE) as u64));
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
            thread.mapped(start as usize, clamp(length.div_ceil(PAGE)), stack, None);
        }
    }
    thread.leave();
    start
}

fn clamp(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

fn find(thread: &mut Thread, start: u64) -> Option<Found> {
    let page = thread.span_page(start, false)?;
    blocks::find(thread.arena, page, start, slot::MAPPED)
}

/// Takes `start..end` out of the recorded mappings, wholly or in part.
fn forget(thread: &mut Thread, start: u64, end: u64) {
    if let Some(found) = find(thread, start)
        && start + bytes(&found) == end
    {
        found.remove();
        thread.count_unmap(slot::stack(found.word0), slot::size(found.word1));
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
    thread.count_unmap(stack, slot::size(found.word1));
    if address < start {
        thread.mapped(address as usize, clamp((start - address) as usize / PAGE), stack, Some(birth));
    }
    if own_end > end {
        thread.mapped(end as usize, clamp((own_end - end) as usize / PAGE), stack, Some(birth));
    }
}

/// A mapping that starts inside the range.
fn first_in(thread: &mut Thread, start: u64, end: u64) -> Option<(u64, Found)> {
    let mut at = start;
    while at < end {
        let Some(page) = thread.span_page(at, false) else {
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
        let Some(page) = thread.span_page(at, false) else {
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
