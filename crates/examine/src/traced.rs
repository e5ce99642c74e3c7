//! What the tracer knows of a process: its blocks with their stacks.

use leakscope_heapfile::layout::{MAGIC, TICK_MS};
use leakscope_heapfile::{Arena, Block, BlockKind, Snapshot as HeapFile};
use leakscope_proc::Mapping;
use leakscope_target::Snapshot;
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

/// The tracer's record of one process.
#[derive(Debug)]
pub struct Traced {
    /// The heap file's content. Its blocks are those of the allocator alone, by address.
    pub heap: HeapFile,
    /// Whether the process stood still while it was read, so that it is exactly what the snapshot is.
    pub exact: bool,
    /// The tracer's own memory: no roots.
    pub own: Vec<Range<u64>>,
    /// Blocks that were allocated from this tick on may be newer than the snapshot.
    pub(crate) settled: u32,
}

impl Traced {
    /// Of a heap file's content, read while the process stood still (`exact`) or ran on.
    pub fn new(mut heap: HeapFile, exact: bool, own: Vec<Range<u64>>) -> Traced {
        heap.blocks.retain(|block| block.kind != BlockKind::Mapped);
        heap.blocks.sort_unstable_by_key(|block| block.address);
        heap.blocks.dedup_by_key(|block| block.address);
        Traced { heap, exact, own, settled: u32::MAX }
    }

    /// The process ran on while this was read: blocks of the last while, and of the two ticks that it may begin and end
    /// in, may be newer than the snapshot.
    pub(crate) fn ran_on(&mut self, last: Duration) {
        let ticks = u32::try_from(last.as_millis() / u128::from(TICK_MS)).unwrap_or(u32::MAX);
        self.settled = self.heap.tick.saturating_sub(ticks.saturating_add(2));
    }

    /// The block that begins at `address`.
    pub fn block(&self, address: u64) -> Option<&Block> {
        let index = self.heap.blocks.binary_search_by_key(&address, |block| block.address).ok()?;
        self.heap.blocks.get(index)
    }

    /// Whether every allocation of the process was seen, so that what is not listed is not the program's.
    pub fn is_complete(&self) -> bool {
        let heap = &self.heap;
        heap.missed_full == 0
            && heap.missed_nested == 0
            && heap.inherited_blocks == 0
            && heap.unknown_frees == 0
            && heap.process.stop_reason == 0
            && !heap.process.own_malloc
            && heap.sampling_interval == 0
    }
}

/// Finds the tracer's record of the process of a snapshot, if it is traced.
pub(crate) fn find(snapshot: &Snapshot) -> Option<Result<Traced, (PathBuf, leakscope_heapfile::Error)>> {
    let mapping = arena_mapping(snapshot)?;
    let inside = Path::new(OsStr::from_bytes(&mapping.path));
    let path = snapshot.root.join(inside.strip_prefix("/").unwrap_or(inside));
    // The path may be gone or be another file in the process's mount namespace; what it has mapped is not.
    let mapped = format!("/proc/{}/map_files/{:x}-{:x}", snapshot.pid, mapping.start, mapping.end);
    let opened = Arena::open(&path).or_else(|error| Arena::open(Path::new(&mapped)).map_err(|_| error));
    let found = opened.and_then(|arena| {
        let Some(window) = window(&arena, snapshot) else { return Ok(None) };
        let own = own_memory(&arena, window);
        Ok(Some(Traced::new(arena.snapshot(window)?, false, own)))
    });
    match found {
        Ok(None) => None,
        Ok(Some(traced)) => Some(Ok(traced)),
        Err(error) => Some(Err((path, error))),
    }
}

/// The mapping of the arena, by what stands at its start.
pub(crate) fn arena_mapping(snapshot: &Snapshot) -> Option<&Mapping> {
    snapshot.mappings.iter().find(|mapping| is_arena(snapshot, mapping))
}

/// Whether a mapping is an arena.
pub(crate) fn is_arena(snapshot: &Snapshot, mapping: &Mapping) -> bool {
    mapping.shared
        && mapping.readable
        && mapping.offset == 0
        && snapshot.memory.word(mapping.start) == Some(MAGIC)
}

/// The window of the process: with its start time, the latest with its pid.
fn window(arena: &Arena, snapshot: &Snapshot) -> Option<u64> {
    let candidates = arena.windows().into_iter().filter_map(|offset| {
        let window = arena.window(offset)?;
        let same_start = window.start_ticks.load(Acquire) == snapshot.start_ticks;
        let pids = [window.pid.load(Acquire), window.host_pid.load(Acquire)];
        // A process in a pid namespace of its own has another pid there; its start time tells it.
        let same_pid = pids.contains(&snapshot.pid);
        same_start.then(|| ((same_pid, window.serial.load(Acquire)), offset))
    });
    candidates.max().map(|(_, offset)| offset)
}

/// The private memory of the tracer's, which holds addresses of blocks.
pub fn own_memory(arena: &Arena, window: u64) -> Vec<Range<u64>> {
    arena.private_states(window)
}
