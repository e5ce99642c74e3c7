//! The churn and its relatives: nanoseconds per malloc and free, measured inside the program.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::child::progress;
use super::stats::{Spread, number};
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, arguments, rotated, value};

/// A workload and the share of heaptrack's added time that leakscope may add.
struct Workload {
    name: &'static str,
    frame_pointers: bool,
    arguments: &'static [&'static str],
    /// Operations per thread; slow tools run a twentieth.
    operations: u64,
    /// Rounds of the slow tools.
    slow_rounds: usize,
    bound: Option<f64>,
}

/// Calls that, with the leaf, `main`, its workers and libc's start code, make 62 frames: with its own two, the 64 that
/// heaptrack can record.
const DEEP: &str = "57";

const WORKLOADS: &[Workload] = &[
    Workload {
        name: "churn-1",
        frame_pointers: true,
        arguments: &["--threads", "1"],
        operations: 2_000_000,
        slow_rounds: 2,
        bound: Some(0.15),
    },
    Workload {
        name: "churn-2",
        frame_pointers: true,
        arguments: &["--threads", "2"],
        operations: 1_000_000,
        slow_rounds: 2,
        bound: Some(0.08),
    },
    Workload {
        name: "churn-8",
        frame_pointers: true,
        arguments: &["--threads", "8"],
        operations: 250_000,
        slow_rounds: 1,
        bound: Some(0.08),
    },
    Workload {
        name: "churn-1-nofp",
        frame_pointers: false,
        arguments: &["--threads", "1"],
        operations: 2_000_000,
        slow_rounds: 2,
        bound: Some(0.25),
    },
    Workload {
        name: "churn-2-nofp",
        frame_pointers: false,
        arguments: &["--threads", "2"],
        operations: 1_000_000,
        slow_rounds: 2,
        bound: Some(0.12),
    },
    Workload {
        name: "churn-8-nofp",
        frame_pointers: false,
        arguments: &["--threads", "8"],
        operations: 250_000,
        slow_rounds: 1,
        bound: Some(0.12),
    },
    Workload {
        name: "deep-64",
        frame_pointers: true,
        arguments: &["--depth", DEEP],
        operations: 500_000,
        slow_rounds: 2,
        bound: Some(0.15),
    },
    Workload {
        name: "deep-64-nofp",
        frame_pointers: false,
        arguments: &["--depth", DEEP],
        operations: 500_000,
        slow_rounds: 2,
        bound: Some(0.25),
    },
    Workload {
        name: "steady-1",
        frame_pointers: true,
        arguments: &["--steady"],
        operations: 2_000_000,
        slow_rounds: 2,
        bound: None,
    },
    Workload {
        name: "pair-1",
        frame_pointers: true,
        arguments: &["--mode", "pair"],
        operations: 2_000_000,
        slow_rounds: 2,
        bound: None,
    },
    Workload {
        name: "grow-1",
        frame_pointers: true,
        arguments: &["--mode", "grow"],
        operations: 1_000_000,
        slow_rounds: 2,
        bound: None,
    },
];

const ABOUT: &str = "\
Nanoseconds per malloc and free, timed by the program around its inner loop. `churn-N`: N threads, each with 100,000 live \
blocks of 16 to 1039 bytes, a random one freed and another allocated through 16 calls that vary (243 different stacks). \
`nofp`: compiled without frame pointers. `deep-64`: stacks of 62 frames, with its own two the \
64 that heaptrack can record. `steady`: always the same stack. `pair`: a block \
is freed at once, nothing else lives. `grow`: a million blocks, none freed (per malloc). With more threads than cores, \
the time is that of one core. Native is the whole pair; the tools' columns are what they add to it.";

/// Runs all workloads that were asked for.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    let workloads: Vec<&Workload> =
        WORKLOADS.iter().filter(|workload| bench.includes(workload.name)).collect();
    if workloads.is_empty() {
        return Ok(None);
    }
    let mut columns = vec!["workload".to_owned()];
    columns.extend(bench.tools.available().iter().map(|tool| tool.name().to_owned()));
    columns.push("leakscope / heaptrack".to_owned());
    let mut section = Section {
        title: "A malloc and a free".to_owned(),
        about: ABOUT.to_owned(),
        columns,
        ..Section::default()
    };
    for workload in workloads {
        let samples = sample(bench, workload, &mut section.remarks)?;
        let native = samples.get(&Tool::Native.name());
        let added = |tool: Tool| {
            let pairs = samples.get(&tool.name()).into_iter().zip(native);
            pairs.flat_map(|(traced, native)| traced.iter().filter_map(|(r, ns)| Some(ns - native.get(r)?)))
        };
        let mut row = vec![workload.name.to_owned()];
        for tool in bench.tools.available() {
            let spread = match tool {
                Tool::Native => Spread::of(native.into_iter().flat_map(BTreeMap::values).copied()),
                _ => Spread::of(added(*tool)),
            };
            let signed = *tool != Tool::Native;
            row.push(spread.map_or_else(|| "failed".to_owned(), |spread| spread.show(0, signed)));
        }
        let ratio = Spread::of(
            added(Tool::Leakscope).zip(added(Tool::Heaptrack)).map(|(ours, theirs)| ours / theirs),
        );
        row.push(ratio.map_or_else(String::new, |ratio| ratio.show(3, false)));
        section.rows.push(row);
        if let (Some(limit), Some(ratio)) = (workload.bound, ratio) {
            let name = format!("{}: added time, of heaptrack's", workload.name);
            section.bounds.push(Bound { name, limit, measured: ratio.median, unit: "", at_least: false });
        }
    }
    section.remarks.push(format!(
        "Rounds: {} for native, leakscope and heaptrack; one or two for the others, which also run a twentieth of the \
         operations (the live blocks are the same).",
        bench.rounds(ROUNDS)
    ));
    section.remarks.push(
        "heaptrack runs with `--raw`: without it, its interpreter takes time of another core, and ends with \
         `std::bad_alloc` on the varied workloads, the traced program with it."
            .to_owned(),
    );
    section.remarks.push(
        "massif and memcheck run one thread at a time; gperftools and jemalloc replace the allocator, so that their \
         difference to native is not of tracing alone."
            .to_owned(),
    );
    Ok(Some(section))
}

const ROUNDS: usize = 7;

/// Nanoseconds per pair, by tool and round.
type Samples = BTreeMap<&'static str, BTreeMap<usize, f64>>;

fn sample(bench: &Bench, workload: &Workload, remarks: &mut Vec<String>) -> Result<Samples> {
    let program = if workload.frame_pointers { &bench.churn } else { &bench.churn_without_frame_pointers };
    let clock = if bench.cpu_time { "cpu_ns_per_pair" } else { "ns_per_pair" };
    let rounds = bench.rounds(ROUNDS);
    let slow_rounds = bench.rounds(workload.slow_rounds);
    let mut samples = Samples::new();
    let mut failed: Vec<Tool> = Vec::new();
    for round in 0..rounds {
        // The slow tools' rounds are spread over the run.
        let slow_too = slow_rounds > 0 && (round * slow_rounds) % rounds < slow_rounds;
        for tool in rotated(bench.tools.available(), round) {
            if failed.contains(&tool) || (tool.is_slow() && !slow_too) {
                continue;
            }
            let operations = if tool.is_slow() { workload.operations / 20 } else { workload.operations };
            let operations = if bench.quick { operations / 5 } else { operations };
            let operations = operations.to_string();
            let mut words = workload.arguments.to_vec();
            words.extend(["--ops", &operations]);
            let result = bench
                .run(tool, program, &arguments(&words), Duration::from_secs(120))
                .and_then(|finished| value(&finished.stdout, clock));
            match result {
                Ok(nanoseconds) => {
                    samples.entry(tool.name()).or_default().insert(round, nanoseconds);
                }
                Err(error) if matches!(tool, Tool::Native | Tool::Leakscope) => return Err(error),
                Err(error) => {
                    progress(&format!("{}: {error:#}", workload.name));
                    remarks.push(format!("{} failed on {}.", tool.name(), workload.name));
                    failed.push(tool);
                }
            }
        }
    }
    let medians = samples.iter().filter_map(|(tool, rounds)| {
        let spread = Spread::of(rounds.values().copied())?;
        Some(format!("{tool} {}", number(spread.median, 0, false)))
    });
    progress(&format!("{} [ns]: {}", workload.name, medians.collect::<Vec<_>>().join(", ")));
    Ok(samples)
}
