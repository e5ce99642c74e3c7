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
