//! A target that limits its address space, locks its memory or its system calls must not pay for the tracer.

use crate::{arena, process, real, sys};
use core::ffi::c_void;
use leakscope_heapfile::layout::CHUNK;

const RLIMIT_AS: i32 = 9;
/// What of the reservation stays usable.
const KEPT: u64 = 64 << 20;
/// What of it is locked with the rest for a moment.
const KEPT_LOCKED: u64 = 1 << 20;

pub(crate) unsafe extern "C" fn setrlimit(resource: i32, limit: *const [u64; 2]) -> i32 {
    type Real = unsafe extern "C" fn(i32, *const [u64; 2]) -> i32;
    real::resolve();
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    unsafe {
        before(resource, limit);
        match real::setrlimit() {
            0 => -1,
            function => core::mem::transmute::<usize, Real>(function)(resource, limit),
        }
    }
}

pub(crate) unsafe extern "C" fn prlimit(
    pid: i32,
    resource: i32,
    limit: *const [u64; 2],
    old: *mut c_void,
) -> i32 {
    type Real = unsafe extern "C" fn(i32, i32, *const [u64; 2], *mut c_void) -> i32;
    real::resolve();
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    unsafe {
        if pid == 0 || pid as u32 == process::pid() {
            before(resource, limit);
        }
        match real::prlimit() {
            0 => -1,
            function => core::mem::transmute::<usize, Real>(function)(pid, resource, limit, old),
        }
    }
}

/// Gives back the part of the reservation that is not in use, if the address space is about to be limited.
unsafe fn before(resource: i32, limit: *const [u64; 2]) {
    // SAFETY: the caller passes null or a limit.
    if resource != RLIMIT_AS || limit.is_null() || unsafe { (*limit)[0] } == u64::MAX {
        return;
    }
    let arena = process::arena();
    let Some(superblock) = arena.superblock() else { return };
    let next = superblock.next.load(core::sync::atomic::Ordering::Acquire);
    let keep = (next + KEPT).next_multiple_of(CHUNK);
    if keep < arena.len() && arena::lower_limit(keep) {
        // SAFETY: nothing beyond `next` has been handed out to this process, and from now on nothing beyond
        // `keep` will be; threads that are just being handed a chunk stay within what is kept.
        unsafe { sys::munmap(arena.base().add(keep as usize), (arena.len() - keep) as usize) };
    }
}

#[cfg(test)]
mod tests;

/// `mlockall`: would populate the whole reservation, so it is given back for the time of the call.
pub(crate) unsafe extern "C" fn mlockall(flags: i32) -> i32 {
    type Real = unsafe extern "C" fn(i32) -> i32;
    const MCL_CURRENT: i32 = 1;
    real::resolve();
    let function = real::mlockall();
    if function == 0 {
        return -1;
    }
    // SAFETY: the symbol of that name in a C library has that type; the argument is the caller's own.
    let call = || unsafe { core::mem::transmute::<usize, Real>(function)(flags) };
    let arena = process::arena();
    let Some(superblock) = arena.superblock().filter(|_| flags & MCL_CURRENT != 0) else { return call() };
    let next = superblock.next.load(core::sync::atomic::Ordering::Acquire);
    let keep = (next + KEPT_LOCKED).next_multiple_of(CHUNK);
    if keep >= arena.len() || !arena::lower_limit(keep) {
        return call();
    }
    // SAFETY: as in `before`; afterwards the mapping is made whole again if nothing has taken its place.
    unsafe {
        sys::munmap(arena.base().add(keep as usize), (arena.len() - keep) as usize);
        let status = call();
        sys::munlock(arena.base(), keep as usize);
        if sys::grow(arena.base(), keep as usize, arena.len() as usize) {
            arena::lift_limit();
        }
        status
    }
}

/// `prctl`: notices the strict sandbox, in which any system call but four ends the process, and so does the clock;
/// and that there are rules about system calls.
pub(crate) unsafe extern "C" fn prctl(option: i32, a: usize, b: usize, c: usize, d: usize) -> i32 {
    type Real = unsafe extern "C" fn(i32, usize, usize, usize, usize) -> i32;
    const PR_SET_SECCOMP: i32 = 22;
    const SECCOMP_MODE_STRICT: usize = 1;
    real::resolve();
    let function = real::prctl();
    if function == 0 {
        return -1;
    }
    if option == PR_SET_SECCOMP && a == SECCOMP_MODE_STRICT {
        sys::enter_strict_mode();
    } else if option == PR_SET_SECCOMP {
        crate::exit::note_filter();
    }
    // SAFETY: the symbol of that name takes up to five arguments in registers, whatever its declaration says.
    unsafe { core::mem::transmute::<usize, Real>(function)(option, a, b, c, d) }
}
