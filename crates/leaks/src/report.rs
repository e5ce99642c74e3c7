//! What a scan found, as plain data.

use crate::{Comparison, ContentHint, KindSet, Outcome, Retention, SuppressionUse};
use leakscope_profile::{Frame, MissingDebugInfo, Process};
use leakscope_reach::Kind;
use std::time::Duration;

/// The result of one scan of one process.
#[derive(Debug, Clone, Default)]
pub struct LeakReport {
    /// The process scanned.
    pub process: Process,
    /// What the result means; see [`Outcome::of`].
    pub outcome: Outcome,
    /// The kinds that [`LeakReport::outcome`] was judged by.
    pub errors: KindSet,
    /// Where memory and blocks were taken from.
    pub source: Source,
    /// How long the process stood still; none for a core file and for a process at its own exit.
    pub pause: Option<Duration>,
    /// How long it took to list the blocks and to find what is reachable, after the pause or, without a frozen copy, in it.
    pub scan: Duration,
    /// Sums over all blocks of the heap.
    pub summary: Summary,
    /// All records, also suppressed ones and kinds that are not shown; in memcheck's order, the largest last.
    pub records: Vec<LeakRecord>,
    /// The suppressions that matched something.
    pub suppressions: Vec<SuppressionUse>,
    /// What has changed since the scan before, when there was one.
    pub comparison: Option<Comparison>,
    /// Which reachable memory keeps growing, if asked for.
    pub retention: Option<Retention>,
    /// What a reader must know to judge the numbers: ambiguous chunks, regions that could not be read.
    pub notes: Vec<String>,
    /// Modules that could not be named fully.
    pub missing: Vec<MissingDebugInfo>,
}

impl Default for KindSet {
    /// [`KindSet::DEFAULT_ERRORS`].
    fn default() -> KindSet {
        KindSet::DEFAULT_ERRORS
    }
}

/// Where a scan's memory and blocks came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Source {
    /// How the memory was held still.
    pub snapshot: SnapshotKind,
    /// Who listed the blocks.
    pub blocks: BlockSource,
}

/// How a process's memory was held still while it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SnapshotKind {
    /// In a copy made by `fork`; the process ran on meanwhile.
    #[default]
    Fork,
    /// The process stood still for the whole scan.
    Stopped,
    /// It is a core file.
    Core,
    /// At the process's own exit.
    Exit,
}

impl SnapshotKind {
    /// The name in JSON: `fork`, `stopped`, `core` or `exit`.
    pub fn name(self) -> &'static str {
        match self {
            SnapshotKind::Fork => "fork",
            SnapshotKind::Stopped => "stopped",
            SnapshotKind::Core => "core",
            SnapshotKind::Exit => "exit",
        }
    }
}

/// Who knows which blocks there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum BlockSource {
    /// The tracer: sizes as requested, each with its stack.
    #[default]
    Tracer,
    /// The process's own allocator, walked from outside: sizes as rounded up by it, no stacks.
    Allocator {
        /// Its name and version, such as `glibc 2.36`.
        name: String,
    },
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Amount {
    /// Bytes.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    /// Adds; a sum too large for 64 bits stays at the largest.
    pub fn add(&mut self, bytes: u64, blocks: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks = self.blocks.saturating_add(blocks);
    }
}

/// Sums by kind as in memcheck's leak summary. Every block is in exactly one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Definitely lost.
    pub definite: Amount,
    /// Indirectly lost.
    pub indirect: Amount,
    /// Possibly lost.
    pub possible: Amount,
    /// Still reachable.
    pub reachable: Amount,
    /// Of any kind, in records that a suppression matches.
    pub suppressed: Amount,
}

impl Summary {
    /// The sum of one kind.
    pub fn of(&self, kind: Kind) -> Amount {
        match kind {
            Kind::Definite => self.definite,
            Kind::Indirect => self.indirect,
            Kind::Possible => self.possible,
            Kind::Reachable => self.reachable,
        }
    }

    /// The sum of one kind, to add to.
    pub fn of_mut(&mut self, kind: Kind) -> &mut Amount {
        match kind {
            Kind::Definite => &mut self.definite,
            Kind::Indirect => &mut self.indirect,
            Kind::Possible => &mut self.possible,
            Kind::Reachable => &mut self.reachable,
        }
    }

    /// All blocks of the heap.
    pub fn total(&self) -> Amount {
        let mut total = self.suppressed;
        for kind in KindSet::KINDS {
            total.add(self.of(kind).bytes, self.of(kind).blocks);
        }
        total
    }
}

/// All blocks of one kind that were allocated with one stack; without stacks, of one type and size class.
#[derive(Debug, Clone, PartialEq)]
pub struct LeakRecord {
    /// Memcheck's kind.
    pub kind: Kind,
    /// [`LeakRecord::direct_bytes`] + [`LeakRecord::indirect_bytes`]. Indirect bytes are in their leader's record and
    /// in their own, but once in the summary.
    pub bytes: u64,
    /// Bytes of the record's own blocks.
    pub direct_bytes: u64,
    /// Bytes of lost blocks that only these blocks lead to.
    pub indirect_bytes: u64,
    /// Those in blocks.
    pub indirect_blocks: u64,
    /// The record's own blocks.
    pub blocks: u64,
    /// Frames, innermost first, from the allocator's caller on; empty if the process was not prepared.
    pub stack: Vec<Frame>,
    /// Set if the stack's outer end is missing.
    pub truncated: bool,
    /// How many frames of the allocator's adaptors (Rust's `alloc::alloc`, C++'s `std::allocator`) were left out at
    /// the stack's inner end.
    pub trimmed: usize,
    /// The function that allocated (`malloc`, `operator new(unsigned long)`), if known.
    pub allocator: Option<String>,
    /// What the blocks' first word says about their type, such as a C++ class (by its vtable).
    pub type_name: Option<String>,
    /// The smallest and the largest of the blocks.
    pub sizes: SizeRange,
    /// What kind of data a block holds.
    pub content: Option<ContentHint>,
    /// The first bytes of a block, only if asked for: they can hold secrets.
    pub contents: Option<Vec<u8>>,
    /// Who leads to the blocks: of reachable and possible ones, from a root.
    pub holders: Vec<Chain>,
    /// How long ago the blocks were allocated, if known.
    pub ages: Option<Ages>,
    /// Addresses of a few of the blocks, lowest first, to look at them in a debugger.
    pub examples: Vec<u64>,
    /// Name of the suppression that matches it.
    pub suppressed_by: Option<String>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SizeRange {
    /// The smallest.
    pub min: u64,
    /// The largest.
    pub max: u64,
}

/// Times since blocks were allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ages {
    /// The youngest block's.
    pub youngest: Duration,
    /// The oldest block's.
    pub oldest: Duration,
}

/// How a block is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Chain {
    /// From the root (a global, a thread's stack frame, a register) to what points at the block, such as
    /// `global sessions in server`, `Session.cache`, `entries[…]`.
    pub steps: Vec<String>,
    /// How many of the record's blocks were found to be held this way; 0 if only looked at as an example.
    pub blocks: u64,
}
