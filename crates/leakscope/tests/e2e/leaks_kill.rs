//! leakscope killed at random instants while it examines a process: the process runs on and serves, nothing of it stands
//! still, and the next scan leaves nothing behind.

use crate::support::process::{children_of, kill, wait, wait_until};
use crate::support::random::{Random, rounds};
use crate::support::server::{LeakServer, Size};
use crate::support::traced::leakscope;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Kills leakscope once in each of many scans of a server, at any instant of the time that a scan takes here.
fn survives(size: Size, options: &[&str]) {
    let mut random = Random::new();
    let server = LeakServer::start(size);
    let begun = Instant::now();
    server.check(&server.scan(options));
    let usual = begun.elapsed();
    for round in 0..rounds("LEAKSCOPE_KILL_ROUNDS", 10) {
        let mut child = leakscope(["leaks", "--json"])
            .args(options)
            .arg(server.pid().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(random.below(usual.as_micros() as u64)));
        kill(child.id(), libc::SIGKILL);
        wait(&mut child, "the killed leakscope");
        server.runs();
        wait_until("no more than a zombie of the copy", || {
            let children = children_of(server.pid());
            assert!(children.len() <= 1, "round {round}: children {children:?}");
            let living = children.iter().any(|&pid| crate::support::process::state(pid) != Some('Z'));
            (!living).then_some(())
        });
    }
    server.check(&server.scan(options));
    server.is_let_go();
    server.end();
}

#[test]
fn a_process_at_rest_survives_the_death_of_leakscope_at_any_instant() {
    survives(Size::SMALL, &["--max-pause=10000"]);
}

#[test]
fn a_busy_process_survives_the_death_of_leakscope_at_any_instant() {
    survives(Size::BUSY, &["--max-pause=10000"]);
}

#[test]
fn a_process_that_stands_still_is_let_go_when_leakscope_dies() {
    survives(Size::SMALL, &["--no-fork"]);
}
