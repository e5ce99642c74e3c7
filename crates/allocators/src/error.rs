use crate::recognise::Allocator;

/// Why the blocks of a process could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process allocates by something whose structures are not read.
    #[error(
        "cannot list the blocks of process {pid}: it allocates by {allocator} ({module}), whose structures leakscope \
         does not read; {}", advice(*allocator)
    )]
    Unsupported {
        /// Process id; 0 if unknown.
        pid: u32,
        /// What was recognised.
        allocator: Allocator,
        /// Path of the module that holds it.
        module: String,
    },
    /// Nothing that allocates was recognised.
    #[error(
        "cannot list the blocks of process {pid}: no C library or allocator was recognised in its {modules} modules; \
         if it is linked dynamically with glibc, start it under `leakscope run` and examine it then"
    )]
    NoAllocator {
        /// Process id; 0 if unknown.
        pid: u32,
        /// How many modules were looked at.
        modules: usize,
    },
    /// glibc is there, but its main arena was not found.
    #[error(
        "cannot find malloc's main arena of process {pid} in {module} (glibc {version}): {tried}; if the process was in \
         the middle of an allocation, try again; else install the C library's debug symbols, or start the \
         process under `leakscope run` and examine it then"
    )]
    MainArena {
        /// Process id; 0 if unknown.
        pid: u32,
        /// Path of the C library, or of the executable that it is linked into.
        module: String,
        /// Its version, or `unknown version`.
        version: String,
        /// What was tried and why it failed.
        tried: String,
    },
    /// The version is older than the oldest layout known.
    #[error(
        "cannot list the blocks of process {pid}: glibc {version} in {module} is older than 2.26, the oldest whose heap \
         leakscope reads; start it under `leakscope run` and examine it then"
    )]
    TooOld {
        /// Process id; 0 if unknown.
        pid: u32,
        /// Path of the C library.
        module: String,
        /// Its version.
        version: String,
    },
    /// The process is not of this machine's kind.
    #[error(
        "cannot list the blocks of process {pid}: {module} is {what}; only 64-bit little-endian processes are read"
    )]
    Foreign {
        /// Process id; 0 if unknown.
        pid: u32,
        /// Path of the C library.
        module: String,
        /// What it is.
        what: &'static str,
    },
}

fn advice(allocator: Allocator) -> &'static str {
    match allocator {
        // The tracer is made for glibc.
        Allocator::Musl => {
            "nor can it trace what is linked with musl; examine a build of it that is linked with glibc"
        }
        _ => {
            "start it under `leakscope run`, which records every allocation, whatever the allocator, and examine it then"
        }
    }
}
