//! How a process is to be frozen, decided before it is touched.

use crate::inject::Site;
use crate::{Error, Mode, SnapshotOptions, process};
use leakscope_proc::{Rollup, Status};
use std::path::Path;
use std::time::Duration;

/// What was decided.
#[derive(Debug)]
pub struct Plan {
    /// The process's pid, never a thread's.
    pub pid: u32,
    /// The id under which its memory is found.
    pub bearer: u32,
    /// Where a call can be made in it, if it is to be copied.
    pub site: Option<Site>,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// Copying the page tables of 1 GiB of 4 KiB pages, which are 2 MiB. Measured: 10 to 17 ms.
const PER_PAGE_TABLE_BYTE: f64 = 0.017 / (2 << 20) as f64;
/// Stopping a thread, reading its registers, letting it go. Measured: 20 to 30 µs.
const PER_THREAD: f64 = 40e-6;
const ALWAYS: f64 = 1e-3;
/// Reading and judging a byte while the process stands still: 1 GiB in half a second.
const PER_STOPPED_BYTE: f64 = 0.5 / (1 << 30) as f64;
/// Less anonymous memory than this is not worth a thought of huge pages.
const HUGE_MATTERS: u64 = 64 << 20;

/// Decides.
pub fn make(pid: u32, options: &SnapshotOptions) -> Result<Plan, Error> {
    let root = &options.proc_root;
    let status = process::check_patiently(root, pid)?;
    let pid = if status.tgid == 0 { pid } else { status.tgid };
    if pid == std::process::id() {
        return Err(crate::permission::explain(
            root,
            pid,
            "trace",
            std::io::Error::from_raw_os_error(libc::EPERM),
        ));
    }
    if process::is_frozen(root, &options.cgroup_root, pid) {
        return Err(Error::Frozen { pid });
    }
    let bearer = process::bearer(root, pid);
    let mut plan = Plan { pid, bearer, site: None, notes: Vec::new() };
    if options.mode == Mode::Stop {
        return Ok(plan);
    }
    let status = leakscope_proc::status(root, bearer)?;
    let rollup = leakscope_proc::rollup(root, bearer).unwrap_or_default();
    let reason = against_copy(root, bearer, &status).or_else(|| too_dear(pid, &status, &rollup, options));
    let reason = match reason {
        Some(reason) if options.mode == Mode::Auto || reason.forbids => Some(reason.text),
        _ => {
            let predicted = predicted_pause(&status, &rollup);
            within_limit(pid, predicted, options)?;
            plan.site = Site::find(root, bearer);
            plan.site
                .is_none()
                .then(|| "its code has none of the pieces that a call from outside needs".to_owned())
        }
    };
    match reason {
        Some(reason) if options.mode == Mode::Fork => Err(Error::CannotFork { pid, reason }),
        Some(reason) => {
            allow_stop(pid, root, options)?;
            plan.notes.push(stopped_because(&reason));
            Ok(plan)
        }
        None => Ok(plan),
    }
}

/// Changes the plan to letting the process stand still, for a reason that has turned up.
pub fn give_copy_up(plan: &mut Plan, options: &SnapshotOptions, reason: &str) -> Result<(), Error> {
    if options.mode == Mode::Fork {
        return Err(Error::CannotFork { pid: plan.pid, reason: reason.into() });
    }
    allow_stop(plan.pid, &options.proc_root, options)?;
    plan.site = None;
    plan.notes.push(stopped_because(reason));
    Ok(())
}

/// The note of a process that is stopped though nobody asked for that.
fn stopped_because(reason: &str) -> String {
    format!("the process stands still while it is read, rather than being copied: {reason}")
}

/// Checks that a process may stand still as long as reading it will take.
fn allow_stop(pid: u32, root: &Path, options: &SnapshotOptions) -> Result<(), Error> {
    let bytes =
        leakscope_proc::status(root, process::bearer(root, pid)).map_or(0, |status| status.anonymous_bytes);
    within_limit(pid, Duration::from_secs_f64(bytes as f64 * PER_STOPPED_BYTE), options)
}

fn within_limit(pid: u32, predicted: Duration, options: &SnapshotOptions) -> Result<(), Error> {
    match options.max_pause {
        Some(limit) if predicted > limit => Err(Error::PauseTooLong { pid, predicted, limit }),
        _ => Ok(()),
    }
}

/// How long a process will stand still to be copied.
fn predicted_pause(status: &Status, rollup: &Rollup) -> Duration {
    // Each huge page holds a page table in reserve, which is counted but not copied.
    let tables = status.page_table_bytes.saturating_sub(rollup.anonymous_huge_bytes / 512);
    let seconds = ALWAYS + tables as f64 * PER_PAGE_TABLE_BYTE + f64::from(status.threads) * PER_THREAD;
    Duration::from_secs_f64(seconds)
}

struct Reason {
    text: String,
    /// Not even on demand.
    forbids: bool,
}

/// Why a process cannot be copied.
fn against_copy(root: &Path, pid: u32, status: &Status) -> Option<Reason> {
    let text = if process::is_32_bit(root, pid) {
        "it is a 32-bit program"
    } else if status.shadow_stack {
        "it has a shadow stack (CET), which a call from outside would violate"
    } else {
        return None;
    };
    Some(Reason { text: text.into(), forbids: true })
}

/// Why copying a process would cost it more than standing still.
fn too_dear(pid: u32, status: &Status, rollup: &Rollup, options: &SnapshotOptions) -> Option<Reason> {
    let text = if rollup.private_hugetlb_bytes > 0 {
        "it has private hugetlb pages, of which there may be too few for a copy".to_owned()
    } else if rollup.anonymous_huge_bytes > HUGE_MATTERS
        && rollup.anonymous_huge_bytes > rollup.anonymous_bytes / 2
    {
        let mib = rollup.anonymous_huge_bytes >> 20;
        format!("{mib} MiB of it are in huge pages, which would be broken up after a copy")
    } else {
        let headroom = leakscope_proc::memory_headroom(&options.proc_root, &options.cgroup_root, pid)?;
        // Its page tables, and some of its memory, since it goes on writing while the copy exists.
        let needed = status.page_table_bytes + status.anonymous_bytes / 8 + (4 << 20);
        (headroom < needed)
            .then(|| format!("its memory control group has room for {} MiB only", headroom >> 20))?
    };
    Some(Reason { text, forbids: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gibibyte_of_small_pages_is_predicted_as_measured() {
        let status = Status { page_table_bytes: 2 << 20, threads: 1, ..Status::default() };
        let predicted = predicted_pause(&status, &Rollup::default());
        assert!((15..25).contains(&predicted.as_millis()), "{predicted:?}");
        let huge = Rollup { anonymous_huge_bytes: 1 << 30, ..Rollup::default() };
        assert!(predicted_pause(&status, &huge) < Duration::from_millis(2));
        let many = Status { threads: 1000, ..Status::default() };
        assert!((20..60).contains(&predicted_pause(&many, &Rollup::default()).as_millis()));
    }
}
