//! What `leakscope run` and `leakscope report` promise: streams, signals and statuses passed through, files where they belong,
//! every format of the report, the last run found again, many children within bounds.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::marks::line_containing;
use crate::support::process::{kill, run, run_with_input, wait, wait_until};
use crate::support::random::{Random, rounds};
use crate::support::report::Report;
use crate::support::traced::{LEAKSCOPE, Run, leakscope, report_of};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[test]
fn the_status_is_the_commands() {
    for status in [0, 1, 2, 42, 125, 126, 127, 255] {
        let traced = Run::new(["sh", "-c", &format!("exit {status}")]).traced();
        assert_eq!(traced.outcome.status.code(), Some(status), "{}", traced.outcome.err());
        assert_eq!(traced.report().process.end.status, Some(i64::from(status)));
    }
}

#[test]
fn death_by_a_signal_is_128_and_the_signal() {
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGKILL,
        libc::SIGUSR1,
        libc::SIGPIPE,
        libc::SIGRTMIN(),
    ] {
        let traced = Run::new(["sh", "-c", &format!("ulimit -c 0; kill -{signal} $$")]).traced();
        assert_eq!(traced.outcome.status.code(), Some(128 + signal), "{}", traced.outcome.err());
        let end = traced.report().process.end;
        assert_eq!((end.reason.as_str(), end.status), ("signaled", Some(i64::from(signal))));
    }
}

#[test]
fn input_and_output_pass_through_untouched() {
    let mut random = Random::new();
    let input: Vec<u8> = (0..5_000_000 / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    let traced = Run::new(["cat"]).input(input.clone()).traced();
    assert_eq!(traced.outcome.code(), 0);
    assert!(traced.outcome.stdout == input, "what cat wrote is not what it read");
    let traced = Run::new(["sh", "-c", "head -c 100000 >&2"]).input(input.clone()).traced();
    assert!(traced.outcome.stderr.starts_with(&input[..100_000]));
    assert!(traced.outcome.stdout.is_empty(), "leakscope's own text goes to standard error");
}

/// Collects a stream's lines while the process runs.
fn next_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn signals_to_leakscope_reach_the_command() {
    let directory = Directory::new();
    let mut child = leakscope(["run", "-o"])
        .arg(directory.join("heap"))
        .arg("--")
        .arg(compile("reports_signals.c", &["-O0"]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(next_line(&mut out), "ready");
    for signal in [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGWINCH,
        libc::SIGTERM,
    ] {
        kill(child.id(), signal);
        assert_eq!(next_line(&mut out), format!("signal {signal}"));
    }
    let status = wait(&mut child, "leakscope after SIGTERM");
    assert_eq!(status.code(), Some(9));
    let report = report_of(&directory.join("heap"));
    let line = line_containing("reports_signals.c", "// LEAK");
    assert_eq!(report.sites_at("reports_signals.c", line).map(|site| site.inuse_blocks).sum::<u64>(), 8);
}

/// A pseudo-terminal: our end, and the end of the process on it.
fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut ours, mut theirs) = (0, 0);
    // SAFETY: both pointers are to integers of ours; the others may be null.
    let result = unsafe {
        libc::openpty(
            &mut ours,
            &mut theirs,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(result, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: openpty gave us both descriptors, and nobody else has them.
    unsafe { (OwnedFd::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

#[test]
fn on_a_terminal_an_interrupt_comes_once_and_nothing_is_printed_before_the_end() {
    let directory = Directory::new();
    let (ours, theirs) = terminal();
    let mut command = leakscope(["run", "-o"]);
    command.arg(directory.join("heap")).arg("--").arg(compile("reports_signals.c", &["-O0"]));
    command.stdin(theirs.try_clone().unwrap()).stdout(theirs.try_clone().unwrap()).stderr(theirs);
    // SAFETY: setsid and ioctl are async-signal-safe; standard input is the terminal by then.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut keyboard = std::fs::File::from(ours.try_clone().unwrap());
    let mut screen = BufReader::new(std::fs::File::from(ours));
    assert_eq!(next_line(&mut screen), "ready");
    keyboard.write_all(b"\x03").unwrap();
    assert_eq!(next_line(&mut screen).trim_start_matches("^C"), "signal 2");
    keyboard.write_all(b"\x1c").unwrap();
    // A second SIGINT, passed on by leakscope which the terminal interrupted as well, would come first.
    assert_eq!(next_line(&mut screen).trim_start_matches("^\\"), "signal 3");
    keyboard.write_all(b"\x03").unwrap();
    assert_eq!(next_line(&mut screen).trim_start_matches("^C"), "signal 2");
    kill(child.id(), libc::SIGTERM);
    assert_eq!(next_line(&mut screen), "signal 15");
    // Reading ends with an error once no process has the terminal.
    let mut rest = Vec::new();
    let _ = screen.read_to_end(&mut rest);
    assert_eq!(wait(&mut child, "leakscope on a terminal").code(), Some(9));
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.contains("reports_signals.c"), "the summary comes at the end:\n{rest}");
    assert!(!rest.contains("signal "), "a signal came twice:\n{rest}");
}

#[test]
fn a_stopped_and_continued_command_goes_on() {
    let directory = Directory::new();
    let mut child = leakscope(["run", "-o"])
        .arg(directory.join("heap"))
        .args(["--", "sh", "-c", "echo $$; kill -STOP $$; echo went on; exit 5"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let pid: u32 = next_line(&mut out).parse().unwrap();
    wait_until("the command to stop", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T')).then_some(())
    });
    kill(pid, libc::SIGCONT);
    // leakscope may have stopped along with it, as a shell expects; then it is continued too.
    kill(child.id(), libc::SIGCONT);
    assert_eq!(next_line(&mut out), "went on");
    assert_eq!(wait(&mut child, "leakscope of a stopped command").code(), Some(5));
}

#[test]
fn commands_are_found_as_a_shell_finds_them() {
    let directory = Directory::new();
    let program = directory.join("some-program");
    std::fs::copy(compile("leaks_in_c.c", &["-O0"]), &program).unwrap();
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let by_path = Run::new(["some-program"]).env("PATH", path).traced();
    assert_eq!((by_path.outcome.code(), by_path.outcome.out().as_str()), (0, "lost on purpose\n"));
    let relative = Run::new(["./some-program"]).current_dir(directory.path()).traced();
    assert_eq!((relative.outcome.code(), relative.outcome.out().as_str()), (0, "lost on purpose\n"));
    assert_eq!(relative.report().process.command, ["./some-program"]);
    // Without `--`, the first word that is no option begins the command, whose own options are left to it.
    let heap = directory.join("heap");
    let outcome = run(leakscope(["run", "-o"]).arg(&heap).args(["sh", "-c", "echo $0 $1", "-o", "--json=x"]));
    assert_eq!((outcome.code(), outcome.out().as_str()), (0, "-o --json=x\n"), "{}", outcome.err());
    // An empty environment.
    let heap = directory.join("heap2");
    let outcome = run(leakscope(["run", "-o"]).arg(&heap).arg("--").arg(&program).env_clear());
    assert_eq!((outcome.code(), outcome.out().as_str()), (0, "lost on purpose\n"), "{}", outcome.err());
    assert!(report_of(&heap).totals.inuse_blocks > 100);
}

#[test]
fn the_json_written_at_the_end_is_the_heap_files_report() {
    let program = compile("leaks_in_c.c", &["-O0"]);
    let traced = Run::new([program.as_os_str(), "one".as_ref(), "two words".as_ref()]).traced();
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let at_the_end = read(&std::fs::read(traced.directory.join("report.json")).unwrap());
    let later = read(&run(leakscope(["report", "--json"]).arg(&traced.heap)).stdout);
    let formatted = read(&run(leakscope(["report", "--format", "json"]).arg(&traced.heap)).stdout);
    assert_eq!(later, formatted);
    assert_eq!(at_the_end, later);
    let report = traced.report();
    assert_eq!(report.process.command, [program.to_str().unwrap(), "one", "two words"]);
    assert!(report.process.pid > 0);
    let start = report.process.start_time.unwrap();
    assert!(
        start.starts_with("20") && start.ends_with('Z') && start.contains('T'),
        "RFC 3339 in UTC: {start}"
    );
    assert!(!report.timeline.is_empty());
    assert_eq!(at_the_end["totals"]["inherited_blocks"], 0);
}

#[test]
fn every_format_and_view_holds_the_same_figures() {
    let traced = Run::new([compile("leaks_in_c.c", &["-O0"])]).traced();
    let report = traced.report();
    let get = |arguments: &[&str]| {
        let outcome = run(leakscope(["report"]).args(arguments).arg(&traced.heap));
        assert_eq!(outcome.code(), 0, "{arguments:?}: {}", outcome.err());
        outcome
    };
    let text = get(&[]).out();
    assert_eq!(text, get(&["--format", "text"]).out());
    assert!(text.contains("leaks_in_c.c:") && text.contains("lose_in_a_loop"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour where there is no terminal");

    let total = |folded: &str| -> u64 {
        folded.lines().map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
    };
    // The folded stacks may hold the mappings too: this program makes none.
    let mapped: u64 = report
        .sites
        .iter()
        .filter(|site| site.kind == crate::support::report::Kind::Mapped)
        .map(|s| s.inuse_bytes)
        .sum();
    assert_eq!(mapped, 0);
    assert_eq!(total(&get(&["--format", "folded"]).out()), report.totals.inuse_bytes);
    assert_eq!(
        total(&get(&["--format", "folded", "--view", "allocated"]).out()),
        report.totals.allocated_bytes
    );
    assert_eq!(
        total(&get(&["--format", "folded", "--view", "temporary"]).out()),
        report.totals.temporary_blocks
    );
    assert_eq!(
        total(&get(&["--format", "folded", "--view", "peak"]).out()),
        report.sites.iter().map(|site| site.peak_bytes).sum::<u64>()
    );

    let svg = get(&["--format", "flamegraph"]).out();
    assert!(svg.trim_start().starts_with("<?xml") || svg.trim_start().starts_with("<svg"), "{svg:.100}");
    assert!(svg.contains("lose_in_a_loop") && svg.trim_end().ends_with("</svg>"));
    let pprof = get(&["--format", "pprof"]).stdout;
    assert_eq!(&pprof[..2], b"\x1f\x8b", "pprof is gzipped");
    let unpacked = run_with_input(Command::new("gzip").arg("-dc"), &pprof);
    assert!(String::from_utf8_lossy(&unpacked.stdout).contains("inuse_space"));

    for view in ["inuse", "peak", "allocated", "temporary"] {
        let json: Report = Report::parse(&get(&["--format", "json", "--view", view]).stdout);
        let values: Vec<u64> = json
            .sites
            .iter()
            .map(|site| match view {
                "inuse" => site.inuse_bytes,
                "peak" => site.peak_bytes,
                "allocated" => site.allocated_bytes,
                _ => site.temporary_blocks,
            })
            .collect();
        assert!(values.is_sorted_by(|left, right| left >= right), "sites are sorted by {view}: {values:?}");
    }
    let file = traced.directory.join("out.svg");
    let outcome = run(leakscope(["report", "--format", "flamegraph", "-o"]).arg(&file).arg(&traced.heap));
    assert_eq!((outcome.code(), outcome.out().as_str()), (0, ""), "{}", outcome.err());
    assert_eq!(std::fs::read_to_string(&file).unwrap(), svg);
}

fn all_files(root: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() { directories.push(path) } else { files.push(path) }
        }
    }
    files
}

#[test]
fn the_last_run_is_found_again_and_its_files_are_private() {
    let state = Directory::new();
    let program = compile("leaks_in_c.c", &["-O0"]);
    let other = compile("zero_size.c", &["-O0"]);
    let go = |arguments: &[&Path]| {
        let outcome = run(leakscope(["run", "--"]).args(arguments).env("XDG_STATE_HOME", state.path()));
        assert_eq!(outcome.code(), 0, "{}", outcome.err());
    };
    let last = || {
        let outcome = run(leakscope(["report", "--json"]).env("XDG_STATE_HOME", state.path()));
        assert_eq!(outcome.code(), 0, "{}", outcome.err());
        Report::parse(&outcome.stdout)
    };
    go(&[&other]);
    assert_eq!(last().process.command, [other.to_str().unwrap()]);
    go(&[&program]);
    assert_eq!(last().process.command, [program.to_str().unwrap()]);
    go(&[&other]);
    assert_eq!(last().process.command, [other.to_str().unwrap()]);

    let files = all_files(&state.join("leakscope"));
    assert!(files.len() >= 3, "{files:?}");
    for file in files.iter().filter(|file| !file.is_symlink()) {
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        // The tracer itself must be readable by whatever user the target becomes; it tells nothing.
        if file.extension().is_none_or(|ending| ending != "so") {
            assert_eq!(mode(file), 0o600, "{}", file.display());
        }
    }
    let runs: Vec<_> =
        std::fs::read_dir(state.join("leakscope/runs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(
        runs.iter().filter(|path| path.is_dir() && !path.is_symlink()).count() >= 3,
        "a directory per run: {runs:?}"
    );
}

#[test]
fn two_runs_at_once_keep_apart() {
    let state = Directory::new();
    let program = compile("thread_churn.c", &["-O0"]);
    let runs: Vec<_> = (0..4)
        .map(|_| {
            leakscope(["run", "--"])
                .arg(&program)
                .env("XDG_STATE_HOME", state.path())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in runs {
        assert_eq!(wait(&mut child, "one of four runs").code(), Some(0));
    }
}

#[test]
fn a_run_within_a_run_works() {
    let inner = Directory::new();
    let program = compile("leaks_in_c.c", &["-O0"]);
    let heap = inner.join("heap");
    let traced = Run::new([
        LEAKSCOPE.as_ref(),
        "run".as_ref(),
        "-o".as_ref(),
        heap.as_os_str(),
        "--".as_ref(),
        program.as_os_str(),
    ])
    .traced();
    assert_eq!((traced.outcome.code(), traced.outcome.out().as_str()), (0, "lost on purpose\n"));
    let sources = ["leaks_in_c.c".to_owned()];
    let marks = crate::support::marks::marks_of(&sources, "main");
    let differences = crate::support::marks::differences(&marks, &report_of(&heap).found(&sources), false);
    assert!(differences.is_empty(), "{differences:?}");
}

#[test]
fn many_children_stay_within_a_count_and_those_that_lose_memory_are_kept() {
    let children = rounds("LEAKSCOPE_CHILDREN", 1200);
    let program = compile("many_children.c", &["-O0"]);
    let traced = Run::new([program.as_os_str(), children.to_string().as_ref()]).traced();
    assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
    assert_eq!(traced.outcome.out(), format!("{children} children\n"));
    let heaps = traced.other_heaps();
    assert!(heaps.len() < children as usize / 2, "{} heap files of {children} children", heaps.len());
    let size: u64 = heaps
        .iter()
        .map(|heap| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(heap).unwrap()) * 512)
        .sum();
    assert!(size < 2 << 30, "{size} bytes of heap files");
    let line = line_containing("many_children.c", "malloc(5000)");
    let losing = heaps
        .iter()
        .map(|heap| report_of(heap))
        .filter(|report| report.sites_at("many_children.c", line).any(|site| site.inuse_bytes == 5000))
        .count();
    assert_eq!(losing, children.div_ceil(100) as usize, "each child that lost memory is kept");
    let said = traced.outcome.err();
    assert!(said.contains("child"), "the summary tells of the children:\n{said}");
}
