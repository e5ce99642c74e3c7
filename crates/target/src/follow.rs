//! Making a prepared call and going with the thread until it is back.

use crate::arch::{self, UserRegisters};
use crate::checkpoint::{Step, reached};
use crate::inject::{ALL_SIGNALS, Call, Outcome, Prepared, Way};
use crate::ptrace::{self, Event};
use crate::{LiveMemory, Memory, live, seccomp};
use std::path::Path;
use std::time::{Duration, Instant};

/// Signals that a thread causes itself.
const FAULTS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];

impl Prepared {
    /// The place that the call writes to and what stands there now.
    pub fn overwritten(&self, memory: &LiveMemory) -> Option<(u64, Vec<u8>)> {
        let mut bytes = vec![0; self.bytes.len()];
        memory.read_exact(self.at, &mut bytes).then_some((self.at, bytes))
    }

    /// Makes the call. `born` is told the copy's pid at once. The thread stands still afterwards, too.
    ///
    /// # Errors
    /// Why it could not be made; the thread is then as it was, or as it makes itself when it goes on.
    pub fn run(&self, root: &Path, pid: u32, born: &mut dyn FnMut(u32)) -> Result<Outcome, String> {
        let tid = self.tid;
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what} failed: {error}");
        seccomp::check(root, tid, &self.seen)?;
        ptrace::set_options(tid, libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE)
            .map_err(failed("setting its options"))?;
        live::write(pid, self.at, &self.bytes).map_err(failed("writing below its stack"))?;
        reached(Step::Written);
        ptrace::set_registers(tid, &self.start).map_err(failed("setting its registers"))?;
        reached(Step::Redirected);
        if self.way == Way::Frame {
            // From here on a signal waits until the frame brings the thread's own mask back.
            let _ = ptrace::set_signal_mask(tid, ALL_SIGNALS);
            reached(Step::Blocked);
        }
        let outcome = self.follow(born);
        let _ = ptrace::set_options(tid, libc::PTRACE_O_TRACESYSGOOD);
        outcome
    }

    /// Goes with the thread from stop to stop.
    fn follow(&self, born: &mut dyn FnMut(u32)) -> Result<Outcome, String> {
        let tid = self.tid;
        let mut outcome = Outcome { result: 0, child: None };
        let (mut calls, mut signal) = (0, 0);
        // The kernel copies about 60 GiB of page tables in a second.
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            ptrace::resume_to_syscall(tid, signal).map_err(|error| format!("resuming it failed: {error}"))?;
            signal = 0;
            match ptrace::wait(tid, deadline) {
                Some(Event::At(libc::PTRACE_EVENT_CLONE)) => {
                    let child = ptrace::event_message(tid).ok().and_then(|child| u32::try_from(child).ok());
                    outcome.child = child;
                    match (self.call, self.way, child) {
                        (Call::Copy, _, Some(child)) => born(child),
                        (Call::Reap(_), _, Some(child)) => finish_thread(child, deadline),
                        (_, _, None) => {}
                    }
                    reached(Step::Born);
                }
                Some(Event::Syscall) => {
                    let registers = ptrace::registers(tid).map_err(|error| error.to_string())?;
                    // A signal handler that came first makes calls of its own.
                    if calls < 2 && registers.rip != arch::returned(&self.start).rip {
                        continue;
                    }
                    calls += 1;
                    match calls {
                        1 => reached(Step::Entered),
                        2 => {
                            outcome.result = registers.rax.cast_signed();
                            // -ERESTARTNOINTR: a signal came first; the kernel makes the call again.
                            if outcome.result == -513 {
                                calls = 0;
                                continue;
                            }
                            reached(Step::Left);
                        }
                        // It is back in the call that the kernel remembers.
                        3 if self.way == Way::Chain => return Ok(outcome),
                        3 => reached(Step::Restoring),
                        _ => {
                            self.assure(tid);
                            reached(Step::Restored);
                            return Ok(outcome);
                        }
                    }
                }
                Some(Event::Signal(fault)) if FAULTS.contains(&fault) => {
                    self.restore();
                    return Err(format!("it caused signal {fault}"));
                }
                Some(Event::Signal(other)) => signal = other,
                Some(Event::Stop { .. } | Event::At(_)) => {}
                Some(Event::Ended) => return Err("it ended".into()),
                None => {
                    // Frozen, perhaps. If it did not even begin, it is put back.
                    let _ = ptrace::interrupt(tid);
                    let stopped = ptrace::wait(tid, Instant::now() + Duration::from_secs(1));
                    if calls == 0 && matches!(stopped, Some(Event::Stop { .. })) {
                        self.restore();
                    }
                    return Err("it did not run".into());
                }
            }
        }
    }

    /// Puts the thread back where it was before the call.
    fn restore(&self) {
        let _ = ptrace::set_registers(self.tid, &self.original);
        if self.way == Way::Frame {
            let _ = ptrace::set_signal_mask(self.tid, self.mask);
        }
    }

    /// Makes sure that the frame did what it is for.
    fn assure(&self, tid: u32) {
        let same = |now: &UserRegisters| {
            let important = |r: &UserRegisters| {
                [
                    r.rip, r.rsp, r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11,
                    r.r12, r.r13, r.r14, r.r15, r.fs_base,
                ]
            };
            important(now) == important(&self.end)
        };
        if !ptrace::registers(tid).is_ok_and(|now| same(&now)) {
            let _ = ptrace::set_registers(tid, &self.end);
            let _ = ptrace::set_signal_mask(tid, self.mask);
        }
    }
}

/// Waits for the end of a thread that was started for a call. No handler may run in it.
fn finish_thread(tid: u32, deadline: Instant) {
    loop {
        match ptrace::wait(tid, deadline) {
            None | Some(Event::Ended) => break,
            Some(event) => {
                let _ = ptrace::set_signal_mask(tid, ALL_SIGNALS);
                let signal = if let Event::Signal(signal) = event { signal } else { 0 };
                let _ = ptrace::resume(tid, signal);
            }
        }
    }
}
