//! `cargo xtask bench scan`: what `leakscope leaks` costs the process it looks at, how long it takes, and what it finds.

mod beside;
mod exact;
mod heap;
mod latency;
mod pause;
mod speed;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::child;
use super::stats::Spread;
use super::table::{Document, Section};
use super::tool::runs;
use super::{Group, compile, conclude, gather, is_wanted, machine, value};
use crate::{packages, workspace};
use heap::Heap;

/// Options of `cargo xtask bench scan`.
#[derive(clap::Args)]
pub struct ScanArgs {
    /// Few rounds on small heaps: to see that everything runs, not to learn what it costs
    #[arg(long)]
    quick: bool,
    /// Only these benchmarks: pause, huge, latency, scan, linear, beside, exact
    #[arg(long, value_delimiter = ',', value_name = "NAME")]
    only: Vec<String>,
    /// Also scan 8 GiB; takes 12 GiB of memory
    #[arg(long)]
    large: bool,
    /// Measure this binary and build none
    #[arg(long, value_name = "FILE")]
    leakscope: Option<PathBuf>,
}

/// What every benchmark needs.
struct Bench {
    leakscope: PathBuf,
    /// `bench/workloads/heap.c`, plain and with LeakSanitizer, if that can be had.
    program: PathBuf,
    sanitized: Result<PathBuf, String>,
    has_memcheck: bool,
    /// `bench/workloads/measured.c`.
    measured: PathBuf,
    /// A directory per run.
    directory: tempfile::TempDir,
    quick: bool,
    large: bool,
    only: Vec<String>,
}

/// All that is lost is to be in the report, to be counted.
const SHOWN: [&str; 2] = ["--show-leak-kinds", "definite,indirect,possible"];

const ABOUT: &str = "\
Written by `cargo xtask bench scan`: `leakscope leaks PID` on a process that was not prepared (`bench/workloads/heap.c`), in \
interleaved rounds with what it is compared to; each number is the median of the rounds (of their own ratios, where there \
are ratios), with the smallest and largest in parentheses.";

/// Measures, prints the tables, and writes `bench/scan.md` if all was measured in full.
///
/// # Errors
/// If something cannot be built.
pub fn scan(args: &ScanArgs) -> Result<bool> {
    let root = workspace::root()?;
    packages::require(&root.join("xtask/bench-packages.txt"))?;
    let leakscope = match &args.leakscope {
        Some(path) => std::path::absolute(path)?,
        None => workspace::build_leakscope(&root)?,
    };
    let target = workspace::target_directory(&root)?.join("bench");
    std::fs::create_dir_all(&target).with_context(|| format!("cannot create {}", target.display()))?;
    let sanitizer = ["-fsanitize=leak", "-DLEAK_SANITIZER"];
    let bench = Bench {
        leakscope,
        program: compile(&root, &target, "heap", "heap", &[])?,
        sanitized: compile(&root, &target, "heap", "heap-lsan", &sanitizer)
            .map_err(|error| format!("{error:#}")),
        has_memcheck: runs("valgrind"),
        measured: compile(&root, &target, "measured", "measured", &[])?,
        directory: tempfile::Builder::new().prefix("run-").tempdir_in(&target)?,
        quick: args.quick,
        large: args.large,
        only: args.only.clone(),
    };
    let load = load_average();
    let groups: [Group<Bench, Vec<Section>>; 5] = [
        ("pause", pause::measure),
        ("latency", latency::measure),
        ("scan", speed::measure),
        ("beside", beside::measure),
        ("exact", exact::measure),
    ];
    let Some((sections, failed)) = gather(&bench, &groups, &args.only)? else { return Ok(false) };
    let document = Document {
        title: "What a scan costs, takes and finds",
        about: ABOUT,
        machine: machine::describe(
            &root,
            &[("valgrind", &["--version"])],
            &["liblsan0", "valgrind", "libc6"],
        ),
        remarks: vec![
            format!("transparent huge pages: {}", chosen("/sys/kernel/mm/transparent_hugepage/enabled")),
            format!(
                "load of the machine (runnable tasks, of the last minute): {load} before, {} after; the benchmark's \
                 own threads count in the latter",
                load_average()
            ),
        ],
        sections,
    };
    conclude(&root, "bench/scan.md", &document, failed, args.quick || !args.only.is_empty())?;
    Ok(!failed)
}

/// What one run of `leakscope leaks` told of itself and was seen to take.
struct Scan {
    /// How long the process stood still.
    pause_ms: f64,
    /// How long following the pointers took, as leakscope says.
    scan_ms: f64,
    /// The whole command, from its start to its end.
    wall_ms: f64,
    /// Time on processors, of all threads.
    cpu_ms: f64,
    /// The most memory it had at once.
    peak_mib: f64,
    report: serde_json::Value,
}

impl Scan {
    /// How memory was held still: `fork` or `stopped`.
    fn way(&self) -> &str {
        self.report.pointer("/source/snapshot").and_then(serde_json::Value::as_str).unwrap_or("unknown")
    }
}

impl Bench {
    fn includes(&self, name: &str) -> bool {
        is_wanted(&self.only, name)
    }

    /// `normal` rounds, or two if in a hurry.
    fn rounds(&self, normal: usize) -> usize {
        if self.quick { normal.min(2) } else { normal }
    }

    /// A fresh directory for one run's files.
    fn scratch(&self) -> Result<tempfile::TempDir> {
        Ok(tempfile::Builder::new().prefix("scratch-").tempdir_in(self.directory.path())?)
    }

    /// Starts the process to be scanned.
    fn heap(&self, arguments: &[&str]) -> Result<Heap> {
        Heap::start(&self.program, arguments)
    }

    /// A command that `measured` is to run.
    fn measured(&self, program: &Path) -> Command {
        let mut command = Command::new(&self.measured);
        command.arg(program);
        command
    }

    /// Scans a process, however long it is going to stand still.
    fn scan(&self, heap: &Heap) -> Result<Scan> {
        self.scan_with(heap, &["--max-pause", "600000"])
    }

    /// Scans a process with these options.
    fn scan_with(&self, heap: &Heap, options: &[&str]) -> Result<Scan> {
        let scratch = self.scratch()?;
        let json = scratch.path().join("report.json");
        let mut option = std::ffi::OsString::from("--json=");
        option.push(&json);
        let mut command = self.measured(&self.leakscope);
        command.arg("leaks").args(SHOWN).args(options).arg(option).arg(heap.pid().to_string());
        let finished = child::run(&mut command, scratch.path(), Duration::from_secs(120))?;
        let text = std::fs::read(&json).with_context(|| format!("cannot read {}", json.display()))?;
        let report: serde_json::Value = serde_json::from_slice(&text).context("the report is no JSON")?;
        let number = |name: &str| {
            let number = report.get(name).and_then(serde_json::Value::as_f64);
            number.with_context(|| format!("no {name} in the report"))
        };
        Ok(Scan {
            pause_ms: number("pause_ms")?,
            scan_ms: number("scan_ms")?,
            wall_ms: value(&finished.stdout, "wall_ns")? / 1e6,
            cpu_ms: value(&finished.stdout, "cpu_ns")? / 1e6,
            peak_mib: value(&finished.stdout, "peak_kib")? / 1024.0,
            report,
        })
    }
}

/// `decimals` digits of the median of `samples`, with their spread; nothing of none.
fn show(samples: impl IntoIterator<Item = f64>, decimals: usize) -> String {
    Spread::of(samples).map_or_else(String::new, |spread| spread.show(decimals, false))
}

fn median(samples: impl IntoIterator<Item = f64>) -> Result<f64> {
    Ok(Spread::of(samples).context("nothing was measured")?.median)
}

/// A size as the tables name it.
fn gib(mib: u64) -> String {
    format!("{} GiB", mib as f64 / 1024.0)
}

/// Whether `mib` more are free, with something left for others.
fn has_memory(mib: u64) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    kib.is_none_or(|kib| kib / 1024 > mib + 1024)
}

/// The word in brackets in one of the kernel's files of choices.
fn chosen(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or_else(|| "not available".to_owned(), |(word, _)| word.to_owned())
}

fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
