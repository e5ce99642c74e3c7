//! `leakscope leaks CORE`: what a core file tells is what the process itself told, and what is no core file, or not a whole
//! one, is refused with the reason.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::leaks::{Amount, Leaks};
use crate::support::need_program;
use crate::support::process::{Outcome, run};
use crate::support::server::{LeakServer, Size, program, scan};
use crate::support::skip;
use crate::support::traced::leakscope;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The way to run a command so that a core file of it may be written.
const WITH_CORE: [&str; 4] = ["sh", "-c", "ulimit -c unlimited; exec \"$@\"", "sh"];

/// Whether the kernel writes core files into the working directory of the process, under a plain name.
fn kernel_writes_cores() -> bool {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    let unlimited = run(Command::new("sh").args(["-c", "ulimit -c unlimited"])).status.success();
    unlimited && !pattern.trim().is_empty() && !pattern.contains(['|', '/', '%'])
}

/// The core file in a directory.
fn core_in(directory: &Path) -> PathBuf {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let is_core = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("core");
    entries.into_iter().find(is_core).expect("a core file")
}

fn leaks(core: &Path, options: &[&str]) -> Outcome {
    run(leakscope(["leaks"]).arg(core).args(options))
}

/// The core file tells what the process itself did.
fn same(core: &Leaks, live: &Leaks) {
    assert_eq!((core.source.snapshot.as_str(), core.pause_ms), ("core", None));
    assert_eq!(core.source.allocator, live.source.allocator);
    assert_eq!((core.process.pid, &core.process.command), (live.process.pid, &live.process.command));
    assert_eq!(core.summary, live.summary);
    assert!(core.records == live.records, "{:?}\n{:?}", core.records, live.records);
}

#[test]
fn the_kernels_core_file_tells_the_same_as_the_process_before() {
    if !kernel_writes_cores() {
        return skip("kernel.core_pattern is no plain name");
    }
    let directory = Directory::new();
    let moved = directory.join("elsewhere");
    let original = directory.join("leak_server");
    std::fs::copy(program(), &original).unwrap();
    let server = LeakServer::start_as(&original, &WITH_CORE, directory.path(), Size::SMALL);
    let live = server.scan(&[]);
    server.check(&live);
    server.ends_by(libc::SIGABRT);
    let core = core_in(directory.path());
    let name = core.to_str().unwrap();
    let found = scan(name, &[]);
    same(&found, &live);
    assert!(!found.has_note("not there"), "{:?}", found.notes);
    // Without the program, or with another one, a note says so; given where it is now, all is well.
    std::fs::rename(&original, &moved).unwrap();
    let without = scan(name, &[]);
    same(&without, &live);
    assert!(without.has_note("not there") && without.has_note("leak_server"), "{:?}", without.notes);
    let other = scan(name, &["--exe", "/bin/true"]);
    assert!(other.has_note("changed") && other.has_note("build id"), "{:?}", other.notes);
    let with = scan(name, &["--exe", moved.to_str().unwrap()]);
    same(&with, &live);
    assert_eq!(with.notes, found.notes);
    refuses(&leaks(&core, &["--exe", "/nonexistent/program"]), &["/nonexistent/program"]);
    cut_short(&core, &directory);
    foreign(&core, &directory);
}

#[test]
fn gdbs_core_file_tells_the_same_as_the_process_before() {
    let gdb = need_program("gdb", "gdb");
    let directory = Directory::new();
    let server = LeakServer::start(Size::SMALL);
    let live = server.scan(&[]);
    server.check(&live);
    let core = directory.join("core");
    let dump = run(Command::new(gdb)
        .args(["--batch", "-nx", "-p", &server.pid().to_string(), "-ex"])
        .arg(format!("generate-core-file {}", core.display())));
    assert!(core.exists(), "{}{}", dump.out(), dump.err());
    same(&scan(core.to_str().unwrap(), &[]), &live);
    // gdb, unlike leakscope, has interrupted its calls.
    server.ends_by(libc::SIGKILL);
}

#[test]
fn the_core_file_of_a_crashed_program_shows_what_it_had_lost() {
    if !kernel_writes_cores() {
        return skip("kernel.core_pattern is no plain name");
    }
    let program = compile("crashes.cpp", &["-O1", "-std=c++20"]);
    let directory = Directory::new();
    let crashed =
        run(Command::new(WITH_CORE[0]).args(&WITH_CORE[1..]).arg(&program).current_dir(directory.path()));
    assert_eq!(crashed.code(), 128 + libc::SIGSEGV, "{}", crashed.err());
    let lost: Amount = serde_json::from_slice(&crashed.stdout).unwrap();
    let leaks = scan(core_in(directory.path()).to_str().unwrap(), &[]);
    assert_eq!(leaks.summary.definite.blocks, lost.blocks, "{:#?}", leaks.records);
    assert_eq!(leaks.summary.definite.bytes, lost.bytes);
    assert_eq!((leaks.summary.indirect.blocks, leaks.summary.possible.blocks), (lost.blocks, 0));
}

/// An error of leakscope's own that has these words.
fn refuses(outcome: &Outcome, words: &[&str]) {
    assert_eq!((outcome.code(), outcome.out().as_str()), (125, ""), "{}", outcome.err());
    for word in words {
        assert!(outcome.err().contains(word), "no {word:?} in: {}", outcome.err());
    }
}

/// Every length is told from the whole.
fn cut_short(core: &Path, directory: &Directory) {
    let whole = std::fs::read(core).unwrap();
    let cut = directory.join("cut");
    for length in [0, 3, 30, 64, 100, 5000, 1_000_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cut, &whole[..length]).unwrap();
        refuses(&leaks(&cut, &[]), &["cannot read core file", "cut"]);
    }
}

/// Another machine's core files.
fn foreign(core: &Path, directory: &Directory) {
    let whole = std::fs::read(core).unwrap();
    let changed = directory.join("changed");
    // Offsets of the ELF header: class, byte order, type, machine.
    for (offset, value, words) in
        [(18, 183, "aarch64"), (4, 1, "32-bit"), (5, 2, "big-endian"), (16, 2, "not a core file")]
    {
        let mut bytes = whole.clone();
        bytes[offset] = value;
        std::fs::write(&changed, bytes).unwrap();
        refuses(&leaks(&changed, &[]), &["cannot read core file", words]);
    }
}

#[test]
fn what_is_no_core_file_is_refused_with_the_reason() {
    let directory = Directory::new();
    let file = |name: &str, content: &[u8]| {
        let path = directory.join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    refuses(
        &leaks(&file("text", b"somebody mistook this for a core file\n"), &[]),
        &["text", "not an ELF file"],
    );
    refuses(&leaks(&file("empty", b""), &[]), &["empty"]);
    refuses(&leaks(&file("packed", b"\x28\xb5\x2f\xfd\0\0\0\0"), &[]), &["packed", "uncompress"]);
    refuses(&leaks(&program(), &[]), &["not a core file", "--exe"]);
    refuses(&leaks(directory.path(), &[]), &["not a regular file"]);
    refuses(&leaks(Path::new("/dev/zero"), &[]), &["/dev/zero", "not a regular file"]);
    let missing = directory.join("missing");
    refuses(&leaks(&missing, &[]), &["missing", "neither a process's number nor a file"]);
    // A fifo would make it wait for ever.
    let fifo = directory.join("fifo");
    assert!(run(Command::new("mkfifo").arg(&fifo)).status.success());
    refuses(&leaks(&fifo, &[]), &["fifo", "not a regular file"]);
}
