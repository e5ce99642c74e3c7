//! The blocks of a heap: collected in any order, kept by address.

use crate::lookup::{Blocks, Indexer};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

impl Block {
    /// One past the last address that belongs to the block. One of no bytes owns its first address, as in memcheck.
    pub(crate) fn end(self) -> u64 {
        self.address.saturating_add(self.size.max(1))
    }
}

/// Packed: address in units of 8 bytes above, size below. What does not fit goes to `odd`.
const SIZE_BITS: u32 = 20;
const ADDRESS_BITS: u32 = 47;

/// Collected in chunks: growing one vector by doubling would need three times its memory for a moment.
const CHUNK: usize = 1 << 16;

/// With more ascending runs than this, chunks are sorted one by one instead of merging the runs as they came.
const MANY_RUNS: usize = 64;

/// Collects blocks in any order; cheapest when they come in few ascending runs.
#[derive(Debug, Clone, Default)]
pub struct BlocksBuilder {
    chunks: Vec<Vec<u64>>,
    /// Where an ascending run starts, as a position over all chunks; only the first few are kept.
    runs: Vec<usize>,
    last: u64,
    odd: Vec<Block>,
}

impl BlocksBuilder {
    /// Adds a block. One at address 0 is ignored: no pointer leads there.
    pub fn push(&mut self, block: Block) {
        if block.address == 0 {
            return;
        }
        if !block.address.is_multiple_of(8)
            || block.address >> ADDRESS_BITS != 0
            || block.size >> SIZE_BITS != 0
        {
            self.odd.push(block);
            return;
        }
        let packed = (block.address >> 3) << SIZE_BITS | block.size;
        if (packed < self.last || self.chunks.is_empty()) && self.runs.len() <= MANY_RUNS {
            self.runs.push(self.packed_len());
        }
        self.last = packed;
        match self.chunks.last_mut() {
            Some(chunk) if chunk.len() < CHUNK => chunk.push(packed),
            _ => {
                // The first chunk grows as needed, so that few blocks need little.
                let mut chunk = if self.chunks.is_empty() { Vec::new() } else { Vec::with_capacity(CHUNK) };
                chunk.push(packed);
                self.chunks.push(chunk);
            }
        }
    }

    fn packed_len(&self) -> usize {
        let full = self.chunks.len().saturating_sub(1) * CHUNK;
        full + self.chunks.last().map_or(0, Vec::len)
    }

    /// All blocks pushed, sorted. Of several at one address the largest stays; else one that starts inside the one
    /// before it is dropped.
    pub fn finish(mut self) -> Blocks {
        let total = self.packed_len();
        let mut indexer = Indexer::with_capacity(total + self.odd.len());
        self.odd.sort_unstable();
        let mut odd = std::mem::take(&mut self.odd).into_iter().peekable();
        Merge::new(self, total).for_each(|packed| {
            let block = Block { address: packed >> SIZE_BITS << 3, size: packed & ((1 << SIZE_BITS) - 1) };
            while let Some(earlier) = odd.next_if(|odd| *odd < block) {
                indexer.push(earlier);
            }
            indexer.push(block);
        });
        for block in odd {
            indexer.push(block);
        }
        indexer.finish()
    }
}

/// Merges ascending runs, and gives each chunk's memory back as soon as it is used up.
struct Merge {
    chunks: Vec<Vec<u64>>,
    /// How many of a chunk's items are still to come.
    left: Vec<usize>,
    /// Each run's next position and end.
    runs: Vec<(usize, usize)>,
}

impl Merge {
    fn new(builder: BlocksBuilder, total: usize) -> Merge {
        let BlocksBuilder { mut chunks, mut runs, .. } = builder;
        if runs.len() > MANY_RUNS {
            chunks.iter_mut().for_each(|chunk| chunk.sort_unstable());
            runs = (0..chunks.len()).map(|index| index * CHUNK).collect();
        }
        let ends = runs.iter().skip(1).copied().chain([total]);
        let runs = runs.iter().copied().zip(ends).collect();
        let left = chunks.iter().map(Vec::len).collect();
        Merge { chunks, left, runs }
    }

    fn head(&self, run: usize) -> Option<u64> {
        let &(at, end) = self.runs.get(run)?;
        if at >= end {
            return None;
        }
        self.chunks.get(at / CHUNK)?.get(at % CHUNK).copied()
    }

    fn advance(&mut self, run: usize) {
        let Some((at, _)) = self.runs.get_mut(run) else { return };
        let chunk = *at / CHUNK;
        *at += 1;
        if let Some(left) = self.left.get_mut(chunk) {
            *left -= 1;
            if *left == 0
                && let Some(used_up) = self.chunks.get_mut(chunk)
            {
                *used_up = Vec::new();
            }
        }
    }

    fn for_each(mut self, mut take: impl FnMut(u64)) {
        let mut heads: BinaryHeap<_> =
            (0..self.runs.len()).filter_map(|run| Some(Reverse((self.head(run)?, run)))).collect();
        while let Some(Reverse((mut head, run))) = heads.pop() {
            // Runs of different arenas rarely interleave: stay with one while it is the lowest.
            let limit = heads.peek().map_or(u64::MAX, |Reverse((next, _))| *next);
            loop {
                take(head);
                self.advance(run);
                match self.head(run) {
                    Some(next) if next <= limit => head = next,
                    Some(next) => {
                        heads.push(Reverse((next, run)));
                        break;
                    }
                    None => break,
                }
            }
        }
    }
}
