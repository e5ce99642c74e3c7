//! One process's heap file as plain vectors.

use crate::sampling::Weight;

/// Everything a heap file says about one process.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// Whose it is.
    pub process: Process,
    /// Wall-clock time of tick 0 in nanoseconds since the epoch.
    pub realtime_ns: u64,
    /// Tick at which this was read (or the process was last seen).
    pub tick: u32,
    /// Mean bytes between samples; 0 = every allocation was recorded.
    pub sampling_interval: u64,
    /// Modules by number; numbers are not contiguous after damage.
    pub modules: Vec<Module>,
    /// The stack trie; a node's number is its index, 0 is the root.
    pub nodes: Vec<Node>,
    /// Stacks; a stack's number is its index, 0 sums what did not fit.
    pub stacks: Vec<Stack>,
    /// Blocks in use that were recorded. If allocations were sampled, each stands for as many as its weight says
    /// ([`Snapshot::weight`]).
    pub blocks: Vec<Block>,
    /// The threads seen last.
    pub threads: Vec<Thread>,
    /// The timeline, oldest first.
    pub timeline: Vec<TimelinePoint>,
    /// Calls made while a hook of the same thread was at work.
    pub missed_nested: u64,
    /// Allocations not recorded for want of space.
    pub missed_full: u64,
    /// Frees of blocks that were never recorded.
    pub unknown_frees: u64,
    /// Blocks in use in the parent at the fork that made this process.
    pub inherited_blocks: u64,
    /// Their bytes.
    pub inherited_bytes: u64,
    /// How many of them this process freed.
    pub inherited_freed_blocks: u64,
    /// Their bytes.
    pub inherited_freed_bytes: u64,
    /// Offsets that led nowhere while this was read: a torn or damaged file.
    pub bad_references: u64,
}

impl Snapshot {
    /// What a live block stands for: itself, or if allocations were sampled, all that it was sampled from.
    pub fn weight(&self, block: &Block) -> Weight {
        match block.kind {
            BlockKind::Mapped => Weight::exact(block.size, self.sampling_interval),
            BlockKind::Heap | BlockKind::InFlight => Weight::of(block.size, self.sampling_interval),
        }
    }
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Pid as the process saw it.
    pub pid: u32,
    /// Pid in the holder's pid namespace; 0 if unknown.
    pub host_pid: u32,
    /// Parent's pid.
    pub ppid: u32,
    /// Start time in clock ticks since boot; 0 if unknown.
    pub start_ticks: u64,
    /// Tick at which tracing began.
    pub started: u32,
    /// Whether it is a forked child that has not executed another program.
    pub forked: bool,
    /// Whether its program has a `malloc` of its own, which is not traced.
    pub own_malloc: bool,
    /// Why tracing stopped early (`layout::STOP_*`); 0 if it did not.
    pub stop_reason: u32,
    /// Path of the executable.
    pub exe: Vec<u8>,
    /// Command line; arguments end in NUL.
    pub command: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// Counts the processes of a run (live form only).
    pub serial: u32,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum End {
    /// It runs, or nobody was there to see its end.
    #[default]
    Running,
    /// It exited with this status.
    Exited(u32),
    /// This signal killed it.
    Signaled(u32),
    /// It executed another program.
    Replaced,
    /// It ended; how is not known.
    Unknown,
}

/// A module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Module {
    /// Its number in node keys, from 1.
    pub id: u32,
    /// First mapped address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Load bias.
    pub bias: u64,
    /// Tick at which it was seen unloaded; 0 = it was not.
    pub unloaded: u32,
    /// GNU build id, empty if none.
    pub build_id: Vec<u8>,
    /// Path.
    pub path: Vec<u8>,
}

/// A frame of the stack trie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    /// Node of the caller; always less than the node's own number or a number of an older index.
    pub parent: u32,
    /// Program counter and module number (see `layout::PC_BITS`); 0 = never written.
    pub key: u64,
}

/// A stack and what was done under it, summed over threads. If allocations were sampled, blocks and bytes are
/// estimates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stack {
    /// Node of its innermost frame.
    pub node: u32,
    /// Blocks allocated.
    pub allocated_blocks: u64,
    /// Bytes allocated.
    pub allocated_bytes: u64,
    /// Blocks freed.
    pub freed_blocks: u64,
    /// Bytes freed.
    pub freed_bytes: u64,
    /// Blocks in use at the process's peak.
    pub peak_blocks: u64,
    /// Bytes in use at the process's peak.
    pub peak_bytes: u64,
    /// Blocks freed before their thread allocated anything else.
    pub temporary: u64,
    /// Allocations that were recorded.
    pub samples: u64,
}

/// What a block is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BlockKind {
    /// From the allocator.
    #[default]
    Heap,
    /// From the allocator; its `realloc` was in progress.
    InFlight,
    /// A mapping made by the program.
    Mapped,
}

/// A block in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Block {
    /// Address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Stack number.
    pub stack: u32,
    /// Tick of its birth.
    pub birth: u32,
    /// Low 18 bits of its thread's sequence number.
    pub thread: u32,
    /// What it is.
    pub kind: BlockKind,
}

/// A thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thread {
    /// Sequence number, from 1.
    pub sequence: u32,
    /// Tid.
    pub tid: u32,
    /// Tick of its first allocation.
    pub started: u32,
    /// Name, if it was seen.
    pub name: Vec<u8>,
}

/// A moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimelinePoint {
    /// Tick.
    pub tick: u32,
    /// Heap bytes in use.
    pub inuse: u64,
    /// Resident set size in bytes.
    pub rss: u64,
    /// Heap bytes allocated since the start.
    pub allocated: u64,
}
