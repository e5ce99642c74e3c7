//! How much of what was lost is found, and whether anything else is.

use anyhow::Result;
use serde_json::Value;

use super::{Bench, show};
use crate::bench::child::progress;
use crate::bench::stats::number;
use crate::bench::table::{Bound, Section};

const SCANS: usize = 10;
const THREADS: u64 = 4;
const LOST: u64 = 5000;

const ABOUT: &str = "\
Blocks, of a process with live blocks of 200 bytes linked in random order over four threads, and 5,000 lost ones of sizes \
that no live block has, by which they are told apart in the report. Busy: all but one of the threads free and allocate \
without pause. Found: called definitely or indirectly lost. Live ones that are called lost in any way, and found ones, are \
the worst of all scans.";

/// What a report says of the workload's blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Planted ones that are called definitely or indirectly lost.
    pub lost: u64,
    /// Planted ones that are called possibly lost.
    pub possible: u64,
    /// Others that are called lost in any way.
    pub live: u64,
}

impl Found {
    /// What a `leakscope.leaks/1` report says, whose blocks are glibc's (or the tracer's) with exact sizes up to 1 KiB.
    pub fn in_report(report: &Value) -> Self {
        let mut found = Self::default();
        for record in report.get("records").and_then(Value::as_array).into_iter().flatten() {
            let number = |name: &str| record.get(name).and_then(Value::as_u64).unwrap_or(0);
            let kind = record.get("kind").and_then(Value::as_str).unwrap_or_default();
            if !matches!(kind, "definite" | "indirect" | "possible") {
                continue;
            }
            let planted = is_planted(number("smallest_bytes")) && is_planted(number("largest_bytes"));
            let count = match (planted, kind) {
                (false, _) => &mut found.live,
                (true, "possible") => &mut found.possible,
                (true, _) => &mut found.lost,
            };
            *count += number("blocks");
        }
        found
    }

    /// What a tool says that tells but a total.
    pub fn of_total(blocks: u64, planted: usize) -> Self {
        let lost = blocks.min(planted as u64);
        Self { lost, possible: 0, live: blocks - lost }
    }
}

/// Whether a block can only be one that the workload has lost (see `lost_sizes` there).
fn is_planted(size: u64) -> bool {
    match size {
        0..=1024 => matches!((size + 8) / 16 % 8, 3 | 4),
        1400..=1600 => true,
        _ => size >= 190_000,
    }
}

/// Scans a process at rest and a busy one.
pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if !bench.includes("exact") {
        return Ok(Vec::new());
    }
    let columns = [
        "process",
        "live blocks",
        "lost",
        "found",
        "found, %",
        "possible",
        "live called lost",
        "scans",
        "scan_ms",
        "whole command, ms",
        "looked again",
    ];
    let mut section = Section {
        title: "Exactness".to_owned(),
        about: ABOUT.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let blocks = if bench.quick { 200_000u64 } else { 1_000_000 };
    let count = if bench.quick { 3 } else { SCANS };
    let words = |busy: bool| {
        let mut words = vec!["--order".to_owned(), "shuffled".to_owned()];
        let numbers = [("--blocks", blocks), ("--threads", THREADS), ("--lost", LOST), ("--churn", 100_000)];
        words.extend(numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_string()]));
        words.extend(busy.then(|| "--busy".to_owned()));
        words
    };
    for (busy, name) in [(false, "at rest"), (true, "busy")] {
        // One at a time: the busy one would take the processors.
        let words = words(busy);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let heap = bench.heap(&words)?;
        let mut scans = Vec::new();
        for _ in 0..count {
            scans.push(bench.scan(&heap)?);
        }
        let found: Vec<Found> = scans.iter().map(|scan| Found::in_report(&scan.report)).collect();
        let least = found.iter().map(|found| found.lost).min().unwrap_or(0);
        let possible = found.iter().map(|found| found.possible).max().unwrap_or(0);
        let live = found.iter().map(|found| found.live).max().unwrap_or(0);
        let share = least as f64 * 100.0 / LOST as f64;
        let again = scans.iter().filter(|scan| looked_again(&scan.report)).count();
        section.rows.push(vec![
            name.to_owned(),
            number(blocks as f64, 0, false),
            number(LOST as f64, 0, false),
            number(least as f64, 0, false),
            number(share, 2, false),
            possible.to_string(),
            live.to_string(),
            count.to_string(),
            show(scans.iter().map(|scan| scan.scan_ms), 0),
            show(scans.iter().map(|scan| scan.wall_ms), 0),
            format!("{again} of {count}"),
        ]);
        section.bounds.push(Bound {
            name: format!("exact, {name}: lost blocks found"),
            limit: 99.0,
            measured: share,
            unit: " %",
            at_least: true,
        });
        // One for each thread that runs, if any does.
        let allowed = if busy { THREADS - 1 } else { 0 };
        section.bounds.push(Bound {
            name: format!("exact, {name}: live blocks called lost"),
            limit: allowed as f64,
            measured: live as f64,
            unit: "",
            at_least: false,
        });
        progress(&format!("exact, {name}: {share:.2} % found, {live} false"));
    }
    Ok(vec![section])
}

/// Whether the process had to be looked at more than once, as a note says.
fn looked_again(report: &Value) -> bool {
    let notes = report.get("notes").and_then(Value::as_array).into_iter().flatten();
    notes.filter_map(Value::as_str).any(|note| note.starts_with("the process was looked at"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_blocks_are_told_by_their_sizes() {
        // As requested, as rounded up, and with a remainder too small for a chunk of its own.
        assert!([40, 168, 936, 952, 1500, 1512, 200_000, 200_696].into_iter().all(is_planted));
        assert!(![24, 72, 200, 216, 904, 3000, 4000, 30_000].into_iter().any(is_planted));
    }

    #[test]
    fn a_report_is_counted_by_kind() {
        let record = |kind: &str, size: u64, blocks: u64| serde_json::json!({"kind": kind, "blocks": blocks, "smallest_bytes": size, "largest_bytes": size});
        let records = [
            record("definite", 40, 7),
            record("indirect", 168, 2),
            record("possible", 40, 3),
            record("possible", 200, 4),
            record("reachable", 200, 1000),
        ];
        let report = serde_json::json!({ "records": records });
        assert_eq!(Found::in_report(&report), Found { lost: 9, possible: 3, live: 4 });
    }
}
