//! Where things are kept: the state directory, a run's heap files, the arena, the shared object.

use crate::Error;
use leakscope_heapfile::Arena;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Most address space that an arena takes.
const ARENA_BYTES: u64 = 64 << 30;
/// What a file system for the arena must have free.
const ARENA_ROOM: u64 = 16 << 20;

/// A run's places.
#[derive(Debug)]
pub struct Places {
    /// The heap file of the command itself.
    pub file: PathBuf,
    object: PathBuf,
}

/// The directory for everything that leakscope keeps: `$XDG_STATE_HOME/leakscope`, else `/var/lib/leakscope`
/// for root and `~/.local/state/leakscope` for others.
pub fn state_directory() -> PathBuf {
    if let Some(home) = std::env::var_os("XDG_STATE_HOME").filter(|home| Path::new(home).is_absolute()) {
        return PathBuf::from(home).join("leakscope");
    }
    // SAFETY: no preconditions.
    if unsafe { libc::geteuid() } == 0 {
        return "/var/lib/leakscope".into();
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".local/state/leakscope"),
        None => std::env::temp_dir().join("leakscope"),
    }
}

/// The heap file of the last run that named none.
pub fn last_run() -> Option<PathBuf> {
    let file = state_directory().join("runs/last/heap");
    // The link itself counts: it may lead to an arena of a run whose leakscope was killed.
    file.symlink_metadata().is_ok().then_some(file)
}

impl Places {
    /// Makes the directories and the shared object's file.
    ///
    /// # Errors
    /// If a directory or file cannot be made, or the output exists.
    pub fn prepare(output: Option<&Path>, tracer: &[u8]) -> Result<Places, Error> {
        let state = state_directory();
        let hint = Some("set XDG_STATE_HOME to a directory that can be written");
        // Others may pass through, so that a target that changes its user can still load the tracer.
        make_directory(&state, 0o711, hint)?;
        let object = install_object(&state, tracer)?;
        let file = match output {
            Some(file) => {
                if file.symlink_metadata().is_ok() {
                    return Err(Error::OutputExists { path: file.into() });
                }
                std::path::absolute(file).unwrap_or_else(|_| file.into())
            }
            None => new_run(&state.join("runs"))?.join("heap"),
        };
        Ok(Places { file, object })
    }

    /// The value of `LD_PRELOAD`: the tracer first, then what the user had.
    pub fn preload(&self) -> OsString {
        let mut value = self.object.clone().into_os_string();
        if let Some(own) = std::env::var_os("LD_PRELOAD").filter(|own| !own.is_empty()) {
            value.push(":");
            value.push(own);
        }
        value
    }

    /// Makes the arena: in shared memory if there is room, else beside the output.
    pub(crate) fn create_arena(&self) -> Result<Arena, Error> {
        let name = format!("leakscope-{}-{:08x}", std::process::id(), nonce());
        let shared = Path::new("/dev/shm");
        let len = arena_bytes();
        if room(shared) >= ARENA_ROOM
            && let Ok(arena) = Arena::create(&shared.join(&name), len, 0)
        {
            return Ok(arena);
        }
        let beside = self.file.parent().unwrap_or(Path::new(".")).join(format!(".{name}"));
        Ok(Arena::create(&beside, len, 0)?)
    }

    /// Lets the output path lead to the arena as long as the command runs.
    pub(crate) fn announce(&self, arena: &Path) -> Result<(), Error> {
        symlink(arena, &self.file).map_err(|source| {
            self.abandon(arena);
            if source.kind() == std::io::ErrorKind::AlreadyExists {
                return Error::OutputExists { path: self.file.clone() };
            }
            Error::Io {
                action: "create the heap file",
                path: self.file.clone(),
                source,
                hint: Some("choose a directory that can be written with -o FILE"),
            }
        })
    }

    /// Removes what a run that never began has made.
    pub(crate) fn abandon(&self, arena: &Path) {
        let _ = std::fs::remove_file(arena);
        if self.file.is_symlink() {
            let _ = std::fs::remove_file(&self.file);
        }
    }
}

fn make_directory(path: &Path, mode: u32, hint: Option<&'static str>) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent, hint))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("create", path, hint)(error))
        }
        _ => Ok(()),
    }
}

/// Puts the shared object where every process of the run can load it. Its name holds a hash of its content, so
/// versions do not meet and it is written once.
fn install_object(state: &Path, tracer: &[u8]) -> Result<PathBuf, Error> {
    let directory = state.join("lib");
    make_directory(&directory, 0o755, None)?;
    let hash = tracer.iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let path = directory.join(format!("libleakscope-{hash:016x}.so"));
    if path.metadata().is_ok_and(|metadata| metadata.len() == tracer.len() as u64) {
        return Ok(path);
    }
    let temporary = directory.join(format!(".{hash:016x}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o755).open(&temporary)?;
        file.write_all(tracer)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o755))?;
        std::fs::rename(&temporary, &path)
    };
    write().map_err(Error::io("install the tracer as", &path, None))?;
    Ok(path)
}

/// Makes a directory for this run, and lets `last` lead to it.
fn new_run(runs: &Path) -> Result<PathBuf, Error> {
    make_directory(runs, 0o700, None)?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |duration| duration.as_secs());
    let name = format!("{now}-{}", std::process::id());
    let directory = runs.join(&name);
    make_directory(&directory, 0o700, None)?;
    let last = runs.join("last");
    let temporary = runs.join(format!(".last-{}", std::process::id()));
    // The link is a convenience; two runs at once may race for it.
    let _ = std::fs::remove_file(&temporary);
    if symlink(&name, &temporary).is_ok() {
        let _ = std::fs::rename(&temporary, &last);
    }
    Ok(directory)
}

/// The arena's length: plenty, but no more than an eighth of a limited address space.
fn arena_bytes() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable.
    let status = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) };
    if status != 0 || limit.rlim_cur == libc::RLIM_INFINITY {
        return ARENA_BYTES;
    }
    ARENA_BYTES.min(limit.rlim_cur / 8)
}

/// Free bytes of a file system; 0 if there is none.
fn room(path: &Path) -> u64 {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return 0 };
    // SAFETY: zero is a valid value of the structure, and the path ends in NUL.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(path.as_ptr(), &mut found) != 0 {
            return 0;
        }
        found.f_bavail.saturating_mul(found.f_frsize)
    }
}

fn nonce() -> u32 {
    let mut bytes = [0u8; 4];
    // SAFETY: the buffer is writable for its length.
    unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    u32::from_ne_bytes(bytes)
}
