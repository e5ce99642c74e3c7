//! The JSON report, schema `leakscope.report/1`, against its documentation.

mod common;

use common::{add_up, counts, in_service, sampled, service};
use leakscope_profile::*;
use leakscope_report::{json, write_json};
use serde_json::{Value, json};
use std::time::{Duration, UNIX_EPOCH};

/// Every field path that occurs in a value, `[]` for any array element.
fn paths(value: &Value, prefix: &str, found: &mut std::collections::BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                found.insert(path.clone());
                paths(value, &path, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| paths(item, &format!("{prefix}[]"), found)),
        _ => {}
    }
}

#[test]
fn every_field_is_documented_and_every_documented_field_is_there() {
    let documentation = include_str!("../../../docs/json/report.md");
    let documented: std::collections::BTreeSet<String> = documentation
        .lines()
        .filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned()))
        .collect();
    let (profile, symbols) = service();
    let mut found = std::collections::BTreeSet::new();
    paths(&json(&profile, &symbols, View::InUse), "", &mut found);
    paths(&json(&sampled(profile), &symbols, View::InUse), "", &mut found);
    assert_eq!(found, documented);
}

#[test]
fn the_report_has_the_numbers_of_the_profile() {
    let (profile, symbols) = service();
    let report = json(&profile, &symbols, View::InUse);
    assert_eq!(report["schema"], "leakscope.report/1");
    assert_eq!(
        report["process"],
        json!({
            "pid": 4711,
            "command": ["/srv/service", "--port", "80", "two words"],
            "executable": "/srv/service",
            "start_time": "2026-09-21T14:13:20.250Z",
            "end": {"reason": "exited", "status": 0},
        })
    );
    let site = &report["sites"][0];
    assert_eq!(site["inuse_bytes"], 13 << 20);
    assert_eq!(site["inuse_blocks"], 1000);
    assert_eq!(site["allocated_bytes"], 15 << 20);
    assert_eq!(site["allocated_blocks"], 1200);
    assert_eq!(site["peak_bytes"], 14 << 20);
    assert_eq!(site["temporary_blocks"], 3);
    let functions: Vec<_> =
        site["stack"].as_array().into_iter().flatten().map(|frame| frame["function"].as_str()).collect();
    assert_eq!(
        functions,
        [
            "cache_insert",
            "parse_header",
            "handle_request(Request const&)",
            "main",
            "__libc_start_call_main",
            "__libc_start_main",
            "_start"
        ]
        .map(Some)
    );
    assert_eq!(
        site["stack"][1],
        json!({
            "function": "parse_header", "file": "src/http.c", "line": 17,
            "module": "/srv/service", "address": 0, "inlined": true,
        })
    );
    let nameless = report["sites"].as_array().into_iter().flatten().find(|site| site["truncated"] == true);
    assert_eq!(
        nameless.map(|site| &site["stack"]),
        Some(&json!([{
            "function": null, "file": null, "line": null,
            "module": "/opt/lib/libstripped.so.1", "address": 0x1234, "inlined": false,
        }]))
    );
}

#[test]
fn estimates_of_heap_sites_have_their_standard_errors_and_other_numbers_have_none() {
    let (profile, symbols) = service();
    let exact = json(&profile, &symbols, View::InUse);
    assert_eq!((&exact["sampling"], &exact["totals"]["standard_error"]), (&Value::Null, &Value::Null));
    assert_eq!(exact["sites"][0]["samples"], Value::Null);
    let report = json(&sampled(profile), &symbols, View::InUse);
    assert_eq!(report["sampling"], json!({"interval_bytes": 524_288, "samples": 9}));
    assert_eq!(report["totals"]["samples"], json!({"allocated": 9, "inuse": 5}));
    assert_eq!(report["totals"]["standard_error"], json!({"inuse_bytes": 1_048_576.0, "inuse_blocks": 30.0}));
    for site in report["sites"].as_array().into_iter().flatten() {
        let known = site["kind"] == "heap";
        assert_eq!(site["standard_error"].is_object(), known, "{site}");
        assert_eq!(site["samples"].is_object(), known, "{site}");
    }
}

#[test]
fn ends_have_a_reason_and_a_status_where_there_is_one() {
    for (end, expected) in [
        (End::Running, json!({"reason": "running", "status": null})),
        (End::Exited(3), json!({"reason": "exited", "status": 3})),
        (End::Signaled(9), json!({"reason": "signaled", "status": 9})),
        (End::Replaced, json!({"reason": "replaced", "status": null})),
        (End::Unknown, json!({"reason": "unknown", "status": null})),
    ] {
        let process = Process { end, ..Process::default() };
        let report = json(&Profile { process, ..Profile::default() }, &Symbols::default(), View::InUse);
        assert_eq!(report["process"]["end"], expected);
    }
}

#[test]
fn what_is_unknown_or_cannot_be_written_is_null() {
    let process =
        Process { start_time: Some(UNIX_EPOCH + Duration::from_secs(1 << 60)), ..Process::default() };
    let timeline = vec![TimelinePoint { seconds: f64::NAN, ..TimelinePoint::default() }];
    let report = json(&Profile { process, timeline, ..Profile::default() }, &Symbols::default(), View::InUse);
    assert_eq!(report["process"]["start_time"], Value::Null);
    assert_eq!(report["process"]["executable"], Value::Null);
    assert_eq!(report["timeline"][0]["seconds"], Value::Null);
}

#[test]
fn sites_are_sorted_by_the_view_and_equal_ones_in_a_fixed_order() {
    let (mut profile, symbols) = service();
    let sorted_by = |profile: &Profile, view: View, field: &str| -> Vec<u64> {
        let report = json(profile, &symbols, view);
        report["sites"].as_array().into_iter().flatten().filter_map(|site| site[field].as_u64()).collect()
    };
    for (view, field) in [
        (View::InUse, "inuse_bytes"),
        (View::Peak, "peak_bytes"),
        (View::Allocated, "allocated_bytes"),
        (View::Temporary, "temporary_blocks"),
    ] {
        assert!(sorted_by(&profile, view, field).is_sorted_by(|a, b| a >= b), "{view}");
    }
    for offset in [7, 3, 5] {
        let stack = vec![in_service(offset)];
        profile.sites.push(Site { stack, counts: counts((8, 1), (8, 1), (8, 1), 0), ..Site::default() });
    }
    add_up(&mut profile);
    let forward = json(&profile, &symbols, View::InUse);
    profile.sites.reverse();
    assert_eq!(json(&profile, &symbols, View::InUse), forward);
}

#[test]
fn what_is_written_is_the_value_in_the_order_of_the_documentation() {
    let (profile, symbols) = service();
    let mut written = Vec::new();
    write_json(&profile, &symbols, View::Peak, &mut written).expect("a vector takes everything");
    let read: Value = serde_json::from_slice(&written).expect("it is JSON");
    assert_eq!(read, json(&profile, &symbols, View::Peak));
    let text = String::from_utf8(written).expect("JSON is UTF-8");
    assert!(text.starts_with("{\n  \"schema\": \"leakscope.report/1\",\n"), "{text}");
    assert!(text.ends_with("}\n"), "{text}");
}

#[test]
fn a_writer_that_fails_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (profile, symbols) = service();
    let error = write_json(&profile, &symbols, View::InUse, Full).expect_err("nothing can be written");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn an_enormous_name_is_cut() {
    let (mut profile, symbols) = service();
    profile.process.command = vec!["x".repeat(1 << 20)];
    let report = json(&profile, &symbols, View::InUse).to_string();
    assert!(report.len() < 1 << 16, "{}", report.len());
}
