//! `leakscope run --sample`: the estimates against what the programs are known to do, over many seeds.

use crate::kill::{THREADS, read_account};
use crate::support::build::{compile, source};
use crate::support::case::case;
use crate::support::directory::Directory;
use crate::support::marks::{contradictions, line_containing, marks_of};
use crate::support::process::run;
use crate::support::report::{Report, Site};
use crate::support::traced::{Run, leakscope};
use std::path::Path;

/// How far a mean may be from the truth, in its own standard deviations: seeds are fixed, so that a test that passes goes on
/// passing, unless chance is drawn in another order.
const SIGMAS: f64 = 4.5;

fn report(run: Run) -> Report {
    let traced = run.traced();
    assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
    traced.report()
}

/// A line of `sampled_sizes.c`.
struct Line {
    number: u32,
    times: f64,
    size: f64,
    freed: bool,
}

/// The lines that say `n=` and `size=`.
fn lines() -> Vec<Line> {
    let text = source("sampled_sizes.c");
    let marked = text.lines().zip(1..).filter_map(|(line, number)| {
        let (_, comment) = line.rsplit_once("// ")?;
        let value = |name: &str| {
            let text = comment.split_whitespace().find_map(|word| word.strip_prefix(name))?;
            Some(text.parse::<f64>().expect("a number"))
        };
        let freed = comment.ends_with("freed");
        Some(Line { number, times: value("n=")?, size: value("size=")?, freed })
    });
    marked.collect()
}

#[test]
fn estimates_of_each_call_site_are_unbiased_and_so_are_their_errors() {
    const INTERVAL: u64 = 16 << 10;
    const SEEDS: u64 = 40;
    let program = compile("sampled_sizes.c", &["-O0"]);
    let reports: Vec<Report> =
        (1..=SEEDS).map(|seed| report(Run::new([&program]).sampled(INTERVAL, seed))).collect();
    for report in &reports {
        let sampling = report.sampling.as_ref().expect("a sampled profile");
        assert_eq!(sampling.interval_bytes, INTERVAL);
        assert_eq!(report.totals.samples.as_ref().map(|samples| samples.allocated), Some(sampling.samples));
        // The sites are sampled independently of each other.
        let squares = report.sites.iter().filter_map(|site| site.standard_error.as_ref());
        let sum = squares.map(|error| error.inuse_bytes.powi(2)).sum::<f64>().sqrt();
        let total = report.totals.standard_error.as_ref().map_or(0.0, |error| error.inuse_bytes);
        assert!((total - sum).abs() <= 1e-6 * sum, "{total}, of the sites together {sum}");
    }
    let lines = lines();
    assert_eq!(lines.len(), 13);
    for line in &lines {
        // What `sampling` promises: P = 1 - exp(-(size + 1) / interval), independently.
        let p = 1.0 - (-(line.size + 1.0) / INTERVAL as f64).exp();
        let sum = |of: fn(&Site) -> f64| -> f64 {
            let of_report =
                |report: &Report| report.sites_at("sampled_sizes.c", line.number).map(of).sum::<f64>();
            reports.iter().map(of_report).sum::<f64>() / SEEDS as f64
        };
        let check = |what: &str, found: f64, truth: f64, unit: f64| {
            let deviation = (line.times * unit * unit * (1.0 - p) / p / SEEDS as f64).sqrt();
            assert!(
                (found - truth).abs() <= SIGMAS * deviation + 1.0,
                "line {}: {what} is {found} on average, should be {truth} ± {deviation}",
                line.number
            );
        };
        check("blocks", sum(|site| site.allocated_blocks as f64), line.times, 1.0);
        check("bytes", sum(|site| site.allocated_bytes as f64), line.times * line.size, line.size);
        if line.freed {
            let left = |report: &Report| {
                report.sites_at("sampled_sizes.c", line.number).any(|site| site.inuse_blocks > 0)
            };
            assert!(!reports.iter().any(left), "line {}: a freed block is in use", line.number);
            continue;
        }
        check("blocks in use", sum(|site| site.inuse_blocks as f64), line.times, 1.0);
        check("bytes in use", sum(|site| site.inuse_bytes as f64), line.times * line.size, line.size);
        // The mean of the squared errors that the reports state is the true variance.
        let variance = line.times * (1.0 - p) / p;
        let stated = sum(|site| site.standard_error.as_ref().map_or(0.0, |error| error.inuse_blocks.powi(2)));
        // Each record contributes (1 - p) / p^2 to it.
        let deviation = (line.times * p * (1.0 - p) / SEEDS as f64).sqrt() * (1.0 - p) / (p * p);
        assert!(
            (stated - variance).abs() <= SIGMAS * deviation + 1e-6 * variance,
            "line {}: the variance is stated as {stated}, should be {variance} ± {deviation}",
            line.number
        );
        let bytes = sum(|site| site.standard_error.as_ref().map_or(0.0, |error| error.inuse_bytes.powi(2)));
        let expected = stated * line.size * line.size;
        assert!((bytes - expected).abs() <= 1e-6 * expected, "line {}: {bytes}, {expected}", line.number);
    }
    // Freed by their own thread before it allocated anything else, be that recorded or not.
    let number = |name: &str| line_containing("sampled_sizes.c", name);
    for report in &reports {
        for site in report.sites_at("sampled_sizes.c", number("// CHURN")) {
            assert_eq!(site.temporary_blocks, site.allocated_blocks, "{site:?}");
        }
        for site in report.sites_at("sampled_sizes.c", number("// HELD")) {
            assert_eq!(site.temporary_blocks, 0, "{site:?}");
        }
    }
}

#[test]
fn the_same_seed_records_the_same_allocations_and_none_others() {
    let program = compile("sampled_sizes.c", &["-O2"]);
    let run = |seed| {
        let report = report(Run::new([&program]).sampled(64 << 10, seed));
        let sites = report.sites.iter().map(|site| (site.allocated_bytes, site.inuse_bytes));
        let mut sites: Vec<(u64, u64)> = sites.collect();
        sites.sort_unstable();
        sites
    };
    let first = run(5);
    assert_eq!(first, run(5));
    assert_ne!(first, run(6));
}

#[test]
fn what_is_freed_is_never_reported_as_in_use_whichever_thread_freed_it() {
    let program = compile("all_is_freed.c", &["-O2"]);
    let sources = ["all_is_freed.c".to_owned()];
    for interval in [1, 100, 10_000, 512 << 10] {
        let report = report(Run::new([&program]).sampled(interval, 3));
        let found = report.found(&sources);
        assert!(found.values().any(|found| found.heap_allocated.0 > 100 << 20), "at {interval}: {found:?}");
        let contradictions = contradictions(&marks_of(&sources, "main"), &found);
        assert!(contradictions.is_empty(), "at {interval}:\n{}", contradictions.join("\n"));
        assert!(report.totals.peak_bytes > 1 << 20, "at {interval}: {:?}", report.totals);
        assert_eq!(report.totals.missed_events, 0, "at {interval}");
    }
}

#[test]
fn threads_that_free_for_each_other_are_estimated_without_bias() {
    const INTERVAL: f64 = 32_768.0;
    const RUNS: u64 = 6;
    let program = compile("counted_churn.c", &["-O2"]);
    let site = |number: usize| -> u32 {
        let text = source("counted_churn.c");
        let mark = format!("// SITE {number}");
        text.lines().position(|line| line.ends_with(&mark)).expect("the site") as u32 + 1
    };
    // Blocks and bytes allocated, and in use: what the reports say less what is true, and the variance of that.
    let mut sums = [[(0.0, 0.0); 4]; 3];
    for seed in 1..=RUNS {
        let directory = Directory::new();
        let account = directory.join("account");
        let threads = THREADS.to_string();
        let arguments = [program.as_os_str(), account.as_os_str(), threads.as_ref(), "300000".as_ref()];
        let report = report(Run::new(arguments).sampled(INTERVAL as u64, seed));
        let truth = read_account(&account);
        for (number, sums) in sums.iter_mut().enumerate() {
            let sum = |of: fn(&Site) -> u64| {
                report.sites_at("counted_churn.c", site(number)).map(|site| of(site) as f64).sum::<f64>()
            };
            let [blocks, bytes] = truth.allocate_done[number].map(|value| value as f64);
            let [freed_blocks, freed_bytes] = truth.free_done[number].map(|value| value as f64);
            let (left_blocks, left_bytes) = (blocks - freed_blocks, bytes - freed_bytes);
            // A block of k bytes adds (1 - p) / p < INTERVAL / (k + 1) to the variance of blocks, k^2 times that to that of
            // bytes; sizes are uniform from 16 to 2015.
            let per_block = INTERVAL * (2016.0f64 / 16.0).ln() / 2000.0;
            for (sum, (error, variance)) in sums.iter_mut().zip([
                (sum(|site| site.allocated_blocks) - blocks, blocks * per_block),
                (sum(|site| site.allocated_bytes) - bytes, bytes * INTERVAL),
                (sum(|site| site.inuse_blocks) - left_blocks, left_blocks * per_block),
                (sum(|site| site.inuse_bytes) - left_bytes, left_bytes * INTERVAL),
            ]) {
                *sum = (sum.0 + error, sum.1 + variance);
            }
        }
    }
    for (number, sums) in sums.iter().enumerate() {
        for (error, variance) in sums {
            // Which thread gets which seed is not fixed.
            assert!(error.abs() <= 6.0 * variance.sqrt(), "site {number}: {error} ± {}", variance.sqrt());
        }
    }
}

/// The report of the child of `child_frees_inherited.c`, how many blocks it inherited and how many of those it freed.
fn child_of(run: Run) -> (Report, f64, f64) {
    let traced = run.traced();
    assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
    let mut children = traced.other_reports();
    assert_eq!(children.len(), 1, "{:?}", traced.other_heaps());
    let child = children.remove(0);
    let note = child.notes.iter().find(|note| note.contains("it inherited")).expect("a note");
    let freed = note.split("freed ").nth(1).and_then(|rest| rest.split(' ').next());
    let freed = freed.and_then(|number| number.parse().ok()).expect("a number");
    let inherited = child.totals.inherited_blocks as f64;
    (child, inherited, freed)
}

#[test]
fn a_child_frees_what_it_inherited_once() {
    let program = compile("child_frees_inherited.c", &["-O0"]);
    // At one byte, blocks of 100 are recorded for certain.
    for run in [Run::new([&program]), Run::new([&program]).sampled(1, 9)] {
        let (child, inherited, freed) = child_of(run);
        assert!((1000.0..1100.0).contains(&inherited), "inherited {inherited}");
        // In a sample, one whose address cannot be told from another's is not counted.
        assert!((390.0..=400.0).contains(&freed), "freed {freed}");
        let found = child.found(&["child_frees_inherited.c".to_owned()]);
        let blocks: u64 = found.values().map(|found| found.heap.1).sum();
        assert_eq!(blocks, 1, "{found:?}");
        let allocated: u64 = found.values().map(|found| found.heap_allocated.1).sum();
        assert_eq!(allocated, 4001, "{found:?}");
    }
    // Blocks that were not recorded took the place of recorded ones: that they are freed counts for nothing.
    for seed in 1..=5 {
        let (_, inherited, freed) = child_of(Run::new([&program]).sampled(50, seed));
        let p = 1.0 - (-101.0f64 / 50.0).exp();
        let deviation = |blocks: f64| SIGMAS * (blocks * (1.0 - p) / p).sqrt();
        assert!((inherited - 1000.0).abs() < deviation(1000.0) + 100.0, "inherited {inherited}");
        assert!((freed - 400.0).abs() < deviation(400.0) + 10.0, "freed {freed}");
    }
}

#[test]
fn floating_point_state_is_the_programs_own() {
    case("float_environment_untouched.c").flags(&["-O2", "-lm", "-frounding-math"]).check();
}

#[test]
fn an_interval_that_is_none_is_wrong_usage_and_says_how_to_write_one() {
    let directory = Directory::new();
    let ran = |path: &Path| path.exists();
    for (value, words) in [
        ("--sample=0", "at least 1"),
        ("--sample=many", "such as 65536, 512K or 1MiB"),
        ("--sample=-5", "such as 65536, 512K or 1MiB"),
        ("--sample=2000G", "at most 1024 GiB"),
    ] {
        let file = directory.join("ran");
        let outcome = run(leakscope(["run", value, "--", "touch"]).arg(&file));
        assert_eq!(outcome.code(), 2, "{value}: {}", outcome.err());
        assert!(outcome.err().contains(words), "{value}: {}", outcome.err());
        assert!(!ran(&file), "{value}: the command was run");
    }
    let outcome = run(&mut leakscope(["run", "--sample", "true"]));
    assert_eq!(outcome.code(), 2);
    assert!(outcome.err().contains("if \"true\" is the command, write -- before it"), "{}", outcome.err());
    for options in [&["--sample"] as &[&str], &["--sample", "64K"], &["--sample=64K"], &["--sample", "1"]] {
        let heap = directory.join("heap");
        let outcome = run(leakscope(["run", "-o"]).arg(&heap).args(options).args(["--", "true"]));
        assert_eq!(outcome.code(), 0, "{options:?}: {}", outcome.err());
        let _ = std::fs::remove_file(&heap);
    }
    let outcome = run(leakscope(["run", "--sample", "--", "true"]).env("LEAKSCOPE_SEED", "x"));
    assert_eq!(outcome.code(), 125, "{}", outcome.err());
    assert!(outcome.err().contains("LEAKSCOPE_SEED"), "{}", outcome.err());
}
