//! The same program under memcheck and with LeakSanitizer.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::exact::Found;
use super::{Bench, SHOWN, median, show};
use crate::bench::child::{self, progress};
use crate::bench::table::Section;
use crate::bench::{rotated, value};

/// One way to find the leaks of the program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Native,
    LeakscopePid,
    LeakscopeCommand,
    LeakSanitizer,
    Memcheck,
}

const WAYS: [Way; 5] =
    [Way::Native, Way::LeakscopePid, Way::LeakscopeCommand, Way::LeakSanitizer, Way::Memcheck];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Native => "native, no check",
            Self::LeakscopePid => "leakscope leaks PID",
            Self::LeakscopeCommand => "leakscope leaks -- COMMAND",
            Self::LeakSanitizer => "LeakSanitizer",
            Self::Memcheck => "memcheck --leak-check=full",
        }
    }
}

/// A size of the program.
struct Size {
    blocks: usize,
    churn: usize,
    rounds: usize,
    /// Rounds of memcheck.
    slow_rounds: usize,
}

const SIZES: [Size; 2] = [
    Size { blocks: 500_000, churn: 2_000_000, rounds: 3, slow_rounds: 1 },
    Size { blocks: 5_000_000, churn: 2_000_000, rounds: 3, slow_rounds: 0 },
];
const QUICK: Size = Size { blocks: 100_000, churn: 400_000, rounds: 2, slow_rounds: 1 };
const LOST: usize = 5000;

const ABOUT: &str = "\
One thread allocates live blocks of 200 bytes linked in random order, loses 5,000 others, and then frees and allocates \
2,000,000 times. `its own work`: all that, as timed by the program, in multiples of native. `check`: of `leaks PID` the whole \
command on the process that has done its work; of LeakSanitizer its `__lsan_do_recoverable_leak_check`; of the others what \
the whole takes more than the program's own work. `whole`: from the program's start until the leaks are known, in seconds \
and in multiples of native. Memory is the peak of the program with the tool in it; of `leaks PID`, of leakscope alone. \
The last columns are in blocks: planted ones called definitely or indirectly lost, those called possibly lost, and others \
that were called lost.";

/// One run.
#[derive(Default)]
struct Run {
    work_ms: f64,
    check_ms: Option<f64>,
    whole_ms: f64,
    peak_mib: f64,
    found: Option<Found>,
}

/// Runs all of them.
pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if !bench.includes("beside") {
        return Ok(Vec::new());
    }
    let columns = ["live blocks", "tool", "its own work", "check, ms", "whole, s", "whole", "memory"];
    let mut section = Section {
        title: "Beside memcheck and LeakSanitizer".to_owned(),
        about: ABOUT.to_owned(),
        columns: columns.into_iter().chain(["found", "possible", "false"]).map(str::to_owned).collect(),
        ..Section::default()
    };
    let sizes = if bench.quick { &[QUICK][..] } else { &SIZES[..] };
    for size in sizes {
        add_size(bench, size, &mut section)?;
    }
    section.remarks.push("chap: not available here (it is not packaged, and was not built).".to_owned());
    section.remarks.push(
        "memcheck with 5,000,000 blocks: not measured, since it takes minutes; it runs once with fewer."
            .to_owned(),
    );
    section.remarks.push(
        "Of memcheck and LeakSanitizer only the totals are looked at: found are at most as many as were planted, false is \
         what goes beyond that, and whose the possibly lost ones are is not known."
            .to_owned(),
    );
    if let Err(why) = &bench.sanitized {
        section.remarks.push(format!("LeakSanitizer: not available here: {why}"));
    }
    if !bench.has_memcheck {
        section.remarks.push("memcheck: not available here".to_owned());
    }
    Ok(vec![section])
}

fn add_size(bench: &Bench, size: &Size, section: &mut Section) -> Result<()> {
    let mut ways: Vec<(Way, Vec<Run>)> = WAYS.iter().map(|way| (*way, Vec::new())).collect();
    ways.retain(|(way, _)| match way {
        Way::LeakSanitizer => bench.sanitized.is_ok(),
        Way::Memcheck => bench.has_memcheck && size.slow_rounds > 0,
        _ => true,
    });
    let order: Vec<usize> = (0..ways.len()).collect();
    for round in 0..bench.rounds(size.rounds) {
        for index in rotated(&order, round) {
            let Some((way, runs)) = ways.get_mut(index) else { continue };
            if *way == Way::Memcheck && round >= size.slow_rounds {
                continue;
            }
            match run(bench, *way, size) {
                Ok(run) => runs.push(run),
                Err(error) if matches!(way, Way::Native | Way::LeakscopePid) => return Err(error),
                Err(error) => {
                    let text = format!("{error:#}");
                    progress(&format!("{}: {text}", way.name()));
                    let why = text.lines().last().unwrap_or_default();
                    section.remarks.push(format!(
                        "failed with {} blocks: {}: {why}",
                        size.blocks,
                        way.name()
                    ));
                }
            }
        }
    }
    let of_native = |what: fn(&Run) -> f64| {
        let native = ways.iter().find(|(way, _)| *way == Way::Native);
        median(native.into_iter().flat_map(|(_, runs)| runs).map(what))
    };
    let (work, whole) = (of_native(|run| run.work_ms)?, of_native(|run| run.whole_ms)?);
    for (way, runs) in &ways {
        let of = |what: fn(&Run) -> f64| runs.iter().map(what);
        let found = runs.iter().find_map(|run| run.found.as_ref());
        section.rows.push(vec![
            crate::bench::stats::number(size.blocks as f64, 0, false),
            way.name().to_owned(),
            show(of(|run| run.work_ms).map(|ms| ms / work), 2),
            show(runs.iter().filter_map(|run| run.check_ms), 0),
            show(of(|run| run.whole_ms / 1e3), 2),
            show(of(|run| run.whole_ms).map(|ms| ms / whole), 2),
            show(of(|run| run.peak_mib), 0) + if runs.is_empty() { "failed" } else { " MiB" },
            found.map_or_else(String::new, |found| format!("{} of {LOST}", found.lost)),
            found.map_or_else(String::new, |found| found.possible.to_string()),
            found.map_or_else(String::new, |found| found.live.to_string()),
        ]);
    }
    progress(&format!("beside, {} blocks done", size.blocks));
    Ok(())
}

fn run(bench: &Bench, way: Way, size: &Size) -> Result<Run> {
    let words = [
        "--blocks",
        &size.blocks.to_string(),
        "--churn",
        &size.churn.to_string(),
        "--lost",
        &LOST.to_string(),
        "--order",
        "shuffled",
    ];
    if way == Way::LeakscopePid {
        let began = Instant::now();
        let heap = bench.heap(&words)?;
        let scan = bench.scan(&heap)?;
        return Ok(Run {
            whole_ms: began.elapsed().as_secs_f64() * 1e3,
            work_ms: (heap.value("build_ns")? + heap.value("churn_ns")?) / 1e6,
            check_ms: Some(scan.wall_ms),
            peak_mib: scan.peak_mib,
            found: Some(Found::in_report(&scan.report)),
        });
    }
    let scratch = bench.scratch()?;
    let json = scratch.path().join("report.json");
    let log = scratch.path().join("memcheck.log");
    let mut command = match way {
        Way::LeakscopeCommand => {
            let mut option = std::ffi::OsString::from("--json=");
            option.push(&json);
            let mut command = bench.measured(&bench.leakscope);
            command
                .arg("leaks")
                .args(SHOWN)
                .arg(option)
                .arg("-o")
                .arg(scratch.path().join("leakscope.heap"))
                .arg("--");
            command.arg(&bench.program);
            command
        }
        Way::LeakSanitizer => {
            let program = bench.sanitized.as_deref().unwrap_or(&bench.program);
            let mut command = bench.measured(program);
            command.env("LSAN_OPTIONS", "leak_check_at_exit=0:exitcode=0");
            command
        }
        Way::Memcheck => {
            let mut option = std::ffi::OsString::from("--log-file=");
            option.push(&log);
            let mut command = bench.measured(Path::new("valgrind"));
            command.args(["--leak-check=full"]).arg(option).arg(&bench.program);
            command
        }
        Way::Native | Way::LeakscopePid => Command::new(&bench.measured),
    };
    if way == Way::Native {
        command.arg(&bench.program);
    }
    command.args(words).arg("--once");
    let finished = child::run(&mut command, scratch.path(), Duration::from_secs(300))?;
    let get = |name: &str| value(&finished.stdout, name);
    let mut run = Run {
        work_ms: (get("build_ns")? + get("churn_ns")?) / 1e6,
        whole_ms: get("wall_ns")? / 1e6,
        peak_mib: get("peak_kib")? / 1024.0,
        ..Run::default()
    };
    match way {
        Way::LeakSanitizer => {
            run.check_ms = Some(get("check_ns")? / 1e6);
            let said = std::fs::read_to_string(scratch.path().join("stderr"))?;
            run.found = Some(Found::of_total(lsan_blocks(&said), LOST));
        }
        Way::Memcheck => {
            run.check_ms = Some(run.whole_ms - run.work_ms);
            let said = std::fs::read_to_string(&log)?;
            let mut found = Found::of_total(
                memcheck_blocks(&said, "definitely lost:") + memcheck_blocks(&said, "indirectly lost:"),
                LOST,
            );
            found.possible = memcheck_blocks(&said, "possibly lost:");
            run.found = Some(found);
        }
        Way::LeakscopeCommand => {
            run.check_ms = Some(run.whole_ms - run.work_ms);
            let text = std::fs::read(&json).with_context(|| format!("cannot read {}", json.display()))?;
            run.found = Some(Found::in_report(&serde_json::from_slice(&text)?));
        }
        Way::Native | Way::LeakscopePid => {}
    }
    Ok(run)
}

/// The blocks of a line such as `==1==    definitely lost: 1,024 bytes in 16 blocks`.
fn memcheck_blocks(log: &str, kind: &str) -> u64 {
    let line = log.lines().find_map(|line| line.split_once(kind));
    let number = line.and_then(|(_, rest)| rest.split_once(" in "));
    let digits = number.map(|(_, rest)| rest.chars().take_while(|c| *c != ' ').filter(char::is_ascii_digit));
    digits.and_then(|digits| digits.collect::<String>().parse().ok()).unwrap_or(0)
}

/// The blocks in `SUMMARY: LeakSanitizer: 1024 byte(s) leaked in 16 allocation(s).`
fn lsan_blocks(said: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix("SUMMARY: LeakSanitizer:"));
    let number = line.and_then(|rest| rest.split_once("leaked in "));
    number.and_then(|(_, rest)| rest.split(' ').next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_tools_counts_are_read() {
        let log = "==7==    definitely lost: 1,234 bytes in 5,000 blocks\n==7==    possibly lost: 0 bytes in 0 blocks\n";
        assert_eq!(
            [memcheck_blocks(log, "definitely lost:"), memcheck_blocks(log, "possibly lost:")],
            [5000, 0]
        );
        assert_eq!(lsan_blocks("x\nSUMMARY: LeakSanitizer: 10 byte(s) leaked in 16 allocation(s).\n"), 16);
    }
}
