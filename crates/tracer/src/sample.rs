//! Which allocations are recorded: all, or a Poisson sample of the bytes (the mathematics: `leakscope_heapfile::sampling`).
//!
//! Each thread counts down to its next sample point in a thread-local word. An allocation that does not reach it takes
//! its bytes off and goes straight on to the real function. One that does reach it is recorded, and the next point is
//! drawn anew.
//!
//! Invariants:
//!
//! 1. The word is the number of places (bytes, plus one per allocation) before the next point: an allocation of `k` bytes
//!    is passed over if and only if `k` is less. So 0, what a thread begins with, passes nothing over: its first
//!    allocation is the one that draws its first point. Where all are recorded, it stays 0.
//! 2. Points are drawn without regard to what is allocated, and drawn anew wherever an allocation reached one, also if
//!    nothing could be recorded there. Since the exponential distribution has no memory, the next allocation's chance
//!    depends on nothing that came before it.
//! 3. Interval and seed are read once per process; the superblock can be written by every process of the run.
//! 4. Floating-point state is the program's: its rounding, its exceptions, its flags are neither used nor changed.

use crate::unwind::scramble as mix;
use crate::{arch, filter, sys};
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::layout::{Superblock, Window};
use leakscope_heapfile::sampling::{self, INTERVAL_MAX, Weight};

static INTERVAL: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
/// What of a countdown counts: all of it, or nothing where everything is recorded. There, a thread may have been left one
/// by an earlier tracing of a running process.
static COUNTS: AtomicU64 = AtomicU64::new(u64::MAX);

/// Begins as the superblock says: before the process's first event is recorded.
pub(crate) fn start(superblock: &Superblock) {
    let interval = superblock.sampling_interval.min(INTERVAL_MAX);
    INTERVAL.store(interval, Relaxed);
    SEED.store(superblock.seed, Relaxed);
    COUNTS.store(if interval == 0 { 0 } else { u64::MAX }, Relaxed);
    if interval == 0 {
        filter::hold_everything();
    } else {
        filter::start();
    }
}

/// Mean bytes between sample points; 0 = everything is recorded.
#[inline(always)]
pub(crate) fn interval() -> u64 {
    INTERVAL.load(Relaxed)
}

/// Whether an allocation is passed over; if so, its bytes have been counted.
#[inline(always)]
pub(crate) fn passes(size: usize) -> bool {
    let left = arch::countdown() & COUNTS.load(Relaxed);
    let passes = (size as u64) < left;
    if passes {
        arch::set_countdown(left - size as u64 - 1);
    }
    passes
}

/// What a recorded allocation of `size` bytes stands for.
#[inline(never)]
pub(crate) fn weight(size: u64, interval: u64) -> Weight {
    let (blocks, bytes) = arch::with_own_floats((size, interval), |(size, interval)| {
        let weight = Weight::of(size, interval);
        (weight.blocks, weight.bytes)
    });
    Weight { blocks, bytes }
}

/// A thread's source of chance: SplitMix64 (Steele, Lea and Flood 2014).
pub(crate) struct Chance(u64);

impl Chance {
    /// For a thread by its number in its process.
    pub(crate) fn new(window: &Window, thread: u32) -> Chance {
        let seed = match SEED.load(Relaxed) {
            // Where the window was mapped is random, too.
            0 => mix(sys::monotonic_ns()) ^ core::ptr::from_ref(window) as u64,
            seed => seed,
        };
        let place = u64::from(window.serial.load(Relaxed)) << 32 | u64::from(thread);
        Chance(mix(seed) ^ mix(place))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// Places before the next sample point.
    #[cold]
    pub(crate) fn distance(&mut self, interval: u64) -> u64 {
        let draw = |(chance, interval)| (sampling::distance(chance, interval), 0);
        arch::with_own_floats((self.next(), interval), draw).0
    }
}

#[cfg(test)]
mod tests;
