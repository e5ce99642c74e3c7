//! Runs a command under valgrind's memcheck and reads what it found unfreed at the end.

use super::directory::Directory;
use super::leaks::{Amount, Kind};
use super::marks::{Place, is_source};
use super::process::{Outcome, run};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// One loss record.
#[derive(Debug)]
pub struct Record {
    pub kind: Kind,
    /// Of the record's own blocks, without what hangs off them.
    pub direct: Amount,
    /// Innermost first.
    pub stack: Vec<Frame>,
}

#[derive(Debug)]
pub struct Frame {
    pub function: Option<String>,
    pub place: Option<Place>,
}

impl Record {
    /// The innermost place in one of `sources`.
    pub fn place(&self, sources: &[String]) -> Option<Place> {
        self.stack.iter().find_map(|frame| {
            let (file, line) = frame.place.as_ref()?;
            let source = sources.iter().find(|source| is_source(file, source))?;
            Some((source.clone(), *line))
        })
    }

    /// Whether a function of this name is on the stack.
    pub fn passes_through(&self, function: &str) -> bool {
        self.stack.iter().any(|frame| frame.function.as_deref() == Some(function))
    }
}

/// The text of the first `<tag>` in `text`.
fn tag<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once(&format!("</{tag}>"))?.0)
}

/// All elements `<tag>` in `text`.
fn tags<'a>(text: &'a str, tag: &str) -> Vec<&'a str> {
    let close = format!("</{tag}>");
    text.split(&format!("<{tag}>")).skip(1).filter_map(|rest| Some(rest.split_once(&close)?.0)).collect()
}

/// The loss records of `command`, run under memcheck with these further `options`.
///
/// Fails the test if the program says that its own check failed (status 99), or memcheck did not come to its end.
pub fn memcheck<S: AsRef<OsStr> + std::fmt::Debug>(
    valgrind: &Path,
    options: &[&str],
    command: &[S],
) -> Vec<Record> {
    let directory = Directory::new();
    let outcome = run_memcheck(valgrind, options, command, &directory, "memcheck.xml");
    records(&directory.join("memcheck.xml"), &outcome)
}

/// The loss records of each child that `command` forks and prints a line `PID NAME` of, by that name.
pub fn memcheck_children<S: AsRef<OsStr> + std::fmt::Debug>(
    valgrind: &Path,
    options: &[&str],
    command: &[S],
) -> BTreeMap<String, Vec<Record>> {
    let directory = Directory::new();
    let outcome = run_memcheck(valgrind, options, command, &directory, "memcheck.%p");
    assert_eq!(outcome.code(), 0, "{command:?}: {}{}", outcome.out(), outcome.err());
    let child = |line: &str| {
        let (pid, name) = line.split_once(' ')?;
        let pid: u32 = pid.parse().ok()?;
        Some((name.to_owned(), records(&directory.join(format!("memcheck.{pid}")), &outcome)))
    };
    outcome.out().lines().filter_map(child).collect()
}

fn run_memcheck<S: AsRef<OsStr> + std::fmt::Debug>(
    valgrind: &Path,
    options: &[&str],
    command: &[S],
    directory: &Directory,
    xml: &str,
) -> Outcome {
    let outcome = run(Command::new(valgrind)
        .args(["--leak-check=full", "--show-leak-kinds=all", "--leak-resolution=high", "--num-callers=40"])
        .args(["--errors-for-leak-kinds=none", "--xml=yes", "--fair-sched=yes"])
        .arg(format!("--xml-file={}", directory.join(xml).display()))
        .args(options)
        .args(command));
    assert_ne!(outcome.code(), 99, "{command:?}: {}", outcome.out());
    outcome
}

fn records(xml: &Path, outcome: &Outcome) -> Vec<Record> {
    let said = || format!("{}: {}{}", xml.display(), outcome.out(), outcome.err());
    let text = std::fs::read_to_string(xml).unwrap_or_else(|error| panic!("{error}: {}", said()));
    assert!(text.contains("<state>FINISHED</state>"), "{}", said());
    tags(&text, "error").into_iter().filter_map(record).collect()
}

fn record(error: &str) -> Option<Record> {
    let kind = match tag(error, "kind")? {
        "Leak_DefinitelyLost" => Kind::Definite,
        "Leak_IndirectlyLost" => Kind::Indirect,
        "Leak_PossiblyLost" => Kind::Possible,
        "Leak_StillReachable" => Kind::Reachable,
        _ => return None,
    };
    let number = |text: &str| text.replace(',', "").parse::<u64>().unwrap();
    let what = tag(error, "xwhat")?;
    // "24 (16 direct, 8 indirect) bytes in 1 blocks are ..."
    let bytes = match tag(what, "text").and_then(|text| text.split_once('(')?.1.split_once(" direct")) {
        Some((direct, _)) => number(direct),
        None => number(tag(what, "leakedbytes").unwrap()),
    };
    let blocks = number(tag(what, "leakedblocks").unwrap());
    let frame = |frame: &str| Frame {
        function: tag(frame, "fn").map(str::to_owned),
        place: tag(frame, "file")
            .zip(tag(frame, "line"))
            .map(|(file, line)| (file.to_owned(), number(line) as u32)),
    };
    let stack = tags(error, "frame").into_iter().map(frame).collect();
    Some(Record { kind, direct: Amount { bytes, blocks }, stack })
}
