//! A process as an object: its mappings, memory, threads and registers; live, frozen, or from a core file.

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
