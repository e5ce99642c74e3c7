//! Marks what roots lead to, on several threads.
//!
//! Two closures, each of which scans a block at most once: first over pointers to starts (and those that heuristics
//! count as such), which yields the reachable blocks, while the interior pointers in these note candidates; then over
//! all pointers from the candidates that stayed unreached, which yields the possible ones. Since both are least
//! fixpoints, the result does not depend on the order in which threads get there.

use crate::Roots;
use crate::graph::{Edge, Edges, Graph, Hand, Scan};
use crate::heuristics::zeroes;
use crate::ranges;
use crate::words::places;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Bits of a block's state.
pub(crate) const REACHABLE: u8 = 1;
pub(crate) const POSSIBLE: u8 = 1 << 1;
/// A reachable block or a root points to its start; if not, the heuristics that made it reachable follow.
pub(crate) const START: u8 = 1 << 2;
pub(crate) const HEURISTIC: u8 = 1 << 3;
/// Set while lost blocks are sorted out.
pub(crate) const INDIRECT: u8 = 1 << 7;

/// What an edge from a reachable block does to its target, by [`Edge::class`].
const FROM_REACHABLE: [u8; 8] = [
    REACHABLE | START,
    POSSIBLE,
    REACHABLE | HEURISTIC,
    REACHABLE | HEURISTIC << 1,
    REACHABLE | HEURISTIC << 2,
    REACHABLE | HEURISTIC << 3,
    0,
    0,
];

/// Blocks taken from the stack at once: their cache misses overlap.
const BATCH: usize = 32;
/// Blocks on a thread's stack; more are noted in a bitmap to be found later.
const MAX_STACK: usize = 1 << 19;
/// A thread shares its stack from this size on if another has nothing to do.
const SHARE: usize = 256;
/// Words of the bitmap of pending blocks that a thread takes at once.
const STRIDE: usize = 64;
/// A large range is scanned in pieces of this size, so that all threads help.
const PIECE: u64 = 1 << 20;

pub(crate) struct Marks {
    pub states: Vec<AtomicU8>,
    /// Blocks to be scanned that are on no thread's stack.
    pending: Vec<AtomicU64>,
    overflowed: AtomicBool,
}

impl Marks {
    pub(crate) fn new(blocks: usize) -> Marks {
        Marks {
            states: zeroes(blocks),
            pending: zeroes(blocks.div_ceil(64)),
            overflowed: AtomicBool::new(false),
        }
    }

    fn defer(&self, index: usize) {
        if let Some(word) = self.pending.get(index / 64) {
            word.fetch_or(1 << (index % 64), Relaxed);
        }
    }

    /// Takes an edge from a root or a reachable block; says whether its target must be scanned.
    #[inline]
    fn reach(&self, edge: Edge) -> bool {
        let bits = FROM_REACHABLE[edge.class() & 7];
        let Some(state) = self.states.get(edge.target()) else { return false };
        let old = state.load(Relaxed);
        if old & bits == bits {
            return false;
        }
        let old = state.fetch_or(bits, Relaxed);
        bits & REACHABLE != 0 && old & REACHABLE == 0
    }

    /// Takes an edge from a possible block.
    #[inline]
    fn suspect(&self, edge: Edge) -> bool {
        let Some(state) = self.states.get(edge.target()) else { return false };
        state.load(Relaxed) & (REACHABLE | POSSIBLE) == 0
            && state.fetch_or(POSSIBLE, Relaxed) & (REACHABLE | POSSIBLE) == 0
    }

    /// Marks what roots point to; their words lie in `ranges` ([`root_ranges`]).
    pub(crate) fn roots(
        &self,
        scan: &Scan<'_>,
        ranges: Vec<Range<u64>>,
        roots: &Roots,
        threads: usize,
        done: &(dyn Fn(u64) + Sync),
    ) {
        let mut hand = Hand::default();
        let pointers = roots.words.iter().map(|&word| scan.reader.pointer(word));
        let edges = pointers.filter_map(|pointer| scan.edge(pointer, &mut hand.scratch)).collect::<Vec<_>>();
        let starts = roots.blocks.iter().filter(|&&index| index < self.states.len());
        for edge in edges.into_iter().chain(starts.map(|&index| Edge::start(index))) {
            if self.reach(edge) {
                self.defer(edge.target());
            }
        }
        // Split only what can be read: ranges may be as large as the address space.
        let known: Option<Vec<_>> =
            ranges.iter().map(|range| Some(scan.reader.readable(range)?.collect::<Vec<_>>())).collect();
        let size = if known.is_some() { PIECE } else { u64::MAX };
        let pieces = Mutex::new(known.map_or(ranges, |known| known.concat()));
        crate::threads::run(threads, |_| {
            let mut hand = Hand::default();
            while let Some(piece) = split(&mut lock(&pieces), size) {
                words_outside(scan, &piece, &mut hand, |_, _, edge| {
                    if self.reach(edge) {
                        self.defer(edge.target());
                    }
                });
                done(piece.end - piece.start);
            }
        });
    }

    /// Marks what the blocks marked by the roots lead to, as reachable or as candidates for possible.
    pub(crate) fn reachable(&self, scan: &Scan<'_>, graph: &Graph, threads: usize) {
        self.traverse(scan, graph, threads, |edge| self.reach(edge));
    }

    /// Marks what the candidates that are not reachable lead to as possible.
    pub(crate) fn possible(&self, scan: &Scan<'_>, graph: &Graph, threads: usize) {
        for (index, state) in self.states.iter().enumerate() {
            if state.load(Relaxed) & (REACHABLE | POSSIBLE) == POSSIBLE {
                self.defer(index);
            }
        }
        self.traverse(scan, graph, threads, |edge| self.suspect(edge));
    }

    fn traverse(&self, scan: &Scan<'_>, graph: &Graph, threads: usize, mark: impl Fn(Edge) -> bool + Sync) {
        loop {
            let pool = Pool::default();
            let walk = Walk { marks: self, scan, graph, pool: &pool, next: AtomicUsize::new(0), mark: &mark };
            crate::threads::run(threads, |_| walk.work());
            if !self.overflowed.swap(false, Relaxed) {
                return;
            }
        }
    }
}

/// Where root words lie: those wholly in a root range that do not begin in a heap area.
pub(crate) fn root_ranges(heap_areas: &[Range<u64>], roots: &Roots) -> Vec<Range<u64>> {
    let up = |address: u64| address.checked_next_multiple_of(8).unwrap_or(!7);
    let areas = ranges::normalize(heap_areas.iter().map(|area| up(area.start)..up(area.end)));
    let all = ranges::normalize(roots.ranges.iter().map(|range| up(range.start)..range.end & !7));
    all.iter().flat_map(|range| ranges::without(&areas, range)).collect()
}

/// Hands over the aligned words of a range that point to blocks and do not begin in one: where each lies, the
/// pointer, its edge.
pub(crate) fn words_outside(
    scan: &Scan<'_>,
    range: &Range<u64>,
    hand: &mut Hand,
    mut take: impl FnMut(u64, u64, Edge),
) {
    let Hand { buffer, scratch, pointers, hits, .. } = hand;
    let mut found_at = Vec::new();
    pointers.clear();
    scan.reader.pieces(range, buffer, |at, bytes| {
        let end = at + bytes.len() as u64;
        let mut gap = |from: u64, to: u64| {
            let from = from.next_multiple_of(8);
            let to = to.next_multiple_of(8).min(end);
            let words = bytes.get((from - at) as usize..(to.max(from) - at) as usize).unwrap_or_default();
            for (place, pointer) in places(from).zip(scan.reader.pointers(words)) {
                if scan.may_hit(pointer) {
                    found_at.push(place);
                    pointers.push(pointer);
                }
            }
        };
        let mut from = at;
        let first = scan.blocks.first_ending_behind(at);
        for block in scan.blocks.iter_from(first).take_while(|block| block.address < end) {
            if block.address > from {
                gap(from, block.address);
            }
            from = block.end();
        }
        if from < end {
            gap(from, end);
        }
        hits.clear();
        scan.blocks.locate_all(pointers, hits);
        for ((place, pointer), hit) in found_at.drain(..).zip(pointers.drain(..)).zip(hits.drain(..)) {
            if let Some(hit) = hit {
                take(place, pointer, scan.edge_to(pointer, hit, scratch));
            }
        }
    });
}

/// Takes a piece off a list of ranges.
fn split(ranges: &mut Vec<Range<u64>>, size: u64) -> Option<Range<u64>> {
    let last = ranges.last_mut()?;
    if last.end - last.start <= size {
        return ranges.pop();
    }
    // Cut at multiples of the size, so that no word is cut in two.
    let middle = (last.start / size + 1) * size;
    let piece = last.start..middle;
    last.start = middle;
    Some(piece)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What threads share.
#[derive(Default)]
struct Pool {
    shared: Mutex<Shared>,
    wake: Condvar,
    /// Threads that wait for something to do.
    hungry: AtomicUsize,
}

#[derive(Default)]
struct Shared {
    stacks: Vec<Vec<u32>>,
    ranges: Vec<Range<u64>>,
    running: usize,
    idle: usize,
    finished: bool,
}

struct Walk<'a, M> {
    marks: &'a Marks,
    scan: &'a Scan<'a>,
    graph: &'a Graph,
    pool: &'a Pool,
    next: AtomicUsize,
    mark: &'a M,
}

enum Work {
    Stack(Vec<u32>),
    Range(Range<u64>),
}

impl<M: Fn(Edge) -> bool + Sync> Walk<'_, M> {
    fn work(&self) {
        {
            let mut shared = lock(&self.pool.shared);
            if shared.finished {
                return;
            }
            shared.running += 1;
        }
        let mut hand = Hand::default();
        let mut stack = Vec::new();
        loop {
            self.drain(&mut stack, &mut hand);
            if self.take_pending(&mut stack) {
                continue;
            }
            match self.wait() {
                Some(Work::Stack(given)) => stack = given,
                Some(Work::Range(range)) => {
                    self.scan.edges_in(&range, &mut hand, |edge| self.visit(edge, &mut stack));
                }
                None => return,
            }
        }
    }

    /// Takes the next stretch of pending blocks; false if there is none left.
    fn take_pending(&self, stack: &mut Vec<u32>) -> bool {
        let count = self.marks.pending.len();
        if self.next.load(Relaxed) >= count {
            return false;
        }
        let from = self.next.fetch_add(STRIDE, Relaxed);
        if from >= count {
            return false;
        }
        let words = self.marks.pending.iter().enumerate().skip(from).take(STRIDE);
        for (at, word) in words {
            if word.load(Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Relaxed);
            while bits != 0 {
                stack.push((at * 64) as u32 + bits.trailing_zeros());
                bits &= bits - 1;
            }
        }
        true
    }

    fn wait(&self) -> Option<Work> {
        let mut shared = lock(&self.pool.shared);
        shared.idle += 1;
        self.pool.hungry.fetch_add(1, Relaxed);
        loop {
            let work = match shared.stacks.pop() {
                Some(stack) => Some(Work::Stack(stack)),
                None => split(&mut shared.ranges, PIECE).map(Work::Range),
            };
            if work.is_some() {
                shared.idle -= 1;
                self.pool.hungry.fetch_sub(1, Relaxed);
                return work;
            }
            if shared.finished || shared.idle == shared.running {
                shared.finished = true;
                self.pool.wake.notify_all();
                return None;
            }
            shared = self.pool.wake.wait(shared).unwrap_or_else(PoisonError::into_inner);
        }
    }

    #[inline]
    fn visit(&self, edge: Edge, stack: &mut Vec<u32>) {
        if !(self.mark)(edge) {
            return;
        }
        if stack.len() < MAX_STACK {
            stack.push(edge.target() as u32);
        } else {
            self.marks.defer(edge.target());
            self.marks.overflowed.store(true, Relaxed);
        }
    }

    fn drain(&self, stack: &mut Vec<u32>, hand: &mut Hand) {
        let mut edges: Vec<u32> = Vec::new();
        let mut unknown: Vec<u32> = Vec::new();
        while !stack.is_empty() {
            // Few lists at a time would be followed at the pace of memory's latency.
            while stack.len() < BATCH && self.take_pending(stack) {}
            if stack.len() >= SHARE && self.pool.hungry.load(Relaxed) > 0 {
                let half = stack.split_off(stack.len() / 2);
                lock(&self.pool.shared).stacks.push(half);
                self.pool.wake.notify_one();
            }
            let from = stack.len().saturating_sub(BATCH);
            for index in stack.drain(from..) {
                match self.graph.edges(index as usize) {
                    Edges::Kept(kept) => edges.extend_from_slice(kept),
                    Edges::Unknown => unknown.push(index),
                }
            }
            // Looked at first without any effect, so that the misses overlap: an exchange would wait for each.
            let touch = |edge: &u32| {
                self.marks.states.get(Edge::from(*edge).target()).map_or(0, |state| state.load(Relaxed))
            };
            std::hint::black_box(edges.iter().map(touch).fold(0, |all, state| all | state));
            for edge in edges.drain(..) {
                self.visit(Edge::from(edge), stack);
            }
            for index in unknown.drain(..) {
                self.read(index as usize, stack, hand);
            }
        }
    }

    /// Scans a block whose edges were not kept.
    fn read(&self, index: usize, stack: &mut Vec<u32>, hand: &mut Hand) {
        let Some(block) = self.scan.blocks.get(index) else { return };
        let range = block.address..block.address.saturating_add(block.size);
        if let Some(parts) = self.scan.reader.readable(&range).filter(|_| block.size > 2 * PIECE) {
            lock(&self.pool.shared).ranges.extend(parts);
            self.pool.wake.notify_all();
            return;
        }
        self.scan.edges_in(&range, hand, |edge| self.visit(edge, stack));
    }
}
