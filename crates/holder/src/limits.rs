//! Limits that are meant for the command and must not end leakscope.

use std::mem::MaybeUninit;

/// The limit of file sizes, and what happens when it is exceeded, as they were found.
///
/// The heap file counts against the limit (`ulimit -f`), and going beyond it ends a process by SIGXFSZ.
#[derive(Clone, Copy)]
pub(crate) struct FileSize {
    limit: libc::rlimit,
    action: libc::sigaction,
}

impl FileSize {
    /// Lifts the limit for this process as far as it may, and makes exceeding it an error like others.
    pub(crate) fn lift() -> Option<FileSize> {
        let mut found = MaybeUninit::<FileSize>::zeroed();
        // SAFETY: both calls fill their part, whose zeroes are valid before; the limits and actions passed in are
        // valid too. An action is three fields, a mask and a handler, for which zero is valid.
        unsafe {
            let place = found.as_mut_ptr();
            if libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut (*place).limit) != 0 {
                return None;
            }
            let mut ignore: libc::sigaction = std::mem::zeroed();
            ignore.sa_sigaction = libc::SIG_IGN;
            if libc::sigaction(libc::SIGXFSZ, &ignore, &raw mut (*place).action) != 0 {
                return None;
            }
            let found = found.assume_init();
            let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            if libc::setrlimit(libc::RLIMIT_FSIZE, &none) != 0 {
                let most = libc::rlimit { rlim_cur: found.limit.rlim_max, ..found.limit };
                libc::setrlimit(libc::RLIMIT_FSIZE, &most);
            }
            Some(found)
        }
    }

    /// Sets both back, in the process that becomes the command. Async-signal-safe.
    pub(crate) fn restore(&self) {
        // SAFETY: what was found was valid.
        unsafe {
            libc::setrlimit(libc::RLIMIT_FSIZE, &self.limit);
            libc::sigaction(libc::SIGXFSZ, &self.action, std::ptr::null_mut());
        }
    }
}

/// The soft limit of a resource in bytes; none: unlimited.
pub(crate) fn soft(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    let status = unsafe { libc::getrlimit(resource, &mut limit) };
    (status == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}
