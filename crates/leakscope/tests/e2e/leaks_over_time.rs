//! What blocks are, who holds them, and what becomes of them from scan to scan, of processes that nobody prepared.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::process::{children_of, kill, run, wait, wait_until};
use crate::support::traced::{LEAKSCOPE, leakscope};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A target that answers each line with a line.
struct Target {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    fn start(command: &mut Command) -> Target {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut target = Target { child, input, output };
        target.await_line("ready");
        target
    }

    fn await_line(&mut self, expected: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim_end(), expected);
    }

    fn tell(&mut self, command: &str, answer: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command}").unwrap();
        self.await_line(answer);
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn end(mut self) {
        drop(self.input.take());
        assert!(wait(&mut self.child, "the target").success());
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn holders_cpp(flags: &[&str]) -> Target {
    Target::start(&mut Command::new(compile("holders_cpp.cpp", flags)))
}

/// One scan as JSON.
fn scan(pid: u32, more: &[&str]) -> Value {
    let outcome =
        run(leakscope(["leaks", "--json", "--show-leak-kinds=all"]).args(more).arg(pid.to_string()));
    assert!(matches!(outcome.code(), 0 | 1), "{}", outcome.err());
    serde_json::from_slice(&outcome.stdout).unwrap()
}

/// The records of a kind and type.
fn records<'a>(report: &'a Value, kind: &str, type_name: &str) -> Vec<&'a Value> {
    let records = report["records"].as_array().unwrap().iter();
    records.filter(|record| record["kind"] == kind && record["type"] == type_name).collect()
}

/// Blocks of a kind and type.
fn blocks(report: &Value, kind: &str, type_name: &str) -> u64 {
    records(report, kind, type_name).iter().map(|record| record["blocks"].as_u64().unwrap()).sum()
}

/// Every chain of the reachable records whose blocks are at least so large and less than twice as large, as one text.
fn chains_of_size(report: &Value, size: u64) -> Vec<String> {
    let fits = |record: &&Value| {
        let least = record["smallest_bytes"].as_u64().unwrap();
        record["kind"] == "reachable" && (size..size + 24).contains(&least)
    };
    report["records"].as_array().unwrap().iter().filter(fits).flat_map(chains).collect()
}

fn chains(record: &Value) -> Vec<String> {
    record["holders"].as_array().unwrap().iter().map(chain).collect()
}

fn chain(holder: &Value) -> String {
    let steps: Vec<&str> =
        holder["steps"].as_array().unwrap().iter().map(|step| step.as_str().unwrap()).collect();
    steps.join(" > ")
}

fn assert_names_of_cpp(flags: &[&str]) {
    let target = holders_cpp(flags);
    let report = scan(target.pid(), &[]);
    assert_eq!(blocks(&report, "definite", "net::Admin"), 5, "{report:#}");
    assert_eq!(report["summary"]["definite"]["blocks"], 5);
    assert_eq!(blocks(&report, "reachable", "net::Session"), 10);
    assert_eq!(blocks(&report, "reachable", "net::Node"), 1000);
    assert_eq!(blocks(&report, "reachable", "net::Request"), 1);

    let worker = "thread \"worker \\\"1\\\"\"".replace('\\', "");
    let of =
        |type_name| records(&report, "reachable", type_name).into_iter().flat_map(chains).collect::<Vec<_>>();
    for held in of("net::Session") {
        assert!(held.starts_with("global sessions"), "{held}");
        assert!(held.contains(" in holders_cpp > block of 56 bytes"), "{held}");
    }
    let request = of("net::Request");
    assert_eq!(request.len(), 1);
    assert!(request[0].starts_with(&format!("thread-local current_request of {worker} (")), "{request:?}");
    let nodes = of("net::Node");
    assert!(!nodes.is_empty());
    for held in nodes.iter().filter(|held| held.contains(" > ")) {
        assert!(held.starts_with("global list_head in holders_cpp > net::Node+40"), "{held}");
    }
    assert_eq!(chains_of_size(&report, 1717), ["global list_head in holders_cpp > net::Node (×1000)"]);
    assert_eq!(chains_of_size(&report, 777), ["global table in holders_cpp > block of 2408 bytes[…]"]);
    let frame = chains_of_size(&report, 4242);
    assert_eq!(frame.len(), 1);
    assert!(frame[0].starts_with(&format!("stack of {worker} (")), "{frame:?}");
    assert!(frame[0].ends_with("), in function hold_in_a_frame()"), "{frame:?}");
    target.end();
}

#[test]
fn classes_and_holders_of_a_cpp_program_have_their_names() {
    assert_names_of_cpp(&["-O0", "-std=c++20"]);
}

#[test]
fn optimization_without_frame_pointers_and_a_fixed_address_change_no_name() {
    assert_names_of_cpp(&["-O2", "-std=c++20", "-fomit-frame-pointer", "-no-pie"]);
}

#[test]
fn trait_objects_of_a_rust_program_have_their_types_names() {
    let program = compile("holders_rust.rs", &["-C", "opt-level=1"]);
    let target = Target::start(&mut Command::new(program));
    let report = scan(target.pid(), &[]);
    assert_eq!(blocks(&report, "indirect", "holders_rust::Download"), 3, "{report:#}");
    assert_eq!(blocks(&report, "reachable", "holders_rust::Download"), 7);
    assert_eq!(blocks(&report, "reachable", "holders_rust::Ping"), 7);
    for record in records(&report, "reachable", "holders_rust::Ping") {
        for held in chains(record) {
            assert!(held.starts_with("global holders_rust::HELD+"), "{held}");
            assert!(held.ends_with("[…]"), "{held}");
        }
    }
    target.end();
}

/// Scans that were written as JSON, one a line.
fn scans(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn watch(pid: u32, json: &Path, more: &[&str]) -> Child {
    Command::new(LEAKSCOPE)
        .args(["leaks", "--show-leak-kinds=all", &format!("--json={}", json.display())])
        .args(more)
        .arg(pid.to_string())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_was_lost_between_two_scans_is_told_with_what_held_it_last() {
    let mut target = holders_cpp(&["-O0", "-std=c++20"]);
    let directory = Directory::new();
    let json = directory.join("scans.json");
    let mut watching = watch(target.pid(), &json, &["--every", "200ms"]);
    wait_until("the first scan", || (!scans(&json).is_empty()).then_some(()));
    target.tell("drop", "dropped");
    let lost = wait_until("the loss", || {
        scans(&json).into_iter().find(|scan| scan["comparison"]["lost_blocks"].as_u64() > Some(0))
    });
    kill(watching.id(), libc::SIGINT);
    // Blocks are lost, and that is all it has to say.
    assert_eq!(wait(&mut watching, "leakscope").code(), Some(1));

    let first = &scans(&json)[0];
    assert_eq!(first["comparison"], Value::Null);
    assert_eq!(first["schema"], "leakscope.leaks/1");
    assert_eq!(lost["comparison"]["lost_blocks"], 3);
    assert_eq!(blocks(&lost, "definite", "net::Session"), 3);
    let changes = lost["comparison"]["changes"].as_array().unwrap();
    let change = changes.iter().find(|change| change["kind"] == "definite").unwrap();
    assert_eq!((&change["status"], &change["blocks"]), (&Value::from("new"), &Value::from(3)));
    let held = change["held_before"].as_array().unwrap();
    let dropped: u64 = held.iter().map(|held| held["blocks"].as_u64().unwrap()).sum();
    assert_eq!(dropped, 3);
    for held in held {
        assert!(chain(held).starts_with("global sessions in holders_cpp > block of 56 bytes"), "{held}");
    }
    target.end();
}

#[test]
fn scans_end_with_the_process_and_after_their_count() {
    let target = holders_cpp(&["-O0", "-std=c++20"]);
    let directory = Directory::new();
    let json = directory.join("scans.json");
    let mut counted = watch(target.pid(), &json, &["--every", "50ms", "--count", "3"]);
    assert_eq!(wait(&mut counted, "leakscope").code(), Some(1));
    assert_eq!(scans(&json).len(), 3);
    let json = directory.join("more.json");
    let mut watching = watch(target.pid(), &json, &["--every", "1h"]);
    wait_until("the first scan", || (!scans(&json).is_empty()).then_some(()));
    target.end();
    assert_eq!(wait(&mut watching, "leakscope").code(), Some(1));
    assert_eq!(scans(&json).len(), 1);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut watching.stderr.take().unwrap(), &mut said).unwrap();
    assert!(said.contains("has ended"), "{said}");
}

#[test]
fn times_and_targets_that_make_no_sense_are_wrong_usage() {
    for arguments in
        [&["--every", "5"][..], &["--every", "0s"], &["--count", "2"], &["--every", "1s", "--count", "0"]]
    {
        let outcome = run(leakscope(["leaks"]).args(arguments).arg("1"));
        assert_eq!(outcome.code(), 2, "{arguments:?}: {}", outcome.err());
    }
    let outcome = run(&mut leakscope(["leaks", "--every", "1s", "/etc/hostname"]));
    assert_eq!(outcome.code(), 125, "{}", outcome.err());
    assert!(outcome.err().contains("/etc/hostname"), "{}", outcome.err());
}

/// The record to which an entry of `retention.records` belongs.
fn record_of<'a>(report: &'a Value, retained: &Value) -> &'a Value {
    let records = report["records"].as_array().unwrap();
    records.iter().find(|record| record["number"] == retained["number"]).unwrap()
}

/// What is said to keep growing, with its record's type.
fn retained(report: &Value) -> Vec<(&Value, &Value)> {
    let retained = report["retention"]["records"].as_array().unwrap();
    retained.iter().map(|retained| (retained, record_of(report, retained))).collect()
}

#[test]
fn reachable_records_that_grow_from_scan_to_scan_are_retained_and_others_are_not() {
    let mut target = holders_cpp(&["-O0", "-std=c++20"]);
    // The vector's own block comes with the first of these.
    target.tell("grow", "grown");
    let directory = Directory::new();
    let json = directory.join("scans.json");
    let options = ["--retained", "--staleness=20ms", "--every", "100ms"];
    let mut watching = watch(target.pid(), &json, &options);
    let last = wait_until("growth at several scans", || {
        target.tell("grow", "grown");
        let grew = |report: &Value| {
            let retained = retained(report).into_iter().find(|(_, record)| record["type"] == "net::Request");
            retained.is_some_and(|(retained, _)| retained["grown_scans"].as_u64() >= Some(2))
        };
        scans(&json).into_iter().find(grew)
    });
    kill(watching.id(), libc::SIGTERM);
    assert_eq!(wait(&mut watching, "leakscope").code(), Some(1));
    assert!(retained(&scans(&json)[0]).is_empty(), "one scan tells nothing");
    for (growing, record) in retained(&last) {
        assert_eq!(record["type"], "net::Request", "{growing:#} {record:#}");
        assert!(growing["grown_blocks"].as_i64() >= Some(200), "{growing:#}");
        assert_eq!(growing["cohorts"], Value::Array(Vec::new()));
        let stale = growing["stale_share"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&stale));
        let held = chains(record);
        assert!(
            held.iter().any(|held| held.starts_with("global kept_requests in holders_cpp > block of")),
            "{held:?}"
        );
    }
    let staleness = &last["retention"]["staleness"];
    assert!(staleness["resident_bytes"].as_u64() >= staleness["referenced_bytes"].as_u64(), "{staleness}");
    assert!(staleness["seconds"].as_f64() >= Some(0.02));
    target.end();
}

#[test]
fn of_a_traced_process_call_sites_whose_blocks_survive_from_all_ages_are_retained() {
    let program = compile("holders_cpp.cpp", &["-O0", "-std=c++20"]);
    let directory = Directory::new();
    let mut run_it = Command::new(LEAKSCOPE);
    run_it.args(["run", "-o"]).arg(directory.join("heap")).arg("--").arg(program).stderr(Stdio::null());
    let mut target = Target::start(&mut run_it);
    let pid = wait_until("the command", || {
        children_of(target.pid()).into_iter().find(|&pid| {
            let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
            exe.is_ok_and(|exe| exe.ends_with("holders_cpp"))
        })
    });
    let report = wait_until("a record that keeps growing", || {
        target.tell("grow", "grown");
        let report = scan(pid, &["--retained"]);
        (!retained(&report).is_empty()).then_some(report)
    });
    let growing = retained(&report);
    let (growing, record) = growing[0];
    assert_eq!(record["kind"], "reachable");
    let functions: Vec<&str> =
        record["stack"].as_array().unwrap().iter().filter_map(|frame| frame["function"].as_str()).collect();
    assert!(functions.contains(&"grow()"), "{functions:?}");
    assert_eq!(record["type"], "net::Request");
    let cohorts = growing["cohorts"].as_array().unwrap();
    assert_eq!(cohorts.len(), 8);
    let live: u64 = cohorts.iter().map(|cohort| cohort["live_blocks"].as_u64().unwrap()).sum();
    assert_eq!(Some(live), record["blocks"].as_u64());
    // Nothing was ever freed there.
    assert_eq!(growing["allocated_blocks"], record["blocks"]);
    assert!(chains(record).iter().all(|held| held.starts_with("global kept_requests in holders_cpp > ")));
    target.end();
}
