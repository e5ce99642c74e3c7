//! Stack identification: from the registers at a hook's entry to a stack number.
//!
//! Each thread remembers its previous walk: for every frame the registers it started from, the addresses that
//! the walk read and what it found there. A walk is a pure function of the starting registers and the words
//! read, so if the present frame has the same registers as a remembered one and all words further out are
//! unchanged, the rest of the stack is the same, without evaluating anything: one comparison per word, none of
//! them waiting for another. Only frames that differ are stepped through, by rules cached per program counter.
//!
//! Only addresses between the hook's stack pointer and the end of the thread's stack are read. A stack that is
//! not the thread's own (fibers, alternate signal stacks) is probed page by page before it is read, every time,
//! since it could be unmapped between two walks.

mod bounds;
mod cache;
pub(crate) mod cfi;
pub(crate) mod rule;

pub(crate) use bounds::StackBounds;
pub(crate) use cache::{clear as clear_cache, generation};

use crate::arch;
use crate::arena::Arena;
use crate::stacks;
use bounds::Reader;
use leakscope_heapfile::layout::{MODULE_PSEUDO, PC_BITS, PSEUDO_TRUNCATED, Window};
use rule::{Bp, Cfa, Rule};

/// Deepest stack that is recorded whole.
pub(crate) const MAX_FRAMES: usize = 256;
/// What is kept of a deeper one: its innermost frames.
const KEPT_FRAMES: usize = 192;
/// Longest remembered walk: grows by the frames entered since, until it is walked anew.
const MEMORY: usize = 320;

/// Registers of a frame.
#[derive(Clone, Copy, Default)]
pub(crate) struct Registers {
    /// Program counter: a return address, or where a signal came in.
    pub(crate) pc: usize,
    /// Stack pointer after the return.
    pub(crate) sp: usize,
    /// Frame pointer.
    pub(crate) bp: usize,
}

/// A remembered frame.
#[derive(Clone, Copy)]
struct Frame {
    registers: Registers,
    /// Where `pc` was read.
    pc_at: usize,
    /// Where `bp` was read; 0 if it came in a register.
    bp_at: usize,
    /// Trie node.
    node: u32,
    /// Module number, as in the node's key.
    module: u16,
}

impl Frame {
    const EMPTY: Frame =
        Frame { registers: Registers { pc: 0, sp: 0, bp: 0 }, pc_at: 0, bp_at: 0, node: 0, module: 0 };
    fn key(&self) -> u64 {
        let pc = self.registers.pc as u64 & ((1 << PC_BITS) - 1);
        pc | u64::from(self.module) << PC_BITS
    }
}

/// A thread's memory of its previous walk.
pub(crate) struct Walker {
    bounds: StackBounds,
    /// Frames in `frames`, outermost first.
    depth: usize,
    /// Whether `frames[0]` is only the limit, not the outermost frame.
    truncated: bool,
    /// Cache generation that the frames were made under.
    generation: u32,
    /// Stack number of the remembered walk.
    stack: u32,
    /// Remembered frames; behind them space for the new frames of the present walk, innermost first.
    frames: [Frame; MEMORY + MAX_FRAMES],
}

/// What a walk gives.
pub(crate) struct Walked {
    /// Node of the innermost frame; none if the heap file is full.
    pub(crate) node: Option<u32>,
    /// Stack number; 0 if there is no space for one.
    pub(crate) stack: u32,
    /// Whether the stack was cut at the depth limit.
    pub(crate) truncated: bool,
}

enum Step {
    Caller(Frame, bool),
    End,
}

impl Walker {
    /// For a new thread. Frames need no initial value; the memory is zero.
    pub(crate) fn reset(&mut self, main_thread: bool) {
        self.bounds = StackBounds::of_current_thread(main_thread);
        self.forget();
    }

    /// Whether `sp` is on the known part of the thread's own stack.
    pub(crate) fn owns(&self, sp: usize) -> bool {
        self.bounds.contains(sp)
    }

    /// Forgets the previous walk.
    pub(crate) fn forget(&mut self) {
        self.depth = 0;
    }

    /// Walks from the caller of the hook whose entry stack pointer was `sp`.
    #[inline(always)]
    pub(crate) fn walk(&mut self, arena: Arena, window: &Window, sp: usize, bp: usize, tick: u32) -> Walked {
        // SAFETY: at entry the stack pointer points to the return address.
        let pc = unsafe { *(sp as *const usize) };
        let registers = Registers { pc, sp: sp + 8, bp };
        if self.bounds.contains(sp) && self.generation == generation() && self.depth > 0 {
            let last = self.depth - 1;
            // The very same stack is by far the most frequent case of a hot allocation site.
            if self.matches(last, registers)
                && self.unchanged_from(last).is_ok()
                && let Some(frame) = self.frames.get(last)
            {
                return Walked { node: Some(frame.node), stack: self.stack, truncated: self.truncated };
            }
        }
        self.walk_slowly(arena, window, registers, tick)
    }

    #[inline(always)]
    fn matches(&self, index: usize, now: Registers) -> bool {
        self.frames.get(index).is_some_and(|frame| {
            let then = frame.registers;
            then.sp == now.sp && then.pc == now.pc && then.bp == now.bp
        })
    }

    /// Whether everything outside frame `index` still reads as it did; else the index of the innermost frame
    /// that no longer does.
    #[inline(always)]
    fn unchanged_from(&self, index: usize) -> Result<(), usize> {
        let outer = self.frames.get(..index).unwrap_or(&[]);
        for (number, frame) in outer.iter().enumerate().rev() {
            // SAFETY: the addresses were inside the thread's own stack when they were remembered and lie above
            // the present stack pointer (callers made sure that a frame at or below them is live), so they are
            // mapped as long as the thread runs.
            let same = unsafe {
                *(frame.pc_at as *const usize) == frame.registers.pc
                    && (frame.bp_at == 0 || *(frame.bp_at as *const usize) == frame.registers.bp)
            };
            if !same {
                return Err(number);
            }
        }
        Ok(())
    }

    fn walk_slowly(&mut self, arena: Arena, window: &Window, start: Registers, tick: u32) -> Walked {
        let own_stack = self.bounds.extend_to(start.sp - 8);
        if self.generation != generation() {
            self.generation = generation();
            self.depth = 0;
        }
        // What remains of the remembered frames once those that have returned are gone.
        let mut known = if own_stack { self.depth } else { 0 };
        let mut fresh = 0;
        let mut current = Frame { registers: start, ..Frame::EMPTY };
        let mut reader = Reader::new(self.bounds, own_stack, start.sp - 8);
        let mut interrupted = false;
        let mut memorable = own_stack;
        let mut truncated = false;
        loop {
            while known > 0
                && self.frames.get(known - 1).is_some_and(|frame| frame.registers.sp < current.registers.sp)
            {
                known -= 1;
            }
            if known > 0 && memorable && self.matches(known - 1, current.registers) {
                match self.unchanged_from(known - 1) {
                    Ok(()) => break,
                    Err(changed) => {
                        // The frames between are as they were; only their callers differ.
                        let mut index = known - 1;
                        while index > changed + 1 && fresh < MAX_FRAMES - 1 {
                            self.take_over(index, fresh);
                            fresh += 1;
                            index -= 1;
                        }
                        if let Some(frame) = self.frames.get(index) {
                            current = *frame;
                        }
                        known = index;
                    }
                }
            }
            let (rule, module) = cache::rule(current.registers.pc, interrupted, arena, window, tick);
            current.module = module;
            if let Some(place) = self.frames.get_mut(MEMORY + fresh) {
                *place = current;
            }
            fresh += 1;
            if fresh == MAX_FRAMES {
                truncated = true;
                known = 0;
                break;
            }
            match step(rule, &mut reader, current.registers) {
                Step::Caller(caller, signal) => {
                    current = caller;
                    interrupted = signal;
                    if signal {
                        // Where the interrupted registers were saved is not checked later, so not remembered.
                        memorable = false;
                        reader.enter(self.bounds, current.registers.sp);
                    }
                }
                Step::End => {
                    known = 0;
                    break;
                }
            }
        }
        self.record(arena, window, known, fresh, memorable, truncated)
    }

    /// Copies remembered frame `index` to place `fresh` of the present walk.
    fn take_over(&mut self, index: usize, fresh: usize) {
        if let Some(frame) = self.frames.get(index).copied()
            && let Some(place) = self.frames.get_mut(MEMORY + fresh)
        {
            *place = frame;
        }
    }

    /// Interns the `fresh` new frames under the `known` remembered ones and remembers them.
    fn record(
        &mut self,
        arena: Arena,
        window: &Window,
        known: usize,
        mut fresh: usize,
        memorable: bool,
        mut truncated: bool,
    ) -> Walked {
        if known > 0 {
            truncated = self.truncated;
            if known + fresh > MEMORY || (truncated && known + fresh < KEPT_FRAMES / 2) {
                // Too long to remember, or too little left of a stack that was cut: start over.
                return self.start_over(arena, window, known, fresh);
            }
        }
        let mut parent = Some(stacks::ROOT);
        if known > 0 {
            parent = self.frames.get(known - 1).map(|frame| frame.node);
        } else if truncated {
            fresh = fresh.min(KEPT_FRAMES);
            let key = u64::from(MODULE_PSEUDO) << PC_BITS | PSEUDO_TRUNCATED;
            parent = stacks::intern(arena, window, stacks::ROOT, key);
        }
        let mut depth = known;
        for number in (0..fresh).rev() {
            let Some(mut frame) = self.frames.get(MEMORY + number).copied() else { break };
            parent = parent.and_then(|parent| stacks::intern(arena, window, parent, frame.key()));
            frame.node = parent.unwrap_or(stacks::ROOT);
            if memorable && let Some(place) = self.frames.get_mut(depth) {
                *place = frame;
                depth += 1;
            }
        }
        let stack = parent.map_or(0, |node| stacks::stack_of(arena, window, node));
        if memorable {
            self.depth = if parent.is_some() { depth } else { 0 };
            self.truncated = truncated;
            self.stack = stack;
        }
        Walked { node: parent, stack, truncated }
    }

    /// Walks again, without the remembered frames. The innermost frame is the first fresh one, or the last
    /// known one if there is no fresh one.
    #[cold]
    fn start_over(&mut self, arena: Arena, window: &Window, known: usize, fresh: usize) -> Walked {
        let innermost = if fresh > 0 { MEMORY } else { known.saturating_sub(1) };
        let registers = self.frames.get(innermost).map(|frame| frame.registers).unwrap_or_default();
        self.depth = 0;
        self.walk_slowly(arena, window, registers, 0)
    }
}

/// Steps from a frame to its caller.
fn step(rule: Rule, reader: &mut Reader, now: Registers) -> Step {
    let stepped = match rule.cfa {
        Cfa::None => None,
        Cfa::Signal => return step_signal(reader, now).map_or(Step::End, |frame| Step::Caller(frame, true)),
        _ => step_plain(rule, reader, now),
    };
    stepped.map_or(Step::End, |frame| Step::Caller(frame, false))
}

fn step_plain(rule: Rule, reader: &mut Reader, now: Registers) -> Option<Frame> {
    let offset = rule.cfa_offset as isize as usize;
    let cfa = match rule.cfa {
        Cfa::Sp => now.sp.wrapping_add(offset),
        Cfa::Bp | Cfa::FramePointer => now.bp.wrapping_add(offset),
        Cfa::AtBp => reader.read(now.bp.wrapping_add(offset))?,
        Cfa::AtSp => reader.read(now.sp.wrapping_add(offset))?,
        Cfa::None | Cfa::Signal => return None,
    };
    // The stack grows down, so a caller's frame is further up; anything else is a loop or garbage.
    if cfa <= now.sp || !cfa.is_multiple_of(8) {
        return None;
    }
    let pc_at = cfa.wrapping_sub(8);
    let pc = reader.read(pc_at)?;
    if pc < 4096 || pc >> (PC_BITS - 1) != 0 {
        return None;
    }
    let bp_offset = rule.bp_offset as isize as usize;
    let (bp, bp_at) = match rule.bp {
        Bp::Same => (now.bp, 0),
        Bp::AtCfa => (reader.read(cfa.wrapping_add(bp_offset))?, cfa.wrapping_add(bp_offset)),
        Bp::AtBp => (reader.read(now.bp.wrapping_add(bp_offset))?, now.bp.wrapping_add(bp_offset)),
        Bp::Unknown => (0, 0),
    };
    if rule.cfa == Cfa::FramePointer && bp != 0 && bp <= now.bp {
        return None;
    }
    Some(Frame { registers: Registers { pc, sp: cfa, bp }, pc_at, bp_at, node: 0, module: 0 })
}

fn step_signal(reader: &mut Reader, now: Registers) -> Option<Frame> {
    let pc = reader.read(now.sp.wrapping_add(arch::SIGNAL_PC))?;
    let sp = reader.read(now.sp.wrapping_add(arch::SIGNAL_SP))?;
    let bp = reader.read(now.sp.wrapping_add(arch::SIGNAL_BP))?;
    if pc < 4096 || pc >> (PC_BITS - 1) != 0 {
        return None;
    }
    Some(Frame { registers: Registers { pc, sp, bp }, ..Frame::EMPTY })
}
