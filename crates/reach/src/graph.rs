//! Which block points to which, found in one pass over memory in the order of addresses.
//!
//! Following pointers through another process's memory would read it block by block in random order, a system call
//! each. So memory is read once, front to back, and the pointers that hit blocks are kept: four bytes for each, of up
//! to [`FULL`] - 1 per block. A block with more is read again when it is its turn; a system call is cheap for so many.

use crate::heuristics::{Judge, Scratch, Via};
use crate::lookup::Hit;
use crate::words::{BUFFER, Reader};
use crate::{Block, Blocks};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Blocks whose edges lie together.
pub(crate) const CHUNK: usize = 4096;
/// Blocks that share a header: where their edges begin in the chunk, and the number of edges of each in four bits.
const GROUP: usize = 16;
const HEADER: usize = 3;
const HEADERS: usize = CHUNK / GROUP * HEADER;
/// So many edges or more: not kept.
const FULL: usize = 15;
/// Edges kept per block, on average over a chunk, in quarters: of the blocks of a chunk with too many edges, those
/// with most lose theirs. Bounds the graph to ten bytes per block.
const QUARTERS: usize = 9;
/// Larger blocks are not read ahead: reading them when it is their turn costs no more.
const LARGE: u64 = 64 << 10;
/// Words that are looked at together.
const PART: usize = 256;
/// Of a block with more pointers than this, even if some lead nowhere or to the same block, the edges are not kept.
const MAX_POINTERS: usize = 64;
/// So many pointers are worth looking up together.
const ENOUGH: usize = 512;
/// Unused bytes between blocks that are read all the same, rather than with one more system call.
const MAX_GAP: u64 = 16 << 10;

/// A pointer to a block: its index and, in the lowest three bits, the [`Via`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge(u32);

impl From<u32> for Edge {
    fn from(edge: u32) -> Edge {
        Edge(edge)
    }
}

impl Edge {
    pub(crate) fn start(target: usize) -> Edge {
        Edge::new(target, Via::Start)
    }

    #[inline]
    pub(crate) fn new(target: usize, via: Via) -> Edge {
        let via = match via {
            Via::Start => 0,
            Via::Interior => 1,
            Via::Heuristic(heuristic) => 2 + heuristic as u32,
        };
        Edge((target as u32) << 3 | via)
    }

    #[inline]
    pub(crate) fn target(self) -> usize {
        (self.0 >> 3) as usize
    }

    #[inline]
    pub(crate) fn is_interior(self) -> bool {
        self.class() == 1
    }

    /// The lowest three bits: 0 for a start, 1 for the interior, then the heuristics.
    #[inline]
    pub(crate) fn class(self) -> usize {
        (self.0 & 7) as usize
    }
}

/// Edges of a block.
#[derive(Debug)]
pub(crate) enum Edges<'a> {
    Kept(&'a [u32]),
    /// Read the block again.
    Unknown,
}

/// What scanning words takes.
pub(crate) struct Scan<'a> {
    pub blocks: &'a Blocks,
    pub reader: Reader<'a>,
    pub judge: Judge<'a>,
    low: u64,
    span: u64,
}

/// What one thread needs for it.
#[derive(Default)]
pub(crate) struct Hand {
    pub buffer: Vec<u8>,
    spare: Vec<u8>,
    pub scratch: Scratch,
    batch: Vec<Block>,
    edges: Vec<u32>,
    degrees: Vec<u8>,
    /// Words that may be pointers, how many of them each block holds, and what they hit.
    pub pointers: Vec<u64>,
    counts: Vec<usize>,
    pub hits: Vec<Option<Hit>>,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(blocks: &'a Blocks, reader: Reader<'a>, judge: Judge<'a>) -> Scan<'a> {
        let (low, span) = blocks.bounds();
        Scan { blocks, reader, judge, low, span }
    }

    /// Whether `pointer` lies where blocks are at all.
    #[inline]
    pub(crate) fn may_hit(&self, pointer: u64) -> bool {
        pointer.wrapping_sub(self.low) < self.span
    }

    /// The edge that `pointer` is.
    pub(crate) fn edge(&self, pointer: u64, scratch: &mut Scratch) -> Option<Edge> {
        Some(self.edge_to(pointer, self.blocks.locate(pointer)?, scratch))
    }

    /// The edge that `pointer` is, which hit a block.
    #[inline]
    pub(crate) fn edge_to(&self, pointer: u64, hit: Hit, scratch: &mut Scratch) -> Edge {
        Edge::new(hit.index, self.judge.via(pointer, hit, scratch))
    }

    /// Appends what may be pointers to blocks.
    fn collect(&self, bytes: &[u8], pointers: &mut Vec<u64>) {
        let mut found = [0; PART];
        let mut count = 0;
        // Most words are no pointers, and this is all that is done for them. Which ones are is as good as random, so
        // there is no branch on it.
        for pointer in self.reader.pointers(bytes) {
            if let Some(place) = found.get_mut(count) {
                *place = pointer;
            }
            count += usize::from(self.may_hit(pointer));
        }
        pointers.extend_from_slice(found.get(..count).unwrap_or_default());
    }

    /// Reads a range and hands over the edges in it.
    pub(crate) fn edges_in(&self, range: &Range<u64>, hand: &mut Hand, mut take: impl FnMut(Edge)) {
        let Hand { buffer, scratch, pointers, hits, .. } = hand;
        self.reader.pieces(range, buffer, |_, bytes| {
            for part in bytes.chunks(8 * PART) {
                pointers.clear();
                hits.clear();
                self.collect(part, pointers);
                self.blocks.locate_all(pointers, hits);
                for (&pointer, hit) in pointers.iter().zip(hits.iter()) {
                    if let &Some(hit) = hit {
                        take(self.edge_to(pointer, hit, scratch));
                    }
                }
            }
            pointers.clear();
        });
    }
}

/// The edges of all blocks.
pub(crate) struct Graph {
    chunks: Vec<OnceLock<Box<[u32]>>>,
}

impl Graph {
    pub(crate) fn build(scan: &Scan<'_>, threads: usize, done: &(dyn Fn(usize) + Sync)) -> Graph {
        let chunks = (0..scan.blocks.len().div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        let graph = Graph { chunks };
        let next = AtomicUsize::new(0);
        crate::threads::run(threads, |_| {
            let mut hand = Hand::default();
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(chunk) = graph.chunks.get(index)
            {
                _ = chunk.set(read_chunk(scan, index * CHUNK, &mut hand));
                done(CHUNK);
            }
        });
        graph
    }

    /// The edges of a block.
    #[inline]
    pub(crate) fn edges(&self, index: usize) -> Edges<'_> {
        self.kept(index).unwrap_or(Edges::Unknown)
    }

    #[inline]
    fn kept(&self, index: usize) -> Option<Edges<'_>> {
        let chunk = self.chunks.get(index / CHUNK)?.get()?;
        let header = index % CHUNK / GROUP * HEADER;
        let &[base, low, high] = chunk.get(header..header + HEADER)? else { return None };
        let degrees = u64::from(high) << 32 | u64::from(low);
        let place = index % GROUP * 4;
        let degree = (degrees >> place & 15) as usize;
        if degree == FULL {
            return None;
        }
        // The edges of those before it in its group: a sum of four-bit numbers, of which the full ones do not count.
        let before = degrees & ((1 << place) - 1);
        let full = (before & before >> 1 & before >> 2 & before >> 3 & 0x1111_1111_1111_1111) * 15;
        let counted = before ^ full;
        let bytes = (counted & 0x0f0f_0f0f_0f0f_0f0f) + (counted >> 4 & 0x0f0f_0f0f_0f0f_0f0f);
        let from = base as usize + (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as usize;
        chunk.get(from..from + degree).map(Edges::Kept)
    }
}

/// The edges of [`CHUNK`] blocks from `first` on: headers, then edges.
fn read_chunk(scan: &Scan<'_>, first: usize, hand: &mut Hand) -> Box<[u32]> {
    let mut batch = std::mem::take(&mut hand.batch);
    batch.clear();
    hand.edges.clear();
    hand.degrees.clear();
    let mut span = 0..0;
    for block in scan.blocks.iter_from(first).take(CHUNK) {
        let end = block.end();
        let near = block.address.saturating_sub(span.end) <= MAX_GAP;
        if !near || end - span.start > BUFFER as u64 || block.size > LARGE {
            read_batch(scan, &span, &batch, hand);
            batch.clear();
        }
        if block.size > LARGE {
            hand.degrees.push(FULL as u8);
            continue;
        }
        if batch.is_empty() {
            span.start = block.address & !7;
        }
        span.end = end;
        batch.push(block);
    }
    read_batch(scan, &span, &batch, hand);
    hand.batch = batch;
    limit(hand);
    pack(hand)
}

/// Reads blocks that lie near each other at once, and appends their edges.
fn read_batch(scan: &Scan<'_>, span: &Range<u64>, batch: &[Block], hand: &mut Hand) {
    if batch.is_empty() {
        return;
    }
    let mut buffer = std::mem::take(&mut hand.buffer);
    let bytes = scan.reader.fill(span, &mut buffer, &mut hand.spare);
    for block in batch {
        // At the upper end of the address space nothing is readable anyway: an empty range will do.
        let from = block.address.checked_next_multiple_of(8).unwrap_or(span.start) - span.start;
        let to = (block.address.saturating_add(block.size) - span.start) & !7;
        let before = hand.pointers.len();
        for part in bytes.get(from as usize..to as usize).unwrap_or_default().chunks(8 * PART) {
            scan.collect(part, &mut hand.pointers);
            if hand.pointers.len() - before > MAX_POINTERS {
                break;
            }
        }
        hand.counts.push(hand.pointers.len() - before);
        if hand.pointers.len() >= ENOUGH {
            resolve(scan, hand);
        }
    }
    resolve(scan, hand);
    hand.buffer = buffer;
}

/// Looks up the pointers collected, and appends the edges of the blocks in which they lie.
fn resolve(scan: &Scan<'_>, hand: &mut Hand) {
    let Hand { pointers, counts, hits, scratch, edges, degrees, .. } = hand;
    hits.clear();
    scan.blocks.locate_all(pointers, hits);
    let mut found = pointers.iter().zip(hits.iter());
    for &count in counts.iter() {
        let before = edges.len();
        let mut degree = 0;
        for (&pointer, hit) in found.by_ref().take(count) {
            let &Some(hit) = hit else { continue };
            if degree == FULL {
                continue;
            }
            let Edge(edge) = scan.edge_to(pointer, hit, scratch);
            if degree > 0 && edges.last() == Some(&edge) {
                continue;
            }
            edges.push(edge);
            degree += 1;
        }
        // The rest of a block with so many was not even collected.
        if degree == FULL || count > MAX_POINTERS {
            edges.truncate(before);
            degree = FULL;
        }
        degrees.push(degree as u8);
    }
    pointers.clear();
    counts.clear();
}

/// Drops the edges of the blocks with most, until the rest keep within what a chunk may take.
fn limit(hand: &mut Hand) {
    let allowed = CHUNK * QUARTERS / 4;
    if hand.edges.len() <= allowed {
        return;
    }
    let mut histogram = [0; FULL];
    for &degree in &hand.degrees {
        if let Some(edges) = histogram.get_mut(usize::from(degree)) {
            *edges += usize::from(degree);
        }
    }
    // Whole classes as far as they fit, and of the next one as many blocks as still do.
    let mut room = allowed;
    let most = histogram.iter().take_while(|&&edges| {
        let fits = edges <= room;
        room -= if fits { edges } else { 0 };
        fits
    });
    let most = most.count();
    let (mut from, mut kept) = (0, 0);
    for degree in &mut hand.degrees {
        let count = usize::from(*degree);
        if count == FULL {
            continue;
        }
        let is_last = count == most && count <= room;
        if is_last {
            room -= count;
        }
        if count < most || is_last {
            hand.edges.copy_within(from..from + count, kept);
            kept += count;
        } else {
            *degree = FULL as u8;
        }
        from += count;
    }
    hand.edges.truncate(kept);
}

fn pack(hand: &Hand) -> Box<[u32]> {
    let mut packed = Vec::with_capacity(HEADERS + hand.edges.len());
    let mut base = HEADERS;
    for group in hand.degrees.chunks(GROUP) {
        let nibbles = group.iter().rev().fold(0u64, |nibbles, &degree| nibbles << 4 | u64::from(degree));
        packed.extend([base as u32, nibbles as u32, (nibbles >> 32) as u32]);
        base +=
            group.iter().map(|&degree| usize::from(degree)).filter(|&degree| degree < FULL).sum::<usize>();
    }
    // The last chunk may be short; its edges begin behind the headers all the same.
    packed.resize(HEADERS, 0);
    packed.extend_from_slice(&hand.edges);
    packed.into_boxed_slice()
}
