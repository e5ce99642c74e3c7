//! A scan's leaks for people: the verdict in one line, loss records in memcheck's words, its summary.

mod changes;
mod record;
mod retention;
mod verdict;

use super::paint::Paint;
use super::summary::{COMMAND_LIMIT, signal_name};
use super::{LIST_LIMIT, NAME_LIMIT, write_missing, write_notes, write_rest};
use crate::escape::{command_line, printable};
use crate::units::{bytes, count, duration, plural};
use leakscope_leaks::{
    Amount, BlockSource, Kind, KindSet, LeakRecord, LeakReport, SnapshotKind, SuppressionUse,
};
use leakscope_profile::End;
use std::fmt::Write;

/// What a text report of leaks shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaksTextOptions {
    /// The kinds whose records are shown, as memcheck's `--show-leak-kinds`. The summary has all.
    pub shown: KindSet,
    /// How many records are shown; the largest ones.
    pub top: usize,
    /// Whether each record is followed by a suppression for it (`--gen-suppressions`).
    pub suppressions: bool,
    /// Whether to use ANSI colours.
    pub color: bool,
}

impl Default for LeaksTextOptions {
    fn default() -> LeaksTextOptions {
        LeaksTextOptions { shown: KindSet::DEFAULT_SHOWN, top: 20, suppressions: false, color: false }
    }
}

/// What a scan found, as text of lines up to about 100 columns (long names may exceed them).
///
/// Records come in memcheck's order and numbering, the largest last, next to the summary.
pub fn leaks_text(report: &LeakReport, options: &LeaksTextOptions) -> String {
    let paint = Paint { on: options.color };
    let mut out = String::new();
    _ = writeln!(out, "{}\n", paint.bold(&verdict::verdict(report)));
    write_header(&mut out, report, paint);
    write_records(&mut out, report, options, paint);
    if let Some(comparison) = &report.comparison {
        changes::write(&mut out, comparison, report, options, paint);
    }
    if let Some(found) = &report.retention {
        retention::write(&mut out, found, report, options, paint);
    }
    write_summary(&mut out, report, options.shown, paint);
    write_suppressions(&mut out, &report.suppressions, paint);
    write_notes(&mut out, &report.notes, paint);
    write_missing(&mut out, &report.missing, paint);
    out
}

/// Which process, and how it was looked at.
fn write_header(out: &mut String, report: &LeakReport, paint: Paint) {
    let process = &report.process;
    let mut line = |label: &str, value: String| {
        _ = writeln!(out, "  {} {value}", paint.dim(&format!("{label:<8}")));
    };
    if !process.command.is_empty() {
        line("command", printable(&command_line(&process.command), COMMAND_LIMIT).into_owned());
    } else if !process.executable.is_empty() {
        line("command", printable(&process.executable, COMMAND_LIMIT).into_owned());
    }
    let state = match process.end {
        End::Running if report.source.snapshot == SnapshotKind::Exit => "at its exit".to_owned(),
        End::Running => "running".to_owned(),
        End::Exited(status) => format!("exited with status {status}"),
        End::Signaled(signal) => format!("killed by {}", signal_name(signal)),
        End::Replaced => "replaced itself by another program (exec)".to_owned(),
        End::Unknown => "ended, how is not known".to_owned(),
    };
    line("process", format!("pid {}, {state}", process.pid));
    let total = report.summary.total();
    let listed = match &report.source.blocks {
        BlockSource::Tracer => "recorded by the tracer".to_owned(),
        BlockSource::Allocator { name } => {
            format!("listed by {}'s structures: sizes rounded up, no stacks", printable(name, 60))
        }
    };
    line("heap", format!("{} in {}, {listed}", bytes(total.bytes), plural(total.blocks, "block")));
    let took = duration(report.scan.as_secs_f64());
    let pause = report.pause.map(|pause| duration(pause.as_secs_f64()));
    line(
        "scan",
        match (report.source.snapshot, pause) {
            (SnapshotKind::Fork, Some(pause)) => {
                format!("{took} in a copy of its memory; the process stood still for {pause}")
            }
            (SnapshotKind::Fork, None) => format!("{took} in a copy of its memory"),
            (SnapshotKind::Stopped, Some(pause)) => format!("{took}; the process stood still for {pause}"),
            (SnapshotKind::Stopped, None) => format!("{took}; the process stood still"),
            (SnapshotKind::Core, _) => format!("{took} of a core file"),
            (SnapshotKind::Exit, _) => format!("{took} at exit"),
        },
    );
}

fn write_records(out: &mut String, report: &LeakReport, options: &LeaksTextOptions, paint: Paint) {
    let shown: Vec<(usize, &LeakRecord)> = report
        .records
        .iter()
        .enumerate()
        .filter(|(_, record)| options.shown.contains(record.kind) && record.suppressed_by.is_none())
        .collect();
    let hidden = shown.len().saturating_sub(options.top);
    if hidden > 0 {
        let smaller = shown.iter().take(hidden);
        let amount = smaller.fold(0u64, |sum, (_, record)| sum.saturating_add(record.direct_bytes));
        let records = plural(hidden as u64, "smaller record");
        _ = writeln!(out, "\n{}", paint.dim(&format!("… {records} with {} not shown", bytes(amount))));
    }
    for &(index, record) in shown.iter().skip(hidden) {
        record::write(out, record, index.saturating_add(1), report.records.len(), paint);
        if options.suppressions {
            match leakscope_leaks::generate(record) {
                Some(suppression) => out.push_str(&suppression),
                None => _ = writeln!(out, "     {}", paint.dim("(no suppression: its stack is not known)")),
            }
        }
    }
}

/// As memcheck sums up, in its words.
fn write_summary(out: &mut String, report: &LeakReport, shown: KindSet, paint: Paint) {
    let summary = &report.summary;
    _ = writeln!(out, "\n{}", paint.bold("LEAK SUMMARY:"));
    let mut line = |label: &str, amount: Amount, is_loss: bool| {
        let text = format!("{} bytes in {} blocks", count(amount.bytes), count(amount.blocks));
        let text = if is_loss && amount.blocks > 0 { paint.number(&text) } else { text };
        _ = writeln!(out, "   {label:>15}: {text}");
    };
    line("definitely lost", summary.definite, true);
    line("indirectly lost", summary.indirect, true);
    line("possibly lost", summary.possible, false);
    line("still reachable", summary.reachable, false);
    line("suppressed", summary.suppressed, false);
    let unshown = |kind: &Kind| !shown.contains(*kind) && summary.of(*kind).blocks > 0;
    let hidden: Vec<_> = KindSet::KINDS.into_iter().filter(unshown).map(record::words).collect();
    if !hidden.is_empty() {
        let hint = format!(
            "Records of blocks {} are not shown; --show-leak-kinds=all shows them.",
            hidden.join(" or ")
        );
        _ = writeln!(out, "{}", paint.dim(&hint));
    }
}

fn write_suppressions(out: &mut String, used: &[SuppressionUse], paint: Paint) {
    if used.is_empty() {
        return;
    }
    _ = writeln!(out, "\n{}", paint.bold("Suppressed by:"));
    for one in used.iter().take(LIST_LIMIT) {
        let amount = format!("{} in {}", bytes(one.amount.bytes), plural(one.amount.blocks, "block"));
        let name = printable(&one.name, NAME_LIMIT / 2);
        let path = one.origin.path.to_string_lossy();
        let place = format!("({}:{})", printable(&path, NAME_LIMIT), one.origin.line);
        _ = writeln!(out, "  {amount:<24}  {name} {}", paint.dim(&place));
    }
    write_rest(out, used.len(), "suppression");
}
