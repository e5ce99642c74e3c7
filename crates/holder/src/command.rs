//! What kind of program a command is, before it is run.

use crate::Error;
use std::ffi::OsStr;
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The few facts about ELF (System V ABI, chapter 4) that are needed.
mod elf {
    pub(super) const MAGIC: &[u8] = b"\x7fELF";
    pub(super) const CLASS_64: u8 = 2;
    pub(super) const MACHINE_X86_64: u16 = 62;
    pub(super) const PT_INTERP: u32 = 3;
}

/// A command that can be run.
#[derive(Debug)]
pub struct Resolved {
    /// The file.
    pub path: PathBuf,
    /// Why it will run without being traced, if so.
    pub untraceable: Option<Untraceable>,
}

/// Why a program cannot be traced by preloading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Untraceable {
    /// No dynamic loader runs.
    Static(PathBuf),
    /// It uses musl's loader, which cannot load an object made for glibc.
    Musl(PathBuf),
    /// It is not a 64-bit program.
    Not64Bit(PathBuf),
    /// It is made for another processor.
    ForeignProcessor(PathBuf),
    /// It changes its user when executed, so the loader ignores preloading.
    SetUser(PathBuf),
}

impl fmt::Display for Untraceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Untraceable::Static(path) => write!(
                f,
                "not traced: {} is statically linked, so nothing can be preloaded into it; \
                 it ran normally. Link it dynamically to trace it",
                path.display()
            ),
            Untraceable::Musl(path) => write!(
                f,
                "not traced: {} uses the musl C library, whose loader cannot load leakscope's tracer; \
                 it ran normally. Build it for glibc to trace it",
                path.display()
            ),
            Untraceable::Not64Bit(path) => write!(
                f,
                "not traced: {} is not a 64-bit program; it ran normally. Only x86-64 programs can be traced",
                path.display()
            ),
            Untraceable::ForeignProcessor(path) => write!(
                f,
                "not traced: {} is made for another processor; only x86-64 programs can be traced",
                path.display()
            ),
            Untraceable::SetUser(path) => write!(
                f,
                "not traced: {} is a set-user-ID or set-group-ID program, and the loader ignores LD_PRELOAD \
                 for those; it ran normally. Run it as the user it changes to, or use a copy without that bit",
                path.display()
            ),
        }
    }
}

/// Finds a command as a shell would, and judges whether it can be traced.
///
/// # Errors
/// [`Error::NotFound`] and [`Error::NotExecutable`].
pub fn resolve(name: &OsStr) -> Result<Resolved, Error> {
    let path = find(name)?;
    let untraceable = judge(&path);
    Ok(Resolved { path, untraceable })
}

fn find(name: &OsStr) -> Result<PathBuf, Error> {
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return check(&path).map(|()| path);
    }
    let mut refused = None;
    let search = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    for directory in std::env::split_paths(&search) {
        let path = directory.join(name);
        match check(&path) {
            Ok(()) => return Ok(path),
            Err(Error::NotFound { .. }) => {}
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::NotFound { name: name.into() }))
}

fn check(path: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Error::NotExecutable { name: path.into(), reason: reason.into() };
    let metadata = match path.metadata() {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(refuse("permission denied on the way to it"));
        }
        Err(_) => return Err(Error::NotFound { name: path.into() }),
    };
    if metadata.is_dir() {
        return Err(refuse("it is a directory"));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(refuse("it is not executable (chmod +x would make it so)"));
    }
    Ok(())
}

/// Looks into the file. What cannot be read or is not ELF (a script, say) is left to the kernel.
fn judge(path: &Path) -> Option<Untraceable> {
    let metadata = path.metadata().ok()?;
    let mode = metadata.permissions().mode();
    // SAFETY: no preconditions.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    if (mode & 0o4000 != 0 && metadata.uid() != user) || (mode & 0o2010 == 0o2010 && metadata.gid() != group)
    {
        return Some(Untraceable::SetUser(path.into()));
    }
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(64 << 10).read_to_end(&mut head).ok()?;
    if head.get(..4)? != elf::MAGIC {
        return None;
    }
    if *head.get(4)? != elf::CLASS_64 {
        return Some(Untraceable::Not64Bit(path.into()));
    }
    let half = |at: usize| head.get(at..at + 2).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes);
    let word = |at: usize| head.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
    if half(18)? != elf::MACHINE_X86_64 {
        return Some(Untraceable::ForeignProcessor(path.into()));
    }
    let (table, size, count) = (usize::try_from(word(32)?).ok()?, usize::from(half(54)?), half(56)?);
    for index in 0..usize::from(count) {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let kind =
            head.get(at..at.checked_add(4)?).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)?;
        if kind == elf::PT_INTERP {
            let start = usize::try_from(word(at + 8)?).ok()?;
            let length = usize::try_from(word(at + 32)?).ok()?;
            let name = head.get(start..start.checked_add(length)?)?;
            let musl = name.windows(7).any(|part| part == b"ld-musl");
            return musl.then(|| Untraceable::Musl(path.into()));
        }
    }
    Some(Untraceable::Static(path.into()))
}
