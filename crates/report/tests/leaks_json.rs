//! The JSON of a scan's leaks, schema `leakscope.leaks/1`, against its documentation.

mod common;

use common::scan;
use leakscope_leaks::{KindSet, LeakReport};
use leakscope_report::{leaks_json, write_leaks_json};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Every value at every path, `[]` for any array element.
fn values<'a>(value: &'a Value, path: &str, found: &mut BTreeMap<String, Vec<&'a Value>>) {
    if !path.is_empty() && !path.ends_with("[]") {
        found.entry(path.to_owned()).or_default().push(value);
    }
    match value {
        // What a gone record was has the fields of a record.
        Value::Object(_) if path.ends_with(".was") => {}
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            values(value, &path, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| values(item, &format!("{path}[]"), found)),
        _ => {}
    }
}

/// Documented paths with their units.
fn documented() -> BTreeMap<String, String> {
    let rows = include_str!("../../../docs/json/leaks.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let path = cells.next()?.trim().trim_end_matches('`');
        Some((path.to_owned(), cells.next()?.trim().to_owned()))
    });
    rows.collect()
}

#[test]
fn every_field_is_documented_and_in_its_unit_and_every_documented_field_is_there() {
    let report = leaks_json(&scan(), KindSet::ALL);
    let mut found = BTreeMap::new();
    values(&report, "", &mut found);
    let documented = documented();
    assert_eq!(found.keys().collect::<BTreeSet<_>>(), documented.keys().collect::<BTreeSet<_>>());
    for (path, unit) in &documented {
        let fits = |value: &&Value| match unit.as_str() {
            _ if value.is_null() => true,
            "bytes" | "blocks" | "records" | "scans" => value.is_u64(),
            "0 to 1" => value.as_f64().is_some_and(|share| (0.0..=1.0).contains(&share)),
            "bytes, signed" | "blocks, signed" => value.is_i64(),
            "seconds" | "milliseconds" => value.as_f64().is_some_and(|time| time >= 0.0),
            "bytes per minute" | "blocks per minute" => value.is_f64(),
            "RFC 3339, UTC" => value.as_str().is_some_and(|text| text.ends_with('Z') && text.contains('T')),
            "" => true,
            other => panic!("{path} is in {other}, which this test does not know"),
        };
        let all = &found[path];
        assert!(all.iter().all(fits), "{path} in {unit}: {all:?}");
        // The process runs.
        let may_lack = path == "process.end.status";
        assert!(may_lack || all.iter().any(|value| !value.is_null()), "{path} is never known");
    }
}

#[test]
fn the_report_has_the_numbers_of_the_scan_with_the_largest_record_first() {
    let report = leaks_json(&scan(), KindSet::DEFAULT_SHOWN);
    assert_eq!(report["schema"], "leakscope.leaks/1");
    assert_eq!(report["outcome"], "leaks");
    assert_eq!(report["errors_for_leak_kinds"], json!(["definite"]));
    assert_eq!(
        report["source"],
        json!({"snapshot": "fork", "blocks": "allocator", "allocator": "glibc 2.36"})
    );
    assert_eq!((&report["pause_ms"], &report["scan_ms"]), (&json!(14.5), &json!(230.0)));
    assert_eq!(report["summary"]["definite"], json!({"bytes": 1_050_880, "blocks": 80}));
    assert_eq!(report["summary"]["suppressed"], json!({"bytes": 24, "blocks": 1}));
    let records = report["records"].as_array().expect("records");
    let numbers: Vec<_> =
        records.iter().map(|record| (record["number"].as_u64(), record["kind"].as_str())).collect();
    assert_eq!(
        numbers,
        [(Some(6), Some("definite")), (Some(4), Some("definite")), (Some(3), Some("possible"))]
    );
    let first = &records[0];
    assert_eq!(first["bytes"], 1_048_600);
    assert_eq!((&first["direct_bytes"], &first["indirect_bytes"]), (&json!(1_048_576), &json!(24)));
    assert_eq!(
        first["stack"][1],
        json!({
            "function": "parse_header", "file": "src/http.c", "line": 17,
            "module": "/srv/service", "address": 0, "inlined": true,
        })
    );
    assert_eq!(first["contents"], "474554202f20485454502f312e310d0a1b5b33316d");
    assert_eq!((&records[1]["type"], &records[1]["content"]), (&json!("net::Session"), &json!("pointers")));
    let change = &report["comparison"]["changes"][0];
    assert_eq!(
        (&change["status"], &change["number"], &change["bytes"]),
        (&json!("grown"), &json!(6), &json!(65_536))
    );
    assert_eq!(change["held_before"][0]["steps"][0], "global sessions in service");
    let gone = &report["comparison"]["changes"][1];
    assert_eq!((&gone["number"], &gone["was"]["stack"][0]["function"]), (&Value::Null, &json!("tmp_open")));
}

#[test]
fn what_was_not_compared_paused_or_asked_for_is_null() {
    let report = leaks_json(&LeakReport::default(), KindSet::ALL);
    for field in ["comparison", "pause_ms"] {
        assert_eq!(report[field], Value::Null, "{field}");
    }
    assert_eq!(report["source"]["allocator"], Value::Null);
    assert_eq!(report["outcome"], "clean");
}

#[test]
fn written_out_it_is_the_same_with_a_newline_at_its_end() {
    let mut written = Vec::new();
    write_leaks_json(&scan(), KindSet::ALL, &mut written).expect("a vector takes everything");
    assert!(written.ends_with(b"}\n"));
    let read: Value = serde_json::from_slice(&written).expect("JSON");
    assert_eq!(read, leaks_json(&scan(), KindSet::ALL));
}
