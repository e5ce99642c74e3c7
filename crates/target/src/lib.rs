//! A process as an object: its mappings, memory, threads and registers; live, frozen, or from a core file.
//!
//! - [`snapshot()`] freezes a running process: by a copy that it makes of itself (it runs on after some milliseconds),
//!   or by letting it stand still as long as the snapshot lives.
//! - [`hold_at_exit`] catches a process when it ends, with all memory and threads still there.
//! - [`core_file::open`] reads a core file.
//! - [`LiveMemory`] reads a process while it runs.
//!
//! # What a target must never notice
//! - **leakscope's death at any instant** (`inject`): what it is made to do is prepared in its own memory before one
//!   atomic step sets it off, and it finds back by itself. The copy dies with leakscope and is reaped by a small
//!   guardian process (`guardian`, `reap`) or by the next snapshot. One thing is left to chance: a thread that is
//!   stopped in a call which the kernel does not restart (epoll_wait, ...) sees EINTR if leakscope is killed in the
//!   microseconds between its stop and its rewinding.
//! - **The stop** (`seize`): calls in progress go on. Those that the kernel ends with EINTR are entered again, with
//!   their time limit from the beginning.
//! - **The copy** (`fork`): no signal, no result of an ordinary wait, no descriptor held open. `waitpid` with `__WALL` or
//!   `__WCLONE` would see it, and it is in the list of processes.
//!
//! Where this cannot be kept up (`plan`), the process is stopped instead, and the snapshot's notes say why.

mod arch;
#[doc(hidden)]
pub mod checkpoint;
pub mod core_file;
mod error;
mod follow;
mod fork;
mod guardian;
mod hold;
mod inject;
mod live;
mod memory;
mod options;
mod permission;
mod plan;
mod process;
mod ptrace;
mod reap;
mod seccomp;
mod seize;
mod snapshot;
mod take;

pub use error::Error;
pub use hold::{ExitHold, hold_at_exit};
pub use leakscope_proc::Mapping;
pub use live::LiveMemory;
pub use memory::{Memory, Pieces};
pub use options::{Mode, SnapshotOptions};
pub use snapshot::{Registers, Snapshot, Source, Thread};
pub use take::snapshot;
