//! How long a process stands still, beside what its own `fork` takes.

use std::time::Duration;

use anyhow::Result;

use super::{Bench, Heap, gib, has_memory, median, show};
use crate::bench::child::progress;
use crate::bench::rotated;
use crate::bench::table::{Bound, Section};

/// Sizes in MiB with their rounds.
const SIZES: [(u64, usize); 3] = [(256, 5), (1024, 5), (2048, 3)];
const THREADS: [u32; 3] = [1, 64, 1000];
const HUGE: [u64; 2] = [256, 1024];
const HUGE_ROUNDS: usize = 3;
/// Forks of a round, of which the median counts.
const FORKS: u32 = 3;
/// Large blocks, since it is pages that count here.
const BLOCK: &str = "1000";

const ABOUT: &str = "\
Milliseconds. `fork`: what the process measures around its own call, median of 3 in each round. Pause: `pause_ms` of a scan, \
from the first thread that stops to the last that goes on. The process writes to all its pages before each (else the second \
copy in a row would be cheaper). Allowed are 1.15 times the same round's `fork`, 2 ms, and 0.05 ms for each thread.";

const ABOUT_HUGE: &str = "\
The same with memory that the process has asked to be in huge pages. By default: what `leakscope leaks PID` does without \
options. The rest is with `--max-pause` out of the way. The last columns are what it costs the process later: writing to a \
byte of each 4 KiB, undisturbed, while a copy by `fork` exists (which is what a scan of a copy would cost it), and after a scan.";

/// Measures both kinds of pages.
pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    if bench.includes("pause") {
        sections.push(small_pages(bench)?);
    }
    if bench.includes("huge") {
        sections.push(huge_pages(bench)?);
    }
    Ok(sections)
}

fn small_pages(bench: &Bench) -> Result<Section> {
    let mut section = Section {
        title: "Pause".to_owned(),
        about: ABOUT.to_owned(),
        columns: ["heap", "threads", "fork", "pause", "allowed", "pause / fork", "pause / allowed", "way"]
            .map(str::to_owned)
            .to_vec(),
        ..Section::default()
    };
    let sizes = if bench.quick { &SIZES[..1] } else { &SIZES[..] };
    for &(mib, rounds) in sizes {
        if !has_memory(mib * 2) {
            section.remarks.push(format!("not measured: {}: too little memory is free", gib(mib)));
            continue;
        }
        for threads in THREADS {
            let mut heap = bench.heap(&[
                "--mib",
                &mib.to_string(),
                "--size",
                BLOCK,
                "--threads",
                &threads.to_string(),
            ])?;
            let (mut forks, mut pauses, mut way) = (Vec::new(), Vec::new(), String::new());
            for round in 0..bench.rounds(rounds) {
                for which in rotated(&[0, 1], round) {
                    if which == 0 {
                        forks.push(heap.fork(FORKS, Duration::ZERO)?);
                    } else {
                        heap.touch()?;
                        let scan = bench.scan(&heap)?;
                        pauses.push(scan.pause_ms);
                        way = scan.way().to_owned();
                    }
                }
            }
            let allowed: Vec<f64> =
                forks.iter().map(|fork| 1.15 * fork + 2.0 + 0.05 * f64::from(threads)).collect();
            let of = |base: &[f64]| {
                pauses.iter().zip(base).map(|(pause, base)| pause / base).collect::<Vec<f64>>()
            };
            let (of_fork, of_allowed) = (of(&forks), of(&allowed));
            section.bounds.push(Bound {
                name: format!("pause, {}, threads: {threads}; of what is allowed", gib(mib)),
                limit: 1.0,
                measured: median(of_allowed.iter().copied())?,
                unit: "",
                at_least: false,
            });
            progress(&format!("pause, {}, threads: {threads}: {}", gib(mib), show(of_allowed.clone(), 2)));
            section.rows.push(vec![
                gib(mib),
                threads.to_string(),
                show(forks, 1),
                show(pauses, 1),
                show(allowed, 1),
                show(of_fork, 2),
                show(of_allowed, 2),
                way,
            ]);
        }
    }
    section
        .remarks
        .push(format!("Rounds: {}; 3 of 2 GiB. Blocks of {BLOCK} bytes. The threads rest.", bench.rounds(5)));
    Ok(section)
}

fn huge_pages(bench: &Bench) -> Result<Section> {
    let columns = [
        "heap",
        "in huge pages",
        "by default",
        "way",
        "fork",
        "pause",
        "writes",
        "while copied",
        "after a scan",
    ];
    let mut section = Section {
        title: "Huge pages".to_owned(),
        about: ABOUT_HUGE.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let sizes = if bench.quick { &HUGE[..1] } else { &HUGE[..] };
    for &mib in sizes {
        let arguments = ["--mib", &mib.to_string(), "--size", BLOCK, "--huge"];
        let mut heap = bench.heap(&arguments)?;
        let huge_mib = heap.value("huge_kib")? / 1024.0;
        if huge_mib < mib as f64 / 2.0 {
            section.remarks.push(format!(
                "not measured: {}: the kernel gave {huge_mib:.0} MiB of huge pages only",
                gib(mib)
            ));
            continue;
        }
        let by_default = default_way(bench, &heap);
        let mut samples = [const { Vec::new() }; 5];
        let mut way = String::new();
        for round in 0..bench.rounds(HUGE_ROUNDS) {
            // What a copy does to huge pages stays, so each is of a process of its own.
            for which in rotated(&[0, 1], round) {
                heap = bench.heap(&arguments)?;
                heap.touch()?;
                let undisturbed = heap.touch()?;
                let [forks, pauses, writes, copied, after_scan] = &mut samples;
                writes.push(undisturbed);
                if which == 0 {
                    forks.push(heap.fork(1, Duration::ZERO)?);
                    copied.push(heap.touch_while_copied()?);
                } else {
                    let scan = bench.scan(&heap)?;
                    pauses.push(scan.pause_ms);
                    way = scan.way().to_owned();
                    after_scan.push(heap.touch()?);
                }
            }
        }
        let mut row = vec![gib(mib), format!("{huge_mib:.0} MiB"), by_default, way];
        row.extend(samples.map(|samples| show(samples, 1)));
        section.rows.push(row);
    }
    progress("huge pages done");
    section.remarks.push(format!(
        "Rounds: {}, each on a new process, since huge pages that were broken up stay so.",
        bench.rounds(HUGE_ROUNDS)
    ));
    Ok(section)
}

/// What happens without options.
fn default_way(bench: &Bench, heap: &Heap) -> String {
    match bench.scan_with(heap, &[]) {
        Ok(scan) => format!("{}, {:.1} ms", scan.way(), scan.pause_ms),
        Err(error) => {
            let text = format!("{error:#}");
            let said = text.lines().find(|line| line.contains("leakscope:")).unwrap_or(&text);
            format!("refuses: {}", said.trim_start_matches("leakscope: ").replace('|', "/"))
        }
    }
}
