//! Writes the heap files of processes that have ended.

use leakscope_heapfile::{BlockKind, End, Snapshot, sealed};
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A heap file that was written.
#[derive(Debug, Clone)]
pub struct SealedFile {
    /// Where.
    pub path: PathBuf,
    /// Whose.
    pub pid: u32,
    /// Heap bytes that it never freed; 0 for a process that executed another program.
    pub unfreed: u64,
    /// Bytes of the file.
    pub size: u64,
}

/// Writes a snapshot to `path`, replacing what is there in one step (the symbolic link to the arena).
pub(crate) fn seal(snapshot: &Snapshot, path: &Path) -> std::io::Result<SealedFile> {
    let bytes = sealed::encode(snapshot);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let temporary = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        std::fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(SealedFile {
        path: path.into(),
        pid: if snapshot.process.host_pid != 0 { snapshot.process.host_pid } else { snapshot.process.pid },
        unfreed: unfreed(snapshot),
        size: bytes.len() as u64,
    })
}

fn unfreed(snapshot: &Snapshot) -> u64 {
    if snapshot.process.end == End::Replaced {
        return 0;
    }
    let heap = snapshot.blocks.iter().filter(|block| block.kind != BlockKind::Mapped);
    heap.fold(0, |sum, block| sum.saturating_add(block.size))
}
