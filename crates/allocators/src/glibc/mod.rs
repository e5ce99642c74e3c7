//! glibc's malloc from outside: every chunk in use, and every one that only looks so.
//!
//! Invariants of what is read (malloc/malloc.c, 2.26 to 2.43):
//! - chunks of a heap follow each other without gaps; a chunk is free if the next one's `PREV_INUSE` is clear, and then
//!   the next one's `prev_size` is its size;
//! - chunks in fastbins (until 2.42) and in per-thread caches are free, but keep that bit;
//! - main heap: `brk` memory up to `top`, with fenceposts where somebody else moved the break; other arenas: heaps
//!   aligned to 64 MiB, chained from the newest back; large chunks: mappings of their own.

mod areas;
mod arena;
mod chain;
mod layout;
mod lists;
mod locate;
mod mmapped;
mod params;
mod part;
mod regions;
mod stacks;
mod threads;
mod version;

pub use layout::Version;
pub(crate) use version::{Banner, banner};

use crate::code::AllocatorCode;
use crate::error::Error;
use crate::recognise::libraries;
use areas::Areas;
use chain::Walker;
use layout::{HEADER, Layout};
use leakscope_reach::Block;
use leakscope_target::Snapshot;
use lists::Cached;
use part::Part;
use std::ops::Range;

/// What to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkOptions {
    /// Look for `main_arena` in the library's symbols and in separate debug symbols first. Without, or where there are
    /// none, it is found by its structure.
    pub debug_symbols: bool,
    /// Take the layout of this version rather than of what the library says of itself.
    pub version: Option<Version>,
}

impl Default for WalkOptions {
    fn default() -> WalkOptions {
        WalkOptions { debug_symbols: true, version: None }
    }
}

/// One arena. Bytes are those of chunks with their headers, so that in use, free, cached and top add up to
/// `system_bytes`, less what the arena itself and fenceposts take.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArenaSummary {
    /// Address of its `malloc_state`.
    pub address: u64,
    /// Its memory: pieces of the `brk` heap, or heaps.
    pub heaps: Vec<Range<u64>>,
    /// What it took from the kernel, by its own account (`system_mem`).
    pub system_bytes: u64,
    /// Chunks in use.
    pub inuse_bytes: u64,
    /// How many.
    pub inuse_blocks: u64,
    /// Free chunks other than those below.
    pub free_bytes: u64,
    /// Chunks in threads' caches.
    pub tcache_bytes: u64,
    /// Chunks in fastbins.
    pub fastbin_bytes: u64,
    /// The top chunk.
    pub top_bytes: u64,
    /// Somebody was in the middle of an operation.
    pub mutex_locked: bool,
}

/// What a walk found beside the blocks.
#[derive(Debug, Clone, Default)]
pub struct Heap {
    /// All arenas, the main one first (of each C library, if there are several).
    pub arenas: Vec<ArenaSummary>,
    /// All memory of heaps, mmapped chunks' mappings included, by address: words in it outside blocks are not roots.
    pub areas: Vec<Range<u64>>,
    /// Where and how main arenas were found, for the curious.
    pub located: Vec<String>,
    /// The structures of arenas that lie outside of `areas` (the main ones): no roots, since what they point at is next
    /// to the end of blocks.
    pub states: Vec<Range<u64>>,
    /// Stacks of threads that have ended: no roots.
    pub dead_stacks: Vec<Range<u64>>,
    /// Addresses of blocks that are the C library's or the loader's own (per-thread caches, TLS), by address: roots, and
    /// never leaks.
    pub own: Vec<u64>,
    /// Blocks, all given to the sink too, that may be free or half of one, because an operation was in progress: roots,
    /// and never leaks. By address.
    pub ambiguous: Vec<Block>,
    /// Chunks with a mapping of their own.
    pub mmapped_blocks: u64,
    /// Bytes of their mappings.
    pub mmapped_bytes: u64,
    /// What was inconsistent, in sentences; empty if nothing was. Try again with a new snapshot.
    pub torn: Vec<String>,
    /// The C library's version, if it says it.
    pub version: Option<Version>,
    /// What a reader must know to judge the result.
    pub notes: Vec<String>,
}

impl Heap {
    /// Whether anything was inconsistent, so that another snapshot may give a better answer.
    pub fn is_torn(&self) -> bool {
        !self.torn.is_empty()
    }

    /// Whether a thread was in the middle of an operation on some arena. The heap may be consistent all the same: then
    /// what that thread has in hand is among the ambiguous blocks.
    pub fn is_busy(&self) -> bool {
        self.arenas.iter().any(|arena| arena.mutex_locked)
    }
}

/// Lists every block in use of glibc's malloc: address that the program has, and usable size. Blocks come by address
/// within each heap, heap by heap, each once.
///
/// # Errors
/// If there is no glibc, its version is too old, or its main arena cannot be found.
pub fn walk(snapshot: &Snapshot, options: &WalkOptions, mut sink: impl FnMut(Block)) -> Result<Heap, Error> {
    let libraries = libraries(snapshot);
    let Some(first) = libraries.first() else {
        let modules = crate::modules::modules(snapshot).len();
        return Err(Error::NoAllocator { pid: snapshot.pid, modules });
    };
    let writable = Areas::writable(snapshot);
    let code = AllocatorCode::new(snapshot);
    let mut suspects = Cached::default();
    for word in snapshot.threads.iter().flat_map(|thread| code.held(snapshot, thread)) {
        // Either the block's address or its chunk's is in the thread's hands.
        if word % 16 == 0 && writable.contains(word) {
            suspects.push(word, false);
            suspects.push(word.wrapping_sub(HEADER), false);
        }
    }
    suspects.finish();

    let mut heap = Heap { version: options.version.or(first.1.version), ..Heap::default() };
    let mut parts = Vec::new();
    let mut failure = None;
    for (module, banner) in &libraries {
        match Part::read(snapshot, module, options.version.or(banner.version), options, &writable, &mut heap)
        {
            Ok(part) => parts.push(part),
            Err(error) => failure = failure.or(Some(error)),
        }
    }
    match (parts.is_empty(), failure) {
        (true, Some(error)) => return Err(error),
        (false, Some(error)) => heap.notes.push(format!("one of several C libraries is left out: {error}")),
        _ => {}
    }

    let mut torn = chain::Torn::default();
    let all = Areas::new(parts.iter().flat_map(|part| part.memory()).collect());
    let layout = parts.first().map_or(Layout::of(Version::NEWEST), |part| part.layout);
    let expected = parts.iter().map(|part| part.mapped).try_fold(params::Mapped::default(), |sum, mapped| {
        let mapped = mapped?;
        Some(params::Mapped { count: sum.count + mapped.count, bytes: sum.bytes.checked_add(mapped.bytes)? })
    });
    // Chunks are looked for page by page: not in stacks, which can be most of all address space.
    let mut elsewhere = stacks::all(snapshot);
    elsewhere.extend(all.iter().cloned());
    let mapped = mmapped::find(snapshot, &layout, &Areas::new(elsewhere), expected);

    let mut cached = Cached::default();
    for part in &parts {
        part.caches(snapshot, &writable, &mut cached, &mut heap, &mut torn);
    }
    let twice = cached.finish();
    if twice > 0 {
        torn.add(|| format!("{twice} chunks are in more than one list of free chunks"));
    }

    let mut walker = Walker::new(&*snapshot.memory, &cached, &suspects, &mut sink);
    let mut areas = Vec::new();
    for part in &parts {
        part.walk(&mut walker, &mut areas, &mut heap.arenas);
    }
    for chunk in &mapped.chunks {
        areas.push(chunk.area.clone());
        if !cached.contains(chunk.address) {
            heap.mmapped_blocks += 1;
            let block = Block { address: chunk.address + HEADER, size: layout.mmapped_usable(chunk.size) };
            walker.single(chunk.address, block);
        }
        heap.mmapped_bytes += chunk.area.end - chunk.area.start;
    }
    heap.ambiguous = std::mem::take(&mut walker.ambiguous);
    let walked = std::mem::take(&mut walker.torn);
    heap.ambiguous.sort_unstable();
    heap.torn.extend(walked.finish());
    heap.torn.extend(torn.finish());
    check_mapped(&mut heap, &mapped, expected);
    heap.states.extend(parts.iter().map(Part::state));
    let areas = Areas::new(areas);
    heap.own.extend(threads::loader_blocks(snapshot, &areas));
    heap.dead_stacks = stacks::dead(snapshot);
    heap.own.sort_unstable();
    heap.own.dedup();
    heap.areas = areas.into_ranges();
    Ok(heap)
}

/// Compares the mmapped chunks found with what malloc counts.
fn check_mapped(heap: &mut Heap, found: &mmapped::Found, expected: Option<params::Mapped>) {
    let count = found.chunks.len() as u64;
    match expected {
        Some(expected) if (expected.count, expected.bytes) == (count, heap.mmapped_bytes) => {}
        Some(expected) => heap.torn.push(format!(
            "malloc counts {} mmapped chunks of {} bytes, {count} of {} bytes were found",
            expected.count, expected.bytes, heap.mmapped_bytes
        )),
        None if found.skipped > 0 => heap.notes.push(format!(
            "mmapped chunks were looked for, but not on {} pages within large mappings",
            found.skipped
        )),
        None => {}
    }
}
