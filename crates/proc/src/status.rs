//! `/proc/PID/status` (proc(5)).

use crate::{Error, stat::number};
use std::path::Path;

/// What leakscope uses of `/proc/PID/status`. What the kernel did not say is 0, empty or None.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// State letter: `R`, `S`, `D`, `T`, `t`, `Z`, ...
    pub state: u8,
    /// The process that the thread belongs to.
    pub tgid: u32,
    /// Who traces it; 0 if nobody.
    pub tracer: u32,
    /// Its ids in the nested pid namespaces, the reader's first, its own last; empty before Linux 4.1.
    pub namespace_pids: Vec<u32>,
    /// Real, effective, saved and file system user.
    pub uids: [u32; 4],
    /// A kernel thread, where the kernel says so (from Linux 6.7 on).
    pub kernel_thread: Option<bool>,
    /// Whether it has memory of its own; kernel threads and zombies have none.
    pub has_memory: bool,
    /// Virtual size in bytes.
    pub virtual_bytes: u64,
    /// Resident anonymous memory in bytes.
    pub anonymous_bytes: u64,
    /// Size of its page tables in bytes.
    pub page_table_bytes: u64,
    /// Memory in hugetlb pages in bytes.
    pub hugetlb_bytes: u64,
    /// How many threads it has.
    pub threads: u32,
    /// Signals pending for this thread.
    pub pending: u64,
    /// Signals pending for the whole process.
    pub shared_pending: u64,
    /// Signals that this thread blocks.
    pub blocked: u64,
    /// Signals that have a handler.
    pub caught: u64,
    /// Effective capabilities.
    pub effective_capabilities: u64,
    /// 0 without seccomp, 1 strict, 2 filter.
    pub seccomp: u32,
    /// Transparent huge pages are possible for it.
    pub huge_pages_enabled: bool,
    /// The thread has a shadow stack (x86 user shadow stacks, Linux 6.6).
    pub shadow_stack: bool,
}

/// Reads `/proc/PID/status` under `root`; `pid` may be a thread's id too.
///
/// # Errors
/// If the process is gone or the content is not understood.
pub fn status(root: &Path, pid: u32) -> Result<Status, Error> {
    let path = root.join(pid.to_string()).join("status");
    let text = std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
    parse_status(&text).ok_or(Error::Format { path, item: "the state" })
}

fn parse_status(text: &[u8]) -> Option<Status> {
    let mut status = Status::default();
    for line in text.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (key, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or(&[]).trim_ascii();
        let mut words = value.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        let mut decimal = || number(words.next()).unwrap_or(0);
        match key {
            b"State" => status.state = *value.first()?,
            b"Tgid" => status.tgid = decimal() as u32,
            b"TracerPid" => status.tracer = decimal() as u32,
            b"NSpid" => {
                status.namespace_pids =
                    words.map_while(|word| number(Some(word))).map(|id| id as u32).collect();
            }
            b"Uid" => status.uids = std::array::from_fn(|_| decimal() as u32),
            b"Kthread" => status.kernel_thread = Some(decimal() == 1),
            b"VmSize" => {
                status.has_memory = true;
                status.virtual_bytes = kib(decimal());
            }
            b"RssAnon" => status.anonymous_bytes = kib(decimal()),
            b"VmPTE" => status.page_table_bytes = kib(decimal()),
            b"HugetlbPages" => status.hugetlb_bytes = kib(decimal()),
            b"Threads" => status.threads = decimal() as u32,
            b"SigPnd" => status.pending = set(value),
            b"ShdPnd" => status.shared_pending = set(value),
            b"SigBlk" => status.blocked = set(value),
            b"SigCgt" => status.caught = set(value),
            b"CapEff" => status.effective_capabilities = set(value),
            b"Seccomp" => status.seccomp = decimal() as u32,
            b"THP_enabled" => status.huge_pages_enabled = decimal() == 1,
            b"x86_Thread_features" => status.shadow_stack = words.any(|word| word == b"shstk"),
            _ => {}
        }
    }
    (status.state != 0).then_some(status)
}

fn kib(value: u64) -> u64 {
    value.saturating_mul(1024)
}

/// A bit set in hexadecimal; 0 if it is not one.
fn set(text: &[u8]) -> u64 {
    std::str::from_utf8(text).ok().and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_whatever_the_name() {
        let text =
            b"Name:\ta:b State: Z\nState:\tt (tracing stop)\nTgid:\t12\nTracerPid:\t7\nUid:\t1\t2\t3\t4\n\
            NSpid:\t12\t3\t1\nKthread:\t0\nVmSize:\t   8 kB\nRssAnon:\t 4 kB\nVmPTE:\t 40 kB\n\
            Threads:\t9\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000002\nSigBlk:\t8000000000000000\n\
            SigCgt:\t0000000000000010\nCapEff:\t000001fffeffffff\nSeccomp:\t2\nTHP_enabled:\t1\n\
            x86_Thread_features:\tshstk wrss\n";
        let status = parse_status(text).unwrap();
        let expected = Status {
            state: b't',
            tgid: 12,
            tracer: 7,
            namespace_pids: vec![12, 3, 1],
            uids: [1, 2, 3, 4],
            kernel_thread: Some(false),
            has_memory: true,
            virtual_bytes: 8192,
            anonymous_bytes: 4096,
            page_table_bytes: 40960,
            hugetlb_bytes: 0,
            threads: 9,
            pending: 1,
            shared_pending: 2,
            blocked: 1 << 63,
            caught: 16,
            effective_capabilities: 0x1ff_feff_ffff,
            seccomp: 2,
            huge_pages_enabled: true,
            shadow_stack: true,
        };
        assert_eq!(status, expected);
        assert_eq!(parse_status(b"Name:\tx\n"), None);
        assert!(parse_status(b"State:\n").is_none());
    }

    #[test]
    fn own_status_agrees_with_the_system() {
        let own = status(Path::new("/proc"), std::process::id()).unwrap();
        assert_eq!(own.tgid, std::process::id());
        // SAFETY: getuid has no preconditions.
        assert_eq!(own.uids[0], unsafe { libc::getuid() });
        assert!(own.has_memory && own.virtual_bytes > own.page_table_bytes && own.page_table_bytes > 0);
        assert!(own.threads >= 1);
    }
}
