//! A target program with its expectations: runs it natively and traced, compares all that can be seen, and checks the marks.

use super::build;
use super::marks::{contradictions, differences, marks_of};
use super::process::Outcome;
use super::report::Report;
use super::traced::{Run, Traced};
use std::ffi::{OsStr, OsString};

/// A target program to be run.
pub struct Case {
    source: String,
    libraries: Vec<String>,
    sources: Vec<String>,
    arguments: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    builds: Vec<Vec<&'static str>>,
    status: i32,
    checks_main: bool,
}

/// What a case gave, to look at it more closely.
pub struct Ran {
    /// The untraced run.
    pub native: Outcome,
    /// The traced run.
    pub traced: Traced,
    /// The names of the sources whose marks count.
    pub sources: Vec<String>,
}

/// The target program `source`.
pub fn case(source: &str) -> Case {
    let builds = match source.rsplit_once('.') {
        Some((_, "rs")) => {
            vec![vec!["-C", "opt-level=0"], vec!["-C", "opt-level=2", "-C", "codegen-units=1"]]
        }
        Some((_, "cpp")) => vec![vec!["-O0", "-std=c++20"]],
        _ => vec![vec!["-O0"], vec!["-O2"]],
    };
    Case {
        source: source.to_owned(),
        libraries: Vec::new(),
        sources: vec![source.to_owned()],
        arguments: Vec::new(),
        env: Vec::new(),
        builds,
        status: 0,
        checks_main: true,
    }
}

impl Case {
    /// Builds it with these flags only.
    pub fn flags(mut self, flags: &[&'static str]) -> Case {
        self.builds = vec![flags.to_vec()];
        self
    }

    /// Gives it this argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Case {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Gives it the path of a library made of this source, as an argument.
    pub fn library(mut self, source: &str) -> Case {
        self.libraries.push(source.to_owned());
        self.sources.push(source.to_owned());
        self
    }

    /// Counts the marks of another source too.
    pub fn source(mut self, source: &str) -> Case {
        self.sources.push(source.to_owned());
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Case {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// The exit status it must end with, 128 + N for signal N.
    pub fn status(mut self, status: i32) -> Case {
        self.status = status;
        self
    }

    /// Leaves the command's own report to the test.
    pub fn report_unchecked(mut self) -> Case {
        self.checks_main = false;
        self
    }

    /// Builds and runs it in each way, and checks all that holds for every program. Gives each build's result.
    pub fn check(self) -> Vec<Ran> {
        let ran = self.builds.iter().map(|flags| self.check_build(flags)).collect();
        if let Some(flags) = self.builds.last() {
            self.check_sampled(flags);
        }
        ran
    }

    fn run(&self, flags: &[&str]) -> Run {
        let mut command = vec![build::compile(&self.source, flags).into_os_string()];
        for library in &self.libraries {
            let flags = [flags, &["-shared", "-fPIC"]].concat();
            command.push(build::compile(library, &flags).into_os_string());
        }
        command.extend(self.arguments.iter().cloned());
        let mut run = Run::new(&command);
        for (name, value) in &self.env {
            run = run.env(name, value);
        }
        run
    }

    /// The same with about every second allocation sampled: the program must not notice, and the sample must not
    /// contradict the marks.
    fn check_sampled(&self, flags: &[&str]) {
        let what = format!("{} {flags:?} {:?} sampled", self.source, self.arguments);
        let run = self.run(flags).sampled(64, 1);
        let native = run.natively();
        let traced = run.traced();
        let outcome = &traced.outcome;
        assert_eq!(outcome.code(), self.status, "{what}: {}{}", outcome.out(), outcome.err());
        assert_eq!(outcome.out(), native.out(), "{what}: standard output");
        assert!(outcome.stderr.starts_with(&native.stderr), "{what}: standard error {}", outcome.err());
        if self.checks_main {
            let report = traced.report();
            assert_eq!(report.sampling.as_ref().map(|sampling| sampling.interval_bytes), Some(64), "{what}");
            assert_eq!(report.totals.missed_events, 0, "{what}: missed events");
            let found = report.found(&self.sources);
            let contradictions = contradictions(&marks_of(&self.sources, "main"), &found);
            assert!(contradictions.is_empty(), "{what}:\n{}", contradictions.join("\n"));
        }
    }

    fn check_build(&self, flags: &[&str]) -> Ran {
        let run = self.run(flags);
        let what = format!("{} {flags:?} {:?}", self.source, self.arguments);
        let native = run.natively();
        assert_eq!(native.code(), self.status, "{what} natively: {}{}", native.out(), native.err());
        let traced = run.traced();
        let outcome = &traced.outcome;
        assert_eq!(outcome.code(), self.status, "{what} traced: {}{}", outcome.out(), outcome.err());
        assert_eq!(outcome.out(), native.out(), "{what}: standard output");
        assert!(outcome.stderr.starts_with(&native.stderr), "{what}: standard error {}", outcome.err());
        let ran = Ran { native, traced, sources: self.sources.clone() };
        if self.checks_main {
            let report = ran.traced.report();
            assert_eq!(report.totals.missed_events, 0, "{what}: missed events");
            ran.check_marks(&report, "main", &what);
        }
        ran
    }
}

impl Ran {
    /// Checks the marks of the process named `process` against its report.
    pub fn check_marks(&self, report: &Report, process: &str, what: &str) {
        let found = report.found(&self.sources);
        let differences = differences(&marks_of(&self.sources, process), &found, false);
        assert!(
            differences.is_empty(),
            "{what}, process {process}:\n{}\nmissed events: {}\nleakscope said:\n{}",
            differences.join("\n"),
            report.totals.missed_events,
            self.traced.outcome.err()
        );
    }

    /// The other processes' reports that have something booked to a line marked for `process`, checked against its marks.
    pub fn check_others(&self, process: &str, expected: usize) -> Vec<Report> {
        let marks = marks_of(&self.sources, process);
        let reports: Vec<Report> = self
            .traced
            .other_reports()
            .into_iter()
            .filter(|report| {
                let found = report.found(&self.sources);
                marks.iter().any(|(place, expected)| {
                    *expected != super::marks::Expected::Any
                        && found.get(place).is_some_and(|found| found.heap_allocated.1 > 0)
                })
            })
            .collect();
        assert_eq!(
            reports.len(),
            expected,
            "number of reports of processes called {process}; heap files: {:?}",
            self.traced.other_heaps()
        );
        for report in &reports {
            let mut found = report.found(&self.sources);
            // What it inherited from its parent stands at lines of the parent's.
            found.retain(|place, _| marks.contains_key(place));
            let differences = differences(&marks, &found, false);
            assert!(differences.is_empty(), "a process called {process}:\n{}", differences.join("\n"));
        }
        reports
    }
}
