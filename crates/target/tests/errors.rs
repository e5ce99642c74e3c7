//! What cannot be examined is said so, and left as it is.

mod support;

use leakscope_target::{Error, LiveMemory, Mode, SnapshotOptions, Source, hold_at_exit, snapshot};
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Target, children, eventually, state};

fn options(mode: Mode) -> SnapshotOptions {
    SnapshotOptions { mode, max_pause: None, ..SnapshotOptions::default() }
}

#[test]
fn a_process_that_is_not_there() {
    assert!(matches!(snapshot(0x7fff_fff0, &options(Mode::Auto)), Err(Error::NoSuchProcess { .. })));
    assert!(matches!(hold_at_exit(0x7fff_fff0), Err(Error::NoSuchProcess { .. })));
}

#[test]
fn a_zombie() {
    let mut child = Command::new("true").spawn().unwrap();
    eventually("it ends", || state(child.id()) == 'Z');
    assert!(matches!(snapshot(child.id(), &options(Mode::Auto)), Err(Error::Zombie { .. })));
    assert!(matches!(LiveMemory::open(child.id()), Err(Error::Zombie { .. })));
    child.wait().unwrap();
}

#[test]
fn a_kernel_thread() {
    // In a container there may be none to be seen.
    let text = std::fs::read_to_string("/proc/2/comm").unwrap_or_default();
    if text.trim() == "kthreadd" {
        assert!(matches!(snapshot(2, &options(Mode::Auto)), Err(Error::KernelThread { .. })));
        assert!(matches!(LiveMemory::open(2), Err(Error::KernelThread { .. })));
    }
}

#[test]
fn a_process_that_is_traced_already_names_its_tracer() {
    let mut target = Target::start("server", &["read"]);
    let pid = target.pid();
    let taken = snapshot(pid, &options(Mode::Stop)).unwrap();
    let error = snapshot(pid, &options(Mode::Auto)).err().unwrap();
    assert!(
        matches!(&error, Error::AlreadyTraced { tracer_name, .. } if tracer_name == "leakscope-trace"),
        "{error}"
    );
    drop(taken);
    assert_eq!(target.ask("hello"), "served");
}

#[test]
fn itself() {
    let error = snapshot(std::process::id(), &options(Mode::Auto)).err().unwrap().to_string();
    assert!(error.contains("cannot trace itself"), "{error}");
}

#[test]
fn a_pause_that_would_be_too_long_is_predicted() {
    let mut target = Target::start("counter", &["64"]);
    let limited =
        SnapshotOptions { max_pause: Some(Duration::from_micros(1200)), ..SnapshotOptions::default() };
    let error = snapshot(target.pid(), &limited).err().unwrap();
    assert!(matches!(error, Error::PauseTooLong { .. }), "{error}");
    assert!(error.to_string().contains("--max-pause"));
    // It was not even touched.
    assert_eq!(leakscope_proc::status("/proc".as_ref(), target.pid()).unwrap().tracer, 0);
    target.ask("value");
}

#[test]
fn a_stopped_process_stays_stopped() {
    for (mode, name, arguments) in [
        (Mode::Fork, "server", "many"),
        (Mode::Stop, "server", "many"),
        (Mode::Fork, "server", "sleep"),
        (Mode::Stop, "server", "sleep"),
    ] {
        let mut target = Target::start(name, &[arguments]);
        let signal = |signal| {
            // SAFETY: a signal to a child of this process that has not been waited for.
            assert_eq!(unsafe { libc::kill(target.child.id() as i32, signal) }, 0);
        };
        signal(libc::SIGSTOP);
        eventually("it stops", || state(target.child.id()) == 'T');
        let taken = snapshot(target.child.id(), &options(mode)).unwrap();
        assert!(!taken.threads.is_empty());
        drop(taken);
        eventually("it is stopped again", || state(target.child.id()) == 'T');
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(state(target.child.id()), 'T', "{mode:?}");
        signal(libc::SIGCONT);
        assert_eq!(target.ask("hello"), "served", "{mode:?}");
        eventually("nothing is left", || children(target.pid()).is_empty());
    }
}

#[test]
fn another_users_process_names_the_capability() {
    // SAFETY: getuid has no preconditions.
    if unsafe { libc::getuid() } != 0 {
        return;
    }
    let target = Target::start("server", &["read"]);
    // As another user, by this program itself: the error must say what is missing.
    let own = std::env::current_exe().unwrap();
    let copy = std::env::temp_dir().join(format!("leakscope-errors-{}", std::process::id()));
    std::fs::copy(own, &copy).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["--exact", "as_another_user", "--nocapture"])
        .env("LEAKSCOPE_OTHER", target.pid().to_string())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    std::fs::remove_file(copy).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("belongs to user 0") && text.contains("CAP_SYS_PTRACE"), "{text}");
}

/// Not a test: a part of the one above.
#[test]
fn as_another_user() {
    let Ok(pid) = std::env::var("LEAKSCOPE_OTHER") else { return };
    let pid = pid.parse().unwrap();
    println!("{}", snapshot(pid, &options(Mode::Fork)).err().unwrap());
    println!("{}", LiveMemory::open(pid).err().unwrap());
}

#[test]
fn a_process_that_ends_meanwhile_is_no_disaster() {
    for _ in 0..40 {
        let mut target = Target::start("server", &["many"]);
        let pid = target.pid();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_micros(u64::from(pid) * 7919 % 6000));
            target.child.kill().unwrap();
            target.child.wait().unwrap();
        });
        match snapshot(pid, &options(Mode::Fork)) {
            Ok(taken) => {
                assert_eq!(taken.source, Source::Fork);
                drop(taken);
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        killer.join().unwrap();
    }
}
