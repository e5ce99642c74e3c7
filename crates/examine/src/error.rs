//! Why a process could not be examined.

use std::path::PathBuf;

/// Why there is no leak report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The process could not be frozen or read.
    #[error(transparent)]
    Target(#[from] leakscope_target::Error),
    /// Its blocks could not be listed.
    #[error(transparent)]
    Allocator(#[from] leakscope_allocators::Error),
    /// What was asked for in naming addresses cannot be.
    #[error(transparent)]
    Symbols(#[from] leakscope_symbols::Error),
    /// The tracer's record of the process could not be read.
    #[error("cannot read the heap file {} of process {pid}: {source}", path.display())]
    HeapFile {
        /// The process.
        pid: u32,
        /// Its heap file.
        path: PathBuf,
        /// Why.
        source: leakscope_heapfile::Error,
    },
    /// Of a process that is scanned again and again.
    #[error("cannot scan process {pid} again: it has ended, and another process has its number now")]
    Replaced {
        /// Its number.
        pid: u32,
    },
    /// Which pages are in use cannot be told.
    #[error(
        "cannot tell which memory of process {pid} is not touched (--staleness): {}: {source}; this needs a kernel \
         with CONFIG_PROC_PAGE_MONITOR, and root or the process's own user", path.display()
    )]
    Staleness {
        /// The process.
        pid: u32,
        /// What could not be read or written.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
