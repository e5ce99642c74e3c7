//! The holder: starts a command under the tracer, keeps the memory of its heap file, and seals one heap file
//! per process at the end.
//!
//! While the command runs, two threads work here and none in the target:
//!
//! * the *keeper* advances the clock that the tracers read, and backs the arena with memory ahead of what they
//!   claim, so that this memory is charged to leakscope and no hook waits for it; it also passes signals on;
//! * the *watcher* notes the timeline, sees processes end, and seals their files.
//!
//! A third one calls back for each process that is about to end, if that is wanted ([`AtExit`]).
//!
//! Should the holder be killed, the tracers go on by themselves within a budget, and what they wrote stays
//! readable at the output path, which is a symbolic link to the arena until it is sealed.

mod command;
mod exits;
mod futex;
mod hold;
mod keeper;
mod limits;
mod nested;
mod places;
mod recover;
mod seal;
mod served;
mod signals;
mod watcher;

pub use command::{Resolved, Untraceable, resolve};
pub use exits::{AtExit, ExitingProcess};
pub use hold::hold;
pub use leakscope_heapfile::sampling::{INTERVAL_MAX, Sampling};
pub use leakscope_target::Memory;
pub use places::{Places, last_run, state_directory};
pub use seal::SealedFile;
pub use served::ServedMemory;

use exits::Exits;
use keeper::Keeper;
use limits::FileSize;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use watcher::Watcher;

/// What could not be done, on what and why.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), hint.map(|hint| format!("; {hint}")).unwrap_or_default())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// The output file is there already.
    #[error(
        "{} exists already; heap files are never overwritten: remove it or name another file with -o",
        path.display()
    )]
    OutputExists {
        /// The file.
        path: PathBuf,
    },
    /// The output is a directory.
    #[error("{} is a directory; name a file in it with -o, such as {}", path.display(), path.join("heap").display())]
    OutputIsDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The command does not exist (exit status 127).
    #[error("cannot run {:?}: {}", name, absence(name))]
    NotFound {
        /// The command.
        name: PathBuf,
    },
    /// The command cannot be executed (exit status 126).
    #[error("cannot run {}: {reason}", name.display())]
    NotExecutable {
        /// The command.
        name: PathBuf,
        /// Why.
        reason: String,
    },
    /// A process cannot serve its memory.
    #[error("process {pid} cannot hand over its memory: {reason}")]
    Unserved {
        /// The process.
        pid: u32,
        /// Why.
        reason: String,
    },
    /// The heap file could not be made.
    #[error(transparent)]
    HeapFile(#[from] leakscope_heapfile::Error),
}

/// Where a command was looked for.
fn absence(name: &Path) -> &'static str {
    if name.as_os_str().as_encoded_bytes().contains(&b'/') {
        "there is no such file"
    } else {
        "no directory in PATH has a program of that name"
    }
}

impl Error {
    fn io(
        action: &'static str,
        path: &Path,
        hint: Option<&'static str>,
    ) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_path_buf();
        move |source| Error::Io { action, path, source, hint }
    }
}

/// What to run, and where its heap file goes.
#[derive(Debug)]
pub struct Options {
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// The heap file of the command itself; none: a new directory of its own for this run.
    pub output: Option<PathBuf>,
    /// The shared object.
    pub tracer: &'static [u8],
    /// Heap files of children that are kept.
    pub max_children: usize,
    /// Their size in bytes, all together.
    pub max_children_bytes: u64,
    /// Which allocations are recorded.
    pub sampling: Sampling,
    /// Called for each process, the command itself and its children, before it ends; none: nothing waits.
    pub at_exit: Option<AtExit>,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

impl Ended {
    /// The status that a shell would report: 128 + N for signal N.
    pub fn exit_status(self) -> u8 {
        match self {
            Ended::Exited(status) => status as u8,
            Ended::Signaled(signal) => 128u8.wrapping_add(signal as u8),
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// How the command ended.
    pub ended: Ended,
    /// The heap file of the command itself; none if it could not be traced.
    pub file: Option<PathBuf>,
    /// The heap files of its children that were kept.
    pub children: Vec<SealedFile>,
    /// How many were not kept.
    pub dropped: usize,
    /// Processes that are still running, traced into the arena that is left in place.
    pub remaining: Vec<u32>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Runs a command to its end.
///
/// # Errors
/// If the command cannot be started, or leakscope cannot do its part. Once the command runs, nothing here stops
/// it: what goes wrong then becomes a note.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let Some(name) = options.command.first() else {
        return Err(Error::NotFound { name: PathBuf::new() });
    };
    let resolved = resolve(name)?;
    let file_size = FileSize::lift();
    let places = Places::prepare(options.output.as_deref(), options.tracer)?;
    let mask = signals::block();
    let arena = Arc::new(places.create_arena(options.sampling)?);
    places.announce(arena.path())?;
    recover::note_output(&arena, &places.file);
    let keeper = Keeper::new(arena.clone());
    keeper.prepare()?;
    let examined = options.at_exit.clone().filter(|_| resolved.untraceable.is_none());
    let exits = Exits::start(arena.clone(), examined);

    hold::adopt_orphans();
    let mut command = Command::new(name);
    command.args(options.command.get(1..).unwrap_or(&[]));
    if resolved.untraceable.is_none() {
        command.env("LD_PRELOAD", places.preload());
        command.env("LEAKSCOPE_ARENA", arena.path());
    }
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            signals::restore(&mask);
            signals::restore_pipe();
            if let Some(file_size) = file_size {
                file_size.restore();
            }
            Ok(())
        });
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(source) => {
            exits.finish(|| ());
            places.abandon(arena.path());
            let reason = match command::missing_interpreter(&resolved.path) {
                Some(interpreter) => format!("its interpreter {} does not exist", interpreter.display()),
                None => source.to_string(),
            };
            return Err(Error::NotExecutable { name: name.into(), reason });
        }
    };
    // What cannot be traced leaves nothing to report on.
    if resolved.untraceable.is_none() {
        places.remember();
    }
    let pid = child.id();
    exits.set_root(pid);
    arena.superblock().root_pid.store(pid, Release);
    let watcher = Watcher::start(arena.clone(), pid, &places, options, exits.claims.clone());
    let ended = keeper.run_until_exit(pid, &exits.waits);
    let failures = exits.finish(|| {
        keeper.tick();
    });
    let mut outcome = watcher.finish(ended);
    outcome.notes.extend(failures);
    if let Some(reason) = resolved.untraceable {
        outcome.notes.push(reason.to_string());
    }
    outcome.notes.extend(keeper.notes());
    places.tidy();
    signals::restore(&mask);
    Ok(outcome)
}
