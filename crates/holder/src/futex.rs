//! Sleeping on a word that other processes change.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Sleeps while the word is `value`, at most `timeout`; may wake for no reason.
pub(crate) fn wait(word: &AtomicU32, value: u32, timeout: Duration) {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    // SAFETY: the word and the timeout outlive the call. Not private: the word lies in shared memory.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, value, &raw const timeout, 0, 0);
    }
}

/// Wakes all who sleep on the word.
pub(crate) fn wake(word: &AtomicU32) {
    // SAFETY: waking has no effect on memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX, 0, 0, 0) };
}
