//! From blocks to loss records.
//!
//! Memcheck's rule: blocks of one kind that were allocated with one stack are one record, and a leader's record also
//! counts the bytes that hang off it. Two stacks are one here if they print the same, as everywhere in leakscope (for
//! memcheck, calls at two addresses of one line are two). Blocks without a stack are told apart by what their first
//! word says of their type, and by size class.

use crate::report::{Ages, LeakRecord, SizeRange, Summary};
use crate::suppress::{Subject, SuppressionUse, Suppressions};
use leakscope_profile::{Frame, is_allocator_function};
use leakscope_reach::Kind;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

/// How many addresses a record names.
const EXAMPLES: usize = 4;

/// A block and what the scan found about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundBlock {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// Whether and how it is reached.
    pub kind: Kind,
    /// Of a definite block: bytes of the blocks that it alone leads to; 0 of others.
    pub indirect_bytes: u64,
    /// Those in blocks.
    pub indirect_blocks: u64,
    /// Index into [`Names::stacks`], if the block was traced.
    pub stack: Option<u32>,
    /// Index into [`Names::types`], if its first word tells a type.
    pub signature: Option<u32>,
    /// How long before the scan it was allocated, if known.
    pub age: Option<Duration>,
}

/// What the numbers in [`FoundBlock`]s stand for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Names<'a> {
    /// Stacks; only those in [`Collector::stacks`] need names.
    pub stacks: &'a [Stack],
    /// Names of types, such as C++ classes.
    pub types: &'a [String],
}

/// A stack with its names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stack {
    /// Frames, innermost first. The allocator's own may be there; records begin at their caller.
    pub frames: Vec<Frame>,
    /// Mangled names of the same frames where they are known and differ; may be shorter, or empty.
    pub mangled: Vec<Option<String>>,
    /// Set if the outer end is missing.
    pub truncated: bool,
    /// The function that was called to allocate, if known and not among the frames.
    pub allocator: Option<String>,
}

/// A class of sizes: exact for small blocks, eight classes for each doubling above 1 KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SizeClass(u64);

impl SizeClass {
    /// The class of a block of `size` bytes. Blocks of up to 1 KiB are of one class if an allocator that rounds up to
    /// 16 bytes, with 8 for itself, could give them the same chunk.
    pub fn of(size: u64) -> SizeClass {
        const FINE: u64 = 1024;
        if size <= FINE {
            return SizeClass(size.saturating_add(7) / 16);
        }
        let power = u64::from(size.ilog2());
        let eighth = (size >> power.saturating_sub(3)) & 7;
        SizeClass(FINE + power * 8 + eighth)
    }
}

/// Blocks are one group as long as these are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Stack(u32),
    Untraced(Option<u32>, SizeClass),
}

impl FoundBlock {
    fn key(&self) -> (Kind, Key) {
        let key = match self.stack {
            Some(stack) => Key::Stack(stack),
            None => Key::Untraced(self.signature, SizeClass::of(self.size)),
        };
        (self.kind, key)
    }
}

/// Sums up blocks by kind and stack as they come; takes memory by the number of groups, not of blocks.
#[derive(Debug, Clone, Default)]
pub struct Collector {
    groups: HashMap<(Kind, Key), Group, BuildHasherDefault<KeyHasher>>,
}

/// Multiplies and rotates. The keys are numbers that leakscope gave out itself, so nobody can choose them to collide.
#[derive(Debug, Clone, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}

/// Sums over blocks.
#[derive(Debug, Clone, Default)]
struct Group {
    direct_bytes: u64,
    indirect_bytes: u64,
    indirect_blocks: u64,
    blocks: u64,
    sizes: Option<SizeRange>,
    ages: Option<Ages>,
    /// The type of all blocks, as long as they have the same.
    signature: Option<Option<u32>>,
    examples: BTreeSet<u64>,
}

impl Group {
    /// For every block of a heap, so it takes no detour over [`Group::merge`].
    fn add(&mut self, block: &FoundBlock) {
        self.direct_bytes = self.direct_bytes.saturating_add(block.size);
        self.indirect_bytes = self.indirect_bytes.saturating_add(block.indirect_bytes);
        self.indirect_blocks = self.indirect_blocks.saturating_add(block.indirect_blocks);
        self.blocks = self.blocks.saturating_add(1);
        let sizes = self.sizes.get_or_insert(SizeRange { min: block.size, max: block.size });
        *sizes = SizeRange { min: sizes.min.min(block.size), max: sizes.max.max(block.size) };
        if let Some(age) = block.age {
            let ages = self.ages.get_or_insert(Ages { youngest: age, oldest: age });
            *ages = Ages { youngest: ages.youngest.min(age), oldest: ages.oldest.max(age) };
        }
        match self.signature {
            None => self.signature = Some(block.signature),
            Some(signature) if signature != block.signature => self.signature = Some(None),
            Some(_) => {}
        }
        if self.examples.len() < EXAMPLES || self.examples.last().is_some_and(|&last| block.address < last) {
            self.examples.insert(block.address);
            self.limit_examples();
        }
    }

    fn merge(&mut self, other: Group) {
        self.direct_bytes = self.direct_bytes.saturating_add(other.direct_bytes);
        self.indirect_bytes = self.indirect_bytes.saturating_add(other.indirect_bytes);
        self.indirect_blocks = self.indirect_blocks.saturating_add(other.indirect_blocks);
        self.blocks = self.blocks.saturating_add(other.blocks);
        self.sizes = match (self.sizes, other.sizes) {
            (Some(a), Some(b)) => Some(SizeRange { min: a.min.min(b.min), max: a.max.max(b.max) }),
            (a, b) => a.or(b),
        };
        self.ages = match (self.ages, other.ages) {
            (Some(a), Some(b)) => {
                Some(Ages { youngest: a.youngest.min(b.youngest), oldest: a.oldest.max(b.oldest) })
            }
            (a, b) => a.or(b),
        };
        self.signature = match (self.signature, other.signature) {
            (Some(a), Some(b)) => Some(if a == b { a } else { None }),
            (a, b) => a.or(b),
        };
        self.examples.extend(other.examples);
        self.limit_examples();
    }

    fn limit_examples(&mut self) {
        while self.examples.len() > EXAMPLES {
            self.examples.pop_last();
        }
    }
}

/// Records and sums.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// Records in memcheck's order: ascending by bytes.
    pub records: Vec<LeakRecord>,
    /// Sums by kind.
    pub summary: Summary,
    /// The suppressions that matched, in their own order.
    pub suppressions: Vec<SuppressionUse>,
    index: HashMap<(Kind, Key), usize>,
}

impl Merged {
    /// Index into [`Merged::records`] of the record that a block, given to the collector before, is in.
    pub fn record_of(&self, block: &FoundBlock) -> Option<usize> {
        self.index.get(&block.key()).copied()
    }
}

/// Makes records of blocks: [`Collector`] in one call.
pub fn merge(
    blocks: impl IntoIterator<Item = FoundBlock>,
    names: &Names<'_>,
    suppressions: &Suppressions,
) -> Merged {
    let mut collector = Collector::default();
    blocks.into_iter().for_each(|block| collector.add(&block));
    collector.finish(names, suppressions)
}

impl Collector {
    /// Adds a block.
    pub fn add(&mut self, block: &FoundBlock) {
        self.groups.entry(block.key()).or_default().add(block);
    }

    /// The stacks of all blocks so far with those kinds that `wanted` says are worth naming, ascending.
    pub fn stacks(&self, wanted: impl Fn(Kind) -> bool) -> Vec<u32> {
        let stacks: BTreeSet<u32> = self
            .groups
            .keys()
            .filter_map(|&(kind, key)| match key {
                Key::Stack(stack) if wanted(kind) => Some(stack),
                _ => None,
            })
            .collect();
        stacks.into_iter().collect()
    }

    /// The records. Groups whose stacks have the same names become one, unless another suppression matches them.
    ///
    /// A stack or type that `names` does not have is an empty stack, an unknown type.
    pub fn finish(self, names: &Names<'_>, suppressions: &Suppressions) -> Merged {
        let no_stack = Stack::default();
        let type_of = |id: Option<u32>| id.and_then(|id| names.types.get(usize::try_from(id).ok()?));
        let mut groups: Vec<_> = self.groups.into_iter().collect();
        // So that the result does not depend on the hash table's order.
        groups.sort_unstable_by_key(|&(key, _)| key);
        let mut merged: Vec<Draft<'_>> = Vec::new();
        let mut by_identity: HashMap<Identity<'_>, usize> = HashMap::new();
        let mut drafts = Vec::with_capacity(groups.len());
        let mut uses = vec![SuppressionUse::default(); suppressions.len()];
        for (key, group) in groups {
            let (stack, class) = match key.1 {
                Key::Stack(id) => {
                    let found = usize::try_from(id).ok().and_then(|id| names.stacks.get(id));
                    (found.unwrap_or(&no_stack), None)
                }
                Key::Untraced(signature, class) => (&no_stack, Some((type_of(signature), class))),
            };
            let suppression = suppressions.find(&Subject {
                kind: key.0,
                frames: &stack.frames,
                mangled: &stack.mangled,
                allocator: stack.allocator.as_deref(),
            });
            if let Some(used) = suppression.and_then(|index| uses.get_mut(index)) {
                used.amount.add(group.direct_bytes, group.blocks);
            }
            let own = own_frames(&stack.frames);
            let identity = Identity {
                kind: key.0,
                suppression,
                frames: own.iter().map(frame_identity).collect(),
                truncated: stack.truncated,
                class,
            };
            let next = merged.len();
            let draft = *by_identity.entry(identity).or_insert(next);
            if draft == next {
                merged.push(Draft { kind: key.0, suppression, stack, own, group: Group::default(), key });
            }
            if let Some(slot) = merged.get_mut(draft) {
                slot.group.merge(group);
            }
            drafts.push((key, draft));
        }
        finish(merged, drafts, uses, &type_of, suppressions)
    }
}

/// A record in the making.
struct Draft<'a> {
    kind: Kind,
    suppression: Option<usize>,
    stack: &'a Stack,
    own: &'a [Frame],
    group: Group,
    key: (Kind, Key),
}

#[derive(PartialEq, Eq, Hash)]
struct Identity<'a> {
    kind: Kind,
    suppression: Option<usize>,
    frames: Vec<FrameIdentity<'a>>,
    truncated: bool,
    class: Option<(Option<&'a String>, SizeClass)>,
}

/// What makes two frames print the same.
pub(crate) type FrameIdentity<'a> =
    (Option<&'a str>, Option<&'a str>, Option<u32>, Option<&'a str>, u64, bool);

pub(crate) fn frame_identity(frame: &Frame) -> FrameIdentity<'_> {
    // A named frame stands for all addresses of its line.
    let address = if frame.function.is_some() { 0 } else { frame.address };
    (
        frame.function.as_deref(),
        frame.file.as_deref(),
        frame.line,
        frame.module.as_deref(),
        address,
        frame.inlined,
    )
}

/// The frames without the allocator's own at the inner end. A stack of nothing else is better shown than hidden.
fn own_frames(frames: &[Frame]) -> &[Frame] {
    let is_own = |frame: &Frame| !frame.function.as_deref().is_some_and(is_allocator_function);
    let first = frames.iter().position(is_own).unwrap_or(0);
    frames.get(first..).unwrap_or(frames)
}

fn finish<'a>(
    merged: Vec<Draft<'_>>,
    drafts: Vec<((Kind, Key), usize)>,
    mut uses: Vec<SuppressionUse>,
    type_of: &impl Fn(Option<u32>) -> Option<&'a String>,
    suppressions: &Suppressions,
) -> Merged {
    let mut summary = Summary::default();
    let mut numbered = Vec::with_capacity(merged.len());
    for (number, draft) in merged.into_iter().enumerate() {
        let group = draft.group;
        let sum = match draft.suppression {
            Some(_) => &mut summary.suppressed,
            None => summary.of_mut(draft.kind),
        };
        sum.add(group.direct_bytes, group.blocks);
        if let Some(used) = draft.suppression.and_then(|index| uses.get_mut(index)) {
            used.records += 1;
        }
        let signature = match draft.key.1 {
            Key::Untraced(signature, _) => signature,
            Key::Stack(_) => group.signature.flatten(),
        };
        let trimmed = draft.stack.frames.len() - draft.own.len();
        let inner = draft.stack.frames.first().filter(|_| trimmed > 0);
        let record = LeakRecord {
            kind: draft.kind,
            bytes: group.direct_bytes.saturating_add(group.indirect_bytes),
            direct_bytes: group.direct_bytes,
            indirect_bytes: group.indirect_bytes,
            indirect_blocks: group.indirect_blocks,
            blocks: group.blocks,
            stack: draft.own.to_vec(),
            truncated: draft.stack.truncated,
            trimmed,
            allocator: draft
                .stack
                .allocator
                .clone()
                .or_else(|| inner.and_then(|frame| frame.function.clone())),
            type_name: type_of(signature).cloned(),
            sizes: group.sizes.unwrap_or_default(),
            content: None,
            contents: None,
            holders: Vec::new(),
            ages: group.ages,
            examples: group.examples.into_iter().collect(),
            suppressed_by: draft
                .suppression
                .and_then(|index| suppressions.name(index))
                .map(ToOwned::to_owned),
        };
        numbered.push((number, record));
    }
    numbered.sort_by(|(_, a), (_, b)| order(a, b));
    let mut places = vec![0; numbered.len()];
    for (place, (number, _)) in numbered.iter().enumerate() {
        if let Some(slot) = places.get_mut(*number) {
            *slot = place;
        }
    }
    let index = drafts.into_iter().filter_map(|(key, draft)| Some((key, *places.get(draft)?))).collect();
    let suppressions = uses
        .into_iter()
        .enumerate()
        .filter(|(_, used)| used.amount.blocks > 0)
        .map(|(index, used)| SuppressionUse {
            name: suppressions.name(index).unwrap_or_default().to_owned(),
            origin: suppressions.origin(index).cloned().unwrap_or_default(),
            ..used
        })
        .collect();
    let records = numbered.into_iter().map(|(_, record)| record).collect();
    Merged { records, summary, suppressions, index }
}

/// Ascending by bytes, then by kind with definite ones first, then by blocks, as memcheck's; ties by name, so that the
/// order does not depend on the run.
fn order(a: &LeakRecord, b: &LeakRecord) -> std::cmp::Ordering {
    let names =
        |record: &LeakRecord| record.stack.iter().map(|frame| frame.function.clone()).collect::<Vec<_>>();
    let lines = |record: &LeakRecord| record.stack.iter().map(|frame| frame.line).collect::<Vec<_>>();
    a.bytes
        .cmp(&b.bytes)
        .then(b.kind.cmp(&a.kind))
        .then(a.blocks.cmp(&b.blocks))
        .then_with(|| names(a).cmp(&names(b)))
        .then_with(|| lines(a).cmp(&lines(b)))
        .then_with(|| a.type_name.cmp(&b.type_name))
}
