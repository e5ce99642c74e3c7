//! Places at which a test lets leakscope be killed.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The steps at which the target would be harmed by a tool that is not careful.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// All threads stand still, and calls in progress are rewound.
    Stopped = 1,
    /// The frames of the call are written.
    Written,
    /// The thread's registers are those of the call.
    Redirected,
    /// Its signals are blocked.
    Blocked,
    /// It is about to enter the kernel.
    Entered,
    /// The copy has been born.
    Born,
    /// The thread has left the kernel.
    Left,
    /// It is about to restore its registers.
    Restoring,
    /// It has restored them.
    Restored,
    /// All threads run again.
    Released,
    /// The copy is bound to leakscope's life.
    Bound,
    /// The copy has given its descriptors up.
    Ready,
    /// The copy is dead, and its parent has not been told.
    Killed,
}

/// How many steps there are.
pub const STEPS: u32 = Step::Killed as u32;

static FATAL: AtomicU32 = AtomicU32::new(0);

/// Lets this process be killed when it comes to step number `step` (1 to [`STEPS`]).
pub fn kill_at(step: u32) {
    FATAL.store(step, Relaxed);
}

/// Marks that `step` is reached.
pub fn reached(step: Step) {
    if FATAL.load(Relaxed) == step as u32 {
        // SAFETY: ends this process, as a test asked for.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
}
