//! Writes the heap files of processes that have ended.

use leakscope_heapfile::sampling::Scale;
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
    let sum = heap.fold(0u64, |sum, block| sum.saturating_add(snapshot.weight(block).bytes));
    Scale::of(snapshot.sampling_interval).bytes(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_heapfile::{Block, Process};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn snapshot(end: End) -> Snapshot {
        // In the order of their addresses, as they are written.
        let block = |kind, size| Block { kind, size, address: size, ..Block::default() };
        Snapshot {
            process: Process { pid: 7, host_pid: 4007, end, ..Process::default() },
            blocks: vec![
                block(BlockKind::Heap, 11),
                block(BlockKind::Heap, 100),
                block(BlockKind::Mapped, 4096),
            ],
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_was_never_freed_is_heap_memory_of_a_process_that_did_not_go_on_as_another_program() {
        let directory = tempfile::tempdir().unwrap();
        let file = seal(&snapshot(End::Exited(0)), &directory.path().join("heap")).unwrap();
        assert_eq!((file.pid, file.unfreed), (4007, 111));
        let replaced = seal(&snapshot(End::Replaced), &directory.path().join("replaced")).unwrap();
        assert_eq!(replaced.unfreed, 0);
    }

    #[test]
    fn the_sealed_file_takes_the_place_of_the_link_to_the_arena_and_is_private() {
        let directory = tempfile::tempdir().unwrap();
        let (arena, path) = (directory.path().join("arena"), directory.path().join("heap"));
        std::fs::write(&arena, "the arena").unwrap();
        symlink(&arena, &path).unwrap();
        let file = seal(&snapshot(End::Signaled(9)), &path).unwrap();
        let metadata = path.symlink_metadata().unwrap();
        assert!(metadata.is_file());
        assert_eq!((metadata.permissions().mode() & 0o7777, metadata.size()), (0o600, file.size));
        assert_eq!(std::fs::read(&arena).unwrap(), b"the arena");
        let read = sealed::decode(&std::fs::read(&path).unwrap(), &path).unwrap();
        assert_eq!(read, snapshot(End::Signaled(9)));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2, "nothing partial stays");
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_what_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("heap");
        symlink("the-arena", &path).unwrap();
        // In the way of the partial file.
        std::fs::create_dir(directory.path().join("heap.partial")).unwrap();
        seal(&snapshot(End::Exited(0)), &path).unwrap_err();
        assert!(path.is_symlink());
        seal(&snapshot(End::Exited(0)), &directory.path().join("missing/heap")).unwrap_err();
    }
}
