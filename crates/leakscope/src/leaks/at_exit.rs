//! A command run under the tracer and examined at its exit.
//!
//! The command waits at its end until it has been seized, goes on to its very last system call, where every thread's
//! memory and registers are still there, and is scanned standing still. Where tracing by `ptrace` is forbidden, it serves
//! its memory itself.

use super::Args;
use crate::{exit, report, run};
use anyhow::{Result, anyhow};
use leakscope_examine::{Options, Traced, own_memory};
use leakscope_holder::{AtExit, ExitingProcess};
use leakscope_leaks::{LeakReport, SnapshotKind};
use leakscope_target::{Registers, Snapshot, Source, Thread};
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a process may take from its last wait to its very end: it may still flush its output.
const TO_THE_END: Duration = Duration::from_secs(10);

/// What came of the command's examination.
type Examined = Arc<Mutex<Option<Result<LeakReport>>>>;

/// Runs the command, examines it at its exit, reports, and exits as it did.
pub(super) fn run(args: &Args, options: Options) -> Result<ExitCode> {
    let json = match &args.json {
        Some(Some(path)) => Some((path, report::create(path)?)),
        Some(None) => {
            exit::say(
                "with a COMMAND, standard output is the command's own: name a file for JSON, as --json=FILE",
            );
            return Ok(ExitCode::from(exit::USAGE));
        }
        None => None,
    };
    let examined: Examined = Arc::default();
    let result = examined.clone();
    let at_exit = AtExit::new(move |process| {
        if process.is_command() {
            let report = examine(process, &options);
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
        }
    });
    let outcome =
        leakscope_holder::run(&run::holder_options(&args.command, args.output.clone(), Some(at_exit)))?;
    let status = ExitCode::from(outcome.ended.exit_status());
    let examined = examined.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut err = std::io::stderr().lock();
    match examined {
        Some(Ok(mut report)) => {
            report.notes.extend(outcome.notes.iter().cloned());
            if let Some((path, file)) = json
                && let Err(error) = args.write_json(&report, &mut BufWriter::new(file), path)
            {
                writeln!(err, "leakscope: {}", exit::chain(&error))?;
            }
            write!(err, "{}", args.text(&report, report::has_color(&std::io::stderr())))?;
        }
        Some(Err(error)) => {
            writeln!(err, "leakscope: the command was not examined: {}", exit::chain(&error))?
        }
        None => {
            let why = match (outcome.notes.is_empty(), outcome.ended) {
                (true, leakscope_holder::Ended::Signaled(signal)) => {
                    format!(
                        "signal {signal} ended it before its exit; its heap file tells what it had not freed"
                    )
                }
                (true, _) => "it ended without coming to an exit that can be examined".to_owned(),
                (false, _) => outcome.notes.join("; "),
            };
            writeln!(err, "leakscope: the command was not examined for leaks: {why}")?;
        }
    }
    if let Some(file) = &outcome.file {
        writeln!(err, "\nheap file: {}", file.display())?;
    }
    Ok(status)
}

fn examine(process: &ExitingProcess, options: &Options) -> Result<LeakReport> {
    let hold = match leakscope_target::hold_at_exit(process.pid()) {
        Ok(hold) => hold,
        Err(error @ leakscope_target::Error::NotPermitted { .. }) => return serve(process, options, &error),
        Err(error) => return Err(error.into()),
    };
    process.release();
    let snapshot = hold.wait_for_exit(TO_THE_END)?;
    let traced = traced(process)?;
    let mut report = leakscope_examine::snapshot(&snapshot, Some(&traced), options, None)?;
    report.source.snapshot = SnapshotKind::Exit;
    Ok(report)
}

/// Examines memory that the process serves itself.
fn serve(
    process: &ExitingProcess,
    options: &Options,
    refused: &leakscope_target::Error,
) -> Result<LeakReport> {
    let traced = traced(process)?;
    let memory = process.serve()?;
    let (tid, sp) = process.waiting_thread();
    let registers = Registers { sp, thread_pointer: memory.thread_pointer(), ..Registers::default() };
    let mut notes = vec![format!(
        "{refused}; so the process served its memory itself, and the stacks of its other threads were read as a whole"
    )];
    if !memory.is_frozen() {
        notes.push("the process could not make a copy of itself: its other threads ran on".to_owned());
    }
    let snapshot = Snapshot {
        pid: process.pid(),
        start_ticks: 0,
        command: Vec::new(),
        executable: traced.heap.process.exe.clone(),
        mappings: leakscope_proc::parse_maps(&memory.maps())
            .ok_or_else(|| anyhow!("the list of its mappings, which it served itself, is not understood"))?,
        threads: vec![Thread { tid, name: Vec::new(), registers }],
        auxv: leakscope_proc::parse_auxv(&memory.auxv()),
        memory: Box::new(memory),
        source: Source::Stopped,
        pause: None,
        root: format!("/proc/{}/root", process.pid()).into(),
        notes,
    };
    let mut report = leakscope_examine::snapshot(&snapshot, Some(&traced), options, None)?;
    report.source.snapshot = SnapshotKind::Exit;
    Ok(report)
}

fn traced(process: &ExitingProcess) -> Result<Traced> {
    let own = own_memory(process.arena(), process.window());
    Ok(Traced::new(process.heap()?, true, own))
}
