//! Reachable memory that keeps growing.

use super::super::paint::Paint;
use super::LeaksTextOptions;
use super::record::chain_text;
use super::verdict::origin;
use crate::units::{bytes, count, duration, plural};
use leakscope_leaks::{LeakReport, Retained, Retention};
use std::fmt::Write;

/// Most chains shown of what holds a record's blocks.
const CHAINS: usize = 3;

/// Writes the records that keep growing, the fastest first.
pub(super) fn write(
    out: &mut String,
    retention: &Retention,
    report: &LeakReport,
    options: &LeaksTextOptions,
    paint: Paint,
) {
    let over = match retention.scans {
        0 | 1 => format!("{} of allocations", duration(retention.seen.as_secs_f64())),
        scans => format!("{} and {scans} scans", duration(retention.seen.as_secs_f64())),
    };
    let answer = match retention.records.len() {
        0 => format!("No reachable memory keeps growing, judged over {over}."),
        records => {
            let records = plural(records as u64, "record");
            format!("Reachable, but ever more of it: {records}, judged over {over}.")
        }
    };
    _ = writeln!(out, "\n{}", paint.bold(&answer));
    if let Some(stale) = retention.staleness {
        let touched = format!("{} of {}", bytes(stale.referenced), bytes(stale.resident));
        let waited = duration(stale.waited.as_secs_f64());
        _ = writeln!(
            out,
            "  In {waited}, {touched} in the mappings with blocks were touched. (Measuring this makes the process's\n  \
             pages look unused to the kernel for a while, so under memory pressure it swaps them first.)"
        );
    }
    for retained in retention.records.iter().take(options.top) {
        write_one(out, retained, report, paint);
    }
    if let rest @ 1.. = retention.records.len().saturating_sub(options.top) {
        _ = writeln!(out, "  … and {}", plural(rest as u64, "other record"));
    }
}

fn write_one(out: &mut String, retained: &Retained, report: &LeakReport, paint: Paint) {
    let Some(record) = report.records.get(retained.record) else { return };
    let rate = bytes(retained.bytes_per_minute.max(0.0).round() as u64);
    let speed = paint.number(&format!("+{rate} per minute"));
    let now = format!("{} in {}", bytes(record.direct_bytes), plural(record.blocks, "block"));
    let number = count(retained.record.saturating_add(1) as u64);
    _ = writeln!(out, "\n  {speed}, now {now}, record {number}");
    _ = writeln!(out, "       {}", origin(record));
    let mut line = |label: &str, value: String| {
        _ = writeln!(out, "       {} {value}", paint.dim(&format!("{label:<7}")));
    };
    if retained.grown_scans > 0 {
        let more = bytes(retained.grown_bytes.unsigned_abs());
        let blocks = plural(retained.grown_blocks.unsigned_abs(), "block");
        let times = plural(retained.grown_scans, "scan");
        line("grown", format!("at {times}, by {more} in {blocks} since the first"));
    }
    if let Some(oldest) = retained.cohorts.first() {
        let live: Vec<String> = retained.cohorts.iter().map(|cohort| count(cohort.live.blocks)).collect();
        let since = duration(oldest.oldest.as_secs_f64());
        line(
            "alive",
            format!("{} blocks of equal parts of the last {since}, oldest first", live.join(" + ")),
        );
    }
    if let Some(allocated) = retained.allocated {
        let ever = format!("{} in {}", bytes(allocated.bytes), plural(allocated.blocks, "block"));
        line("of", format!("{ever} ever allocated there"));
    }
    if let Some(stale) = retained.stale {
        line(
            "stale",
            format!("{:.0}% in pages that were not touched, by its mappings' average", stale * 100.0),
        );
    }
    for chain in record.holders.iter().take(CHAINS) {
        line("held by", chain_text(chain));
    }
}
