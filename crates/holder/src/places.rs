//! Where things are kept: the state directory, a run's heap files, the arena, the shared object.

use crate::{Error, limits};
use leakscope_heapfile::Arena;
use leakscope_heapfile::sampling::Sampling;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Most address space that an arena takes.
const ARENA_BYTES: u64 = 64 << 30;
/// Less is not worth starting with.
const ARENA_LEAST: u64 = 4 << 20;
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
const STATE_HINT: Option<&str> = Some("set XDG_STATE_HOME to a directory of your own");

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
        check_owner(state)?;
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

    /// Makes the arena, sampled as `sampling` says: in shared memory if there is room, else beside the output.
    pub(crate) fn create_arena(&self, sampling: Sampling) -> Result<Arena, Error> {
        let name = format!("leakscope-{}-{:08x}", std::process::id(), nonce());
        let shared = Path::new("/dev/shm");
        let len = arena_bytes();
        if len < ARENA_LEAST {
            self.tidy();
            let reason = std::io::Error::other(format!("a limit leaves {len} bytes for it"));
            let hint = Some("raise the limit of file sizes (ulimit -f) or of address space (ulimit -v)");
            return Err(Error::io("create the heap file", &self.file, hint)(reason));
        }
        let create = |path: &Path| {
            Arena::create(path, len, sampling).inspect_err(|_| {
                // The name is this run's alone.
                let _ = std::fs::remove_file(path);
            })
        };
        if room(shared) >= ARENA_ROOM
            && let Ok(arena) = create(&shared.join(&name))
        {
            return Ok(arena);
        }
        let beside = self.file.parent().unwrap_or(Path::new(".")).join(format!(".{name}"));
        create(&beside).map_err(|error| {
            self.tidy();
            error.into()
        })
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

/// Whoever owns the state directory decides what is loaded into every traced process.
fn check_owner(state: &Path) -> Result<(), Error> {
    let owner = state.metadata().map_err(Error::io("use", state, STATE_HINT))?.uid();
    // SAFETY: no preconditions.
    if owner == 0 || owner == unsafe { libc::geteuid() } {
        return Ok(());
    }
    let reason = format!("it belongs to user {owner}, who could put another program in the tracer's place");
    Err(Error::io("use", state, STATE_HINT)(std::io::Error::other(reason)))
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
    // Compared whole: a disk that was full, or a tampered file, must not end up in a target.
    if std::fs::read(&path).is_ok_and(|bytes| bytes == tracer) {
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

/// The arena's length: plenty, but no more than an eighth of a limited address space, nor than a file may have.
fn arena_bytes() -> u64 {
    let space = limits::soft(libc::RLIMIT_AS).map_or(ARENA_BYTES, |limit| limit / 8);
    let file = limits::soft(libc::RLIMIT_FSIZE).unwrap_or(ARENA_BYTES);
    ARENA_BYTES.min(space).min(file)
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

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &[u8] = b"an object";

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    fn entries(path: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_state_directory_is_as_the_xdg_specification_says_and_roots_is_in_var() {
        let of = |user, variables: &[(&str, &str)]| {
            let value = |name: &str| variables.iter().find(|(known, _)| *known == name);
            state_directory_of(user, |name| value(name).map(|(_, value)| OsString::from(value)))
        };
        let home = ("HOME", "/home/ann");
        assert_eq!(of(1000, &[home, ("XDG_STATE_HOME", "/state")]), Path::new("/state/leakscope"));
        assert_eq!(of(0, &[home, ("XDG_STATE_HOME", "/state")]), Path::new("/state/leakscope"));
        assert_eq!(of(1000, &[home]), Path::new("/home/ann/.local/state/leakscope"));
        assert_eq!(
            of(1000, &[home, ("XDG_STATE_HOME", "relative")]),
            Path::new("/home/ann/.local/state/leakscope")
        );
        assert_eq!(of(1000, &[home, ("XDG_STATE_HOME", "")]), Path::new("/home/ann/.local/state/leakscope"));
        assert_eq!(of(0, &[home]), Path::new("/var/lib/leakscope"));
        assert!(of(1000, &[]).ends_with("leakscope-1000"));
    }

    #[test]
    fn a_run_gets_a_private_directory_and_becomes_the_last_one_when_it_has_started() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("not/there/yet");
        let places = Places::prepare_in(&state, None, OBJECT).unwrap();
        assert_eq!(mode(&state), 0o711, "a target that changes its user passes through to the tracer");
        assert_eq!(mode(&state.join("lib")), 0o755);
        assert_eq!(mode(&state.join("runs")), 0o700);
        let run = places.file.parent().unwrap();
        assert_eq!(mode(run), 0o700);
        let arena = state.join("arena");
        std::fs::write(&arena, "of the run").unwrap();
        places.announce(&arena).unwrap();
        assert_eq!(last_run_in(&state), None);
        places.remember();
        let last = last_run_in(&state).unwrap();
        assert_eq!(std::fs::read(last).unwrap(), b"of the run");
        places.tidy();
        assert!(places.file.exists(), "only an empty directory is removed");
    }

    #[test]
    fn a_run_that_never_began_leaves_nothing_and_the_last_run_stays_the_last() {
        let state = tempfile::tempdir().unwrap();
        let earlier = Places::prepare_in(state.path(), None, OBJECT).unwrap();
        std::fs::write(&earlier.file, "earlier").unwrap();
        earlier.remember();
        // The name has the second and the pid in it: make room for one of the same.
        let runs = state.path().join("runs");
        let kept = runs.join("kept");
        std::fs::rename(earlier.file.parent().unwrap(), &kept).unwrap();
        std::fs::remove_file(runs.join("last")).unwrap();
        symlink("kept", runs.join("last")).unwrap();

        let places = Places::prepare_in(state.path(), None, OBJECT).unwrap();
        let arena = state.path().join("arena");
        std::fs::write(&arena, "").unwrap();
        places.announce(&arena).unwrap();
        places.abandon(&arena);
        assert_eq!(entries(&runs), ["kept", "last"]);
        assert!(!arena.exists());
        assert_eq!(std::fs::read(last_run_in(state.path()).unwrap()).unwrap(), b"earlier");
    }

    #[test]
    fn the_object_is_written_once_and_again_if_it_is_not_what_it_should_be() {
        let state = tempfile::tempdir().unwrap();
        let output = state.path().join("heap");
        let install = || Places::prepare_in(state.path(), Some(&output), OBJECT).unwrap().object;
        let object = install();
        assert_eq!((std::fs::read(&object).unwrap().as_slice(), mode(&object)), (OBJECT, 0o755));
        let before = object.metadata().unwrap().ino();
        assert_eq!(install().metadata().unwrap().ino(), before);
        std::fs::write(&object, "tampered!").unwrap();
        assert_eq!(std::fs::read(install()).unwrap(), OBJECT);
        let other = Places::prepare_in(state.path(), Some(&output), b"another version").unwrap().object;
        assert_ne!(other, object);
        assert_eq!(entries(&state.path().join("lib")).len(), 2);
    }

    #[test]
    fn an_output_that_exists_is_refused_and_a_relative_one_is_made_absolute() {
        let state = tempfile::tempdir().unwrap();
        let prepare = |output: &Path| Places::prepare_in(state.path(), Some(output), OBJECT);
        let file = state.path().join("heap");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(prepare(&file), Err(Error::OutputExists { path }) if path == file));
        let link = state.path().join("link");
        symlink("nowhere", &link).unwrap();
        assert!(matches!(prepare(&link), Err(Error::OutputExists { path }) if path == link));
        let error = prepare(state.path()).unwrap_err();
        assert!(matches!(error, Error::OutputIsDirectory { .. }), "{error}");
        assert!(prepare(Path::new("relative")).unwrap().file.is_absolute());
        assert!(!state.path().join("runs").exists(), "no directory for a run that names its output");
    }

    #[test]
    fn a_state_directory_that_cannot_be_made_is_named_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let error = Places::prepare_in(&directory.path().join("file/leakscope"), None, OBJECT).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("file") && text.contains("XDG_STATE_HOME"), "{text}");
    }

    #[test]
    fn the_users_own_preloads_come_after_the_tracer() {
        let state = tempfile::tempdir().unwrap();
        let places = Places::prepare_in(state.path(), Some(&state.path().join("heap")), OBJECT).unwrap();
        let value = places.preload();
        let own = std::env::var_os("LD_PRELOAD").unwrap_or_default();
        let first = value.to_str().unwrap().split(':').next().unwrap();
        assert_eq!(Path::new(first), places.object);
        assert!(value.to_str().unwrap().ends_with(own.to_str().unwrap()));
    }
}
