//! Who holds a block: the shortest chain of pointers that leads from a root to it.

use crate::graph::{Edge, Edges, Graph, Hand, Scan};
use crate::mark::{root_ranges, words_outside};
use crate::scan::{Heap, Options, prepare};
use crate::words::places;
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Where a chain begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The word at this address, in a root range.
    Memory(u64),
    /// This one of [`crate::Roots::words`].
    Word(usize),
    /// The first block is itself a root: one of [`crate::Roots::blocks`].
    Block,
}

/// A block of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The block's index.
    pub block: usize,
    /// How far into the block the pointer to it points.
    pub into: u64,
    /// Where in the block the pointer to the next one lies; none in the last block, which is the one asked for.
    pub field: Option<u64>,
}

/// A chain of pointers from a root to a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Where it begins.
    pub origin: Origin,
    /// The blocks on it; the last is the one asked for.
    pub hops: Vec<Hop>,
}

/// No block: it was not seen, or a root leads to it. Blocks have fewer bits.
pub(crate) const UNSEEN: u32 = u32::MAX;
pub(crate) const ROOT: u32 = u32::MAX - 1;

/// For each wanted block, the shortest chain of at most `max_depth` blocks that leads to it; none if nothing does.
///
/// A reachable block's chain consists of pointers that make it reachable; only where there is none (in short enough
/// a chain) do other interior pointers count. Reads memory about once, whatever is wanted, and then the blocks on the
/// chains.
pub fn holders(heap: &Heap<'_>, options: &Options, wanted: &[usize], max_depth: usize) -> Vec<Option<Chain>> {
    let scan = prepare(heap, options);
    let graph = Graph::build(&scan, options.threads.max(1), &|_| ());
    let mut chains = vec![None; wanted.len()];
    for interior in [false, true].into_iter().filter(|_| max_depth > 0) {
        let missing =
            wanted.iter().zip(&chains).filter(|(_, chain)| chain.is_none()).map(|(&index, _)| index);
        let missing: HashSet<usize> = missing.filter(|&index| index < heap.blocks.len()).collect();
        if missing.is_empty() {
            break;
        }
        let mut search = Search { heap, scan: &scan, graph: &graph, interior, hand: Hand::default() };
        let parents = search.breadth_first(Some(&missing), max_depth, false, |_| false, |_, _| ());
        let mut found = search.chains(&parents, &missing);
        for (chain, index) in chains.iter_mut().zip(wanted) {
            if chain.is_none() {
                *chain = found.get_mut(index).cloned();
            }
        }
    }
    chains
}

pub(crate) struct Search<'a> {
    pub(crate) heap: &'a Heap<'a>,
    pub(crate) scan: &'a Scan<'a>,
    pub(crate) graph: &'a Graph,
    /// Whether every interior pointer counts.
    pub(crate) interior: bool,
    pub(crate) hand: Hand,
}

/// What a search has seen.
struct Seen<'a> {
    parents: Vec<u32>,
    wanted: Option<&'a HashSet<usize>>,
    missing: usize,
}

impl Seen<'_> {
    /// Sees a block; says whether it was the first time.
    #[inline]
    fn see(&mut self, target: usize, parent: u32, level: &mut Vec<u32>) -> bool {
        let Some(seen) = self.parents.get_mut(target).filter(|seen| **seen == UNSEEN) else { return false };
        *seen = parent;
        level.push(target as u32);
        self.missing -= usize::from(self.wanted.is_some_and(|wanted| wanted.contains(&target)));
        true
    }
}

impl Search<'_> {
    fn counts(&self, edge: Edge) -> bool {
        self.interior || !edge.is_interior()
    }

    /// Each root and the block to which it leads.
    fn roots(&mut self, mut take: impl FnMut(Origin, u64, usize)) {
        let mut hand = std::mem::take(&mut self.hand);
        for range in root_ranges(self.heap.areas, self.heap.roots) {
            words_outside(self.scan, &range, &mut hand, |at, pointer, edge| {
                if self.counts(edge) {
                    take(Origin::Memory(at), pointer, edge.target());
                }
            });
        }
        for (number, &word) in self.heap.roots.words.iter().enumerate() {
            let pointer = self.scan.reader.pointer(word);
            if let Some(edge) = self.scan.edge(pointer, &mut hand.scratch).filter(|&edge| self.counts(edge)) {
                take(Origin::Word(number), pointer, edge.target());
            }
        }
        for &index in &self.heap.roots.blocks {
            if let Some(block) = self.heap.blocks.get(index) {
                take(Origin::Block, block.address, index);
            }
        }
        self.hand = hand;
    }

    /// The block that leads to each block that was seen, nearest to the roots first, until all wanted ones were (all
    /// blocks, if none is named). Roots that are `weak` count only for what no other leads to. With `also_interior`, what is
    /// still missing is then looked for over interior pointers, too. `rooted` is told of each block to which a root
    /// leads, and of the first such root.
    pub(crate) fn breadth_first(
        &mut self,
        wanted: Option<&HashSet<usize>>,
        max_depth: usize,
        also_interior: bool,
        weak: impl Fn(Origin) -> bool,
        mut rooted: impl FnMut(usize, Origin),
    ) -> Vec<u32> {
        let mut seen = Seen {
            parents: vec![UNSEEN; self.heap.blocks.len()],
            wanted,
            missing: wanted.map_or(usize::MAX, HashSet::len),
        };
        let mut level: Vec<u32> = Vec::new();
        let mut weakly: Vec<(usize, Origin)> = Vec::new();
        self.roots(|origin, _, target| {
            if weak(origin) {
                weakly.push((target, origin));
            } else if seen.see(target, ROOT, &mut level) {
                rooted(target, origin);
            }
        });
        self.levels(&mut seen, level, max_depth);
        let mut level = Vec::new();
        for (target, origin) in weakly {
            if seen.see(target, ROOT, &mut level) {
                rooted(target, origin);
            }
        }
        self.levels(&mut seen, level, max_depth);
        if also_interior && seen.missing > 0 {
            self.interior = true;
            self.beyond(&mut seen, weak, rooted);
        }
        seen.parents
    }

    /// Goes on over interior pointers from all that was seen. Each block's holder was seen before it, so there are no
    /// rings.
    fn beyond(
        &mut self,
        seen: &mut Seen<'_>,
        weak: impl Fn(Origin) -> bool,
        mut rooted: impl FnMut(usize, Origin),
    ) {
        let before: Vec<u64> = seen
            .parents
            .chunks(64)
            .map(|part| part.iter().rev().fold(0, |bits, &parent| bits << 1 | u64::from(parent != UNSEEN)))
            .collect();
        let mut level: Vec<u32> = Vec::new();
        let mut weakly: Vec<(usize, Origin)> = Vec::new();
        self.roots(|origin, _, target| {
            if weak(origin) {
                if seen.parents.get(target) == Some(&UNSEEN) {
                    weakly.push((target, origin));
                }
            } else if seen.see(target, ROOT, &mut level) {
                rooted(target, origin);
            }
        });
        for (at, bits) in before.into_iter().enumerate() {
            let mut bits = bits;
            while bits != 0 && seen.missing > 0 {
                self.targets(at * 64 + bits.trailing_zeros() as usize, seen, &mut level);
                bits &= bits - 1;
            }
        }
        self.levels(seen, level, usize::MAX);
        let mut level = Vec::new();
        for (target, origin) in weakly {
            if seen.see(target, ROOT, &mut level) {
                rooted(target, origin);
            }
        }
        self.levels(seen, level, usize::MAX);
    }

    /// Sees what a block leads to.
    fn targets(&mut self, index: usize, seen: &mut Seen<'_>, next: &mut Vec<u32>) {
        match self.graph.edges(index) {
            Edges::Kept(kept) => {
                for edge in kept.iter().map(|&edge| Edge::from(edge)).filter(|&edge| self.counts(edge)) {
                    seen.see(edge.target(), index as u32, next);
                }
            }
            Edges::Unknown => {
                let range = self.range(index);
                let interior = self.interior;
                self.scan.edges_in(&range, &mut self.hand, |edge| {
                    if interior || !edge.is_interior() {
                        seen.see(edge.target(), index as u32, next);
                    }
                });
            }
        }
    }

    /// Goes on from the blocks of one level.
    fn levels(&mut self, seen: &mut Seen<'_>, mut level: Vec<u32>, max_depth: usize) {
        for _ in 1..max_depth {
            let mut next = Vec::new();
            for index in std::mem::take(&mut level) {
                if seen.missing == 0 {
                    return;
                }
                self.targets(index as usize, seen, &mut next);
            }
            level = next;
            if level.is_empty() {
                break;
            }
        }
    }

    fn range(&self, index: usize) -> Range<u64> {
        self.heap
            .blocks
            .get(index)
            .map_or(0..0, |block| block.address..block.address.saturating_add(block.size))
    }

    fn chains(&mut self, parents: &[u32], wanted: &HashSet<usize>) -> HashMap<usize, Chain> {
        let mut paths: Vec<(usize, Vec<usize>)> = Vec::new();
        for &index in wanted {
            let mut path = vec![index];
            let mut parent = parents.get(index).copied().unwrap_or(UNSEEN);
            // Parents are nearer to the roots, so this ends.
            while parent != UNSEEN && parent != ROOT {
                path.push(parent as usize);
                parent = parents.get(parent as usize).copied().unwrap_or(UNSEEN);
            }
            if parent == ROOT {
                path.reverse();
                paths.push((index, path));
            }
        }
        let firsts: HashSet<usize> = paths.iter().filter_map(|(_, path)| path.first().copied()).collect();
        let mut origins: HashMap<usize, (Origin, u64)> = HashMap::new();
        self.roots(|origin, pointer, target| {
            if firsts.contains(&target) {
                origins.entry(target).or_insert((origin, pointer));
            }
        });
        // Chains share blocks, and a large one can hold all that is wanted: each holder is read once.
        let mut pairs: HashMap<usize, HashSet<usize>> = HashMap::new();
        for pair in paths.iter().flat_map(|(_, path)| path.windows(2)) {
            if let &[holder, target] = pair {
                pairs.entry(holder).or_default().insert(target);
            }
        }
        let fields: HashMap<_, _> =
            pairs.into_iter().map(|(holder, targets)| (holder, self.fields(holder, &targets))).collect();
        let mut chains = HashMap::new();
        for (index, path) in paths {
            let Some(&(origin, mut pointer)) = path.first().and_then(|first| origins.get(first)) else {
                continue;
            };
            let mut hops = Vec::with_capacity(path.len());
            for (at, &block) in path.iter().enumerate() {
                let start = self.range(block).start;
                let mut hop = Hop { block, into: pointer.saturating_sub(start), field: None };
                if let Some(&next) = path.get(at + 1) {
                    // Memory that is not frozen may have changed since; then the chain is gone.
                    let found = fields.get(&block).and_then(|fields| fields.get(&next));
                    let Some(&(address, found)) = found else { break };
                    hop.field = Some(address - start);
                    pointer = found;
                }
                hops.push(hop);
            }
            if hops.len() == path.len() {
                chains.insert(index, Chain { origin, hops });
            }
        }
        chains
    }

    /// Where in `holder` the first pointer to `target` lies, and that pointer; one to its start if there is any.
    pub(crate) fn field(&mut self, holder: usize, target: usize) -> Option<(u64, u64)> {
        self.fields(holder, &HashSet::from([target])).remove(&target)
    }

    /// Where in `holder` the first pointer to each target lies, and that pointer; one to its start if there is any.
    fn fields(&mut self, holder: usize, targets: &HashSet<usize>) -> HashMap<usize, (u64, u64)> {
        let mut fields: HashMap<usize, (u64, u64)> = HashMap::new();
        let mut hand = std::mem::take(&mut self.hand);
        self.scan.reader.pieces(&self.range(holder), &mut hand.buffer, |at, bytes| {
            for (at, pointer) in places(at).zip(self.scan.reader.pointers(bytes)) {
                let edge = self.scan.edge(pointer, &mut hand.scratch);
                let Some(edge) = edge.filter(|&edge| self.counts(edge) && targets.contains(&edge.target()))
                else {
                    continue;
                };
                let best = fields.entry(edge.target()).or_insert((at, pointer));
                // Pointers to a block are never below its start.
                if pointer < best.1 && pointer == self.range(edge.target()).start {
                    *best = (at, pointer);
                }
            }
        });
        self.hand = hand;
        fields
    }
}
