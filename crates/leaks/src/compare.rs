//! Two scans of one process: what was lost in between, how fast, and who held it last.

use crate::records::{FrameIdentity, SizeClass, frame_identity};
use crate::{Amount, Chain, KindSet, LeakRecord, Summary};
use leakscope_reach::Kind;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
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
    pub totals: Vec<(Kind, i64, i64)>,
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
    /// The earlier scan's record, if it is gone.
    pub was: Option<Box<LeakRecord>>,
    /// The record's kind.
    pub kind: Kind,
    /// More bytes than before.
    pub bytes: i64,
    /// More blocks than before.
    pub blocks: i64,
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

/// A number that is the same for a record at every scan, and with another record's by chance only.
pub(crate) fn fingerprint(record: &LeakRecord) -> u64 {
    let mut hasher = DefaultHasher::new();
    identity(record).hash(&mut hasher);
    hasher.finish()
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
    let mut earlier: HashMap<Identity<'_>, (usize, &LeakRecord)> = HashMap::new();
    for (index, record) in unsuppressed(previous.records) {
        earlier.entry(identity(record)).or_insert((index, record));
    }
    let mut held = held_by_record(lost);
    let mut changes = Vec::new();
    let mut add = |status, kind, (bytes, blocks), rest: Change| {
        let (bytes_per_minute, blocks_per_minute) = (bytes as f64 * per_minute, blocks as f64 * per_minute);
        changes.push(Change { status, kind, bytes, blocks, bytes_per_minute, blocks_per_minute, ..rest });
    };
    for (index, record) in unsuppressed(current.records) {
        let old = earlier.remove(&identity(record));
        let (old_bytes, old_blocks) = old.map_or((0, 0), |(_, old)| (old.direct_bytes, old.blocks));
        let more = (difference(record.direct_bytes, old_bytes), difference(record.blocks, old_blocks));
        let held_before = held.remove(&index).unwrap_or_default();
        let status = match (old, more) {
            (None, _) => ChangeStatus::New,
            (Some(_), (0, 0)) if held_before.is_empty() => continue,
            (Some(_), (bytes, blocks)) if bytes > 0 || (bytes == 0 && blocks >= 0) => ChangeStatus::Grown,
            (Some(_), _) => ChangeStatus::Shrunk,
        };
        let previous = old.map(|(index, _)| index);
        add(
            status,
            record.kind,
            more,
            Change { record: Some(index), previous, held_before, ..Change::default() },
        );
    }
    for (index, record) in earlier.into_values() {
        let less = (difference(0, record.direct_bytes), difference(0, record.blocks));
        let was = Some(Box::new(record.clone()));
        add(
            ChangeStatus::Gone,
            record.kind,
            less,
            Change { previous: Some(index), was, ..Change::default() },
        );
    }
    changes.sort_by(|a, b| {
        let order = b.bytes.cmp(&a.bytes).then(b.blocks.cmp(&a.blocks)).then(b.kind.cmp(&a.kind));
        order.then(a.record.cmp(&b.record)).then(a.previous.cmp(&b.previous))
    });
    let totals: Vec<_> = KindSet::KINDS
        .into_iter()
        .map(|kind| {
            let (old, new) = (previous.summary.of(kind), current.summary.of(kind));
            (kind, difference(new.bytes, old.bytes), difference(new.blocks, old.blocks))
        })
        .collect();
    // A block that hangs off a lost one today may be the leader tomorrow, so the two kinds are taken together.
    let lost_sum = |of: fn(&(Kind, i64, i64)) -> i64| {
        let counted = totals.iter().filter(|total| matches!(total.0, Kind::Definite | Kind::Indirect));
        u64::try_from(counted.map(of).fold(0, i64::saturating_add).max(0)).unwrap_or(u64::MAX)
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

/// Records that are reported, with their places.
fn unsuppressed(records: &[LeakRecord]) -> impl Iterator<Item = (usize, &LeakRecord)> {
    records.iter().enumerate().filter(|(_, record)| record.suppressed_by.is_none())
}

impl Default for Change {
    fn default() -> Change {
        Change {
            status: ChangeStatus::New,
            record: None,
            previous: None,
            was: None,
            kind: Kind::Definite,
            bytes: 0,
            blocks: 0,
            bytes_per_minute: 0.0,
            blocks_per_minute: 0.0,
            held_before: Vec::new(),
        }
    }
}

/// `new - old`, within what 64 bits hold.
fn difference(new: u64, old: u64) -> i64 {
    let difference = i128::from(new) - i128::from(old);
    i64::try_from(difference).unwrap_or(if new > old { i64::MAX } else { i64::MIN })
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
