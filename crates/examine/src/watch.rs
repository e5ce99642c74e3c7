//! Scans of one process again and again: what was lost from one to the next, and who held it last.

use crate::holders::{remembered, step};
use crate::places::Places;
use crate::types::Types;
use crate::{Error, Options, Referenced, scan_once};
use leakscope_leaks::{FoundBlock, History, Kind, LeakReport, LostBetween, Scan, compare};
use leakscope_reach::{Blocks, Holders, OnProgress};
use leakscope_target::Snapshot;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// Holders that are named for one comparison.
const MOST_HOLDERS: usize = 1000;
/// How exact the ages of blocks are.
const CLOCK: Duration = Duration::from_millis(20);

/// What is kept of a scan for the next: about nine bytes for each block, and twelve for each that a root leads to.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) start_ticks: u64,
    pub(crate) blocks: Blocks,
    pub(crate) holders: Holders,
    pub(crate) places: Places,
    pub(crate) history: History,
    pub(crate) at: Instant,
}

/// A process that is scanned several times.
#[derive(Debug)]
pub struct Watch {
    pid: u32,
    options: Options,
    before: Option<(Kept, LeakReport)>,
}

impl Watch {
    /// Of process `pid`; nothing is done yet.
    pub fn new(pid: u32, options: Options) -> Watch {
        Watch { pid, options, before: None }
    }

    /// Tells the next scan which memory was in use lately.
    pub fn set_referenced(&mut self, referenced: Option<Referenced>) {
        self.options.referenced = referenced;
    }

    /// Scans it. From the second time on, the report says what has changed since the time before.
    ///
    /// # Errors
    /// As [`process`](crate::process), and if the process has ended and another has its number now.
    pub fn scan(&mut self, progress: Option<OnProgress<'_>>) -> Result<&LeakReport, Error> {
        let earlier = self.before.as_ref().map(|(kept, _)| kept);
        let made = scan_once(self.pid, &self.options, progress, earlier, true)?;
        let mut report = made.report;
        if let Some((kept, previous)) = &self.before {
            let elapsed = made.kept.as_ref().map_or(Duration::ZERO, |now| now.at.duration_since(kept.at));
            let previous = Scan { records: &previous.records, summary: &previous.summary };
            let current = Scan { records: &report.records, summary: &report.summary };
            report.comparison = Some(compare(previous, current, elapsed, made.lost));
        }
        // What is compared next is this one; its own comparison is not needed for that.
        if let Some(kept) = made.kept {
            let (_, report) = self.before.insert((kept, report));
            return Ok(report);
        }
        Err(Error::Replaced { pid: self.pid })
    }
}

/// A lost block of the later scan with the record that it is in.
pub(crate) type Lost = (usize, FoundBlock);

/// The blocks lost since an earlier scan, with who held them then.
///
/// A block is taken to be the same if it has the same address and size, and, where ages are known, is old enough.
pub(crate) fn lost_since(
    kept: &Kept,
    lost: impl Iterator<Item = Lost>,
    snapshot: &Snapshot,
    places: &Places,
    blocks: &Blocks,
    options: &Options,
    now: Instant,
) -> Vec<LostBetween> {
    let elapsed = now.duration_since(kept.at);
    // By what led to them, with one of them: a block, or, for those that a root led to, themselves.
    let mut by_holder: HashMap<usize, (usize, Vec<(usize, u64)>)> = HashMap::new();
    for (record, block) in lost.filter(|(_, block)| block.kind == Kind::Definite) {
        let is_too_young = block.age.is_some_and(|age| age.saturating_add(CLOCK) < elapsed);
        let same = kept.blocks.find(block.address).filter(|&index| {
            let before = kept.blocks.get(index);
            before.is_some_and(|before| before.address == block.address && before.size == block.size)
        });
        let Some(index) = same.filter(|&index| !is_too_young && kept.holders.is_held(index)) else {
            continue;
        };
        let holder = kept.holders.holder(index).unwrap_or(index);
        by_holder.entry(holder).or_insert((index, Vec::new())).1.push((record, block.size));
    }
    let mut keys: Vec<usize> = by_holder.keys().copied().collect();
    keys.sort_unstable();
    keys.truncate(MOST_HOLDERS);
    let path_of = |key: usize| Some((key, kept.holders.path(by_holder.get(&key)?.0)?));
    let paths: Vec<_> = keys.iter().filter_map(|&key| path_of(key)).collect();
    let origins = kept.places.name(paths.iter().map(|(_, path)| path.origin), &options.symbols);
    // The holders' types are in their memory, which is as it was if the block is still there.
    let still = |index: usize| {
        let before = kept.blocks.get(index)?;
        let index = blocks.find(before.address)?;
        (blocks.get(index) == Some(before)).then_some(index)
    };
    let holders: BTreeSet<usize> =
        paths.iter().flat_map(|(_, path)| path.blocks.iter().rev().skip(1).take(64)).copied().collect();
    let present: BTreeSet<usize> = holders.iter().filter_map(|&index| still(index)).collect();
    let types = Types::find(
        snapshot,
        places,
        blocks,
        present.iter().copied(),
        |target| present.contains(&target),
        &options.symbols,
    );
    let name = |index: usize| step(still(index).and_then(|index| types.name(index)), kept.blocks.size(index));
    let held = remembered(&paths, &origins, name);
    let all = by_holder.into_iter().flat_map(|(key, (_, blocks))| {
        let held_by = held.get(&key).cloned().unwrap_or_default();
        blocks.into_iter().map(move |(record, size)| LostBetween { record, size, held_by: held_by.clone() })
    });
    all.collect()
}
