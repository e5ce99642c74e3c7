//! The demo as a user sees it: each planted leak is named with exactly what it lost, and what leaks nothing is not blamed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const LEAKSCOPE: &str = env!("CARGO_BIN_EXE_leakscope");

/// Bytes and blocks in use of all sites with a frame whose function ends with `name`.
fn in_use(report: &Value, name: &str) -> (u64, u64) {
    let sites = report["sites"].as_array().expect("sites");
    let through = sites.iter().filter(|site| {
        let stack = site["stack"].as_array().expect("stack");
        stack.iter().filter_map(|frame| frame["function"].as_str()).any(|function| function.ends_with(name))
    });
    through.fold((0, 0), |(bytes, blocks), site| {
        let number = |key: &str| site[key].as_u64().expect("a number");
        (bytes + number("inuse_bytes"), blocks + number("inuse_blocks"))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn demo(temporary: &Path) -> (Output, PathBuf) {
    let output =
        Command::new(LEAKSCOPE).arg("demo").env("TMPDIR", temporary).output().expect("leakscope runs");
    let entries =
        std::fs::read_dir(temporary).expect("temporary directory").map(|entry| entry.expect("entry").path());
    let directories: Vec<PathBuf> = entries.collect();
    assert_eq!(
        directories.len(),
        1,
        "one directory of the demo's own: {directories:?}\n{}",
        text(&output.stderr)
    );
    (output, directories[0].clone())
}

#[test]
fn the_demo_names_its_three_leaks_and_nothing_else_and_prints_the_commands_it_runs() {
    let temporary = tempfile::tempdir().expect("temporary directory");
    let (output, directory) = demo(temporary.path());
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");

    for name in ["lose_session_token", "remember_rendered_page", "hold_report_buffers"] {
        assert!(stderr.contains(name), "the report does not name {name}:\n{stderr}");
    }
    assert!(!stderr.contains("check_health"), "the report blames what leaks nothing:\n{stderr}");
    let commands: Vec<&str> = stdout.lines().filter(|line| line.starts_with("$ ")).collect();
    assert!(commands.len() >= 3, "{stdout}");
    assert!(
        commands[0].contains(" run --top 3 -o ") && commands[0].contains(" demo-service "),
        "{}",
        commands[0]
    );

    let heap_file = directory.join("demo.leakscope");
    let report = Command::new(LEAKSCOPE).arg("report").arg(&heap_file).args(["--format", "json"]).output();
    let report: Value = serde_json::from_slice(&report.expect("leakscope runs").stdout).expect("JSON");
    assert_eq!(report["schema"], "leakscope.report/1");
    assert_eq!(in_use(&report, "lose_session_token"), (600 * 2048, 600));
    assert_eq!(in_use(&report, "render_page"), (600 * 16384, 600));
    assert_eq!(in_use(&report, "hold_report_buffers").0 / 262_144, 12);
    assert_eq!(in_use(&report, "check_health"), (0, 0));

    let graph = std::fs::read_to_string(directory.join("demo.svg")).expect("flame graph");
    assert!(graph.contains("<svg") && graph.contains("lose_session_token"));
}
