//! Snapshots by a copy.

mod support;

use leakscope_target::{Mode, SnapshotOptions, Source, snapshot};
use support::{Target, children};

fn fork() -> SnapshotOptions {
    SnapshotOptions { mode: Mode::Fork, max_pause: None, ..SnapshotOptions::default() }
}

#[test]
fn frozen_memory_stays_while_the_process_runs_on() {
    let mut target = Target::start("counter", &[]);
    let address: u64 = target.ask("where").parse().unwrap();
    let snapshot = snapshot(target.pid(), &fork()).unwrap();
    assert_eq!(snapshot.source, Source::Fork);
    let frozen = (snapshot.memory.word(address).unwrap(), snapshot.memory.word(address + 8).unwrap());
    assert!(frozen.0 - frozen.1 <= 1);
    support::eventually("it counts on", || target.ask("value").parse::<u64>().unwrap() > frozen.0);
    assert_eq!(snapshot.memory.word(address), Some(frozen.0));
    assert_eq!(snapshot.threads.len(), 2);
    assert!(snapshot.pause.is_some());
    drop(snapshot);
    assert_eq!(children(target.pid()), []);
    assert_eq!(target.ask("children"), format!("0 -1 {}", libc::ECHILD));
}

#[test]
fn registers_are_those_of_the_program_and_stay() {
    let mut target = Target::start("vectors", &[]);
    let before: u64 = target.ask("spins").parse().unwrap();
    let mut seen = (0, 0);
    for _ in 0..30 {
        let snapshot = snapshot(target.pid(), &fork()).unwrap();
        let registers = &snapshot.threads[0].registers;
        let general = (1..=9).filter(|n| registers.general.contains(&(0x1111_1111_0000_0000 + n))).count();
        // The 16 registers that every processor has, and what only the widest part of them holds.
        let low = (1..=16).filter(|n| registers.vector.contains(&(n * 0x0101_0101_0101_0101))).count();
        let high =
            (1..=16u64).filter(|n| registers.vector.contains(&(n << 56 | 0x5a_5a5a_5a5a_5a5a))).count();
        seen = seen.max((general, low + high));
        assert!(snapshot.threads[0].registers.sp != 0);
    }
    // A snapshot can fall between two spins.
    assert_eq!(seen, (9, 32));
    let after: u64 = target.ask("spins").parse().unwrap();
    assert!(after > before);
    let (rest, status) = target.finish();
    assert!(status.success(), "{status} {rest}");
}

#[test]
fn a_stop_holds_the_process_until_the_snapshot_is_dropped() {
    let mut target = Target::start("counter", &[]);
    let address: u64 = target.ask("where").parse().unwrap();
    let options = SnapshotOptions { mode: Mode::Stop, ..SnapshotOptions::default() };
    let snapshot = snapshot(target.pid(), &options).unwrap();
    assert_eq!((snapshot.source, snapshot.pause), (Source::Stopped, None));
    let frozen = snapshot.memory.word(address);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(snapshot.memory.word(address), frozen);
    let moved = std::thread::spawn(move || drop(snapshot));
    moved.join().unwrap();
    assert!(target.ask("value").parse::<u64>().unwrap() >= frozen.unwrap());
    let before: u64 = target.ask("value").parse().unwrap();
    support::eventually("it counts on", || target.ask("value").parse::<u64>().unwrap() > before);
}

#[test]
fn a_thousand_threads_are_all_there() {
    let mut target = Target::start("many", &["1000"]);
    for _ in 0..3 {
        let snapshot = snapshot(target.pid(), &fork()).unwrap();
        assert_eq!(snapshot.threads.len(), 1001);
        let named = snapshot.threads.iter().filter(|thread| thread.name.starts_with(b"worker")).count();
        assert_eq!(named, 1000);
        let mut tids: Vec<u32> = snapshot.threads.iter().map(|thread| thread.tid).collect();
        tids.dedup();
        assert_eq!(tids.len(), 1001);
        // Each thread holds its own number in a register.
        drop(snapshot);
    }
    assert_eq!(children(target.pid()), []);
    assert_eq!(target.ask("report"), "0");
}

#[test]
fn threads_that_come_and_go_do_not_disturb_it() {
    let mut target = Target::start("many", &["churn"]);
    for mode in [Mode::Fork, Mode::Stop] {
        for _ in 0..60 {
            let options = SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() };
            let snapshot = snapshot(target.pid(), &options).unwrap();
            assert!(!snapshot.threads.is_empty());
        }
    }
    support::eventually("nothing is left", || children(target.pid()).is_empty());
    assert_eq!(target.ask("report"), "0");
}

#[test]
fn what_the_process_closes_is_closed_although_a_copy_exists() {
    let mut target = Target::start("many", &["descriptors"]);
    let snapshot = snapshot(target.pid(), &fork()).unwrap();
    // The target closes one end of a socket pair and releases a lock; its own other end sees the end at once.
    assert_eq!(target.ask("close"), "0 closed 0 locked");
    let copies = children(target.pid());
    assert_eq!(copies.len(), 1, "{copies:?}");
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", copies[0].0)).unwrap().count();
    assert_eq!(descriptors, 0);
    drop(snapshot);
    assert_eq!(target.ask("report"), "0");
}

#[test]
fn memory_that_a_copy_lacks_is_there_nevertheless() {
    let mut target = Target::start("many", &["dontfork"]);
    let address: u64 = target.ask("where").parse().unwrap();
    let snapshot = snapshot(target.pid(), &fork()).unwrap();
    let mut bytes = vec![0; 8192];
    assert!(snapshot.memory.read_exact(address, &mut bytes));
    assert!(bytes.iter().all(|&byte| byte == 0x77));
    assert!(snapshot.mappings.iter().any(|mapping| (mapping.start..mapping.end).contains(&address)));
    assert_eq!(snapshot.memory.read(address + 4096 * 2 - 16, &mut bytes[..32]), 16);
}

#[test]
fn a_process_in_another_pid_namespace_is_reaped_by_its_own_number() {
    let program = support::compile("server");
    let mut command = std::process::Command::new("unshare");
    command.args(["--pid", "--mount-proc", "--fork", "--kill-child"]).arg(program).arg("read");
    let mut target = Target::start_command(&mut command);
    let inner = children(target.pid())[0].0;
    let status = leakscope_proc::status("/proc".as_ref(), inner).unwrap();
    assert_eq!(status.namespace_pids.len(), 2);
    for _ in 0..3 {
        let snapshot = snapshot(inner, &fork()).unwrap();
        assert_eq!(children(inner).len(), 1);
        drop(snapshot);
        assert_eq!(children(inner), []);
    }
    assert_eq!(target.ask("hello"), "served");
}

#[test]
fn a_process_whose_first_thread_has_ended_is_examined_all_the_same() {
    let mut target = Target::start("many", &["headless"]);
    let address: u64 = target.ask("where").parse().unwrap();
    support::eventually("its first thread ends", || support::state(target.pid()) == 'Z');
    for mode in [Mode::Fork, Mode::Stop] {
        let options = SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() };
        let snapshot = snapshot(target.pid(), &options).unwrap();
        assert_eq!(snapshot.memory.word(address), Some(0x600d));
        assert_eq!(snapshot.threads.len(), 1);
    }
    assert_eq!(target.ask("report"), "0");
    assert_eq!(children(target.pid()), []);
}

#[test]
fn a_process_that_would_be_killed_for_a_fork_is_stopped_instead() {
    let options = SnapshotOptions { max_pause: None, ..SnapshotOptions::default() };
    let mut target = Target::start("confined", &["kill"]);
    let taken = snapshot(target.pid(), &options).unwrap();
    assert_eq!(taken.source, Source::Stopped);
    assert!(taken.notes[0].contains("seccomp"), "{:?}", taken.notes);
    drop(taken);
    assert_eq!(target.ask("hello"), "served");
    let error = snapshot(target.pid(), &fork()).err().unwrap().to_string();
    assert!(error.contains("seccomp") && error.contains("--no-fork"), "{error}");
    assert_eq!(target.ask("hello"), "served");

    let mut target = Target::start("confined", &["allow"]);
    let taken = snapshot(target.pid(), &options).unwrap();
    // Reading filters is for the privileged.
    // SAFETY: getuid has no preconditions.
    if unsafe { libc::getuid() } == 0 && taken.source != Source::Fork {
        assert!(taken.notes[0].contains("cannot be read"), "{:?}", taken.notes);
    }
    drop(taken);
    assert_eq!(target.ask("hello"), "served");
    assert_eq!(children(target.pid()), []);
}
