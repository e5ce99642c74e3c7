//! The live form, byte for byte. All fields are little-endian and naturally aligned.
//!
//! ```text
//! arena  = chunk*                      chunk 0 holds the superblock
//! chunk  = 64-byte header, then space handed out by the owning window's bump pointer
//! window = one process's tables, at the start of the first chunk that the process claimed
//! ```

use core::mem::size_of;
use core::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};

/// First eight bytes of an arena.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LKSARENA");
/// Version of this layout; a reader takes no other.
pub const VERSION: u32 = 3;
/// Size and alignment of a chunk in bytes.
pub const CHUNK: u64 = 256 * 1024;
/// Offsets stored in 32 bits count units of this many bytes.
pub const UNIT: u64 = 64;
/// Processes that one arena can hold at a time.
pub const WINDOW_SLOTS: usize = 8192;
/// Length of one tick, the unit of birth times, in milliseconds.
pub const TICK_MS: u64 = 8;

/// log2 of the bytes of address space that share one block table.
pub const REGION_SHIFT: u32 = 17;
/// log2 of the bytes of address space that share one page of region entries.
pub const SPAN_SHIFT: u32 = 27;
/// Region entries per span page.
pub const SPAN_REGIONS: usize = 1 << (SPAN_SHIFT - REGION_SHIFT);
/// Slots of a window's span table (open addressing, keyed by span number).
pub const SPAN_SLOTS: usize = 2048;
/// How many slots a span lookup probes.
pub const SPAN_PROBES: usize = 64;
/// Slots per bucket: one cache line.
pub const BUCKET_SLOTS: usize = 4;

/// Nodes per node block.
pub const NODE_BLOCK: usize = 4096;
/// Node blocks per window.
pub const NODE_BLOCKS: usize = 4096;
/// Stack records per stack block.
pub const STACK_BLOCK: usize = 1024;
/// Stack blocks per window.
pub const STACK_BLOCKS: usize = 1024;
/// Counters per counter page.
pub const COUNTER_PAGE: usize = 64;
/// Entries of each of the two directory levels above the counter pages.
pub const COUNTER_DIR: usize = 128;
/// Most distinct stacks of one process; further ones are summed under stack 0.
pub const MAX_STACKS: u32 = (COUNTER_PAGE * COUNTER_DIR * COUNTER_DIR) as u32;
/// Threads of one process that can be traced at the same time.
pub const SHARDS: usize = 4096;
/// Threads remembered by name, newest first.
pub const THREADS: usize = 256;
/// Points of the timeline.
pub const TIMELINE: usize = 384;
/// Blocks of 4 GiB and more, whose size does not fit a slot.
pub const HUGE: usize = 256;
/// Bytes kept of the executable's path.
pub const EXE_MAX: usize = 1024;
/// Bytes kept of the command line.
pub const COMMAND_MAX: usize = 4096;

/// A stack's innermost pseudo frame that marks a mapping made by the program itself: this module number with pc 1.
pub const MODULE_PSEUDO: u16 = 0xffff;
/// Pseudo frame: memory from `mmap`.
pub const PSEUDO_MAPPED: u64 = 1;
/// Pseudo frame: the stack went on beyond this point.
pub const PSEUDO_TRUNCATED: u64 = 2;
/// Bits of a node's key that hold the program counter; the module number is above.
pub const PC_BITS: u32 = 48;

/// Chunk 0.
#[repr(C)]
pub struct Superblock {
    /// [`MAGIC`], written last when an arena is made.
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: u32,
    /// Pid of the holder.
    pub holder_pid: u32,
    /// Bytes of the arena.
    pub arena_len: u64,
    /// Wall-clock time of tick 0, nanoseconds since the epoch.
    pub realtime_ns: u64,
    /// CLOCK_MONOTONIC at tick 0 in nanoseconds.
    pub monotonic_ns: u64,
    /// Mean bytes between samples; 0 = every allocation. The counters then sum weights (see [`crate::sampling`]).
    pub sampling_interval: u64,
    /// 1 while the holder examines processes at their end: they then wait for it (see [`Window::exit_state`]). Set
    /// before the command starts; a process that starts without it never waits. 0 again: nobody waits any more.
    pub examine_at_exit: AtomicU32,
    _pad0: [u8; 4],
    /// What chance starts from, so that a run can be repeated; 0 = from the clock.
    pub seed: u64,
    /// Ticks since the arena was made, written by the holder.
    pub tick: AtomicU32,
    _pad1: [u8; 60],
    /// Offset of the first chunk never handed out.
    pub next: AtomicU64,
    /// Recycled chunks: tag in the upper half, chunk number of the first in the lower; each chunk's header
    /// names the next.
    pub free_chunks: AtomicU64,
    _pad2: [u8; 48],
    /// Everything below this offset is backed by memory; written by the holder.
    pub ready: AtomicU64,
    /// Bytes that the tracers may still populate by themselves; replenished by the holder.
    pub self_budget: AtomicI64,
    _pad3: [u8; 48],
    /// Processes that wanted a window and got none.
    pub windows_refused: AtomicU64,
    /// Windows ever made.
    pub windows_made: AtomicU32,
    /// Pid of the command itself, in the holder's pid namespace; written by the holder.
    pub root_pid: AtomicU32,
    /// Counts processes that have begun to wait at their end. The holder sleeps on it (futex).
    pub exit_bell: AtomicU32,
    _pad4: [u8; 44],
    /// Offsets of the windows in use; 0 = free.
    pub windows: [AtomicU64; WINDOW_SLOTS],
    /// Bytes used in `output`.
    pub output_len: AtomicU32,
    _pad5: u32,
    /// Path of the command's heap file, for whoever seals it should the holder be killed.
    pub output: [AtomicU8; COMMAND_MAX],
}

/// First 64 bytes of each chunk.
#[repr(C)]
pub struct ChunkHeader {
    /// Offset of the window that owns the chunk; 0 = free.
    pub owner: AtomicU64,
    /// Chunks in this piece (more than 1 for one large table).
    pub chunks: AtomicU32,
    /// Next chunk number in the free list.
    pub next_free: AtomicU32,
    _pad: [u8; 48],
}

/// Low bits of [`Window::bump`] that count what is left.
pub const BUMP_BITS: u32 = 30;
/// Added to a mapping's address in the block table, so that mappings have regions of their own.
pub const MAPPED_SPACE: u64 = 1 << 47;

/// How a window came to be.
pub const ORIGIN_EXEC: u32 = 0;
/// The window belongs to a child made by `fork`.
pub const ORIGIN_FORK: u32 = 1;
/// The window belongs to a process that had run before it was traced.
pub const ORIGIN_ATTACH: u32 = 2;

/// [`Window::state`]: being filled in.
pub const STATE_CLAIMED: u32 = 0;
/// [`Window::state`]: the process is traced.
pub const STATE_LIVE: u32 = 1;
/// [`Window::state`]: tracing stopped before the process ended; `stop_reason` says why.
pub const STATE_STOPPED: u32 = 2;

/// [`Window::stop_reason`]: the arena is full, or its memory could not be had.
pub const STOP_NO_MEMORY: u32 = 1;
/// [`Window::stop_reason`]: the process limited its own address space.
pub const STOP_ADDRESS_SPACE: u32 = 2;
/// [`Window::stop_reason`]: leakscope was told to end it.
pub const STOP_DETACHED: u32 = 3;

/// [`Window::flags`]: the executable brings its own `malloc`, so the tracer's is not called.
pub const FLAG_OWN_MALLOC: u32 = 1;

/// [`Window::exit_state`]: the process has not come to its end.
pub const EXIT_NONE: u32 = 0;
/// [`Window::exit_state`]: a thread that ends the process waits for the holder. Set by the process.
pub const EXIT_WAITING: u32 = 1;
/// [`Window::exit_state`]: the process is asked to serve its memory. Set by the holder, from `EXIT_WAITING`.
pub const EXIT_SERVE: u32 = 2;
/// [`Window::exit_state`]: it does, through the [`Mailbox`]. Set by the process, from `EXIT_SERVE`.
pub const EXIT_SERVING: u32 = 3;
/// [`Window::exit_state`]: it cannot, and waits. Set by the process, from `EXIT_SERVE`.
pub const EXIT_UNABLE: u32 = 4;
/// [`Window::exit_state`]: the process goes on to its end. Set by the holder, or by a process that has given up
/// waiting.
pub const EXIT_GO: u32 = 5;

/// [`Mailbox::kind`]: copy memory.
pub const REQUEST_READ: u32 = 1;
/// [`Mailbox::kind`]: the next part of `/proc/self/maps`, from its beginning if `address` is 0.
pub const REQUEST_MAPS: u32 = 2;
/// [`Mailbox::kind`]: the same of `/proc/self/auxv`.
pub const REQUEST_AUXV: u32 = 3;
/// [`Mailbox::kind`]: no more requests.
pub const REQUEST_END: u32 = 4;
/// Most bytes that one answer has.
pub const ANSWER_MAX: u64 = 1 << 20;

/// Where a process that serves its memory takes requests. The answer's bytes follow.
///
/// The holder writes `kind`, `address` and `length`, then raises `request` by one; the server writes the bytes and
/// `done`, then lets `answer` be `request`. Both sleep on the other's counter (futex).
#[repr(C, align(64))]
pub struct Mailbox {
    /// Counts requests.
    pub request: AtomicU32,
    /// The last request that was answered.
    pub answer: AtomicU32,
    /// `REQUEST_*`.
    pub kind: AtomicU32,
    /// Bytes wanted.
    pub length: AtomicU32,
    /// First address wanted.
    pub address: AtomicU64,
    /// Bytes of the answer: up to the first that cannot be read.
    pub done: AtomicU32,
    /// Bytes that an answer can have.
    pub capacity: AtomicU32,
    /// Thread pointer of the thread that waits.
    pub thread_pointer: AtomicU64,
    /// Pid of the server as the process sees it, 0: no copy could be made, and the waiting thread itself serves
    /// while others may still run.
    pub server: AtomicU32,
    _pad: [u8; 20],
}

/// One process's tables.
#[repr(C)]
pub struct Window {
    /// The header of the chunk that the window starts.
    pub chunk: ChunkHeader,
    /// `STATE_*`.
    pub state: AtomicU32,
    /// `STOP_*`.
    pub stop_reason: AtomicU32,
    /// Pid as the process itself sees it.
    pub pid: AtomicU32,
    /// Its parent's.
    pub ppid: AtomicU32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22); 0 if unknown.
    pub start_ticks: AtomicU64,
    /// Tick at which tracing began.
    pub started: AtomicU32,
    /// `ORIGIN_*`.
    pub origin: AtomicU32,
    /// The parent's window for a forked child, else 0.
    pub parent: AtomicU64,
    /// Blocks and bytes in use in the parent at the fork.
    pub inherited_blocks: AtomicU64,
    /// See `inherited_blocks`.
    pub inherited_bytes: AtomicU64,
    /// `FLAG_*`.
    pub flags: AtomicU32,
    /// Bytes used in `exe`.
    pub exe_len: AtomicU32,
    /// Bytes used in `command` (arguments end in NUL).
    pub command_len: AtomicU32,
    /// Written by the holder once the process is gone: 1 = exited with `end_status`, 2 = killed by signal
    /// `end_status`, 3 = replaced itself, 4 = ended, not known how.
    pub end: AtomicU32,
    /// See `end`.
    pub end_status: AtomicU32,
    /// Pid in the holder's pid namespace, written by the holder; 0 until known.
    pub host_pid: AtomicU32,
    /// Counts the windows of the run, from 1: of two with the same pid, the later one replaced the earlier.
    pub serial: AtomicU32,
    /// `EXIT_*`: what the process and the holder have agreed on at the process's end. The process sleeps on it
    /// (futex).
    pub exit_state: AtomicU32,
    /// The thread that waits, by its own pid namespace; written before `exit_state`.
    pub exit_tid: AtomicU32,
    /// Its stack pointer. Its callee-saved registers lie above, so its stack says all that it holds.
    pub exit_sp: AtomicU64,
    /// The [`Mailbox`] (units), while it serves.
    pub exit_mailbox: AtomicU32,
    _pad0: [u8; 8],

    /// What is left of the window's newest piece: its offset in [`UNIT`]s, shifted left by [`BUMP_BITS`], plus the
    /// units that are left.
    pub bump: AtomicU64,
    /// Program counters that have an unwinding rule (for the curious).
    pub rules: AtomicU32,
    /// Chunks that the window has taken.
    pub chunks: AtomicU32,
    _pad1: [u8; 48],

    /// Bytes in use, by what the threads have reported so far (each reports every 64 KiB of change).
    pub inuse: AtomicI64,
    /// Highest value of `inuse` at which per-stack numbers were stamped.
    pub peak: AtomicI64,
    /// Counts those stampings.
    pub epoch: AtomicU32,
    _pad2: [u8; 44],

    /// Newest node index table (offset), 0 before the first.
    pub node_index: AtomicU64,
    /// Nodes handed out; node 0 is the root.
    pub nodes: AtomicU32,
    /// Stacks handed out; stack 0 sums what did not fit.
    pub stacks: AtomicU32,
    /// Threads ever seen.
    pub thread_count: AtomicU32,
    /// Shards in use or recycled.
    pub shard_count: AtomicU32,
    /// Newest module record, in units; 0 = none.
    pub modules: AtomicU32,
    /// Module records made.
    pub module_count: AtomicU32,
    _pad3: [u8; 32],

    /// Calls made while a hook of the same thread was at work (a signal handler's, or the allocator's own).
    pub missed_nested: AtomicU64,
    /// Allocations not recorded for want of space.
    pub missed_full: AtomicU64,
    /// Frees of blocks that were never recorded (allocated before tracing, or missed).
    pub unknown_frees: AtomicU64,
    /// Blocks inherited at fork and freed here.
    pub inherited_freed_blocks: AtomicU64,
    /// Their bytes.
    pub inherited_freed_bytes: AtomicU64,
    /// Blocks and bytes freed by hooks that ran without a shard of their own.
    pub orphan_frees: AtomicU64,
    /// Stacks that were cut at the depth limit.
    pub truncated: AtomicU64,
    _pad4: [u8; 8],

    /// Path of the executable.
    pub exe: [AtomicU8; EXE_MAX],
    /// Command line.
    pub command: [AtomicU8; COMMAND_MAX],
    /// Span number in the upper half, span page (units) in the lower.
    pub spans: [AtomicU64; SPAN_SLOTS],
    /// Node blocks (units).
    pub node_blocks: [AtomicU32; NODE_BLOCKS],
    /// Stack blocks (units).
    pub stack_blocks: [AtomicU32; STACK_BLOCKS],
    /// Shards (units).
    pub shards: [AtomicU32; SHARDS],
    /// Ring of threads, at `sequence % THREADS`.
    pub threads: [ThreadRecord; THREADS],
    /// Blocks of 4 GiB and more.
    pub huge: [HugeBlock; HUGE],
    /// Points used in `timeline`, written by the holder.
    pub timeline_len: AtomicU32,
    _pad5: [u8; 60],
    /// The timeline, oldest first.
    pub timeline: [TimelineRecord; TIMELINE],
}

/// A thread that was seen.
#[repr(C)]
pub struct ThreadRecord {
    /// Its tid; 0 = unused.
    pub tid: AtomicU32,
    /// Its sequence number, from 1.
    pub sequence: AtomicU32,
    /// Tick of its first allocation.
    pub started: AtomicU32,
    _pad: u32,
    /// Its name, written by the holder while the thread lives.
    pub name: [AtomicU8; 16],
}

/// Size of a block that does not fit 32 bits.
#[repr(C)]
pub struct HugeBlock {
    /// Address; 0 = free.
    pub address: AtomicU64,
    /// Bytes.
    pub size: AtomicU64,
}

/// A timeline point.
#[repr(C)]
pub struct TimelineRecord {
    /// Tick.
    pub tick: AtomicU32,
    _pad: u32,
    /// Heap bytes in use.
    pub inuse: AtomicU64,
    /// Resident set size in bytes.
    pub rss: AtomicU64,
    /// Heap bytes allocated since the start.
    pub allocated: AtomicU64,
}

/// The part of a thread's state that readers sum. Only the owning thread writes it.
///
/// Numbers of blocks and bytes here, in [`Counters`], the window's and the timeline's are sums of weights, which
/// [`crate::sampling`] turns into blocks and bytes.
#[repr(C)]
pub struct Shard {
    /// Tid of the owner; a shard whose owner is gone is taken over by the next new thread.
    pub owner: AtomicU32,
    /// Sequence number of the owner.
    pub sequence: AtomicU32,
    /// Blocks ever allocated (heap only, as all of these).
    pub allocated_blocks: AtomicU64,
    /// Bytes ever allocated.
    pub allocated_bytes: AtomicU64,
    /// Blocks ever freed.
    pub freed_blocks: AtomicU64,
    /// Bytes ever freed.
    pub freed_bytes: AtomicU64,
    /// Bytes of change not yet added to [`Window::inuse`].
    pub pending: AtomicI64,
    /// Address of the thread's private state in the process, which names blocks: no root for whoever looks for leaks.
    pub private: AtomicU64,
    /// Its bytes.
    pub private_len: AtomicU64,
    /// First level of the directory of counters (units), by stack number / (COUNTER_DIR * COUNTER_PAGE).
    pub counters: [AtomicU32; COUNTER_DIR],
}

/// What one thread did under one stack. Only the owning thread writes it.
#[repr(C, align(64))]
pub struct Counters {
    /// Blocks allocated.
    pub allocated_blocks: AtomicU64,
    /// Bytes allocated.
    pub allocated_bytes: AtomicU64,
    /// Blocks of this stack that this thread freed (whoever allocated them).
    pub freed_blocks: AtomicU64,
    /// Their bytes.
    pub freed_bytes: AtomicU64,
    /// `allocated_bytes - freed_bytes` (wrapping) when epoch `epoch` began.
    pub peak_bytes: AtomicI64,
    /// The same for blocks.
    pub peak_blocks: AtomicI64,
    /// Blocks freed before the thread allocated anything else.
    pub temporary: AtomicU64,
    /// The epoch that `peak_*` belong to; if older than the window's, the numbers have not changed since.
    pub epoch: AtomicU32,
    /// Allocations that were recorded (wraps): what the estimates rest on, if they are sampled.
    pub samples: AtomicU32,
}

/// One frame of the stack trie.
#[repr(C, align(16))]
pub struct NodeRecord {
    /// Program counter in the low [`PC_BITS`], module number (0 = none) above; 0 = not yet written.
    pub key: AtomicU64,
    /// Node of the caller; 0 = root.
    pub parent: AtomicU32,
    /// Stack number if this node is some stack's innermost frame, else 0.
    pub stack: AtomicU32,
}

/// Header of a node index: `slots` 32-bit node numbers follow.
#[repr(C, align(64))]
pub struct NodeIndex {
    /// The older, smaller table (offset), 0 = none.
    pub older: u64,
    /// Slots, a power of two.
    pub slots: u32,
    /// Slots taken.
    pub used: AtomicU32,
    _pad: [u8; 48],
}

/// Header of a segment of block slots: `buckets` cache lines follow.
#[repr(C, align(64))]
pub struct Segment {
    /// Next segment of the region (units), 0 = none.
    pub next: AtomicU32,
    /// Buckets.
    pub buckets: AtomicU32,
    _pad: [u8; 56],
}

/// Header of a module record; the path follows.
#[repr(C, align(64))]
pub struct ModuleRecord {
    /// Older record (units), 0 = none.
    pub next: u32,
    /// Module number, from 1.
    pub id: u32,
    /// First mapped address.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// Load bias.
    pub bias: u64,
    /// Bytes used in `build_id`.
    pub build_id_len: u32,
    /// Bytes of the path.
    pub path_len: u32,
    /// Tick at which it was seen unloaded; 0 = still mapped.
    pub unloaded: AtomicU32,
    _pad: u32,
    /// GNU build id.
    pub build_id: [u8; 32],
    _pad1: [u8; 48],
}

/// A block's slot: two words that change in one atomic step.
///
/// ```text
/// word 0: bits 0-1 state, 2-15 address within the region / 8, 16-33 thread sequence, 34-63 stack
/// word 1: bits 0-31 size in bytes (mappings: in pages; u32::MAX: see the huge table), 32-63 birth tick
/// ```
/// State 0 is free; then word 1 keeps its last value, so that a slot's two words never repeat by accident.
pub mod slot {
    use super::REGION_SHIFT;

    /// State: a heap block.
    pub const HEAP: u64 = 1;
    /// State: a heap block whose `realloc` is in progress.
    pub const IN_FLIGHT: u64 = 2;
    /// State: a mapping.
    pub const MAPPED: u64 = 3;
    /// Size value meaning "in the huge table".
    pub const HUGE_SIZE: u32 = u32::MAX;
    /// Largest stack number.
    pub const STACK_MAX: u32 = (1 << 30) - 1;

    const OFFSET_BITS: u32 = REGION_SHIFT - 3;
    const THREAD_BITS: u32 = 18;

    /// The bits of word 0 that identify a block: state and address.
    pub const KEY_MASK: u64 = (1 << (2 + OFFSET_BITS)) - 1;

    /// State and address bits of word 0.
    pub const fn key(state: u64, address: u64) -> u64 {
        state | ((address >> 3) & ((1 << OFFSET_BITS) - 1)) << 2
    }
    /// Word 0.
    pub const fn word0(state: u64, address: u64, thread: u32, stack: u32) -> u64 {
        key(state, address)
            | ((thread as u64) & ((1 << THREAD_BITS) - 1)) << (2 + OFFSET_BITS)
            | (stack as u64) << (2 + OFFSET_BITS + THREAD_BITS)
    }
    /// Word 1.
    pub const fn word1(size: u32, birth: u32) -> u64 {
        size as u64 | (birth as u64) << 32
    }
    /// State.
    pub const fn state(word0: u64) -> u64 {
        word0 & 3
    }
    /// Address within the region in bytes.
    pub const fn offset(word0: u64) -> u64 {
        ((word0 >> 2) & ((1 << OFFSET_BITS) - 1)) << 3
    }
    /// Low bits of the thread's sequence number.
    pub const fn thread(word0: u64) -> u32 {
        ((word0 >> (2 + OFFSET_BITS)) & ((1 << THREAD_BITS) - 1)) as u32
    }
    /// Stack number.
    pub const fn stack(word0: u64) -> u32 {
        (word0 >> (2 + OFFSET_BITS + THREAD_BITS)) as u32
    }
    /// Size field.
    pub const fn size(word1: u64) -> u32 {
        word1 as u32
    }
    /// Birth tick.
    pub const fn birth(word1: u64) -> u32 {
        (word1 >> 32) as u32
    }
}

/// The two candidate buckets of an address among `buckets`.
pub fn bucket_pair(address: u64, buckets: u32) -> (u32, u32) {
    let offset = (address >> 3) as u32 & ((1 << (REGION_SHIFT - 3)) - 1);
    let first = offset.wrapping_mul(0x9E37_79B1);
    let second = (offset ^ 0x55AA).wrapping_mul(0x85EB_CA6B);
    (
        ((u64::from(first) * u64::from(buckets)) >> 32) as u32,
        ((u64::from(second) * u64::from(buckets)) >> 32) as u32,
    )
}

const _: () = {
    assert!(size_of::<Superblock>() as u64 <= CHUNK);
    assert!(size_of::<ChunkHeader>() as u64 == UNIT);
    assert!(size_of::<Window>() <= 96 * 1024);
    assert!(size_of::<Counters>() == 64);
    assert!(size_of::<NodeRecord>() == 16);
    assert!(size_of::<Segment>() == 64);
    assert!(size_of::<Mailbox>() == 64);
    assert!(size_of::<NodeIndex>() == 64);
    assert!(size_of::<ModuleRecord>() == 128);
};
