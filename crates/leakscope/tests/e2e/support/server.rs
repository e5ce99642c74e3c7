//! `leak_server` of the target programs: a process that nobody prepared, and its own account of what it lost.

use super::build::compile;
use super::leaks::{Amount, Kind, Leaks};
use super::process::{kill, run, running, wait, wait_until};
use super::traced::leakscope;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// How large it is, and what it does when it is ready.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub live: u64,
    pub threads: u64,
    pub busy: bool,
    pub lost: u64,
}

impl Size {
    /// Small, and at rest.
    pub const SMALL: Size = Size { live: 20_000, threads: 4, busy: false, lost: 1000 };
    /// The same, busy.
    pub const BUSY: Size = Size { threads: 2, busy: true, ..Size::SMALL };

    fn arguments(self) -> [String; 4] {
        let mode = if self.busy { "busy" } else { "rest" };
        [self.live.to_string(), self.threads.to_string(), mode.to_owned(), self.lost.to_string()]
    }
}

/// A block that the server lost, by its own account.
#[derive(Debug, Deserialize)]
pub struct Lost {
    pub address: u64,
    pub size: u64,
    pub kind: Kind,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    Ready(Ready),
    Ended(Ended),
}

#[derive(Debug, Deserialize)]
struct Ready {
    live_blocks: u64,
    lost_blocks: u64,
    lost_bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Ended {
    operations: u64,
}

/// The server, ready. It ends with its test.
pub struct LeakServer {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    pid: u32,
    size: Size,
    /// What it lost.
    pub lost: Vec<Lost>,
}

/// The program.
pub fn program() -> PathBuf {
    compile("leak_server.c", &["-O2"])
}

impl LeakServer {
    /// Starts it by itself.
    pub fn start(size: Size) -> LeakServer {
        LeakServer::start_by::<&str>(&[], size)
    }

    /// Starts it by a command that takes it as its last arguments.
    pub fn start_by<S: AsRef<OsStr>>(prefix: &[S], size: Size) -> LeakServer {
        LeakServer::start_as(&program(), prefix, Path::new("."), size)
    }

    /// Starts a copy of it in a directory.
    pub fn start_as<S: AsRef<OsStr>>(
        program: &Path,
        prefix: &[S],
        directory: &Path,
        size: Size,
    ) -> LeakServer {
        let mut words: Vec<OsString> = prefix.iter().map(|word| word.as_ref().to_owned()).collect();
        words.push(program.into());
        words.extend(size.arguments().map(OsString::from));
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lost: Vec<Lost> = Vec::new();
        let ready: Ready = loop {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            if line.starts_with("{\"address\"") {
                lost.push(serde_json::from_str(&line).unwrap());
                continue;
            }
            match serde_json::from_str(&line) {
                Ok(Line::Ready(ready)) => break ready,
                _ => panic!("{words:?} does not get ready: {line:?}, {:?}", child.try_wait()),
            }
        };
        assert_eq!((ready.live_blocks, ready.lost_blocks), (size.live, size.lost));
        assert_eq!(ready.lost_bytes, lost.iter().map(|block| block.size).sum::<u64>());
        let pid = running(child.id(), program)[0];
        let server = LeakServer { child, stdin, stdout, pid, size, lost };
        server.comes_to_rest();
        server
    }

    /// Waits until its threads, unless they are busy, wait in their calls.
    fn comes_to_rest(&self) {
        if !self.size.busy {
            let at_rest = |(_, state): &(u32, char)| *state == 'S';
            wait_until("a server at rest", || self.threads().iter().all(at_rest).then_some(()));
        }
    }

    /// Its pid, as the test sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The pid of what the test started: itself, or the first program before it.
    pub fn started(&self) -> u32 {
        self.child.id()
    }

    /// Its threads and their states.
    pub fn threads(&self) -> Vec<(u32, char)> {
        super::process::threads(self.pid)
    }

    /// Checks that nothing of leakscope is left in it: no child, no tracer, no stopped thread.
    pub fn is_let_go(&self) {
        assert_eq!(super::process::children_of(self.pid), [] as [u32; 0], "children are left");
        self.runs();
    }

    /// Checks that it is not traced and no thread of it stands still, or will be so in a moment.
    pub fn runs(&self) {
        wait_until("a process without a tracer and stopped threads", || {
            let free = super::process::tracer_of(self.pid) == 0;
            let stopped = |(_, state): &(u32, char)| matches!(state, 't' | 'T');
            (free && !self.threads().iter().any(stopped)).then_some(())
        });
    }

    /// Lets it end. Its own checks must pass: of all that it held, and that none of its calls was interrupted.
    pub fn end(mut self) {
        self.stdin = None;
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        let status = wait(&mut self.child, "the server's end");
        assert_eq!(status.code(), Some(0), "the server's own checks: {rest}");
        match serde_json::from_str(&rest) {
            Ok(Line::Ended(ended)) => assert_eq!(ended.operations > 0, self.size.busy),
            _ => panic!("{rest:?}"),
        }
    }

    /// Waits for its end after a signal that ends it.
    pub fn ends_by(mut self, signal: i32) {
        kill(self.pid, signal);
        wait(&mut self.child, "the server's end");
    }

    /// Scans it, as JSON with records of every kind.
    pub fn scan(&self, options: &[&str]) -> Leaks {
        scan(&self.pid.to_string(), options)
    }

    /// Checks what was found against the server's account: at least 99% of what it lost, and no other block, or at most
    /// one for each thread that was busy.
    pub fn check(&self, leaks: &Leaks) {
        let found: Amount = Kind::LOST.iter().map(|&kind| leaks.total(kind)).sum();
        let most = self.size.lost + if self.size.busy { self.size.threads } else { 0 };
        assert!(
            found.blocks * 100 >= self.size.lost * 99 && found.blocks <= most,
            "{} of {} lost blocks found: {:?}",
            found.blocks,
            self.size.lost,
            leaks.summary
        );
        assert!(leaks.summary.reachable.blocks >= self.size.live, "{:?}", leaks.summary);
        let lost: BTreeMap<u64, &Lost> = self.lost.iter().map(|block| (block.address, block)).collect();
        let mut strangers = 0;
        for record in leaks.records.iter().filter(|record| record.kind != Kind::Reachable) {
            for address in &record.addresses {
                match lost.get(address) {
                    Some(block) => assert!(
                        block.size <= record.largest_bytes && record.kind.may_be(block.kind),
                        "{block:?} in {record:?}"
                    ),
                    None => strangers += 1,
                }
            }
        }
        assert!(strangers + self.size.lost <= most, "{strangers} live blocks are reported");
        if !self.size.busy && leaks.source.blocks == "allocator" {
            self.check_size_classes(leaks);
        }
    }

    /// Up to each size there are no more lost blocks than the server lost. glibc may give more than it must.
    fn check_size_classes(&self, leaks: &Leaks) {
        let lost_kinds = || leaks.records.iter().filter(|record| Kind::LOST.contains(&record.kind));
        for most in lost_kinds().map(|record| record.largest_bytes) {
            let found: u64 =
                lost_kinds().filter(|record| record.largest_bytes <= most).map(|record| record.blocks).sum();
            let lost = self.lost.iter().filter(|block| usable(block.size) <= most).count() as u64;
            assert!(
                found <= lost,
                "{found} lost blocks of up to {most} bytes are reported, there are {lost}"
            );
        }
    }
}

/// Bytes that glibc gives for so many, at least.
fn usable(size: u64) -> u64 {
    ((size + 8).next_multiple_of(16) - 8).max(24)
}

/// What leakscope finds in a process or core file that loses memory, as JSON with records of every kind.
pub fn scan(target: &str, options: &[&str]) -> Leaks {
    let outcome = run(leakscope(["leaks", "--json", "--show-leak-kinds=all"]).args(options).arg(target));
    assert_eq!(outcome.code(), 1, "{}{}", outcome.out(), outcome.err());
    assert_eq!(outcome.err(), "");
    let leaks = Leaks::parse(&outcome.stdout);
    assert_eq!(leaks.outcome, "leaks");
    leaks
}

impl Drop for LeakServer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            for pid in super::process::tree_of(self.child.id()) {
                kill(pid, libc::SIGKILL);
            }
            let _ = self.child.wait();
        }
    }
}
