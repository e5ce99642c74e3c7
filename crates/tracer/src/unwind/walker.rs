//! A thread's walks, each made from the one before.
//!
//! A thread remembers its previous walk: for every frame its registers, where on the stack they were read, and
//! the rule that led on to the caller. A walk is a pure function of the registers it starts with and the words it
//! reads. So a remembered frame with the present registers has the remembered caller's place, and whether the
//! caller is still the same is one comparison, of a word at a known address: no rule is evaluated and no load
//! waits for another. Only frames that differ are stepped through, and those whose caller's place is itself a
//! word on the stack (realigned ones).
//!
//! A stack is identified by the sum over its frames of a 64-bit mix of (code address, position from the outermost
//! frame). When a few frames differ, only their terms change. A per-thread table leads from that sum to the stack
//! number; only stacks that it does not hold are looked up in the heap file's trie.
//!
//! Only addresses between the hook's stack pointer and the end of the thread's stack are read. A stack that is
//! not the thread's own (fibers, alternate signal stacks) is probed page by page before it is read, every time,
//! and not remembered, since it could be unmapped between two walks.

use super::bounds::{Reader, StackBounds};
use super::rule::{Bp, Cfa, Packed};
use super::shapes::{Places, Shapes};
use super::{Caller, GOLDEN, Registers, Step, cache, generation, scramble, step};
use crate::arena::Arena;
use crate::stacks;
use leakscope_heapfile::layout::{MODULE_PSEUDO, PC_BITS, PSEUDO_TRUNCATED, Window};

/// Deepest stack that is recorded whole.
const MAX_FRAMES: usize = 256;
/// What is kept of a deeper one: its innermost frames.
const KEPT_FRAMES: usize = 192;
/// Least that is kept of one that has shrunk since.
const LEAST_FRAMES: usize = 128;
/// Sets and ways of the table from sums to stack numbers.
const KNOWN_SETS: usize = 1024;
const KNOWN_WAYS: usize = 4;
const TRUNCATED_KEY: u64 = (MODULE_PSEUDO as u64) << PC_BITS | PSEUDO_TRUNCATED;

/// A frame of a walk.
#[derive(Clone, Copy)]
struct Frame {
    at: Caller,
    /// How to find its caller.
    rule: Packed,
    needs: Needs,
    module: u16,
    /// Its node in the trie, as far as `Walker::interned` says.
    node: u32,
    /// Its term of the sum.
    term: u64,
}

/// What, besides the code address and the stack pointer, decides where a frame's caller is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    FramePointer,
    /// A word on the stack (of a realigned one: its caller's place), which must be read anew.
    Memory,
}

impl Frame {
    /// Whether the remembered caller's place is still right where the frame pointer is `bp`.
    #[inline(always)]
    fn holds(&self, bp: usize) -> bool {
        self.needs == Needs::Nothing || (self.needs == Needs::FramePointer && self.at.registers.bp == bp)
    }

    fn key(&self) -> u64 {
        let pc = self.at.registers.pc as u64 & ((1 << PC_BITS) - 1);
        pc | u64::from(self.module) << PC_BITS
    }
}

/// What a walk gives.
#[derive(Clone, Copy)]
pub(crate) struct Walked {
    /// Stack number; 0 if there is no space for one.
    pub(crate) stack: u32,
    /// Whether the stack was cut at the depth limit.
    pub(crate) truncated: bool,
}

/// A thread's memory of its previous walk. Lives in zeroed memory: all zero is a valid value.
pub(crate) struct Walker {
    bounds: StackBounds,
    /// Remembered frames, outermost first.
    depth: usize,
    /// How many of them, from the outermost, have the right node: what lies further out than any change since they
    /// were looked up.
    interned: usize,
    /// Sum of their terms.
    sum: u64,
    /// Whether the outermost remembered frame has callers beyond the depth limit.
    truncated: bool,
    /// Cache generation that the frames were made under.
    generation: u32,
    frames: [Frame; MAX_FRAMES],
    /// New frames of the present walk, innermost first.
    fresh: [Frame; MAX_FRAMES],
    known: [[(u64, u32); KNOWN_WAYS]; KNOWN_SETS],
    shapes: Shapes,
}

/// What a walk needs to know of the process.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) arena: Arena,
    pub(crate) window: &'a Window,
    pub(crate) tick: u32,
}

/// How following the remembered frames outwards ended.
enum Followed {
    /// At the outermost one.
    ToTheEnd,
    /// The caller of frame `index` is elsewhere than remembered.
    Left { index: usize, caller: Caller },
    /// Frame `index` no longer has a caller.
    Ended { index: usize },
    /// A signal frame, or something else that is not remembered.
    Lost,
}

impl Walker {
    /// For a new thread.
    pub(crate) fn reset(&mut self) {
        self.bounds = StackBounds::of_current_thread();
        self.forget();
        self.known = [[(0, 0); KNOWN_WAYS]; KNOWN_SETS];
        self.shapes.clear();
    }

    /// Whether `sp` is on the known part of the thread's own stack.
    pub(crate) fn owns(&self, sp: usize) -> bool {
        self.bounds.contains(sp)
    }

    /// Walks from the caller of the hook whose entry stack pointer was `sp`.
    #[inline(always)]
    pub(crate) fn walk(&mut self, context: Context<'_>, sp: usize, bp: usize) -> Walked {
        // SAFETY: at entry the stack pointer points to the return address.
        let pc = unsafe { *(sp as *const usize) };
        let start = Registers { pc, sp: sp + 8, bp };
        if !self.bounds.contains(sp) && !self.bounds.extend_to(sp) {
            return self.walk_foreign(context, start);
        }
        if self.generation != generation() {
            self.generation = generation();
            self.forget();
            self.shapes.clear();
        }
        // SAFETY: on this thread's own stack, as checked above.
        if let Some(stack) = unsafe { self.shapes.find(start) } {
            return Walked { stack, truncated: false };
        }
        let walked = self.walk_changed(context, start);
        self.learn_shape(start, walked);
        walked
    }

    /// Keeps the shape of the walk just made, and where it led, for the next one from the same place.
    #[inline(never)]
    fn learn_shape(&mut self, start: Registers, walked: Walked) {
        let frames = self.frames.get(..self.depth).unwrap_or(&[]);
        let Some((innermost, outer)) = frames.split_last() else { return };
        let remembered = innermost.at.registers.sp == start.sp && innermost.at.registers.pc == start.pc;
        if !remembered || walked.truncated {
            return;
        }
        // Where the frame pointer of the frame looked at comes from: 0 = the register at the start.
        let mut bp_at = 0;
        let mut bp_noted = false;
        let mut uses_bp = innermost.needs == Needs::FramePointer;
        let mut places = Places::new();
        let mut inner = innermost;
        for frame in outer.iter().rev() {
            if inner.needs == Needs::Memory {
                return;
            }
            places.push(start, frame.at.registers.sp - 8);
            if frame.at.bp_at != 0 {
                bp_at = frame.at.bp_at;
                bp_noted = false;
            }
            // A saved frame pointer counts only if the place of some caller depends on it: in code without frame
            // pointers the register holds any value.
            let needed = frame.needs == Needs::FramePointer || inner.rule.rule().cfa == Cfa::FramePointer;
            if needed && !bp_noted {
                bp_noted = true;
                match bp_at {
                    0 => uses_bp = true,
                    at => places.push(start, at),
                }
            }
            inner = frame;
        }
        if inner.needs == Needs::Memory {
            return;
        }
        // SAFETY: the walk read these words of the thread's own stack just now.
        unsafe { self.shapes.learn(start, uses_bp, &places, walked.stack) };
    }

    #[inline(never)]
    fn walk_changed(&mut self, context: Context<'_>, start: Registers) -> Walked {
        let mut reader = Reader::new(self.bounds, true, start.sp - 8);
        let mut current = Caller { registers: start, bp_at: 0 };
        let mut fresh = 0;
        let mut truncated = false;
        loop {
            // Frames that have returned.
            while let Some(frame) = self.depth.checked_sub(1).and_then(|last| self.frames.get(last))
                && frame.at.registers.sp < current.registers.sp
            {
                self.sum = self.sum.wrapping_sub(frame.term);
                self.depth -= 1;
            }
            let joins = self
                .depth
                .checked_sub(1)
                .and_then(|last| self.frames.get(last))
                .is_some_and(|frame| frame.at.registers.sp == current.registers.sp);
            if joins {
                match self.follow(context, &mut reader, current) {
                    Followed::ToTheEnd => {
                        truncated = self.truncated;
                        break;
                    }
                    Followed::Left { index, caller } => {
                        if !self.set_aside(index, &mut fresh) {
                            return self.walk_anew(context, start);
                        }
                        current = caller;
                    }
                    Followed::Ended { index } => {
                        if !self.set_aside(index, &mut fresh) {
                            return self.walk_anew(context, start);
                        }
                        self.forget();
                        break;
                    }
                    Followed::Lost => return self.walk_anew(context, start),
                }
                continue;
            }
            let (rule, module) = cache::rule(current.registers.pc, false, context);
            if !self.add_fresh(&mut fresh, current, rule, module) {
                self.forget();
                truncated = true;
                break;
            }
            match step(rule, &mut reader, current.registers) {
                Step::Caller(caller) => current = caller,
                Step::Interrupted(_) => {
                    self.forget();
                    return self.walk_foreign(context, start);
                }
                Step::End => {
                    self.forget();
                    break;
                }
            }
        }
        let total = self.depth + fresh;
        if self.depth > 0 && (total > MAX_FRAMES || (truncated && total < LEAST_FRAMES)) {
            // Too deep to remember, or too little left of a stack that was cut.
            return self.walk_anew(context, start);
        }
        self.remember(context, fresh, truncated)
    }

    /// Walks without what is remembered.
    #[cold]
    fn walk_anew(&mut self, context: Context<'_>, start: Registers) -> Walked {
        self.forget();
        self.walk_changed(context, start)
    }

    fn forget(&mut self) {
        self.depth = 0;
        self.interned = 0;
        self.sum = 0;
    }

    /// Compares the remembered frames, from the innermost (which is where `current` is) outwards, with what the
    /// stack says now, and replaces those that differ but are in the same place.
    fn follow(&mut self, context: Context<'_>, reader: &mut Reader, current: Caller) -> Followed {
        let mut index = self.depth - 1;
        let Caller { registers: Registers { mut pc, mut bp, .. }, bp_at } = current;
        if let Some(frame) = self.frames.get_mut(index) {
            // It was the innermost one when it was remembered, perhaps, and so was not read from the stack.
            frame.at.bp_at = bp_at;
        }
        loop {
            let Some(frame) = self.frames.get_mut(index) else { return Followed::Lost };
            let same_code = frame.at.registers.pc == pc;
            let holds = same_code && frame.holds(bp);
            if frame.at.registers.bp != bp {
                frame.at.registers.bp = bp;
            }
            if holds {
                // The same registers lead to the same place.
                let Some(next) = index.checked_sub(1) else { return Followed::ToTheEnd };
                let Some(outer) = self.frames.get(next) else { return Followed::Lost };
                // SAFETY: the addresses lie on this thread's own stack above a live frame, so they are mapped.
                unsafe {
                    pc = *((outer.at.registers.sp - 8) as *const usize);
                    if outer.at.bp_at != 0 {
                        bp = *(outer.at.bp_at as *const usize);
                    }
                }
                index = next;
                continue;
            }
            if !same_code {
                let (rule, module) = cache::rule(pc, false, context);
                let before = frame.term;
                frame.at.registers.pc = pc;
                *frame = new_frame(frame.at, rule, module);
                frame.term = term(frame.key(), index);
                self.interned = self.interned.min(index);
                self.sum = self.sum.wrapping_sub(before).wrapping_add(frame.term);
            }
            let caller = match step(frame.rule, reader, frame.at.registers) {
                Step::Caller(caller) => caller,
                Step::Interrupted(_) => return Followed::Lost,
                Step::End if index == 0 => return Followed::ToTheEnd,
                Step::End => return Followed::Ended { index },
            };
            match index.checked_sub(1).and_then(|next| Some((next, self.frames.get_mut(next)?))) {
                Some((next, outer)) if outer.at.registers.sp == caller.registers.sp => {
                    outer.at.bp_at = caller.bp_at;
                    Registers { pc, bp, .. } = caller.registers;
                    index = next;
                }
                None if self.truncated => return Followed::Lost,
                _ => return Followed::Left { index, caller },
            }
        }
    }

    /// Moves the remembered frames from `index` inwards to the fresh ones. False if there are too many.
    fn set_aside(&mut self, index: usize, fresh: &mut usize) -> bool {
        while self.depth > index {
            let Some(frame) = self.frames.get(self.depth - 1).copied() else { return false };
            let Some(place) = self.fresh.get_mut(*fresh) else { return false };
            *place = frame;
            *fresh += 1;
            self.sum = self.sum.wrapping_sub(frame.term);
            self.depth -= 1;
        }
        true
    }

    /// Adds a fresh frame. False if the depth limit is reached.
    fn add_fresh(&mut self, fresh: &mut usize, at: Caller, rule: Packed, module: u16) -> bool {
        let Some(place) = self.fresh.get_mut(*fresh) else { return false };
        *place = new_frame(at, rule, module);
        *fresh += 1;
        true
    }

    /// Puts the fresh frames onto the remembered ones and finds the stack's number.
    fn remember(&mut self, context: Context<'_>, fresh: usize, truncated: bool) -> Walked {
        self.interned = self.interned.min(self.depth);
        // Of a stack that was cut, fewer frames are kept than fit, so that it can grow for a while.
        let fresh = if truncated && self.depth == 0 { fresh.min(KEPT_FRAMES) } else { fresh };
        for number in (0..fresh).rev() {
            let (Some(frame), Some(place)) =
                (self.fresh.get(number).copied(), self.frames.get_mut(self.depth))
            else {
                break;
            };
            *place = frame;
            place.term = term(frame.key(), self.depth);
            self.sum = self.sum.wrapping_add(place.term);
            self.depth += 1;
        }
        self.truncated = truncated;
        let sum = if truncated { self.sum ^ TRUNCATED_KEY } else { self.sum };
        let stack = match self.known_stack(sum) {
            Some(stack) => stack,
            None => {
                let stack = self.intern(context);
                self.learn(sum, stack);
                stack
            }
        };
        Walked { stack, truncated }
    }

    /// The number of the stack of the remembered frames, looked up from the innermost one that has a node.
    #[cold]
    #[inline(never)]
    fn intern(&mut self, context: Context<'_>) -> u32 {
        let Context { arena, window, .. } = context;
        let outer =
            self.interned.checked_sub(1).and_then(|last| self.frames.get(last)).map(|frame| frame.node);
        let mut node = match outer {
            None if self.truncated => stacks::intern(arena, window, stacks::ROOT, TRUNCATED_KEY),
            None => Some(stacks::ROOT),
            known => known,
        };
        for frame in self.frames.get_mut(self.interned..self.depth).unwrap_or(&mut []) {
            node = node.and_then(|parent| stacks::intern(arena, window, parent, frame.key()));
            let Some(found) = node else { return 0 };
            frame.node = found;
            self.interned += 1;
        }
        node.map_or(0, |node| stacks::stack_of(arena, window, node))
    }

    #[inline(always)]
    fn known_stack(&self, sum: u64) -> Option<u32> {
        let set = self.known.get(sum as usize % KNOWN_SETS)?;
        set.iter().find(|(known, stack)| *known == sum && *stack != 0).map(|&(_, stack)| stack)
    }

    fn learn(&mut self, sum: u64, stack: u32) {
        if let Some(set) = self.known.get_mut(sum as usize % KNOWN_SETS) {
            // The newest in front; the oldest goes.
            set.rotate_right(1);
            if let Some(entry) = set.first_mut() {
                *entry = (sum, stack);
            }
        }
    }

    /// A walk that is not remembered: on a stack that is not the thread's own, or through a signal frame.
    #[cold]
    #[inline(never)]
    fn walk_foreign(&mut self, context: Context<'_>, start: Registers) -> Walked {
        let own = self.bounds.contains(start.sp - 8);
        let mut reader = Reader::new(self.bounds, own, start.sp - 8);
        let mut current = Caller { registers: start, bp_at: 0 };
        let mut fresh = 0;
        let mut interrupted = false;
        let truncated = loop {
            let (rule, module) = cache::rule(current.registers.pc, interrupted, context);
            if !self.add_fresh(&mut fresh, current, rule, module) {
                break true;
            }
            interrupted = false;
            match step(rule, &mut reader, current.registers) {
                Step::Caller(caller) => current = caller,
                Step::Interrupted(registers) => {
                    interrupted = true;
                    reader.enter(self.bounds, registers.sp);
                    current = Caller { registers, bp_at: 0 };
                }
                Step::End => break false,
            }
        };
        let frames = self.fresh.get(..fresh).unwrap_or(&[]);
        let mut sum = if truncated { TRUNCATED_KEY } else { 0 };
        for (position, frame) in frames.iter().rev().enumerate() {
            sum = u64::wrapping_add(sum, term(frame.key(), position));
        }
        let stack = match self.known_stack(sum) {
            Some(stack) => stack,
            None => {
                let stack = intern_foreign(context, frames.iter().rev(), truncated);
                self.learn(sum, stack);
                stack
            }
        };
        Walked { stack, truncated }
    }
}

fn new_frame(at: Caller, rule: Packed, module: u16) -> Frame {
    let unpacked = rule.rule();
    let needs = match unpacked.cfa {
        Cfa::AtBp | Cfa::AtSp => Needs::Memory,
        Cfa::Bp | Cfa::FramePointer => Needs::FramePointer,
        _ if unpacked.bp == Bp::AtOwn => Needs::FramePointer,
        _ => Needs::Nothing,
    };
    Frame { at, rule, needs, module, node: 0, term: 0 }
}

/// A frame's contribution to its stack's sum.
#[inline(always)]
fn term(key: u64, position: usize) -> u64 {
    scramble(key.wrapping_add((position as u64 + 1).wrapping_mul(GOLDEN)))
}

/// The number of the stack of these frames, outermost first.
#[cold]
#[inline(never)]
fn intern_foreign<'a>(context: Context<'_>, frames: impl Iterator<Item = &'a Frame>, truncated: bool) -> u32 {
    let Context { arena, window, .. } = context;
    let mut node = Some(stacks::ROOT);
    if truncated {
        node = stacks::intern(arena, window, stacks::ROOT, TRUNCATED_KEY);
    }
    for frame in frames {
        node = node.and_then(|parent| stacks::intern(arena, window, parent, frame.key()));
    }
    node.map_or(0, |node| stacks::stack_of(arena, window, node))
}

#[cfg(test)]
mod tests;
