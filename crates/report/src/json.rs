//! The report as JSON, schema `leakscope.report/1`; its fields are described in `docs/json/report.md`.
//!
//! The structures here are the schema, borrowed from the profile: a large report is written out as it is made.

mod leaks;

pub use leaks::{leaks_json, write_leaks_json, write_leaks_json_line};

use crate::escape::elided;
use crate::time::rfc3339;
use leakscope_profile::{
    Counts, End, Frame, Kind, MissingDebugInfo, NamedSite, NamedSites, Process, Profile, Samples, Sampling,
    Symbols, TimelinePoint, View,
};
use serde::ser::{Serialize, SerializeSeq, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::io;

/// Longest string taken over from the profile, in characters.
const STRING_LIMIT: usize = 4096;

/// The report as a JSON value, sites sorted by `view`. For a large profile, [`write_json`] takes far less memory.
pub fn json(profile: &Profile, symbols: &Symbols, view: View) -> Value {
    let named = profile.named_sites(symbols, view);
    // Only a map with keys other than strings could fail.
    serde_json::to_value(Report::new(profile, symbols, view, &named)).unwrap_or_default()
}

/// Writes the report as indented JSON with a newline at its end, sites sorted by `view`. Give it a buffered writer.
///
/// # Errors
/// Those of `out`.
pub fn write_json(
    profile: &Profile,
    symbols: &Symbols,
    view: View,
    mut out: impl io::Write,
) -> io::Result<()> {
    let named = profile.named_sites(symbols, view);
    serde_json::to_writer_pretty(&mut out, &Report::new(profile, symbols, view, &named))?;
    out.write_all(b"\n")
}

#[derive(serde::Serialize)]
struct Report<'a> {
    schema: &'static str,
    view: &'static str,
    process: ProcessFields<'a>,
    sampling: Option<SamplingFields>,
    totals: TotalFields,
    mapped: CountFields,
    timeline: Vec<PointFields>,
    sites: Sites<'a>,
    notes: Vec<Cow<'a, str>>,
    missing_debug_info: Vec<MissingFields<'a>>,
}

impl<'a> Report<'a> {
    fn new(profile: &'a Profile, symbols: &'a Symbols, view: View, named: &'a NamedSites) -> Report<'a> {
        Report {
            schema: "leakscope.report/1",
            view: view.name(),
            process: ProcessFields::new(&profile.process),
            sampling: profile.sampling.map(SamplingFields::new),
            totals: TotalFields::new(profile),
            mapped: CountFields::new(&profile.mapped),
            timeline: profile.timeline.iter().map(PointFields::new).collect(),
            sites: Sites { named, sampled: profile.sampling.is_some() },
            notes: profile.notes.iter().map(|note| string(note)).collect(),
            missing_debug_info: symbols.missing.iter().map(MissingFields::new).collect(),
        }
    }
}

#[derive(serde::Serialize)]
struct ProcessFields<'a> {
    pid: u32,
    command: Vec<Cow<'a, str>>,
    executable: Option<Cow<'a, str>>,
    start_time: Option<String>,
    end: EndFields,
}

#[derive(serde::Serialize)]
struct EndFields {
    reason: &'static str,
    status: Option<i32>,
}

impl<'a> ProcessFields<'a> {
    fn new(process: &'a Process) -> ProcessFields<'a> {
        let (reason, status) = match process.end {
            End::Running => ("running", None),
            End::Exited(status) => ("exited", Some(status)),
            End::Signaled(signal) => ("signaled", Some(signal)),
            End::Replaced => ("replaced", None),
            End::Unknown => ("unknown", None),
        };
        ProcessFields {
            pid: process.pid,
            command: process.command.iter().map(|argument| string(argument)).collect(),
            executable: known(Some(&process.executable)),
            start_time: process.start_time.and_then(rfc3339),
            end: EndFields { reason, status },
        }
    }
}

#[derive(serde::Serialize)]
struct SamplingFields {
    interval_bytes: u64,
    samples: u64,
}

impl SamplingFields {
    fn new(sampling: Sampling) -> SamplingFields {
        SamplingFields { interval_bytes: sampling.interval_bytes, samples: sampling.samples }
    }
}

/// What estimates rest on; both null where every allocation was recorded.
#[derive(serde::Serialize)]
struct EstimateFields {
    samples: Option<SampleFields>,
    standard_error: Option<ErrorFields>,
}

#[derive(serde::Serialize)]
struct SampleFields {
    allocated: u64,
    inuse: u64,
}

#[derive(serde::Serialize)]
struct ErrorFields {
    inuse_bytes: f64,
    inuse_blocks: f64,
}

impl EstimateFields {
    fn new(samples: Option<&Samples>) -> EstimateFields {
        EstimateFields {
            samples: samples
                .map(|samples| SampleFields { allocated: samples.allocated, inuse: samples.inuse }),
            standard_error: samples.map(|samples| ErrorFields {
                inuse_bytes: samples.inuse_bytes_error(),
                inuse_blocks: samples.inuse_blocks_error(),
            }),
        }
    }
}

#[derive(serde::Serialize)]
struct CountFields {
    inuse_bytes: u64,
    inuse_blocks: u64,
    allocated_bytes: u64,
    allocated_blocks: u64,
    peak_bytes: u64,
    peak_blocks: u64,
    temporary_blocks: u64,
}

impl CountFields {
    fn new(counts: &Counts) -> CountFields {
        CountFields {
            inuse_bytes: counts.inuse_bytes,
            inuse_blocks: counts.inuse_blocks,
            allocated_bytes: counts.allocated_bytes,
            allocated_blocks: counts.allocated_blocks,
            peak_bytes: counts.peak_bytes,
            peak_blocks: counts.peak_blocks,
            temporary_blocks: counts.temporary_blocks,
        }
    }
}

#[derive(serde::Serialize)]
struct TotalFields {
    #[serde(flatten)]
    counts: CountFields,
    #[serde(flatten)]
    estimate: EstimateFields,
    missed_events: u64,
    inherited_bytes: u64,
    inherited_blocks: u64,
}

impl TotalFields {
    fn new(profile: &Profile) -> TotalFields {
        let totals = &profile.totals;
        TotalFields {
            counts: CountFields::new(&totals.counts),
            estimate: EstimateFields::new(profile.sampling.map(|_| &totals.samples)),
            missed_events: totals.missed_events,
            inherited_bytes: totals.inherited_bytes,
            inherited_blocks: totals.inherited_blocks,
        }
    }
}

#[derive(serde::Serialize)]
struct PointFields {
    seconds: f64,
    inuse_bytes: u64,
    rss_bytes: u64,
    allocated_bytes: u64,
}

impl PointFields {
    fn new(point: &TimelinePoint) -> PointFields {
        PointFields {
            seconds: point.seconds,
            inuse_bytes: point.inuse_bytes,
            rss_bytes: point.rss_bytes,
            allocated_bytes: point.allocated_bytes,
        }
    }
}

struct Sites<'a> {
    named: &'a NamedSites,
    sampled: bool,
}

impl Serialize for Sites<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sites = serializer.serialize_seq(Some(self.named.sites.len()))?;
        for site in &self.named.sites {
            let kind = match site.kind {
                Kind::Heap => "heap",
                Kind::Mapped => "mapped",
            };
            sites.serialize_element(&SiteFields {
                counts: CountFields::new(&site.counts),
                // Mappings are all recorded.
                estimate: EstimateFields::new(
                    Some(&site.samples).filter(|_| self.sampled && site.kind == Kind::Heap),
                ),
                kind,
                truncated: site.truncated,
                stack: Stack { named: self.named, site },
            })?;
        }
        sites.end()
    }
}

#[derive(serde::Serialize)]
struct SiteFields<'a> {
    kind: &'static str,
    #[serde(flatten)]
    counts: CountFields,
    #[serde(flatten)]
    estimate: EstimateFields,
    truncated: bool,
    stack: Stack<'a>,
}

struct Stack<'a> {
    named: &'a NamedSites,
    site: &'a NamedSite,
}

impl Serialize for Stack<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.named.stack(self.site).map(FrameFields::new))
    }
}

#[derive(serde::Serialize)]
struct FrameFields<'a> {
    function: Option<Cow<'a, str>>,
    file: Option<Cow<'a, str>>,
    line: Option<u32>,
    module: Option<Cow<'a, str>>,
    address: u64,
    inlined: bool,
}

impl<'a> FrameFields<'a> {
    fn new(frame: &'a Frame) -> FrameFields<'a> {
        FrameFields {
            function: known(frame.function.as_deref()),
            file: known(frame.file.as_deref()),
            line: frame.line,
            module: known(frame.module.as_deref()),
            address: frame.address,
            inlined: frame.inlined,
        }
    }
}

#[derive(serde::Serialize)]
struct MissingFields<'a> {
    path: Cow<'a, str>,
    build_id: Option<Cow<'a, str>>,
    package: Option<Cow<'a, str>>,
    reason: Cow<'a, str>,
}

impl<'a> MissingFields<'a> {
    fn new(missing: &'a MissingDebugInfo) -> MissingFields<'a> {
        MissingFields {
            path: string(&missing.path),
            build_id: known(Some(&missing.build_id)),
            package: known(missing.package.as_deref()),
            reason: string(&missing.reason),
        }
    }
}

fn string(text: &str) -> Cow<'_, str> {
    elided(text, STRING_LIMIT)
}

/// What is unknown is null, not empty.
fn known(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.filter(|text| !text.is_empty()).map(string)
}
