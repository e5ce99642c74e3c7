//! The scan: roots, graph, marks, and what is lost.

use crate::findings::Findings;
use crate::graph::{Graph, Scan};
use crate::held::Pointers;
use crate::heuristics::{Heuristics, Judge};
use crate::mark::{Marks, root_ranges};
use crate::words::Reader;
use crate::{Blocks, Kind, Roots, cliques};
use leakscope_target::{Mapping, Memory};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// A heap to be scanned, and what leads to it.
#[derive(Clone, Copy)]
pub struct Heap<'a> {
    /// The process's memory.
    pub memory: &'a dyn Memory,
    /// The live blocks.
    pub blocks: &'a Blocks,
    /// Where the allocator keeps blocks: words there are no roots, whether in a live block or not.
    pub areas: &'a [Range<u64>],
    /// The process's mappings: tell what can be read, and where tables of virtual functions and code can be. Without
    /// any, everything is tried, and no such table is found.
    pub mappings: &'a [Mapping],
    /// What leads to blocks.
    pub roots: &'a Roots,
}

/// How to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Applied to each word before it is taken as a pointer, for programs that keep tags in pointers.
    pub pointer_mask: u64,
    /// Which interior pointers count like one to the start.
    pub heuristics: Heuristics,
    /// Threads to scan with.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Options { pointer_mask: u64::MAX, heuristics: Heuristics::ALL, threads }
    }
}

/// A part of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Root memory is read; counted in bytes.
    Roots,
    /// Blocks are read; counted in blocks.
    Blocks,
    /// Pointers are followed, in memory of this process; not counted.
    Marks,
    /// Lost blocks are grouped; not counted.
    Lost,
}

/// How far a scan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The part it is in.
    pub step: Step,
    /// How much of it is done.
    pub done: u64,
    /// How much there is to do; 0 if not counted.
    pub total: u64,
}

/// Told now and then how far a scan is, by any thread.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Sync);

/// Finds the kind of every block.
pub fn scan(heap: &Heap<'_>, options: &Options, progress: Option<OnProgress<'_>>) -> Findings {
    scan_keeping(heap, options, progress).0
}

/// [`scan`], which keeps the pointers that it found (up to ten bytes for each block), to tell who holds a block without
/// reading memory once more.
pub fn scan_keeping<'a>(
    heap: &Heap<'a>,
    options: &Options,
    progress: Option<OnProgress<'_>>,
) -> (Findings, Pointers<'a>) {
    let threads = options.threads.max(1);
    let tell = |step, done, total| {
        if let Some(progress) = progress {
            progress(Progress { step, done, total });
        }
    };
    let words = prepare(heap, options);
    let marks = Marks::new(heap.blocks.len());

    let ranges = root_ranges(heap.areas, heap.roots);
    let total = ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add);
    let done = AtomicU64::new(0);
    marks.roots(&words, ranges, heap.roots, threads, &|bytes| {
        tell(Step::Roots, done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    });

    let total = heap.blocks.len() as u64;
    let done = AtomicU64::new(0);
    let graph = Graph::build(&words, threads, &|blocks| {
        let blocks = blocks as u64;
        tell(Step::Blocks, (done.fetch_add(blocks, Ordering::Relaxed) + blocks).min(total), total);
    });

    tell(Step::Marks, 0, 0);
    marks.reachable(&words, &graph, threads);
    marks.possible(&words, &graph, threads);

    tell(Step::Lost, 0, 0);
    let mut states: Vec<u8> = marks.states.into_iter().map(AtomicU8::into_inner).collect();
    let groups = cliques::sort_out(&words, &graph, &mut states);
    let findings = Findings::new(heap.blocks, states, groups);
    let has_possible = findings.count(Kind::Possible).blocks > 0;
    let pointers = Pointers::new(*heap, options.clone(), graph, has_possible);
    (findings, pointers)
}

pub(crate) fn prepare<'a>(heap: &Heap<'a>, options: &Options) -> Scan<'a> {
    let reader = Reader::new(heap.memory, heap.mappings, options.pointer_mask);
    let judge = Judge::new(heap.memory, heap.blocks, heap.mappings, options.heuristics);
    Scan::new(heap.blocks, reader, judge)
}
