//! The C target programs about what a process does with itself: fork, exec, limits, privileges, ways to end.

use crate::support::build::compile;
use crate::support::case::{Ran, case};
use crate::support::directory::Directory;
use crate::support::marks::{Expected, differences, line_containing, marks_of};
use crate::support::process::{run, wait_until};
use crate::support::traced::{LEAKSCOPE, Run, report_of};
use crate::support::{is_root, skip};
use std::process::Command;

#[test]
fn a_fork_among_allocating_threads_gives_parent_and_children_their_own_leaks() {
    for ran in case("fork_while_threads_allocate.c").check() {
        ran.check_others("child", 40);
    }
}

#[test]
fn atfork_handlers_may_allocate() {
    for ran in case("atfork_handlers_allocate.c").check() {
        ran.check_others("child", 2);
    }
}

#[test]
fn children_of_vfork_and_clone_vm_leave_the_parents_profile_whole() {
    for ran in case("vfork_exec.c").check() {
        ran.check_others("child", 10);
    }
}

#[test]
fn the_users_own_preload_survives_run_and_exec() {
    for flags in [&["-O0"] as &[&'static str], &["-O2"]] {
        let library = compile("exec_keeps_user_preload_library.c", &[flags, &["-shared", "-fPIC"]].concat());
        for ran in case("exec_keeps_user_preload.c")
            .source("exec_keeps_user_preload_library.c")
            .flags(flags)
            .env("LD_PRELOAD", &library)
            .status(3)
            .report_unchecked()
            .check()
        {
            check_programs(&ran, &["before", "after"]);
        }
    }
}

#[test]
fn each_program_that_a_process_becomes_has_its_own_profile() {
    for ran in case("exec_replaces_the_program.c").status(17).report_unchecked().check() {
        check_programs(&ran, &["first", "second", "third"]);
    }
}

/// Each of the programs that one process was in turn has a heap file with its marks; the last one's is the command's own.
fn check_programs(ran: &Ran, programs: &[&str]) {
    let reports = ran.traced.all_reports();
    for (index, program) in programs.iter().enumerate() {
        let mut marks = marks_of(&ran.sources, program);
        marks.retain(|_, expected| *expected != Expected::Any);
        let fitting: Vec<_> = reports
            .iter()
            .filter(|report| {
                let found = report.found(&ran.sources);
                marks.keys().any(|place| found.get(place).is_some_and(|found| found.heap.1 > 0))
            })
            .collect();
        assert_eq!(fitting.len(), 1, "reports of the program called {program}");
        ran.check_marks(fitting[0], program, program);
        let last = index + 1 == programs.len();
        assert_eq!(fitting[0].process.end.reason, if last { "exited" } else { "replaced" }, "{program}");
    }
}

#[test]
fn every_way_to_end_leaves_the_profile_and_the_status() {
    for (variant, status, end) in [
        ("return", 20, ("exited", Some(20))),
        ("exit", 21, ("exited", Some(21))),
        ("_exit", 22, ("exited", Some(22))),
        ("_Exit", 23, ("exited", Some(23))),
        ("thread_exit", 24, ("exited", Some(24))),
        ("quick_exit", 25, ("exited", Some(25))),
        ("exit_group", 26, ("exited", Some(26))),
        ("main_ends_first", 0, ("exited", Some(0))),
        ("abort", 128 + libc::SIGABRT, ("signaled", Some(i64::from(libc::SIGABRT)))),
        ("sigsegv", 128 + libc::SIGSEGV, ("signaled", Some(i64::from(libc::SIGSEGV)))),
        ("sigkill", 128 + libc::SIGKILL, ("signaled", Some(i64::from(libc::SIGKILL)))),
        ("sigterm", 128 + libc::SIGTERM, ("signaled", Some(i64::from(libc::SIGTERM)))),
    ] {
        for ran in case("exit_variants.c").flags(&["-O0"]).arg(variant).status(status).check() {
            let process = ran.traced.report().process;
            assert_eq!((process.end.reason.as_str(), process.end.status), end, "{variant}");
        }
    }
}

#[test]
fn closed_descriptors_and_another_root_do_not_stop_tracing() {
    let empty = Directory::new();
    case("closefrom_and_chroot.c").arg(empty.path()).check();
}

#[test]
fn a_sandbox_that_allows_an_allocator_allows_the_tracer() {
    case("seccomp_strict_filter.c").arg("filter").check();
}

#[test]
fn the_kernels_strict_mode_is_survived() {
    // No system call is left, so when the program is faster than the holder there is no way to get memory for the heap
    // file, nor to wait: then events are missed, and counted. All of the program's own blocks are one or the other.
    const BLOCKS: u64 = 1 + 1 + 60_000 + 1_000;
    for ran in case("seccomp_strict_filter.c").arg("strict").report_unchecked().check() {
        let report = ran.traced.report();
        let totals = &report.totals;
        let seen = totals.allocated_blocks + totals.missed_events;
        assert!(seen >= BLOCKS, "{seen} of {BLOCKS} blocks, {} of them missed", totals.missed_events);
        assert!(totals.missed_events == 0 || !report.notes.is_empty(), "what was missed is said");
    }
}

#[test]
fn a_service_that_drops_privileges_is_traced_on() {
    case("setuid_drops_privileges.c").check();
}

#[test]
fn exec_with_an_environment_of_its_own_is_followed() {
    for ran in case("clears_environment_and_execs.c").status(4).report_unchecked().check() {
        check_programs(&ran, &["before", "after"]);
    }
}

#[test]
fn a_spawned_child_has_its_own_profile() {
    for ran in case("posix_spawn_child.c").check() {
        ran.check_others("child", 5);
    }
}

#[test]
fn a_fork_past_libc_never_writes_into_the_parents_profile() {
    for ran in case("raw_clone_fork.c").check() {
        for report in ran.check_others("child", 20) {
            // The parent's 600 bytes, freed there and so no longer in use, and those lost before the fork, which are.
            assert!(report.totals.inherited_blocks >= 1, "{:?}", report.totals);
            assert!(report.totals.inherited_bytes >= 600, "{:?}", report.totals);
        }
    }
}

#[test]
fn a_limited_address_space_is_the_programs_and_not_the_tracers() {
    // Within its limit the program must get all it asks for. Tracing itself may stop, if that is said.
    for variant in ["now", "before"] {
        for ran in case("rlimit_as.c").arg(variant).report_unchecked().check() {
            if ran.traced.heap.exists() {
                let report = ran.traced.report();
                let line = line_containing("rlimit_as.c", "malloc(99)");
                let seen = report.sites_at("rlimit_as.c", line).count() == 1;
                assert!(seen || !report.notes.is_empty(), "neither the leak is seen nor a reason given");
            }
        }
    }
}

#[test]
fn locking_all_memory_does_not_populate_the_tracers_reserve() {
    if !is_root() || !run(Command::new("unshare").args(["-m", "true"])).status.success() {
        return skip("needs root and mount namespaces");
    }
    let program = compile("locks_all_memory.c", &["-O0"]);
    let native = run(&mut Command::new(&program));
    if native.code() != 0 {
        return skip("memory cannot be locked here");
    }
    // A shared memory of its own, so that a failure of this test does not fill the machine's.
    let directory = Directory::new();
    let traced = run(Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c"])
        .arg("mount -t tmpfs -o size=300m none /dev/shm || exit 77; exec \"$@\"")
        .args(["sh", LEAKSCOPE, "run", "-o"])
        .arg(directory.join("heap"))
        .arg("--")
        .arg(&program));
    assert_eq!(traced.code(), 0, "{}", traced.err());
    assert_eq!(traced.out(), native.out());
    let sources = ["locks_all_memory.c".to_owned()];
    let report = report_of(&directory.join("heap"));
    let differences = differences(&marks_of(&sources, "main"), &report.found(&sources), false);
    assert!(differences.is_empty() || !report.notes.is_empty(), "{differences:?}");
}

#[test]
fn a_limit_on_file_size_neither_kills_nor_stops_tracing() {
    case("rlimit_fsize.c").check();
}

#[test]
fn descriptors_are_numbered_as_ever() {
    case("first_descriptor.c").check();
}

#[test]
fn what_a_program_inherits_it_inherits_through_leakscope() {
    let program = compile("surroundings_untouched.c", &["-O0"]);
    // Ignored signals, limits, another directory and mask, a nice value: as nohup, ulimit, cd, umask and nice leave them.
    let script =
        "trap '' HUP PIPE USR2; ulimit -n 512; ulimit -c 0; umask 027; cd /usr; exec nice -n 3 \"$@\"";
    let native = run(Command::new("sh").args(["-c", script, "sh"]).arg(&program));
    let directory = Directory::new();
    let traced = run(Command::new("sh")
        .args(["-c", script, "sh", LEAKSCOPE, "run", "-o"])
        .arg(directory.join("heap"))
        .arg("--")
        .arg(&program));
    assert_eq!(traced.out(), native.out());
    assert!(native.out().contains("signal 13 ignored"), "{}", native.out());
}

#[test]
fn signals_limits_and_threads_are_as_ever() {
    case("surroundings_untouched.c").arg("one").arg("").arg("--json=two").arg("--").arg("-o").check();
}

#[test]
fn a_daemon_is_traced_beyond_the_end_of_its_command() {
    use std::io::{Read, Write};
    let directory = Directory::new();
    let (go, done) = (directory.join("go"), directory.join("done"));
    for fifo in [&go, &done] {
        let path = std::ffi::CString::new(fifo.to_str().unwrap()).unwrap();
        // SAFETY: the path is a NUL-terminated string that outlives the call.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
    }
    let program = compile("daemonizes.c", &["-O0"]);
    let traced = Run::new([&program, &go, &done]).traced();
    // leakscope has ended with its command, although the daemon lives.
    assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
    assert_eq!(traced.outcome.out(), "started\n");
    std::fs::File::options().write(true).open(&go).unwrap().write_all(b"!").unwrap();
    let mut text = String::new();
    std::fs::File::open(&done).unwrap().read_to_string(&mut text).unwrap();
    let pid: u32 = text.trim().parse().unwrap();
    wait_until("the daemon's end", || {
        (!std::path::Path::new(&format!("/proc/{pid}")).exists() || is_zombie(pid)).then_some(())
    });
    let heap = traced.directory.join(format!("heap.{pid}"));
    // Its second holder seals it a moment later.
    wait_until("the daemon's heap file", || heap.exists().then_some(()));
    let report = report_of(&heap);
    let line = line_containing("daemonizes.c", "malloc(25)");
    let site = report.sites_at("daemonizes.c", line).next();
    let recorded = site.map_or(0, |site| site.inuse_blocks);
    assert!(
        recorded == 30000 || (recorded + report.totals.missed_events >= 30000 && !report.notes.is_empty()),
        "{recorded} of 30000 blocks, {} missed, notes {:?}",
        report.totals.missed_events,
        report.notes
    );
}

fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}
