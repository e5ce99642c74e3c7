//! Whether a process's seccomp filters allow the calls that it would be made to do.

use leakscope_proc::Status;
use std::path::Path;

/// Whether a process confines its system calls.
pub fn confines(_root: &Path, _pid: u32, status: &Status) -> bool {
    status.seccomp != 0
}
