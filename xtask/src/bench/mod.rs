//! `cargo xtask bench overhead`: what tracing costs, beside the other tools. `cargo xtask bench scan`: what a scan costs.

mod child;
mod fork;
mod heap_file;
mod latency;
mod machine;
mod programs;
mod redis;
mod scan;
mod startup;
mod stats;
mod synthetic;
mod table;
mod tool;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{packages, workspace};
use child::progress;
pub use scan::{ScanArgs, scan};
use table::{Document, Section};
use tool::{Tool, Tools};

/// Options of `cargo xtask bench overhead`.
#[derive(clap::Args)]
pub struct OverheadArgs {
    /// Few rounds: to see that everything runs, not to learn what it costs
    #[arg(long)]
    quick: bool,
    /// Count the program's own processor time in the churns, for a look while the machine is busy; waiting for locks
    /// does not show in it
    #[arg(long)]
    cpu_time: bool,
    /// Only these benchmarks; a name stands for all that begin with it (churn-1, deep, sqlite3, redis, startup, ...)
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Only these tools beside native
    #[arg(long, value_delimiter = ',', value_name = "TOOL")]
    tools: Vec<Tool>,
    /// Measure this binary and build none
    #[arg(long, value_name = "FILE")]
    leakscope: Option<PathBuf>,
}

/// What every benchmark needs.
struct Bench {
    tools: Tools,
    /// Holds the compiled workloads and a directory per run; on a disk, as a user's heap files are.
    directory: tempfile::TempDir,
    /// The churn with frame pointers.
    churn: PathBuf,
    /// The churn without.
    churn_without_frame_pointers: PathBuf,
    quick: bool,
    cpu_time: bool,
    only: Vec<String>,
}

/// Programs that take part, and how they are asked for their version.
const TOOLS: [(&str, &[&str]); 5] = [
    ("heaptrack", &["--version"]),
    ("valgrind", &["--version"]),
    ("sqlite3", &["--version"]),
    ("/usr/bin/python3", &["--version"]),
    ("redis-server", &["--version"]),
];

/// A group of benchmarks with its name; no section if `--only` leaves nothing of it.
type Group<B, S> = (&'static str, fn(&B) -> Result<S>);

/// Measures, prints the tables, and writes `bench/overhead.md` if all was measured in full.
///
/// # Errors
/// If something cannot be built or leakscope fails a run; other tools that fail leave a remark instead.
pub fn overhead(args: &OverheadArgs) -> Result<bool> {
    let root = workspace::root()?;
    packages::require(&root.join("xtask/bench-packages.txt"))?;
    let leakscope = match &args.leakscope {
        Some(path) => std::path::absolute(path)?,
        None => workspace::build_leakscope(&root)?,
    };
    let target = workspace::target_directory(&root)?.join("bench");
    std::fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let wanted = if args.tools.is_empty() { &Tool::ALL[..] } else { &args.tools };
    let bench = Bench {
        tools: Tools::find(leakscope, wanted),
        directory: tempfile::Builder::new().prefix("run-").tempdir_in(&target)?,
        churn: compile(&root, &target, "churn", "churn", &["-fno-omit-frame-pointer"])?,
        churn_without_frame_pointers: compile(
            &root,
            &target,
            "churn",
            "churn-nofp",
            &["-fomit-frame-pointer"],
        )?,
        quick: args.quick,
        cpu_time: args.cpu_time,
        only: args.only.clone(),
    };
    let groups: [Group<Bench, Option<Section>>; 7] = [
        ("churn and its relatives", synthetic::measure),
        ("real programs", programs::measure),
        ("redis", redis::measure),
        ("heap file", heap_file::measure),
        ("start-up", startup::measure),
        ("latency", latency::measure),
        ("fork", fork::measure),
    ];
    let Some((sections, failed)) = gather(&bench, &groups, &args.only)? else { return Ok(false) };
    let absent = bench.tools.absent.iter().map(|why| format!("not measured: {why}"));
    let document = Document {
        title: "What tracing costs",
        about: "Written by `cargo xtask bench overhead`: all tools in one run, in interleaved rounds; each number is the \
                median of the rounds' own differences or ratios to native, with the smallest and largest in \
                parentheses.",
        machine: machine::describe(&root, &TOOLS, &["libgoogle-perftools4*", "libjemalloc2"]),
        remarks: absent.collect(),
        sections,
    };
    let partial = args.quick || args.cpu_time || !args.only.is_empty() || !args.tools.is_empty();
    conclude(&root, "bench/overhead.md", &document, failed, partial)?;
    Ok(!failed)
}

/// Runs all groups, even after one failed; the sections, and whether any failed. None if nothing else came of it.
fn gather<B, S: IntoIterator<Item = Section>>(
    bench: &B,
    groups: &[Group<B, S>],
    only: &[String],
) -> Result<Option<(Vec<Section>, bool)>> {
    let mut sections = Vec::new();
    let mut failed = false;
    for (name, measure) in groups {
        match measure(bench) {
            Ok(measured) => sections.extend(measured),
            // What else was measured in all these minutes is worth showing.
            Err(error) => {
                eprintln!("xtask: {name}: {error:#}");
                failed = true;
            }
        }
    }
    match (sections.is_empty(), failed) {
        (true, true) => Ok(None),
        (true, false) => bail!("no benchmark is called {}", only.join(" or ")),
        (false, _) => Ok(Some((sections, failed))),
    }
}

/// Prints the document and, after a complete run, writes it to `file`.
fn conclude(root: &Path, file: &str, document: &Document, failed: bool, partial: bool) -> Result<()> {
    let text = document.markdown();
    println!("{text}");
    if failed {
        progress(&format!("something failed; {file} stays as it is"));
    } else if partial {
        progress(&format!("a partial run; {file} stays as it is"));
    } else {
        let path = root.join(file);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Compiles `bench/workloads/SOURCE.c` to `NAME`.
fn compile(root: &Path, target: &Path, source: &str, name: &str, options: &[&str]) -> Result<PathBuf> {
    let program = target.join(name);
    let status = Command::new("gcc")
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"])
        .args(options)
        .arg("-o")
        .arg(&program)
        .arg(root.join("bench/workloads").join(source).with_extension("c"))
        .status()
        .context("cannot run gcc")?;
    if !status.success() {
        bail!("gcc: {status}");
    }
    Ok(program)
}

impl Bench {
    /// Whether `--only` leaves the benchmark `name` in.
    fn includes(&self, name: &str) -> bool {
        is_wanted(&self.only, name)
    }

    /// `normal` rounds, or a few if in a hurry.
    fn rounds(&self, normal: usize) -> usize {
        if self.quick { normal.min(2) } else { normal }
    }

    fn has(&self, tool: Tool) -> bool {
        self.tools.available().contains(&tool)
    }

    /// A fresh directory for one run's files.
    fn scratch(&self) -> Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().prefix("scratch-").tempdir_in(self.directory.path())?)
    }

    /// Runs `program` once under `tool`.
    fn run(
        &self,
        tool: Tool,
        program: &Path,
        arguments: &[OsString],
        limit: Duration,
    ) -> Result<child::Finished> {
        self.run_with(tool, program, arguments, &[], limit)
    }

    /// The same with more in the environment.
    fn run_with(
        &self,
        tool: Tool,
        program: &Path,
        arguments: &[OsString],
        environment: &[(&str, &str)],
        limit: Duration,
    ) -> Result<child::Finished> {
        let scratch = self.scratch()?;
        let mut command = self.tools.command(tool, program, arguments, scratch.path());
        command.envs(environment.iter().copied());
        child::run(&mut command, scratch.path(), limit).with_context(|| format!("under {}", tool.name()))
    }
}

/// Whether `--only` leaves the benchmark `name` in.
fn is_wanted(only: &[String], name: &str) -> bool {
    let matches =
        |only: &String| name == only || name.strip_prefix(only.as_str()).is_some_and(|r| r.starts_with('-'));
    only.is_empty() || only.iter().any(matches)
}

/// The tools in an order that differs from round to round, so that none always runs after the same other.
fn rotated<T: Copy>(items: &[T], round: usize) -> Vec<T> {
    let mut items = items.to_vec();
    let shift = round.checked_rem(items.len()).unwrap_or(0);
    items.rotate_left(shift);
    items
}

/// The value of `NAME=` in a workload's `result` line.
fn value(stdout: &str, name: &str) -> Result<f64> {
    let results = stdout.lines().filter_map(|line| line.strip_prefix("result "));
    let mut fields = results.flat_map(str::split_whitespace).filter_map(|field| field.split_once('='));
    let (_, text) =
        fields.find(|(key, _)| *key == name).with_context(|| format!("no {name}= in: {stdout}"))?;
    text.parse().with_context(|| format!("not a number: {name}={text}"))
}

/// Strings as arguments.
fn arguments(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_found_among_a_tools_own_lines() {
        let stdout = "starting application\nresult mean_ns=12.5 worst_ns=900\nheaptrack stats:\n";
        assert_eq!(value(stdout, "worst_ns").expect("worst"), 900.0);
        assert!(value(stdout, "median_ns").is_err());
    }

    #[test]
    fn every_tool_takes_its_turn_at_every_place() {
        assert_eq!(rotated(&[1, 2, 3], 4), [2, 3, 1]);
        assert!(rotated::<u8>(&[], 4).is_empty());
    }
}
