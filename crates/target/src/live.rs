//! Memory of a process that exists: of a running one, a stopped one, or a frozen copy.

use crate::{Error, Memory, Pieces, permission};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The memory of a process as it is while it is read.
#[derive(Debug)]
pub struct LiveMemory {
    pid: u32,
    /// `/proc/PID/mem`, for where process_vm_readv is not allowed (sandboxes forbid it by seccomp).
    file: Option<File>,
    /// What stands for the memory at some places.
    instead: Pieces,
    instead_ranges: Vec<std::ops::Range<u64>>,
}

impl LiveMemory {
    /// The memory of process `pid`, which runs on.
    ///
    /// # Errors
    /// If there is no such process, or it may not be looked at (which needs what ptrace needs).
    pub fn open(pid: u32) -> Result<LiveMemory, Error> {
        LiveMemory::open_under(Path::new("/proc"), pid)
    }

    pub(crate) fn open_under(root: &Path, pid: u32) -> Result<LiveMemory, Error> {
        crate::process::exists(root, pid)?;
        let bearer = crate::process::bearer(root, pid);
        // Opening it asks the same permission as reading by the other way.
        match File::open(root.join(bearer.to_string()).join("mem")) {
            Ok(_) => Ok(LiveMemory::of(root, bearer)),
            Err(error) => Err(permission::explain(root, pid, permission::READ, error)),
        }
    }

    /// The memory of a process that is known to be accessible.
    pub(crate) fn of(root: &Path, pid: u32) -> LiveMemory {
        let file = File::open(root.join(pid.to_string()).join("mem")).ok();
        LiveMemory { pid, file, instead: Pieces::default(), instead_ranges: Vec::new() }
    }

    /// Lets these bytes, not overlapping, stand for what the process has there.
    pub(crate) fn with(mut self, pieces: Vec<(u64, Vec<u8>)>) -> LiveMemory {
        self.instead_ranges =
            pieces.iter().map(|(start, bytes)| *start..*start + bytes.len() as u64).collect();
        self.instead_ranges.sort_by_key(|range| range.start);
        self.instead = Pieces::new(pieces);
        self
    }

    fn read_process(&self, address: u64, buffer: &mut [u8]) -> usize {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let Ok(start) = usize::try_from(address) else { return 0 };
        let remote = libc::iovec { iov_base: start as *mut libc::c_void, iov_len: buffer.len() };
        // SAFETY: the local vector describes the live, exclusively borrowed buffer; the remote one is checked by the
        // kernel.
        let done =
            unsafe { libc::process_vm_readv(self.pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(done) {
            Ok(done) => done.min(buffer.len()),
            Err(_) => self.read_file(address, buffer),
        }
    }

    fn read_file(&self, address: u64, buffer: &mut [u8]) -> usize {
        let refused =
            matches!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
        let Some(file) = self.file.as_ref().filter(|_| refused && address < 1 << 63) else { return 0 };
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, address + done as u64) {
                Ok(length) if length > 0 => done += length,
                _ => break,
            }
        }
        done
    }
}

impl Memory for LiveMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(rest) = buffer.get_mut(done..) else { break };
            let after = self.instead_ranges.partition_point(|range| range.end <= at);
            let next = self.instead_ranges.get(after);
            let inside = next.is_some_and(|range| range.start <= at);
            let limit = next.map_or(u64::MAX, |range| if inside { range.end } else { range.start });
            let length = usize::try_from(limit - at).unwrap_or(usize::MAX).min(rest.len());
            let Some(piece) = rest.get_mut(..length) else { break };
            let got = if inside { self.instead.read(at, piece) } else { self.read_process(at, piece) };
            done += got;
            if got < length {
                break;
            }
        }
        done
    }
}

/// Writes into a process's memory where it may write itself.
pub fn write(pid: u32, address: u64, bytes: &[u8]) -> std::io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the local vector describes live bytes, which are only read; the remote one is checked by the kernel.
    let done = unsafe { libc::process_vm_writev(pid as i32, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(done) {
        Ok(done) if done == bytes.len() => Ok(()),
        Ok(_) => Err(std::io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => {
            let error = std::io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
                return Err(error);
            }
            // The file would write to read-only memory too; that the memory is a stack is the caller's business.
            let file = File::options().write(true).open(format!("/proc/{pid}/mem"))?;
            file.write_all_at(bytes, address)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_reads_up_to_the_first_unreadable_page() {
        // SAFETY: a new private mapping; its second page is made unreadable.
        let pages = unsafe {
            let pages =
                libc::mmap(std::ptr::null_mut(), 12288, 3, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            pages.cast::<u8>().write_bytes(7, 4096);
            assert_eq!(libc::mprotect(pages.add(4096), 4096, libc::PROT_NONE), 0);
            pages as u64
        };
        let memory = LiveMemory::open(std::process::id()).unwrap();
        let mut buffer = [0; 8192];
        assert_eq!(memory.read(pages + 4000, &mut buffer), 96);
        assert!(buffer[..96].iter().all(|&byte| byte == 7));
        assert_eq!(memory.read(pages + 4096, &mut buffer), 0);
        assert_eq!(memory.read(0, &mut buffer), 0);
        assert_eq!(memory.read(u64::MAX - 3, &mut buffer), 0);
        // SAFETY: the mapping made above, which nothing refers to any more.
        unsafe { libc::munmap(pages as *mut libc::c_void, 12288) };
    }

    #[test]
    fn other_bytes_can_stand_for_some_places() {
        let bytes = [1u8; 64];
        let start = bytes.as_ptr() as u64;
        let memory = LiveMemory::open(std::process::id()).unwrap();
        let memory = memory.with(vec![(start + 16, vec![2; 8]), (start + 40, vec![3; 4])]);
        let mut buffer = [0; 64];
        assert!(memory.read_exact(start, &mut buffer));
        let mut expected = [1; 64];
        expected[16..24].fill(2);
        expected[40..44].fill(3);
        assert_eq!(buffer, expected);
        assert!(memory.read_exact(start + 20, &mut buffer[..22]));
        assert_eq!(buffer[..22], expected[20..42]);
    }

    #[test]
    fn a_process_that_is_not_there_is_said_so() {
        assert!(matches!(LiveMemory::open(0x7fff_fff0), Err(Error::NoSuchProcess { .. })));
    }
}
