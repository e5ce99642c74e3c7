//! Stack identification: from the registers at a hook's entry to a stack number.

mod bounds;
mod cache;
pub(crate) mod cfi;
pub(crate) mod rule;
mod shapes;
mod walker;

pub(crate) use cache::{clear as clear_cache, generation};
pub(crate) use walker::{Context, Walked, Walker};

use crate::arch;
use bounds::Reader;
use leakscope_heapfile::layout::PC_BITS;
use rule::{Bp, Cfa, Packed, Rule};

/// 2^64 divided by the golden ratio: SplitMix64's increment.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// Spreads a change of any bit over all bits (the finaliser of SplitMix64).
#[inline(always)]
pub(crate) const fn scramble(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Registers of a frame.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Registers {
    /// Program counter: a return address, or where a signal came in.
    pub(crate) pc: usize,
    /// Stack pointer after the return.
    pub(crate) sp: usize,
    /// Frame pointer.
    pub(crate) bp: usize,
}

/// A caller, and where its registers were read: the program counter just below the stack pointer.
#[derive(Clone, Copy, Default, Debug)]
struct Caller {
    registers: Registers,
    /// Address of its frame pointer on the stack; 0 if that is still in the register.
    bp_at: usize,
}

enum Step {
    /// An ordinary caller.
    Caller(Caller),
    /// What a signal interrupted.
    Interrupted(Registers),
    /// There is none, or it cannot be found.
    End,
}

/// Steps from a frame to its caller.
#[inline(always)]
fn step(rule: Packed, reader: &mut Reader, now: Registers) -> Step {
    let rule = rule.rule();
    match rule.cfa {
        Cfa::None => Step::End,
        Cfa::Signal => step_signal(reader, now).map_or(Step::End, Step::Interrupted),
        _ => step_plain(rule, reader, now).map_or(Step::End, Step::Caller),
    }
}

#[inline(always)]
fn step_plain(rule: Rule, reader: &mut Reader, now: Registers) -> Option<Caller> {
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
    let pc = reader.read(cfa.wrapping_sub(8))?;
    if !is_code_address(pc) {
        return None;
    }
    let bp_offset = rule.bp_offset as isize as usize;
    let (bp, bp_at) = match rule.bp {
        Bp::Same => (now.bp, 0),
        Bp::AtCfa => (reader.read(cfa.wrapping_add(bp_offset))?, cfa.wrapping_add(bp_offset)),
        Bp::AtOwn => (reader.read(now.bp.wrapping_add(bp_offset))?, now.bp.wrapping_add(bp_offset)),
        Bp::Unknown => (0, 0),
    };
    if rule.cfa == Cfa::FramePointer && bp != 0 && bp <= now.bp {
        return None;
    }
    Some(Caller { registers: Registers { pc, sp: cfa, bp }, bp_at })
}

#[cold]
fn step_signal(reader: &mut Reader, now: Registers) -> Option<Registers> {
    let pc = reader.read(now.sp.wrapping_add(arch::SIGNAL_PC))?;
    let sp = reader.read(now.sp.wrapping_add(arch::SIGNAL_SP))?;
    let bp = reader.read(now.sp.wrapping_add(arch::SIGNAL_BP))?;
    is_code_address(pc).then_some(Registers { pc, sp, bp })
}

fn is_code_address(pc: usize) -> bool {
    pc >= 4096 && pc >> (PC_BITS - 1) == 0
}
