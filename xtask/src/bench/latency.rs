//! How long a single malloc and free take at worst: undisturbed, with a busy disk, and close to a memory limit.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::child::{Background, progress};
use super::stats::Spread;
use super::table::Section;
use super::tool::Tool;
use super::{Bench, arguments, rotated, value};

/// What else goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    Quiet,
    BusyDisk,
    NearMemoryLimit,
}

/// The cgroup's limit.
const LIMIT_BYTES: u64 = 256 << 20;

/// Times every pair of a churn under each condition, untraced and traced.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    if !bench.includes("latency") || !bench.has(Tool::Leakscope) {
        return Ok(None);
    }
    let mut section = Section {
        title: "Latency of a malloc and a free".to_owned(),
        about: "Times of single pairs of `churn-1`, each timed by the processor's time stamp counter (which itself \
                takes some 20 ns). The worst of two million includes whatever else the machine did."
            .to_owned(),
        columns: ["condition", "tool", "mean", "99.9th percentile", "worst"].map(str::to_owned).to_vec(),
        ..Section::default()
    };
    for condition in [Condition::Quiet, Condition::BusyDisk, Condition::NearMemoryLimit] {
        let name = match condition {
            Condition::Quiet => "undisturbed",
            Condition::BusyDisk => "disk saturated by a writer",
            Condition::NearMemoryLimit => "target at 90% of its memory cgroup",
        };
        match sample(bench, condition) {
            Ok(rows) => {
                for (tool, cells) in rows {
                    let mut row = vec![name.to_owned(), tool.name().to_owned()];
                    row.extend(cells);
                    section.rows.push(row);
                }
            }
            // Without root's rights there is no cgroup to be had; the other conditions must run.
            Err(error) if condition == Condition::NearMemoryLimit => {
                section.remarks.push(format!("not measured: {name}: {error:#}"));
            }
            Err(error) => return Err(error),
        }
    }
    progress("latency done");
    Ok(Some(section))
}

fn sample(bench: &Bench, condition: Condition) -> Result<Vec<(Tool, Vec<String>)>> {
    let tools = [Tool::Native, Tool::Leakscope];
    let names = ["mean_ns", "p999_ns", "worst_ns"];
    let mut samples = [const { [const { Vec::new() }; 3] }; 2];
    let operations = if bench.quick { "200000" } else { "2000000" };
    let disk = bench.scratch()?;
    let _writer = (condition == Condition::BusyDisk).then(|| busy_disk(disk.path())).transpose()?;
    for round in 0..bench.rounds(5) {
        for which in rotated(&[0, 1], round) {
            let (Some(tool), Some(columns)) = (tools.get(which), samples.get_mut(which)) else { continue };
            let mut words = arguments(&["--mode", "latency", "--ops", operations]);
            // A fresh one for each run, since what a run leaves in it would count against the next.
            let cgroup = (condition == Condition::NearMemoryLimit).then(MemoryCgroup::new).transpose()?;
            if let Some(cgroup) = &cgroup {
                words.extend(["--cgroup".into(), cgroup.directory.clone().into_os_string()]);
                words.extend(arguments(&["--ballast-percent", "90"]));
            }
            let finished = bench.run(*tool, &bench.churn, &words, Duration::from_secs(120))?;
            for (name, column) in names.into_iter().zip(columns) {
                column.push(value(&finished.stdout, name)?);
            }
        }
    }
    let show = |columns: &[Vec<f64>; 3]| {
        let [mean, p999, worst] = columns.each_ref().map(|column| Spread::of(column.iter().copied()));
        let worst = worst.map(|s| Spread { median: s.median / 1e3, min: s.min / 1e3, max: s.max / 1e3, ..s });
        let show = |spread: Option<Spread>, unit: &str| {
            spread.map_or_else(String::new, |spread| format!("{} {unit}", spread.show(0, false)))
        };
        vec![show(mean, "ns"), show(p999, "ns"), show(worst, "us")]
    };
    Ok(tools.into_iter().zip(samples.iter().map(show)).collect())
}

/// Writes and flushes half a GiB over and over.
fn busy_disk(directory: &Path) -> Result<Background> {
    let script = "while :; do dd if=/dev/zero of=\"$0\" bs=1M count=512 conv=fsync,notrunc; done";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(directory.join("written"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let writer = Background::start(&mut command)?;
    std::thread::sleep(Duration::from_millis(500));
    Ok(writer)
}

/// A memory cgroup (version 2 or 1) of its own, removed again at the end.
struct MemoryCgroup {
    directory: PathBuf,
}

impl MemoryCgroup {
    fn new() -> Result<Self> {
        let (parent, limit) = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            ("/sys/fs/cgroup", "memory.max")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        };
        let directory = Path::new(parent).join(format!("leakscope-bench-{}", std::process::id()));
        std::fs::create_dir(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let cgroup = Self { directory };
        let file = cgroup.directory.join(limit);
        std::fs::write(&file, LIMIT_BYTES.to_string())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(cgroup)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // The last process may not have left it quite yet.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.directory).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
