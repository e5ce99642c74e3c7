//! Byte parsers for `/proc`: no allocation per line, nothing trusted, the root directory a parameter.

mod cgroup;
mod maps;
mod process;
mod stat;
mod status;

pub use cgroup::memory_headroom;
pub use maps::{Mapping, maps, parse_maps};
pub use process::{Rollup, auxv, cmdline, comm, executable, parse_auxv, rollup, tasks};
pub use stat::{Stat, resident_bytes, stat};
pub use status::{Status, status};

use std::path::PathBuf;

/// Why something under `/proc` could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused, or the process is gone.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The content is not what the kernel documents.
    #[error("{}: {item} is missing or not understood", path.display())]
    Format {
        /// What was read.
        path: PathBuf,
        /// What could not be parsed.
        item: &'static str,
    },
}
