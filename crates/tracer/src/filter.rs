//! Whether an address may be that of a recorded block: what a `free` asks first when allocations are sampled, since nearly
//! all blocks that it gets were not recorded.
//!
//! A table of counters in the process's own memory, one for all addresses that share 256 bytes (and, from another 512 MiB
//! on, their remainder): neighbours in memory are neighbours here, so that a program that works on few megabytes has the
//! few lines that it needs in its nearest cache. Pages of the table where nothing was recorded are the kernel's page
//! of zeroes.
//!
//! Invariants:
//!
//! 1. A counter is at least the number of recorded blocks that share it: it is raised before a block is published and
//!    lowered after it is removed. 0 is therefore a proof.
//! 2. A counter that has reached 255 stays there for ever: it can no longer know.
//! 3. Before the process is traced, nothing may be held. Where everything is recorded, all addresses lead to one
//!    counter, which stands at 255.
//! 4. A forked child has its own copy, which holds for what it inherited.

use crate::unwind::scramble;
use core::sync::atomic::Ordering::{AcqRel, Relaxed};
use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

/// log2 of the bytes that share a counter.
const GRANULE: u32 = 8;
/// log2 of the counters. With so many, one free in a hundred is looked up in vain in a process with 20,000 recorded blocks,
/// one in ten with 200,000.
const BITS: u32 = 21;
const STUCK: u8 = u8::MAX;

static COUNTERS: [AtomicU8; 1 << BITS] = [const { AtomicU8::new(0) }; 1 << BITS];
static MASK: AtomicUsize = AtomicUsize::new(0);

/// Forgets what was held. Only while no other thread is inside of the tracer.
pub(crate) fn forget() {
    // Only read where nothing was held, so that those pages stay the kernel's.
    for counter in COUNTERS.iter().filter(|counter| counter.load(Relaxed) != 0) {
        counter.store(0, Relaxed);
    }
    for word in FREED.iter().filter(|word| word.load(Relaxed) != 0) {
        word.store(0, Relaxed);
    }
}

/// From now on recorded blocks are held, and others are not.
pub(crate) fn start() {
    MASK.store((1 << BITS) - 1, Relaxed);
}

/// From now on any address may be that of a recorded block.
pub(crate) fn hold_everything() {
    MASK.store(0, Relaxed);
    counter(0).store(STUCK, Relaxed);
}

#[inline(always)]
fn counter(address: usize) -> &'static AtomicU8 {
    // What lies far apart is spread, so that blocks at equal distances do not all share one counter.
    let far = (address >> (GRANULE + BITS)).wrapping_mul(0x9E37_79B1);
    let index = ((address >> GRANULE) ^ far) & MASK.load(Relaxed);
    // The mask keeps the index within the table; the second one lets the compiler know.
    &COUNTERS[index & ((1 << BITS) - 1)]
}

/// What is known of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// There is no recorded block.
    No,
    /// There are recorded blocks nearby.
    Perhaps,
    /// Everything is recorded, or more than can be counted.
    Likely,
}

/// Whether a block at `address` was recorded.
#[inline(always)]
pub(crate) fn holds(address: usize) -> Answer {
    match counter(address).load(Relaxed) {
        0 => Answer::No,
        STUCK => Answer::Likely,
        _ => Answer::Perhaps,
    }
}

/// Whether a block at `address` may have been recorded.
#[inline(always)]
pub(crate) fn may_hold(address: usize) -> bool {
    holds(address) != Answer::No
}

/// A block at `address` is about to be published.
#[inline(always)]
pub(crate) fn add(address: usize) {
    change(counter(address), |count| count.saturating_add(1));
}

/// A block at `address` has been removed.
#[inline(always)]
pub(crate) fn remove(address: usize) {
    change(counter(address), |count| count.saturating_sub(1));
}

/// Inherited blocks that this process has freed: a bit for all addresses that share it.
static FREED: [AtomicU64; 1024] = [const { AtomicU64::new(0) }; 1024];

/// The inherited block at `address` is freed. False if it (or, rarely, another) was before: then what is freed now has
/// only taken its place, and the counter is not to be lowered again.
#[cold]
pub(crate) fn give_up_inherited(address: usize) -> bool {
    let hash = scramble(address as u64);
    let bit = 1 << (hash & 63);
    FREED[(hash >> 6) as usize % FREED.len()].fetch_or(bit, Relaxed) & bit == 0
}

#[inline(always)]
fn change(counter: &AtomicU8, to: impl Fn(u8) -> u8) {
    let _ = counter.fetch_update(AcqRel, Relaxed, |count| (count != STUCK).then(|| to(count)));
}

/// Whether no address is held.
#[cfg(test)]
pub(crate) fn is_empty() -> bool {
    COUNTERS.iter().all(|counter| counter.load(Relaxed) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;
    use std::collections::HashMap;
    use std::vec::Vec;

    /// One test: the table is the process's.
    #[test]
    fn what_is_held_is_never_denied_and_what_is_given_up_is_mostly_denied_again() {
        assert!(!may_hold(0x5555_0000_1230), "nothing is held before the process is traced");
        start();
        let mut random = Random::new(1);
        // Heaps in three places, one of them of large blocks at equal distances.
        let mut address = || match random.below(3) {
            0 => 0x5555_5555_0000 + random.below(1 << 28) as usize / 16 * 16,
            1 => 0x7f12_3400_0000 + random.below(1 << 34) as usize / 16 * 16,
            _ => 0x7e00_0000_0010 + (random.below(1 << 12) as usize) * (64 << 20),
        };
        let mut held: HashMap<usize, u32> = HashMap::new();
        for _ in 0..16_000 {
            let address = address();
            add(address);
            *held.entry(address).or_default() += 1;
        }
        assert!(held.keys().all(|&address| may_hold(address)));
        let strangers: Vec<usize> =
            (0..100_000).map(|_| address()).filter(|address| !held.contains_key(address)).collect();
        let near =
            strangers.iter().filter(|&&address| !(0x7e00_0000_0000..0x7f00_0000_0000).contains(&address));
        let (all, vain) =
            near.fold((0, 0), |(all, vain), &address| (all + 1, vain + u32::from(may_hold(address))));
        assert!(vain * 20 < all, "{vain} of {all} strangers may be held");
        // In a shuffled order; each is held until its last.
        for (&address, &times) in &held {
            for _ in 0..times {
                assert!(may_hold(address));
                remove(address);
            }
        }
        assert!(is_empty(), "all were given up");

        // A counter that overflowed keeps its word.
        let crowded = 0x1000_0000;
        (0..300).for_each(|_| add(crowded));
        (0..300).for_each(|_| remove(crowded));
        assert!(may_hold(crowded) && may_hold(crowded + 240) && !may_hold(crowded + 256));

        // Eight threads on counters that they share.
        let threads: Vec<_> = (0..8)
            .map(|seed| {
                std::thread::spawn(move || {
                    let mut random = Random::new(seed);
                    for _ in 0..100_000 {
                        let address = 0x2000_0000 + random.below(64) as usize * 256;
                        add(address);
                        assert!(may_hold(address));
                        remove(address);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no thread was denied its own"));
        assert!((0..64).all(|n| !may_hold(0x2000_0000 + n * 256)));

        hold_everything();
        assert!(may_hold(0) && may_hold(crowded) && may_hold(usize::MAX));
        add(5);
        remove(5);
        remove(5);
        assert!(may_hold(5), "whatever is given up");
    }
}
