//! System calls in progress go on as if nothing had happened.

mod support;

use leakscope_target::{Mode, SnapshotOptions, snapshot};
use support::{Target, children, eventually};

const KINDS: [&str; 14] = [
    "nanosleep",
    "nanosleep_rest",
    "poll",
    "ppoll",
    "select",
    "futex",
    "condition",
    "epoll_wait",
    "epoll_pwait",
    "sigtimedwait",
    "recv",
    "accept",
    "semtimedop",
    "read",
];

fn options(mode: Mode) -> SnapshotOptions {
    SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() }
}

#[test]
fn no_waiting_thread_of_many_sees_an_interruption() {
    let mut target = Target::start("waiting", &["all"]);
    for mode in [Mode::Fork, Mode::Stop] {
        for _ in 0..20 {
            drop(snapshot(target.pid(), &options(mode)).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
    let rounds = |answer: &str| answer.split(' ').nth(1).unwrap().parse::<u64>().unwrap();
    let before = rounds(&target.ask("report"));
    eventually("each kind of wait comes to its end", || rounds(&target.ask("report")) > before + 1);
    let answer = target.ask("report");
    assert!(answer.starts_with("0 "), "{answer}");
    eventually("no copy is left", || children(target.pid()).is_empty());
}

/// These begin their time limit anew when they are entered again; the others must come to their end though snapshots
/// go on.
const ANEW: [&str; 6] = ["epoll_wait", "epoll_pwait", "sigtimedwait", "recv", "accept", "semtimedop"];

/// The only thread must make the calls itself. A sleep that began anew with each snapshot would not end while
/// snapshots go on.
fn alone(kind: &str, mode: Mode) {
    let mut target = Target::start("waiting", &[kind, "4"]);
    let mut taken = 0;
    while target.child.try_wait().unwrap().is_none() {
        if ANEW.contains(&kind) && taken >= 12 {
            break;
        }
        match snapshot(target.pid(), &options(mode)) {
            Ok(snapshot) => {
                taken += 1;
                drop(snapshot);
            }
            Err(error) => {
                assert!(
                    target.child.try_wait().unwrap().is_some() || error.to_string().contains("went away"),
                    "{kind}: {error}"
                );
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(40));
        assert!(taken < 1500, "{kind}: its waits do not end");
    }
    let (output, status) = target.finish();
    assert!(status.success() && output.starts_with("0 "), "{kind}: {status} {output}");
    assert!(taken > 0, "{kind}: no snapshot was taken");
}

#[test]
fn the_only_thread_is_not_interrupted_by_a_copy() {
    for kind in KINDS {
        alone(kind, Mode::Fork);
    }
}

#[test]
fn the_only_thread_is_not_interrupted_by_a_stop() {
    for kind in KINDS {
        alone(kind, Mode::Stop);
    }
}
