//! Random numbers that a failed test can be repeated with.

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// From `LEAKSCOPE_TEST_SEED`, or a fixed seed.
    pub fn new() -> Random {
        let seed = std::env::var("LEAKSCOPE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(42);
        eprintln!("LEAKSCOPE_TEST_SEED={seed}");
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// How often to repeat: `variable` of the environment (for a soak), or `usual`.
pub fn rounds(variable: &str, usual: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
