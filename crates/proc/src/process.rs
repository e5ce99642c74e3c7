//! The smaller files of `/proc/PID`: threads, names, arguments, the auxiliary vector, huge pages.

use crate::{Error, stat::number};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

fn read(root: &Path, pid: u32, name: &str) -> Result<Vec<u8>, Error> {
    let path = root.join(pid.to_string()).join(name);
    std::fs::read(&path).map_err(|source| Error::Io { path, source })
}

/// The ids of a process's threads, ascending.
///
/// # Errors
/// If the process is gone.
pub fn tasks(root: &Path, pid: u32) -> Result<Vec<u32>, Error> {
    let path = root.join(pid.to_string()).join("task");
    let failed = |source| Error::Io { path: path.clone(), source };
    let mut tasks = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_vec();
        tasks.extend(number(Some(&name)).and_then(|id| u32::try_from(id).ok()));
    }
    tasks.sort_unstable();
    Ok(tasks)
}

/// The name of a thread (`comm`), at most 15 bytes, any bytes.
///
/// # Errors
/// If the thread is gone.
pub fn comm(root: &Path, pid: u32, tid: u32) -> Result<Vec<u8>, Error> {
    let mut name = read(root, pid, &format!("task/{tid}/comm"))?;
    if name.last() == Some(&b'\n') {
        name.pop();
    }
    Ok(name)
}

/// The argument vector, as the process has it now; empty for a kernel thread or a zombie.
///
/// # Errors
/// If the process is gone.
pub fn cmdline(root: &Path, pid: u32) -> Result<Vec<Vec<u8>>, Error> {
    let text = read(root, pid, "cmdline")?;
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    if text.is_empty() {
        return Ok(Vec::new());
    }
    Ok(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

/// The auxiliary vector that the kernel gave to the program, `(type, value)` (getauxval(3)).
///
/// # Errors
/// If the process is gone or may not be looked at.
pub fn auxv(root: &Path, pid: u32) -> Result<Vec<(u64, u64)>, Error> {
    Ok(parse_auxv(&read(root, pid, "auxv")?))
}

/// Parses an auxiliary vector of 64-bit words, up to its end mark.
pub fn parse_auxv(bytes: &[u8]) -> Vec<(u64, u64)> {
    bytes
        .as_chunks::<16>()
        .0
        .iter()
        .map(|pair| {
            let word = |from: usize| {
                let bytes = pair.get(from..from + 8).and_then(|word| word.try_into().ok()).unwrap_or([0; 8]);
                u64::from_ne_bytes(bytes)
            };
            (word(0), word(8))
        })
        .take_while(|&(kind, _)| kind != 0)
        .collect()
}

/// The path of the executable as the process sees it; ` (deleted)` is appended by the kernel if it is gone.
///
/// # Errors
/// If the process is gone, is a kernel thread, or may not be looked at.
pub fn executable(root: &Path, pid: u32) -> Result<Vec<u8>, Error> {
    let path = root.join(pid.to_string()).join("exe");
    let target = std::fs::read_link(&path).map_err(|source| Error::Io { path, source })?;
    Ok(target.into_os_string().into_vec())
}

/// Sums over all mappings of a process, from `smaps_rollup` (Linux 4.14).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rollup {
    /// Resident anonymous memory in bytes.
    pub anonymous_bytes: u64,
    /// Of it, in transparent huge pages.
    pub anonymous_huge_bytes: u64,
    /// Memory in private hugetlb pages in bytes.
    pub private_hugetlb_bytes: u64,
}

/// Reads `/proc/PID/smaps_rollup`. The kernel walks the page tables for it: about 3 ms per GiB of 4 KiB pages.
///
/// # Errors
/// If the process is gone, may not be looked at, or the kernel has no such file.
pub fn rollup(root: &Path, pid: u32) -> Result<Rollup, Error> {
    let text = read(root, pid, "smaps_rollup")?;
    let mut rollup = Rollup::default();
    for line in text.split(|&byte| byte == b'\n') {
        let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let field = match words.next() {
            Some(b"Anonymous:") => &mut rollup.anonymous_bytes,
            Some(b"AnonHugePages:") => &mut rollup.anonymous_huge_bytes,
            Some(b"Private_Hugetlb:") => &mut rollup.private_hugetlb_bytes,
            _ => continue,
        };
        *field = number(words.next()).unwrap_or(0).saturating_mul(1024);
    }
    Ok(rollup)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "/proc";

    #[test]
    fn own_files_agree_with_the_standard_library() {
        let pid = std::process::id();
        let arguments: Vec<_> = std::env::args_os().map(OsStringExt::into_vec).collect();
        assert_eq!(cmdline(Path::new(ROOT), pid).unwrap(), arguments);
        let path = std::env::current_exe().unwrap().into_os_string().into_vec();
        assert_eq!(executable(Path::new(ROOT), pid).unwrap(), path);
        let auxv = auxv(Path::new(ROOT), pid).unwrap();
        // SAFETY: getauxval has no preconditions.
        let entry = unsafe { libc::getauxval(libc::AT_ENTRY) };
        assert!(auxv.contains(&(libc::AT_ENTRY, entry)));
    }

    #[test]
    fn a_named_thread_is_listed_with_its_name() {
        let (tid_to, tid_from) = std::sync::mpsc::channel();
        let (end_to, end_from) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("odd name)\t".into()).spawn(move || {
            // SAFETY: gettid has no preconditions.
            tid_to.send(unsafe { libc::gettid() } as u32).unwrap();
            let _ = end_from.recv();
        });
        let tid = tid_from.recv().unwrap();
        let pid = std::process::id();
        assert!(tasks(Path::new(ROOT), pid).unwrap().contains(&tid));
        assert_eq!(comm(Path::new(ROOT), pid, tid).unwrap(), b"odd name)\t");
        drop(end_to);
        thread.unwrap().join().unwrap();
    }

    #[test]
    fn rollup_sums_the_mappings() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("7")).unwrap();
        let text = "1000-2000 ---p 00000000 00:00 0    [rollup]\nRss:  9 kB\nAnonymous:   5 kB\n\
            AnonHugePages:    4 kB\nPrivate_Hugetlb: 2 kB\nBroken:\n";
        std::fs::write(root.path().join("7/smaps_rollup"), text).unwrap();
        let expected =
            Rollup { anonymous_bytes: 5120, anonymous_huge_bytes: 4096, private_hugetlb_bytes: 2048 };
        assert_eq!(rollup(root.path(), 7).unwrap(), expected);
        assert!(rollup(root.path(), 8).is_err());
    }

    #[test]
    fn an_auxiliary_vector_ends_at_its_mark_or_where_it_is_cut() {
        let words: Vec<u8> =
            [6u64, 4096, 9, 77, 0, 0, 5, 5].iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(parse_auxv(&words), [(6, 4096), (9, 77)]);
        assert_eq!(parse_auxv(&words[..24]), [(6, 4096)]);
        assert_eq!(parse_auxv(&[]), []);
    }
}
