//! Reaping copies in the target. A copy that has ended stays as a zombie under the target, which does not know of it:
//! it got no signal and `waitpid(-1)` does not see it. So the target is made to wait for it by another remote call.

use crate::arch::{self, Doing};
use crate::inject::{Call, ORPHAN_STATUS, Site};
use crate::process;
use crate::seize::{Group, Stopped};
use leakscope_proc::{stat, status, tasks};
use std::path::Path;
use std::time::Duration;

/// How long a thread may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// How many threads are looked at for one that is suited.
const MOST_CANDIDATES: usize = 64;

/// A copy that has ended and was not reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leftover {
    /// Its pid as leakscope sees it.
    pub pid: u32,
    /// Its pid as its parent sees it.
    pub inner: u32,
}

/// The copies that have ended under process `pid` and were not reaped.
pub fn leftovers(root: &Path, pid: u32) -> Vec<Leftover> {
    children(root, pid).into_iter().filter_map(|child| leftover(root, pid, child)).collect()
}

/// Whether `child` is such a copy. No ordinary child has an exit signal of 0; one that a program made by clone(2)
/// itself does not end in one of the two ways in which copies do.
pub fn leftover(root: &Path, pid: u32, child: u32) -> Option<Leftover> {
    let found = stat(root, child).ok()?;
    let ends = [libc::SIGKILL as u32, (ORPHAN_STATUS as u32) << 8];
    (found.parent == pid && found.has_ended() && found.exit_signal == 0 && ends.contains(&found.exit_code))
        .then(|| Leftover {
            pid: child,
            inner: status(root, child)
                .ok()
                .and_then(|status| inner_pid(root, pid, &status.namespace_pids))
                .unwrap_or(child),
        })
}

/// A child's pid in the namespace of its parent: as many levels down as the parent's own.
fn inner_pid(root: &Path, parent: u32, pids: &[u32]) -> Option<u32> {
    let depth = status(root, parent).ok()?.namespace_pids.len();
    pids.get(depth.checked_sub(1)?).copied()
}

fn children(root: &Path, pid: u32) -> Vec<u32> {
    let directory = root.join(pid.to_string()).join("task");
    let mut listed = false;
    let mut children = Vec::new();
    for tid in tasks(root, pid).unwrap_or_default() {
        if let Ok(text) = std::fs::read_to_string(directory.join(tid.to_string()).join("children")) {
            listed = true;
            children.extend(text.split_ascii_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    if !listed {
        // A kernel without CONFIG_PROC_CHILDREN.
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        children.extend(pids.filter(|&child| stat(root, child).is_ok_and(|stat| stat.parent == pid)));
    }
    children
}

/// Makes process `pid` reap its ended child, and says whether that was done. Must be called by a thread that is no
/// tracer of the process.
pub fn reap(root: &Path, pid: u32, leftover: Leftover) -> bool {
    let gone = || self::leftover(root, pid, leftover.pid).is_none();
    let bearer = process::bearer(root, pid);
    let Some(site) = Site::find(root, bearer) else { return gone() };
    let call = Call::Reap(leftover.inner);
    let mut candidates = tasks(root, pid).unwrap_or_default();
    candidates.truncate(MOST_CANDIDATES);
    // One thread is enough, and the others are not disturbed; rather one that does not sleep with a time limit.
    for gentle in [true, false] {
        for &tid in &candidates {
            let Ok(group) = Group::stop_one(root, pid, tid, STOP_TIMEOUT) else { continue };
            let Ok(threads) = group.registers() else { continue };
            let suited = |thread: &Stopped| !gentle || arch::doing(&thread.registers) != Doing::Remembered;
            if threads.iter().all(suited)
                && let Some(prepared) = site.prepare(root, bearer, &threads, false, call)
                && prepared.run(root, bearer, &mut |_| {}).is_ok()
                && gone()
            {
                return true;
            }
        }
    }
    let Ok(group) = Group::stop(root, pid, STOP_TIMEOUT) else { return gone() };
    if let Ok(threads) = group.registers()
        && let Some(prepared) = site.prepare(root, bearer, &threads, true, call)
    {
        let _ = prepared.run(root, bearer, &mut |_| {});
    }
    gone()
}
