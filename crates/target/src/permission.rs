//! Why the kernel does not let a process be traced (ptrace(2), "Ptrace access mode checking").

use crate::{Error, process};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const CAP_SYS_PTRACE: u64 = 1 << 19;

/// What was tried, as errors say it.
pub const TRACE: &str = "trace";
/// As above.
pub const READ: &str = "read the memory of";

/// The error for a call on process `pid` that failed: what is known of the process says why.
pub fn explain(root: &Path, pid: u32, tried: &'static str, error: io::Error) -> Error {
    let check = if tried == TRACE { process::check } else { process::exists };
    match error.raw_os_error() {
        Some(libc::ESRCH) => {
            return check(root, pid).err().unwrap_or(Error::NoSuchProcess { pid });
        }
        Some(libc::EPERM | libc::EACCES) => {}
        _ => return Error::System { pid, tried, source: error },
    }
    if let Err(error) = check(root, pid) {
        return error;
    }
    let (reason, advice) = refusal(root, pid);
    Error::NotPermitted { pid, tried, reason, advice }
}

/// Reason and advice.
fn refusal(root: &Path, pid: u32) -> (String, String) {
    if pid == std::process::id() {
        return ("a process cannot trace itself".into(), "start another leakscope for it".into());
    }
    let own = leakscope_proc::status(root, std::process::id()).unwrap_or_default();
    let other = leakscope_proc::status(root, pid).unwrap_or_default();
    let capable = own.effective_capabilities & CAP_SYS_PTRACE != 0;
    let namespace = |pid: u32| std::fs::read_link(root.join(pid.to_string()).join("ns/user")).ok();
    if let (Some(mine), theirs) = (namespace(std::process::id()), namespace(pid))
        && capable
        && theirs.as_ref() != Some(&mine)
    {
        return (
            format!(
                "it is in another user namespace ({})",
                theirs.map_or("unreadable".into(), |path| path.display().to_string())
            ),
            "run leakscope outside of that container, or with CAP_SYS_PTRACE in the namespace that made it"
                .into(),
        );
    }
    if capable {
        return (
            "although this process has CAP_SYS_PTRACE: a security module (AppArmor, SELinux) or a seccomp filter is in the way"
                .into(),
            "see the kernel's log; in a container, allow ptrace in its profile (docker run --cap-add SYS_PTRACE \
             --security-opt apparmor=unconfined)"
                .into(),
        );
    }
    let [real, effective, saved, _] = other.uids;
    // SAFETY: getuid has no preconditions.
    let own_uid = unsafe { libc::getuid() };
    if [real, effective, saved] != [own_uid; 3] {
        return (
            format!(
                "it belongs to user {effective}, and leakscope runs as user {own_uid} without CAP_SYS_PTRACE"
            ),
            "run leakscope as that user, or as root, or give it CAP_SYS_PTRACE".into(),
        );
    }
    // The files of a process that is not dumpable belong to root; not so its directory.
    if std::fs::metadata(root.join(pid.to_string()).join("maps")).is_ok_and(|file| file.uid() != own_uid) {
        return (
            "it is not dumpable (it changed its user, has file capabilities, or called prctl(PR_SET_DUMPABLE, 0))"
                .into(),
            "run leakscope with CAP_SYS_PTRACE (as root)".into(),
        );
    }
    match std::fs::read_to_string(root.join("sys/kernel/yama/ptrace_scope"))
        .map(|text| text.trim().to_owned())
    {
        Ok(scope) if scope == "3" => (
            "kernel.yama.ptrace_scope is 3: nobody may trace until the next boot".into(),
            "boot with another value, or examine a core file".into(),
        ),
        Ok(scope) if scope != "0" => (
            format!("kernel.yama.ptrace_scope is {scope} and leakscope has no CAP_SYS_PTRACE"),
            "run leakscope with CAP_SYS_PTRACE (as root), start the process by leakscope, or set \
             kernel.yama.ptrace_scope to 0 (sysctl kernel.yama.ptrace_scope=0)"
                .into(),
        ),
        _ => (
            "it has more capabilities than leakscope, or a security module is in the way".into(),
            "run leakscope with CAP_SYS_PTRACE (as root)".into(),
        ),
    }
}
