//! All threads of a process, standing still.

use crate::arch::{self, Doing, UserRegisters};
use crate::ptrace::{self, Event};
use crate::{Error, LiveMemory, Memory, permission, process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A thread that stands still.
#[derive(Debug)]
pub struct Stopped {
    /// Its id.
    pub tid: u32,
    /// Its general registers. A system call that would end with EINTR is entered again already.
    pub registers: UserRegisters,
    /// Its extended state as ptrace gives it.
    pub extended: Vec<u8>,
}

/// The threads of a process, held by the calling thread; all of them go on when it is dropped.
#[derive(Debug)]
pub struct Group {
    pid: u32,
    root: PathBuf,
    memory: LiveMemory,
    /// By id: the registers of those that stand still.
    threads: BTreeMap<u32, Option<UserRegisters>>,
    since: Instant,
}

/// How often the list of threads is read again while new ones keep appearing.
const MOST_ROUNDS: u32 = 1000;
/// How often a refusal is taken for a guardian's doing.
const MOST_REFUSALS: u32 = 50;
/// How often threads are looked at before whoever waits takes a nap, and for how long.
const EAGER_LOOKS: u32 = 16;
const NAP: Duration = Duration::from_micros(20);
/// After how many looks a thread is looked at more closely.
const CLOSE_LOOK: u32 = 64;
/// The letter of a thread that is neither there nor not: it ended and was not the last.
const ENDED: [u8; 2] = [b'Z', b'X'];

impl Group {
    fn new(root: &Path, pid: u32) -> Group {
        let memory = LiveMemory::of(root, process::bearer(root, pid));
        Group { pid, root: root.to_owned(), memory, threads: BTreeMap::new(), since: Instant::now() }
    }

    /// Stops all threads of process `pid`.
    pub fn stop(root: &Path, pid: u32, timeout: Duration) -> Result<Group, Error> {
        let mut group = Group::new(root, pid);
        // Becoming the tracer does not stop anybody: what can be done before the pause is.
        group.seize_new()?;
        group.since = Instant::now();
        for _ in 0..MOST_ROUNDS {
            group.interrupt(timeout)?;
            if group.seize_new()? == 0 {
                break;
            }
        }
        if group.threads.is_empty() {
            return Err(Error::Vanished { pid, during: "its threads were being stopped" });
        }
        // Threads that keep starting faster than they can be stopped.
        match group.threads.iter().find(|(_, stopped)| stopped.is_none()) {
            Some((&tid, _)) => Err(group.not_stopped(tid, timeout)),
            None => Ok(group),
        }
    }

    /// Stops one thread of process `pid`. The others run on.
    pub fn stop_one(root: &Path, pid: u32, tid: u32, timeout: Duration) -> Result<Group, Error> {
        let mut group = Group::new(root, pid);
        let failed = |error| permission::explain(root, pid, "trace", error);
        ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD).map_err(failed)?;
        group.threads.insert(tid, None);
        group.interrupt(timeout)?;
        Ok(group)
    }

    fn not_stopped(&self, tid: u32, waited: Duration) -> Error {
        let state = self.state(tid).unwrap_or(b'?').into();
        Error::NotStopped { pid: self.pid, tid, state, waited }
    }

    /// Becomes the tracer of the threads that it does not hold yet, and says how many these are.
    fn seize_new(&mut self) -> Result<usize, Error> {
        let mut new = 0;
        let gone = |_| Error::Vanished { pid: self.pid, during: "its threads were being listed" };
        for tid in leakscope_proc::tasks(&self.root, self.pid).map_err(gone)? {
            if self.threads.contains_key(&tid) {
                continue;
            }
            match self.seize(tid) {
                Ok(()) => {
                    self.threads.insert(tid, None);
                    new += 1;
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(_) if self.has_ended(tid) => {}
                Err(error) => return Err(permission::explain(&self.root, self.pid, "trace", error)),
            }
        }
        Ok(new)
    }

    /// A guardian may be at work, for a moment.
    fn seize(&self, tid: u32) -> std::io::Result<()> {
        for _ in 0..MOST_REFUSALS {
            match ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD) {
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && !self.has_ended(tid) => {
                    if self.is_hopeless() {
                        return Err(error);
                    }
                    std::thread::sleep(process::ROUND);
                }
                result => return result,
            }
        }
        ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD)
    }

    /// Whether it is refused for a reason that stays: other processes than a guardian trace it, or it may not be
    /// looked at at all.
    fn is_hopeless(&self) -> bool {
        LiveMemory::open_under(&self.root, self.pid).is_err()
            || process::check_patiently(&self.root, self.pid).is_err()
    }

    fn state(&self, tid: u32) -> Option<u8> {
        leakscope_proc::status(&self.root, tid).ok().map(|status| status.state)
    }

    fn has_ended(&self, tid: u32) -> bool {
        self.state(tid).is_none_or(|state| ENDED.contains(&state))
    }

    /// Stops the threads that it holds but that do not stand still.
    fn interrupt(&mut self, timeout: Duration) -> Result<(), Error> {
        let mut waiting: Vec<u32> =
            self.threads.iter().filter(|(_, stopped)| stopped.is_none()).map(|(&tid, _)| tid).collect();
        for &tid in &waiting {
            // A failure means that it has just ended, which the wait will tell.
            let _ = ptrace::interrupt(tid);
        }
        let deadline = Instant::now() + timeout;
        for look in 1u32.. {
            let before = waiting.len();
            waiting.retain(|&tid| !self.look_at(tid, look % CLOSE_LOOK == 0));
            let Some(&first) = waiting.first() else { break };
            if waiting.len() < before || look < EAGER_LOOKS {
                std::thread::yield_now();
            } else if Instant::now() < deadline {
                std::thread::sleep(NAP);
            } else {
                return Err(self.not_stopped(first, timeout));
            }
        }
        Ok(())
    }

    /// Whether a thread stands still, or has ended.
    fn look_at(&mut self, tid: u32, closely: bool) -> bool {
        let event = match ptrace::poll(tid) {
            // A wait of another thread of this process may have taken the news away; and a leader that ends before
            // its threads is never reported.
            None if closely && self.has_ended(tid) => Some(Event::Ended),
            None if closely => ptrace::missed_event(tid),
            event => event,
        };
        match event {
            None => false,
            Some(Event::Stop { .. }) => {
                self.has_stopped(tid);
                true
            }
            Some(Event::Ended) => {
                self.threads.remove(&tid);
                true
            }
            // The interrupt is still to come: whatever came first takes its course.
            Some(Event::Signal(signal)) => {
                let _ = ptrace::resume(tid, signal);
                false
            }
            Some(Event::At(_) | Event::Syscall) => {
                let _ = ptrace::resume(tid, 0);
                false
            }
        }
    }

    /// Notes a thread's registers, and rewinds a system call that would end with EINTR although no signal came. That
    /// is done at once and in one atomic step, so that a death of leakscope between the stop and the rewinding, with
    /// which the thread would see EINTR, is next to impossible.
    fn has_stopped(&mut self, tid: u32) {
        let Ok(mut registers) = ptrace::registers(tid) else {
            self.threads.remove(&tid);
            return;
        };
        if arch::doing(&registers) == Doing::Interrupted && self.may_rewind(tid, &registers) {
            let again = arch::rewound(&registers);
            if ptrace::set_registers(tid, &again).is_ok() {
                registers = again;
            }
        }
        self.threads.insert(tid, Some(registers));
    }

    /// The registers of all threads.
    pub fn registers(&self) -> Result<Vec<Stopped>, Error> {
        let stopped = self.threads.iter().filter_map(|(&tid, &registers)| Some((tid, registers?)));
        let mut buffer = vec![0; arch::EXTENDED_STATE_LIMIT];
        let all: Vec<Stopped> = stopped
            .map(|(tid, registers)| {
                let extended = ptrace::register_set(tid, arch::EXTENDED_STATE, &mut buffer);
                Stopped { tid, registers, extended: extended.unwrap_or_default() }
            })
            .collect();
        if all.is_empty() {
            return Err(Error::Vanished { pid: self.pid, during: "its registers were being read" });
        }
        Ok(all)
    }

    /// Whether a call that ends with EINTR was interrupted by the stop alone: then no handler is about to run.
    fn may_rewind(&self, tid: u32, registers: &UserRegisters) -> bool {
        let (address, bytes) = arch::instruction(registers);
        let mut found = [0; 2];
        let deliverable = leakscope_proc::status(&self.root, tid)
            .map(|status| (status.pending | status.shared_pending) & !status.blocked & status.caught);
        self.memory.read_exact(address, &mut found)
            && found == *bytes
            && deliverable.is_ok_and(|deliverable| deliverable == 0)
    }

    /// Lets all threads go on, and says how long the first one stood still.
    pub fn release(mut self) -> Duration {
        self.detach_all();
        self.since.elapsed()
    }

    fn detach_all(&mut self) {
        for (tid, stopped) in std::mem::take(&mut self.threads) {
            if stopped.is_none() {
                // It cannot be let go before it stands still. Usually it does now; else the end of this thread
                // lets it go.
                let _ = ptrace::wait(tid, Instant::now());
            }
            let _ = ptrace::detach(tid, 0);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.detach_all();
    }
}
