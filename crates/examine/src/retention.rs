//! Which reachable records keep growing, and what is known of them.

use crate::staleness::{MappingUse, Referenced};
use crate::traced::Traced;
use leakscope_heapfile::layout::TICK_MS;
use leakscope_leaks::{Amount, Cohorts, FoundBlock, History, Kind, Merged, Retention, Staleness, retained};
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// Sums over the blocks of one record.
#[derive(Default)]
struct Sums {
    cohorts: Cohorts,
    allocated: Amount,
    bytes: u64,
    stale_bytes: f64,
}

/// Finds them. Takes memory by the number of records and stacks.
pub(crate) fn retention(
    found: impl Iterator<Item = FoundBlock>,
    merged: &Merged,
    traced: Option<&Traced>,
    referenced: Option<&Referenced>,
    history: &History,
) -> Retention {
    let seen = traced.map(lifetime);
    let mut records: BTreeMap<usize, Sums> = BTreeMap::new();
    let mut stacks: HashSet<u32> = HashSet::new();
    let mut used: BTreeMap<u64, MappingUse> = BTreeMap::new();
    for block in found.filter(|block| block.kind == Kind::Reachable) {
        let Some(record) = merged.record_of(&block) else { continue };
        let sums = records.entry(record).or_default();
        sums.bytes = sums.bytes.saturating_add(block.size);
        if let (Some(age), Some(seen)) = (block.age, seen) {
            sums.cohorts.add(age, seen, block.size);
        }
        if let Some(number) = block.stack.filter(|&number| stacks.insert(number)) {
            let stack = traced.and_then(|traced| traced.heap.stacks.get(number as usize));
            if let Some(stack) = stack {
                sums.allocated.add(stack.allocated_bytes, stack.allocated_blocks);
            }
        }
        if let Some(mapping) = referenced.and_then(|referenced| referenced.at(block.address)) {
            let share = mapping.referenced as f64 / mapping.resident.max(1) as f64;
            sums.stale_bytes += block.size as f64 * (1.0 - share.min(1.0));
            used.entry(mapping.range.start).or_insert_with(|| mapping.clone());
        }
    }
    let known = records.into_iter().map(|(record, sums)| {
        let is_traced = sums.allocated.blocks > 0;
        let stale = referenced.filter(|_| sums.bytes > 0).map(|_| sums.stale_bytes / sums.bytes as f64);
        (record, is_traced.then_some(sums.cohorts), is_traced.then_some(sums.allocated), stale)
    });
    let staleness = referenced.map(|referenced| Staleness {
        waited: referenced.waited,
        resident: used.values().fold(0, |sum, mapping| sum + mapping.resident),
        referenced: used.values().fold(0, |sum, mapping| sum + mapping.referenced),
    });
    Retention {
        seen: seen.unwrap_or(history.seen()),
        scans: history.scans(),
        staleness,
        records: retained(&merged.records, known, seen, history),
    }
}

/// For how long the process has been traced.
fn lifetime(traced: &Traced) -> Duration {
    let ticks = traced.heap.tick.saturating_sub(traced.heap.process.started);
    Duration::from_millis(u64::from(ticks) * TICK_MS)
}
