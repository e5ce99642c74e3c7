//! What tracing adds to `fork` in a process with a million live blocks.

use std::time::Duration;

use anyhow::Result;

use super::child::progress;
use super::stats::Spread;
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, arguments, rotated, value};

/// Forks a process with a million live blocks, untraced and traced.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    if !bench.includes("fork") || !bench.has(Tool::Leakscope) {
        return Ok(None);
    }
    let tools = [Tool::Native, Tool::Leakscope];
    let names = ["fork_ns", "reaped_ns", "allocating_ns"];
    let mut samples = [const { [const { Vec::new() }; 3] }; 2];
    for round in 0..bench.rounds(5) {
        for which in rotated(&[0, 1], round) {
            let (Some(tool), Some(columns)) = (tools.get(which), samples.get_mut(which)) else { continue };
            let arguments = arguments(&["--mode", "fork", "--ops", "1000000"]);
            let finished = bench.run(*tool, &bench.churn, &arguments, Duration::from_secs(120))?;
            for (name, column) in names.into_iter().zip(columns) {
                column.push(value(&finished.stdout, name)? / 1e6);
            }
        }
    }
    let [native, traced] = samples;
    let mut section = Section {
        title: "fork with a million live blocks".to_owned(),
        about: "Milliseconds, median of 21 forks in each round.".to_owned(),
        columns: ["what", "native", "leakscope", "added"].map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let what = [
        "`fork` in the parent",
        "`fork` until the child, which only exits, is reaped",
        "the same with a child that allocates once (and so gets its own heap file)",
    ];
    for ((what, native), traced) in what.into_iter().zip(&native).zip(&traced) {
        let show =
            |spread: Option<Spread>, signed| spread.map_or_else(String::new, |spread| spread.show(2, signed));
        let added = Spread::of(traced.iter().zip(native).map(|(traced, native)| traced - native));
        section.rows.push(vec![
            what.to_owned(),
            show(Spread::of(native.iter().copied()), false),
            show(Spread::of(traced.iter().copied()), false),
            show(added, true),
        ]);
        // The promise is about forking; what a child then allocates is its own affair.
        if let (true, Some(added)) = (section.bounds.len() < 2, added) {
            let name = format!("{what}, added");
            section.bounds.push(Bound {
                name,
                limit: 2.0,
                measured: added.median,
                unit: " ms",
                at_least: false,
            });
        }
    }
    progress("fork done");
    Ok(Some(section))
}
