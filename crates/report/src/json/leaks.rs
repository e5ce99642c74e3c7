//! A scan's leaks as JSON, schema `leakscope.leaks/1`; its fields are described in `docs/json/leaks.md`.

use super::{FrameFields, MissingFields, ProcessFields, known, string};
use leakscope_leaks::{
    Amount, BlockSource, Chain, Change, Comparison, HeldBefore, KindSet, LeakRecord, LeakReport, Retained,
    Retention, Source, SuppressionUse, kind_name,
};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt::Write;
use std::io;
use std::time::Duration;

/// Most chains of holders that are listed for one record.
const CHAINS: usize = 100;

/// The leaks as a JSON value, with records of the kinds in `shown`. For many records, [`write_leaks_json`] takes less
/// memory.
pub fn leaks_json(report: &LeakReport, shown: KindSet) -> Value {
    // Only a map with keys other than strings could fail.
    serde_json::to_value(Leaks::new(report, shown)).unwrap_or_default()
}

/// Writes the leaks as indented JSON with a newline at its end, with records of the kinds in `shown`. Give it a
/// buffered writer.
///
/// # Errors
/// Those of `out`.
pub fn write_leaks_json(report: &LeakReport, shown: KindSet, mut out: impl io::Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, &Leaks::new(report, shown))?;
    out.write_all(b"\n")
}

/// Writes the leaks as JSON on one line, for one scan of several.
///
/// # Errors
/// Those of `out`.
pub fn write_leaks_json_line(report: &LeakReport, shown: KindSet, mut out: impl io::Write) -> io::Result<()> {
    serde_json::to_writer(&mut out, &Leaks::new(report, shown))?;
    out.write_all(b"\n")
}

#[derive(serde::Serialize)]
struct Leaks<'a> {
    schema: &'static str,
    process: ProcessFields<'a>,
    outcome: &'static str,
    errors_for_leak_kinds: Vec<&'static str>,
    source: SourceFields<'a>,
    pause_ms: Option<f64>,
    scan_ms: f64,
    summary: SummaryFields,
    records: Vec<RecordFields<'a>>,
    suppressions: Vec<SuppressionFields<'a>>,
    comparison: Option<ComparisonFields<'a>>,
    retention: Option<RetentionFields>,
    notes: Vec<Cow<'a, str>>,
    missing_debug_info: Vec<MissingFields<'a>>,
}

impl<'a> Leaks<'a> {
    fn new(report: &'a LeakReport, shown: KindSet) -> Leaks<'a> {
        let summary = &report.summary;
        let errors = KindSet::KINDS.into_iter().filter(|&kind| report.errors.contains(kind));
        Leaks {
            schema: "leakscope.leaks/1",
            process: ProcessFields::new(&report.process),
            outcome: report.outcome.name(),
            errors_for_leak_kinds: errors.map(kind_name).collect(),
            source: SourceFields::new(&report.source),
            pause_ms: report.pause.map(milliseconds),
            scan_ms: milliseconds(report.scan),
            summary: SummaryFields {
                definite: summary.definite.into(),
                indirect: summary.indirect.into(),
                possible: summary.possible.into(),
                reachable: summary.reachable.into(),
                suppressed: summary.suppressed.into(),
            },
            records: report
                .records
                .iter()
                .enumerate()
                // The largest first, which is the last in memcheck's order.
                .rev()
                .filter(|(_, record)| shown.contains(record.kind) && record.suppressed_by.is_none())
                .map(|(index, record)| RecordFields::new(Some(index.saturating_add(1)), record))
                .collect(),
            suppressions: report.suppressions.iter().map(SuppressionFields::new).collect(),
            comparison: report.comparison.as_ref().map(|changes| ComparisonFields::new(changes, shown)),
            retention: report.retention.as_ref().map(RetentionFields::new),
            notes: report.notes.iter().map(|note| string(note)).collect(),
            missing_debug_info: report.missing.iter().map(MissingFields::new).collect(),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[derive(serde::Serialize)]
struct SourceFields<'a> {
    snapshot: &'static str,
    blocks: &'static str,
    allocator: Option<Cow<'a, str>>,
}

impl<'a> SourceFields<'a> {
    fn new(source: &'a Source) -> SourceFields<'a> {
        let (blocks, allocator) = match &source.blocks {
            BlockSource::Tracer => ("tracer", None),
            BlockSource::Allocator { name } => ("allocator", known(Some(name))),
        };
        SourceFields { snapshot: source.snapshot.name(), blocks, allocator }
    }
}

#[derive(serde::Serialize)]
struct AmountFields {
    bytes: u64,
    blocks: u64,
}

impl From<Amount> for AmountFields {
    fn from(amount: Amount) -> AmountFields {
        AmountFields { bytes: amount.bytes, blocks: amount.blocks }
    }
}

#[derive(serde::Serialize)]
struct SummaryFields {
    definite: AmountFields,
    indirect: AmountFields,
    possible: AmountFields,
    reachable: AmountFields,
    suppressed: AmountFields,
}

#[derive(serde::Serialize)]
struct RecordFields<'a> {
    number: Option<usize>,
    kind: &'static str,
    bytes: u64,
    direct_bytes: u64,
    indirect_bytes: u64,
    indirect_blocks: u64,
    blocks: u64,
    stack: Vec<FrameFields<'a>>,
    truncated: bool,
    allocator: Option<Cow<'a, str>>,
    #[serde(rename = "type")]
    type_name: Option<Cow<'a, str>>,
    smallest_bytes: u64,
    largest_bytes: u64,
    content: Option<&'static str>,
    contents: Option<String>,
    holders: Vec<ChainFields<'a>>,
    youngest_seconds: Option<f64>,
    oldest_seconds: Option<f64>,
    addresses: &'a [u64],
}

impl<'a> RecordFields<'a> {
    fn new(number: Option<usize>, record: &'a LeakRecord) -> RecordFields<'a> {
        RecordFields {
            number,
            kind: kind_name(record.kind),
            bytes: record.bytes,
            direct_bytes: record.direct_bytes,
            indirect_bytes: record.indirect_bytes,
            indirect_blocks: record.indirect_blocks,
            blocks: record.blocks,
            stack: record.stack.iter().map(FrameFields::new).collect(),
            truncated: record.truncated,
            allocator: known(record.allocator.as_deref()),
            type_name: known(record.type_name.as_deref()),
            smallest_bytes: record.sizes.min,
            largest_bytes: record.sizes.max,
            content: record.content.map(|content| content.name()),
            contents: record.contents.as_deref().map(hexadecimal),
            holders: record.holders.iter().take(CHAINS).map(ChainFields::new).collect(),
            youngest_seconds: record.ages.map(|ages| ages.youngest.as_secs_f64()),
            oldest_seconds: record.ages.map(|ages| ages.oldest.as_secs_f64()),
            addresses: &record.examples,
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    })
}

#[derive(serde::Serialize)]
struct ChainFields<'a> {
    steps: Vec<Cow<'a, str>>,
    blocks: u64,
}

impl<'a> ChainFields<'a> {
    fn new(chain: &'a Chain) -> ChainFields<'a> {
        ChainFields { steps: chain.steps.iter().map(|step| string(step)).collect(), blocks: chain.blocks }
    }
}

#[derive(serde::Serialize)]
struct SuppressionFields<'a> {
    name: Cow<'a, str>,
    file: Cow<'a, str>,
    line: usize,
    records: u64,
    bytes: u64,
    blocks: u64,
}

impl<'a> SuppressionFields<'a> {
    fn new(used: &'a SuppressionUse) -> SuppressionFields<'a> {
        SuppressionFields {
            name: string(&used.name),
            file: Cow::Owned(string(&used.origin.path.to_string_lossy()).into_owned()),
            line: used.origin.line,
            records: used.records,
            bytes: used.amount.bytes,
            blocks: used.amount.blocks,
        }
    }
}

#[derive(serde::Serialize)]
struct ComparisonFields<'a> {
    seconds: f64,
    lost_bytes: u64,
    lost_blocks: u64,
    lost_bytes_per_minute: f64,
    lost_blocks_per_minute: f64,
    totals: Vec<TotalFields>,
    changes: Vec<ChangeFields<'a>>,
}

impl<'a> ComparisonFields<'a> {
    fn new(comparison: &'a Comparison, shown: KindSet) -> ComparisonFields<'a> {
        let totals = comparison.totals.iter();
        let changes = comparison.changes.iter().filter(|change| shown.contains(change.kind));
        ComparisonFields {
            seconds: comparison.seconds,
            lost_bytes: comparison.lost.bytes,
            lost_blocks: comparison.lost.blocks,
            lost_bytes_per_minute: comparison.lost_bytes_per_minute,
            lost_blocks_per_minute: comparison.lost_blocks_per_minute,
            totals: totals
                .map(|&(kind, bytes, blocks)| TotalFields { kind: kind_name(kind), bytes, blocks })
                .collect(),
            changes: changes.map(ChangeFields::new).collect(),
        }
    }
}

#[derive(serde::Serialize)]
struct TotalFields {
    kind: &'static str,
    bytes: i64,
    blocks: i64,
}

#[derive(serde::Serialize)]
struct ChangeFields<'a> {
    status: &'static str,
    number: Option<usize>,
    kind: &'static str,
    bytes: i64,
    blocks: i64,
    bytes_per_minute: f64,
    blocks_per_minute: f64,
    held_before: Vec<HeldFields<'a>>,
    was: Option<RecordFields<'a>>,
}

impl<'a> ChangeFields<'a> {
    fn new(change: &'a Change) -> ChangeFields<'a> {
        ChangeFields {
            status: change.status.name(),
            number: change.record.map(|index| index.saturating_add(1)),
            kind: kind_name(change.kind),
            bytes: change.bytes,
            blocks: change.blocks,
            bytes_per_minute: change.bytes_per_minute,
            blocks_per_minute: change.blocks_per_minute,
            held_before: change.held_before.iter().take(CHAINS).map(HeldFields::new).collect(),
            was: change.was.as_deref().map(|record| RecordFields::new(None, record)),
        }
    }
}

#[derive(serde::Serialize)]
struct HeldFields<'a> {
    #[serde(flatten)]
    chain: ChainFields<'a>,
    bytes: u64,
}

impl<'a> HeldFields<'a> {
    fn new(held: &'a HeldBefore) -> HeldFields<'a> {
        HeldFields { chain: ChainFields::new(&held.chain), bytes: held.bytes }
    }
}

#[derive(serde::Serialize)]
struct RetentionFields {
    seen_seconds: f64,
    scans: u64,
    staleness: Option<StalenessFields>,
    records: Vec<RetainedFields>,
}

#[derive(serde::Serialize)]
struct StalenessFields {
    seconds: f64,
    resident_bytes: u64,
    referenced_bytes: u64,
}

#[derive(serde::Serialize)]
struct RetainedFields {
    number: usize,
    bytes_per_minute: f64,
    grown_scans: u64,
    grown_bytes: i64,
    grown_blocks: i64,
    allocated_bytes: Option<u64>,
    allocated_blocks: Option<u64>,
    stale_share: Option<f64>,
    cohorts: Vec<CohortFields>,
}

#[derive(serde::Serialize)]
struct CohortFields {
    oldest_seconds: f64,
    youngest_seconds: f64,
    live_bytes: u64,
    live_blocks: u64,
}

impl RetentionFields {
    fn new(retention: &Retention) -> RetentionFields {
        RetentionFields {
            seen_seconds: retention.seen.as_secs_f64(),
            scans: retention.scans,
            staleness: retention.staleness.map(|staleness| StalenessFields {
                seconds: staleness.waited.as_secs_f64(),
                resident_bytes: staleness.resident,
                referenced_bytes: staleness.referenced,
            }),
            records: retention.records.iter().map(RetainedFields::new).collect(),
        }
    }
}

impl RetainedFields {
    fn new(retained: &Retained) -> RetainedFields {
        let cohorts = retained.cohorts.iter().map(|cohort| CohortFields {
            oldest_seconds: cohort.oldest.as_secs_f64(),
            youngest_seconds: cohort.youngest.as_secs_f64(),
            live_bytes: cohort.live.bytes,
            live_blocks: cohort.live.blocks,
        });
        RetainedFields {
            number: retained.record.saturating_add(1),
            bytes_per_minute: retained.bytes_per_minute,
            grown_scans: retained.grown_scans,
            grown_bytes: retained.grown_bytes,
            grown_blocks: retained.grown_blocks,
            allocated_bytes: retained.allocated.map(|amount| amount.bytes),
            allocated_blocks: retained.allocated.map(|amount| amount.blocks),
            stale_share: retained.stale,
            cohorts: cohorts.collect(),
        }
    }
}
