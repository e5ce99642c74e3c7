//! Runs a command under leakscope.

use super::directory::Directory;
use super::process::{Outcome, run, run_with_input};
use super::report::Report;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program under test.
pub const LEAKSCOPE: &str = env!("CARGO_BIN_EXE_leakscope");

/// `leakscope` with `arguments`.
pub fn leakscope<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(LEAKSCOPE);
    command.args(arguments);
    command
}

/// A command that ran under `leakscope run`.
pub struct Traced {
    /// How it ended.
    pub outcome: Outcome,
    /// The heap file of the command itself.
    pub heap: PathBuf,
    /// The directory that holds it and nothing else of importance.
    pub directory: Directory,
}

/// How to run a command under leakscope.
pub struct Run {
    directory: Directory,
    command: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    options: Vec<OsString>,
    input: Vec<u8>,
    working_directory: Option<PathBuf>,
}

impl Run {
    /// `command` is the program and its arguments.
    pub fn new<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Run {
        Run {
            directory: Directory::new(),
            command: command.into_iter().map(|word| word.as_ref().to_owned()).collect(),
            env: Vec::new(),
            options: Vec::new(),
            input: Vec::new(),
            working_directory: None,
        }
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives `leakscope run` this option.
    pub fn option(mut self, option: impl AsRef<OsStr>) -> Run {
        self.options.push(option.as_ref().to_owned());
        self
    }

    /// Has allocations sampled, one per `interval` bytes, and the same ones each time for the same `seed`.
    pub fn sampled(self, interval: u64, seed: u64) -> Run {
        self.option(format!("--sample={interval}")).env("LEAKSCOPE_SEED", seed.to_string())
    }

    /// Gives it something to read.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Run {
        self.input = input.into();
        self
    }

    /// Runs it in this directory.
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Run {
        self.working_directory = Some(directory.into());
        self
    }

    /// Runs it without leakscope.
    pub fn natively(&self) -> Outcome {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        self.surroundings(&mut command);
        run_with_input(&mut command, &self.input)
    }

    /// Runs it under leakscope.
    pub fn traced(self) -> Traced {
        let heap = self.directory.join("heap");
        let json = self.directory.join("report.json");
        let mut command = leakscope(["run", "-o"]);
        command.arg(&heap);
        let mut option = OsString::from("--json=");
        option.push(&json);
        command.arg(option).args(&self.options).arg("--").args(&self.command);
        self.surroundings(&mut command);
        let outcome = run_with_input(&mut command, &self.input);
        Traced { outcome, heap, directory: self.directory }
    }

    fn surroundings(&self, command: &mut Command) {
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        if let Some(directory) = &self.working_directory {
            command.current_dir(directory);
        }
    }
}

impl Traced {
    /// The report that `run --json=FILE` wrote.
    pub fn report(&self) -> Report {
        let path = self.directory.join("report.json");
        let json = std::fs::read(&path).unwrap_or_else(|error| {
            panic!("no report ({error}); leakscope said:\n{}", self.outcome.err());
        });
        Report::parse(&json)
    }

    /// The heap files of the other processes, and of earlier programs of the command's own process.
    pub fn other_heaps(&self) -> Vec<PathBuf> {
        let mut heaps: Vec<PathBuf> = std::fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("heap."))
            .collect();
        heaps.sort();
        heaps
    }

    /// The reports of all those.
    pub fn other_reports(&self) -> Vec<Report> {
        self.other_heaps().iter().map(|heap| report_of(heap)).collect()
    }

    /// The reports of every heap file, the command's own first.
    pub fn all_reports(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        if self.heap.exists() {
            reports.push(report_of(&self.heap));
        }
        reports.extend(self.other_reports());
        reports
    }

    /// What leakscope itself said: the part of standard error after the program's own.
    pub fn said(&self, native: &Outcome) -> String {
        let own = self.outcome.stderr.strip_prefix(native.stderr.as_slice()).unwrap_or_else(|| {
            panic!(
                "the program's standard error differs:\n{}\n--- natively:\n{}",
                self.outcome.err(),
                native.err()
            )
        });
        String::from_utf8_lossy(own).into_owned()
    }
}

/// The report that `leakscope report` gives of a heap file.
pub fn report_of(heap: &Path) -> Report {
    let outcome = run(leakscope(["report", "--format", "json"]).arg(heap));
    assert_eq!(outcome.code(), 0, "report of {}:\n{}", heap.display(), outcome.err());
    Report::parse(&outcome.stdout)
}
