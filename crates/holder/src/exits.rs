//! Processes at their end: each waits, with all its memory in place, until it has been examined.
//!
//! A thread of its own sleeps on a word that the tracers raise, and calls back for one waiting process after another.
//! It is the thread that may attach to a process by `ptrace`, so two others have to keep out of its way:
//!
//! * the keeper, whose `waitpid` would take the stops of traced threads (they are reported to every thread of the
//!   tracing process): during a callback it does not wait for anything ([`Waits`]);
//! * the watcher, which would seal the heap file of a process that has ended and reuse its space: it and this thread
//!   claim a window before they work with it ([`Claims`]).

use crate::served::ServedMemory;
use crate::{Ended, Error, futex};
use leakscope_heapfile::layout::{EXIT_GO, EXIT_WAITING, Window};
use leakscope_heapfile::{Arena, Snapshot};
use std::collections::HashSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest sleep: processes that may not make system calls wait without ringing.
const NAP: Duration = Duration::from_millis(20);

type Callback = dyn Fn(&ExitingProcess) + Send + Sync;

/// What is to be done with each process that is about to end.
#[derive(Clone)]
pub struct AtExit(Arc<Callback>);

impl AtExit {
    /// `examine` is called on a thread of its own, for one process at a time; the process goes on when it returns, or
    /// before, at [`ExitingProcess::release`].
    pub fn new(examine: impl Fn(&ExitingProcess) + Send + Sync + 'static) -> AtExit {
        AtExit(Arc::new(examine))
    }
}

impl fmt::Debug for AtExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtExit")
    }
}

/// A process that waits at its end. All handlers of the program's own (`atexit`, destructors) have run; its memory is
/// as they left it. Other threads may still run.
///
/// What a callback has to mind:
///
/// * Threads may be seized by `ptrace`, from the callback's own thread. A tracee that *exits* must not be reaped: the
///   command is leakscope's child, and its status would be lost. Look with `waitid(.., WEXITED | WSTOPPED | WNOWAIT |
///   __WALL)` first, or tell the status by [`ExitingProcess::reaped`].
/// * What is waited for after [`ExitingProcess::release`] needs a time limit: the process may first have to write out
///   its buffers to a pipe whose reader is next in the queue here.
/// * The process may be killed at any time.
pub struct ExitingProcess {
    place: Place,
    is_command: bool,
    reaped: Arc<Mutex<Option<i32>>>,
}

/// Where a waiting process is traced into.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) arena: Arc<Arena>,
    offset: u64,
    serial: u32,
    pub(crate) pid: u32,
}

impl Place {
    /// The window, if it still is this process's.
    pub(crate) fn record(&self) -> Option<&Window> {
        self.arena.window(self.offset).filter(|window| window.serial.load(Acquire) == self.serial)
    }

    /// Whether the process still exists and has not ended.
    pub(crate) fn is_alive(&self) -> bool {
        leakscope_proc::stat(Path::new("/proc"), self.pid).is_ok_and(|stat| !stat.has_ended())
    }
}

impl ExitingProcess {
    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.place.pid
    }

    /// Whether it is the command itself, and not a child of its.
    pub fn is_command(&self) -> bool {
        self.is_command
    }

    /// Counts the programs of the run, from 1.
    pub fn serial(&self) -> u32 {
        self.place.serial
    }

    /// The arena that it is traced into.
    pub fn arena(&self) -> &Arena {
        &self.place.arena
    }

    /// Offset of its window in the arena. The window stays until the callback has returned.
    pub fn window(&self) -> u64 {
        self.place.offset
    }

    /// The waiting thread: its tid as the process sees it, and its stack pointer. What that thread's preserved registers
    /// held lies above the stack pointer.
    pub fn waiting_thread(&self) -> (u32, u64) {
        self.place
            .record()
            .map_or((0, 0), |window| (window.exit_tid.load(Acquire), window.exit_sp.load(Acquire)))
    }

    /// Its heap file as of now: the blocks in use, their stacks, its modules.
    ///
    /// # Errors
    /// If another process of the run has damaged it.
    pub fn heap(&self) -> Result<Snapshot, Error> {
        let mut snapshot = self.place.arena.snapshot(self.place.offset)?;
        snapshot.process.host_pid = self.place.pid;
        Ok(snapshot)
    }

    /// Lets it go on to its end. Further calls have no effect.
    pub fn release(&self) {
        if let Some(window) = self.place.record()
            && window.exit_state.swap(EXIT_GO, AcqRel) != EXIT_GO
        {
            futex::wake(&window.exit_state);
        }
    }

    /// Has the process serve its memory itself, for where `ptrace` is forbidden. It makes a copy of itself for that
    /// (a fork that nothing in it notices), so the memory stands still; the copy goes with the process's release.
    ///
    /// # Errors
    /// If it cannot: it has forbidden itself system calls, there is no memory for it, or it is gone.
    pub fn serve(&self) -> Result<ServedMemory, Error> {
        ServedMemory::ask(self.place.clone())
    }

    /// Tells the status by which a callback has reaped the process against all advice.
    pub fn reaped(&self, wait_status: i32) {
        if self.is_command {
            *lock(&self.reaped) = Some(wait_status);
        }
    }

    /// Whether it still exists and has not ended.
    pub fn is_alive(&self) -> bool {
        self.place.is_alive()
    }
}

impl Drop for ExitingProcess {
    fn drop(&mut self) {
        self.release();
    }
}

/// Windows that a thread works with.
#[derive(Default)]
pub(crate) struct Claims(Mutex<HashSet<u64>>);

/// Ends with its value.
pub(crate) struct Claim<'a>(&'a Claims, u64);

impl Claims {
    /// None: another thread works with it.
    pub(crate) fn claim(&self, window: u64) -> Option<Claim<'_>> {
        let is_new = lock(&self.0).insert(window);
        is_new.then(|| Claim(self, window))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(&self.0.0).remove(&self.1);
    }
}

/// Who may call `waitpid`.
#[derive(Default)]
pub(crate) struct Waits {
    lock: Mutex<()>,
    reaped: Arc<Mutex<Option<i32>>>,
    /// Whether there ever was a callback.
    called: AtomicBool,
}

impl Waits {
    /// Runs `wait` unless a callback is at work. If `wait` finds nothing, the command may have been reaped by a callback;
    /// if that did not tell the status, all that is known is that it cannot have ended by itself while it was traced.
    pub(crate) fn reap(&self, command: u32, wait: impl FnOnce() -> Option<Ended>) -> Option<Ended> {
        let _guard = match self.lock.try_lock() {
            Ok(guard) => guard,
            Err(std::sync::TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        let ended = wait();
        if ended.is_some() || !self.called.load(Acquire) {
            return ended;
        }
        match lock(&self.reaped).take() {
            Some(status) if libc::WIFSIGNALED(status) => Some(Ended::Signaled(libc::WTERMSIG(status))),
            Some(status) => Some(Ended::Exited(libc::WEXITSTATUS(status))),
            None => (!is_child(command)).then_some(Ended::Signaled(libc::SIGKILL)),
        }
    }
}

/// Whether there is a child of this pid, ended or not.
fn is_child(pid: u32) -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: no memory is passed; nothing is reaped.
    let status = unsafe { libc::waitid(libc::P_PID, pid, std::ptr::null_mut(), options) };
    status == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}

/// A callback that panics leaves nothing half done behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread, if there is anything to do.
pub(crate) struct Exits {
    pub(crate) claims: Arc<Claims>,
    pub(crate) waits: Arc<Waits>,
    arena: Arc<Arena>,
    stop: Arc<AtomicBool>,
    root: Arc<AtomicU32>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Exits {
    /// Before the command starts: it is told to wait at its end.
    pub(crate) fn start(arena: Arc<Arena>, at_exit: Option<AtExit>) -> Exits {
        let mut exits = Exits {
            claims: Arc::default(),
            waits: Arc::default(),
            arena,
            stop: Arc::default(),
            root: Arc::default(),
            thread: None,
        };
        if let Some(at_exit) = at_exit {
            exits.arena.superblock().examine_at_exit.store(1, Release);
            let examiner = Examiner {
                arena: exits.arena.clone(),
                at_exit,
                claims: exits.claims.clone(),
                waits: exits.waits.clone(),
                root: exits.root.clone(),
                notes: Vec::new(),
            };
            let stop = exits.stop.clone();
            exits.thread = Some(std::thread::spawn(move || examiner.run(&stop)));
        }
        exits
    }

    /// Tells the command's pid. Before, nothing is examined.
    pub(crate) fn set_root(&self, pid: u32) {
        self.root.store(pid, Release);
        self.ring();
    }

    fn ring(&self) {
        let bell = &self.arena.superblock().exit_bell;
        bell.fetch_add(1, AcqRel);
        futex::wake(bell);
    }

    /// The command has ended: examines what waits now, then lets everybody go. `tick` is called all the while. Returns
    /// what went wrong.
    pub(crate) fn finish(mut self, tick: impl Fn()) -> Vec<String> {
        const INTERVAL: Duration = Duration::from_millis(4);
        let Some(thread) = self.thread.take() else { return Vec::new() };
        self.stop.store(true, Release);
        self.ring();
        let mut pause = Duration::from_micros(50);
        while !thread.is_finished() {
            tick();
            std::thread::sleep(pause);
            pause = (pause * 2).min(INTERVAL);
        }
        thread.join().unwrap_or_else(|_| vec!["leakscope's thread for processes at their end failed".into()])
    }
}

struct Examiner {
    arena: Arc<Arena>,
    at_exit: AtExit,
    claims: Arc<Claims>,
    waits: Arc<Waits>,
    root: Arc<AtomicU32>,
    notes: Vec<String>,
}

impl Examiner {
    fn run(mut self, stop: &AtomicBool) -> Vec<String> {
        let arena = self.arena.clone();
        let superblock = arena.superblock();
        loop {
            let stopping = stop.load(Acquire);
            let bell = superblock.exit_bell.load(Acquire);
            let examined = self.examine_waiting();
            if !examined && stopping {
                break;
            }
            if !examined {
                futex::wait(&superblock.exit_bell, bell, NAP);
            }
        }
        superblock.examine_at_exit.store(0, Release);
        // Whoever has come since goes on now, and not only when its sleep is over.
        for window in arena.windows().into_iter().filter_map(|offset| arena.window(offset)) {
            let waiting = window.exit_state.compare_exchange(EXIT_WAITING, EXIT_GO, AcqRel, Acquire);
            if waiting.is_ok() {
                futex::wake(&window.exit_state);
            }
        }
        self.notes
    }

    /// Examines all processes that wait. Whether there were any.
    fn examine_waiting(&mut self) -> bool {
        let arena = self.arena.clone();
        let root = self.root.load(Acquire);
        if root == 0 {
            return false;
        }
        let waits = |window: &Window| window.exit_state.load(Acquire) == EXIT_WAITING;
        let mut any = false;
        for offset in arena.windows() {
            if !arena.window(offset).is_some_and(waits) {
                continue;
            }
            let claims = self.claims.clone();
            let Some(_claim) = claims.claim(offset) else { continue };
            // It may have ended, been sealed and given way to another before it was claimed.
            let Some(window) = arena.window(offset).filter(|window| waits(window)) else { continue };
            let Some(pid) = host_pid(window) else {
                // Killed while it waited, or not to be seen from here.
                window.exit_state.store(EXIT_GO, Release);
                futex::wake(&window.exit_state);
                self.note("a process could not be examined at its end: it was killed there, or /proc does not show it");
                continue;
            };
            self.examine(ExitingProcess {
                place: Place { arena: arena.clone(), offset, serial: window.serial.load(Acquire), pid },
                is_command: pid == root,
                reaped: self.waits.reaped.clone(),
            });
            any = true;
        }
        any
    }

    fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|known| known == note) {
            self.notes.push(note.into());
        }
    }

    fn examine(&mut self, process: ExitingProcess) {
        let guard = lock(&self.waits.lock);
        self.waits.called.store(true, Release);
        // The release after a panic is the value's drop.
        let outcome = catch_unwind(AssertUnwindSafe(|| (self.at_exit.0)(&process)));
        drop(process);
        drop(guard);
        if outcome.is_err() {
            self.note("the examination of a process at its end failed (a bug in leakscope)");
        }
        // The keeper may have missed the command's end meanwhile.
        // SAFETY: a signal to this process, which its threads have blocked and the keeper waits for.
        unsafe { libc::kill(libc::getpid(), libc::SIGCHLD) };
    }
}

/// The pid, in this pid namespace, of a process that has not ended.
fn host_pid(window: &Window) -> Option<u32> {
    let proc = Path::new("/proc");
    let (own, start) = (window.pid.load(Acquire), window.start_ticks.load(Acquire));
    let is_it = |pid: u32| {
        leakscope_proc::stat(proc, pid)
            .is_ok_and(|stat| !stat.has_ended() && (start == 0 || stat.start_ticks == start))
    };
    if is_it(own) {
        return Some(own);
    }
    // In a pid namespace of its own.
    let processes = std::fs::read_dir(proc).ok()?.filter_map(Result::ok);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let innermost = |pid| leakscope_proc::status(proc, pid).ok()?.namespace_pids.last().copied();
    pids.find(|&pid: &u32| start != 0 && is_it(pid) && innermost(pid) == Some(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_worked_with_by_one_thread_at_a_time() {
        let claims = Claims::default();
        let first = claims.claim(7);
        assert!(first.is_some());
        assert!(claims.claim(7).is_none());
        assert!(claims.claim(8).is_some());
        drop(first);
        assert!(claims.claim(7).is_some());
    }

    #[test]
    fn nothing_is_reaped_during_a_callback_and_a_status_that_it_took_is_not_lost() {
        let waits = Waits::default();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let command = child.id();
        {
            let _callback = lock(&waits.lock);
            assert_eq!(waits.reap(command, || unreachable!()), None);
        }
        assert_eq!(waits.reap(command, || Some(Ended::Exited(3))), Some(Ended::Exited(3)));
        waits.called.store(true, Release);
        *lock(&waits.reaped) = Some(5 << 8);
        assert_eq!(waits.reap(command, || None), Some(Ended::Exited(5)));
        assert_eq!(waits.reap(command, || None), None);
        *lock(&waits.reaped) = Some(libc::SIGTERM);
        assert_eq!(waits.reap(command, || None), Some(Ended::Signaled(libc::SIGTERM)));
        child.kill().unwrap();
        assert_eq!(waits.reap(command, || None), None, "still there to be reaped");
        child.wait().unwrap();
        assert_eq!(waits.reap(command, || None), Some(Ended::Signaled(libc::SIGKILL)));
    }
}
