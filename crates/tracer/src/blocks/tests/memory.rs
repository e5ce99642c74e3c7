//! What a live block costs: at most 32 bytes of the heap file above 100,000 live blocks, just after growth too.

use super::{Table, alone};
use crate::testing::{Random, TestHeap};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::layout::slot;
use std::collections::HashMap;
use std::eprintln;
use std::vec::Vec;

/// An allocator that places blocks as glibc does: chunks of a multiple of 16 bytes with 8 of them for itself,
/// freed ones reused by size, last in first out; large ones in mappings of their own.
struct Allocator {
    top: u64,
    mapped: u64,
    free: HashMap<u64, Vec<u64>>,
}

impl Allocator {
    const HEAP: u64 = 0x5555_5557_92a0;
    const MAP_THRESHOLD: u64 = 128 << 10;

    fn new() -> Allocator {
        Allocator { top: Self::HEAP, mapped: 0x7ffe_0000_0000, free: HashMap::new() }
    }
    fn chunk(size: u64) -> u64 {
        (size + 8).next_multiple_of(16).max(32)
    }
    fn allocate(&mut self, size: u64) -> u64 {
        let chunk = Self::chunk(size);
        if chunk >= Self::MAP_THRESHOLD {
            self.mapped -= (size + 16).next_multiple_of(4096);
            return self.mapped + 16;
        }
        if let Some(address) = self.free.get_mut(&chunk).and_then(Vec::pop) {
            return address;
        }
        let address = self.top;
        self.top += chunk;
        address
    }
    fn free(&mut self, address: u64, size: u64) {
        if Self::chunk(size) < Self::MAP_THRESHOLD {
            self.free.entry(Self::chunk(size)).or_default().push(address);
        }
    }
}

struct Run<'a> {
    heap: &'a TestHeap,
    allocator: Allocator,
    random: Random,
    live: Vec<(u64, u64)>,
    most_live: usize,
    /// Highest bytes per block seen, and with how many blocks.
    worst: (f64, usize),
}

impl<'a> Run<'a> {
    fn new(heap: &'a TestHeap) -> Run<'a> {
        Run {
            heap,
            allocator: Allocator::new(),
            random: Random::new(42),
            live: Vec::new(),
            most_live: 0,
            worst: (0.0, 0),
        }
    }

    /// Memory is not given back when blocks go, so the cost is that per block at the highest number so far.
    fn allocate(&mut self, size: u64) {
        let address = self.allocator.allocate(size);
        assert!(Table(self.heap).insert(address, size as u32));
        self.live.push((address, size));
        self.most_live = self.most_live.max(self.live.len());
        if self.live.len() == self.most_live && self.live.len() >= 100_000 {
            let taken = self.heap.taken();
            let cost = taken as f64 / self.live.len() as f64;
            if cost > self.worst.0 {
                self.worst = (cost, self.live.len());
            }
        }
    }

    fn free_any(&mut self) {
        let index = self.random.below(self.live.len() as u64) as usize;
        let (address, size) = self.live.swap_remove(index);
        Table(self.heap).find(address, slot::HEAP).expect("a live block").remove();
        self.allocator.free(address, size);
    }

    fn finish(self, name: &str) {
        let (cost, live) = self.worst;
        eprintln!("{name}: at most {cost:.1} bytes per block, at {live} of {}", self.most_live);
        assert!(self.most_live >= 100_000);
        assert!(cost <= 32.0, "{name}: {cost:.1} bytes per block at {live}");
    }
}

/// Grows to `blocks` live blocks, freeing one after `free_share` in a hundred allocations.
fn grow(run: &mut Run<'_>, blocks: usize, free_share: u64, size: impl Fn(&mut Random) -> u64) {
    while run.live.len() < blocks {
        let size = size(&mut run.random);
        run.allocate(size);
        if run.random.below(100) < free_share {
            run.free_any();
        }
    }
}

fn bound(name: &str, size: impl Fn(&mut Random) -> u64 + Copy) {
    let _turn = alone();
    for (how, free_share) in [("growing only", 0), ("growing under churn", 60)] {
        let heap = TestHeap::new(256 << 20);
        let mut run = Run::new(&heap);
        grow(&mut run, 250_000, free_share, size);
        run.finish(&std::format!("{name}, {how}"));
    }
}

#[test]
fn blocks_of_16_to_1039_bytes_cost_at_most_32_bytes_each() {
    bound("16..1039", |random| 16 + random.below(1024));
}

#[test]
fn small_blocks_cost_at_most_32_bytes_each() {
    bound("32", |_| 32);
    bound("16", |_| 16);
}

#[test]
fn blocks_of_1000_bytes_cost_at_most_32_bytes_each() {
    bound("1000", |_| 1000);
}

#[test]
fn a_mix_as_of_a_real_program_costs_at_most_32_bytes_per_block() {
    bound("mostly small, some large", |random| match random.below(1000) {
        0 => 200_000 + random.below(100_000),
        1..=19 => 4_000 + random.below(60_000),
        20..=199 => 128 + random.below(2_000),
        _ => 8 + random.below(120),
    });
}

#[test]
fn a_mix_that_changes_costs_at_most_32_bytes_per_block() {
    let _turn = alone();
    let heap = TestHeap::new(256 << 20);
    let mut run = Run::new(&heap);
    for phase in 0..8usize {
        let blocks = 100_000 + phase * 20_000;
        let size = if phase.is_multiple_of(2) { 24 } else { 900 };
        grow(&mut run, blocks, 20, |random| size + random.below(32));
    }
    run.finish("small and large by turns");
    let heap = TestHeap::new(256 << 20);
    let mut run = Run::new(&heap);
    grow(&mut run, 60_000, 0, |_| 2_000);
    grow(&mut run, 300_000, 0, |_| 16);
    run.finish("large, then small");
    let heap = TestHeap::new(256 << 20);
    let mut run = Run::new(&heap);
    grow(&mut run, 100_000, 0, |_| 16);
    grow(&mut run, 300_000, 0, |_| 2_000);
    run.finish("small, then large");
}

/// A program that frees much and reuses it does not make the table grow.
#[test]
fn memory_does_not_grow_with_time() {
    let _turn = alone();
    let heap = TestHeap::new(256 << 20);
    let mut run = Run::new(&heap);
    let churn = |run: &mut Run<'_>| {
        for _ in 0..100_000 {
            run.free_any();
            let size = 16 + run.random.below(500);
            run.allocate(size);
        }
        heap.file.superblock().next.load(Relaxed)
    };
    grow(&mut run, 100_000, 0, |random| 16 + random.below(500));
    let first = churn(&mut run);
    for _ in 0..4 {
        churn(&mut run);
    }
    let last = churn(&mut run);
    assert!(last <= first + first / 4, "from {first} to {last} bytes");
}
