//! A process at its end.

mod support;

use leakscope_target::{Error, Source, hold_at_exit};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;
use support::Target;

const PATIENCE: Duration = Duration::from_secs(60);

fn ends(way: &str, code: Option<i32>, signal: Option<i32>, threads: usize) {
    let mut target = Target::start("exiting", &[way]);
    let hold = hold_at_exit(target.pid()).unwrap();
    let answer = target.ask("go");
    let address: u64 = answer.split(' ').next().unwrap().parse().unwrap();
    let snapshot = hold.wait_for_exit(PATIENCE).unwrap_or_else(|error| panic!("{way}: {error}"));
    assert_eq!(snapshot.source, Source::Stopped);
    if way != "exec" {
        assert_eq!(snapshot.memory.word(address), Some(0x600d), "{way}");
        assert!(snapshot.mappings.iter().any(|mapping| (mapping.start..mapping.end).contains(&address)));
    }
    assert_eq!(snapshot.threads.len(), threads, "{way}");
    for thread in &snapshot.threads {
        let sp = thread.registers.sp;
        assert!(snapshot.mappings.iter().any(|mapping| (mapping.start..=mapping.end).contains(&sp)), "{way}");
    }
    assert!(target.child.try_wait().unwrap().is_none_or(|status| status.stopped_signal().is_some()), "{way}");
    drop(snapshot);
    let (_, status) = target.finish();
    assert_eq!((status.code(), status.signal()), (code, signal), "{way}");
}

#[test]
fn all_memory_and_threads_are_there_whichever_way_it_ends() {
    ends("return", Some(7), None, 4);
    ends("_exit", Some(8), None, 4);
    ends("abort", None, Some(libc::SIGABRT), 4);
    ends("term", None, Some(libc::SIGTERM), 4);
    ends("leader", Some(0), None, 1);
}

#[test]
fn an_exec_goes_through_and_the_new_program_is_held() {
    ends("exec", Some(9), None, 1);
}

#[test]
fn a_hold_that_is_dropped_lets_it_end_unseen() {
    let mut target = Target::start("exiting", &["return"]);
    drop(hold_at_exit(target.pid()).unwrap());
    target.ask("go");
    let (_, status) = target.finish();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn a_process_that_does_not_end_runs_on() {
    let mut target = Target::start("exiting", &["return"]);
    let hold = hold_at_exit(target.pid()).unwrap();
    assert!(matches!(hold.wait_for_exit(Duration::from_millis(20)), Err(Error::NotEnded { .. })));
    target.ask("go");
    let (_, status) = target.finish();
    assert_eq!(status.code(), Some(7));
}

#[test]
fn it_is_held_although_another_thread_of_the_tracer_waits_for_it() {
    let mut target = Target::start("exiting", &["return"]);
    let pid = target.pid();
    let hold = hold_at_exit(pid).unwrap();
    let waiter = std::thread::spawn(move || {
        loop {
            let mut status = 0;
            // SAFETY: status is a live int.
            let result = unsafe { libc::waitpid(pid as i32, &raw mut status, 0) };
            if result != pid as i32 || !libc::WIFSTOPPED(status) {
                return (result, status);
            }
        }
    });
    target.ask("go");
    let snapshot = hold.wait_for_exit(PATIENCE).unwrap();
    assert_eq!(snapshot.threads.len(), 4);
    drop(snapshot);
    let (result, status) = waiter.join().unwrap();
    assert_eq!((result, libc::WEXITSTATUS(status)), (pid as i32, 7));
}

#[test]
fn a_killed_process_ends_in_spite_of_the_hold() {
    let mut target = Target::start("exiting", &["return"]);
    let hold = hold_at_exit(target.pid()).unwrap();
    target.child.kill().unwrap();
    // Whether there was something to see is the kernel's choice.
    drop(hold.wait_for_exit(PATIENCE));
    let status = loop {
        let status = target.child.wait().unwrap();
        if status.stopped_signal().is_none() {
            break status;
        }
    };
    assert_eq!(status.signal(), Some(libc::SIGKILL));
}
