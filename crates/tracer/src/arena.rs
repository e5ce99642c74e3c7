//! The shared memory that everything is written to: checked offsets, and space by atomic bump pointers.
//!
//! Invariants: an address leaves this module only if it lies inside the mapping; space is handed out only if
//! it is backed by memory already (by the holder, or populated here with an error instead of a fault).

use crate::sys;
use core::mem::{align_of, size_of};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{BUMP_BITS, CHUNK, ChunkHeader, Superblock, UNIT, Window};

const LEFT: u64 = (1 << BUMP_BITS) - 1;
/// Most chunks that a window takes at once without need.
const MAX_PIECE: u64 = 16;
/// One read maps this many bytes around it (the kernel's fault-around), writable since nothing tracks writes
/// to shared memory.
const FAULT_AROUND: u64 = 64 << 10;

/// End of what this process may be handed; lower than the arena if its address space is short.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Lowers that end. False if it is lower already.
pub(crate) fn lower_limit(to: u64) -> bool {
    LIMIT.fetch_min(to, AcqRel) > to
}

/// Lifts it again, to the whole arena. Only by whoever lowered it from there.
pub(crate) fn lift_limit() {
    LIMIT.store(u64::MAX, Relaxed);
}

/// The mapping. Copied freely; valid for the rest of the process's life.
#[derive(Clone, Copy)]
pub(crate) struct Arena {
    base: *mut u8,
    len: u64,
}

impl Arena {
    /// No arena: every access fails.
    pub(crate) const NONE: Arena = Arena { base: core::ptr::null_mut(), len: 0 };

    /// # Safety
    /// `base` must be a mapping of `len` bytes, at least one chunk, that stays.
    pub(crate) unsafe fn new(base: *mut u8, len: u64) -> Arena {
        Arena { base, len }
    }

    /// Start of the mapping.
    pub(crate) fn base(self) -> *mut u8 {
        self.base
    }

    /// Bytes mapped.
    pub(crate) fn len(self) -> u64 {
        self.len
    }

    /// The superblock.
    pub(crate) fn superblock(self) -> Option<&'static Superblock> {
        self.at(0)
    }

    /// The record at `offset`, if it lies wholly inside and is aligned. Records are made of atomics and of
    /// fields written before they were published.
    #[inline(always)]
    pub(crate) fn at<T>(self, offset: u64) -> Option<&'static T> {
        let size = size_of::<T>() as u64;
        if offset > self.len || self.len - offset < size || !offset.is_multiple_of(align_of::<T>() as u64) {
            return None;
        }
        // SAFETY: checked to lie inside the mapping, which is never unmapped and zero or written as `T`; all
        // record types are valid for any bit pattern.
        Some(unsafe { &*self.base.add(offset as usize).cast::<T>() })
    }

    /// `count` consecutive records at `offset`.
    #[inline(always)]
    pub(crate) fn slice<T>(self, offset: u64, count: usize) -> Option<&'static [T]> {
        let size = (size_of::<T>() as u64).checked_mul(count as u64)?;
        if offset > self.len || self.len - offset < size || !offset.is_multiple_of(align_of::<T>() as u64) {
            return None;
        }
        // SAFETY: as in `at`.
        Some(unsafe { core::slice::from_raw_parts(self.base.add(offset as usize).cast::<T>(), count) })
    }

    /// The record that a 32-bit reference names; 0 is none.
    #[inline(always)]
    pub(crate) fn unit<T>(self, units: u32) -> Option<&'static T> {
        if units == 0 { None } else { self.at(u64::from(units) * UNIT) }
    }

    /// Offset of something inside the arena.
    pub(crate) fn offset_of<T>(self, record: &T) -> u64 {
        (core::ptr::from_ref(record) as u64).wrapping_sub(self.base as u64)
    }

    /// Hands out `bytes` of zeroed space for a window, aligned to [`UNIT`]. None if no memory can be had.
    pub(crate) fn allocate(self, window: &Window, bytes: u64) -> Option<u64> {
        let units = bytes.div_ceil(UNIT);
        let owner = self.offset_of(window);
        loop {
            let current = window.bump.load(Relaxed);
            let (start, left) = (current >> BUMP_BITS, current & LEFT);
            if units <= left {
                let rest = (start + units) << BUMP_BITS | (left - units);
                if window.bump.compare_exchange_weak(current, rest, AcqRel, Relaxed).is_ok() {
                    self.touch((start * UNIT).next_multiple_of(FAULT_AROUND), (start + units) * UNIT);
                    return Some(start * UNIT);
                }
                continue;
            }
            // A large process takes larger pieces, so that less is lost at their ends.
            let usual = u64::from(window.chunks.load(Relaxed) / 16).clamp(1, MAX_PIECE);
            let least = (units * UNIT + UNIT).div_ceil(CHUNK);
            let taken = self.take_chunks(least.max(usual), owner).map(|piece| (piece, least.max(usual)));
            let (piece, chunks) =
                taken.or_else(|| self.take_chunks(least, owner).map(|piece| (piece, least)))?;
            window.chunks.fetch_add(chunks as u32, Relaxed);
            let (first, total) = (piece / UNIT + 1, chunks * CHUNK / UNIT - 1);
            self.touch(piece, (first + units) * UNIT);
            if total - units <= left {
                // What is left of the piece in use is worth more.
                return Some(first * UNIT);
            }
            let rest = (first + units) << BUMP_BITS | (total - units);
            if window.bump.compare_exchange(current, rest, AcqRel, Relaxed).is_ok() {
                return Some(first * UNIT);
            }
            // Another thread was faster; this piece serves this request alone.
            return Some(first * UNIT);
        }
    }

    /// Claims `chunks` consecutive chunks for `owner` (0 = to be set by the caller).
    pub(crate) fn take_chunks(self, chunks: u64, owner: u64) -> Option<u64> {
        let superblock = self.superblock()?;
        let recycled = if chunks == 1 { self.pop_free(superblock) } else { None };
        let chunk = match recycled {
            Some(chunk) => chunk,
            None => self.take_fresh(superblock, chunks.checked_mul(CHUNK)?)?,
        };
        let header: &ChunkHeader = self.at(chunk)?;
        header.chunks.store(chunks as u32, Relaxed);
        header.owner.store(owner, Release);
        Some(chunk)
    }

    /// Claims `bytes` that were never handed out, backed by memory.
    fn take_fresh(self, superblock: &Superblock, bytes: u64) -> Option<u64> {
        loop {
            let next = superblock.next.load(Acquire);
            let end = next.checked_add(bytes)?;
            if end > self.len.min(LIMIT.load(Relaxed)) {
                return None;
            }
            let ready = end <= superblock.ready.load(Acquire);
            if !ready && !self.populate(superblock, next, bytes) {
                return None;
            }
            if superblock.next.compare_exchange(next, end, AcqRel, Relaxed).is_ok() {
                return Some(next);
            }
            if !ready {
                // Somebody else took it; what was spent on it is theirs to have spent.
                superblock.self_budget.fetch_add(bytes as i64, AcqRel);
            }
        }
    }

    /// Populates what the holder has not come to yet, within the budget for that.
    fn populate(self, superblock: &Superblock, start: u64, bytes: u64) -> bool {
        if sys::is_strict() {
            return false;
        }
        if superblock.self_budget.fetch_sub(bytes as i64, AcqRel) < bytes as i64 {
            superblock.self_budget.fetch_add(bytes as i64, AcqRel);
            return false;
        }
        // SAFETY: the range lies inside the mapping. Unlike a touch, this reports a full file system or a
        // memory limit as an error.
        unsafe { sys::madvise(self.base.add(start as usize), bytes as usize, sys::MADV_POPULATE_WRITE) }
    }

    fn pop_free(self, superblock: &Superblock) -> Option<u64> {
        loop {
            let head = superblock.free_chunks.load(Acquire);
            let number = head & 0xffff_ffff;
            // Beyond the limit: left for other processes.
            if number == 0 || (number + 1) * CHUNK > self.len.min(LIMIT.load(Relaxed)) {
                return None;
            }
            let header: &ChunkHeader = self.at(number * CHUNK)?;
            let next = u64::from(header.next_free.load(Relaxed));
            // The tag makes a head that was popped and pushed again in between different.
            let replacement = ((head >> 32).wrapping_add(1) << 32) | next;
            if superblock.free_chunks.compare_exchange_weak(head, replacement, AcqRel, Relaxed).is_ok() {
                header.next_free.store(0, Relaxed);
                return Some(number * CHUNK);
            }
        }
    }

    /// Has backed pages mapped into this process a few at a time rather than by a fault each, and without a
    /// system call, which a sandbox might punish.
    fn touch(self, start: u64, end: u64) {
        for offset in (start..end).step_by(FAULT_AROUND as usize) {
            if let Some(byte) = self.at::<core::sync::atomic::AtomicU8>(offset) {
                byte.load(Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
