//! `leakscope run`.

use anyhow::{Context, Result};
use leakscope_holder::{Options, Outcome};
use leakscope_profile::{Profile, View, formats};
use leakscope_report::TextOptions;
use leakscope_symbols::symbolize;
use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// The tracer's shared object, built beside this binary and carried in it.
static TRACER: &[u8] = include_bytes!(env!("LEAKSCOPE_TRACER_OBJECT"));

/// Arguments of `leakscope run`.
#[derive(clap::Args)]
#[command(after_help = "\
Standard input, output and error are the command's own; the report goes to standard error after it has ended, and \
leakscope exits as the command did (128 + N for signal N). Signals sent to leakscope go on to the command.

The heap file can be read at any time, also while the command runs: leakscope report FILE.")]
pub struct Args {
    /// Write the heap file here (it must not exist); a child's goes to FILE.<pid> [default: a new directory
    /// under $XDG_STATE_HOME/leakscope, or /var/lib/leakscope for root]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also write the report as JSON (schema leakscope.report/1) to this file
    #[arg(long, value_name = "FILE", require_equals = true)]
    json: Option<PathBuf>,
    /// Call sites to show
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Heap files of child processes to keep; those with nothing unfreed go first
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_children: usize,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Most bytes of children's heap files that a run keeps.
const MAX_CHILDREN_BYTES: u64 = 256 << 20;

/// Runs the command, prints the report, and exits as the command did.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = Options {
        command: args.command.clone(),
        output: args.output.clone(),
        tracer: TRACER,
        max_children: args.max_children,
        max_children_bytes: MAX_CHILDREN_BYTES,
    };
    let outcome = leakscope_holder::run(&options)?;
    // From here on the command's own status counts; what fails is said, and changes nothing.
    if let Err(error) = report(args, &outcome) {
        eprintln!("leakscope: {error:#}");
    }
    Ok(ExitCode::from(outcome.ended.exit_status()))
}

fn report(args: &Args, outcome: &Outcome) -> Result<()> {
    let mut err = std::io::stderr().lock();
    let Some(file) = &outcome.file else {
        for note in &outcome.notes {
            writeln!(err, "leakscope: {note}")?;
        }
        if outcome.notes.is_empty() {
            writeln!(
                err,
                "leakscope: the command allocated nothing that could be traced: no heap file was written"
            )?;
        }
        return Ok(());
    };
    let mut profile: Profile = formats::read_heap_file(file, None)?;
    profile.notes.extend(outcome.notes.iter().cloned());
    profile.notes.extend(children_note(outcome));
    let symbols = symbolize(&profile, &leakscope_symbols::Options::from_env())
        .context("cannot name the addresses of the profile")?;
    let options = TextOptions {
        view: View::InUse,
        top: args.top,
        color: std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    write!(err, "{}", leakscope_report::text(&profile, &symbols, &options))?;
    writeln!(err, "\nheap file: {}", file.display())?;
    if let Some(path) = &args.json {
        let json = leakscope_report::json(&profile, &symbols, View::InUse);
        let text = serde_json::to_vec_pretty(&json)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn children_note(outcome: &Outcome) -> Option<String> {
    let kept = outcome.children.len();
    let largest = outcome.children.iter().max_by_key(|file| file.unfreed);
    match (kept, outcome.dropped, largest) {
        (0, 0, _) => None,
        (_, dropped, Some(largest)) => Some(format!(
            "{} child processes were traced too; {kept} heap files kept{}; the most unfreed memory ({}) is in {}",
            kept + dropped,
            if dropped > 0 { format!(" ({dropped} dropped)") } else { String::new() },
            leakscope_report::bytes(largest.unfreed),
            largest.path.display()
        )),
        (_, dropped, None) => {
            Some(format!("{dropped} child processes were traced; none of their heap files was kept"))
        }
    }
}
