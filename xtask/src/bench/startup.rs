//! Start-up: a program that does nothing, `leakscope run -- true` against `heaptrack true`.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::child::progress;
use super::stats::Spread;
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, rotated};

/// Times `true` under each of the faster tools.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    if !bench.includes("startup") {
        return Ok(None);
    }
    let tools: Vec<Tool> = bench.tools.available().iter().copied().filter(|tool| !tool.is_slow()).collect();
    let rounds = if bench.quick { 5 } else { 41 };
    let mut samples: Vec<(Tool, Vec<f64>)> = tools.iter().map(|tool| (*tool, Vec::new())).collect();
    let order: Vec<usize> = (0..samples.len()).collect();
    for round in 0..rounds {
        for index in rotated(&order, round) {
            let Some((tool, times)) = samples.get_mut(index) else { continue };
            let finished = bench.run(*tool, Path::new("/bin/true"), &[], Duration::from_secs(60))?;
            times.push(finished.wall.as_secs_f64() * 1e3);
        }
    }
    let native = samples.iter().find(|(tool, _)| *tool == Tool::Native).map(|(_, times)| times.clone());
    let native = native.unwrap_or_default();
    let mut section = Section {
        title: "Start-up".to_owned(),
        about: "Milliseconds for `true`, from the start of the command to its end, its report included."
            .to_owned(),
        columns: ["command", "whole", "added"].map(str::to_owned).to_vec(),
        ..Section::default()
    };
    for (tool, times) in &samples {
        let command = match tool {
            Tool::Native => "true".to_owned(),
            Tool::Leakscope => "leakscope run -- true".to_owned(),
            _ => format!("{} true", tool.name()),
        };
        let whole = Spread::of(times.iter().copied()).map(|spread| spread.show(1, false));
        let added = Spread::of(times.iter().zip(&native).map(|(traced, native)| traced - native));
        let shown = added.filter(|_| *tool != Tool::Native).map(|spread| spread.show(1, true));
        section.rows.push(vec![command, whole.unwrap_or_default(), shown.unwrap_or_default()]);
        if let (Tool::Leakscope, Some(added)) = (tool, added) {
            let name = "start-up: `run -- true`, added".to_owned();
            section.bounds.push(Bound {
                name,
                limit: 15.0,
                measured: added.median,
                unit: " ms",
                at_least: false,
            });
        }
    }
    section.remarks.push(format!("Rounds: {rounds}."));
    progress("startup done");
    Ok(Some(section))
}
