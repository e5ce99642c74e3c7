//! Two scans of one process: what was lost in between, how fast, and who held it last.

use crate::records::{FrameIdentity, SizeClass, frame_identity};
use crate::{Amount, Chain, KindSet, LeakRecord, Summary};
use leakscope_reach::Kind;
use std::collections::HashMap;
use std::time::Duration;

/// One scan's result, as far as it is compared.
#[derive(Debug, Clone, Copy)]
pub struct Scan<'a> {
    /// Its records.
    pub records: &'a [LeakRecord],
    /// Its sums.
    pub summary: &'a Summary,
}

/// A block that the later scan found lost and the earlier one still held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostBetween {
    /// Index into the later scan's records ([`Merged::record_of`](crate::Merged::record_of)).
    pub record: usize,
    /// Bytes.
    pub size: u64,
    /// Who held it at the earlier scan, from the root; empty if that is not known.
    pub held_by: Vec<String>,
}

/// What has changed from one scan to the next.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// Time from scan to scan, in seconds.
    pub seconds: f64,
    /// Change of each kind's sum, in bytes and blocks; order of [`KindSet::KINDS`].
    pub totals: Vec<(Kind, i128, i128)>,
    /// Lost (definitely or indirectly) in between.
    pub lost: Amount,
    /// The same per minute: bytes.
    pub lost_bytes_per_minute: f64,
    /// The same per minute: blocks.
    pub lost_blocks_per_minute: f64,
    /// Records that are new, have changed or are gone, those that grew fastest first. Suppressed ones are left out.
    pub changes: Vec<Change>,
}

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeStatus {
    /// The earlier scan did not have it.
    New,
    /// It has more blocks or bytes.
    Grown,
    /// It has fewer.
    Shrunk,
    /// The later scan does not have it: freed, or of another kind now.
    Gone,
}

impl ChangeStatus {
    /// The name in JSON: `new`, `grown`, `shrunk` or `gone`.
    pub fn name(self) -> &'static str {
        match self {
            ChangeStatus::New => "new",
            ChangeStatus::Grown => "grown",
            ChangeStatus::Shrunk => "shrunk",
            ChangeStatus::Gone => "gone",
        }
    }
}

/// The change of one record; of its own blocks, not of what hangs off them.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// What became of it.
    pub status: ChangeStatus,
    /// Index into the later scan's records; none if it is gone.
    pub record: Option<usize>,
    /// Index into the earlier scan's records; none if it is new.
    pub previous: Option<usize>,
    /// The record's kind.
    pub kind: Kind,
    /// More bytes than before.
    pub bytes: i128,
    /// More blocks than before.
    pub blocks: i128,
    /// [`Change::bytes`] per minute.
    pub bytes_per_minute: f64,
    /// [`Change::blocks`] per minute.
    pub blocks_per_minute: f64,
    /// Who held the blocks that were lost in between, the holder of most bytes first.
    pub held_before: Vec<HeldBefore>,
}

/// A chain that held blocks at the earlier scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBefore {
    /// The chain; its number of blocks is of those lost since.
    pub chain: Chain,
    /// Their bytes.
    pub bytes: u64,
}

/// What makes two records of different scans the same.
#[derive(PartialEq, Eq, Hash)]
enum Identity<'a> {
    Stack(Kind, Vec<FrameIdentity<'a>>, bool),
    Untraced(Kind, Option<&'a str>, SizeClass),
}

fn identity(record: &LeakRecord) -> Identity<'_> {
    if record.stack.is_empty() {
        Identity::Untraced(record.kind, record.type_name.as_deref(), SizeClass::of(record.sizes.min))
    } else {
        Identity::Stack(record.kind, record.stack.iter().map(frame_identity).collect(), record.truncated)
    }
}

/// Compares two scans that lie `elapsed` apart. `lost` are blocks that were lost in between, where the caller kept
/// enough of the earlier scan to know them.
pub fn compare(
    previous: Scan<'_>,
    current: Scan<'_>,
    elapsed: Duration,
    lost: impl IntoIterator<Item = LostBetween>,
) -> Comparison {
    let per_minute = 60.0 / elapsed.as_secs_f64().max(1e-3);
    let shown = |records: &'_ [LeakRecord], index: usize| {
        records.get(index).is_some_and(|record| record.suppressed_by.is_none())
    };
    let mut earlier: HashMap<Identity<'_>, usize> = HashMap::new();
    for (index, record) in
        previous.records.iter().enumerate().filter(|&(index, _)| shown(previous.records, index))
    {
        earlier.entry(identity(record)).or_insert(index);
    }
    let mut held = held_by_record(lost);
    let mut changes = Vec::new();
    for (index, record) in
        current.records.iter().enumerate().filter(|&(index, _)| shown(current.records, index))
    {
        let before = earlier.remove(&identity(record));
        let old = before.and_then(|before| previous.records.get(before));
        let bytes = i128::from(record.direct_bytes) - old.map_or(0, |old| i128::from(old.direct_bytes));
        let blocks = i128::from(record.blocks) - old.map_or(0, |old| i128::from(old.blocks));
        let held_before = held.remove(&index).unwrap_or_default();
        let status = match (old, (bytes, blocks)) {
            (None, _) => ChangeStatus::New,
            (Some(_), (0, 0)) if held_before.is_empty() => continue,
            (Some(_), (bytes, blocks)) if bytes > 0 || (bytes == 0 && blocks >= 0) => ChangeStatus::Grown,
            (Some(_), _) => ChangeStatus::Shrunk,
        };
        changes.push(change(
            status,
            Some(index),
            before,
            record.kind,
            (bytes, blocks),
            per_minute,
            held_before,
        ));
    }
    for &index in earlier.values() {
        let Some(record) = previous.records.get(index) else { continue };
        let less = (-i128::from(record.direct_bytes), -i128::from(record.blocks));
        changes.push(change(
            ChangeStatus::Gone,
            None,
            Some(index),
            record.kind,
            less,
            per_minute,
            Vec::new(),
        ));
    }
    changes.sort_by(|a, b| {
        let order = b.bytes.cmp(&a.bytes).then(b.blocks.cmp(&a.blocks)).then(b.kind.cmp(&a.kind));
        order.then(a.record.cmp(&b.record)).then(a.previous.cmp(&b.previous))
    });
    let totals: Vec<_> = KindSet::KINDS
        .into_iter()
        .map(|kind| {
            let (old, new) = (previous.summary.of(kind), current.summary.of(kind));
            (
                kind,
                i128::from(new.bytes) - i128::from(old.bytes),
                i128::from(new.blocks) - i128::from(old.blocks),
            )
        })
        .collect();
    // A block that hangs off a lost one today may be the leader tomorrow, so the two kinds are taken together.
    let lost_sum = |of: fn(&(Kind, i128, i128)) -> i128| {
        let sum: i128 =
            totals.iter().filter(|total| matches!(total.0, Kind::Definite | Kind::Indirect)).map(of).sum();
        u64::try_from(sum.max(0)).unwrap_or(u64::MAX)
    };
    let lost = Amount { bytes: lost_sum(|total| total.1), blocks: lost_sum(|total| total.2) };
    Comparison {
        seconds: elapsed.as_secs_f64(),
        totals,
        lost,
        lost_bytes_per_minute: lost.bytes as f64 * per_minute,
        lost_blocks_per_minute: lost.blocks as f64 * per_minute,
        changes,
    }
}

fn change(
    status: ChangeStatus,
    record: Option<usize>,
    previous: Option<usize>,
    kind: Kind,
    (bytes, blocks): (i128, i128),
    per_minute: f64,
    held_before: Vec<HeldBefore>,
) -> Change {
    Change {
        status,
        record,
        previous,
        kind,
        bytes,
        blocks,
        bytes_per_minute: bytes as f64 * per_minute,
        blocks_per_minute: blocks as f64 * per_minute,
        held_before,
    }
}

/// Sums up lost blocks by record and chain.
fn held_by_record(lost: impl IntoIterator<Item = LostBetween>) -> HashMap<usize, Vec<HeldBefore>> {
    let mut sums: HashMap<(usize, Vec<String>), Amount> = HashMap::new();
    for block in lost.into_iter().filter(|block| !block.held_by.is_empty()) {
        sums.entry((block.record, block.held_by)).or_default().add(block.size, 1);
    }
    let mut held: HashMap<usize, Vec<HeldBefore>> = HashMap::new();
    for ((record, steps), amount) in sums {
        let chain = Chain { steps, blocks: amount.blocks };
        held.entry(record).or_default().push(HeldBefore { chain, bytes: amount.bytes });
    }
    for chains in held.values_mut() {
        chains.sort_by(|a, b| {
            let order = b.bytes.cmp(&a.bytes).then(b.chain.blocks.cmp(&a.chain.blocks));
            order.then_with(|| a.chain.steps.cmp(&b.chain.steps))
        });
    }
    held
}
