//! `leakscope run`.

use crate::cli::{DEBUGINFOD, NO_COLOR, STATE_HOME, Section};
use crate::{exit, report, sampling};
use anyhow::{Context, Result};
use clap::ValueHint;
use leakscope_holder::{AtExit, Options, Outcome, Sampling};
use leakscope_profile::{Profile, View, formats};
use leakscope_report::TextOptions;
use leakscope_symbols::symbolize;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// The tracer's shared object, built beside this binary and carried in it.
static TRACER: &[u8] = include_bytes!(env!("LEAKSCOPE_TRACER_OBJECT"));

/// What help and man page end with.
pub const SECTIONS: &[Section] = &[
    Section {
        heading: "Exit status",
        items: &[
            ("0 to 255", "The command's own."),
            ("128 + N", "Signal N ended the command."),
            ("2", "Wrong usage; the command was not run."),
            ("125", "leakscope could not do its work, and did not run the command; standard error says why."),
            ("126", "The command could not be executed."),
            ("127", "The command was not found."),
        ],
    },
    Section {
        heading: "Environment",
        items: &[
            STATE_HOME,
            DEBUGINFOD,
            NO_COLOR,
            (
                "LD_PRELOAD",
                "The command gets its own with the tracer in front; what the user had set stays in force.",
            ),
            (
                "LEAKSCOPE_ARENA",
                "Set by leakscope for the command and its children: where they are traced into.",
            ),
        ],
    },
    Section {
        heading: "Files",
        items: &[
            (
                "$XDG_STATE_HOME/leakscope/runs/",
                "A directory per run without -o: heap is the command's heap file, heap.<pid> a child's; last leads to \
                 the last run. Nothing is removed from here by itself.",
            ),
            (
                "/dev/shm/leakscope-*",
                "The memory that a run is traced into, until it has ended; the heap file's name leads to it. If \
                 leakscope is killed it stays, and holds everything: leakscope report FILE shows it, and a later run \
                 writes it to its heap file once its processes have ended.",
            ),
        ],
    },
];

/// Arguments of `leakscope run`.
#[derive(clap::Args)]
#[command(override_usage = "leakscope run [OPTIONS] -- <COMMAND>...")]
pub struct Args {
    /// Write the heap file here (it must not exist); a child's goes to FILE.<pid> [default: a new directory
    /// under $XDG_STATE_HOME/leakscope, or /var/lib/leakscope for root]
    ///
    /// It is readable by its owner only. A program that a process executed after another one is in FILE.<pid>.2
    /// and so on. While the command runs, FILE leads to the memory that it is traced into.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Record a sample of the allocations instead of all: one per so many bytes on average [without BYTES: 512K]
    ///
    /// So the command runs at very nearly its own speed, and the numbers of the report are estimates, with their
    /// standard errors. Which allocations are recorded is chance: each byte is as likely as any other to be hit, so that
    /// large and frequent ones are found first. BYTES is a whole number with an optional unit: K, M, G, KiB, MiB or
    /// GiB, of 1024 each.
    #[arg(long, value_name = "BYTES", num_args = 0..=1, default_missing_value = "512K")]
    #[arg(value_parser = sampling::interval)]
    sample: Option<u64>,
    /// Also write the report as JSON (schema leakscope.report/1) to this file
    ///
    /// A file that exists is overwritten; it stays empty if the command could not be traced. Bytes, blocks and
    /// seconds are plain numbers, times are RFC 3339 in UTC.
    #[arg(long, value_name = "FILE", require_equals = true, value_hint = ValueHint::FilePath)]
    json: Option<PathBuf>,
    /// Call sites to show
    ///
    /// The heap file and JSON hold all of them.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// Heap files of child processes to keep; those with nothing unfreed go first
    ///
    /// The kept ones take at most 256 MiB of disk together; beyond that too, those with the least unfreed memory
    /// are removed. The report says how many were.
    #[arg(long, value_name = "N", default_value_t = MAX_CHILDREN)]
    max_children: usize,
    /// The command and its arguments
    ///
    /// It is looked up in PATH, as a shell does. What follows it, options too, is its own.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    #[arg(value_hint = ValueHint::CommandWithArguments)]
    command: Vec<OsString>,
}

/// Most heap files of children that a run keeps.
const MAX_CHILDREN: usize = 100;
/// Most bytes of children's heap files that a run keeps.
const MAX_CHILDREN_BYTES: u64 = 256 << 20;

/// Runs the command, prints the report, and exits as the command did.
pub fn run(args: &Args) -> Result<ExitCode> {
    let options = Options {
        max_children: args.max_children,
        sampling: sampling::every(args.sample.unwrap_or(0))?,
        ..holder_options(&args.command, args.output.clone(), None)
    };
    // A place that cannot be written is told now, not when the command has run for a week.
    let json = args.json.as_deref().map(report::create).transpose()?;
    let outcome = leakscope_holder::run(&options)?;
    // From here on the command's own status counts; what fails is said, and changes nothing.
    if let Err(error) = conclude(args, &outcome, json) {
        exit::say(&exit::chain(&error));
    }
    Ok(ExitCode::from(outcome.ended.exit_status()))
}

/// How the holder runs a command.
pub fn holder_options(command: &[OsString], output: Option<PathBuf>, at_exit: Option<AtExit>) -> Options {
    Options {
        command: command.to_vec(),
        output,
        tracer: TRACER,
        max_children: MAX_CHILDREN,
        max_children_bytes: MAX_CHILDREN_BYTES,
        sampling: Sampling::default(),
        at_exit,
    }
}

fn conclude(args: &Args, outcome: &Outcome, json: Option<File>) -> Result<()> {
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
    let symbols = symbolize(&profile, &leakscope_symbols::Options::default())
        .context("cannot name the addresses of the profile")?;
    if let (Some(path), Some(file)) = (&args.json, json) {
        let mut out = BufWriter::new(file);
        let written = leakscope_report::write_json(&profile, &symbols, View::InUse, &mut out);
        // The report for people comes in any case.
        if let Err(error) = written.and_then(|()| out.flush()) {
            writeln!(err, "leakscope: cannot write {}: {error}", path.display())?;
        }
    }
    let options =
        TextOptions { view: View::InUse, top: args.top, color: report::has_color(&std::io::stderr()) };
    write!(err, "{}", leakscope_report::text(&profile, &symbols, &options))?;
    writeln!(err, "\nheap file: {}", file.display())?;
    Ok(())
}

/// Arguments of the hidden `leakscope hold`.
#[derive(clap::Args)]
pub struct HoldArgs {
    /// The arena.
    arena: PathBuf,
    /// The heap file of the command, which the others are named after.
    file: PathBuf,
    /// Processes to wait for, besides those in the arena.
    pids: Vec<u32>,
    /// Heap files to keep.
    #[arg(long, default_value_t = 100)]
    max_children: usize,
    /// Their bytes.
    #[arg(long, default_value_t = MAX_CHILDREN_BYTES)]
    max_children_bytes: u64,
}

/// Stays with processes that outlive their command.
pub fn hold(args: &HoldArgs) -> Result<ExitCode> {
    let limits = (args.max_children, args.max_children_bytes);
    leakscope_holder::hold(&args.arena, &args.file, &args.pids, limits)?;
    Ok(ExitCode::SUCCESS)
}

fn children_note(outcome: &Outcome) -> Option<String> {
    let kept = outcome.children.len();
    let all = kept + outcome.dropped;
    if all == 0 {
        return None;
    }
    let mut note = match all {
        1 => "one more program (a child process, or one that the command replaced) was traced".into(),
        _ => {
            format!("{all} more programs (child processes, and those that were replaced by exec) were traced")
        }
    };
    if outcome.dropped > 0 {
        note.push_str(&format!(
            "; {} heap files were dropped, those with the least unfreed first",
            outcome.dropped
        ));
    }
    if let Some(largest) = outcome.children.iter().max_by_key(|file| file.unfreed) {
        let unfreed = leakscope_report::bytes(largest.unfreed);
        note.push_str(&format!("; the most unfreed memory, {unfreed}, is in {}", largest.path.display()));
    }
    Some(note)
}
