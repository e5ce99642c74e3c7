//! Who holds every block: kept in four bytes each, so that it can outlive the memory in which it was found.

use crate::chains::{Origin, ROOT, Search, UNSEEN};
use crate::graph::{Graph, Hand};
use crate::scan::{Heap, Options, prepare};
use std::collections::HashSet;
use std::ops::Range;

/// The pointers between blocks that a scan has found.
pub struct Pointers<'a> {
    heap: Heap<'a>,
    options: Options,
    graph: Graph,
    /// Whether some blocks are held by interior pointers alone.
    has_possible: bool,
}

/// Which block or root leads to each block, nearest to the roots first.
///
/// Takes four bytes for each block, and twelve more for each to which a root leads directly. Needs neither the memory nor
/// the pointers in which it was found.
#[derive(Debug, Clone, Default)]
pub struct Holders {
    parents: Vec<u32>,
    /// By block; see [`code`].
    rooted: Vec<u32>,
    origins: Vec<u64>,
}

/// How a block is reached: a root and the blocks from there on, the last of which is the one asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// Where it begins.
    pub origin: Origin,
    /// Indices of blocks.
    pub blocks: Vec<usize>,
}

/// The pointer from one block to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Where in the holder it lies.
    pub field: u64,
    /// The pointer.
    pub pointer: u64,
}

/// An origin in eight bytes: addresses are lower than these.
const WORD: u64 = 1 << 63;
const BLOCK: u64 = u64::MAX;

fn code(origin: Origin) -> u64 {
    match origin {
        Origin::Memory(address) => address & !WORD,
        Origin::Word(number) => WORD | number as u64,
        Origin::Block => BLOCK,
    }
}

fn origin(code: u64) -> Origin {
    match code {
        BLOCK => Origin::Block,
        word if word & WORD != 0 => Origin::Word((word & !WORD) as usize),
        address => Origin::Memory(address),
    }
}

impl<'a> Pointers<'a> {
    pub(crate) fn new(heap: Heap<'a>, options: Options, graph: Graph, has_possible: bool) -> Pointers<'a> {
        Pointers { heap, options, graph, has_possible }
    }

    /// Who holds the wanted blocks, or, if none are named, every block.
    ///
    /// As in [`holders`](crate::holders), a reachable block is held by pointers that make it reachable, and only where
    /// there are none do other interior pointers count. Registers and roots in the `weak` ranges, which ascend, count only
    /// for what nothing else leads to: stacks, whose pointers come and go.
    pub fn holders(&self, wanted: Option<&[usize]>, weak: &[Range<u64>]) -> Holders {
        let known = |index: &usize| *index < self.heap.blocks.len();
        let wanted: Option<HashSet<usize>> =
            wanted.map(|wanted| wanted.iter().copied().filter(known).collect());
        let wanted = wanted.as_ref();
        if wanted.is_some_and(HashSet::is_empty) {
            return Holders::default();
        }
        let scan = prepare(&self.heap, &self.options);
        let hand = Hand::default();
        let mut search = Search { heap: &self.heap, scan: &scan, graph: &self.graph, interior: false, hand };
        let mut rooted: Vec<(u32, u64)> = Vec::new();
        let is_weak = |origin| match origin {
            Origin::Memory(address) => {
                let behind = weak.partition_point(|range| range.start <= address);
                let range = behind.checked_sub(1).and_then(|at| weak.get(at));
                range.is_some_and(|range| address < range.end)
            }
            Origin::Word(_) => true,
            Origin::Block => false,
        };
        let parents =
            search.breadth_first(wanted, usize::MAX, self.has_possible, is_weak, |block, origin| {
                rooted.push((block as u32, code(origin)));
            });
        rooted.sort_unstable();
        let (rooted, origins) = rooted.into_iter().unzip();
        Holders { parents, rooted, origins }
    }

    /// For each pair of a holder and what it holds, where in the holder the pointer lies; one to the start if there is
    /// any.
    pub fn links(&self, pairs: &[(usize, usize)]) -> Vec<Option<Link>> {
        let scan = prepare(&self.heap, &self.options);
        let mut search = Search {
            heap: &self.heap,
            scan: &scan,
            graph: &self.graph,
            interior: false,
            hand: Hand::default(),
        };
        let mut link = |&(holder, target): &(usize, usize)| {
            let start = self.heap.blocks.get(holder)?.address;
            [false, true].into_iter().find_map(|interior| {
                search.interior = interior;
                let (at, pointer) = search.field(holder, target)?;
                Some(Link { field: at.checked_sub(start)?, pointer })
            })
        };
        pairs.iter().map(&mut link).collect()
    }
}

impl Holders {
    /// Whether anything was found that leads to a block.
    pub fn is_held(&self, index: usize) -> bool {
        self.parents.get(index).is_some_and(|&parent| parent != UNSEEN)
    }

    /// The block that leads to a block; none if a root does, or nothing.
    pub fn holder(&self, index: usize) -> Option<usize> {
        let parent = *self.parents.get(index)?;
        (parent != UNSEEN && parent != ROOT).then_some(parent as usize)
    }

    /// How a block is reached.
    pub fn path(&self, index: usize) -> Option<Path> {
        let mut blocks = vec![index];
        let mut first = index;
        while let Some(parent) = self.holder(first) {
            // Cannot be, but a ring must not take all memory.
            if blocks.len() > self.parents.len() {
                return None;
            }
            blocks.push(parent);
            first = parent;
        }
        let at = self.rooted.binary_search(&u32::try_from(first).ok()?).ok()?;
        blocks.reverse();
        Some(Path { origin: origin(*self.origins.get(at)?), blocks })
    }
}
