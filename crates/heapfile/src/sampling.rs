//! Sampling of allocations, Poisson per byte: what the tracer records and what a record stands for.
//!
//! An allocation of `k` bytes takes up `k + 1` places on a line (so that blocks of no bytes take up one, too) along
//! which sample points lie as a Poisson process has it, one per `interval` places on average; it is recorded if at
//! least one lies in it. So it is recorded with probability `p = 1 - exp(-(k + 1) / interval)`, independently of all
//! others, and a record stands for `1 / p` blocks and `k / p` bytes: the Horvitz-Thompson estimator, which is unbiased
//! for every sum of blocks or bytes (Horvitz and Thompson 1952). Each record is scaled by its own size before it is added
//! to anything.
//!
//! Invariants:
//!
//! 1. A block's weight is a function of its size and the interval alone, so what is counted at its allocation is
//!    exactly what is taken off at its free, by whichever process or reader.
//! 2. Weights are added as integers with a fixed number of fraction bits ([`Scale`]), so that sums do not depend on
//!    the order of adding, and rounding stays below one part in 4,000 of a record.
//! 3. With interval 0 every allocation is recorded, and weights are blocks and bytes themselves.

/// How allocations are sampled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sampling {
    /// Mean bytes between sample points, at most [`INTERVAL_MAX`]; 0 = every allocation is recorded.
    pub interval: u64,
    /// What chance starts from, so that a run can be repeated; 0 = from the clock.
    pub seed: u64,
}

/// Bytes between sample points if nothing else is said: what jemalloc, tcmalloc and Go use, too.
pub const INTERVAL_DEFAULT: u64 = 512 << 10;
/// Largest interval in bytes, so that no weight overflows.
pub const INTERVAL_MAX: u64 = 1 << 40;

/// Fraction bits of a number of blocks.
const FRACTION: u32 = 12;

/// The probability that an allocation of `size` bytes is recorded.
pub fn probability(size: u64, interval: u64) -> f64 {
    if interval == 0 {
        return 1.0;
    }
    -libm::expm1(-(size as f64 + 1.0) / interval as f64)
}

/// Places before the next sample point, by a number that is as likely as any other: exponentially distributed with mean
/// `interval`, rounded down. That is exact: the point lies within the next `n` places if and only if `n` is more.
pub fn distance(chance: u64, interval: u64) -> u64 {
    // In (0, 1], so the logarithm is at most 0 and at least -37.
    let uniform = ((chance >> 11) + 1) as f64 / (1u64 << 53) as f64;
    (-libm::log(uniform) * interval as f64) as u64
}

/// What one record stands for, in units of [`Scale`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Weight {
    /// Blocks.
    pub blocks: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Weight {
    /// Of a sampled allocation of `size` bytes.
    pub fn of(size: u64, interval: u64) -> Weight {
        if interval == 0 {
            return Weight { blocks: 1, bytes: size };
        }
        let scale = Scale::of(interval);
        let blocks = 1.0 / probability(size, interval);
        let fixed = |number: f64, bits: u32| (number * (1u64 << bits) as f64 + 0.5) as u64;
        Weight { blocks: fixed(blocks, scale.blocks), bytes: fixed(blocks * size as f64, scale.bytes) }
    }

    /// Of something that is recorded in any case.
    pub fn exact(size: u64, interval: u64) -> Weight {
        let scale = Scale::of(interval);
        Weight { blocks: 1 << scale.blocks, bytes: size << scale.bytes }
    }
}

/// Fraction bits of sums of weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    blocks: u32,
    bytes: u32,
}

impl Scale {
    /// For an interval. Records stand for at least half the interval in bytes (those of empty blocks for none), so
    /// only small intervals need fractions of a byte.
    pub fn of(interval: u64) -> Scale {
        match interval {
            0 => Scale { blocks: 0, bytes: 0 },
            _ => Scale { blocks: FRACTION, bytes: FRACTION.saturating_sub(interval.ilog2()) },
        }
    }

    /// A sum of weights as a number of blocks.
    pub fn blocks(self, sum: u64) -> u64 {
        round(sum, self.blocks)
    }

    /// A sum of weights as a number of bytes.
    pub fn bytes(self, sum: u64) -> u64 {
        round(sum, self.bytes)
    }
}

fn round(sum: u64, bits: u32) -> u64 {
    match bits {
        0 => sum,
        _ => (sum >> bits) + (sum >> (bits - 1) & 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u64; 9] = [0, 1, 16, 1000, 4096, 100 << 10, 512 << 10, 10 << 20, 1 << 46];
    const INTERVALS: [u64; 7] = [1, 2, 64, 4096, INTERVAL_DEFAULT, 1 << 30, INTERVAL_MAX];

    #[test]
    fn on_average_a_record_stands_for_exactly_the_blocks_and_bytes_there_were() {
        for (size, interval) in SIZES.into_iter().flat_map(|size| INTERVALS.map(|interval| (size, interval)))
        {
            // 1 - exp(-x) by its series where the subtraction would cancel: an oracle beside expm1.
            let x = (size as f64 + 1.0) / interval as f64;
            let p = if x < 1e-3 { x - x * x / 2.0 + x * x * x / 6.0 } else { 1.0 - (-x).exp() };
            let weight = Weight::of(size, interval);
            let (blocks_unit, bytes_unit) =
                (Weight::exact(0, interval).blocks as f64, Weight::exact(1, interval).bytes as f64);
            let (blocks, bytes) =
                (weight.blocks as f64 / blocks_unit * p, weight.bytes as f64 / bytes_unit * p);
            assert!((blocks - 1.0).abs() < 1.0 / 4000.0, "{blocks} of {size} bytes at {interval}");
            assert!((bytes - size as f64).abs() <= size as f64 / 4000.0, "{bytes} of {size} at {interval}");
        }
    }

    #[test]
    fn without_sampling_weights_are_the_numbers_themselves() {
        assert_eq!(Weight::of(1000, 0), Weight { blocks: 1, bytes: 1000 });
        assert_eq!(Weight::exact(1000, 0), Weight { blocks: 1, bytes: 1000 });
        assert_eq!((Scale::of(0).blocks(7), Scale::of(0).bytes(u64::MAX)), (7, u64::MAX));
        assert_eq!(probability(0, 0), 1.0);
    }

    #[test]
    fn sums_are_rounded_to_the_nearest_whole_and_the_largest_does_no_harm() {
        let scale = Scale::of(INTERVAL_DEFAULT);
        let one = Weight::exact(5, INTERVAL_DEFAULT);
        assert_eq!((scale.blocks(one.blocks), scale.bytes(one.bytes)), (1, 5));
        assert_eq!(scale.blocks(3 * one.blocks / 2), 2);
        assert_eq!(scale.blocks(3 * one.blocks / 2 - 1), 1);
        assert!(scale.blocks(u64::MAX) > 1 << 51);
    }
}
