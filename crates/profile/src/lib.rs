//! The heap profile: what a process allocated, freed and still holds, summed by stack.
//!
//! A [`Profile`] is plain data with no I/O behind it. It holds raw addresses; their names are a separate
//! [`Symbols`] value, so that a profile can be taken on one machine and named on another.

mod filter;
pub mod formats;
mod named;
mod samples;
mod symbols;
mod view;

pub use filter::{
    allocator_function_pattern, is_allocation_wrapper, is_allocator_function, is_library_frame,
    is_start_frame,
};
pub use named::{FrameId, NamedSite, NamedSites};
pub use samples::{Samples, Sampling};
pub use symbols::{Frame, MissingDebugInfo, Symbols};
pub use view::{UnknownView, View};

use std::time::SystemTime;

/// One process's heap over its life (or up to now, if it still runs).
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// Whose heap this is.
    pub process: Process,
    /// How allocations were sampled; none: every one was recorded. Then the numbers of the heap, but not those of
    /// mapped memory, are estimates.
    pub sampling: Option<Sampling>,
    /// Sums over all of the process's heap allocations (mapped memory not included).
    pub totals: Totals,
    /// Sums over the anonymous mappings that the program itself made by `mmap` (the allocator's own not included).
    pub mapped: Counts,
    /// Heap and resident size over the process's life, oldest first; old points are merged, so spacing varies.
    pub timeline: Vec<TimelinePoint>,
    /// Every executable file that was mapped at some time, also those since unloaded.
    pub modules: Vec<Module>,
    /// One entry per distinct (kind, stack), in no particular order.
    pub sites: Vec<Site>,
    /// What a reader must know to judge the numbers: lost events, tracing that stopped early, a torn file.
    pub notes: Vec<String>,
}

/// The traced process.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// Its pid in leakscope's pid namespace.
    pub pid: u32,
    /// When it started.
    pub start_time: Option<SystemTime>,
    /// Its argument vector (lossily decoded).
    pub command: Vec<String>,
    /// Path of its executable.
    pub executable: String,
    /// How it ended.
    pub end: End,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum End {
    /// It was running when the profile was taken.
    #[default]
    Running,
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signaled(i32),
    /// It replaced itself by another program (`execve`).
    Replaced,
    /// It ended; how is not known (not leakscope's own child, or leakscope was killed before it).
    Unknown,
}

/// Allocation numbers of one site or of a whole process. Bytes are as requested by the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Bytes not yet freed.
    pub inuse_bytes: u64,
    /// Blocks not yet freed.
    pub inuse_blocks: u64,
    /// Bytes ever allocated.
    pub allocated_bytes: u64,
    /// Blocks ever allocated.
    pub allocated_blocks: u64,
    /// Bytes in use at the moment of the process's peak.
    pub peak_bytes: u64,
    /// Blocks in use at the moment of the process's peak.
    pub peak_blocks: u64,
    /// Blocks freed by the thread that allocated them before it allocated anything else.
    pub temporary_blocks: u64,
}

/// Sums over a process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Totals {
    /// Sums over all heap sites.
    pub counts: Counts,
    /// What they rest on.
    pub samples: Samples,
    /// Allocator calls that were forwarded but not recorded.
    pub missed_events: u64,
    /// Blocks inherited from the parent process at `fork`, and their bytes.
    pub inherited_blocks: u64,
    /// Bytes of those.
    pub inherited_bytes: u64,
}

/// One moment in the life of the process.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TimelinePoint {
    /// Seconds since the process (or its tracing) began.
    pub seconds: f64,
    /// Heap bytes in use.
    pub inuse_bytes: u64,
    /// Resident set size in bytes.
    pub rss_bytes: u64,
    /// Bytes allocated since the start.
    pub allocated_bytes: u64,
}

/// An executable file mapped into the process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Module {
    /// Path as the process saw it; `[vdso]` and the like for the kernel's own.
    pub path: String,
    /// GNU build id; empty if the file has none.
    pub build_id: Vec<u8>,
    /// First mapped address.
    pub start: u64,
    /// One past the last mapped address.
    pub end: u64,
    /// What to subtract from a run-time address to get the address in the ELF file (its load bias).
    pub bias: u64,
    /// Whether it was unloaded again before the profile was taken.
    pub unloaded: bool,
}

/// What a site's memory came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub enum Kind {
    /// `malloc` and its relatives.
    #[default]
    Heap,
    /// An anonymous mapping made by the program itself.
    Mapped,
}

/// A run-time code address and the module it lay in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CodeAddress {
    /// Index into [`Profile::modules`]; none for generated (JIT) code and unknown memory.
    pub module: Option<u32>,
    /// The return address: one past the call instruction, so look up `address - 1`.
    pub address: u64,
}

/// All allocations of one kind made with one stack.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Site {
    /// Where the memory came from.
    pub kind: Kind,
    /// Return addresses, innermost first; the allocator's and the tracer's own frames are not in it.
    pub stack: Vec<CodeAddress>,
    /// Set if the stack was deeper than what was recorded, or could not be followed to its end.
    pub truncated: bool,
    /// The numbers.
    pub counts: Counts,
    /// What they rest on.
    pub samples: Samples,
}
