//! The answer in one line.

use super::super::NAME_LIMIT;
use super::super::stack::{blamed, frame_at};
use crate::escape::printable;
use crate::units::{bytes, plural, share};
use leakscope_leaks::{Amount, Kind, LeakRecord, LeakReport};
use leakscope_profile::Frame;
use std::fmt::Write;

/// What is lost, and where most of it came from.
pub(super) fn verdict(report: &LeakReport) -> String {
    let summary = &report.summary;
    let total = summary.total();
    if summary.definite.blocks > 0 {
        // With what hangs off them: a lost list of a million nodes is one small block that is definitely lost.
        let mut all = summary.definite;
        all.add(summary.indirect.bytes, summary.indirect.blocks);
        return lost(all, "lost") + &largest(report, Kind::Definite);
    }
    if summary.possible.blocks > 0 {
        let line = format!("Nothing is definitely lost; {}", lost(summary.possible, "possibly lost"));
        return line + &largest(report, Kind::Possible);
    }
    if total.blocks == 0 {
        return "Nothing is lost: there are no blocks.".to_owned();
    }
    let mut line = match summary.reachable.blocks {
        0 => "Nothing is lost".to_owned(),
        1 => {
            format!("Nothing is lost: the one block ({}) is still reachable", bytes(summary.reachable.bytes))
        }
        blocks => {
            let reachable = bytes(summary.reachable.bytes);
            format!("Nothing is lost: {} ({reachable}) are still reachable", plural(blocks, "block"))
        }
    };
    if summary.suppressed.blocks > 0 {
        _ = write!(line, "; {} suppressed", plural(summary.suppressed.blocks, "block"));
    }
    line + "."
}

fn lost(amount: Amount, words: &str) -> String {
    let verb = if amount.bytes == 1 { "is" } else { "are" };
    format!("{} in {} {verb} {words}", bytes(amount.bytes), plural(amount.blocks, "block"))
}

/// The largest record of a kind, by all that is lost with it.
fn largest(report: &LeakReport, kind: Kind) -> String {
    let own = |record: &&LeakRecord| record.kind == kind && record.suppressed_by.is_none();
    let mut records = report.records.iter().rev().filter(own);
    let Some(first) = records.next() else { return String::new() };
    let whole = report.records.iter().filter(own).fold(0u64, |sum, record| sum.saturating_add(record.bytes));
    let origin = origin(first);
    if records.next().is_none() {
        format!("; all from {origin}")
    } else {
        format!("; the largest record holds {}: {origin}", share(first.bytes, whole))
    }
}

/// Where a record's blocks came from, as far as it is known.
pub(super) fn origin(record: &LeakRecord) -> String {
    let frames: Vec<&Frame> = record.stack.iter().collect();
    if let Some(frame) = blamed(&frames) {
        return frame_at(frame);
    }
    let sizes = record.sizes;
    let size = match sizes.max {
        max if max == sizes.min => plural(max, "byte"),
        max => format!("{} to {}", crate::units::count(sizes.min), plural(max, "byte")),
    };
    match &record.type_name {
        Some(name) => format!("{}, blocks of {size}", printable(name, NAME_LIMIT / 2)),
        None => format!("blocks of {size}"),
    }
}
