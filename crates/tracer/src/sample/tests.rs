//! Against the theory: what is recorded of many streams of allocations, each from a seed of its own.

use super::{Chance, passes, weight};
use crate::arch;
use core::arch::asm;
use leakscope_heapfile::sampling::{INTERVAL_DEFAULT, Weight, probability};
use std::vec::Vec;

/// The estimates for each of `sizes` (a call site each) of a thread that allocates `rounds` times each of them in turn, in
/// blocks and bytes.
fn estimates(seed: u64, interval: u64, sizes: &[usize], rounds: u32) -> Vec<(f64, f64)> {
    let mut chance = Chance(seed);
    arch::set_countdown(chance.distance(interval));
    let mut sums = std::vec![(0, 0); sizes.len()];
    for _ in 0..rounds {
        for (&size, sum) in sizes.iter().zip(&mut sums) {
            if !passes(size) {
                arch::set_countdown(chance.distance(interval));
                let weight = weight(size as u64, interval);
                *sum = (sum.0 + weight.blocks, sum.1 + weight.bytes);
            }
        }
    }
    arch::set_countdown(0);
    // With their fractions.
    let one = Weight::exact(1, interval);
    let exact = |(blocks, bytes)| (blocks as f64 / one.blocks as f64, bytes as f64 / one.bytes as f64);
    sums.into_iter().map(exact).collect()
}

/// For each size: mean and variance of the estimates over the seeds are those of the theory, the mean to within 4.5 of its own
/// standard deviations.
fn check(interval: u64, sizes: &[usize], rounds: u32, seeds: u32) {
    let all: Vec<_> =
        (1..=u64::from(seeds)).map(|seed| estimates(seed << 20, interval, sizes, rounds)).collect();
    let seeds = f64::from(seeds);
    for (site, &size) in sizes.iter().enumerate() {
        let p = probability(size as u64, interval);
        for (what, unit, of) in [
            ("blocks", 1.0, (|sums: &(f64, f64)| sums.0) as fn(&(f64, f64)) -> f64),
            ("bytes", size as f64, |sums| sums.1),
        ] {
            let truth = f64::from(rounds) * unit;
            let variance = f64::from(rounds) * unit * unit * (1.0 - p) / p;
            let mean = all.iter().map(|sums| of(&sums[site])).sum::<f64>() / seeds;
            let error = (mean - truth).abs();
            // Weights are rounded.
            assert!(
                error <= 4.5 * (variance / seeds).sqrt() + 0.5,
                "{what} of {size} bytes at {interval}: {mean} on average, should be {truth}"
            );
            let spread = all.iter().map(|sums| (of(&sums[site]) - truth).powi(2)).sum::<f64>() / seeds;
            // The variance of a binomial count's variance, by its kurtosis.
            let kurtosis = 1.0 / (f64::from(rounds) * p * (1.0 - p).max(1e-12));
            let tolerance = 4.5 * variance * ((2.0 + kurtosis) / seeds).sqrt() + 0.5;
            assert!(
                (spread - variance).abs() <= tolerance,
                "{what} of {size} bytes at {interval}: variance {spread}, should be {variance}"
            );
        }
    }
}

#[test]
fn estimates_are_unbiased_for_each_size_in_a_mixture() {
    let sizes = [16, 0, 1000, 1, 100 << 10, 512 << 10, 16, 10 << 20];
    check(INTERVAL_DEFAULT, &sizes, 50, 3000);
}

#[test]
fn estimates_are_unbiased_where_a_stream_has_hardly_one_record() {
    for size in [0, 1, 16, 1000] {
        // Half a record per stream.
        let rounds = (INTERVAL_DEFAULT / 2 / (size as u64 + 1)).min(20_000) as u32;
        check(INTERVAL_DEFAULT, &[size], rounds, 1000);
    }
    // The first allocation of a thread is as likely to be recorded as any.
    check(INTERVAL_DEFAULT, &[100 << 10], 1, 20_000);
}

#[test]
fn estimates_are_unbiased_where_nearly_everything_is_recorded() {
    for interval in [1, 2, 16, 1000] {
        check(interval, &[0, 1, 2, 16, 1000], 50, 1000);
    }
}

#[test]
fn a_program_that_signals_or_rounds_otherwise_changes_nothing_and_is_not_changed() {
    let expected = (Chance(7).distance(INTERVAL_DEFAULT), weight(1000, INTERVAL_DEFAULT));
    // Every exception signals, rounding is up, denormals are zero, and nothing has happened yet.
    let strange: u32 = 0xc040;
    let (mut before, mut after) = (0u32, 0u32);
    // SAFETY: the control and status register is set, and put back before anything else is computed.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut before, options(nostack));
        asm!("ldmxcsr [{}]", in(reg) &raw const strange, options(nostack));
    }
    let found = (Chance(7).distance(INTERVAL_DEFAULT), weight(1000, INTERVAL_DEFAULT));
    // SAFETY: as above.
    unsafe {
        asm!("stmxcsr [{}]", in(reg) &raw mut after, options(nostack));
        asm!("ldmxcsr [{}]", in(reg) &raw const before, options(nostack));
    }
    assert_eq!(found, expected);
    assert_eq!(after, strange, "no flag was raised, no mode was changed");
}
