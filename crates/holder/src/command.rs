//! What kind of program a command is, before it is run.

use crate::Error;
use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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
    /// It gets capabilities when executed, so the loader ignores preloading.
    Capabilities(PathBuf),
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
            Untraceable::Capabilities(path) => write!(
                f,
                "not traced: {} has file capabilities (setcap), and the loader ignores LD_PRELOAD for such programs; \
                 it ran normally. Run it as root, or use a copy, which does not have them",
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
    let untraceable = judge(&path, MAX_INTERPRETERS);
    Ok(Resolved { path, untraceable })
}

/// Why a command could not be executed although it is there: an interpreter that is not.
pub(crate) fn missing_interpreter(path: &Path) -> Option<PathBuf> {
    match kind(&head(path)?)? {
        Kind::Script(interpreter) | Kind::Dynamic(interpreter) if !interpreter.exists() => Some(interpreter),
        Kind::Script(interpreter) => missing_interpreter(&interpreter),
        _ => None,
    }
}

fn find(name: &OsStr) -> Result<PathBuf, Error> {
    if name.is_empty() {
        return Err(Error::NotFound { name: PathBuf::new() });
    }
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

/// Scripts that interpret scripts: Linux follows as many.
const MAX_INTERPRETERS: u32 = 5;

/// Looks into the file, and into the interpreter of a script. What cannot be read or is of no known kind is left to
/// the kernel.
fn judge(path: &Path, interpreters: u32) -> Option<Untraceable> {
    if let Some(reason) = gained_privileges(path) {
        return Some(reason);
    }
    let head = head(path)?;
    match kind(&head)? {
        Kind::Script(interpreter) => judge(&interpreter, interpreters.checked_sub(1)?),
        Kind::Dynamic(loader) => {
            let is_musl = loader.as_os_str().as_bytes().windows(7).any(|part| part == b"ld-musl");
            is_musl.then(|| Untraceable::Musl(path.into()))
        }
        Kind::Static => Some(Untraceable::Static(path.into())),
        Kind::Not64Bit => Some(Untraceable::Not64Bit(path.into())),
        Kind::ForeignProcessor => Some(Untraceable::ForeignProcessor(path.into())),
    }
}

/// Whether executing the file changes the user, group or capabilities, after which the loader preloads nothing.
fn gained_privileges(path: &Path) -> Option<Untraceable> {
    let metadata = path.metadata().ok()?;
    let mode = metadata.permissions().mode();
    // SAFETY: no preconditions.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let changes_user = mode & 0o4000 != 0 && metadata.uid() != user;
    let changes_group = mode & 0o2010 == 0o2010 && metadata.gid() != group;
    // Root has them anyway.
    let has_capabilities = user != 0 && has_attribute(path, c"security.capability");
    if !(changes_user || changes_group || has_capabilities) || gains_nothing(path) {
        return None;
    }
    Some(if changes_user || changes_group {
        Untraceable::SetUser(path.into())
    } else {
        Untraceable::Capabilities(path.into())
    })
}

/// Whether this process, or the file's file system, is barred from gaining privileges by executing.
fn gains_nothing(path: &Path) -> bool {
    // SAFETY: this option takes no further arguments and reads a flag.
    if unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1 {
        return true;
    }
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: zero is a valid value of the structure, and the path ends in NUL.
    unsafe {
        let mut found: libc::statvfs = std::mem::zeroed();
        libc::statvfs(path.as_ptr(), &mut found) == 0 && found.f_flag & libc::ST_NOSUID != 0
    }
}

fn has_attribute(path: &Path, name: &std::ffi::CStr) -> bool {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: both strings end in NUL; with a size of 0 nothing is written.
    unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0) > 0 }
}

/// What the beginning of a file says about how it is executed.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// By this interpreter.
    Script(PathBuf),
    /// By this program loader.
    Dynamic(PathBuf),
    Static,
    Not64Bit,
    ForeignProcessor,
}

/// How much of a file is looked at: program headers and the loader's name stand at its beginning.
const HEAD: u64 = 64 << 10;

fn head(path: &Path) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    std::fs::File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    Some(head)
}

/// None: it is neither a script nor an ELF file, or a broken one.
fn kind(head: &[u8]) -> Option<Kind> {
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(line).map(Kind::Script);
    }
    if head.get(..4)? != elf::MAGIC {
        return None;
    }
    if *head.get(4)? != elf::CLASS_64 {
        return Some(Kind::Not64Bit);
    }
    let half = |at: usize| head.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes);
    let word = |at: usize| head.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes);
    let offset = |at: usize| word(at).and_then(|value| usize::try_from(value).ok());
    if half(18)? != elf::MACHINE_X86_64 {
        return Some(Kind::ForeignProcessor);
    }
    let (table, size, count) = (offset(32)?, usize::from(half(54)?), half(56)?);
    for index in 0..usize::from(count) {
        let at = table.checked_add(index.checked_mul(size)?)?;
        let kind = head.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)?;
        if kind == elf::PT_INTERP {
            let (start, length) = (offset(at.checked_add(8)?)?, offset(at.checked_add(32)?)?);
            let name = head.get(start..start.checked_add(length)?)?;
            let name = name.split(|&byte| byte == 0).next().unwrap_or(name);
            return Some(Kind::Dynamic(OsString::from_vec(name.to_vec()).into()));
        }
    }
    Some(Kind::Static)
}

/// The interpreter named by a script's first line, without the `#!`.
fn script(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let name = line.split(|byte| b" \t".contains(byte)).find(|word| !word.is_empty())?;
    Some(OsString::from_vec(name.to_vec()).into())
}
