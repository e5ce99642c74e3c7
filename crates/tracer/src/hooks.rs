//! The functions that stand in for the allocator's.
//!
//! Each has the real function's arguments, then the stack pointer at entry (it points to the return address)
//! and the frame pointer at entry; the exported symbols are shims that add them. Order of events (a block's
//! address may be reused by another thread as soon as the real call has been made): a block is recorded after
//! the real allocation and forgotten before the real free.
//!
//! When allocations are sampled, a call that is none of the tracer's business goes straight on to the real function:
//! an allocation that does not reach the thread's next sample point (`sample`), a free of a block that was not
//! recorded (`filter`). Nothing that threads share is touched then, nor noted that a hook is at work. Where everything
//! is recorded, the same two questions are always answered the other way.

use crate::filter::{self, Answer};
use crate::thread::{self, Entered};
use crate::{modules, process, real, sample, unwind};
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

/// Goes straight on to the real function if there is one: a call in tail position, so without a frame of the hook's own.
macro_rules! pass_on {
    ($address:expr, $kind:ty, ($($argument:expr),*)) => {
        let address = $address;
        if address != 0 {
            // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
            return unsafe { core::mem::transmute::<usize, $kind>(address)($($argument),*) };
        }
    };
}

/// Runs `$call`, which gives an address, and records it with `$size` if it is sampled.
macro_rules! allocate {
    ($sp:expr, $bp:expr, $size:expr, $call:expr) => {
        match thread::enter($sp) {
            Entered::Recording(thread) => {
                let sampled = thread.samples($size);
                let block: Pointer = $call;
                if sampled && !block.is_null() {
                    thread.allocated(block as usize, $size, $sp, $bp);
                }
                thread.leave();
                block
            }
            Entered::Nested(window) => {
                thread::allocate_nested(window, $size, $sp);
                $call
            }
            Entered::Off => $call,
        }
    };
}

/// The function that stands in for `$name` and, apart from it so that what is passed over needs no frame, the one that
/// records.
macro_rules! allocating {
    ($name:ident, $recording:ident, $kind:ty, ($($argument:ident),*), $size:expr, $align:expr) => {
        pub(crate) unsafe extern "C" fn $name($($argument: usize,)* sp: usize, bp: usize) -> Pointer {
            if sample::passes($size) {
                pass_on!(real::$name(), $kind, ($($argument),*));
            }
            // SAFETY: the caller's own arguments.
            unsafe { $recording($($argument,)* sp, bp) }
        }

        #[inline(never)]
        unsafe extern "C" fn $recording($($argument: usize,)* sp: usize, bp: usize) -> Pointer {
            let real = real_or!(real::$name(), $kind, early($size, $align));
            // SAFETY: the caller's own arguments.
            allocate!(sp, bp, $size, unsafe { real($($argument),*) })
        }
    };
}

type OfOne = unsafe extern "C" fn(usize) -> Pointer;
type OfTwo = unsafe extern "C" fn(usize, usize) -> Pointer;

allocating!(malloc, record_malloc, OfOne, (size), size, 16);
allocating!(calloc, record_calloc, OfTwo, (count, size), count.saturating_mul(size), 16);
allocating!(aligned_alloc, record_aligned_alloc, OfTwo, (align, size), size, align);
allocating!(memalign, record_memalign, OfTwo, (align, size), size, align);
allocating!(valloc, record_valloc, OfOne, (size), size, 4096);
allocating!(pvalloc, record_pvalloc, OfOne, (size), size, 4096);

type PosixMemalign = unsafe extern "C" fn(*mut Pointer, usize, usize) -> i32;

pub(crate) unsafe extern "C" fn posix_memalign(
    out: *mut Pointer,
    align: usize,
    size: usize,
    sp: usize,
    bp: usize,
) -> i32 {
    if sample::passes(size) {
        pass_on!(real::posix_memalign(), PosixMemalign, (out, align, size));
    }
    // SAFETY: the caller's own arguments.
    unsafe { record_posix_memalign(out, align, size, sp, bp) }
}

#[inline(never)]
unsafe extern "C" fn record_posix_memalign(
    out: *mut Pointer,
    align: usize,
    size: usize,
    sp: usize,
    bp: usize,
) -> i32 {
    const ENOMEM: i32 = 12;
    let real = real_or!(real::posix_memalign(), PosixMemalign, ENOMEM);
    match thread::enter(sp) {
        Entered::Recording(thread) => {
            let sampled = thread.samples(size);
            // SAFETY: the caller's own arguments; on success the pointer was written.
            let (status, block) = unsafe {
                let status = real(out, align, size);
                (status, if status == 0 { *out } else { NULL })
            };
            if sampled && !block.is_null() {
                thread.allocated(block as usize, size, sp, bp);
            }
            thread.leave();
            status
        }
        Entered::Nested(window) => {
            thread::allocate_nested(window, size, sp);
            // SAFETY: the caller's own arguments.
            unsafe { real(out, align, size) }
        }
        // SAFETY: the caller's own arguments.
        Entered::Off => unsafe { real(out, align, size) },
    }
}

type Realloc = unsafe extern "C" fn(Pointer, usize) -> Pointer;

pub(crate) unsafe extern "C" fn realloc(old: Pointer, size: usize, sp: usize, bp: usize) -> Pointer {
    if is_nobodys(old) && sample::passes(size) {
        pass_on!(real::realloc(), Realloc, (old, size));
    }
    // SAFETY: the caller's own arguments.
    unsafe { record_realloc(old, size, sp, bp) }
}

#[inline(never)]
unsafe extern "C" fn record_realloc(old: Pointer, size: usize, sp: usize, bp: usize) -> Pointer {
    let real = real_or!(
        real::realloc(),
        Realloc,
        // SAFETY: `old` is null or from the pool, since nothing else has been handed out yet.
        unsafe { early_realloc(old, size) }
    );
    if is_early(old) {
        // SAFETY: as above; the new block is an ordinary one.
        return unsafe { leave_pool(old, size, malloc(size, sp, bp)) };
    }
    let thread = match thread::enter(sp) {
        Entered::Recording(thread) => thread,
        Entered::Nested(window) => {
            thread::allocate_nested(window, size, sp);
            thread::forget_nested(window, old as usize);
            // SAFETY: the caller's own arguments.
            return unsafe { real(old, size) };
        }
        // SAFETY: the caller's own arguments.
        Entered::Off => return unsafe { real(old, size) },
    };
    let sampled = thread.samples(size);
    // While the real function is at work the block is in flight: not lost, and not found by a thread that is
    // handed the same address.
    let found = if old.is_null() { None } else { thread.find(old as usize) };
    if let Some(found) = &found {
        found.set_state(slot::IN_FLIGHT);
    }
    // SAFETY: the caller's own arguments.
    let block = unsafe { real(old, size) };
    match &found {
        Some(found) if block.is_null() && size != 0 => found.set_state(slot::HEAP),
        Some(found) => {
            found.remove();
            filter::remove(old as usize);
            thread.count_moved(old as usize, found.word0, found.word1);
        }
        None if !old.is_null() && (!block.is_null() || size == 0) => thread.freed(old as usize),
        None => {}
    }
    if sampled && !block.is_null() {
        thread.allocated(block as usize, size, sp, bp);
    }
    thread.leave();
    block
}

/// `reallocarray` is `realloc` of the product. Where that is too large, the real function says so in its own way.
pub(crate) unsafe extern "C" fn reallocarray(
    old: Pointer,
    count: usize,
    size: usize,
    sp: usize,
    bp: usize,
) -> Pointer {
    match count.checked_mul(size) {
        // SAFETY: the caller's own arguments.
        Some(total) => unsafe { realloc(old, total, sp, bp) },
        None => {
            pass_on!(
                real::reallocarray(),
                unsafe extern "C" fn(Pointer, usize, usize) -> Pointer,
                (old, count, size)
            );
            NULL
        }
    }
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

/// Whether `block` is an ordinary one that was not recorded.
#[inline(always)]
fn is_nobodys(block: Pointer) -> bool {
    !filter::may_hold(block as usize) && !is_early(block)
}

type Free = unsafe extern "C" fn(Pointer);

pub(crate) unsafe extern "C" fn free(block: Pointer, sp: usize, _bp: usize) {
    if is_early(block) {
        return;
    }
    match filter::holds(block as usize) {
        Answer::No => {
            pass_on!(real::free(), Free, (block));
        }
        // SAFETY: the caller's own arguments.
        Answer::Perhaps => return unsafe { look_up_and_free(block, sp) },
        Answer::Likely => {}
    }
    // SAFETY: the caller's own arguments.
    unsafe { record_free(block, sp) }
}

/// Frees a block whose neighbours were recorded, if not it itself.
#[cold]
#[inline(never)]
unsafe extern "C" fn look_up_and_free(block: Pointer, sp: usize) {
    if !thread::may_know(block as usize) {
        pass_on!(real::free(), Free, (block));
    }
    // SAFETY: the caller's own arguments.
    unsafe { record_free(block, sp) }
}

/// Frees a block that is not of the pool.
#[inline(never)]
unsafe extern "C" fn record_free(block: Pointer, sp: usize) {
    if block.is_null() {
        return;
    }
    let real = real_or!(real::free(), Free, NOTHING);
    // SAFETY: the caller's own arguments.
    release!(sp, block, unsafe { real(block) })
}

pub(crate) unsafe extern "C" fn free_sized(block: Pointer, size: usize, sp: usize, bp: usize) {
    type Real = unsafe extern "C" fn(Pointer, usize);
    if is_nobodys(block) {
        pass_on!(real::free_sized(), Real, (block, size));
    }
    if block.is_null() || is_early(block) || real::free_sized() == 0 {
        // SAFETY: without such a function in the C library, `free` does the same.
        return unsafe { free(block, sp, bp) };
    }
    let real = real_or!(real::free_sized(), Real, NOTHING);
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
    type Real = unsafe extern "C" fn(Pointer, usize, usize);
    if is_nobodys(block) {
        pass_on!(real::free_aligned_sized(), Real, (block, align, size));
    }
    if block.is_null() || is_early(block) || real::free_aligned_sized() == 0 {
        // SAFETY: as in `free_sized`.
        return unsafe { free(block, sp, bp) };
    }
    let real = real_or!(real::free_aligned_sized(), Real, NOTHING);
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

#[cfg(test)]
mod tests;
