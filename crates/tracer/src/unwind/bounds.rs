//! Which addresses a walk may read.

use crate::{arch, real, sys};

const PAGE: usize = 4096;
/// How far below the lowest stack pointer seen so far a thread's stack may be followed in one go.
const MAX_EXTENSION: usize = 8 << 20;
/// How far below it a stack pointer is taken to be on the same stack without a probe.
const NEAR: usize = 64 << 10;
/// How much of a foreign stack is read.
const FOREIGN_REACH: usize = 1 << 20;

/// The part of the thread's own stack that is known to be mapped.
///
/// Its end is known: glibc puts the thread control block at the top of the stack of every thread that it
/// creates, and the main thread's ends at `__libc_stack_end`. Its start follows the stack pointer down; each
/// page on the way is probed once, so a gap (a guard page, another stack) is never crossed.
#[derive(Clone, Copy)]
pub(crate) struct StackBounds {
    low: usize,
    high: usize,
}

impl StackBounds {
    pub(crate) fn of_current_thread() -> StackBounds {
        // The main thread's control block is mapped elsewhere, below its stack. (Its tid would not tell: in a child
        // forked by another thread, that thread's stack goes on.)
        let marker = 0u8;
        let main_thread = core::ptr::from_ref(&marker) as usize > arch::thread_pointer();
        let high = if main_thread {
            real::main_stack_end().map_or(0, |end| end.saturating_add(8))
        } else {
            arch::thread_pointer()
        } & !7;
        StackBounds { low: high, high }
    }

    /// Whether `sp` lies in the known part.
    #[inline(always)]
    pub(crate) fn contains(&self, sp: usize) -> bool {
        sp >= self.low && sp < self.high
    }

    /// Grows the known part down to `sp`. False if `sp` is on another stack.
    pub(crate) fn extend_to(&mut self, sp: usize) -> bool {
        if self.contains(sp) {
            return true;
        }
        if sp >= self.high || self.low - sp > MAX_EXTENSION {
            return false;
        }
        let target = sp & !(PAGE - 1);
        if sys::is_strict() {
            // It cannot be asked; a little further down it is still the same stack.
            let near = self.low - sp <= NEAR;
            self.low = if near { target } else { self.low };
            return near;
        }
        let mut page = self.low & !(PAGE - 1);
        // The page of the old lower end was probed, or is the topmost one.
        if self.low == self.high && !sys::is_readable(page) {
            return false;
        }
        while page > target {
            page -= PAGE;
            if !sys::is_readable(page) {
                return false;
            }
        }
        self.low = target;
        true
    }
}

/// Reads words of one stack.
pub(crate) struct Reader {
    low: usize,
    high: usize,
    /// Whether each page must be probed; then the last page that was.
    probe: bool,
    probed: usize,
}

impl Reader {
    /// For a walk that starts at `sp`.
    pub(crate) fn new(bounds: StackBounds, own: bool, sp: usize) -> Reader {
        let high = if own { bounds.high } else { sp.saturating_add(FOREIGN_REACH) };
        Reader { low: sp, high, probe: !own, probed: 0 }
    }

    /// Continues on the stack that a signal interrupted.
    pub(crate) fn enter(&mut self, bounds: StackBounds, sp: usize) {
        *self = Reader::new(bounds, bounds.contains(sp), sp);
    }

    /// The word at `address`, if it may be read.
    #[inline(always)]
    pub(crate) fn read(&mut self, address: usize) -> Option<usize> {
        if address < self.low || address > self.high - 8 || !address.is_multiple_of(8) {
            return None;
        }
        if self.probe && !self.is_readable(address) {
            return None;
        }
        // SAFETY: inside the thread's own live stack, or just probed on a stack that this very thread runs on.
        Some(unsafe { *(address as *const usize) })
    }

    #[cold]
    fn is_readable(&mut self, address: usize) -> bool {
        let page = address & !(PAGE - 1);
        if page != self.probed && !sys::is_strict() && sys::is_readable(address) {
            self.probed = page;
        }
        page == self.probed
    }
}
