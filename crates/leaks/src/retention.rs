//! Reachable memory that stays: not lost, but there is ever more of it.
//!
//! Two ways to tell. If the ages of blocks are known, a call site whose blocks survive from every part of the process's
//! life keeps what it allocates, while start-up leaves only old blocks, and a working set only young ones. If not, a record
//! that is larger at scan after scan grows.

use crate::compare::fingerprint;
use crate::report::{Amount, LeakRecord};
use leakscope_reach::Kind;
use std::collections::HashMap;
use std::time::Duration;

/// Parts into which the time is cut.
pub const COHORTS: usize = 8;
/// So many of the parts between the first and the last must have left something.
const STEADY: usize = 4;

/// What stays.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retention {
    /// Over how long a time it was seen: since tracing began, else since the first scan.
    pub seen: Duration,
    /// Scans so far.
    pub scans: u64,
    /// What was measured of pages that nobody touched, if asked for.
    pub staleness: Option<Staleness>,
    /// Records that keep growing, the fastest first.
    pub records: Vec<Retained>,
}

/// Pages that were not touched for a while.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Staleness {
    /// For how long was looked.
    pub waited: Duration,
    /// Resident memory of mappings with blocks, in bytes.
    pub resident: u64,
    /// Of that, what was referenced meanwhile, in bytes.
    pub referenced: u64,
}

/// A record that keeps growing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Retained {
    /// Index into the report's records.
    pub record: usize,
    /// Its blocks by age, the oldest part of the time first; empty if ages are not known.
    pub cohorts: Vec<Cohort>,
    /// All that its stacks ever allocated, if known.
    pub allocated: Option<Amount>,
    /// Scans at which it was larger than at the one before.
    pub grown_scans: u64,
    /// How much larger it is than at the first scan, in bytes.
    pub grown_bytes: i64,
    /// The same in blocks.
    pub grown_blocks: i64,
    /// How fast it grows, in bytes.
    pub bytes_per_minute: f64,
    /// Share of its bytes in pages that nobody touched, by the average over each mapping.
    pub stale: Option<f64>,
}

/// Blocks of a range of ages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cohort {
    /// Upper end of the ages.
    pub oldest: Duration,
    /// Lower end.
    pub youngest: Duration,
    /// What is left of them.
    pub live: Amount,
}

/// Blocks of one record by age.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cohorts {
    live: [Amount; COHORTS],
}

impl Cohorts {
    /// Adds a block that was allocated so long ago, in a process that was seen for the time `seen`.
    pub fn add(&mut self, age: Duration, seen: Duration, bytes: u64) {
        let part = age.as_secs_f64() / seen.as_secs_f64().max(1e-3) * COHORTS as f64;
        // The oldest come first; a number that is none is 0.
        let from_young = (part as usize).min(COHORTS - 1);
        if let Some(amount) = self.live.get_mut(COHORTS - 1 - from_young) {
            amount.add(bytes, 1);
        }
    }

    /// All cohorts with their ages, the oldest first.
    pub fn list(&self, seen: Duration) -> Vec<Cohort> {
        let at = |part: usize| seen.mul_f64((COHORTS - part) as f64 / COHORTS as f64);
        let cohorts = self.live.iter().enumerate();
        cohorts.map(|(part, &live)| Cohort { oldest: at(part), youngest: at(part + 1), live }).collect()
    }

    /// Bytes per minute that are left of the time between start-up and the latest past; none if that is not a steady
    /// flow.
    pub fn growth(&self, seen: Duration) -> Option<f64> {
        let between = self.live.get(1..COHORTS - 1).unwrap_or_default();
        let filled = between.iter().filter(|amount| amount.blocks > 0).count();
        let bytes = between.iter().fold(0u64, |sum, amount| sum.saturating_add(amount.bytes));
        let minutes = seen.as_secs_f64() / 60.0 * between.len() as f64 / COHORTS as f64;
        (filled >= STEADY && minutes > 0.0).then_some(bytes as f64 / minutes)
    }
}

/// How the reachable records of one process grew from scan to scan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    scans: u64,
    seen: Duration,
    /// By [`fingerprint`].
    records: HashMap<u64, Series>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Series {
    first: Amount,
    last: Amount,
    grown: u64,
}

impl History {
    /// With one more scan, `elapsed` after the one before.
    pub fn with(&self, records: &[LeakRecord], elapsed: Duration) -> History {
        let mut next = History {
            scans: self.scans + 1,
            seen: if self.scans == 0 { Duration::ZERO } else { self.seen + elapsed },
            records: HashMap::new(),
        };
        for record in records.iter().filter(|record| record.kind == Kind::Reachable) {
            let now = Amount { bytes: record.direct_bytes, blocks: record.blocks };
            let fingerprint = fingerprint(record);
            let first = if self.scans == 0 { now } else { Amount::default() };
            let before = self.records.get(&fingerprint).copied();
            let before = before.unwrap_or(Series { first, last: first, grown: 0 });
            let grown = before.grown + u64::from(now.bytes > before.last.bytes);
            next.records.insert(fingerprint, Series { last: now, grown, ..before });
        }
        next
    }

    /// How many scans there were.
    pub fn scans(&self) -> u64 {
        self.scans
    }

    /// Time from the first to the last.
    pub fn seen(&self) -> Duration {
        self.seen
    }

    /// What it knows of a record. It keeps growing if it did so at two of three scans at least.
    fn of(&self, record: &LeakRecord) -> (Retained, bool) {
        let series = self.records.get(&fingerprint(record)).copied().unwrap_or_default();
        let more = |new: u64, old: u64| i64::try_from(i128::from(new) - i128::from(old)).unwrap_or(i64::MAX);
        let grown_bytes = more(series.last.bytes, series.first.bytes);
        let minutes = self.seen.as_secs_f64() / 60.0;
        let retained = Retained {
            grown_scans: series.grown,
            grown_bytes,
            grown_blocks: more(series.last.blocks, series.first.blocks),
            bytes_per_minute: if minutes > 0.0 { grown_bytes as f64 / minutes } else { 0.0 },
            ..Retained::default()
        };
        let often = series.grown > 0 && series.grown * 3 >= self.scans.saturating_sub(1) * 2;
        (retained, often && grown_bytes > 0)
    }
}

/// Of a record what is known from elsewhere: its place, its blocks by age, what its stacks allocated, its stale share.
pub type Known = (usize, Option<Cohorts>, Option<Amount>, Option<f64>);

/// The records that keep growing, the fastest first. `traced` is for how long the process was traced.
pub fn retained(
    records: &[LeakRecord],
    known: impl IntoIterator<Item = Known>,
    traced: Option<Duration>,
    history: &History,
) -> Vec<Retained> {
    let mut growing = Vec::new();
    for (place, cohorts, allocated, stale) in known {
        let Some(record) = records.get(place).filter(|record| record.suppressed_by.is_none()) else {
            continue;
        };
        let (mut retained, grows) = history.of(record);
        let steady = traced.and_then(|seen| cohorts?.growth(seen));
        if !grows && steady.is_none() {
            continue;
        }
        if !grows {
            retained.bytes_per_minute = steady.unwrap_or_default();
        }
        retained.record = place;
        retained.allocated = allocated;
        retained.stale = stale;
        if let (Some(seen), Some(cohorts)) = (traced, cohorts) {
            retained.cohorts = cohorts.list(seen);
        }
        growing.push(retained);
    }
    growing.sort_by(|a, b| b.bytes_per_minute.total_cmp(&a.bytes_per_minute).then(b.record.cmp(&a.record)));
    growing
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn cohorts(ages_in_minutes: &[u64]) -> Cohorts {
        let mut cohorts = Cohorts::default();
        for &minutes in ages_in_minutes {
            cohorts.add(Duration::from_secs(minutes * 60 + 30), HOUR, 100);
        }
        cohorts
    }

    #[test]
    fn what_survives_from_all_of_the_time_grows_and_start_up_and_working_sets_do_not() {
        let steady = cohorts(&[2, 10, 17, 25, 32, 40, 47, 55]);
        // Six blocks of 45 minutes.
        assert_eq!(steady.growth(HOUR), Some(600.0 / 45.0));
        assert_eq!(cohorts(&[58, 59, 59, 57]).growth(HOUR), None, "start-up");
        assert_eq!(cohorts(&[0, 1, 2, 3, 4, 5]).growth(HOUR), None, "a working set");
        assert_eq!(cohorts(&[58, 30, 30, 30, 1]).growth(HOUR), None, "a single burst");
        assert_eq!(Cohorts::default().growth(Duration::ZERO), None);
    }

    #[test]
    fn cohorts_are_listed_with_their_ages_the_oldest_first() {
        let mut cohorts = cohorts(&[0, 59]);
        // Older than the process was seen for: clocks differ by a tick.
        cohorts.add(HOUR * 2, HOUR, 7);
        let list = cohorts.list(HOUR);
        assert_eq!(list.len(), COHORTS);
        assert_eq!((list[0].oldest, list[0].youngest), (HOUR, HOUR * 7 / 8));
        assert_eq!(list[0].live, Amount { bytes: 107, blocks: 2 });
        assert_eq!((list[7].youngest, list[7].live.blocks), (Duration::ZERO, 1));
    }

    fn record(bytes: u64) -> LeakRecord {
        let block = crate::FoundBlock {
            address: 16,
            size: bytes,
            kind: Kind::Reachable,
            indirect_bytes: 0,
            indirect_blocks: 0,
            stack: Some(1),
            signature: None,
            age: None,
        };
        let stack = crate::Stack {
            frames: vec![leakscope_profile::Frame {
                function: Some("keep".to_owned()),
                ..Default::default()
            }],
            ..crate::Stack::default()
        };
        let stacks = [crate::Stack::default(), stack];
        let names = crate::Names { stacks: &stacks, types: &[] };
        crate::merge([block], &names, &crate::Suppressions::none()).records.remove(0)
    }

    fn after(sizes: &[u64]) -> Vec<Retained> {
        let minute = Duration::from_secs(60);
        let scan = |history: History, &bytes: &u64| history.with(&[record(bytes)], minute);
        let history = sizes.iter().fold(History::default(), scan);
        retained(&[record(*sizes.last().unwrap())], [(0, None, None, None)], None, &history)
    }

    #[test]
    fn a_record_that_is_larger_at_most_scans_keeps_growing() {
        assert!(after(&[100]).is_empty(), "one scan tells nothing");
        assert!(after(&[100, 100, 100]).is_empty());
        assert!(after(&[100, 200, 100, 200, 100, 200]).is_empty(), "up and down");
        let grown = after(&[100, 150, 150, 300]);
        assert_eq!(grown.len(), 1);
        let grown = &grown[0];
        assert_eq!((grown.grown_scans, grown.grown_bytes, grown.grown_blocks), (2, 200, 0));
        assert!((grown.bytes_per_minute - 200.0 / 3.0).abs() < 1e-9);
    }
}
