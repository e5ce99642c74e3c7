//! From a process to its leak report: freezes its memory, lists its blocks, finds which of them nothing points to any
//! more, names where they came from.
//!
//! This is where the parts come together; what each of them does is in its own crate: `leakscope-target` (memory and
//! threads at one instant), `leakscope-allocators` (blocks from outside), `leakscope-reach` (what is reachable),
//! `leakscope-leaks` (records and suppressions), `leakscope-symbols` (names).

mod error;
mod holders;
mod listing;
mod modules;
mod places;
mod report;
mod retention;
mod roots;
mod segments;
mod stacks;
mod staleness;
mod tls;
mod traced;
mod types;
mod watch;

pub use error::Error;
pub use staleness::{Referenced, Staleness};
pub use traced::{Traced, own_memory};
pub use watch::Watch;

use leakscope_leaks::{KindSet, LeakReport, Suppressions};
use leakscope_reach::OnProgress;
use leakscope_target::{LiveMemory, Snapshot, SnapshotOptions, Source, core_file};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a heap that was caught in the middle of an operation is looked at again.
const ATTEMPTS: u32 = 4;
/// Wait before that.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(20);

/// What to look for, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// How the process's memory is frozen.
    pub snapshot: SnapshotOptions,
    /// How blocks are followed.
    pub scan: leakscope_reach::Options,
    /// Which records are known and harmless.
    pub suppressions: Suppressions,
    /// Where names come from.
    pub symbols: leakscope_symbols::Options,
    /// Kinds that will be shown: reachable blocks are only named if they are among them.
    pub shown: KindSet,
    /// Kinds that count as errors.
    pub errors: KindSet,
    /// Whether the report holds the first bytes of a block of each record. They can be secrets.
    pub contents: bool,
    /// Whether the report says which reachable memory keeps growing.
    pub retained: bool,
    /// Which memory was in use lately, for that.
    pub referenced: Option<Referenced>,
}

impl Default for Options {
    /// As memcheck does it by default, with the built-in suppressions.
    fn default() -> Options {
        Options {
            snapshot: SnapshotOptions::default(),
            scan: leakscope_reach::Options::default(),
            suppressions: Suppressions::built_in(),
            symbols: leakscope_symbols::Options::default(),
            shown: KindSet::DEFAULT_SHOWN,
            errors: KindSet::DEFAULT_ERRORS,
            contents: false,
            retained: false,
            referenced: None,
        }
    }
}

/// Examines a running process, traced or not. It is frozen for a moment, or, where a frozen copy cannot be made, for the
/// whole scan.
///
/// # Errors
/// If it cannot be frozen or read, or its blocks cannot be listed. It runs on unharmed in any case.
pub fn process(pid: u32, options: &Options, progress: Option<OnProgress<'_>>) -> Result<LeakReport, Error> {
    Ok(scan_once(pid, options, progress, None, false)?.report)
}

/// [`process`], compared with an earlier scan; keeps what a later comparison needs, if that is wanted.
pub(crate) fn scan_once(
    pid: u32,
    options: &Options,
    progress: Option<OnProgress<'_>>,
    earlier: Option<&watch::Kept>,
    keep: bool,
) -> Result<report::Made, Error> {
    refuse_early(pid, &options.snapshot.proc_root)?;
    let mut attempt = 1;
    loop {
        let began = Instant::now();
        let snapshot = leakscope_target::snapshot(pid, &options.snapshot)?;
        if earlier.is_some_and(|earlier| earlier.start_ticks != snapshot.start_ticks) {
            return Err(Error::Replaced { pid });
        }
        let traced = match traced::find(&snapshot) {
            Some(Ok(mut traced)) => {
                traced.exact = snapshot.source == Source::Stopped;
                if !traced.exact {
                    traced.ran_on(began.elapsed());
                }
                Some(traced)
            }
            Some(Err((path, source))) => return Err(Error::HeapFile { pid, path, source }),
            None => None,
        };
        let frozen = Instant::now();
        let listing = listing::list(&snapshot, traced.as_ref())?;
        if !listing.torn.is_empty() && attempt < ATTEMPTS {
            drop(snapshot);
            std::thread::sleep(BETWEEN_ATTEMPTS * attempt);
            attempt += 1;
            continue;
        }
        let source = snapshot.source;
        let pause = snapshot.pause;
        let over_time = report::OverTime { earlier, keep };
        let mut made =
            report::make(&snapshot, listing, traced.as_ref(), frozen, options, over_time, progress)?;
        drop(snapshot);
        let report = &mut made.report;
        report.pause = pause.or_else(|| (source == Source::Stopped).then(|| began.elapsed()));
        if attempt > 1 {
            report.notes.push(format!(
                "the process was looked at {attempt} times, since it was in the middle of an allocation before"
            ));
        }
        return Ok(made);
    }
}

/// Fails if the process's allocator is not understood and no tracer saw its blocks: that is found out while it runs on.
fn refuse_early(pid: u32, root: &Path) -> Result<(), Error> {
    // What is wrong with the process itself, the attempt to freeze it says best.
    let (Ok(memory), Ok(mappings)) = (LiveMemory::open(pid), leakscope_proc::maps(root, pid)) else {
        return Ok(());
    };
    let snapshot = Snapshot {
        pid,
        start_ticks: 0,
        command: Vec::new(),
        executable: leakscope_proc::executable(root, pid).unwrap_or_default(),
        mappings,
        threads: Vec::new(),
        auxv: Vec::new(),
        memory: Box::new(memory),
        source: Source::Stopped,
        pause: None,
        root: root.join(pid.to_string()).join("root"),
        notes: Vec::new(),
    };
    match traced::arena_mapping(&snapshot) {
        Some(_) => Ok(()),
        None => Ok(leakscope_allocators::check(&snapshot)?),
    }
}

/// Examines a core file. `executable` is the program, if it is not where the core file says; `root` is where the paths of
/// its libraries are looked up.
///
/// # Errors
/// If the core file cannot be read, or the blocks in it cannot be listed.
pub fn core(
    path: &Path,
    executable: Option<&Path>,
    root: &Path,
    options: &Options,
    progress: Option<OnProgress<'_>>,
) -> Result<LeakReport, Error> {
    let snapshot = core_file::open(path, executable, root)?;
    let began = Instant::now();
    let listing = listing::list(&snapshot, None)?;
    Ok(report::make(&snapshot, listing, None, began, options, report::OverTime::default(), progress)?.report)
}

/// Examines a snapshot that the caller has taken, such as of a process at its end.
///
/// # Errors
/// If its blocks cannot be listed, or names that were asked for cannot be had.
pub fn snapshot(
    snapshot: &Snapshot,
    traced: Option<&Traced>,
    options: &Options,
    progress: Option<OnProgress<'_>>,
) -> Result<LeakReport, Error> {
    let began = Instant::now();
    let listing = listing::list(snapshot, traced)?;
    Ok(report::make(snapshot, listing, traced, began, options, report::OverTime::default(), progress)?.report)
}
