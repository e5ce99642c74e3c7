//! A process at its very end: all of its threads have come to the point of exit, and its memory is still there.
//!
//! The stops of a traced process are told to every wait of the tracer's process for it, in whatever thread, except for
//! those with `__WNOTHREAD`. So a parent that holds its own child this way must expect that its own wait returns for
//! a stop (`CLD_TRAPPED`), and wait again; here nothing depends on getting all of them.

use crate::arch::{self, Exits};
use crate::plan::Plan;
use crate::ptrace::{self, Event};
use crate::seize::Stopped;
use crate::take::{self, Hold, Holder};
use crate::{Error, LiveMemory, Snapshot, Source, permission, process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::Duration;

const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEEXIT;
/// Between two looks for news.
const INTERVAL: Duration = Duration::from_micros(500);
/// After how many looks each thread is looked at for news that somebody else's wait has taken away.
const SWEEP: u32 = 16;

/// A process that will be held when it ends. Dropping this lets it end unseen.
#[derive(Debug)]
pub struct ExitHold {
    pid: u32,
    result: mpsc::Receiver<Result<Snapshot, Error>>,
    hold: Hold,
}

/// Holds process `pid` as soon as it ends, in whatever way. It is not stopped by this.
///
/// # Errors
/// If it may not be traced, or is not there.
pub fn hold_at_exit(pid: u32) -> Result<ExitHold, Error> {
    let root = PathBuf::from("/proc");
    let status = process::check_patiently(&root, pid)?;
    let pid = if status.tgid == 0 { pid } else { status.tgid };
    let (ready, is_ready) = mpsc::channel();
    let (hold, result) = take::start(pid, move |holder| {
        let watch = Watch::start(root, pid);
        let (watch, started) = match watch {
            Ok(watch) => (Some(watch), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = ready.send(started);
        watch.map_or(Ok(()), |watch| watch.run(holder))
    })?;
    match is_ready.recv() {
        Ok(Ok(())) => Ok(ExitHold { pid, result, hold }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Vanished { pid, during: "its threads were being seized" }),
    }
}

impl ExitHold {
    /// Waits until all threads of the process have come to their end. Then it stands still as long as the snapshot
    /// lives, and ends with its own status afterwards.
    ///
    /// # Errors
    /// If it does not end within `timeout` (it runs on unwatched then), or ends without stopping.
    pub fn wait_for_exit(self, timeout: Duration) -> Result<Snapshot, Error> {
        let ExitHold { pid, result, hold } = self;
        match result.recv_timeout(timeout) {
            Ok(Ok(snapshot)) => Ok(take::keep(snapshot, hold)),
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(Error::NotEnded { pid, waited: timeout }),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::Vanished { pid, during: "waiting for its end" })
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// Stands at its end.
    Held,
    /// Was let go at its end, since the process lives on.
    Leaving,
}

/// The tracing thread's view.
struct Watch {
    root: PathBuf,
    pid: u32,
    threads: BTreeMap<u32, State>,
}

impl Watch {
    fn start(root: PathBuf, pid: u32) -> Result<Watch, Error> {
        let mut watch = Watch { root, pid, threads: BTreeMap::new() };
        // New threads of seized ones are seized by the kernel; those of others are found by looking again.
        loop {
            let mut new = false;
            for tid in leakscope_proc::tasks(&watch.root, pid).map_err(|_| Error::NoSuchProcess { pid })? {
                if watch.threads.contains_key(&tid) {
                    continue;
                }
                match ptrace::seize(tid, OPTIONS) {
                    Ok(()) => {
                        watch.threads.insert(tid, State::Running);
                        new = true;
                    }
                    Err(_) if is_ours_or_gone(&watch.root, tid) => {}
                    Err(error) => return Err(permission::explain(&watch.root, pid, "trace", error)),
                }
            }
            if !new {
                break;
            }
        }
        if watch.threads.is_empty() {
            return Err(Error::Vanished { pid, during: "its threads were being seized" });
        }
        Ok(watch)
    }

    /// Until the end. When it returns, the thread ends, and with it the kernel lets all tracees go, stopped or not.
    fn run(mut self, holder: Holder) -> Result<(), Error> {
        for round in 1u32.. {
            if holder.is_released() {
                break;
            }
            while let Some((tid, event)) = ptrace::poll_any() {
                self.handle(tid, event);
            }
            if round % SWEEP == 0 {
                self.sweep();
            }
            let mut alive = self.threads.values().filter(|&&state| state != State::Leaving).peekable();
            if alive.peek().is_none() {
                return Err(Error::Vanished { pid: self.pid, during: "waiting for its end" });
            }
            if alive.all(|&state| state == State::Held) {
                let snapshot = self.snapshot()?;
                holder.hand_over(snapshot);
                break;
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(())
    }

    fn handle(&mut self, tid: u32, event: Event) {
        match event {
            Event::Stop { group: Some(_) } => _ = ptrace::listen(tid),
            Event::Signal(signal) => _ = ptrace::resume(tid, signal),
            Event::At(libc::PTRACE_EVENT_CLONE) => {
                if let Some(new) = ptrace::event_message(tid).ok().and_then(|new| u32::try_from(new).ok()) {
                    self.threads.entry(new).or_insert(State::Running);
                }
                let _ = ptrace::resume(tid, 0);
            }
            Event::At(libc::PTRACE_EVENT_EXIT) => {
                let others =
                    self.threads.iter().any(|(&other, &state)| other != tid && state == State::Running);
                let exits = ptrace::registers(tid).ok().and_then(|registers| arch::exits(&registers));
                if others && exits == Some(Exits::Thread) {
                    // Somebody may be waiting for just this thread.
                    self.threads.insert(tid, State::Leaving);
                    let _ = ptrace::resume(tid, 0);
                } else {
                    self.threads.insert(tid, State::Held);
                }
            }
            Event::Ended => _ = self.threads.remove(&tid),
            Event::Stop { group: None } | Event::At(_) | Event::Syscall => {
                // At a new thread's birth this may be the first news of it.
                self.threads.entry(tid).or_insert(State::Running);
                let _ = ptrace::resume(tid, 0);
            }
        }
    }

    /// Looks for stops whose news went elsewhere, for threads that have gone unnoticed, and for an exec, which waits
    /// for the end of all other threads.
    fn sweep(&mut self) {
        let running: Vec<u32> =
            self.threads.iter().filter(|&(_, &state)| state == State::Running).map(|(&tid, _)| tid).collect();
        let mut executes = false;
        for tid in running {
            if let Some(event) = ptrace::missed_event(tid) {
                self.handle(tid, ptrace::poll(tid).unwrap_or(event));
            } else if !is_ours_or_gone(&self.root, tid) || leakscope_proc::status(&self.root, tid).is_err() {
                self.threads.remove(&tid);
            } else {
                executes |= is_executing(&self.root, tid);
            }
        }
        if executes {
            for (&tid, state) in self.threads.iter_mut().filter(|(_, state)| **state == State::Held) {
                *state = State::Leaving;
                let _ = ptrace::resume(tid, 0);
            }
        }
    }

    fn snapshot(&self) -> Result<Snapshot, Error> {
        let held = self.threads.iter().filter(|&(_, &state)| state == State::Held).map(|(&tid, _)| tid);
        let mut buffer = vec![0; arch::EXTENDED_STATE_LIMIT];
        let threads: Vec<Stopped> = held
            .filter_map(|tid| {
                let registers = ptrace::registers(tid).ok()?;
                // Who ends by himself has called a function for it, and all functions may overwrite vector registers: what
                // is in them is left over. Those that are ended with him held what they held.
                let extended = match arch::exits(&registers) {
                    Some(_) => Vec::new(),
                    None => ptrace::register_set(tid, arch::EXTENDED_STATE, &mut buffer).unwrap_or_default(),
                };
                Some(Stopped { tid, registers, extended })
            })
            .collect();
        let bearer = process::bearer(&self.root, self.pid);
        let mappings = leakscope_proc::maps(&self.root, bearer)?;
        let memory = Box::new(LiveMemory::of(&self.root, bearer));
        let plan = Plan { pid: self.pid, bearer, site: None, notes: Vec::new() };
        Ok(take::describe(plan, &self.root, mappings, threads, memory, Source::Stopped))
    }
}

/// Whether a thread is traced by this process already, or has ended.
fn is_ours_or_gone(root: &Path, tid: u32) -> bool {
    match leakscope_proc::status(root, tid) {
        Ok(status) => matches!(status.state, b'Z' | b'X') || is_own_thread(root, status.tracer),
        Err(_) => true,
    }
}

/// Whether `tid` is one of this process's threads: a tracer is named by its thread's id.
fn is_own_thread(root: &Path, tid: u32) -> bool {
    tid != 0 && leakscope_proc::status(root, tid).is_ok_and(|status| status.tgid == std::process::id())
}

fn is_executing(root: &Path, tid: u32) -> bool {
    let text = std::fs::read_to_string(root.join(tid.to_string()).join("syscall")).unwrap_or_default();
    let number = text.split(' ').next().and_then(|number| number.parse::<i64>().ok());
    matches!(number, Some(libc::SYS_execve | libc::SYS_execveat))
}

impl Holder {
    /// Whether nobody waits for the snapshot any more.
    fn is_released(&self) -> bool {
        matches!(self.released.try_recv(), Err(TryRecvError::Disconnected))
    }
}
