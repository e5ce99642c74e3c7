//! Beginning and ending in a process that runs: what leakscope calls from outside, in a thread of its own making.
//!
//! That thread is unknown to the C library and uses another thread's control block, or none. So nothing here, nor
//! anything that is called from here, calls a function of the process or touches thread-local memory. See
//! [`leakscope_heapfile::attach`] for the protocol.

use crate::{arena, blocks, exit, filter, mappings, modules, process, real, thread, unwind};
use leakscope_heapfile::attach::{FAILED_FUNCTIONS, FAILED_VERSION, Request};
use leakscope_heapfile::layout::VERSION;

/// # Safety
/// `request` must be what leakscope wrote, and right about the process.
unsafe extern "C" fn begin(request: *const Request) -> u64 {
    // SAFETY: the caller vouches for it.
    let request = unsafe { &*request };
    if request.version != VERSION {
        return FAILED_VERSION;
    }
    // SAFETY: as above.
    if !unsafe { real::take(request) } {
        return FAILED_FUNCTIONS;
    }
    filter::forget();
    modules::forget();
    blocks::forget_regions();
    mappings::forget_all();
    arena::lift_limit();
    unwind::clear_cache();
    if request.filtered != 0 {
        exit::note_filter();
    }
    process::begin(request.descriptor).map_or_else(|failure| failure, |()| 0)
}

extern "C" fn end(reason: u32) -> u64 {
    process::end(reason);
    0
}

extern "C" fn release() -> u64 {
    thread::release_states();
    process::release();
    0
}

#[cfg(feature = "shared-object")]
mod exports {
    crate::arch::export_jump!(leakscope_begin, super::begin);
    crate::arch::export_jump!(leakscope_end, super::end);
    crate::arch::export_jump!(leakscope_release, super::release);
}
