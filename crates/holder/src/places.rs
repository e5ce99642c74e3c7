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
    /// The directory made for this run, if no output was named.
    run: Option<PathBuf>,
}

/// What to do about a state directory that cannot be used.
const STATE_HINT: Option<&str> = Some("set XDG_STATE_HOME to a directory that you can write");

/// The directory for everything that leakscope keeps: `$XDG_STATE_HOME/leakscope`, else `/var/lib/leakscope`
/// for root and `~/.local/state/leakscope` for others.
pub fn state_directory() -> PathBuf {
    // SAFETY: no preconditions.
    let user = unsafe { libc::geteuid() };
    state_directory_of(user, |name| std::env::var_os(name))
}

fn state_directory_of(user: u32, variable: impl Fn(&str) -> Option<OsString>) -> PathBuf {
    // The XDG base directory specification: what is not absolute is to be ignored.
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    if let Some(home) = absolute("XDG_STATE_HOME") {
        return home.join("leakscope");
    }
    if user == 0 {
        return "/var/lib/leakscope".into();
    }
    match absolute("HOME") {
        Some(home) => home.join(".local/state/leakscope"),
        // A directory that others share must not be one that they could have made.
        None => std::env::temp_dir().join(format!("leakscope-{user}")),
    }
}

/// The heap file of the last run that named none.
pub fn last_run() -> Option<PathBuf> {
    last_run_in(&state_directory())
}

fn last_run_in(state: &Path) -> Option<PathBuf> {
    let file = state.join("runs/last/heap");
    // The link itself counts: it may lead to an arena of a run whose leakscope was killed.
    file.symlink_metadata().is_ok().then_some(file)
}

impl Places {
    /// Makes the directories and the shared object's file.
    ///
    /// # Errors
    /// If a directory or file cannot be made, or the output exists.
    pub fn prepare(output: Option<&Path>, tracer: &[u8]) -> Result<Places, Error> {
        Places::prepare_in(&state_directory(), output, tracer)
    }

    fn prepare_in(state: &Path, output: Option<&Path>, tracer: &[u8]) -> Result<Places, Error> {
        // Others may pass through, so that a target that changes its user can still load the tracer.
        make_directory(state, 0o711)?;
        let object = install_object(state, tracer)?;
        if let Some(file) = output {
            if file.is_dir() {
                return Err(Error::OutputIsDirectory { path: file.into() });
            }
            if file.symlink_metadata().is_ok() {
                return Err(Error::OutputExists { path: file.into() });
            }
            let file = std::path::absolute(file).unwrap_or_else(|_| file.into());
            return Ok(Places { file, object, run: None });
        }
        let run = new_run(&state.join("runs"))?;
        Ok(Places { file: run.join("heap"), object, run: Some(run) })
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
                hint: Some("name a file in a directory that exists and that you can write with -o FILE"),
            }
        })
    }

    /// Removes what a run that never began has made.
    pub(crate) fn abandon(&self, arena: &Path) {
        let _ = std::fs::remove_file(arena);
        if self.file.is_symlink() {
            let _ = std::fs::remove_file(&self.file);
        }
        self.tidy();
    }

    /// Makes this the last run: the command has started.
    pub(crate) fn remember(&self) {
        let Some((runs, name)) = self.run.as_ref().and_then(|run| run.parent().zip(run.file_name())) else {
            return;
        };
        let temporary = runs.join(format!(".last-{}", std::process::id()));
        // The link is a convenience; two runs at once may race for it.
        let _ = std::fs::remove_file(&temporary);
        if symlink(name, &temporary).is_ok() {
            let _ = std::fs::rename(&temporary, runs.join("last"));
        }
    }

    /// Removes the run's directory if nothing was written to it.
    pub(crate) fn tidy(&self) {
        if let Some(run) = &self.run {
            let _ = std::fs::remove_dir(run);
        }
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(Error::io("create", parent, STATE_HINT))?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists || !path.is_dir() => {
            Err(Error::io("create", path, STATE_HINT)(error))
        }
        _ => Ok(()),
    }
}

/// Puts the shared object where every process of the run can load it. Its name holds a hash of its content, so
/// versions do not meet and it is written once.
fn install_object(state: &Path, tracer: &[u8]) -> Result<PathBuf, Error> {
    let directory = state.join("lib");
    make_directory(&directory, 0o755)?;
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
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Error::io("install the tracer as", &path, STATE_HINT)(error)
    })?;
    Ok(path)
}

/// Makes a directory for this run.
fn new_run(runs: &Path) -> Result<PathBuf, Error> {
    make_directory(runs, 0o700)?;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |duration| duration.as_secs());
    let directory = runs.join(format!("{now}-{}", std::process::id()));
    make_directory(&directory, 0o700)?;
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
