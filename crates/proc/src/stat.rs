//! `/proc/PID/stat` and `/proc/PID/statm` (proc(5)).

use crate::Error;
use std::path::Path;

/// What leakscope uses of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// State letter: `R`, `S`, `Z`, ...
    pub state: u8,
    /// Parent's pid.
    pub parent: u32,
    /// Its threads, the first one included even if it has ended before others.
    pub threads: u32,
    /// Start time in clock ticks since boot; with the pid, it identifies the process.
    pub start_ticks: u64,
    /// The signal that its parent gets at its end; 0 for none.
    pub exit_signal: u32,
    /// Wait status, meaningful for a zombie; 0 where it may not be read.
    pub exit_code: u32,
}

impl Stat {
    /// Whether the process has ended and waits to be reaped. One whose first thread alone has ended (`pthread_exit` in
    /// `main`) has not, though its state is that thread's.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }
}

/// Reads `/proc/PID/stat` under `root` (normally `/proc`).
///
/// # Errors
/// If the process is gone or the content is not understood.
pub fn stat(root: &Path, pid: u32) -> Result<Stat, Error> {
    let path = root.join(pid.to_string()).join("stat");
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    parse_stat(&text).map_err(|item| Error::Format { path, item })
}

fn parse_stat(text: &[u8]) -> Result<Stat, &'static str> {
    // The command in parentheses may itself hold spaces and parentheses.
    let end = text.iter().rposition(|&byte| byte == b')').ok_or("the command")?;
    let rest = text.get(end + 1..).unwrap_or(&[]);
    let mut fields = rest.split(|byte| byte.is_ascii_whitespace()).filter(|field| !field.is_empty());
    let state = *fields.next().and_then(|field| field.first()).ok_or("the state")?;
    let parent = number(fields.next()).ok_or("the parent")? as u32;
    // Fields 20 and 22; the parent was field 4.
    let threads = number(fields.nth(15)).ok_or("the number of threads")? as u32;
    let start_ticks = number(fields.nth(1)).ok_or("the start time")?;
    // Field 38; a thread that is not the first has -1, a process usually SIGCHLD.
    let exit_signal = number(fields.nth(15)).unwrap_or(libc::SIGCHLD as u64) as u32;
    // Field 52; kernels before 3.5 lack it.
    let exit_code = number(fields.nth(13)).unwrap_or(0) as u32;
    Ok(Stat { state, parent, threads, start_ticks, exit_signal, exit_code })
}

/// Resident set size in bytes, from `/proc/PID/statm` under `root`.
///
/// # Errors
/// If the process is gone or the content is not understood.
pub fn resident_bytes(root: &Path, pid: u32) -> Result<u64, Error> {
    let path = root.join(pid.to_string()).join("statm");
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    let pages = number(text.split(|&byte| byte == b' ').nth(1));
    let pages = pages.ok_or(Error::Format { path, item: "the resident pages" })?;
    Ok(pages.saturating_mul(page_size()))
}

fn page_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

pub(crate) fn number(field: Option<&[u8]>) -> Option<u64> {
    let field = field?;
    if field.is_empty() {
        return None;
    }
    field.iter().try_fold(0u64, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_time_and_parent_agree_with_ps() {
        let own = stat(Path::new("/proc"), std::process::id()).unwrap();
        let output = std::process::Command::new("ps")
            .args(["-o", "ppid=", "-p", &std::process::id().to_string()])
            .output()
            .unwrap();
        let parent: u32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        assert_eq!(own.parent, parent);
        assert!(own.start_ticks > 0);
        assert_eq!(own.exit_signal, libc::SIGCHLD as u32);
        assert!(!own.has_ended());
    }

    #[test]
    fn a_process_whose_first_thread_alone_has_ended_has_not() {
        let text = b"7 (a) Z 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2 0 77 0 0";
        let parsed = parse_stat(text).unwrap();
        assert_eq!((parsed.threads, parsed.start_ticks), (2, 77));
        assert!(!parsed.has_ended());
    }

    #[test]
    fn a_hostile_command_name_does_not_shift_the_fields() {
        let text = b"7 (a) R 1 (b) Z 3 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 77 0 0";
        let parsed = parse_stat(text).unwrap();
        assert_eq!((parsed.state, parsed.parent), (b'Z', 3));
        assert_eq!((parsed.threads, parsed.start_ticks, parsed.has_ended()), (0, 77, true));
        let mut text = text.to_vec();
        text.extend((25..=52).flat_map(|field| format!(" {field}").into_bytes()));
        let parsed = parse_stat(&text).unwrap();
        assert_eq!((parsed.start_ticks, parsed.exit_signal, parsed.exit_code), (77, 38, 52));
        assert!(parse_stat(b"7 (a").is_err());
        assert!(parse_stat(b"").is_err());
    }
}
