//! What must hold of a process before it is touched.

use crate::Error;
use leakscope_proc::Status;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// Checks that there is such a process and that it has memory and no tracer.
pub fn check(root: &Path, pid: u32) -> Result<Status, Error> {
    let status = exists(root, pid)?;
    if status.tracer == 0 {
        return Ok(status);
    }
    let name = leakscope_proc::comm(root, status.tracer, status.tracer).unwrap_or_default();
    Err(Error::AlreadyTraced {
        pid,
        tracer: status.tracer,
        tracer_name: String::from_utf8_lossy(&name).escape_debug().to_string(),
    })
}

/// As [`check`], but waits for a guardian that traces it for a moment to clean up after an earlier snapshot.
pub fn check_patiently(root: &Path, pid: u32) -> Result<Status, Error> {
    for _ in 0..GUARDIAN_ROUNDS {
        match check(root, pid) {
            Err(Error::AlreadyTraced { tracer_name, .. }) if tracer_name == crate::guardian::NAME => {}
            result => return result,
        }
        std::thread::sleep(ROUND);
    }
    check(root, pid)
}

/// How long a guardian is waited for.
const GUARDIAN_ROUNDS: u32 = 2000;
pub const ROUND: Duration = Duration::from_millis(1);

/// Checks that there is such a process and that it has memory.
pub fn exists(root: &Path, pid: u32) -> Result<Status, Error> {
    let status = match leakscope_proc::status(root, pid) {
        Ok(status) => status,
        Err(leakscope_proc::Error::Io { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) =>
        {
            return Err(Error::NoSuchProcess { pid });
        }
        Err(error) => return Err(error.into()),
    };
    if matches!(status.state, b'Z' | b'X') && status.threads <= 1 {
        return Err(Error::Zombie { pid });
    }
    // A leader that ended before its threads has no memory to show, but the process has.
    if status.kernel_thread == Some(true) || !status.has_memory && !matches!(status.state, b'Z' | b'X') {
        // Between the end of its memory and the end of itself a process looks the same for a moment.
        if leakscope_proc::stat(root, pid).is_ok_and(|stat| stat.has_ended()) {
            return Err(Error::Zombie { pid });
        }
        return Err(Error::KernelThread { pid });
    }
    Ok(status)
}

/// The id under which a process's memory is found: its own or, if its first thread has ended before the others, that
/// of another thread.
pub fn bearer(root: &Path, pid: u32) -> u32 {
    let has_memory = |tid: u32| leakscope_proc::status(root, tid).is_ok_and(|status| status.has_memory);
    if has_memory(pid) {
        return pid;
    }
    let tasks = leakscope_proc::tasks(root, pid).unwrap_or_default();
    tasks.into_iter().find(|&tid| has_memory(tid)).unwrap_or(pid)
}

/// Whether its program is a 32-bit one.
pub fn is_32_bit(root: &Path, pid: u32) -> bool {
    let mut header = [0; 5];
    let file = std::fs::File::open(root.join(pid.to_string()).join("exe"));
    file.and_then(|mut file| file.read_exact(&mut header)).is_ok() && header == *b"\x7fELF\x01"
}

/// Whether its control group is frozen, so that it cannot be made to run.
pub fn is_frozen(root: &Path, cgroup_root: &Path, pid: u32) -> bool {
    let Ok(text) = std::fs::read_to_string(root.join(pid.to_string()).join("cgroup")) else { return false };
    text.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return false };
        let path = path.trim_start_matches('/');
        let read = |file: std::path::PathBuf| std::fs::read_to_string(file).unwrap_or_default();
        if controllers.is_empty() {
            ["", "unified"].iter().any(|version| {
                let events = read(cgroup_root.join(version).join(path).join("cgroup.events"));
                events.lines().any(|line| line == "frozen 1")
            })
        } else if controllers.split(',').any(|name| name == "freezer") {
            let state = read(cgroup_root.join("freezer").join(path).join("freezer.state"));
            state.trim() == "FROZEN"
        } else {
            false
        }
    })
}
