//! The report as JSON, schema `leakscope.report/1`; its fields are described in `docs/json/report.md`.

use crate::escape::elided;
use crate::time::rfc3339;
use leakscope_profile::{Counts, End, Frame, Kind, NamedSite, NamedSites, Profile, Symbols, View};
use serde_json::{Value, json};

/// Longest string taken over from the profile, in characters.
const STRING_LIMIT: usize = 4096;

/// The report as JSON, sites sorted by `view`.
pub fn json(profile: &Profile, symbols: &Symbols, view: View) -> Value {
    let named = profile.named_sites(symbols, view);
    let totals = &profile.totals;
    let mut total_fields = counts(&totals.counts);
    if let Value::Object(fields) = &mut total_fields {
        fields.insert("missed_events".to_owned(), totals.missed_events.into());
        fields.insert("inherited_bytes".to_owned(), totals.inherited_bytes.into());
        fields.insert("inherited_blocks".to_owned(), totals.inherited_blocks.into());
    }
    let process = &profile.process;
    let (reason, status) = end(process.end);
    json!({
        "schema": "leakscope.report/1",
        "view": view.name(),
        "process": {
            "pid": process.pid,
            "command": process.command.iter().map(|argument| string(argument)).collect::<Vec<_>>(),
            "executable": optional(Some(&process.executable)),
            "start_time": process.start_time.and_then(rfc3339),
            "end": { "reason": reason, "status": status },
        },
        "totals": total_fields,
        "mapped": counts(&profile.mapped),
        "timeline": profile.timeline.iter().map(|point| json!({
            "seconds": point.seconds,
            "inuse_bytes": point.inuse_bytes,
            "rss_bytes": point.rss_bytes,
            "allocated_bytes": point.allocated_bytes,
        })).collect::<Vec<_>>(),
        "sites": named.sites.iter().map(|s| site(&named, s)).collect::<Vec<_>>(),
        "notes": profile.notes.iter().map(|note| string(note)).collect::<Vec<_>>(),
        "missing_debug_info": symbols.missing.iter().map(|missing| json!({
            "path": string(&missing.path),
            "build_id": optional(Some(&missing.build_id)),
            "package": optional(missing.package.as_deref()),
            "reason": string(&missing.reason),
        })).collect::<Vec<_>>(),
    })
}

fn end(end: End) -> (&'static str, Option<i32>) {
    match end {
        End::Running => ("running", None),
        End::Exited(status) => ("exited", Some(status)),
        End::Signaled(signal) => ("signaled", Some(signal)),
        End::Replaced => ("replaced", None),
        End::Unknown => ("unknown", None),
    }
}

fn site(named: &NamedSites, site: &NamedSite) -> Value {
    let mut value = counts(&site.counts);
    if let Value::Object(fields) = &mut value {
        let kind = match site.kind {
            Kind::Heap => "heap",
            Kind::Mapped => "mapped",
        };
        fields.insert("kind".to_owned(), kind.into());
        fields.insert("truncated".to_owned(), site.truncated.into());
        fields.insert("stack".to_owned(), named.stack(site).map(frame).collect());
    }
    value
}

fn counts(counts: &Counts) -> Value {
    json!({
        "inuse_bytes": counts.inuse_bytes,
        "inuse_blocks": counts.inuse_blocks,
        "allocated_bytes": counts.allocated_bytes,
        "allocated_blocks": counts.allocated_blocks,
        "peak_bytes": counts.peak_bytes,
        "peak_blocks": counts.peak_blocks,
        "temporary_blocks": counts.temporary_blocks,
    })
}

fn frame(frame: &Frame) -> Value {
    json!({
        "function": optional(frame.function.as_deref()),
        "file": optional(frame.file.as_deref()),
        "line": frame.line,
        "module": optional(frame.module.as_deref()),
        "address": frame.address,
        "inlined": frame.inlined,
    })
}

fn string(text: &str) -> Value {
    elided(text, STRING_LIMIT).into()
}

/// What is unknown is null, not empty.
fn optional(text: Option<&str>) -> Value {
    text.filter(|text| !text.is_empty()).map_or(Value::Null, string)
}
