//! `leakscope leaks PID` on a process that nobody prepared, in the surroundings that processes have: what it lost is found,
//! what it holds is not reported, and it notices nothing. `leak_server` keeps the account (see targets/README.md) and fails
//! by itself if a call of its threads was interrupted or anything it holds was changed.

use crate::support::build::compile;
use crate::support::cgroup::Cgroup;
use crate::support::directory::Directory;
use crate::support::leaks::{Amount, Kind, Leaks};
use crate::support::process::{Outcome, kill, run};
use crate::support::random::rounds;
use crate::support::server::{LeakServer, Size, program};
use crate::support::traced::{LEAKSCOPE, leakscope};
use crate::support::{is_root, skip};
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Nobody's user, and another one of no importance.
const NOBODY: u32 = 65534;
const SOMEBODY: u32 = 65533;

/// Words that make a command run as a user without any right.
fn as_user(user: u32) -> [String; 4] {
    ["setpriv".into(), format!("--reuid={user}"), format!("--regid={user}"), "--clear-groups".into()]
}

/// Scans a server that was never prepared and that can be copied, checks what was found, and lets it end.
fn unprepared(server: LeakServer) {
    let leaks = server.scan(&[]);
    server.check(&leaks);
    assert_eq!((leaks.source.snapshot.as_str(), leaks.source.blocks.as_str()), ("fork", "allocator"));
    assert!(leaks.source.allocator.unwrap().starts_with("glibc 2."));
    assert!(leaks.pause_ms.is_some());
    server.is_let_go();
    server.end();
}

/// It stood still while it was read, and a note says why.
fn stood_still(leaks: &Leaks, why: &str) {
    assert_eq!(leaks.source.snapshot, "stopped", "{:?}", leaks.notes);
    assert!(leaks.has_note("stands still") && leaks.has_note(why), "{:?}", leaks.notes);
    assert!(leaks.pause_ms.is_some());
}

#[test]
fn of_a_million_live_blocks_none_is_reported_and_the_lost_ones_are_found() {
    let live = rounds("LEAKSCOPE_LIVE_BLOCKS", 1_000_000);
    let server = LeakServer::start(Size { live: live.into(), threads: 4, busy: false, lost: 5000 });
    // On a slow machine the pause may be long; how long it is, is not the question here.
    let leaks = server.scan(&["--max-pause=10000"]);
    server.check(&leaks);
    assert_eq!(leaks.process.pid, server.pid());
    server.is_let_go();
    server.end();
}

#[test]
fn a_busy_process_has_at_most_one_false_leak_for_each_running_thread() {
    let server = LeakServer::start(Size::BUSY);
    for _ in 0..rounds("LEAKSCOPE_SCAN_ROUNDS", 5) {
        let leaks = server.scan(&["--max-pause=10000"]);
        server.check(&leaks);
        server.runs();
    }
    server.is_let_go();
    server.end();
}

#[test]
fn a_process_can_be_scanned_again_and_again() {
    let server = LeakServer::start(Size::SMALL);
    let first = server.scan(&[]);
    server.check(&first);
    for _ in 1..rounds("LEAKSCOPE_SCAN_ROUNDS", 5) {
        let again = server.scan(&[]);
        assert!(again.summary == first.summary && again.records == first.records, "{:?}", again.summary);
        server.is_let_go();
    }
    server.end();
}

#[test]
fn a_traced_process_shows_where_its_lost_blocks_came_from() {
    let directory = Directory::new();
    let heap = directory.join("heap");
    let prefix: [&OsStr; 5] =
        [LEAKSCOPE.as_ref(), "run".as_ref(), "-o".as_ref(), heap.as_os_str(), "--".as_ref()];
    for size in [Size::SMALL, Size::BUSY] {
        let _ = std::fs::remove_file(&heap);
        let server = LeakServer::start_by(&prefix, size);
        let leaks = server.scan(&["--max-pause=10000"]);
        server.check(&leaks);
        assert_eq!((leaks.source.snapshot.as_str(), leaks.source.blocks.as_str()), ("fork", "tracer"));
        assert!(!leaks.has_note("shared with other processes"), "{:?}", leaks.notes);
        let lose = |kind: Kind| -> Amount {
            let records = leaks.records.iter().filter(|record| record.kind == kind);
            let here = records.filter(|record| {
                record.stack.iter().any(|frame| {
                    let file = frame.file.as_deref().unwrap_or_default();
                    frame.function.as_deref() == Some("lose")
                        && file.ends_with("/leak_server.c")
                        && frame.line.is_some()
                })
            });
            here.map(|record| Amount { bytes: record.direct_bytes, blocks: record.blocks }).sum()
        };
        // Sizes are as requested, so bytes are exact.
        let planted = |kind: Kind| -> Amount {
            let blocks = server.lost.iter().filter(|block| block.kind == kind);
            blocks.map(|block| Amount { bytes: block.size, blocks: 1 }).sum()
        };
        if !size.busy {
            for kind in [Kind::Definite, Kind::Indirect] {
                assert_eq!(lose(kind), planted(kind), "{}", kind.name());
            }
            let text = run(leakscope(["leaks"]).arg(server.pid().to_string()));
            assert_eq!(text.code(), 1, "{}", text.err());
            assert!(text.out().contains("leak_server.c:"), "{}", text.out());
        }
        server.is_let_go();
        server.end();
    }
}

#[test]
fn a_process_may_stand_still_instead_of_being_copied() {
    for size in [Size::SMALL, Size::BUSY] {
        let server = LeakServer::start(size);
        let leaks = server.scan(&["--no-fork"]);
        server.check(&leaks);
        assert_eq!(leaks.source.snapshot, "stopped");
        assert!(leaks.pause_ms.is_some());
        server.is_let_go();
        server.end();
    }
}

#[test]
fn a_process_in_namespaces_of_its_own_is_examined_from_outside() {
    let words = ["unshare", "--pid", "--mount", "--fork", "--mount-proc"];
    if !is_root() || !run(Command::new(words[0]).args(&words[1..]).arg("true")).status.success() {
        return skip("needs root and namespaces");
    }
    unprepared(LeakServer::start_by(&words, Size::SMALL));
    // Its program and libraries are not at the same place outside.
    let directory = Directory::new();
    let script = r#"mount -t tmpfs none "$1" && cp "$2" "$1/server" && shift 2 && exec "$@""#;
    let hidden = directory.join("hidden");
    std::fs::create_dir(&hidden).unwrap();
    let words: Vec<&OsStr> =
        [words.map(OsStr::new).as_slice(), &["sh", "-c", script, "sh"].map(OsStr::new)].concat();
    let program = program();
    let prefix = [words.as_slice(), &[hidden.as_os_str(), program.as_os_str()]].concat();
    unprepared(LeakServer::start_as(&hidden.join("server"), &prefix, Path::new("."), Size::SMALL));
}

/// leakscope where any user can run it, and that file's directory.
fn for_everyone() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("leakscope");
    if std::fs::hard_link(LEAKSCOPE, &copy).is_err() {
        std::fs::copy(LEAKSCOPE, &copy).unwrap();
    }
    (directory, copy)
}

/// `leakscope leaks` as a user.
fn leaks_as(user: u32, leakscope: &Path, pid: u32) -> Outcome {
    let words = as_user(user);
    run(Command::new(&words[0]).args(&words[1..]).arg(leakscope).args(["leaks", &pid.to_string()]))
}

#[test]
fn another_users_process_needs_root_and_the_refusal_says_so() {
    if !is_root() {
        return skip("only root can start processes of other users");
    }
    let (directory, leakscope) = for_everyone();
    let copy = directory.path().join("leak_server");
    std::fs::copy(program(), &copy).unwrap();
    let server = LeakServer::start_as(&copy, &as_user(NOBODY), directory.path(), Size::SMALL);
    let refused = leaks_as(SOMEBODY, &leakscope, server.pid());
    assert_eq!((refused.code(), refused.out().as_str()), (125, ""), "{}", refused.err());
    for words in ["belongs to user 65534", "runs as user 65533", "CAP_SYS_PTRACE"] {
        assert!(refused.err().contains(words), "{}", refused.err());
    }
    server.is_let_go();
    if run(Command::new("sh").args(["-c", "test \"$(cat /proc/sys/kernel/yama/ptrace_scope)\" -gt 0"])).code()
        == 0
    {
        skip("kernel.yama.ptrace_scope keeps users from their own processes");
    } else {
        let own = leaks_as(NOBODY, &leakscope, server.pid());
        assert_eq!(own.code(), 1, "{}", own.err());
    }
    unprepared(server);
}

#[test]
fn a_traced_process_in_namespaces_of_its_own_has_stacks_as_well() {
    let words = ["unshare", "--pid", "--mount", "--fork", "--mount-proc"];
    if !is_root() || !run(Command::new(words[0]).args(&words[1..]).arg("true")).status.success() {
        return skip("needs root and namespaces");
    }
    let directory = Directory::new();
    let heap = directory.join("heap");
    let run: [&OsStr; 5] =
        [LEAKSCOPE.as_ref(), "run".as_ref(), "-o".as_ref(), heap.as_os_str(), "--".as_ref()];
    let prefix = [run.as_slice(), &words.map(OsStr::new)].concat();
    let server = LeakServer::start_by(&prefix, Size::SMALL);
    // Seen and found to be alive by its own pid, or else it would soon be taken for ended.
    std::thread::sleep(std::time::Duration::from_millis(200));
    for _ in 0..2 {
        let leaks = server.scan(&[]);
        server.check(&leaks);
        assert_eq!(leaks.source.blocks, "tracer", "{:?}", leaks.notes);
        let stacks = leaks.records.iter().filter(|record| record.kind == Kind::Definite);
        assert!(stacks.clone().count() > 0);
        assert!(stacks.clone().all(|record| record.stack[0].function.as_deref() == Some("lose")));
    }
    let pid = server.pid();
    server.is_let_go();
    server.end();
    // Its heap file tells of its whole life, under the pid that it has here.
    let report = crate::support::traced::report_of(&directory.join(format!("heap.{pid}")));
    assert_eq!(report.process.pid, pid);
    assert!(report.totals.allocated_blocks > Size::SMALL.live + Size::SMALL.lost);
}

#[test]
fn a_traced_process_whose_leakscope_was_killed_still_has_stacks() {
    let directory = Directory::new();
    let heap = directory.join("heap");
    let run: [&OsStr; 5] =
        [LEAKSCOPE.as_ref(), "run".as_ref(), "-o".as_ref(), heap.as_os_str(), "--".as_ref()];
    let server = LeakServer::start_by(&run, Size::SMALL);
    let arena = std::fs::read_link(&heap).unwrap();
    kill(server.started(), libc::SIGKILL);
    let leaks = server.scan(&[]);
    let text = format!("{:?}", leaks.notes);
    server.check(&leaks);
    assert_eq!(leaks.source.blocks, "tracer", "{text}");
    assert!(leaks.records.iter().any(|record| record.stack.iter().any(|frame| frame.line.is_some())));
    server.is_let_go();
    server.ends_by(libc::SIGTERM);
    let _ = std::fs::remove_file(arena);
}

#[test]
fn a_process_with_more_rights_than_leakscope_is_refused_with_the_missing_one() {
    if !is_root() {
        return skip("only root has capabilities to lose");
    }
    let server = LeakServer::start(Size { live: 100, lost: 100, ..Size::SMALL });
    let refused = run(Command::new("setpriv")
        .args(["--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace", LEAKSCOPE, "leaks"])
        .arg(server.pid().to_string()));
    assert_eq!((refused.code(), refused.out().as_str()), (125, ""), "{}", refused.err());
    for words in ["more capabilities than leakscope", "CAP_SYS_PTRACE"] {
        assert!(refused.err().contains(words), "{}", refused.err());
    }
    server.is_let_go();
    server.end();
    // Of the same user, but not to be looked at by that user.
    let (_directory, copy) = for_everyone();
    let words = as_user(NOBODY);
    let perl = crate::support::need_program("perl", "perl");
    let mut secretive = Command::new(&words[0])
        .args(&words[1..])
        .arg(perl)
        .args(["-e", "syscall(157, 4, 0, 0, 0) == 0 or die; $| = 1; print qq(ready\n); <STDIN>"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(secretive.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let refused = leaks_as(NOBODY, &copy, secretive.id());
    let own = run(leakscope(["leaks"]).arg(secretive.id().to_string()));
    drop(secretive.stdin.take());
    assert_eq!(crate::support::process::wait(&mut secretive, "perl").code(), Some(0));
    assert_eq!((refused.code(), refused.out().as_str()), (125, ""), "{}", refused.err());
    for words in ["not dumpable", "CAP_SYS_PTRACE"] {
        assert!(refused.err().contains(words), "{}", refused.err());
    }
    assert!([0, 1].contains(&own.code()), "root may: {}", own.err());
}

#[test]
fn a_process_whose_sandbox_would_kill_it_for_a_copy_is_read_standing_still() {
    let confined = compile("confined.c", &["-O0"]);
    let server = LeakServer::start_by(&[confined.as_os_str(), "uncopyable".as_ref()], Size::SMALL);
    let leaks = server.scan(&[]);
    server.check(&leaks);
    stood_still(&leaks, "seccomp");
    server.is_let_go();
    server.end();
}

#[test]
fn a_process_with_little_memory_left_is_read_standing_still() {
    let Some(group) = Cgroup::new(1 << 30) else {
        return skip("cannot make a memory cgroup");
    };
    let script = "echo $$ >\"$1\"; shift; exec \"$@\"";
    let processes = group.processes();
    let prefix: [&OsStr; 5] =
        ["sh".as_ref(), "-c".as_ref(), script.as_ref(), "sh".as_ref(), processes.as_os_str()];
    let server = LeakServer::start_by(&prefix, Size::SMALL);
    let roomy = server.scan(&[]);
    assert_eq!(roomy.source.snapshot, "fork", "{:?}", roomy.notes);
    group.limit(group.usage() + (3 << 20)).unwrap();
    let leaks = server.scan(&[]);
    server.check(&leaks);
    stood_still(&leaks, "memory control group");
    assert_eq!(leaks.summary, roomy.summary);
    server.is_let_go();
    server.end();
}

#[test]
fn a_statically_linked_program_is_read_like_any_other() {
    let program = compile("leak_server.c", &["-O2", "-static"]);
    let server = LeakServer::start_as::<&str>(&program, &[], Path::new("."), Size::SMALL);
    let leaks = server.scan(&[]);
    server.check(&leaks);
    server.is_let_go();
    server.end();
}
