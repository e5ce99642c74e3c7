//! The process's end: if the holder wants to examine it, the thread that ends it waits until that has been done.
//!
//! Ways to end that lead here, each after all the handlers that the program itself has for it:
//!
//! * `exit`, a return from `main`, the end of the last thread: a handler that is registered before any other, so
//!   that it runs after all of them, the loader's calls of destructors too;
//! * `quick_exit`: the same, in its own list;
//! * `_exit` and `_Exit`, which run no handlers: hooks.
//!
//! Waiting is never for ever: a holder whose clock stands still is gone. Once the holder has answered, a process
//! does not wait again. Children that share their parent's memory (`vfork`) do not wait: it is not theirs.

use crate::arena::Arena;
use crate::{arch, process, real, serve, sys};
use core::ffi::c_void;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};
use leakscope_heapfile::layout::{EXIT_GO, EXIT_NONE, EXIT_SERVE, EXIT_WAITING, Superblock, TICK_MS, Window};

/// Longest sleep between two looks at the holder's clock.
pub(crate) const NAP_NS: u64 = 50_000_000;
/// A holder that has not advanced its clock for so long is gone.
const GONE_NS: u64 = 1_500_000_000;
/// And one whose clock lags by so many ticks was gone before.
const GONE_TICKS: u32 = (GONE_NS / 1_000_000 / TICK_MS) as u32 + 125;
/// More than this passed between two looks only if this process was stopped, and perhaps the holder with it.
const LOOK_NS: u64 = 2 * NAP_NS;
/// Turns between two looks where sleeping is forbidden.
const SPINS: u32 = 2000;

/// Whether this process was started to be examined at its end. Decided once: the superblock can be written by
/// every process of the run.
static WANTED: AtomicBool = AtomicBool::new(false);
/// Whether `exit` will call the handler.
static REGISTERED: AtomicBool = AtomicBool::new(false);
/// Whether system calls are under rules of the program's own making, which may end it at one that it never made.
static FILTERED: AtomicBool = AtomicBool::new(false);

/// From now on: no system call that the program need not have allowed itself.
pub(crate) fn note_filter() {
    FILTERED.store(true, Relaxed);
}

/// Whether that is so.
pub(crate) fn is_filtered() -> bool {
    FILTERED.load(Relaxed)
}

/// Runs when the loader initialises the object, before the program's own code.
#[allow(dead_code)]
extern "C" fn prepare() {
    if !process::ensure() {
        return;
    }
    let wanted = |superblock: &Superblock| superblock.examine_at_exit.load(Acquire) != 0;
    if !process::arena().superblock().is_some_and(wanted) {
        return;
    }
    WANTED.store(true, Relaxed);
    type Handler = extern "C" fn(*mut c_void);
    type Register = unsafe extern "C" fn(Handler, *mut c_void, *mut c_void) -> i32;
    type RegisterQuick = unsafe extern "C" fn(Handler, *mut c_void) -> i32;
    let nothing = core::ptr::null_mut();
    // SAFETY: the symbols of these names in a C library have these types (Itanium C++ ABI; glibc's at_quick_exit).
    // This object is never unloaded.
    unsafe {
        if real::__cxa_atexit() != 0 {
            let register = core::mem::transmute::<usize, Register>(real::__cxa_atexit());
            REGISTERED.store(register(on_exit, nothing, nothing) == 0, Relaxed);
        }
        if real::__cxa_at_quick_exit() != 0 {
            core::mem::transmute::<usize, RegisterQuick>(real::__cxa_at_quick_exit())(on_exit, nothing);
        }
    }
}

extern "C" fn on_exit(_: *mut c_void) {
    at_exit();
}

/// Runs when the loader calls destructors: earlier than the handler, for C libraries that do not take one.
#[allow(dead_code)]
extern "C" fn destroy() {
    if !REGISTERED.load(Relaxed) {
        at_exit();
    }
}

#[cfg(feature = "shared-object")]
#[used]
#[unsafe(link_section = ".init_array")]
static PREPARE: extern "C" fn() = prepare;

#[cfg(feature = "shared-object")]
#[used]
#[unsafe(link_section = ".fini_array")]
static DESTROY: extern "C" fn() = destroy;

/// `_exit` and `_Exit`.
pub(crate) unsafe extern "C" fn exit_now(status: i32) -> ! {
    at_exit();
    let function = real::_exit();
    if function != 0 {
        // SAFETY: the symbol of that name in a C library has that type.
        unsafe { core::mem::transmute::<usize, extern "C" fn(i32)>(function)(status) };
    }
    sys::exit_group(status)
}

#[cfg(feature = "shared-object")]
mod exports {
    crate::arch::export_jump!(_exit, super::exit_now);
    crate::arch::export_jump!(_Exit, super::exit_now);
}

/// Waits for the holder, if it wants to examine this process.
fn at_exit() {
    if !WANTED.load(Relaxed) || process::is_off() || sys::is_strict() || !is_own_memory() {
        return;
    }
    let arena = process::arena();
    if let Some(superblock) = arena.superblock()
        && let Some(window) = process::window()
        && process::clock_tick(superblock).saturating_sub(process::now(superblock)) < GONE_TICKS
    {
        wait(arena, superblock, window);
    }
}

/// Whether the memory is this process's own, and so is the window. A forked child gets one here at the latest.
fn is_own_memory() -> bool {
    if process::epoch() != 0 {
        return is_filtered() || sys::getpid() == process::pid();
    }
    // The parent's pid is what the child still knows as its own, unless this is a child of the child by `vfork`, or
    // one of a child that never had an event: that has no blocks of its own.
    !is_filtered() && sys::getppid() == process::pid() && process::ensure()
}

#[inline(never)]
fn wait(arena: Arena, superblock: &'static Superblock, window: &'static Window) {
    let mut registers = [0; 6];
    let sp = arch::save_registers(&mut registers);
    let tid = if is_filtered() { process::pid() } else { sys::gettid() };
    let claim = window.exit_tid.compare_exchange(0, tid, AcqRel, Acquire);
    // A signal handler that ends the process while its thread waits takes its place.
    let is_first = claim.is_ok() || window.exit_tid.load(Acquire) == tid;
    if is_first && window.exit_state.load(Acquire) == EXIT_NONE {
        window.exit_sp.store(sp as u64, Relaxed);
        if window.exit_state.compare_exchange(EXIT_NONE, EXIT_WAITING, AcqRel, Relaxed).is_ok() {
            superblock.exit_bell.fetch_add(1, AcqRel);
            wake(&superblock.exit_bell);
        }
    }
    let mut patience = Patience::new(superblock);
    loop {
        let state = window.exit_state.load(Acquire);
        if state == EXIT_GO {
            break;
        }
        if patience.is_over() {
            window.exit_state.store(EXIT_GO, Release);
            break;
        }
        if state == EXIT_SERVE && is_first {
            serve::serve(arena, superblock, window);
        } else {
            sleep(&window.exit_state, state);
        }
    }
    // They are to be found on the stack until here.
    core::hint::black_box(&mut registers);
}

/// Sleeps until `word` is no longer `value`, or for a short while.
pub(crate) fn sleep(word: &AtomicU32, value: u32) {
    if is_filtered() || !sys::futex_wait(word, value, NAP_NS) {
        for _ in 0..SPINS {
            if word.load(Acquire) != value {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Wakes whoever sleeps on `word`. Where that is forbidden, the holder looks by itself.
pub(crate) fn wake(word: &AtomicU32) {
    if !is_filtered() {
        sys::futex_wake(word);
    }
}

/// Tells when there is nobody left to wait for.
pub(crate) struct Patience {
    superblock: &'static Superblock,
    tick: u32,
    looked: u64,
    /// How long this process has looked at a clock that stood still.
    still: u64,
}

impl Patience {
    pub(crate) fn new(superblock: &'static Superblock) -> Patience {
        Patience { superblock, tick: process::now(superblock), looked: sys::monotonic_ns(), still: 0 }
    }

    pub(crate) fn is_over(&mut self) -> bool {
        let (tick, now) = (process::now(self.superblock), sys::monotonic_ns());
        let passed = now.saturating_sub(self.looked).min(LOOK_NS);
        self.still = if tick == self.tick { self.still.saturating_add(passed) } else { 0 };
        self.tick = tick;
        self.looked = now;
        self.still > GONE_NS || self.superblock.examine_at_exit.load(Relaxed) == 0
    }
}

#[cfg(test)]
mod tests;
