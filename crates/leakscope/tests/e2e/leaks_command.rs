//! `leakscope leaks -- COMMAND`: the command runs as it does by itself, ends as it does by itself, and then its leaks are told.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::leaks::{Kind, Leaks, Record};
use crate::support::process::{Outcome, kill, run, run_with_input, wait, wait_until};
use crate::support::traced::{LEAKSCOPE, leakscope};
use crate::support::{find_program, skip};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// `leakscope leaks -o FRESH --json=FRESH -- COMMAND...`, and where the two are.
struct Examined {
    outcome: Outcome,
    directory: Directory,
}

impl Examined {
    fn json(&self) -> Leaks {
        let json = std::fs::read(self.directory.join("json")).unwrap();
        assert!(!json.is_empty(), "nothing was examined: {}", self.outcome.err());
        Leaks::parse(&json)
    }

    /// What leakscope said after the command's own words.
    fn said(&self, native: &Outcome) -> String {
        let own = self.outcome.stderr.strip_prefix(native.stderr.as_slice());
        String::from_utf8_lossy(own.unwrap_or_else(|| panic!("{}", self.outcome.err()))).into_owned()
    }
}

fn arguments(directory: &Directory) -> Vec<OsString> {
    let mut json = OsString::from("--json=");
    json.push(directory.join("json"));
    [
        "leaks".into(),
        "-o".into(),
        directory.join("heap").into(),
        json,
        "--show-leak-kinds=all".into(),
        "--".into(),
    ]
    .to_vec()
}

/// Runs a command natively and examined, the latter by `prefix`: output and status must be the same.
fn examined_by<S: AsRef<OsStr>>(prefix: &[&OsStr], command: &[S], input: &str) -> (Outcome, Examined) {
    let command: Vec<&OsStr> = command.iter().map(AsRef::as_ref).collect();
    let native = run_with_input(Command::new(command[0]).args(&command[1..]), input.as_bytes());
    let directory = Directory::new();
    let words = [prefix, &[LEAKSCOPE.as_ref()]].concat();
    let mut examination = Command::new(words[0]);
    examination.args(&words[1..]).args(arguments(&directory)).args(&command);
    let outcome = run_with_input(&mut examination, input.as_bytes());
    assert_eq!(outcome.code(), native.code(), "{command:?}: {}", outcome.err());
    assert_eq!(outcome.out(), native.out(), "{command:?}");
    (native, Examined { outcome, directory })
}

fn examined<S: AsRef<OsStr>>(command: &[S], input: &str) -> (Outcome, Examined) {
    examined_by(&[], command, input)
}

#[test]
fn streams_and_status_are_the_commands_own() {
    let script = "read line; echo \"out $line\"; echo err >&2; echo more; echo last >&2; exit $(($line))";
    for status in ["0", "1", "125"] {
        let (native, examined) = examined(&["sh", "-c", script], &format!("{status}\n"));
        assert_eq!(native.err(), "err\nlast\n");
        let said = examined.said(&native);
        assert!(said.contains("LEAK SUMMARY"), "{said}");
        examined.json();
    }
    // In one stream, the order is kept, and leakscope comes last.
    let directory = Directory::new();
    let both = run(Command::new("sh")
        .args(["-c", "\"$@\" 2>&1", "sh", LEAKSCOPE])
        .args(arguments(&directory))
        .args(["sh", "-c", "for i in 1 2 3; do echo out $i; echo err $i >&2; done"]));
    assert!(both.out().starts_with("out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"), "{}", both.out());
    assert!(both.out().contains("LEAK SUMMARY"), "{}", both.out());
}

#[test]
fn a_signal_that_ends_the_command_is_its_status() {
    for (name, signal) in [("TERM", libc::SIGTERM), ("KILL", libc::SIGKILL), ("SEGV", libc::SIGSEGV)] {
        let script = format!("ulimit -c 0; echo before; kill -{name} $$");
        let (native, examined) = examined(&["sh", "-c", &script], "");
        assert_eq!(examined.outcome.code(), 128 + signal);
        let said = examined.said(&native);
        assert!(said.contains(&format!("signal {signal}")) && said.contains("not examined"), "{said}");
    }
}

#[test]
fn a_signal_to_leakscope_goes_on_to_the_command() {
    let directory = Directory::new();
    let mut child = leakscope(arguments(&directory))
        .args(["sh", "-c", "trap 'exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done"])
        .stderr(std::fs::File::create(directory.join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string(directory.join("stderr")).unwrap();
    wait_until("the command", || said().starts_with("ready\n").then_some(()));
    kill(child.id(), libc::SIGTERM);
    assert_eq!(wait(&mut child, "leakscope").code(), Some(7), "{}", said());
    assert!(said().contains("LEAK SUMMARY"), "{}", said());
}

#[test]
fn what_the_command_lost_is_told_with_its_stack_however_it_exits() {
    let program = compile("exit_variants.c", &["-O0"]);
    for variant in ["return", "exit", "_exit", "quick_exit", "thread_exit", "main_ends_first"] {
        let (native, examined) = examined(&[program.as_os_str(), variant.as_ref()], "");
        let leaks = examined.json();
        assert_eq!(leaks.source.snapshot, "exit");
        let is_lost = |record: &&Record| record.kind == Kind::Definite && record.bytes == 3000;
        let record = leaks.records.iter().find(is_lost);
        let record = record.unwrap_or_else(|| panic!("{variant}: {:#?}", leaks.records));
        assert_eq!(record.blocks, 3, "{variant}");
        if variant != "thread_exit" {
            assert_eq!(leaks.summary.definite.blocks, 3, "{variant}: {:#?}", leaks.records);
        }
        let sources = ["exit_variants.c".to_owned()];
        assert!(record.place(&sources).is_some(), "{record:?}");
        assert!(examined.said(&native).contains("exit_variants.c:"), "{}", examined.outcome.err());
    }
    // The kernel's own way out leaves nobody to wait; that is said.
    let (native, examined) = examined(&[program.as_os_str(), "exit_group".as_ref()], "");
    assert!(examined.said(&native).contains("not examined"), "{}", examined.outcome.err());
}

#[test]
fn children_do_as_ever_and_are_not_reported() {
    let program = compile("many_children.c", &["-O0"]);
    let (native, examined) = examined(&[program.as_os_str(), "30".as_ref()], "");
    let leaks = examined.json();
    assert_eq!(leaks.summary.definite.blocks, 0, "{:#?}", leaks.records);
    assert!(!examined.said(&native).contains("5,000"), "{}", examined.outcome.err());
    let (_, examined) =
        self::examined(&["sh", "-c", "true | cat; (exit 3); echo $?; sh -c 'exit 4'; exit $?"], "");
    assert_eq!(examined.outcome.code(), 4);
}

#[test]
fn a_service_that_goes_into_the_background_goes_on() {
    let program = compile("daemonizes.c", &["-O0"]);
    let directory = Directory::new();
    let (go, done) = (directory.join("go"), directory.join("done"));
    for fifo in [&go, &done] {
        assert!(run(Command::new("mkfifo").arg(fifo)).status.success());
    }
    let outcome = run(leakscope(arguments(&directory)).arg(program).args([&go, &done]));
    assert_eq!((outcome.code(), outcome.out().as_str()), (0, "started\n"), "{}", outcome.err());
    // 50 bytes are held by nobody: the first process's.
    assert!(outcome.err().contains("50 bytes in 1 blocks are definitely lost"), "{}", outcome.err());
    // leakscope has ended; the daemon works on, and ends by itself.
    let finish = "echo >\"$1\"; read pid <\"$2\"; while [ -d /proc/$pid ]; do sleep 0.01; done; echo ended";
    let ended = run(Command::new("sh").args(["-c", finish, "sh"]).args([&go, &done]));
    assert_eq!(ended.out(), "ended\n", "{}", ended.err());
    // Its heap file is complete then, and so nothing of it is left in shared memory.
    wait_until("the daemon's heap file", || {
        let entries = std::fs::read_dir(directory.path()).unwrap();
        let heap = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("heap.");
        entries.map(|entry| entry.unwrap().path()).find(|path| heap(path) && !path.is_symlink())
    });
}

#[test]
fn what_cannot_be_run_has_its_own_status() {
    let refused = |command: &str, status: i32, words: &[&str]| {
        let directory = Directory::new();
        let outcome = run(leakscope(arguments(&directory)).arg(command));
        assert_eq!((outcome.code(), outcome.out().as_str()), (status, ""), "{}", outcome.err());
        for word in words {
            assert!(outcome.err().contains(word), "{}", outcome.err());
        }
    };
    refused("/nonexistent/program", 127, &["/nonexistent/program", "no such file"]);
    refused("no-such-program-anywhere", 127, &["no-such-program-anywhere", "PATH"]);
    refused("/", 126, &["directory"]);
    refused("/etc/passwd", 126, &["/etc/passwd", "execut"]);
}

#[test]
fn json_that_cannot_be_written_is_told_before_the_command_runs() {
    let directory = Directory::new();
    let witness = directory.join("witness");
    let outcome = run(leakscope(["leaks", "--json=/nonexistent/json", "--", "touch"]).arg(&witness));
    assert_eq!(outcome.code(), 125, "{}", outcome.err());
    assert!(outcome.err().contains("/nonexistent/json"), "{}", outcome.err());
    assert!(!witness.exists());
}

#[test]
fn a_program_that_cannot_be_traced_runs_and_the_reason_is_told() {
    let untraced = |program: &Path, words: &[&str]| {
        let (native, examined) = examined(&[program], "four");
        let said = examined.said(&native);
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
        assert_eq!(
            std::fs::read(examined.directory.join("json")).unwrap(),
            b"",
            "the file for JSON stays empty"
        );
    };
    let words = ["not examined", "statically linked"];
    untraced(&compile("static_program.c", &["-O0", "-static"]), &words);
    if find_program(&["musl-gcc"]).is_some() {
        let program = crate::support::build::compile_with("musl-gcc", "static_program.c", &["-O0"]);
        untraced(&program, &["not examined", "musl"]);
    } else {
        skip("musl-gcc is not installed");
    }
}

#[test]
fn where_tracing_is_forbidden_the_process_serves_itself_and_the_result_is_the_same() {
    let confined = compile("confined.c", &["-O0"]);
    let prefix: [&OsStr; 2] = [confined.as_os_str(), "untraceable".as_ref()];
    // leaks PID has no other way.
    let refused = run(Command::new(prefix[0]).arg(prefix[1]).args([
        LEAKSCOPE,
        "leaks",
        &std::process::id().to_string(),
    ]));
    assert_eq!(refused.code(), 125, "{}", refused.err());
    assert!(
        refused.err().contains("not permitted") && refused.err().contains("seccomp"),
        "{}",
        refused.err()
    );

    for (source, flags, shapes) in [
        ("leak_shapes_c.c", &["-O0"] as &[&str], 5),
        ("leak_shapes_cpp.cpp", &["-O0", "-std=c++20"], 3),
        ("leak_shapes_rust.rs", &["-C", "opt-level=0"], 2),
    ] {
        let program = compile(source, flags);
        let list = run(Command::new(&program).arg("list"));
        let all: Vec<String> = list.out().lines().map(str::to_owned).collect();
        let every = if std::env::var_os("LEAKSCOPE_SHAPES").is_some() { 1 } else { all.len() / shapes };
        for shape in all.iter().step_by(every) {
            let command = [program.as_os_str(), shape.as_ref()];
            let (_, traced) = examined(&command, "");
            let (_, served) = examined_by(&prefix, &command, "");
            let (traced, served) = (traced.json(), served.json());
            assert!(served.has_note("served its memory itself"), "{source} {shape}: {:?}", served.notes);
            assert!(!traced.has_note("served its memory itself"), "{source} {shape}: {:?}", traced.notes);
            assert_eq!(served.summary, traced.summary, "{source} {shape}");
            let amounts = |leaks: &Leaks| {
                let records = leaks.records.iter();
                let places = |record: &Record| {
                    record.stack.iter().map(|frame| (frame.function.clone(), frame.line)).collect::<Vec<_>>()
                };
                records.map(|record| (record.kind, record.direct(), places(record))).collect::<Vec<_>>()
            };
            assert_eq!(amounts(&served), amounts(&traced), "{source} {shape}");
        }
    }
}

#[test]
fn a_closed_standard_error_is_no_reason_to_fail() {
    let directory = Directory::new();
    let outcome = run(Command::new("sh")
        .args(["-c", "exec \"$@\" 2>&-", "sh", LEAKSCOPE])
        .args(arguments(&directory))
        .args(["sh", "-c", "echo out; exit 5"])
        .stdin(Stdio::null()));
    assert_eq!((outcome.code(), outcome.out().as_str()), (5, "out\n"));
}
