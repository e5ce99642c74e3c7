//! Which blocks nothing points to any more: blocks, roots and memory in, memcheck's four kinds of leak out. No I/O.

mod blocks;
mod chains;
mod cliques;
mod findings;
mod graph;
mod held;
mod heuristics;
mod lookup;
mod mark;
mod ranges;
mod scan;
mod threads;
mod words;

pub use blocks::{Block, BlocksBuilder};
pub use chains::{Chain, Hop, Origin, holders};
pub use findings::{Count, Findings};
pub use held::{Holders, Link, Path, Pointers};
pub use heuristics::{Heuristic, Heuristics};
pub use lookup::{Blocks, Iter};
pub use scan::{Heap, OnProgress, Options, Progress, Step, scan, scan_keeping};

use std::ops::Range;

/// Memcheck's kinds of leak (memcheck manual, 4.2.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A chain of pointers to starts of blocks leads from a root to it.
    Reachable,
    /// Every chain from a root has a pointer into the middle of a block.
    Possible,
    /// Nothing but lost blocks leads to it.
    Indirect,
    /// Nothing leads to it (or it was chosen to stand for a cycle).
    Definite,
}

/// Where pointers are looked for first.
#[derive(Debug, Clone, Default)]
pub struct Roots {
    /// Memory: aligned words in it are looked at. Ranges may overlap heap memory; words in blocks and in the heap
    /// areas handed in beside them are not roots.
    pub ranges: Vec<Range<u64>>,
    /// Values: registers and such.
    pub words: Vec<u64>,
    /// Indices of blocks that are never leaks whatever points to them (the C library's own, suppressed ones): they
    /// are reachable, and so is what hangs off them.
    pub blocks: Vec<usize>,
}
