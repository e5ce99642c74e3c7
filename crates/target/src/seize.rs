//! All threads of a process, standing still.

use crate::arch::{self, Doing, UserRegisters};
use crate::ptrace::{self, Event};
use crate::{Error, permission};
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
    /// By id: whether it stands still.
    threads: BTreeMap<u32, bool>,
    since: Instant,
}

/// How often the list of threads is read again while new ones keep appearing.
const MOST_ROUNDS: u32 = 1000;
/// The letter of a thread that is neither there nor not: it ended and was not the last.
const ENDED: [u8; 2] = [b'Z', b'X'];

impl Group {
    /// Stops all threads of process `pid`.
    pub fn stop(root: &Path, pid: u32, timeout: Duration) -> Result<Group, Error> {
        let mut group = Group { pid, root: root.to_owned(), threads: BTreeMap::new(), since: Instant::now() };
        // Becoming the tracer does not stop anybody: what can be done before the pause is.
        group.seize_new()?;
        group.since = Instant::now();
        let deadline = group.since + timeout;
        for _ in 0..MOST_ROUNDS {
            let waiting: Vec<u32> =
                group.threads.iter().filter(|&(_, &stopped)| !stopped).map(|(&tid, _)| tid).collect();
            for &tid in &waiting {
                // A failure means that it has just ended, which the wait will tell.
                let _ = ptrace::interrupt(tid);
            }
            for &tid in &waiting {
                group.wait_for_stop(tid, deadline, timeout)?;
            }
            if group.seize_new()? == 0 {
                break;
            }
        }
        if group.threads.is_empty() {
            return Err(Error::Vanished { pid, during: "its threads were being stopped" });
        }
        // Threads that keep starting faster than they can be stopped.
        match group.threads.iter().find(|&(_, &stopped)| !stopped) {
            Some((&tid, _)) => Err(group.not_stopped(tid, timeout)),
            None => Ok(group),
        }
    }

    fn not_stopped(&self, tid: u32, waited: Duration) -> Error {
        let state = self.state(tid).unwrap_or(b'?').into();
        Error::NotStopped { pid: self.pid, tid, state, waited }
    }

    /// Stops one thread of process `pid`. The others run on.
    pub fn stop_one(root: &Path, pid: u32, tid: u32, timeout: Duration) -> Result<Group, Error> {
        let mut group = Group { pid, root: root.to_owned(), threads: BTreeMap::new(), since: Instant::now() };
        let failed = |error| permission::explain(root, pid, "trace", error);
        ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD).map_err(failed)?;
        group.threads.insert(tid, false);
        let _ = ptrace::interrupt(tid);
        group.wait_for_stop(tid, group.since + timeout, timeout)?;
        Ok(group)
    }

    /// Becomes the tracer of the threads that it does not hold yet, and says how many these are.
    fn seize_new(&mut self) -> Result<usize, Error> {
        let mut new = 0;
        let gone = |_| Error::Vanished { pid: self.pid, during: "its threads were being listed" };
        for tid in leakscope_proc::tasks(&self.root, self.pid).map_err(gone)? {
            if self.threads.contains_key(&tid) {
                continue;
            }
            match ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD) {
                Ok(()) => {
                    self.threads.insert(tid, false);
                    new += 1;
                }
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(_) if self.has_ended(tid) => {}
                Err(error) => return Err(permission::explain(&self.root, self.pid, "trace", error)),
            }
        }
        Ok(new)
    }

    fn state(&self, tid: u32) -> Option<u8> {
        leakscope_proc::status(&self.root, tid).ok().map(|status| status.state)
    }

    fn has_ended(&self, tid: u32) -> bool {
        self.state(tid).is_none_or(|state| ENDED.contains(&state))
    }

    fn wait_for_stop(&mut self, tid: u32, deadline: Instant, timeout: Duration) -> Result<(), Error> {
        loop {
            // A leader that ends before its threads is never reported: so look after it now and then.
            let now = Instant::now();
            match ptrace::wait(tid, deadline.min(now + Duration::from_millis(5))) {
                Some(Event::Stop { .. }) => {
                    self.threads.insert(tid, true);
                    return Ok(());
                }
                Some(Event::Ended) => {
                    self.threads.remove(&tid);
                    return Ok(());
                }
                // The interrupt is still to come: whatever came first takes its course.
                Some(Event::Signal(signal)) => _ = ptrace::resume(tid, signal),
                Some(Event::At(_) | Event::Syscall) => _ = ptrace::resume(tid, 0),
                None if self.has_ended(tid) => {
                    self.threads.remove(&tid);
                    return Ok(());
                }
                None if now < deadline => {}
                None => return Err(self.not_stopped(tid, timeout)),
            }
        }
    }

    /// Reads the registers of all threads, and rewinds system calls that would end with EINTR although no signal
    /// came. Each rewinding is one atomic step.
    pub fn registers(&self) -> Result<Vec<Stopped>, Error> {
        let mut all = Vec::with_capacity(self.threads.len());
        for &tid in self.threads.keys() {
            let Ok(mut registers) = ptrace::registers(tid) else { continue };
            if arch::doing(&registers) == Doing::Interrupted && self.may_rewind(tid, &registers) {
                let again = arch::rewound(&registers);
                if ptrace::set_registers(tid, &again).is_ok() {
                    registers = again;
                }
            }
            let extended = ptrace::register_set(tid, arch::EXTENDED_STATE, arch::EXTENDED_STATE_LIMIT);
            all.push(Stopped { tid, registers, extended: extended.unwrap_or_default() });
        }
        if all.is_empty() {
            return Err(Error::Vanished { pid: self.pid, during: "its registers were being read" });
        }
        Ok(all)
    }

    /// Whether a call that ends with EINTR was interrupted by the stop alone: then no handler is about to run.
    fn may_rewind(&self, tid: u32, registers: &UserRegisters) -> bool {
        let (address, bytes) = arch::instruction(registers);
        let mut found = [0; 2];
        let memory = crate::LiveMemory::of(&self.root, self.pid);
        let deliverable = leakscope_proc::status(&self.root, tid)
            .map(|status| (status.pending | status.shared_pending) & !status.blocked & status.caught);
        crate::Memory::read_exact(&memory, address, &mut found)
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
            if !stopped {
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
