//! The functions that stand in for the allocator's.
//!
//! Each has the real function's arguments, then the stack pointer at entry (it points to the return address)
//! and the frame pointer at entry; the exported symbols are shims that add them. Order of events (a block's
//! address may be reused by another thread as soon as the real call has been made): a block is recorded after
//! the real allocation and forgotten before the real free.

use crate::thread::{self, Entered};
use crate::{modules, process, real, unwind};
use core::ffi::c_void;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicUsize, Ordering};
use leakscope_heapfile::layout::slot;

type Pointer = *mut c_void;
const NULL: Pointer = core::ptr::null_mut();

/// What a `free` without a real function behind it gives.
const NOTHING: () = ();

/// The real function at `$address`, or the answer to give as long as it is not known.
macro_rules! real_or {
    ($address:expr, $kind:ty, $otherwise:expr) => {
        match $address {
            0 => match (real::resolve(), $address) {
                (true, address) if address != 0 => {
                    // SAFETY: the symbol of that name in a C library has that type.
                    unsafe { core::mem::transmute::<usize, $kind>(address) }
                }
                _ => return $otherwise,
            },
            // SAFETY: the symbol of that name in a C library has that type.
            address => unsafe { core::mem::transmute::<usize, $kind>(address) },
        }
    };
}

/// Runs `$call`, which gives an address, and records it with `$size`.
macro_rules! allocate {
    ($sp:expr, $bp:expr, $size:expr, $call:expr) => {
        match thread::enter($sp) {
            Entered::Recording(thread) => {
                let block: Pointer = $call;
                if !block.is_null() {
                    thread.allocated(block as usize, $size, $sp, $bp);
                }
                thread.leave();
                block
            }
            Entered::Nested(window) => {
                thread::miss_nested(window, $sp);
                $call
            }
            Entered::Off => $call,
        }
    };
}

pub(crate) unsafe extern "C" fn malloc(size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(real::malloc(), unsafe extern "C" fn(usize) -> Pointer, early(size, 16));
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, size, unsafe { real(size) })
}

pub(crate) unsafe extern "C" fn calloc(count: usize, size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(
        real::calloc(),
        unsafe extern "C" fn(usize, usize) -> Pointer,
        early(count.saturating_mul(size), 16)
    );
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, count.wrapping_mul(size), unsafe { real(count, size) })
}

pub(crate) unsafe extern "C" fn aligned_alloc(align: usize, size: usize, sp: usize, bp: usize) -> Pointer {
    let real =
        real_or!(real::aligned_alloc(), unsafe extern "C" fn(usize, usize) -> Pointer, early(size, align));
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, size, unsafe { real(align, size) })
}

pub(crate) unsafe extern "C" fn memalign(align: usize, size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(real::memalign(), unsafe extern "C" fn(usize, usize) -> Pointer, early(size, align));
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, size, unsafe { real(align, size) })
}

pub(crate) unsafe extern "C" fn valloc(size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(real::valloc(), unsafe extern "C" fn(usize) -> Pointer, early(size, 4096));
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, size, unsafe { real(size) })
}

pub(crate) unsafe extern "C" fn pvalloc(size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(real::pvalloc(), unsafe extern "C" fn(usize) -> Pointer, early(size, 4096));
    // SAFETY: the caller's own arguments.
    allocate!(sp, bp, size, unsafe { real(size) })
}

pub(crate) unsafe extern "C" fn posix_memalign(
    out: *mut Pointer,
    align: usize,
    size: usize,
    sp: usize,
    bp: usize,
) -> i32 {
    const ENOMEM: i32 = 12;
    let real =
        real_or!(real::posix_memalign(), unsafe extern "C" fn(*mut Pointer, usize, usize) -> i32, ENOMEM);
    match thread::enter(sp) {
        Entered::Recording(thread) => {
            // SAFETY: the caller's own arguments; on success the pointer was written.
            let (status, block) = unsafe {
                let status = real(out, align, size);
                (status, if status == 0 { *out } else { NULL })
            };
            if !block.is_null() {
                thread.allocated(block as usize, size, sp, bp);
            }
            thread.leave();
            status
        }
        Entered::Nested(window) => {
            thread::miss_nested(window, sp);
            // SAFETY: the caller's own arguments.
            unsafe { real(out, align, size) }
        }
        // SAFETY: the caller's own arguments.
        Entered::Off => unsafe { real(out, align, size) },
    }
}

pub(crate) unsafe extern "C" fn realloc(old: Pointer, size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(
        real::realloc(),
        unsafe extern "C" fn(Pointer, usize) -> Pointer,
        // SAFETY: `old` is null or from the pool, since nothing else has been handed out yet.
        unsafe { early_realloc(old, size) }
    );
    if is_early(old) {
        // SAFETY: as above; the new block is an ordinary one.
        return unsafe { leave_pool(old, size, malloc(size, sp, bp)) };
    }
    // SAFETY: the caller's own arguments.
    reallocate(old, size, sp, bp, || unsafe { real(old, size) })
}

pub(crate) unsafe extern "C" fn reallocarray(
    old: Pointer,
    count: usize,
    size: usize,
    sp: usize,
    bp: usize,
) -> Pointer {
    let total = count.checked_mul(size);
    if let (true, Some(total)) = (is_early(old), total) {
        // SAFETY: as in `realloc`.
        return unsafe { leave_pool(old, total, malloc(total, sp, bp)) };
    }
    let real = real_or!(
        real::reallocarray(),
        unsafe extern "C" fn(Pointer, usize, usize) -> Pointer,
        // SAFETY: the caller's own arguments. A C library without reallocarray has no caller for it.
        unsafe { total.map_or(NULL, |total| realloc(old, total, sp, bp)) }
    );
    // SAFETY: the caller's own arguments.
    reallocate(old, total.unwrap_or(usize::MAX), sp, bp, || unsafe { real(old, count, size) })
}

#[inline(always)]
fn reallocate(old: Pointer, size: usize, sp: usize, bp: usize, real: impl Fn() -> Pointer) -> Pointer {
    let thread = match thread::enter(sp) {
        Entered::Recording(thread) => thread,
        Entered::Nested(window) => {
            thread::miss_nested(window, sp);
            return real();
        }
        Entered::Off => return real(),
    };
    // While the real function is at work the block is in flight: not lost, and not found by a thread that is
    // handed the same address.
    let found = if old.is_null() { None } else { thread.find(old as usize) };
    if let Some(found) = &found {
        found.set_state(slot::IN_FLIGHT);
    }
    let block = real();
    match &found {
        Some(found) if block.is_null() && size != 0 => found.set_state(slot::HEAP),
        Some(found) => {
            found.remove();
            thread.count_moved(old as usize, found.word0, found.word1);
        }
        None if !old.is_null() && (!block.is_null() || size == 0) => thread.freed(old as usize),
        None => {}
    }
    if !block.is_null() {
        thread.allocated(block as usize, size, sp, bp);
    }
    thread.leave();
    block
}

/// Forgets `block`, then runs `$call`, which frees it.
macro_rules! release {
    ($sp:expr, $block:expr, $call:expr) => {
        match thread::enter($sp) {
            Entered::Recording(thread) => {
                thread.freed($block as usize);
                $call;
                thread.leave();
            }
            Entered::Nested(window) => {
                thread::free_nested(window, $block as usize, $sp);
                $call
            }
            Entered::Off => $call,
        }
    };
}

pub(crate) unsafe extern "C" fn free(block: Pointer, sp: usize, _bp: usize) {
    if block.is_null() || is_early(block) {
        return;
    }
    let real = real_or!(real::free(), unsafe extern "C" fn(Pointer), NOTHING);
    // SAFETY: the caller's own arguments.
    release!(sp, block, unsafe { real(block) })
}

pub(crate) unsafe extern "C" fn free_sized(block: Pointer, size: usize, sp: usize, bp: usize) {
    if block.is_null() || is_early(block) || real::free_sized() == 0 {
        // SAFETY: without such a function in the C library, `free` does the same.
        return unsafe { free(block, sp, bp) };
    }
    let real = real_or!(real::free_sized(), unsafe extern "C" fn(Pointer, usize), NOTHING);
    // SAFETY: the caller's own arguments.
    release!(sp, block, unsafe { real(block, size) })
}

pub(crate) unsafe extern "C" fn free_aligned_sized(
    block: Pointer,
    align: usize,
    size: usize,
    sp: usize,
    bp: usize,
) {
    if block.is_null() || is_early(block) || real::free_aligned_sized() == 0 {
        // SAFETY: as in `free_sized`.
        return unsafe { free(block, sp, bp) };
    }
    let real = real_or!(real::free_aligned_sized(), unsafe extern "C" fn(Pointer, usize, usize), NOTHING);
    // SAFETY: the caller's own arguments.
    release!(sp, block, unsafe { real(block, align, size) })
}

/// `dlclose`: afterwards, what was unloaded is marked and the unwinding rules are looked up anew.
pub(crate) unsafe extern "C" fn dlclose(handle: Pointer) -> i32 {
    let real = real_or!(real::dlclose(), unsafe extern "C" fn(Pointer) -> i32, -1);
    // SAFETY: the caller's own argument.
    let status = unsafe { real(handle) };
    if let Some(window) = process::window()
        && let Some(superblock) = process::arena().superblock()
        && process::epoch() != 0
        && modules::mark_unloaded(process::arena(), process::now(superblock))
    {
        unwind::clear_cache();
        window.rules.store(0, Relaxed);
    }
    status
}

/// `fork`: the child notes what it inherits while that is fresh.
pub(crate) unsafe extern "C" fn fork() -> i32 {
    let real = real_or!(real::fork(), unsafe extern "C" fn() -> i32, -1);
    // SAFETY: no arguments.
    let pid = unsafe { real() };
    if pid == 0 {
        process::note_fork();
    }
    pid
}

/// `_Fork`, the variant without handlers.
pub(crate) unsafe extern "C" fn fork_without_handlers() -> i32 {
    let real = real_or!(real::_Fork(), unsafe extern "C" fn() -> i32, -1);
    // SAFETY: no arguments.
    let pid = unsafe { real() };
    if pid == 0 {
        process::note_fork();
    }
    pid
}

// ---- Before the real functions are known -------------------------------------------------------------------

/// Serves what the loader itself allocates before it is done. Never freed; blocks carry their size in front.
#[repr(C, align(64))]
struct Pool(core::cell::UnsafeCell<[u8; POOL]>);
// SAFETY: every byte is handed out once, by an atomic bump pointer.
unsafe impl Sync for Pool {}
const POOL: usize = 256 << 10;
static POOL_MEMORY: Pool = Pool(core::cell::UnsafeCell::new([0; POOL]));
static POOL_USED: AtomicUsize = AtomicUsize::new(0);

fn early(size: usize, align: usize) -> Pointer {
    let align = align.max(16);
    if !align.is_power_of_two() || size > POOL || align > 4096 {
        return NULL;
    }
    let base = POOL_MEMORY.0.get() as usize;
    let taken = POOL_USED.fetch_update(Ordering::AcqRel, Relaxed, |used| {
        let start = (base + used + 16).next_multiple_of(align) - base;
        (start + size <= POOL).then_some(start + size)
    });
    let Ok(used) = taken else { return NULL };
    let start = (base + used + 16).next_multiple_of(align);
    // SAFETY: the word in front of the block belongs to it.
    unsafe { *((start - 8) as *mut usize) = size };
    start as Pointer
}

#[inline(always)]
fn is_early(block: Pointer) -> bool {
    (block as usize).wrapping_sub(POOL_MEMORY.0.get() as usize) < POOL
}

unsafe fn early_realloc(old: Pointer, size: usize) -> Pointer {
    // SAFETY: `leave_pool` checks what it copies.
    unsafe { leave_pool(old, size, early(size, 16)) }
}

/// Copies a block of the pool to `new`.
unsafe fn leave_pool(old: Pointer, size: usize, new: Pointer) -> Pointer {
    if !old.is_null() && !new.is_null() && is_early(old) {
        // SAFETY: blocks of the pool carry their size in the word in front; both blocks hold the smaller size.
        unsafe {
            let had = *((old as usize - 8) as *const usize);
            core::ptr::copy_nonoverlapping(old.cast::<u8>(), new.cast::<u8>(), had.min(size));
        }
    }
    new
}

/// Address that `malloc` has when the tracer's is in effect.
pub(crate) fn own_malloc() -> usize {
    #[cfg(feature = "shared-object")]
    {
        exports::malloc as *const () as usize
    }
    #[cfg(not(feature = "shared-object"))]
    {
        0
    }
}

#[cfg(feature = "shared-object")]
mod exports {
    use crate::arch::export;
    use crate::exec;
    use crate::{limits, mappings};

    export!(malloc, super::malloc, "rsi", "rdx");
    export!(calloc, super::calloc, "rdx", "rcx");
    export!(realloc, super::realloc, "rdx", "rcx");
    export!(reallocarray, super::reallocarray, "rcx", "r8");
    export!(aligned_alloc, super::aligned_alloc, "rdx", "rcx");
    export!(memalign, super::memalign, "rdx", "rcx");
    export!(valloc, super::valloc, "rsi", "rdx");
    export!(pvalloc, super::pvalloc, "rsi", "rdx");
    export!(posix_memalign, super::posix_memalign, "rcx", "r8");
    export!(free, super::free, "rsi", "rdx");
    export!(cfree, super::free, "rsi", "rdx");
    export!(free_sized, super::free_sized, "rdx", "rcx");
    export!(free_aligned_sized, super::free_aligned_sized, "rcx", "r8");
    export!(munmap, mappings::munmap, "rdx", "rcx");
    crate::arch::export_on_stack!(mmap, mappings::mmap);
    crate::arch::export_on_stack!(mmap64, mappings::mmap);
    crate::arch::export_on_stack!(mremap, mappings::mremap);
    crate::arch::export_jump!(dlclose, super::dlclose);
    crate::arch::export_jump!(fork, super::fork);
    crate::arch::export_jump!(_Fork, super::fork_without_handlers);
    crate::arch::export_jump!(execve, exec::execve);
    crate::arch::export_jump!(execv, exec::execv);
    crate::arch::export_jump!(execvp, exec::execvp);
    crate::arch::export_jump!(execvpe, exec::execvpe);
    crate::arch::export_jump!(fexecve, exec::fexecve);
    crate::arch::export_jump!(posix_spawn, exec::posix_spawn);
    crate::arch::export_jump!(posix_spawnp, exec::posix_spawnp);
    crate::arch::export_jump!(setrlimit, limits::setrlimit);
    crate::arch::export_jump!(setrlimit64, limits::setrlimit);
    crate::arch::export_jump!(prlimit, limits::prlimit);
    crate::arch::export_jump!(prlimit64, limits::prlimit);
    crate::arch::export_jump!(mlockall, limits::mlockall);
    crate::arch::export_jump!(prctl, limits::prctl);
}
