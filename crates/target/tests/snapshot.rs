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
    let now: u64 = target.ask("value").parse().unwrap();
    assert!(now > frozen.0);
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
