//! Unwinding rules by program counter, private to the process and inherited by forked children.

use super::cfi;
use super::rule::{Packed, Rule};
use super::walker::Context;
use crate::arch;
use crate::modules;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_heapfile::layout::PC_BITS;

/// Sets of four entries of 16 bytes: one cache line each.
const SETS: usize = 4096;
const WAYS: usize = 4;
/// Marks the key of an address that a signal interrupted: it is looked up as it is, not as a return address.
const INTERRUPTED: u64 = 1 << (PC_BITS - 1);

#[repr(C, align(64))]
struct Set([[AtomicU64; 2]; WAYS]);

static SETS_TABLE: [Set; SETS] = [const { Set([const { [const { AtomicU64::new(0) }; 2] }; WAYS]) }; SETS];
static GENERATION: AtomicU32 = AtomicU32::new(1);

/// Changes whenever a cached rule may have become wrong.
#[inline(always)]
pub(crate) fn generation() -> u32 {
    GENERATION.load(Relaxed)
}

/// Forgets everything: a module was unloaded.
pub(crate) fn clear() {
    for entry in SETS_TABLE.iter().flat_map(|set| &set.0) {
        entry[0].store(0, Relaxed);
    }
    GENERATION.fetch_add(1, Release);
}

/// The rule for the frame at `pc`, and the number of its module.
#[inline(always)]
pub(super) fn rule(pc: usize, interrupted: bool, context: Context<'_>) -> (Packed, u16) {
    let key = pc as u64 & (INTERRUPTED - 1) | if interrupted { INTERRUPTED } else { 0 };
    let hash = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let Some(set) = SETS_TABLE.get(hash as usize % SETS) else {
        return (Packed(Rule::FRAME_POINTER.pack()), 0);
    };
    for entry in &set.0 {
        let word = entry[0].load(Acquire);
        if word & ((1 << PC_BITS) - 1) == key && key != 0 {
            let rule = entry[1].load(Acquire);
            // Both words change together; an unchanged first one means that the second belongs to it.
            if entry[0].load(Relaxed) == word {
                return (Packed(rule), (word >> PC_BITS) as u16);
            }
        }
    }
    find(key, set, pc, interrupted, context)
}

#[cold]
fn find(key: u64, set: &Set, pc: usize, interrupted: bool, context: Context<'_>) -> (Packed, u16) {
    let Context { arena, window, tick } = context;
    // A return address points behind the call, which may be the end of the function.
    let lookup = if interrupted { pc } else { pc.wrapping_sub(1) };
    let (rule, module) = match modules::find(lookup, arena, window, tick) {
        Some((number, module)) => {
            let found = if module.header == 0 {
                None
            } else {
                // glibc marks its trampoline's rule so that it covers the byte before it, too.
                cfi::find_rule(module.bytes(), module.header, lookup)
            };
            // SAFETY: only asked of code in a mapped module, away from its end.
            let trampoline = || unsafe { pc + 9 <= module.end && arch::is_signal_trampoline(pc) };
            match found {
                Some(rule) => (rule, number),
                None if trampoline() => (Rule::SIGNAL, number),
                None => (Rule::FRAME_POINTER, number),
            }
        }
        // Generated code is not remembered: what is there may change, and module numbers would not tell.
        None => return (Packed(Rule::FRAME_POINTER.pack()), 0),
    };
    window.rules.fetch_add(1, Relaxed);
    let words = (key | u64::from(module) << PC_BITS, rule.pack());
    let victim =
        set.0.iter().find(|entry| entry[0].load(Relaxed) == 0).or_else(|| set.0.get((pc >> 3) % WAYS));
    if let Some(entry) = victim {
        let old = (entry[0].load(Relaxed), entry[1].load(Relaxed));
        let place = core::ptr::from_ref(entry).cast::<u64>().cast_mut();
        // SAFETY: entries are 16 bytes at multiples of 16; should another thread be faster, its entry stays.
        unsafe { arch::compare_exchange_16(place, old, words) };
    }
    (Packed(rule.pack()), module)
}
