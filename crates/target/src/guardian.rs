//! A small process that cleans up after leakscope if leakscope is killed: the copy dies by itself then
//! (`PTRACE_O_EXITKILL`), but stays as a zombie under the target.

use crate::reap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

/// Leakscope's end of the connection. Its end without a word sets the guardian to work.
#[derive(Debug)]
pub struct Guardian {
    pid: libc::pid_t,
    socket: OwnedFd,
    done: bool,
}

/// How long the guardian tries: pauses from the first on, each twice as long, up to the last.
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LAST_WAIT: Duration = Duration::from_secs(8);
const ALL_DONE: u32 = 0;
/// The guardian's name; the kernel keeps 15 bytes of it.
pub const NAME: &str = "leakscope-guard";

/// Guardians that had something left to do when leakscope was done with them, to be reaped when they have ended.
static BUSY: Mutex<Vec<libc::pid_t>> = Mutex::new(Vec::new());

impl Guardian {
    /// Starts a guardian for process `target`. None if no process can be started: the next snapshot cleans up then.
    pub fn start(root: &Path, target: u32) -> Option<Guardian> {
        if let Ok(mut busy) = BUSY.lock() {
            busy.retain(|&pid| !has_ended(pid, libc::WNOHANG));
        }
        let (ours, theirs) = UnixStream::pair().ok()?;
        let start = leakscope_proc::stat(root, target).ok()?.start_ticks;
        // SAFETY: what the child does is in `watch`: it uses no lock that another thread could hold, but for malloc's,
        // which fork of the C library keeps usable, and ends by _exit.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // The connection ends when the last process that has leakscope's end of it does.
            drop(ours);
            watch(root, target, start, theirs.as_raw_fd());
        }
        (pid > 0).then(|| Guardian { pid, socket: ours.into(), done: true })
    }

    /// Tells it of the copy. From now on there is something to be done.
    pub fn tell(&mut self, copy: u32) {
        self.done = false;
        self.send(copy);
    }

    /// Nothing is left to be done.
    pub fn all_done(&mut self) {
        self.done = true;
    }

    fn send(&self, word: u32) {
        let bytes = word.to_ne_bytes();
        // SAFETY: sends the bytes of a live array.
        unsafe {
            libc::send(self.socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL)
        };
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        if self.done {
            self.send(ALL_DONE);
            has_ended(self.pid, 0);
        } else if let Ok(mut busy) = BUSY.lock() {
            busy.push(self.pid);
        }
    }
}

/// Waits for a guardian, and says whether it is no more.
fn has_ended(pid: libc::pid_t, options: libc::c_int) -> bool {
    loop {
        // SAFETY: waits for a process that this one started; no status is asked for.
        let result = unsafe { libc::waitpid(pid, std::ptr::null_mut(), options) };
        if result != -1 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINTR) {
            return result != 0;
        }
    }
}

/// The guardian's life.
fn watch(root: &Path, target: u32, start: u64, socket: libc::c_int) -> ! {
    let name = [NAME.as_bytes(), b"\0"].concat();
    // SAFETY: calls without memory of ours, except for a live signal set and a name that ends in 0.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_NAME, name.as_ptr());
        libc::setsid();
        // Other guardians' connections above all: one ends with the last process that has it.
        libc::dup2(socket, 0);
        libc::syscall(libc::SYS_close_range, 1, u32::MAX, 0);
    }
    let mut copy = None;
    loop {
        let mut word = [0; 4];
        // SAFETY: reads into a live array.
        let got = unsafe { libc::read(0, word.as_mut_ptr().cast(), word.len()) };
        match (got, u32::from_ne_bytes(word)) {
            (4, ALL_DONE) => exit(),
            (4, pid) => copy = Some(pid),
            _ => break,
        }
    }
    clean_up(root, target, start, copy);
    exit()
}

fn exit() -> ! {
    // SAFETY: ends the process without running anything of what it inherited.
    unsafe { libc::_exit(0) }
}

fn clean_up(root: &Path, target: u32, start: u64, copy: Option<u32>) {
    let mut wait = FIRST_WAIT;
    while wait < LAST_WAIT {
        let now = leakscope_proc::stat(root, target);
        if !now.is_ok_and(|now| !now.has_ended() && now.start_ticks == start) {
            return;
        }
        if let Some(copy) = copy
            && leakscope_proc::stat(root, copy)
                .is_ok_and(|stat| stat.parent == target && stat.exit_signal == 0)
        {
            // SAFETY: it is the target's child and was made for leakscope.
            unsafe { libc::kill(copy as libc::pid_t, libc::SIGKILL) };
        }
        std::thread::sleep(wait);
        let left = reap::leftovers(root, target);
        for &leftover in &left {
            reap::reap(root, target, leftover);
        }
        let alive =
            copy.is_some_and(|copy| leakscope_proc::stat(root, copy).is_ok_and(|stat| stat.parent == target));
        // Without word of a copy there may be one that is about to end: look a few times.
        if !alive && reap::leftovers(root, target).is_empty() && (copy.is_some() || wait > 100 * FIRST_WAIT) {
            return;
        }
        wait *= 2;
    }
}
