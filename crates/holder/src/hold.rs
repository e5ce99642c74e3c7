//! What outlives its command: daemons. leakscope ends with the command; a second holder stays with them.
//!
//! leakscope makes itself the reaper of its descendants, so that it sees whether any of them outlives the command.
//! Then it starts itself once more, in the background and away from the terminal; that process keeps the arena
//! going and seals the remaining heap files as the processes end.

use crate::keeper::Keeper;
use crate::watcher::Work;
use crate::{Error, SealedFile};
use leakscope_heapfile::Arena;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(8);

/// Makes this process the reaper of orphaned descendants.
pub(crate) fn adopt_orphans() {
    // SAFETY: affects only who becomes the parent of orphans.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
}

/// Pids of this process's children that still run. Ended ones are reaped.
pub(crate) fn remaining_children() -> Vec<u32> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            pid if pid > 0 => {}
            // None at all: the usual case, found without looking further.
            -1 => return Vec::new(),
            _ => break,
        }
    }
    let own = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid: &u32| {
            leakscope_proc::stat(Path::new("/proc"), pid)
                .is_ok_and(|stat| stat.parent == own && !stat.has_ended())
        })
        .collect()
}

/// Starts the second holder. It needs a program that calls [`hold`] with these arguments: leakscope itself.
///
/// # Errors
/// If it cannot be started.
pub(crate) fn leave_behind(
    arena: &Path,
    file: &Path,
    pids: &[u32],
    limits: (usize, u64),
) -> Result<(), Error> {
    let program = PathBuf::from("/proc/self/exe");
    let mut command = Command::new(&program);
    command.arg("hold").arg(arena).arg(file);
    command.arg("--max-children").arg(limits.0.to_string());
    command.arg("--max-children-bytes").arg(limits.1.to_string());
    command.args(pids.iter().map(u32::to_string));
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            Ok(())
        });
    }
    command.spawn().map(drop).map_err(Error::io("start", &program, None))
}

/// The second holder's work: keeps the arena until the given processes, and those found in it, have ended.
///
/// # Errors
/// If the arena cannot be opened.
pub fn hold(arena: &Path, file: &Path, pids: &[u32], limits: (usize, u64)) -> Result<Vec<SealedFile>, Error> {
    let mask = crate::signals::block();
    let arena = Arc::new(Arena::open_to_hold(arena)?);
    let keeper = Keeper::new(arena.clone());
    let mut work = Work::new(arena, 0, file.into(), limits);
    let mut given: Vec<(u32, u64)> = pids
        .iter()
        .filter_map(|&pid| Some((pid, leakscope_proc::stat(Path::new("/proc"), pid).ok()?.start_ticks)))
        .collect();
    let mut round = 0u32;
    loop {
        keeper.tick();
        if round.is_multiple_of(5) {
            given.retain(|&(pid, start)| {
                leakscope_proc::stat(Path::new("/proc"), pid)
                    .is_ok_and(|stat| stat.start_ticks == start && !stat.has_ended())
            });
            if work.round() == 0 && given.is_empty() {
                break;
            }
        }
        round = round.wrapping_add(1);
        std::thread::sleep(INTERVAL);
    }
    crate::signals::restore(&mask);
    Ok(work.finish())
}
