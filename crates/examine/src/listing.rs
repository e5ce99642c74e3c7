//! Which blocks there are: from the allocator's own structures, from the tracer's record, or from both.
//!
//! glibc's structures are in the frozen memory, so they are of the same instant; they tell every block, with its size as
//! rounded up. The tracer's record tells sizes as requested and stacks, but is read a little later, unless the process
//! stands still. So with both, blocks come from the structures, and the record only adds to them. Where the structures
//! cannot be read (another allocator), the record alone has to do.

use crate::Error;
use crate::roots::mapping_at;
use crate::traced::Traced;
use leakscope_allocators::glibc::{Heap, WalkOptions};
use leakscope_leaks::BlockSource;
use leakscope_reach::{Block, Blocks, BlocksBuilder};
use leakscope_target::Snapshot;
use std::ops::Range;

/// How far around a block of an allocator that is not understood memory is taken to be that allocator's.
const NEIGHBOURHOOD: u64 = 64 << 10;

/// The blocks of a snapshot.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) blocks: Blocks,
    /// Where the allocator keeps blocks; other words there are no roots.
    pub(crate) areas: Vec<Range<u64>>,
    /// Other memory that is no root: the allocator's own structures, stacks of threads that have ended.
    pub(crate) no_roots: Vec<Range<u64>>,
    /// Indices of blocks that are no leaks whatever points to them, sorted.
    pub(crate) held: Vec<usize>,
    /// Those of them that are the C library's own, sorted: not the program's, and not reported at all.
    pub(crate) own: Vec<usize>,
    pub(crate) source: BlockSource,
    pub(crate) notes: Vec<String>,
    /// What was inconsistent, since somebody was at work on it.
    pub(crate) torn: Vec<String>,
}

/// Lists the blocks of a process.
pub(crate) fn list(snapshot: &Snapshot, traced: Option<&Traced>) -> Result<Listing, Error> {
    let mut builder = BlocksBuilder::default();
    // Blocks of no one's: not the program's, since the tracer has seen all of that.
    let mut strange = Vec::new();
    let mut known = 0usize;
    let complete = traced.is_some_and(Traced::is_complete);
    let walked = leakscope_allocators::walk(snapshot, &WalkOptions::default(), |block| {
        let recorded = traced.and_then(|traced| traced.block(block.address));
        match recorded.filter(|recorded| recorded.size <= block.size) {
            Some(recorded) => {
                known += 1;
                builder.push(Block { address: block.address, size: recorded.size });
            }
            None => {
                if complete {
                    strange.push(block.address);
                }
                builder.push(block);
            }
        }
    });
    match (walked, traced) {
        (Ok(heap), Some(traced)) if known > 0 || traced.heap.blocks.is_empty() => {
            if traced.exact && known < traced.heap.blocks.len() {
                add_unwalked(&mut builder, &heap, traced);
            }
            Ok(finish(builder, heap, strange, BlockSource::Tracer))
        }
        (Ok(heap), None) => {
            let version = heap.version.map(|version| format!(" {version}")).unwrap_or_default();
            let source = BlockSource::Allocator { name: format!("glibc{version}") };
            Ok(finish(builder, heap, strange, source))
        }
        // Not one recorded block is glibc's: the program has another allocator.
        (Ok(_), Some(traced)) => Ok(recorded_alone(snapshot, traced, None)),
        // What to do about it has been done: it is traced.
        (Err(leakscope_allocators::Error::Unsupported { allocator, module, .. }), Some(traced)) => {
            Ok(recorded_alone(snapshot, traced, Some(format!("it allocates by {allocator} ({module})"))))
        }
        (Err(error), Some(traced)) => Ok(recorded_alone(snapshot, traced, Some(error.to_string()))),
        (Err(error), None) => Err(error.into()),
    }
}

/// Recorded blocks outside of glibc's heaps: a second allocator's.
fn add_unwalked(builder: &mut BlocksBuilder, heap: &Heap, traced: &Traced) {
    let is_walked = |address: u64| {
        let behind = heap.areas.partition_point(|area| area.start <= address);
        behind.checked_sub(1).and_then(|index| heap.areas.get(index)).is_some_and(|area| address < area.end)
    };
    for block in traced.heap.blocks.iter().filter(|block| !is_walked(block.address)) {
        builder.push(Block { address: block.address, size: block.size });
    }
}

fn finish(builder: BlocksBuilder, heap: Heap, strange: Vec<u64>, source: BlockSource) -> Listing {
    let blocks = builder.finish();
    let known = || heap.own.iter().copied().chain(strange.iter().copied());
    let own = indices(&blocks, known());
    let held = indices(&blocks, known().chain(heap.ambiguous.iter().map(|block| block.address)));
    let no_roots = heap.states.into_iter().chain(heap.dead_stacks).collect();
    Listing { blocks, areas: heap.areas, no_roots, held, own, source, notes: heap.notes, torn: heap.torn }
}

/// The indices, sorted, of the blocks that begin at these addresses.
fn indices(blocks: &Blocks, addresses: impl Iterator<Item = u64>) -> Vec<usize> {
    let index = |address| {
        blocks.find(address).filter(|&index| blocks.get(index).is_some_and(|block| block.address == address))
    };
    let mut indices: Vec<usize> = addresses.filter_map(index).collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

fn recorded_alone(snapshot: &Snapshot, traced: &Traced, why: Option<String>) -> Listing {
    let mut builder = BlocksBuilder::default();
    let mut areas: Vec<Range<u64>> = Vec::new();
    for block in &traced.heap.blocks {
        builder.push(Block { address: block.address, size: block.size });
        let Some(mapping) = mapping_at(&snapshot.mappings, block.address) else { continue };
        let start = (block.address & !(NEIGHBOURHOOD - 1)).max(mapping.start);
        let end =
            block.address.saturating_add(block.size).saturating_add(NEIGHBOURHOOD) & !(NEIGHBOURHOOD - 1);
        let end = end.min(mapping.end);
        match areas.last_mut().filter(|last| start <= last.end) {
            Some(last) => last.end = last.end.max(end),
            None => areas.push(start..end),
        }
    }
    let mut notes = vec![
        "the blocks are those that the tracer recorded: the allocator's own structures are not read"
            .to_owned(),
    ];
    notes.extend(why);
    if !traced.exact {
        notes.push(
            "blocks that were allocated or freed at the very moment of the snapshot may be missing or too many"
                .to_owned(),
        );
    }
    let blocks = builder.finish();
    let recent = traced.heap.blocks.iter().filter(|block| block.birth >= traced.settled);
    let held = indices(&blocks, recent.map(|block| block.address));
    Listing {
        blocks,
        areas,
        no_roots: Vec::new(),
        held,
        own: Vec::new(),
        source: BlockSource::Tracer,
        notes,
        torn: Vec::new(),
    }
}
