//! How a process is frozen if nobody says how.

mod support;

use leakscope_target::{Error, Mode, SnapshotOptions, Source, snapshot};
use std::path::Path;
use support::{Target, children};

fn options(cgroups: &Path) -> SnapshotOptions {
    SnapshotOptions { cgroup_root: cgroups.to_owned(), max_pause: None, ..SnapshotOptions::default() }
}

/// Control groups in which the process's own group, of either version, has these files.
fn cgroups(pid: u32, files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for line in std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next().unwrap(), fields.next().unwrap().trim_start_matches('/'));
        for version in ["", "memory", "freezer"] {
            let here = if controllers.is_empty() { version.is_empty() } else { controllers == version };
            if here {
                let directory = root.path().join(version).join(path);
                std::fs::create_dir_all(&directory).unwrap();
                for (name, text) in files {
                    std::fs::write(directory.join(name), text).unwrap();
                }
            }
        }
    }
    root
}

#[test]
fn a_small_process_is_copied() {
    let target = Target::start("counter", &["64"]);
    let options = SnapshotOptions { max_pause: None, ..SnapshotOptions::default() };
    let snapshot = snapshot(target.pid(), &options).unwrap();
    assert_eq!((snapshot.source, snapshot.notes.len()), (Source::Fork, 0), "{:?}", snapshot.notes);
}

#[test]
fn a_process_with_little_room_in_its_memory_group_is_stopped() {
    let mut target = Target::start("counter", &["64"]);
    let room = |bytes: u64| {
        let usage = (100 << 20).to_string();
        let limit = ((100 << 20) + bytes).to_string();
        cgroups(
            target.child.id(),
            &[
                ("memory.max", &limit),
                ("memory.current", &usage),
                ("memory.limit_in_bytes", &limit),
                ("memory.usage_in_bytes", &usage),
            ],
        )
    };
    let (little, much) = (room(8 << 20), room(200 << 20));
    let taken = snapshot(target.pid(), &options(little.path())).unwrap();
    assert_eq!(taken.source, Source::Stopped);
    assert!(taken.notes[0].contains("room for 8 MiB"), "{:?}", taken.notes);
    drop(taken);
    assert_eq!(snapshot(target.pid(), &options(much.path())).unwrap().source, Source::Fork);
    // Standing still for all of 64 MiB takes longer than is allowed by default.
    let limited =
        SnapshotOptions { max_pause: Some(std::time::Duration::from_millis(10)), ..options(little.path()) };
    assert!(matches!(snapshot(target.pid(), &limited), Err(Error::PauseTooLong { .. })));
    target.ask("value");
}

#[test]
fn a_frozen_process_is_not_touched() {
    let target = Target::start("server", &["read"]);
    let frozen =
        cgroups(target.pid(), &[("freezer.state", "FROZEN\n"), ("cgroup.events", "populated 1\nfrozen 1\n")]);
    let error = snapshot(target.pid(), &options(frozen.path())).err().unwrap();
    assert!(matches!(error, Error::Frozen { .. }), "{error}");
}

#[test]
fn a_heap_of_huge_pages_is_not_copied() {
    let mut target = Target::start("many", &["huge"]);
    let rollup = leakscope_proc::rollup(Path::new("/proc"), target.pid()).unwrap();
    if rollup.anonymous_huge_bytes < 100 << 20 {
        eprintln!("not tested: the kernel gives no huge pages ({} bytes)", rollup.anonymous_huge_bytes);
        return;
    }
    let options = SnapshotOptions { max_pause: None, ..SnapshotOptions::default() };
    let taken = snapshot(target.pid(), &options).unwrap();
    assert_eq!(taken.source, Source::Stopped);
    assert!(taken.notes[0].contains("huge pages"), "{:?}", taken.notes);
    drop(taken);
    // On demand it is.
    let demanded = SnapshotOptions { mode: Mode::Fork, ..options };
    assert_eq!(snapshot(target.pid(), &demanded).unwrap().source, Source::Fork);
    assert_eq!(target.ask("report"), "0");
    assert_eq!(children(target.pid()), []);
}
