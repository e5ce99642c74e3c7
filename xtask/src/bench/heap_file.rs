//! Bytes of heap file per live block, at its worst: just after a table has grown.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child::{Background, last_lines, progress};
use super::stats::number;
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, arguments, value};

/// One moment of a growing heap.
struct Moment {
    live: f64,
    bytes: f64,
}

/// Grows a heap to a million blocks in small steps and looks at the heap file's allocated blocks at each.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    if !bench.includes("bytes") || !bench.has(Tool::Leakscope) {
        return Ok(None);
    }
    let scratch = bench.scratch()?;
    let words = arguments(&["--mode", "steps", "--ops", "1000000"]);
    let mut command = bench.tools.command(Tool::Leakscope, &bench.churn, &words, scratch.path());
    let stderr = scratch.path().join("stderr");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(std::fs::File::create(&stderr)?);
    let mut traced = Background::start(&mut command)?;
    let mut input = traced.child().stdin.take().context("no pipe to the program")?;
    let output = traced.child().stdout.take().context("no pipe from the program")?;
    let mut moments = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line?;
        if !line.starts_with("result ") {
            continue;
        }
        let files = heap_files(value(&line, "pid")?)?;
        if files.is_empty() {
            bail!("the traced program maps no heap file; leakscope said: {}", last_lines(&stderr));
        }
        // Space is allocated ahead by leakscope's own process, a moment later perhaps.
        let mut bytes = 0;
        for _ in 0..5 {
            let allocated = files.iter().filter_map(|file| std::fs::metadata(file).ok());
            bytes = bytes.max(allocated.map(|file| file.blocks() * 512).sum::<u64>());
            std::thread::sleep(Duration::from_millis(4));
        }
        moments.push(Moment { live: value(&line, "live")?, bytes: bytes as f64 });
        writeln!(input)?;
    }
    drop(input);
    traced.finish(Duration::from_secs(60))?;
    progress("bytes done");
    Ok(Some(section(&moments)))
}

/// The files that the process maps shared, by their paths under `/proc`, which also reach deleted ones.
fn heap_files(pid: f64) -> Result<Vec<PathBuf>> {
    let path = format!("/proc/{pid}/maps");
    let maps = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for line in maps.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [range, permissions, _, _, inode, name, ..] = fields.as_slice() else { continue };
        let shared = permissions.ends_with('s') && name.contains("leakscope") && *inode != "0";
        if shared && !files.iter().any(|(seen, _)| seen == inode) {
            let direct = Path::new(name);
            let path = if direct.exists() {
                direct.to_path_buf()
            } else {
                PathBuf::from(format!("/proc/{pid}/map_files/{range}"))
            };
            files.push(((*inode).to_owned(), path));
        }
    }
    Ok(files.into_iter().map(|(_, path)| path).collect())
}

fn section(moments: &[Moment]) -> Section {
    let mut section = Section {
        title: "Heap file".to_owned(),
        about: "Allocated bytes (`st_blocks`) of the live heap file of a growing heap, looked at whenever it has grown by \
                a 64th; 243 stacks. The worst is just after a table has grown."
            .to_owned(),
        columns: ["live blocks", "file", "bytes per live block"].map(str::to_owned).to_vec(),
        ..Section::default()
    };
    let per_block = |moment: &Moment| moment.bytes / moment.live;
    let mut row = |what: String, moment: &Moment| {
        section.rows.push(vec![
            what,
            format!("{} KiB", number(moment.bytes / 1024.0, 0, false)),
            number(per_block(moment), 1, false),
        ]);
    };
    for live in [100_000.0, 200_000.0, 500_000.0, 1_000_000.0] {
        if let Some(moment) = moments.iter().find(|moment| moment.live >= live) {
            row(number(moment.live, 0, false), moment);
        }
    }
    let large = moments.iter().filter(|moment| moment.live >= 100_000.0);
    if let Some(worst) = large.max_by(|a, b| per_block(a).total_cmp(&per_block(b))) {
        row(format!("worst: at {}", number(worst.live, 0, false)), worst);
        let name = "heap file, per live block at worst".to_owned();
        let measured = per_block(worst);
        section.bounds.push(Bound { name, limit: 32.0, measured, unit: " bytes", at_least: false });
    }
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_moment_counts_only_above_a_hundred_thousand_blocks() {
        let moments = [(50_000.0, 9e6), (100_000.0, 2e6), (150_000.0, 4.5e6), (1e6, 20e6)];
        let section = section(&moments.map(|(live, bytes)| Moment { live, bytes }));
        assert_eq!(section.bounds.first().map(|bound| bound.measured), Some(30.0));
    }
}
