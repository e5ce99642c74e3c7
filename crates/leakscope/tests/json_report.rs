//! The JSON of a real run against `docs/json/report.md`: every field is there, of the documented kind, and true.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const LEAKSCOPE: &str = env!("CARGO_BIN_EXE_leakscope");

/// Loses three blocks, frees two at once, keeps a mapping, and lives long enough for a few points of the timeline.
const PROGRAM: &str = r#"
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
void *volatile kept;
__attribute__((noinline)) void lose(size_t size) { kept = malloc(size); }
int main(void) {
    for (int i = 0; i < 3; i++) lose(1000);
    for (int i = 0; i < 2; i++) { kept = malloc(50); free(kept); }
    kept = mmap(0, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct timespec pause = {0, 200 * 1000 * 1000};
    nanosleep(&pause, 0);
    if (getenv("ABORT")) abort();
    return 3;
}
"#;

/// The report that `run --json` writes of the program, built with `option`.
fn report(directory: &Path, name: &str, option: &str, environment: Option<&str>) -> Value {
    report_of(directory, name, option, environment, &[])
}

/// The same with further options of `run`.
fn report_of(
    directory: &Path,
    name: &str,
    option: &str,
    environment: Option<&str>,
    options: &[&str],
) -> Value {
    let (source, program) = (directory.join("program.c"), directory.join(name));
    std::fs::write(&source, PROGRAM).expect("the temporary directory can be written");
    let built = Command::new("cc").args(["-O1", option, "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("a C compiler").success());
    let json = directory.join(format!("{name}.json"));
    let mut command = Command::new(LEAKSCOPE);
    command.arg("run").args(options).arg("-o").arg(directory.join(format!("{name}.heap")));
    command.arg(format!("--json={}", json.display())).arg("--").arg(&program).arg("two words");
    command.env("XDG_STATE_HOME", directory).env_remove("DEBUGINFOD_URLS");
    if let Some(variable) = environment {
        command.env(variable, "1");
    }
    command.output().expect("leakscope runs");
    serde_json::from_slice(&std::fs::read(&json).expect("the report")).expect("JSON")
}

/// Documented paths with their units.
fn documented() -> BTreeMap<String, String> {
    let rows = include_str!("../../../docs/json/report.md").lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let path = cells.next()?.trim().trim_end_matches('`');
        Some((path.to_owned(), cells.next()?.trim().to_owned()))
    });
    rows.collect()
}

/// Every value at every path, `[]` for any array element.
fn values<'a>(value: &'a Value, path: &str, found: &mut BTreeMap<String, Vec<&'a Value>>) {
    if !path.is_empty() && !path.ends_with("[]") {
        found.entry(path.to_owned()).or_default().push(value);
    }
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            values(value, &path, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| values(item, &format!("{path}[]"), found)),
        _ => {}
    }
}

#[test]
fn a_real_runs_report_has_every_documented_field_in_its_unit_and_no_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let debug = report(directory.path(), "debug", "-g", None);
    let stripped = report(directory.path(), "stripped", "-s", None);
    let sampled = report_of(directory.path(), "sampled", "-g", None, &["--sample=1"]);
    let mut found = BTreeMap::new();
    values(&sampled, "", &mut found);
    values(&debug, "", &mut found);
    values(&stripped, "", &mut found);
    let documented = documented();
    assert_eq!(found.keys().collect::<BTreeSet<_>>(), documented.keys().collect::<BTreeSet<_>>());
    for (path, unit) in &documented {
        let fits = |value: &&Value| match unit.as_str() {
            "bytes" | "blocks" if path.contains("standard_error") => {
                value.as_f64().is_some_and(|error| error >= 0.0)
            }
            "bytes" | "blocks" | "mappings" | "calls" | "samples" => value.is_u64(),
            "seconds" => value.as_f64().is_some_and(|seconds| seconds >= 0.0),
            "RFC 3339, UTC" => value.as_str().is_some_and(|text| text.ends_with('Z') && text.contains('T')),
            "" => true,
            other => panic!("{path} is in {other}, which this test does not know"),
        };
        let all = &found[path];
        assert!(all.iter().all(fits), "{path} in {unit}: {all:?}");
        // The Debian package can be unknown.
        let may_lack = path == "missing_debug_info[].package";
        assert!(may_lack || all.iter().any(|value| !value.is_null()), "{path} is never known");
    }
}

#[test]
fn a_real_runs_numbers_are_the_programs_and_add_up() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = report(directory.path(), "program", "-g", None);
    let process = &report["process"];
    assert_eq!(process["command"][1], "two words");
    assert_eq!(process["executable"], directory.path().join("program").to_str().expect("UTF-8"));
    assert_eq!(process["end"], serde_json::json!({"reason": "exited", "status": 3}));
    let totals = &report["totals"];
    for (field, value) in
        [("inuse_bytes", 3000), ("inuse_blocks", 3), ("allocated_bytes", 3100), ("allocated_blocks", 5)]
    {
        assert_eq!(totals[field], value, "{field}");
    }
    assert_eq!((&totals["temporary_blocks"], &totals["missed_events"]), (&2.into(), &0.into()));
    assert_eq!(
        (&report["mapped"]["inuse_bytes"], &report["mapped"]["inuse_blocks"]),
        (&(1 << 20).into(), &1.into())
    );

    let sites = report["sites"].as_array().expect("sites");
    for kind in ["heap", "mapped"] {
        let of = if kind == "heap" { totals } else { &report["mapped"] };
        for field in
            ["inuse_bytes", "inuse_blocks", "allocated_bytes", "allocated_blocks", "temporary_blocks"]
        {
            let sum: u64 = sites
                .iter()
                .filter(|site| site["kind"] == kind)
                .filter_map(|site| site[field].as_u64())
                .sum();
            assert_eq!(of[field], sum, "{kind} {field}");
        }
    }
    let lost =
        sites.iter().find(|site| site["stack"][0]["function"] == "lose").expect("the site of the leak");
    let frame = &lost["stack"][0];
    let line = PROGRAM.lines().position(|line| line.contains("void lose")).expect("it is there") + 1;
    assert_eq!((&frame["line"], &lost["inuse_bytes"]), (&line.into(), &3000.into()));
    assert!(frame["file"].as_str().is_some_and(|file| file.ends_with("program.c")), "{frame}");
    assert_eq!(frame["module"], process["executable"]);
    // The address is what addr2line takes.
    let address = format!("{:#x}", frame["address"].as_u64().expect("a number") - 1);
    let program = directory.path().join("program");
    let named = Command::new("addr2line").arg("-e").arg(program).arg(address).output().expect("addr2line");
    let named = String::from_utf8_lossy(&named.stdout).into_owned();
    assert!(named.trim_end().ends_with(&format!("program.c:{line}")), "{named}");
    let seconds: Vec<f64> = report["timeline"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|point| point["seconds"].as_f64())
        .collect();
    assert!(!seconds.is_empty() && seconds.is_sorted(), "{seconds:?}");
}

#[test]
fn a_death_by_a_signal_is_told_with_its_number() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let report = report(directory.path(), "program", "-g", Some("ABORT"));
    assert_eq!(report["process"]["end"], serde_json::json!({"reason": "signaled", "status": 6}));
    assert_eq!(report["totals"]["inuse_bytes"], 3000);
}
