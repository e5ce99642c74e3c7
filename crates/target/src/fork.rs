//! Freezing a process's memory by letting it make a copy of itself.
//!
//! The copy is born stopped, as a tracee of the tracer of the thread that made it, and never runs a line of the
//! target's code. Until it is bound to leakscope's life (`PTRACE_O_EXITKILL`), its stack leads it to `exit_group`, in
//! case leakscope dies first.

use crate::arch;
use crate::checkpoint::{Step, reached};
use crate::guardian::Guardian;
use crate::inject::{Call, Site};
use crate::ptrace::{self, Event};
use crate::reap::{self, Leftover};
use crate::seccomp::{self, Seen};
use crate::seize::Stopped;
use crate::{LiveMemory, Memory};
use leakscope_proc::{Mapping, maps};
use std::path::Path;
use std::time::{Duration, Instant};

/// A copy, not yet bound.
#[derive(Debug)]
pub struct Copy {
    /// Its pid as leakscope sees it.
    pub pid: u32,
    /// Its pid as its parent sees it.
    pub inner: u32,
    /// What must be read in place of its own memory: what the call's frames have overwritten, and what it lacks.
    pub instead: Vec<(u64, Vec<u8>)>,
    /// The target's mappings, if the copy lacks some.
    pub mappings: Option<Vec<Mapping>>,
}

/// How much memory that a copy lacks (`MADV_DONTFORK`) is copied by hand while the process stands still: some ms.
const MOST_LACKING: u64 = 64 << 20;
/// How long a copy may take for its first steps.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a copy of a stopped process.
///
/// # Errors
/// Why that is not possible. The process stands still as before.
pub fn freeze(
    threads: &[Stopped],
    site: &Site,
    (root, pid): (&Path, u32),
    guardian: Option<&mut Guardian>,
) -> Result<Copy, String> {
    let prepared = site
        .prepare(root, pid, threads, true, Call::Copy)
        .ok_or("none of its threads is where a call can be made without risk")?;
    let memory = LiveMemory::of(root, pid);
    let overwritten = prepared.overwritten(&memory).ok_or("its stack cannot be read")?;
    let mut born = None;
    let mut guardian = guardian;
    let outcome = prepared.run(root, pid, &mut |child| {
        born = Some(child);
        if let Some(guardian) = guardian.as_deref_mut() {
            guardian.tell(child);
        }
    });
    let given_up = |reason: String| {
        if let Some(child) = born {
            kill(child);
        }
        reason
    };
    let outcome = outcome.map_err(|reason| given_up(format!("the call that copies it failed: {reason}")))?;
    let Some(child) = born else {
        let error = std::io::Error::from_raw_os_error(outcome.result.unsigned_abs().try_into().unwrap_or(0));
        return Err(format!("it cannot make a process ({error}; see its limits of processes and memory)"));
    };
    let inner = u32::try_from(outcome.result).unwrap_or(child);
    let mut instead = vec![overwritten];
    let mappings = lacking(root, pid, child, &memory, &mut instead).map_err(given_up)?;
    Ok(Copy { pid: child, inner, instead, mappings })
}

/// Copies the writable memory that the copy lacks, and gives the target's mappings if there are such.
fn lacking(
    root: &Path,
    pid: u32,
    child: u32,
    memory: &LiveMemory,
    instead: &mut Vec<(u64, Vec<u8>)>,
) -> Result<Option<Vec<Mapping>>, String> {
    // Equal sizes, nothing lacks: the lists of mappings need not be read while the process stands still.
    let size = |pid: u32| {
        let text = std::fs::read_to_string(root.join(pid.to_string()).join("statm")).ok()?;
        text.split(' ').next().map(str::to_owned)
    };
    if size(pid) == size(child) {
        return Ok(None);
    }
    let unreadable = |error: leakscope_proc::Error| error.to_string();
    let (theirs, copied) = (maps(root, pid).map_err(unreadable)?, maps(root, child).map_err(unreadable)?);
    let mut total = 0;
    for mapping in theirs.iter().filter(|mapping| mapping.readable && mapping.writable && !mapping.shared) {
        let index = copied.partition_point(|copy| copy.end <= mapping.start);
        if copied.get(index).is_some_and(|copy| copy.start < mapping.end) {
            continue;
        }
        total += mapping.end - mapping.start;
        if total > MOST_LACKING {
            return Err("much of its memory is marked not to be copied (MADV_DONTFORK)".into());
        }
        let mut bytes = vec![0; usize::try_from(mapping.end - mapping.start).unwrap_or(0)];
        let length = memory.read(mapping.start, &mut bytes);
        bytes.truncate(length);
        instead.push((mapping.start, bytes));
    }
    Ok(Some(theirs))
}

/// Binds the copy to the life of the calling thread, and makes it give up the descriptors that it shares with the
/// target.
///
/// # Errors
/// If it is gone or does not stop; it is dead then.
pub fn bind(root: &Path, child: u32) -> Result<(), String> {
    let lost = |what: &str| {
        kill(child);
        format!("its copy {what}")
    };
    let deadline = Instant::now() + PATIENCE;
    match ptrace::wait(child, deadline) {
        Some(Event::Ended) => return Err(lost("was killed at once")),
        None => return Err(lost("did not stop")),
        Some(_) => {}
    }
    ptrace::set_options(child, libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD)
        .map_err(|_| lost("was killed at once"))?;
    reached(Step::Bound);
    let _ = close_descriptors(root, child, deadline);
    reached(Step::Ready);
    Ok(())
}

/// Lets the copy call close_range for everything, unshared: the target's table stays as it is, and nothing is closed
/// for it. Without that call (before Linux 5.11) the table stays shared, so that what the target closes is closed.
fn close_descriptors(root: &Path, child: u32, deadline: Instant) -> std::io::Result<()> {
    let registers = ptrace::registers(child)?;
    ptrace::set_signal_mask(child, u64::MAX)?;
    // Its program counter stands behind a `syscall`.
    let (gadget, _) = arch::instruction(&registers);
    let arguments = [0, u64::from(u32::MAX), u64::from(libc::CLOSE_RANGE_UNSHARE), 0];
    let seen = Seen { number: libc::SYS_close_range, pointer: registers.rip, arguments };
    if seccomp::check(root, child, &[seen]).is_err() {
        return Ok(());
    }
    ptrace::set_registers(child, &arch::calling(&registers, gadget, libc::SYS_close_range, arguments))?;
    let mut calls = 0;
    while calls < 2 {
        ptrace::resume_to_syscall(child, 0)?;
        match ptrace::wait(child, deadline) {
            Some(Event::Syscall) => calls += 1,
            Some(Event::Ended) | None => break,
            Some(_) => {}
        }
    }
    Ok(())
}

/// Ends a copy; it is a zombie under the target then.
pub fn kill(child: u32) {
    // SAFETY: the copy was made by and for the calling thread, which is its tracer, so that its pid is its own until
    // that thread has waited for it.
    unsafe { libc::kill(child as libc::pid_t, libc::SIGKILL) };
    let deadline = Instant::now() + PATIENCE;
    while !matches!(ptrace::wait(child, deadline), Some(Event::Ended) | None) {}
}

/// Ends a copy and makes the target reap it. Says whether nothing is left.
pub fn give_up(root: &Path, pid: u32, copy: Leftover) -> bool {
    kill(copy.pid);
    reached(Step::Killed);
    reap::leftover(root, pid, copy.pid).is_none() || reap::reap(root, pid, copy)
}
