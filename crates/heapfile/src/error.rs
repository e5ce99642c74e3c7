//! What can be wrong with a heap file.

use std::path::PathBuf;

/// Why a heap file could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The file is not a heap file.
    #[error("{} is not a leakscope heap file: {found}", path.display())]
    NotAHeapFile {
        /// The file.
        path: PathBuf,
        /// What it seems to be.
        found: String,
    },
    /// The file was written by another version.
    #[error(
        "{} is a heap file of version {found}; this leakscope reads version {expected} (use the leakscope that wrote it)",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// The process that was asked for is not in the file.
    #[error("{} has {}", path.display(), absence(*wanted, known))]
    NoProcess {
        /// The file.
        path: PathBuf,
        /// The pid.
        wanted: u32,
        /// Pids in the file.
        known: Vec<u32>,
    },
    /// The file is cut or damaged.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found where.
        what: String,
    },
}

/// What is there instead, bounded: a run can have thousands of processes.
fn absence(wanted: u32, known: &[u32]) -> String {
    const MOST: usize = 20;
    if known.is_empty() {
        return "no process so far: none has allocated anything, or none could be traced".into();
    }
    let shown: Vec<_> = known.iter().take(MOST).map(u32::to_string).collect();
    let more = match known.len().saturating_sub(MOST) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("no process {wanted}; it has {}{more}", shown.join(", "))
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}
