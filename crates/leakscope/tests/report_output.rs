//! Where `leakscope report` writes to, and where it refuses to.

use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::ptr::{null, null_mut};

const LEAKSCOPE: &str = env!("CARGO_BIN_EXE_leakscope");

fn leakscope(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(LEAKSCOPE);
    command.args(arguments).current_dir(directory).env("XDG_STATE_HOME", directory);
    command.env_remove("DEBUGINFOD_URLS");
    command
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    leakscope(directory, arguments).output().expect("leakscope runs")
}

/// A directory with the heap file `heap`.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = run(directory.path(), &["run", "-o", "heap", "--", "sh", "-c", "exit 0"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    directory
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(output: &Output, status: i32, word: &str) {
    assert_eq!(output.status.code(), Some(status), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(word), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}

#[test]
fn the_heap_file_itself_is_never_overwritten_by_its_report() {
    let directory = directory();
    let heap: PathBuf = directory.path().join("heap");
    let before = std::fs::read(&heap).expect("the heap file");
    std::os::unix::fs::symlink("heap", directory.path().join("link")).expect("a link");
    for arguments in [
        &["report", "heap", "-o", "heap"] as &[&str],
        &["report", "heap", "-o", "./link"],
        &["report", "link", "--json=heap"],
        &["report", "heap", "--format", "pprof", "-o", "heap"],
    ] {
        refused(&run(directory.path(), arguments), 125, "heap file itself");
        assert_eq!(std::fs::read(&heap).expect("the heap file"), before, "{arguments:?}");
    }
}

#[test]
fn a_report_in_a_file_is_its_owners_alone_and_replaces_an_older_one() {
    let directory = directory();
    let report = directory.path().join("report.txt");
    let go = || run(directory.path(), &["report", "heap", "-o", "report.txt"]);
    assert!(go().status.success());
    let first = std::fs::read(&report).expect("the report");
    assert_eq!(report.metadata().expect("the report").permissions().mode() & 0o7777, 0o600);
    std::fs::write(&report, [&first[..], b"and more"].concat()).expect("the report can be written");
    assert!(go().status.success());
    assert_eq!(std::fs::read(&report).expect("the report"), first);
    refused(
        &run(directory.path(), &["report", "heap", "-o", "missing/report.txt"]),
        125,
        "missing/report.txt",
    );
}

#[test]
fn a_process_that_the_heap_file_has_not_is_refused_with_those_that_it_has() {
    let directory = directory();
    refused(&run(directory.path(), &["report", "heap", "--pid", "1"]), 125, "heap has no process 1; it has ");
}

#[test]
fn pprofs_bytes_do_not_go_to_a_terminal() {
    let directory = directory();
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: two integers to fill; the other pointers may be null.
    assert_eq!(unsafe { libc::openpty(&mut ours, &mut theirs, null_mut(), null(), null()) }, 0);
    // SAFETY: openpty gave us both descriptors, and nobody else has them.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut command = leakscope(directory.path(), &["report", "heap", "--format", "pprof"]);
    command.stdout(theirs).stderr(Stdio::piped());
    let output = command.spawn().and_then(|child| child.wait_with_output()).expect("leakscope runs");
    drop(command);
    refused(&output, 2, "-o FILE");
    let mut screen = Vec::new();
    // Reading ends with an error once no process has the terminal.
    let _ = std::fs::File::from(ours).read_to_end(&mut screen);
    assert_eq!(screen, b"");
    assert!(
        run(directory.path(), &["report", "heap", "--format", "pprof"]).stdout.starts_with(&[0x1f, 0x8b])
    );
}

#[test]
fn a_full_disk_behind_standard_output_is_an_error_and_a_reader_that_went_away_is_none() {
    let directory = directory();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = leakscope(directory.path(), &["report", "heap"]);
    let output =
        command.stdout(full).stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
    refused(&output.expect("leakscope runs"), 125, "standard output");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = leakscope(directory.path(), &["report", "heap"]);
    let output =
        command.stdout(writer).stderr(Stdio::piped()).spawn().and_then(|child| child.wait_with_output());
    let output = output.expect("leakscope runs");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

#[test]
fn a_command_keeps_its_status_when_nobody_reads_the_report() {
    let directory = directory();
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = leakscope(directory.path(), &["run", "--json=report.json", "--", "sh", "-c", "exit 3"]);
    let status = command.stderr(writer).status().expect("leakscope runs");
    assert_eq!(status.code(), Some(3));
    let json = std::fs::read(directory.path().join("report.json")).expect("the report");
    assert!(json.starts_with(b"{"), "JSON is written all the same");
}
