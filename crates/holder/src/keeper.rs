//! Keeps the arena ahead of the tracers, the clock going, and the command's signals flowing.

use crate::exits::Waits;
use crate::signals::{self, Arrival};
use crate::{Ended, Error};
use leakscope_heapfile::Arena;
use leakscope_heapfile::layout::CHUNK;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

/// Backed ahead of what has been handed out: a sixteenth of that, within these bounds.
const AHEAD_MIN: u64 = CHUNK;
const AHEAD_MAX: u64 = 64 << 20;
/// Most that tracers may populate by themselves when they are faster than the keeper, or it is gone: it is charged to
/// the target's control group. Where that has a limit, no more than a sixteenth of what is left.
const SELF_BUDGET: u64 = 64 << 20;
const HEADROOM_SHARE: u64 = 16;
/// Ticks between two looks at the limit.
const HEADROOM_TICKS: u32 = 64;
const BUSY: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_millis(8);

pub(crate) struct Keeper {
    arena: Arc<Arena>,
    /// Budget, and ticks until it is looked at again.
    budget: Cell<(u64, u32)>,
    notes: RefCell<Vec<String>>,
}

impl Keeper {
    pub(crate) fn new(arena: Arc<Arena>) -> Keeper {
        Keeper { arena, budget: Cell::new((SELF_BUDGET, 0)), notes: RefCell::new(Vec::new()) }
    }

    /// Before the command starts: the first chunks and the clock.
    pub(crate) fn prepare(&self) -> Result<(), Error> {
        self.arena.superblock().self_budget.store(SELF_BUDGET as i64, Relaxed);
        self.populate()?;
        self.advance_clock();
        Ok(())
    }

    /// Works until the command has ended, and reaps it.
    pub(crate) fn run_until_exit(&self, command: u32, waits: &Waits) -> Ended {
        let pid = command as libc::pid_t;
        let mut pause = BUSY;
        loop {
            match signals::wait(pause) {
                // Without a signal too: it may have come while a callback was at work, or to a thread that drops it.
                Arrival::Child | Arrival::Nothing => {
                    if let Some(ended) = waits.reap(command, || reap(pid)) {
                        self.advance_clock();
                        return ended;
                    }
                }
                // SAFETY: the command has not been reaped, so the pid is its own.
                Arrival::PassOn(signal) => unsafe {
                    libc::kill(pid, signal);
                },
            }
            pause = if self.tick() { BUSY } else { IDLE };
        }
    }

    /// Advances the clock and backs more of the arena. Whether there was anything to back.
    pub(crate) fn tick(&self) -> bool {
        self.advance_clock();
        self.arena.superblock().self_budget.store(self.budget() as i64, Relaxed);
        self.populate().unwrap_or_else(|error| {
            self.note(format!("the heap file could not grow any more: {error}"));
            false
        })
    }

    /// What the tracers may populate by themselves.
    fn budget(&self) -> u64 {
        let (budget, left) = self.budget.get();
        if left > 0 {
            self.budget.set((budget, left - 1));
            return budget;
        }
        let root = self.arena.superblock().root_pid.load(Acquire);
        let headroom = match root {
            0 => None,
            pid => leakscope_proc::memory_headroom(Path::new("/proc"), Path::new("/sys/fs/cgroup"), pid),
        };
        let budget = headroom.map_or(SELF_BUDGET, |room| SELF_BUDGET.min(room / HEADROOM_SHARE));
        self.budget.set((budget, HEADROOM_TICKS));
        budget
    }

    fn note(&self, note: String) {
        let mut notes = self.notes.borrow_mut();
        if !notes.contains(&note) {
            notes.push(note);
        }
    }

    /// What went wrong.
    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.take()
    }

    fn advance_clock(&self) {
        self.arena.superblock().tick.store(self.arena.clock_tick(), Relaxed);
    }

    /// Backs the arena ahead of what has been handed out. Whether there was anything to do.
    fn populate(&self) -> Result<bool, Error> {
        let superblock = self.arena.superblock();
        let next = superblock.next.load(Acquire).min(self.arena.len());
        let ahead = (next / 16).clamp(AHEAD_MIN, AHEAD_MAX).next_multiple_of(CHUNK);
        let target = next.saturating_add(ahead).min(self.arena.len());
        let ready = superblock.ready.load(Relaxed);
        if ready >= target {
            return Ok(false);
        }
        // The tracers may have gone past what was ready; that part is backed already.
        let start = ready.max(next);
        self.arena.populate(start, target - start)?;
        superblock.ready.store(target, Release);
        Ok(true)
    }
}

/// Reaps the command if it has ended, and orphans of its on the way. If the command was stopped, stops this process
/// with it, and continues it later.
fn reap(pid: libc::pid_t) -> Option<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let found = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::WUNTRACED) };
        if found <= 0 {
            return None;
        }
        if found != pid {
            continue;
        }
        if libc::WIFEXITED(status) {
            return Some(Ended::Exited(libc::WEXITSTATUS(status)));
        }
        if libc::WIFSIGNALED(status) {
            return Some(Ended::Signaled(libc::WTERMSIG(status)));
        }
        if libc::WIFSTOPPED(status) {
            signals::stop_as_a_job(libc::WSTOPSIG(status));
        }
    }
}
