//! System calls that the tracer makes, by their own names. None touches `errno`.

use crate::arch::{nr, syscall};
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicBool, AtomicU32};

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
pub(crate) const PROT_READ: usize = 1;
pub(crate) const PROT_WRITE: usize = 2;
pub(crate) const MAP_SHARED: usize = 1;
pub(crate) const MAP_PRIVATE: usize = 2;
pub(crate) const MAP_ANONYMOUS: usize = 0x20;
pub(crate) const MAP_NORESERVE: usize = 0x4000;
pub(crate) const MADV_WIPEONFORK: usize = 18;
pub(crate) const MADV_DONTDUMP: usize = 16;
pub(crate) const MADV_POPULATE_WRITE: usize = 23;
const O_RDWR_CLOEXEC_NOFOLLOW: usize = 0x2 | 0o2_000_000 | 0o400_000;
const O_RDONLY_CLOEXEC: usize = 0o2_000_000;
const RLIMIT_AS: usize = 9;

/// An open descriptor; closed by [`File::close`] only (no `Drop`: the tracer may be interrupted by `fork`).
pub(crate) struct File(usize);

impl File {
    /// Opens for reading and writing; `path` ends in NUL.
    pub(crate) unsafe fn open_rw(path: *const u8) -> Option<File> {
        // SAFETY: the caller passes a NUL-terminated path.
        unsafe { Self::open(path, O_RDWR_CLOEXEC_NOFOLLOW) }
    }
    /// Opens for reading; `path` ends in NUL.
    pub(crate) unsafe fn open_read(path: *const u8) -> Option<File> {
        // SAFETY: the caller passes a NUL-terminated path.
        unsafe { Self::open(path, O_RDONLY_CLOEXEC) }
    }
    /// A descriptor that somebody else closes.
    pub(crate) fn of(descriptor: i32) -> File {
        File(descriptor as usize)
    }
    unsafe fn open(path: *const u8, flags: usize) -> Option<File> {
        // SAFETY: the caller passes a NUL-terminated path.
        let fd = unsafe { syscall(nr::OPEN, [path as usize, flags, 0, 0, 0, 0]) };
        usize::try_from(fd).ok().map(File)
    }
    /// Reads up to `buffer.len()` bytes; 0 at the end and on error.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> usize {
        // SAFETY: the buffer is writable for its length.
        let n = unsafe { syscall(nr::READ, [self.0, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0]) };
        usize::try_from(n).unwrap_or(0)
    }
    /// Reads at an offset; 0 at the end and on error.
    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: usize) -> usize {
        // SAFETY: the buffer is writable for its length.
        let n = unsafe {
            syscall(nr::PREAD64, [self.0, buffer.as_mut_ptr() as usize, buffer.len(), offset, 0, 0])
        };
        usize::try_from(n).unwrap_or(0)
    }
    /// Maps `length` bytes from the start, shared.
    pub(crate) fn map_shared(&self, length: usize) -> Option<*mut u8> {
        let flags = MAP_SHARED | MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let p = unsafe { syscall(nr::MMAP, [0, length, PROT_READ | PROT_WRITE, flags, self.0, 0]) };
        (p > 0).then_some(p as *mut u8)
    }
    pub(crate) fn close(self) {
        // SAFETY: the descriptor is ours.
        unsafe { syscall(nr::CLOSE, [self.0, 0, 0, 0, 0, 0]) };
    }
}

/// A fresh private page that reads as zero again in a forked child.
pub(crate) fn map_fork_page() -> Option<*mut u8> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping disturbs nothing.
    let p = unsafe { syscall(nr::MMAP, [0, 4096, PROT_READ | PROT_WRITE, flags, usize::MAX, 0]) };
    if p <= 0 {
        return None;
    }
    // SAFETY: the page was just mapped.
    let wiped = unsafe { syscall(nr::MADVISE, [p as usize, 4096, MADV_WIPEONFORK, 0, 0, 0]) };
    (wiped == 0).then_some(p as *mut u8)
}

/// Fresh private memory of the process's own.
pub(crate) fn map_private(length: usize) -> Option<*mut u8> {
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    // SAFETY: a new anonymous mapping disturbs nothing.
    let p = unsafe { syscall(nr::MMAP, [0, length, PROT_READ | PROT_WRITE, flags, usize::MAX, 0]) };
    (p > 0).then_some(p as *mut u8)
}

/// `madvise`; whether it succeeded.
pub(crate) unsafe fn madvise(address: *mut u8, length: usize, advice: usize) -> bool {
    // SAFETY: the caller passes a range of its own.
    unsafe { syscall(nr::MADVISE, [address as usize, length, advice, 0, 0, 0]) == 0 }
}

/// Unlocks a range that `mlockall` has locked.
pub(crate) unsafe fn munlock(address: *mut u8, length: usize) {
    // SAFETY: the caller passes a range of its own.
    unsafe { syscall(nr::MUNLOCK, [address as usize, length, 0, 0, 0, 0]) };
}

/// Grows a mapping in place; whether there was room.
pub(crate) unsafe fn grow(address: *mut u8, from: usize, to: usize) -> bool {
    // SAFETY: the caller passes a mapping of its own; without MREMAP_MAYMOVE it stays where it is.
    unsafe { syscall(nr::MREMAP, [address as usize, from, to, 0, 0, 0]) == address as isize }
}

/// Unmaps a range of the tracer's own.
pub(crate) unsafe fn munmap(address: *mut u8, length: usize) {
    // SAFETY: the caller passes a range of its own.
    unsafe { syscall(nr::MUNMAP, [address as usize, length, 0, 0, 0, 0]) };
}

/// Own pid.
pub(crate) fn getpid() -> u32 {
    // SAFETY: no arguments.
    unsafe { syscall(nr::GETPID, [0; 6]) as u32 }
}
/// Parent's pid.
pub(crate) fn getppid() -> u32 {
    // SAFETY: no arguments.
    unsafe { syscall(nr::GETPPID, [0; 6]) as u32 }
}
/// Own tid.
pub(crate) fn gettid() -> u32 {
    // SAFETY: no arguments.
    unsafe { syscall(nr::GETTID, [0; 6]) as u32 }
}

/// Whether thread `tid` of this process is gone. Signal 0 asks without sending.
pub(crate) fn thread_is_gone(pid: u32, tid: u32) -> bool {
    const ESRCH: isize = -3;
    // SAFETY: signal 0 has no effect.
    unsafe { syscall(nr::TGKILL, [pid as usize, tid as usize, 0, 0, 0, 0]) == ESRCH }
}

/// Whether `address` can be read, found out without touching it: the kernel copies the new mask in before it
/// looks at `how`, which is invalid here, so nothing changes either way.
pub(crate) fn is_readable(address: usize) -> bool {
    const EFAULT: isize = -14;
    // SAFETY: an invalid `how` changes nothing; the kernel checks the address.
    unsafe { syscall(nr::RT_SIGPROCMASK, [usize::MAX, address & !7, 0, 8, 0, 0]) != EFAULT }
}

/// Set once the process has entered a sandbox that ends it at the next system call or look at the clock.
static STRICT: AtomicBool = AtomicBool::new(false);

/// From now on: no system calls.
pub(crate) fn enter_strict_mode() {
    STRICT.store(true, Relaxed);
}

/// Whether system calls are out of the question.
pub(crate) fn is_strict() -> bool {
    STRICT.load(Relaxed)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    let mut time = [0u64; 2];
    // SAFETY: libc's function and the kernel's write a timespec of two words.
    unsafe {
        match crate::real::clock_gettime() {
            0 => {
                syscall(nr::CLOCK_GETTIME, [1, time.as_mut_ptr() as usize, 0, 0, 0, 0]);
            }
            // libc reads the clock without a system call, which a sandbox might punish.
            function => {
                let clock: extern "C" fn(i32, *mut [u64; 2]) -> i32 = core::mem::transmute(function);
                clock(1, &mut time);
            }
        }
    }
    time[0].wrapping_mul(1_000_000_000).wrapping_add(time[1])
}

/// Soft limit of the address space in bytes; none if unlimited.
pub(crate) fn address_space_limit() -> Option<u64> {
    let mut limit = [u64::MAX; 2];
    // SAFETY: the kernel writes an rlimit of two words.
    unsafe { syscall(nr::GETRLIMIT, [RLIMIT_AS, limit.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    (limit[0] != u64::MAX).then_some(limit[0])
}

/// Reads a symbolic link; bytes written to `buffer`.
pub(crate) unsafe fn readlink(path: *const u8, buffer: &mut [u8]) -> usize {
    // SAFETY: the caller passes a NUL-terminated path; the buffer is writable for its length.
    let n = unsafe {
        syscall(nr::READLINK, [path as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0])
    };
    usize::try_from(n).unwrap_or(0)
}

/// Ends the process at once.
#[allow(dead_code)]
pub(crate) fn abort() -> ! {
    exit_group(125)
}

/// Ends the process at once, with a status.
pub(crate) fn exit_group(status: i32) -> ! {
    loop {
        // SAFETY: does not return.
        unsafe { syscall(nr::EXIT_GROUP, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Sleeps while the word is `value`, at most `nanoseconds`. It may be shared with other processes. False if there
/// can be no sleeping here.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, nanoseconds: u64) -> bool {
    const FUTEX_WAIT: usize = 0;
    const EAGAIN: isize = -11;
    const EINTR: isize = -4;
    const ETIMEDOUT: isize = -110;
    let timeout = [nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000];
    let arguments = [word.as_ptr() as usize, FUTEX_WAIT, value as usize, timeout.as_ptr() as usize, 0, 0];
    // SAFETY: the word lives as long as the call, and so does the timeout.
    matches!(unsafe { syscall(nr::FUTEX, arguments) }, 0 | EAGAIN | EINTR | ETIMEDOUT)
}

/// Wakes all who sleep on the word.
pub(crate) fn futex_wake(word: &AtomicU32) {
    const FUTEX_WAKE: usize = 1;
    // SAFETY: waking has no effect on memory.
    unsafe { syscall(nr::FUTEX, [word.as_ptr() as usize, FUTEX_WAKE, i32::MAX as usize, 0, 0, 0]) };
}

const SIG_SETMASK: usize = 2;

/// Blocks all signals for this thread; returns the mask before.
pub(crate) fn block_signals() -> u64 {
    let (all, mut old) = (u64::MAX, 0);
    // SAFETY: both are masks of eight bytes.
    unsafe {
        syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, &raw const all as usize, &raw mut old as usize, 8, 0, 0])
    };
    old
}

/// Sets the mask back.
pub(crate) fn restore_signals(mask: &u64) {
    // SAFETY: a mask of eight bytes.
    unsafe { syscall(nr::RT_SIGPROCMASK, [SIG_SETMASK, core::ptr::from_ref(mask) as usize, 0, 8, 0, 0]) };
}

/// Makes a copy of this process that sends no signal when it ends: 0 in the copy, its pid in this process, or an
/// error (negative). No handlers run.
#[inline(never)]
pub(crate) fn fork() -> isize {
    // SAFETY: without CLONE_VM the copy goes on with its own copy of this stack.
    unsafe { syscall(nr::CLONE, [0; 6]) }
}

/// Lets this process die with the thread that made it.
pub(crate) fn die_with_parent() {
    const PR_SET_PDEATHSIG: usize = 1;
    const SIGKILL: usize = 9;
    // SAFETY: numbers only.
    unsafe { syscall(nr::PRCTL, [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0]) };
}

/// Ends a child made by [`fork`], and leaves nothing of it.
pub(crate) fn kill_and_reap(child: u32) {
    const SIGKILL: usize = 9;
    const WALL: usize = 0x4000_0000;
    const EINTR: isize = -4;
    // SAFETY: the child has not been reaped (nobody else waits for children of its kind), so the pid is its own.
    unsafe {
        syscall(nr::KILL, [child as usize, SIGKILL, 0, 0, 0, 0]);
        while syscall(nr::WAIT4, [child as usize, 0, WALL, 0, 0, 0]) == EINTR {}
    }
}

/// Copies from this process's memory, up to the first byte that cannot be read. None if the system does not offer
/// that.
///
/// # Safety
/// `to` must be writable for `length` bytes.
pub(crate) unsafe fn copy_memory(pid: u32, from: usize, to: *mut u8, length: usize) -> Option<usize> {
    const EFAULT: isize = -14;
    let (local, remote) = ([to as usize, length], [from, length]);
    let arguments = [pid as usize, local.as_ptr() as usize, 1, remote.as_ptr() as usize, 1, 0];
    // SAFETY: the caller vouches for `to`; the kernel checks `from`.
    match unsafe { syscall(nr::PROCESS_VM_READV, arguments) } {
        EFAULT => Some(0),
        done => usize::try_from(done).ok(),
    }
}
