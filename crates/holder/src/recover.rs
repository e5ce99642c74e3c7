//! Arenas whose holder was killed: once their processes have ended, a later run writes their heap files and gives
//! their memory back.

use crate::watcher::Work;
use leakscope_heapfile::Arena;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// Notes in the arena where its heap file belongs.
pub(crate) fn note_output(arena: &Arena, file: &Path) {
    let superblock = arena.superblock();
    let bytes = file.as_os_str().as_bytes();
    if bytes.len() <= superblock.output.len() {
        for (place, &byte) in superblock.output.iter().zip(bytes) {
            place.store(byte, Relaxed);
        }
        superblock.output_len.store(bytes.len() as u32, Release);
    }
}

fn output_of(arena: &Arena) -> Option<PathBuf> {
    let superblock = arena.superblock();
    let length = superblock.output_len.load(Acquire) as usize;
    let bytes: Vec<u8> = superblock.output.get(..length)?.iter().map(|byte| byte.load(Relaxed)).collect();
    (length > 0).then(|| OsString::from_vec(bytes).into())
}

/// Looks through a directory of arenas for those of this user that nobody needs any more.
pub(crate) fn recover(directory: &Path, limits: (usize, u64)) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    // SAFETY: no preconditions.
    let user = unsafe { libc::geteuid() };
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(holder_of) else { continue };
        let own = entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.uid() == user);
        if own && leakscope_proc::stat(Path::new("/proc"), pid).is_err() {
            recover_one(&entry.path(), limits);
        }
    }
}

/// The holder's pid in an arena's name.
fn holder_of(name: &str) -> Option<u32> {
    let (pid, nonce) = name.strip_prefix("leakscope-")?.split_once('-')?;
    (nonce.len() == 8).then(|| pid.parse().ok()).flatten()
}

fn recover_one(path: &Path, limits: (usize, u64)) {
    let Ok(arena) = Arena::open_to_hold(path) else { return };
    let Some(file) = output_of(&arena) else { return };
    // Only if the output still is the link to this arena: a moved or replaced one is somebody's decision.
    if std::fs::read_link(&file).is_ok_and(|target| target == path) {
        let root = arena.superblock().root_pid.load(Acquire);
        Work::new(Arc::new(arena), root, file, limits).recover();
    }
}

#[cfg(test)]
mod tests {
    use super::holder_of;

    #[test]
    fn only_names_of_arenas_are_taken_for_arenas() {
        assert_eq!(holder_of("leakscope-42-0123abcd"), Some(42));
        assert_eq!(holder_of("leakscope-demo-AbC123"), None);
        assert_eq!(holder_of("leakscope-42"), None);
        assert_eq!(holder_of("other-42-0123abcd"), None);
    }
}
