//! A killed leakscope does no harm.

mod support;

use leakscope_target::{Mode, SnapshotOptions, checkpoint, snapshot};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Target, children, eventually, state};

fn options(mode: Mode) -> SnapshotOptions {
    SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() }
}

/// Not a test: the process that is killed. It runs as this very program with other surroundings.
#[test]
fn the_victim() {
    let Ok(pid) = std::env::var("LEAKSCOPE_VICTIM_OF") else { return };
    let pid = pid.parse().unwrap();
    checkpoint::kill_at(std::env::var("LEAKSCOPE_VICTIM_STEP").unwrap().parse().unwrap());
    let mode = if std::env::var_os("LEAKSCOPE_VICTIM_STOPS").is_some() { Mode::Stop } else { Mode::Fork };
    let rounds: u32 = std::env::var("LEAKSCOPE_VICTIM_ROUNDS").unwrap().parse().unwrap();
    for _ in 0..rounds {
        let taken = snapshot(pid, &options(mode)).unwrap();
        println!("taken");
        drop(taken);
    }
}

fn victim(target: &Target, step: u32, rounds: u32, stops: bool) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_victim", "--nocapture"])
        .env("LEAKSCOPE_VICTIM_OF", target.pid().to_string())
        .env("LEAKSCOPE_VICTIM_STEP", step.to_string())
        .env("LEAKSCOPE_VICTIM_ROUNDS", rounds.to_string())
        .stdout(Stdio::null());
    if stops {
        command.env("LEAKSCOPE_VICTIM_STOPS", "1");
    }
    command.spawn().unwrap()
}

/// It serves, nobody holds it, and nothing is left of a copy.
fn is_unharmed(target: &mut Target, what: &str) {
    let answer = target.ask("hello");
    assert!(!answer.is_empty() && !answer.contains("bad"), "{what}: {answer:?}");
    eventually(&format!("{what}: nothing is left"), || children(target.pid()).is_empty());
    // A guardian at work stops it for some microseconds.
    eventually(&format!("{what}: nobody stops it"), || !matches!(state(target.pid()), 't' | 'T'));
    let answer = target.ask("hello");
    assert!(!answer.is_empty() && !answer.contains("bad"), "{what}: {answer:?}");
}

const TARGETS: [(&str, &[&str]); 4] =
    [("vectors", &[]), ("server", &["many"]), ("server", &["sleep"]), ("server", &["read"])];

#[test]
fn killed_at_any_step_it_leaves_the_process_unharmed() {
    for (name, arguments) in TARGETS {
        let mut target = Target::start(name, arguments);
        for step in 1..=checkpoint::STEPS {
            let what = format!("{name} {arguments:?}, step {step}");
            let status = victim(&target, step, 1, false).wait().unwrap();
            // Sleeping threads return another way, which has fewer steps.
            let skipped = arguments == ["sleep"] && status.success();
            assert!(status.signal() == Some(libc::SIGKILL) || skipped, "{what}: {status}");
            is_unharmed(&mut target, &what);
        }
        drop(snapshot(target.pid(), &options(Mode::Fork)).unwrap());
        assert_eq!(children(target.pid()), [], "{name}: left after the next snapshot");
    }
}

#[test]
fn killed_at_any_instant_it_leaves_the_process_unharmed() {
    let rounds =
        std::env::var("LEAKSCOPE_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(15);
    let mut random = std::process::id() | 1;
    for (name, arguments) in TARGETS {
        // Killed in the microsecond between the stop of a thread in epoll_wait and its rewinding, leakscope lets it see
        // EINTR, as the kernel does after any stop.
        let mut target = Target::start_command(
            std::process::Command::new(support::compile(name)).args(arguments).env("MAY_BE_INTERRUPTED", "1"),
        );
        for round in 0..rounds {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut killed = victim(&target, 0, u32::MAX, round % 4 == 3);
            std::thread::sleep(Duration::from_micros(u64::from(random >> 8) % 60_000));
            killed.kill().unwrap();
            killed.wait().unwrap();
            let what = format!("{name} {arguments:?}, round {round}");
            assert!(children(target.pid()).len() <= 1, "{what}: {:?}", children(target.pid()));
            is_unharmed(&mut target, &what);
        }
        drop(snapshot(target.pid(), &options(Mode::Fork)).unwrap());
        assert_eq!(children(target.pid()), [], "{name}: left after the next snapshot");
    }
}

#[test]
fn killed_while_the_process_stands_still_it_lets_it_go() {
    let mut target = Target::start("server", &["many"]);
    let mut child = victim(&target, checkpoint::Step::Stopped as u32, 1, true);
    assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
    is_unharmed(&mut target, "stopped");
}
