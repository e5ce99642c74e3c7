//! How long a scan takes and how much memory, by shape and by size of the heap.

use anyhow::Result;

use super::{Bench, Scan, gib, has_memory, median, show};
use crate::bench::child::progress;
use crate::bench::rotated;
use crate::bench::stats::number;
use crate::bench::table::{Bound, Section};

/// Shapes as the tables and as the workload name them.
const SHAPES: [(&str, &str); 3] = [
    ("lists in order of allocation", "allocation"),
    ("lists in random order", "shuffled"),
    ("the same, each block points to 3 others", "graph"),
];
/// A small heap, and threads with as much room for their stacks as there usually is.
const STACKS: (&str, [&str; 6]) =
    ("16 MiB, 500 threads with stacks of 8 MiB", ["--mib", "16", "--threads", "500", "--stack", "8192"]);
const ROUNDS: usize = 3;
/// Sizes in MiB with their rounds.
const SIZES: [(u64, usize); 5] = [(256, 3), (1024, 3), (2048, 2), (4096, 2), (8192, 1)];
/// From this size on only with `--large`.
const LARGE: u64 = 8192;
/// What may be lost of linearity.
const NEARLY: f64 = 1.2;

const ABOUT: &str = "\
Milliseconds for a heap of live blocks of 200 bytes (208 with glibc's own 8 and rounding), linked in one list. `scan_ms` is \
what leakscope says it took to list the blocks from glibc's structures and to follow the pointers; the whole command is what \
the user waits for: also the snapshot and the report. Memory is the peak of leakscope's own resident memory, as the kernel \
counts it, less that of a scan of the same program with hardly a block. The last row is of a heap that is next to \
nothing, in a process with many threads, whose stacks are hardly used.";

const ABOUT_LINEAR: &str = "\
The same by size, lists in random order, the worse case. Milliseconds per GiB.";

/// Measures shapes, then sizes.
pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    let mut sections = Vec::new();
    if bench.includes("scan") {
        sections.push(shapes(bench)?);
    }
    if bench.includes("linear") {
        sections.push(sizes(bench)?);
    }
    Ok(sections)
}

/// Peak memory of a scan that has nothing to do.
fn baseline(bench: &Bench) -> Result<f64> {
    let heap = bench.heap(&["--mib", "1"])?;
    let peaks = (0..3).map(|_| Ok(bench.scan(&heap)?.peak_mib)).collect::<Result<Vec<_>>>()?;
    median(peaks)
}

fn shapes(bench: &Bench) -> Result<Section> {
    let columns =
        ["shape", "blocks", "scan_ms", "whole command", "processor time", "memory", "bytes per block"];
    let mut section = Section {
        title: "Time and memory of a scan".to_owned(),
        about: ABOUT.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let mib: u64 = if bench.quick { 256 } else { 1024 };
    let baseline = baseline(bench)?;
    let mut heaps = Vec::new();
    for (name, order) in SHAPES {
        heaps.push((name, bench.heap(&["--mib", &mib.to_string(), "--order", order])?, Vec::<Scan>::new()));
    }
    let (name, arguments) = STACKS;
    heaps.push((name, bench.heap(&arguments)?, Vec::new()));
    let order: Vec<usize> = (0..heaps.len()).collect();
    for round in 0..bench.rounds(ROUNDS) {
        for index in rotated(&order, round) {
            let Some((_, heap, scans)) = heaps.get_mut(index) else { continue };
            heap.touch()?;
            scans.push(bench.scan(heap)?);
        }
    }
    for (name, heap, scans) in &heaps {
        let of = |what: fn(&Scan) -> f64| scans.iter().map(what);
        let memory = median(of(|scan| scan.peak_mib))? - baseline;
        let blocks = heap.value("blocks")?;
        section.rows.push(vec![
            (*name).to_owned(),
            number(blocks, 0, false),
            show(of(|scan| scan.scan_ms), 0),
            show(of(|scan| scan.wall_ms), 0),
            show(of(|scan| scan.cpu_ms), 0),
            format!("{memory:.1} MiB"),
            number(memory * 1048576.0 / blocks, 2, false),
        ]);
        if *name == STACKS.0 {
            continue;
        }
        let bound = |what: &str, limit, measured, unit| Bound {
            name: format!("{}, {name}: {what}", gib(mib)),
            limit,
            measured,
            unit,
            at_least: false,
        };
        section.bounds.extend([
            bound("scan_ms", 1000.0, median(of(|scan| scan.scan_ms))?, " ms"),
            bound("the whole command", 1000.0, median(of(|scan| scan.wall_ms))?, " ms"),
            bound("memory", 80.0, memory, " MiB"),
        ]);
    }
    section.remarks.push(format!(
        "Rounds: {}. Peak memory of a scan with hardly a block: {baseline:.1} MiB.",
        bench.rounds(ROUNDS)
    ));
    progress("scan done");
    Ok(section)
}

fn sizes(bench: &Bench) -> Result<Section> {
    let columns = [
        "heap",
        "blocks",
        "scan_ms",
        "per GiB",
        "whole command",
        "whole command per GiB",
        "memory",
        "bytes per block",
    ];
    let mut section = Section {
        title: "Linearity".to_owned(),
        about: ABOUT_LINEAR.to_owned(),
        columns: columns.map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let baseline = baseline(bench)?;
    let most = if bench.quick { 1024 } else { 8192 };
    // Milliseconds per GiB of 1 GiB.
    let mut one_gib = None;
    let mut largest = None;
    for (mib, rounds) in SIZES {
        if mib > most || (mib >= LARGE && !bench.large) {
            section.remarks.push(format!(
                "not measured: {}: {}",
                gib(mib),
                if bench.quick { "a quick run" } else { "only with `--large`" }
            ));
            continue;
        }
        if !has_memory(mib + mib / 4) {
            section.remarks.push(format!("not measured: {}: too little memory is free", gib(mib)));
            continue;
        }
        let heap = bench.heap(&["--mib", &mib.to_string(), "--order", "shuffled"])?;
        let scans = (0..bench.rounds(rounds)).map(|_| bench.scan(&heap)).collect::<Result<Vec<_>>>()?;
        let size = mib as f64 / 1024.0;
        let of = |what: fn(&Scan) -> f64| scans.iter().map(what);
        let memory = median(of(|scan| scan.peak_mib))? - baseline;
        let blocks = heap.value("blocks")?;
        let per_gib = median(of(|scan| scan.scan_ms))? / size;
        let whole_per_gib = median(of(|scan| scan.wall_ms))? / size;
        section.rows.push(vec![
            gib(mib),
            number(blocks, 0, false),
            show(of(|scan| scan.scan_ms), 0),
            number(per_gib, 0, false),
            show(of(|scan| scan.wall_ms), 0),
            number(whole_per_gib, 0, false),
            format!("{memory:.1} MiB"),
            number(memory * 1048576.0 / blocks, 2, false),
        ]);
        if mib == 1024 {
            one_gib = Some((per_gib, whole_per_gib));
        }
        largest = Some((mib, per_gib, whole_per_gib));
        progress(&format!("linear, {}: {per_gib:.0} ms per GiB", gib(mib)));
    }
    if let (Some((scan, whole)), Some((mib, scan_there, whole_there))) = (one_gib, largest)
        && mib > 1024
    {
        let bound = |what: &str, measured| Bound {
            name: format!("linear: {what} per GiB of {}, of that of 1 GiB", gib(mib)),
            limit: NEARLY,
            measured,
            unit: "",
            at_least: false,
        };
        section.bounds.push(bound("scan_ms", scan_there / scan));
        section.bounds.push(bound("the whole command", whole_there / whole));
    }
    section.remarks.push("Rounds: 3; 2 from 2 GiB on, 1 of 8 GiB.".to_owned());
    Ok(section)
}
