//! `cargo xtask test` and `cargo xtask soak`: everything a change must pass.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{packages, workspace};

/// Options of `cargo xtask test` and `cargo xtask soak`.
#[derive(clap::Args)]
pub struct TestArgs {
    /// Handed to `cargo test`, for instance a test's name
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test_arguments: Vec<String>,
}

/// How long the tests run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// As on every change.
    Short,
    /// With the number of kills and corrupt files that a release deserves.
    Long,
}

/// What the long form sets; the tests read these and default to short runs.
const LONG: &[(&str, &str)] = &[
    ("LEAKSCOPE_KILL_ROUNDS", "200"),
    ("LEAKSCOPE_READER_ROUNDS", "3000"),
    ("LEAKSCOPE_SCAN_ROUNDS", "1000"),
    ("LEAKSCOPE_SHAPES", "each"),
    ("PROPTEST_CASES", "4096"),
];

/// Runs all checks, even after one failed, and says whether all passed.
///
/// # Errors
/// If a check could not be run at all.
pub fn run(args: &TestArgs, length: Length) -> Result<bool> {
    let root = workspace::root()?;
    packages::require(&root.join("xtask/test-packages.txt"))?;
    require_components(&root)?;

    let formatted = step(workspace::cargo(&root).args(["fmt", "--all", "--check"]))?;
    let lint = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    let linted = step(workspace::cargo(&root).args(lint))?;

    let mut tests = workspace::cargo(&root);
    tests.args(["test", "--workspace", "--no-fail-fast"]).args(&args.cargo_test_arguments);
    if length == Length::Long {
        tests.envs(LONG.iter().copied());
    }
    let (finished, mut tally) = run_tests(&mut tests)?;
    if !finished && tally.failed == 0 {
        // Did not compile, or a test binary died before it could say what failed.
        tally.failed = 1;
    }
    for (passed, what) in [(formatted, "formatting (run `cargo fmt`)"), (linted, "clippy")] {
        if !passed {
            eprintln!("xtask: failed: {what}");
        }
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(formatted && linted && finished && tally.failed == 0)
}

/// Installs rustfmt and clippy where a minimal toolchain lacks them.
fn require_components(root: &Path) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let present = workspace::cargo(root)
            .args([subcommand, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if present {
            continue;
        }
        let added = Command::new("rustup").args(["component", "add", component]).current_dir(root).status();
        if !added.is_ok_and(|status| status.success()) {
            bail!("cargo {subcommand} is missing; install it (`rustup component add {component}`)");
        }
    }
    Ok(())
}

fn step(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    Ok(status.success())
}

/// Runs `cargo test`, passing its output through while summing the results.
fn run_tests(command: &mut Command) -> Result<(bool, Tally)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo test")?;
    let mut tally = Tally::default();
    let mut output = BufReader::new(child.stdout.take().context("cargo test has no stdout")?);
    let mut line = Vec::new();
    while output.read_until(b'\n', &mut line).context("cannot read cargo test's output")? > 0 {
        tally.add(&String::from_utf8_lossy(&line));
        std::io::stdout().write_all(&line)?;
        line.clear();
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    Ok((status.success(), tally))
}

/// Results summed over test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
}

impl Tally {
    /// Adds a binary's closing line, `test result: ok. 3 passed; 0 failed; ...`; other lines are ignored.
    fn add(&mut self, line: &str) {
        let Some(counts) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else {
            return;
        };
        for count in counts.1.split(';') {
            let mut words = count.split_whitespace();
            let Some(number) = words.next().and_then(|word| word.parse::<u64>().ok()) else { continue };
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_all_binaries_are_summed_and_other_output_is_not() {
        let output = "\
running 3 tests
test 7 passed; 7 failed ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s
test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
   Doc-tests leakscope
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.add(line));
        assert_eq!(tally, Tally { passed: 13, failed: 2 });
    }
}
