//! How far the numbers of a sampled profile may be off.

use leakscope_heapfile::sampling::probability;

/// How allocations were sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampling {
    /// Mean bytes between sample points.
    pub interval_bytes: u64,
    /// Heap allocations that were recorded.
    pub samples: u64,
}

/// What the numbers of a site or of a whole process rest on, if allocations were sampled; else all zero.
///
/// Blocks are recorded independently of each other, block `i` with probability `p_i` (see
/// `leakscope_heapfile::sampling`), and one that is stands for `1 / p_i` blocks and `k_i / p_i` bytes. An unbiased
/// estimate of the variance of a sum of these is the sum of `(1 - p_i) / p_i^2` over the recorded blocks for blocks, of
/// `k_i^2 (1 - p_i) / p_i^2` for bytes (Horvitz and Thompson 1952, for independent inclusion). It is known of what is in
/// use, whose records are all there with their sizes; of what was allocated in all only the number of records is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Samples {
    /// Recorded allocations.
    pub allocated: u64,
    /// Those not yet freed.
    pub inuse: u64,
    /// Variance of the bytes in use, in bytes squared.
    pub inuse_bytes_variance: f64,
    /// Variance of the blocks in use.
    pub inuse_blocks_variance: f64,
}

impl Samples {
    /// Of one recorded block in use of `size` bytes; none of an interval of 0, where nothing is an estimate.
    pub fn of_block(size: u64, interval: u64) -> Samples {
        if interval == 0 {
            return Samples::default();
        }
        let p = probability(size, interval);
        let variance = (1.0 - p) / (p * p);
        let size = size as f64;
        Samples {
            allocated: 0,
            inuse: 1,
            inuse_bytes_variance: size * size * variance,
            inuse_blocks_variance: variance,
        }
    }

    /// Standard error of the bytes in use, in bytes.
    pub fn inuse_bytes_error(&self) -> f64 {
        self.inuse_bytes_variance.sqrt()
    }

    /// Standard error of the blocks in use.
    pub fn inuse_blocks_error(&self) -> f64 {
        self.inuse_blocks_variance.sqrt()
    }
}

impl std::ops::AddAssign for Samples {
    /// What is recorded of two sites is independent, so variances add up.
    fn add_assign(&mut self, other: Samples) {
        self.allocated = self.allocated.saturating_add(other.allocated);
        self.inuse = self.inuse.saturating_add(other.inuse);
        self.inuse_bytes_variance += other.inuse_bytes_variance;
        self.inuse_blocks_variance += other.inuse_blocks_variance;
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    /// For many small blocks the number of records is Poisson with mean n, each stands for an interval: the error is
    /// the interval times the root of n.
    #[test]
    fn the_error_of_many_small_blocks_is_that_of_a_poisson_count() {
        let mut sum = Samples::default();
        (0..400).for_each(|_| sum += Samples::of_block(100, 512 << 10));
        let expected = 20.0 * (512 << 10) as f64 * 100.0 / 101.0;
        assert!((sum.inuse_bytes_error() / expected - 1.0).abs() < 1e-3, "{sum:?}");
        assert!((sum.inuse_blocks_error() / (expected / 100.0) - 1.0).abs() < 1e-3, "{sum:?}");
        assert_eq!(sum.inuse, 400);
    }

    #[test]
    fn what_is_certain_has_no_error() {
        assert_eq!(Samples::of_block(100, 0), Samples::default());
        // A hundred intervals long: recorded but for a chance of e^-100.
        assert!(Samples::of_block(50 << 20, 512 << 10).inuse_bytes_error() < 1e-9);
    }
}
