//! What can go wrong with another process, said so that its reader can act.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a process or a core file could not be examined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such process, or no longer.
    #[error("process {pid} does not exist")]
    NoSuchProcess {
        /// Its pid.
        pid: u32,
    },
    /// It has ended and waits for its parent.
    #[error(
        "process {pid} has ended already (a zombie: its parent has not reaped it); it has no memory any more"
    )]
    Zombie {
        /// Its pid.
        pid: u32,
    },
    /// A thread of the kernel has no user memory.
    #[error("process {pid} is a kernel thread; it has no memory of its own to examine")]
    KernelThread {
        /// Its pid.
        pid: u32,
    },
    /// A process can have one tracer only.
    #[error(
        "cannot trace process {pid}: process {tracer} ({tracer_name}) traces it already; let that one detach first"
    )]
    AlreadyTraced {
        /// Its pid.
        pid: u32,
        /// Who traces it.
        tracer: u32,
        /// That one's name.
        tracer_name: String,
    },
    /// The kernel refuses.
    #[error("cannot {tried} process {pid}: not permitted, {reason}; {advice}")]
    NotPermitted {
        /// Its pid.
        pid: u32,
        /// What was tried, as a verb.
        tried: &'static str,
        /// Why it is refused, as far as can be told.
        reason: String,
        /// What would allow it.
        advice: String,
    },
    /// It ended, or executed another program, while it was looked at.
    #[error("process {pid} went away while {during}; nothing is left to examine")]
    Vanished {
        /// Its pid.
        pid: u32,
        /// What was being done.
        during: &'static str,
    },
    /// A thread did not stop in time.
    #[error(
        "thread {tid} of process {pid} did not stop within {waited:?} (state {state}: {}); the process was let go \
         on unharmed; try again", state_in_words(*state)
    )]
    NotStopped {
        /// Its pid.
        pid: u32,
        /// The thread.
        tid: u32,
        /// Its state letter.
        state: char,
        /// How long was waited.
        waited: Duration,
    },
    /// Its control group is frozen.
    #[error(
        "process {pid} is frozen by its control group, so it cannot be made to stop or run; thaw it first"
    )]
    Frozen {
        /// Its pid.
        pid: u32,
    },
    /// The process would stand still for too long.
    #[error(
        "process {pid} would stand still for about {} ms, more than the allowed {} ms; allow more (--max-pause), or \
         examine a core file of it", predicted.as_millis(), limit.as_millis()
    )]
    PauseTooLong {
        /// Its pid.
        pid: u32,
        /// How long, by the size of its page tables and the number of its threads.
        predicted: Duration,
        /// What the options allow.
        limit: Duration,
    },
    /// A frozen copy was demanded but cannot be made.
    #[error(
        "cannot make a frozen copy of process {pid}: {reason}; stop it for as long as it is read instead (--no-fork)"
    )]
    CannotFork {
        /// Its pid.
        pid: u32,
        /// Why not.
        reason: String,
    },
    /// It did not end in the given time.
    #[error("process {pid} did not end within {waited:?}; it runs on without being watched")]
    NotEnded {
        /// Its pid.
        pid: u32,
        /// How long was waited.
        waited: Duration,
    },
    /// A call of the kernel failed for a reason that nobody foresaw.
    #[error("cannot {tried} process {pid}: {source}")]
    System {
        /// Its pid.
        pid: u32,
        /// What was tried, as a verb.
        tried: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// Something under `/proc` could not be read.
    #[error(transparent)]
    Proc(#[from] leakscope_proc::Error),
    /// A core file could not be read.
    #[error("cannot read core file {}: {reason}", path.display())]
    Core {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do about it.
        reason: String,
    },
}

/// What a state letter of proc(5) means for somebody who wants the thread to stop.
fn state_in_words(state: char) -> &'static str {
    match state {
        'D' => {
            "in an uninterruptible wait in the kernel, such as for a disk or a vfork child, or frozen by its cgroup"
        }
        'T' => "stopped by a signal",
        't' => "stopped by a tracer",
        'R' => "running",
        'S' => "sleeping",
        'Z' | 'X' => "ended",
        _ => "unknown",
    }
}
