//! What cannot be traced, run, read or written: each ends in a clear error, or in a clear note while the program runs as ever.

use crate::support::build::{compile, try_compile_with};
use crate::support::directory::Directory;
use crate::support::process::{Outcome, kill, run, run_with_input, wait};
use crate::support::random::{Random, rounds};
use crate::support::traced::{LEAKSCOPE, Run, Traced, leakscope};
use crate::support::{find_program, is_root, skip};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of `words` must be in `text`, in whatever case.
fn mentions(text: &str, words: &[&str]) {
    let lower = text.to_lowercase();
    assert!(words.iter().any(|word| lower.contains(&word.to_lowercase())), "none of {words:?} in:\n{text}");
}

/// An error for people: of some length, and nothing of Rust's own.
fn is_helpful(text: &str) {
    assert!(text.trim().len() > 20, "too short: {text:?}");
    for word in ["panicked", "RUST_BACKTRACE", "unwrap", "Os {", "os error 2)\n\nCaused by: None"] {
        assert!(!text.contains(word), "not for people:\n{text}");
    }
}

/// `program` runs as it does natively, and leakscope says why it saw nothing, in one of `words`.
fn runs_untraced(program: &Path, words: &[&str]) -> Traced {
    let make = || Run::new([program]).input("four");
    let native = make().natively();
    let traced = make().traced();
    assert_eq!(traced.outcome.code(), native.code(), "{}", traced.outcome.err());
    assert_eq!(traced.outcome.out(), native.out());
    let said = traced.said(&native);
    is_helpful(&said);
    mentions(&said, words);
    traced
}

#[test]
fn a_static_program_runs_and_is_named_static() {
    let program = compile("static_program.c", &["-O0", "-static"]);
    let traced = runs_untraced(&program, &["static"]);
    assert_eq!((traced.outcome.code(), traced.outcome.out().as_str()), (13, "read 4 bytes\n"));
    let program = compile("static_program.c", &["-O0", "-static-pie"]);
    runs_untraced(&program, &["static"]);
}

#[test]
fn a_musl_program_runs_and_is_named_so() {
    if find_program(&["musl-gcc"]).is_none() {
        return skip("musl-gcc is not installed; `apt-get install musl-tools` provides it");
    }
    let program = try_compile_with("musl-gcc", "static_program.c", &["-O0"]).unwrap();
    runs_untraced(&program, &["musl"]);
}

#[test]
fn a_32_bit_program_runs_and_is_named_so() {
    match try_compile_with("gcc", "static_program.c", &["-O0", "-m32"]) {
        Ok(program) => drop(runs_untraced(&program, &["32-bit", "64-bit"])),
        Err(_) => skip("gcc cannot make 32-bit programs; `apt-get install gcc-multilib` lets it"),
    }
}

#[test]
fn a_setuid_program_runs_and_the_loaders_rule_is_named() {
    if !is_root() {
        return skip("only root can make a program of another user");
    }
    let directory = Directory::new();
    let program = directory.join("setuid");
    std::fs::copy(compile("surroundings_untouched.c", &["-O0"]), &program).unwrap();
    std::os::unix::fs::chown(&program, Some(65534), None).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let native = Run::new([&program]).natively();
    if !native.out().contains("uid 0 65534") {
        return skip("this file system ignores the set-user-ID bit");
    }
    runs_untraced(&program, &["setuid", "set-user-id"]);
}

#[test]
fn a_script_is_run_by_its_interpreter() {
    let directory = Directory::new();
    let script = directory.join("script");
    std::fs::write(&script, "#!/bin/sh\nread line; echo \"$line in $0\" | tr a-z A-Z; exit 7\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let make = || Run::new([&script]).input("words\n");
    let (native, traced) = (make().natively(), make().traced());
    assert_eq!((traced.outcome.code(), traced.outcome.out()), (7, native.out()), "{}", traced.outcome.err());
    assert!(traced.report().totals.allocated_blocks > 0, "the interpreter is traced");
}

#[test]
fn a_script_without_an_interpreters_line_runs_or_the_line_is_asked_for() {
    let directory = Directory::new();
    let script = directory.join("script");
    std::fs::write(&script, "echo ran; exit 7\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let outcome = Run::new([&script]).traced().outcome;
    match outcome.code() {
        7 => assert_eq!(outcome.out(), "ran\n"),
        126 => {
            is_helpful(&outcome.err());
            mentions(&outcome.err(), &["#!"]);
        }
        other => panic!("status {other}: {}", outcome.err()),
    }
}

fn error(outcome: &Outcome, status: i32, words: &[&str]) {
    assert_eq!(outcome.code(), status, "{}{}", outcome.out(), outcome.err());
    assert_eq!(outcome.out(), "", "errors go to standard error");
    is_helpful(&outcome.err());
    for word in words {
        mentions(&outcome.err(), &[word]);
    }
}

/// `leakscope run -o FRESH -- COMMAND...`
fn try_to_run(command: &[&Path]) -> Outcome {
    Run::new(command).traced().outcome
}

#[test]
fn a_command_that_does_not_exist_is_not_found() {
    error(&try_to_run(&[Path::new("/nonexistent/program")]), 127, &["/nonexistent/program"]);
    error(&try_to_run(&[Path::new("no-such-program-anywhere")]), 127, &["no-such-program-anywhere", "PATH"]);
    error(&try_to_run(&[Path::new("")]), 127, &[]);
}

#[test]
fn a_command_that_cannot_be_run_is_refused_with_the_reason() {
    let directory = Directory::new();
    let file = directory.join("data");
    std::fs::write(&file, "just text").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    error(&try_to_run(&[&file]), 126, &["data", "execut"]);
    error(&try_to_run(&[directory.path()]), 126, &["directory"]);

    let broken = directory.join("broken");
    std::fs::write(&broken, b"\x7fELF\x01\x01\x01 and nothing that follows").unwrap();
    std::fs::set_permissions(&broken, std::fs::Permissions::from_mode(0o755)).unwrap();
    // What the kernel cannot run, execvp hands to the shell, which fails in its own words.
    let outcome = try_to_run(&[&broken]);
    assert!([126, 127].contains(&outcome.code()), "{}", outcome.err());
    mentions(&outcome.err(), &["broken"]);

    let lost = directory.join("lost");
    std::fs::write(&lost, "#!/nonexistent/interpreter\n").unwrap();
    std::fs::set_permissions(&lost, std::fs::Permissions::from_mode(0o755)).unwrap();
    let outcome = try_to_run(&[&lost]);
    assert!([126, 127].contains(&outcome.code()), "{}", outcome.err());
    mentions(&outcome.err(), &["/nonexistent/interpreter", "interpreter"]);
}

#[test]
fn wrong_usage_is_told_from_failure() {
    for arguments in [
        &["run"] as &[&str],
        &["run", "--"],
        &["run", "--no-such-option", "--", "true"],
        &["no-such-command"],
        &["report", "--format", "nonsense"],
        &["report", "--view", "nonsense"],
        &["report", "one", "two"],
        &["run", "-o"],
    ] {
        let outcome = run(&mut leakscope(arguments));
        assert_eq!(outcome.code(), 2, "{arguments:?}: {}", outcome.err());
        assert_eq!(outcome.out(), "", "{arguments:?}");
    }
}

/// A command that leaves a trace if it is run.
fn would_be_seen(directory: &Directory) -> (PathBuf, Vec<String>) {
    let witness = directory.join("witness");
    (witness.clone(), vec!["touch".into(), witness.to_str().unwrap().into()])
}

#[test]
fn an_output_file_that_exists_is_never_overwritten() {
    let directory = Directory::new();
    let (witness, command) = would_be_seen(&directory);
    let heap = directory.join("heap");
    std::fs::write(&heap, "precious").unwrap();
    let outcome = run(leakscope(["run", "-o"]).arg(&heap).arg("--").args(&command));
    error(&outcome, 125, &["heap", "exist"]);
    mentions(&outcome.err(), &["remove", "another", "other", "rm "]);
    assert_eq!(std::fs::read(&heap).unwrap(), b"precious");
    assert!(!witness.exists(), "the command was not started");
    // A link that leads nowhere is in the way as well.
    let link = directory.join("link");
    std::os::unix::fs::symlink(directory.join("elsewhere"), &link).unwrap();
    error(&run(leakscope(["run", "-o"]).arg(&link).arg("--").args(&command)), 125, &["link"]);
    assert!(!directory.join("elsewhere").exists());
}

#[test]
fn an_output_that_cannot_be_written_is_refused_before_the_command_runs() {
    let directory = Directory::new();
    let (witness, command) = would_be_seen(&directory);
    let mut places =
        vec![directory.join("missing/heap"), "/proc/leakscope.heap".into(), directory.path().to_owned()];
    if !is_root() {
        let closed = directory.join("closed");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o500)).unwrap();
        places.push(closed.join("heap"));
    }
    for place in places {
        let outcome = run(leakscope(["run", "-o"]).arg(&place).arg("--").args(&command));
        error(&outcome, 125, &[place.to_str().unwrap()]);
        assert!(!witness.exists(), "the command was not started");
    }
    let mut option = std::ffi::OsString::from("--json=");
    option.push(directory.join("missing/report.json"));
    let outcome =
        run(leakscope(["run", "-o"]).arg(directory.join("heap")).arg(&option).arg("--").args(&command));
    assert_eq!(outcome.code(), 125, "{}", outcome.err());
    mentions(&outcome.err(), &["missing/report.json"]);
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() {
    let directory = Directory::new();
    std::fs::write(directory.join("file"), "").unwrap();
    let outcome = run(leakscope(["run", "--", "true"]).env("XDG_STATE_HOME", directory.join("file/state")));
    // Either nothing is done, or the command runs and the lack of a profile is said.
    assert!([0, 125].contains(&outcome.code()), "{}", outcome.err());
    is_helpful(&outcome.err());
    mentions(&outcome.err(), &["file/state"]);
}

#[test]
fn a_full_disk_and_a_tiny_shared_memory_leave_the_program_alone() {
    if !is_root() || !run(Command::new("unshare").args(["-m", "true"])).status.success() {
        return skip("needs root and mount namespaces");
    }
    let program = compile("rlimit_fsize.c", &["-O0"]);
    let native = run(&mut Command::new(&program));
    for (place, size, filled) in [
        ("disk", "64k", true),
        ("disk", "300k", false),
        ("/dev/shm", "16k", false),
        ("/dev/shm", "1m", false),
    ] {
        let directory = Directory::new();
        let disk = directory.join("disk");
        std::fs::create_dir(&disk).unwrap();
        let mounted = if place == "disk" { disk.as_path() } else { Path::new(place) };
        let heap = if place == "disk" { disk.join("heap") } else { directory.join("heap") };
        let fill = if filled { "cat /dev/zero >\"$2/fill\" 2>/dev/null;" } else { "" };
        let script = format!("mount -t tmpfs -o size=$1 none \"$2\" || exit 77; {fill} shift 2; exec \"$@\"");
        let outcome = run(Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", &script, "sh", size])
            .arg(mounted)
            .arg(LEAKSCOPE)
            .args(["run", "-o"])
            .arg(&heap)
            .arg("--")
            .arg(&program));
        let what = format!("{place} of {size}: {}", outcome.err());
        assert_eq!(outcome.code(), native.code(), "{what}");
        assert_eq!(outcome.out(), native.out(), "{what}");
        if filled {
            mentions(&outcome.err(), &["space", "full"]);
        }
    }
}

#[test]
fn standard_streams_may_be_closed() {
    let program = compile("leaks_in_c.c", &["-O0"]);
    for closed in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"] {
        let directory = Directory::new();
        let script = format!("exec \"$@\" {closed}");
        let native = run(Command::new("sh").args(["-c", &script, "sh"]).arg(&program));
        let traced = run(Command::new("sh")
            .args(["-c", &script, "sh", LEAKSCOPE, "run", "-o"])
            .arg(directory.join("heap"))
            .arg("--")
            .arg(&program));
        if closed.contains(">&-") && !closed.starts_with("2>") {
            // Rust opens closed standard streams on /dev/null before main: the command can write to nowhere, too.
            assert!([0, native.code()].contains(&traced.code()), "{closed}: {}", traced.err());
        } else {
            assert_eq!(traced.code(), native.code(), "{closed}: {}", traced.err());
        }
        assert_eq!(traced.out(), native.out(), "{closed}");
    }
}

/// `leakscope report FILE` with little memory to waste: a status, never a panic, a hang or a blown limit.
fn report_bounded(heap: &Path, format: &str) -> Outcome {
    let mut command = leakscope(["report", "--format", format]);
    command.arg(heap);
    // SAFETY: setrlimit is async-signal-safe and the limit lives on the closure's stack.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 2 << 30, rlim_max: 2 << 30 };
            match libc::setrlimit(libc::RLIMIT_DATA, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let outcome = run(&mut command);
    assert!([0, 125].contains(&outcome.code()), "status {} of {heap:?}: {}", outcome.code(), outcome.err());
    if outcome.code() == 125 {
        is_helpful(&outcome.err());
    } else if format == "json" {
        let value: serde_json::Value = serde_json::from_slice(&outcome.stdout).unwrap();
        assert_eq!(value["schema"], "leakscope.report/1");
    }
    outcome
}

/// A good heap file's bytes.
fn good_heap() -> Vec<u8> {
    let traced = Run::new([compile("leaks_in_c.c", &["-O0"])]).traced();
    std::fs::read(&traced.heap).unwrap_or_else(|error| panic!("{error}: {}", traced.outcome.err()))
}

#[test]
fn what_is_not_a_heap_file_is_refused_with_the_reason() {
    let directory = Directory::new();
    let file = directory.join("file");
    for (content, words) in [
        (b"" as &[u8], &["empty", "too short", "truncated", "not a"] as &[&str]),
        (b"text that somebody mistook for a heap file\n", &["not a", "too short", "truncated"]),
        (&[0; 100_000], &["not a"]),
    ] {
        std::fs::write(&file, content).unwrap();
        let outcome = report_bounded(&file, "text");
        error(&outcome, 125, &["file"]);
        mentions(&outcome.err(), words);
    }
    error(&report_bounded(directory.path(), "text"), 125, &["directory"]);
    error(&report_bounded(&directory.join("missing"), "text"), 125, &["missing"]);
    error(&report_bounded(Path::new("/dev/null"), "text"), 125, &["/dev/null"]);
    error(&report_bounded(Path::new("/dev/zero"), "text"), 125, &["/dev/zero"]);
    let fifo = std::ffi::CString::new(directory.join("fifo").to_str().unwrap()).unwrap();
    // SAFETY: the path is a NUL-terminated string that outlives the call.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    error(&report_bounded(&directory.join("fifo"), "text"), 125, &["fifo"]);
}

#[test]
fn a_heap_file_cut_short_is_read_as_far_as_it_goes_or_refused() {
    let good = good_heap();
    let directory = Directory::new();
    let file = directory.join("file");
    let mut random = Random::new();
    let fixed = [0, 1, 7, 8, 64, 100, 4095, 4096, 4097, good.len() / 2, good.len() - 1];
    let cuts =
        (0..rounds("LEAKSCOPE_READER_ROUNDS", 60) / 3).map(|_| random.below(good.len() as u64) as usize);
    for length in fixed.into_iter().chain(cuts.collect::<Vec<_>>()) {
        std::fs::write(&file, &good[..length.min(good.len())]).unwrap();
        report_bounded(&file, "json");
    }
}

#[test]
fn a_heap_file_of_another_version_is_named_so() {
    let mut bytes = good_heap();
    let directory = Directory::new();
    let file = directory.join("file");
    // The version stands within the first bytes after the magic: change each of them in turn.
    let mut told = 0;
    for offset in 8..16 {
        let before = bytes[offset];
        bytes[offset] = before.wrapping_add(1);
        std::fs::write(&file, &bytes).unwrap();
        let outcome = report_bounded(&file, "json");
        told += u32::from(outcome.err().contains("version"));
        bytes[offset] = before;
    }
    assert!(told > 0, "no changed byte near the magic was called another version");
}

/// Changes some of a file's bytes at random places out of `ranges`; gives what was there before.
fn corrupt(
    file: &std::fs::File,
    ranges: &[std::ops::Range<u64>],
    random: &mut Random,
) -> Vec<(u64, [u8; 8])> {
    use std::os::unix::fs::FileExt;
    let mut before = Vec::new();
    for _ in 0..1 << random.below(7) {
        let range = &ranges[random.below(ranges.len() as u64) as usize];
        // What comes first in a range is what the rest hangs on: every other change goes there.
        let reach = if random.below(2) == 0 { 2048 } else { u64::MAX };
        let mut place = range.start + random.below((range.end - range.start - 8).min(reach));
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, place).unwrap();
        let word = u64::from_le_bytes(bytes);
        let changed = match random.below(4) {
            // Single bits, bytes, small differences, and the worst values.
            0 => word ^ 1 << random.below(64),
            1 => word & !0xff | random.below(256),
            2 => word.wrapping_add(random.below(9)).wrapping_sub(4),
            _ => {
                place &= !7;
                file.read_exact_at(&mut bytes, place).unwrap();
                [0, u64::MAX, i64::MAX as u64, 1 << 32, 1 << 20, random.next()][random.below(6) as usize]
            }
        };
        before.push((place, bytes));
        file.write_all_at(&changed.to_le_bytes(), place).unwrap();
    }
    before
}

const FORMATS: [&str; 5] = ["json", "text", "folded", "pprof", "flamegraph"];

#[test]
fn a_finished_heap_file_corrupt_at_random_bytes_never_breaks_the_reader() {
    let good = good_heap();
    let directory = Directory::new();
    let path = directory.join("file");
    let mut random = Random::new();
    for round in 0..rounds("LEAKSCOPE_READER_ROUNDS", 60) {
        std::fs::write(&path, &good).unwrap();
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        corrupt(&file, std::slice::from_ref(&(0..good.len() as u64)), &mut random);
        report_bounded(&path, FORMATS[round as usize % FORMATS.len()]);
    }
}

/// The parts of a sparse file that hold data.
fn data_ranges(file: &std::fs::File) -> Vec<std::ops::Range<u64>> {
    use std::os::fd::AsRawFd;
    let seek = |offset: i64, whence: i32| {
        // SAFETY: the descriptor is open as long as `file` lives.
        unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }
    };
    let mut ranges = Vec::new();
    let mut at = 0;
    loop {
        let start = seek(at, libc::SEEK_DATA);
        if start < 0 {
            return ranges;
        }
        at = seek(start, libc::SEEK_HOLE);
        ranges.push(start as u64..at as u64);
    }
}

#[test]
fn a_live_heap_file_corrupt_at_random_bytes_never_breaks_the_reader() {
    // What a killed leakscope leaves: the tables themselves, mostly holes.
    let directory = Directory::new();
    let heap = directory.join("heap");
    let mut child = leakscope(["run", "-o"])
        .arg(&heap)
        .arg("--")
        .arg(compile("reports_signals.c", &["-O0"]))
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut out, &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let copy = directory.join("copy");
    let copied = run(Command::new("cp").arg("-L").arg("--sparse=always").arg(&heap).arg(&copy));
    assert_eq!(copied.code(), 0, "{}", copied.err());
    kill(child.id(), libc::SIGTERM);
    assert_eq!(wait(&mut child, "leakscope").code(), Some(9));

    let file = std::fs::File::options().read(true).write(true).open(&copy).unwrap();
    let ranges = data_ranges(&file);
    let mut random = Random::new();
    let mut read = 0;
    let all = rounds("LEAKSCOPE_READER_ROUNDS", 60);
    for round in 0..all {
        let mut before = corrupt(&file, &ranges, &mut random);
        read += u32::from(report_bounded(&copy, FORMATS[round as usize % FORMATS.len()]).code() == 0);
        before.reverse();
        for (place, bytes) in before {
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, place).unwrap();
        }
    }
    eprintln!("{read} of {all} corrupt files were still read");
    assert!(read > 0, "every change was fatal: the test changes too much to reach the reader's depths");
}

#[test]
fn a_report_without_any_run_says_how_to_make_one() {
    let directory = Directory::new();
    let outcome =
        run(leakscope(["report"]).env("XDG_STATE_HOME", directory.path()).env("HOME", directory.path()));
    error(&outcome, 125, &["leakscope run"]);
}

#[test]
fn output_of_a_report_that_nobody_reads_is_no_failure_of_ours() {
    let traced = Run::new([compile("leaks_in_c.c", &["-O0"])]).traced();
    let outcome = run_with_input(
        Command::new("sh")
            .args(["-c", "\"$1\" report --format json \"$2\" | head -c 10 >/dev/null; \"$1\" report \"$2\" >/dev/full; echo $?"])
            .args(["sh", LEAKSCOPE])
            .arg(&traced.heap),
        b"",
    );
    assert!(!outcome.err().contains("panicked"), "{}", outcome.err());
    assert_eq!(outcome.out(), "125\n", "{}", outcome.err());
    mentions(&outcome.err(), &["space"]);
}
