//! `leakscope report`.

use anyhow::{Context, Result, bail};
use leakscope_profile::{View, formats};
use leakscope_report::{Format, TextOptions};
use leakscope_symbols::symbolize;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `leakscope report`.
#[derive(clap::Args)]
pub struct Args {
    /// A heap file [default: the last run's that named none]
    file: Option<PathBuf>,
    /// text, json, pprof, folded or flamegraph
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
    /// Sort and size by: inuse, peak, allocated or temporary
    #[arg(long, value_name = "VIEW", default_value = "inuse")]
    view: View,
    /// JSON (schema leakscope.report/1), to standard output or to FILE
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    json: Option<Option<PathBuf>>,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Call sites to show in text
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// The process to show, in a heap file that is still being written and holds several
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// An unstripped copy of the executable, for names on another machine
    #[arg(long, value_name = "FILE")]
    exe: Option<PathBuf>,
    /// A directory with debug information (searched by build id and by debug link); may be repeated
    #[arg(long, value_name = "DIR")]
    debug_dir: Vec<PathBuf>,
}

/// Renders a heap file.
pub fn report(args: &Args) -> Result<ExitCode> {
    let Some(file) = args.file.clone().or_else(leakscope_holder::last_run) else {
        bail!(
            "there is no last run under {}; name a heap file, or make one with: leakscope run -- COMMAND",
            leakscope_holder::state_directory().display()
        );
    };
    let profile = formats::read_heap_file(&file, args.pid)?;
    let mut options = leakscope_symbols::Options::from_env();
    options.exe = args.exe.clone();
    options.debug_dirs.extend(args.debug_dir.iter().cloned());
    let symbols = symbolize(&profile, &options).context("cannot name the addresses of the profile")?;
    let (format, output) = match &args.json {
        Some(path) => (Format::Json, path.clone().or_else(|| args.output.clone())),
        None => (args.format, args.output.clone()),
    };
    let color = output.is_none() && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let bytes = match format {
        Format::Text => {
            let options = TextOptions { view: args.view, top: args.top, color };
            leakscope_report::text(&profile, &symbols, &options).into_bytes()
        }
        Format::Json => {
            let mut text = serde_json::to_vec_pretty(&leakscope_report::json(&profile, &symbols, args.view))?;
            text.push(b'\n');
            text
        }
        Format::Pprof => leakscope_report::pprof(&profile, &symbols, args.view),
        Format::Folded => leakscope_report::folded(&profile, &symbols, args.view).into_bytes(),
        Format::Flamegraph => {
            let title = profile.process.command.join(" ");
            leakscope_report::flamegraph(&profile, &symbols, args.view, &title).into_bytes()
        }
    };
    match output {
        Some(path) => {
            std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        None => std::io::stdout().lock().write_all(&bytes)?,
    }
    Ok(ExitCode::SUCCESS)
}
