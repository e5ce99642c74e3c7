//! What `leakscope leaks` is asked for and cannot do: each ends with the right status and an error that says why and what to
//! do. And what looks bad, but can be done.

use crate::support::build::{compile, try_compile_with};
use crate::support::directory::Directory;
use crate::support::process::{Outcome, kill, run, state, tracer_of, wait, wait_until};
use crate::support::random::{Random, rounds};
use crate::support::server::{LeakServer, Size};
use crate::support::traced::leakscope;
use crate::support::{find_program, skip};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that ends with its test.
struct Guest(Child);

impl Guest {
    /// One that waits for its input to end.
    fn waiting(command: &mut Command) -> Guest {
        Guest(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `cat`, which has read nothing yet.
fn cat() -> Guest {
    let guest = Guest::waiting(&mut Command::new("cat"));
    wait_until("cat to wait", || {
        let call = std::fs::read_to_string(format!("/proc/{}/syscall", guest.pid())).ok()?;
        // read(0, ...
        call.starts_with("0 0x0 ").then_some(())
    });
    guest
}

fn leaks(pid: u32, options: &[&str]) -> Outcome {
    run(leakscope(["leaks"]).args(options).arg(pid.to_string()))
}

fn refuses(outcome: &Outcome, status: i32, words: &[&str]) {
    assert_eq!((outcome.code(), outcome.out().as_str()), (status, ""), "{}", outcome.err());
    for word in words {
        assert!(outcome.err().contains(word), "no {word:?} in: {}", outcome.err());
    }
    for word in ["panicked", "RUST_BACKTRACE", "Os {"] {
        assert!(!outcome.err().contains(word), "not for people: {}", outcome.err());
    }
}

#[test]
fn a_process_that_is_not_there_or_no_longer() {
    refuses(&leaks(0x7fff_fff0, &[]), 125, &["2147483632", "does not exist"]);
    refuses(&leaks(0, &[]), 125, &["does not exist"]);
    refuses(&run(&mut leakscope(["leaks", "99999999999"])), 125, &["99999999999", "pid"]);
    let mut guest = Guest::waiting(&mut Command::new("true"));
    wait_until("a zombie", || (state(guest.pid()) == Some('Z')).then_some(()));
    refuses(&leaks(guest.pid(), &[]), 125, &["zombie", "parent"]);
    guest.0.wait().unwrap();
}

#[test]
fn a_kernel_thread_has_no_memory() {
    let name = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if name.trim() != "kthreadd" {
        return skip("no kernel thread is to be seen");
    }
    refuses(&leaks(2, &[]), 125, &["kernel thread"]);
}

#[test]
fn a_stopped_process_is_examined_and_stays_stopped() {
    for options in [&[] as &[&str], &["--no-fork"]] {
        let server = LeakServer::start(Size::SMALL);
        kill(server.pid(), libc::SIGSTOP);
        let stopped = || server.threads().iter().all(|&(_, state)| state == 'T').then_some(());
        wait_until("a stopped process", stopped);
        let leaks = server.scan(options);
        server.check(&leaks);
        wait_until("the process is stopped again", stopped);
        kill(server.pid(), libc::SIGCONT);
        server.is_let_go();
        // It was interrupted by whoever stopped it: its own check of that says nothing of leakscope.
        server.ends_by(libc::SIGKILL);
    }
}

#[test]
fn a_process_with_a_tracer_names_it() {
    let Some(gdb) = find_program(&["gdb"]) else { return skip("gdb is not installed") };
    let guest = cat();
    let mut tracer = Command::new(gdb)
        .args(["-nx", "-q", "-p", &guest.pid().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("gdb to trace", || (tracer_of(guest.pid()) != 0).then_some(()));
    let refused = leaks(guest.pid(), &[]);
    refuses(&refused, 125, &["traces it already", "gdb", &tracer.id().to_string()]);
    drop(tracer.stdin.take());
    wait(&mut tracer, "gdb");
    wait_until("gdb to let go", || (tracer_of(guest.pid()) == 0).then_some(()));
    assert_eq!(leaks(guest.pid(), &[]).code(), 0);
}

#[test]
fn programs_that_are_not_understood_are_named() {
    let directory = Directory::new();
    let waits = |program: &Path| {
        let mut command = Command::new(program);
        command.current_dir(directory.path());
        let guest = Guest::waiting(&mut command);
        wait_until("the program to wait", || (state(guest.pid()) == Some('S')).then_some(()));
        guest
    };
    match try_compile_with("gcc", "static_program.c", &["-O0", "-m32"]) {
        Ok(program) => refuses(&leaks(waits(&program).pid(), &[]), 125, &["32 bits", "64-bit"]),
        Err(_) => skip("gcc cannot make 32-bit programs"),
    }
    if find_program(&["musl-gcc"]).is_some() {
        let program = try_compile_with("musl-gcc", "static_program.c", &["-O0"]).unwrap();
        refuses(&leaks(waits(&program).pid(), &[]), 125, &["musl"]);
        let program = try_compile_with("musl-gcc", "static_program.c", &["-O0", "-static"]).unwrap();
        refuses(&leaks(waits(&program).pid(), &[]), 125, &["no C library or allocator was recognised"]);
    } else {
        skip("musl-gcc is not installed");
    }
    let program = compile("no_c_library.c", &["-O1", "-static", "-nostdlib"]);
    refuses(&leaks(waits(&program).pid(), &[]), 125, &["no C library or allocator was recognised"]);
}

#[test]
fn a_process_that_ends_meanwhile_is_no_disaster() {
    let mut random = Random::new();
    for _ in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 8) {
        let server = LeakServer::start(Size { live: 3000, ..Size::SMALL });
        let child = leakscope(["leaks", "--json"])
            .arg(server.pid().to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random.below(150_000)));
        server.ends_by(libc::SIGKILL);
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        // The copy outlives it, so a report is as good.
        match output.status.code() {
            Some(1) => assert_eq!(error, ""),
            Some(125) => assert!(error.starts_with("leakscope: ") && !error.contains("panicked"), "{error}"),
            other => panic!("{other:?}: {error}"),
        }
    }
}

#[test]
fn a_frozen_process_is_named_frozen() {
    let group =
        std::path::PathBuf::from(format!("/sys/fs/cgroup/freezer/leakscope-test-{}", std::process::id()));
    if std::fs::create_dir(&group).is_err() {
        return skip("cannot make a control group of the freezer (v1)");
    }
    let guest = cat();
    let set = |file: &str, value: &str| std::fs::write(group.join(file), value).unwrap();
    set("cgroup.procs", &guest.pid().to_string());
    set("freezer.state", "FROZEN");
    let refused = leaks(guest.pid(), &[]);
    set("freezer.state", "THAWED");
    let thawed = leaks(guest.pid(), &[]);
    drop(guest);
    wait_until("the group's end", || std::fs::remove_dir(&group).ok());
    refuses(&refused, 125, &["frozen by its control group", "thaw"]);
    assert_eq!(thawed.code(), 0, "{}", thawed.err());
}

#[test]
fn of_scans_at_the_same_time_each_succeeds_or_names_the_other() {
    let server = LeakServer::start(Size::SMALL);
    std::thread::scope(|scope| {
        let scans: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| leaks(server.pid(), &["--json", "--show-leak-kinds=all"])))
            .collect();
        for scan in scans {
            let outcome = scan.join().unwrap();
            match outcome.code() {
                1 => server.check(&crate::support::leaks::Leaks::parse(&outcome.stdout)),
                _ => refuses(&outcome, 125, &["traces it already", "leakscope"]),
            }
        }
    });
    server.check(&server.scan(&[]));
    server.is_let_go();
    server.end();
}

#[test]
fn a_pause_beyond_the_limit_is_refused_with_the_figure() {
    let server = LeakServer::start(Size::SMALL);
    let refused = leaks(server.pid(), &["--max-pause", "0"]);
    refuses(&refused, 125, &["stand still for about ", " ms, more than the allowed 0 ms", "--max-pause"]);
    server.is_let_go();
    server.end();
}

#[test]
fn a_wrong_suppression_file_is_named_with_the_line() {
    let directory = Directory::new();
    let guest = cat();
    let with = |content: &str| {
        let path = directory.join("supp");
        std::fs::write(&path, content).unwrap();
        leaks(guest.pid(), &["--suppressions", path.to_str().unwrap()])
    };
    refuses(&with("# fine\nleak:foo\n\nno such thing\n"), 125, &["supp:4:", "no such thing"]);
    refuses(&with("# fine\n{\n  name\n  Memcheck:Leak\n  fun:x\n"), 125, &["supp:2:", "no end"]);
    assert_eq!(with("leak:foo\n").code(), 0);
    let missing = directory.join("missing");
    let option = missing.to_str().unwrap();
    refuses(&leaks(guest.pid(), &["--suppressions", option]), 125, &["missing", "No such file"]);
    refuses(&leaks(guest.pid(), &["--suppressions", "/"]), 125, &["directory"]);
}

#[test]
fn wrong_usage_is_told_from_failure() {
    let pid = std::process::id().to_string();
    let pid = pid.as_str();
    for arguments in [
        &["leaks"] as &[&str],
        &["leaks", "--"],
        &["leaks", pid, pid],
        &["leaks", pid, "--", "true"],
        &["leaks", "--json", "--", "true"],
        &["leaks", "-o", "heap", pid],
        &["leaks", "--show-leak-kinds=lost", pid],
        &["leaks", "--errors-for-leak-kinds=definite,lost", pid],
        &["leaks", "--leak-check-heuristics=guess", pid],
        &["leaks", "--pointer-mask=0", pid],
        &["leaks", "--max-pause=soon", pid],
        &["leaks", "--top=-1", pid],
        &["leaks", "--no-such-option", pid],
    ] {
        let outcome = run(&mut leakscope(arguments));
        refuses(&outcome, 2, &[]);
        assert!(outcome.err().len() > 40, "{arguments:?}: {}", outcome.err());
    }
    let kinds = run(&mut leakscope(["leaks", "--show-leak-kinds=lost", pid]));
    refuses(&kinds, 2, &["\"lost\"", "definite", "indirect", "possible", "reachable", "all", "none"]);
}

#[test]
fn the_exit_status_says_whether_errors_remain() {
    let server = LeakServer::start(Size::SMALL);
    let status = |options: &[&str]| leaks(server.pid(), options).code();
    assert_eq!(status(&[]), 1);
    assert_eq!(status(&["--errors-for-leak-kinds=indirect"]), 1);
    assert_eq!(status(&["--errors-for-leak-kinds=all"]), 1);
    assert_eq!(status(&["--errors-for-leak-kinds=possible"]), 0);
    assert_eq!(status(&["--errors-for-leak-kinds=none"]), 0);
    assert_eq!(status(&["--show-leak-kinds=none"]), 1);
    let nothing_lost = cat();
    assert_eq!(leaks(nothing_lost.pid(), &[]).code(), 0);
    assert_eq!(leaks(nothing_lost.pid(), &["--errors-for-leak-kinds=reachable"]).code(), 1);
    server.end();
}

#[test]
fn a_place_for_json_that_cannot_be_written_is_named() {
    let guest = cat();
    let refused = leaks(guest.pid(), &["--json=/nonexistent/leaks.json"]);
    refuses(&refused, 125, &["/nonexistent/leaks.json", "No such file"]);
    // The file holds what standard output would, and is its owner's alone.
    let directory = Directory::new();
    let file = directory.join("leaks.json");
    let outcome = leaks(guest.pid(), &[&format!("--json={}", file.display())]);
    assert_eq!((outcome.code(), outcome.out().as_str()), (0, ""), "{}", outcome.err());
    crate::support::leaks::Leaks::parse(&std::fs::read(&file).unwrap());
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let directory = Directory::new();
    let hostile = "\u{1b}[2J\u{1b}]0;owned\u{7}\n\r\u{202e}\u{9b}31m";
    let program = directory.join(hostile);
    std::fs::copy("/bin/cat", &program).unwrap();
    let mut command = Command::new(&program);
    command.arg0(hostile).arg("-").arg("/\u{1b}[31mno\nsuch");
    let guest = Guest::waiting(&mut command);
    wait_until("it waits", || (state(guest.pid()) == Some('S')).then_some(()));
    let harmless = |text: &str, what: &str| {
        let is_bad = |c: char| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c);
        assert!(!text.contains(is_bad), "{what}: {text:?}");
        assert!(!text.contains("\nsuch"), "{what}: {text:?}");
    };
    let text = leaks(guest.pid(), &["--show-leak-kinds=all", "--gen-suppressions"]);
    assert_eq!(text.code(), 0, "{}", text.err());
    harmless(&text.out(), "text");
    assert!(text.out().contains("owned"), "{}", text.out());
    let json = leaks(guest.pid(), &["--json"]);
    let is_raw = |byte: &u8| byte.is_ascii_control() && *byte != b'\n';
    assert!(!json.stdout.iter().any(is_raw), "{}", json.out());
    serde_json::from_slice::<serde_json::Value>(&json.stdout).unwrap();
    // In errors too: of the tracer's name.
    let Some(gdb) = find_program(&["gdb"]) else { return skip("gdb is not installed") };
    let renamed = directory.join("\u{1b}[31mgdb\n");
    std::os::unix::fs::symlink(gdb, &renamed).unwrap();
    let mut tracer = Command::new(&renamed)
        .args(["-nx", "-q", "-p", &guest.pid().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("gdb to trace", || (tracer_of(guest.pid()) != 0).then_some(()));
    let refused = leaks(guest.pid(), &[]);
    drop(tracer.stdin.take());
    wait(&mut tracer, "gdb");
    refuses(&refused, 125, &["traces it already"]);
    harmless(refused.err().trim_end(), "error");
}

#[test]
fn a_reader_who_has_seen_enough_changes_nothing() {
    let server = LeakServer::start(Size::SMALL);
    // The report finds nobody at the other end of its pipe.
    let script = "exec 3>&1; { \"$@\" 2>&3 3>&-; echo \"status $?\" >&3; } | true";
    for options in [&["--show-leak-kinds=all"] as &[&str], &["--json"]] {
        let outcome = run(Command::new("sh")
            .args(["-c", script, "sh", crate::support::traced::LEAKSCOPE, "leaks"])
            .args(options)
            .arg(server.pid().to_string()));
        assert_eq!(outcome.out(), "status 1\n");
    }
    server.end();
}
