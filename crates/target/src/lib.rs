//! A process as an object: its mappings, memory, threads and registers; live, frozen, or from a core file.

mod memory;
mod snapshot;

pub use leakscope_proc::Mapping;
pub use memory::{Memory, Pieces};
pub use snapshot::{Registers, Snapshot, Source, Thread};
