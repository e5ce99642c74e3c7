//! Threads whose stack pointer is not in a stack of their own, and sequences that must be restarted.

mod support;

use leakscope_target::{Mode, SnapshotOptions, Source, snapshot};
use support::{Target, children};

fn options(mode: Mode) -> SnapshotOptions {
    SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() }
}

#[test]
fn the_neighbours_of_a_small_stack_are_not_touched() {
    let mut target = Target::start("stacks", &["coroutine"]);
    for _ in 0..60 {
        let snapshot = snapshot(target.pid(), &options(Mode::Fork)).unwrap();
        assert_eq!(snapshot.source, Source::Fork);
    }
    assert_eq!(target.ask("report"), "fine");
    assert_eq!(children(target.pid()), []);
    let (rest, status) = target.finish();
    assert!(status.success(), "{status} {rest}");
}

#[test]
fn a_process_that_only_sleeps_on_a_small_stack_is_stopped_instead() {
    let mut target = Target::start("stacks", &["sleeper"]);
    let mut stopped = 0;
    for _ in 0..40 {
        let snapshot = snapshot(target.pid(), &options(Mode::Auto)).unwrap();
        if snapshot.source == Source::Stopped {
            stopped += 1;
            assert!(snapshot.notes[0].contains("stands still"), "{:?}", snapshot.notes);
        }
    }
    assert!(stopped > 0);
    assert_eq!(target.ask("report"), "fine");
    let (rest, status) = target.finish();
    assert!(status.success(), "{status} {rest}");
}

#[test]
fn a_restartable_sequence_is_restarted() {
    let mut target = Target::start("stacks", &["rseq"]);
    for _ in 0..30 {
        drop(snapshot(target.pid(), &options(Mode::Fork)).unwrap());
    }
    let answer = target.ask("end");
    assert!(answer.starts_with("0 lost of ") && answer != "0 lost of 0", "{answer}");
}
