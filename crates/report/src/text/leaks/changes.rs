//! What has changed since the scan before.

use super::super::paint::Paint;
use super::record::{chain_text, words};
use super::verdict::origin;
use super::{LIST_LIMIT, LeaksTextOptions};
use crate::units::{bytes, duration, plural};
use leakscope_leaks::{Change, ChangeStatus, Comparison, LeakReport};
use std::fmt::Write;

/// Most chains shown of what held lost blocks before.
const CHAINS: usize = 3;

/// Writes the changes, those that grew fastest first.
pub(super) fn write(
    out: &mut String,
    comparison: &Comparison,
    report: &LeakReport,
    options: &LeaksTextOptions,
    paint: Paint,
) {
    let since = duration(comparison.seconds);
    let lost = comparison.lost;
    let answer = if lost.blocks == 0 && lost.bytes == 0 {
        format!("Since the scan {since} before, nothing was lost.")
    } else {
        let amount = format!("{} in {}", bytes(lost.bytes), plural(lost.blocks, "block"));
        let rate = rate(comparison.lost_bytes_per_minute, comparison.lost_blocks_per_minute);
        format!("Since the scan {since} before, {amount} were lost: {rate}.")
    };
    _ = writeln!(out, "\n{}", paint.bold(&answer));
    let changes: Vec<&Change> =
        comparison.changes.iter().filter(|change| options.shown.contains(change.kind)).collect();
    let most = options.top.min(LIST_LIMIT);
    for change in changes.iter().take(most) {
        write_change(out, change, report, paint);
    }
    if let rest @ 1.. = changes.len().saturating_sub(most) {
        _ = writeln!(out, "  … and {}", plural(rest as u64, "other change"));
    }
}

fn write_change(out: &mut String, change: &Change, report: &LeakReport, paint: Paint) {
    let record = match change.record {
        Some(index) => report.records.get(index),
        None => change.was.as_deref(),
    };
    let Some(record) = record else { return };
    let speed = rate(change.bytes_per_minute.abs(), change.blocks_per_minute.abs());
    let amount = match change.status {
        ChangeStatus::New => format!("new    {}", paint.number(&format!("+{speed}"))),
        ChangeStatus::Grown => format!("grown  {}", paint.number(&format!("+{speed}"))),
        ChangeStatus::Shrunk => format!("shrunk -{speed}"),
        ChangeStatus::Gone => {
            let blocks = plural(change.blocks.unsigned_abs(), "block");
            format!("gone   {} in {blocks}", bytes(change.bytes.unsigned_abs()))
        }
    };
    let number =
        change.record.map(|index| format!(", record {}", index.saturating_add(1))).unwrap_or_default();
    _ = writeln!(out, "  {amount}, {}{number}", words(change.kind));
    _ = writeln!(out, "         {}", origin(record));
    for held in change.held_before.iter().take(CHAINS) {
        _ = writeln!(out, "         {} {}", paint.dim("last held by"), chain_text(&held.chain));
    }
    if let rest @ 1.. = change.held_before.len().saturating_sub(CHAINS) {
        _ = writeln!(out, "         … and {}", plural(rest as u64, "other holder"));
    }
}

/// `1.5 KiB in 3 blocks per minute`; with one decimal where there are few.
fn rate(bytes_per_minute: f64, blocks_per_minute: f64) -> String {
    let amount = bytes(bytes_per_minute.round() as u64);
    let blocks = if blocks_per_minute < 9.95 && blocks_per_minute.fract() > 0.05 {
        format!("{blocks_per_minute:.1} blocks")
    } else {
        plural(blocks_per_minute.round() as u64, "block")
    };
    format!("{amount} in {blocks} per minute")
}
