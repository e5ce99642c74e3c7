//! The memory of a process that serves it itself.

use crate::exits::Place;
use crate::{Error, futex};
use leakscope_heapfile::Arena;
use leakscope_heapfile::layout::{
    ANSWER_MAX, EXIT_GO, EXIT_SERVE, EXIT_SERVING, EXIT_WAITING, Mailbox, REQUEST_AUXV, REQUEST_END,
    REQUEST_MAPS, REQUEST_READ, UNIT, Window,
};
use leakscope_target::Memory;
use std::mem::size_of;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait for the process to begin to serve; a copy of a large one takes a while.
const BEGIN: Duration = Duration::from_secs(10);
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two looks whether the process still exists.
const LOOK: Duration = Duration::from_millis(100);
/// Less is not asked for: what follows is wanted next, as a rule.
const AHEAD: u64 = 64 << 10;
const PAGE: u64 = 4096;
/// More text than any process's mappings have.
const TEXT_MAX: usize = 256 << 20;

/// Memory of a process that waits at its end, served by a copy of it.
///
/// Reads are answered one at a time, up to a megabyte each; what was read last is kept, so that small reads close
/// together cost one request. They work until the process is released.
pub struct ServedMemory {
    process: Place,
    /// Offset of the mailbox.
    mailbox: u64,
    capacity: u64,
    thread_pointer: u64,
    frozen: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The last request.
    request: u32,
    /// What the buffer holds: first address, bytes.
    held: (u64, u64),
    /// The server has failed to answer.
    is_broken: bool,
}

impl ServedMemory {
    pub(crate) fn ask(process: Place) -> Result<ServedMemory, Error> {
        let refuse = |reason: &str| Error::Unserved { pid: process.pid, reason: reason.into() };
        let Some(window) = process.record() else { return Err(refuse("it is gone")) };
        let asked = window.exit_state.compare_exchange(EXIT_WAITING, EXIT_SERVE, AcqRel, Acquire);
        if asked.is_err() {
            return Err(refuse("it was asked before, or has been released"));
        }
        futex::wake(&window.exit_state);
        let begun = Instant::now();
        while window.exit_state.load(Acquire) == EXIT_SERVE {
            futex::wait(&window.exit_state, EXIT_SERVE, LOOK);
            if begun.elapsed() > BEGIN || !process.is_alive() {
                return Err(refuse("it does not answer"));
            }
        }
        if window.exit_state.load(Acquire) != EXIT_SERVING {
            return Err(refuse("it may not make system calls, or there is no memory for it"));
        }
        let mailbox = u64::from(window.exit_mailbox.load(Acquire)) * UNIT;
        let Some(found) = process.arena.at::<Mailbox>(mailbox).filter(|_| mailbox != 0) else {
            return Err(refuse("another process has overwritten its part of the heap file"));
        };
        let capacity = u64::from(found.capacity.load(Acquire)).min(ANSWER_MAX);
        let thread_pointer = found.thread_pointer.load(Acquire);
        let frozen = found.server.load(Acquire) != 0;
        let state = Mutex::new(State { request: found.request.load(Acquire), ..State::default() });
        Ok(ServedMemory { process, mailbox, capacity, thread_pointer, frozen, state })
    }

    /// Whether the memory stands still. Otherwise no copy could be made, and threads of the process may still change it.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Thread pointer of the waiting thread (x86-64: `fs_base`). Those of other threads, and their stack pointers and
    /// registers, are unknown in this way: their stacks have to be taken as a whole.
    pub fn thread_pointer(&self) -> u64 {
        self.thread_pointer
    }

    /// The text of the process's `/proc/self/maps`; empty if it cannot read it.
    pub fn maps(&self) -> Vec<u8> {
        self.text(REQUEST_MAPS)
    }

    /// Its auxiliary vector; empty if it cannot read it.
    pub fn auxv(&self) -> Vec<u8> {
        self.text(REQUEST_AUXV)
    }

    fn text(&self, kind: u32) -> Vec<u8> {
        let mut state = self.state();
        let mut text = Vec::new();
        state.held = (0, 0);
        while text.len() < TEXT_MAX {
            let done = self.request(&mut state, kind, text.len() as u64, self.capacity);
            let begin = text.len();
            text.resize(begin + done as usize, 0);
            let read = text.get_mut(begin..).is_some_and(|rest| self.arena().read_at(self.buffer(), rest));
            if done == 0 || !read {
                text.truncate(begin);
                break;
            }
        }
        text
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arena(&self) -> &Arena {
        &self.process.arena
    }

    fn buffer(&self) -> u64 {
        self.mailbox + size_of::<Mailbox>() as u64
    }

    /// Has something put into the buffer; returns the number of bytes.
    fn request(&self, state: &mut State, kind: u32, address: u64, length: u64) -> u64 {
        let (Some(mailbox), Some(window)) = (self.arena().at::<Mailbox>(self.mailbox), self.process.record())
        else {
            return 0;
        };
        if state.is_broken || window.exit_state.load(Acquire) == EXIT_GO {
            return 0;
        }
        mailbox.kind.store(kind, Relaxed);
        mailbox.address.store(address, Relaxed);
        mailbox.length.store(length.min(self.capacity) as u32, Relaxed);
        state.request = state.request.wrapping_add(1);
        mailbox.request.store(state.request, Release);
        futex::wake(&mailbox.request);
        if kind == REQUEST_END {
            return 0;
        }
        if !self.wait_for_answer(mailbox, window, state.request) {
            state.is_broken = true;
            return 0;
        }
        u64::from(mailbox.done.load(Relaxed)).min(self.capacity)
    }

    fn wait_for_answer(&self, mailbox: &Mailbox, window: &Window, request: u32) -> bool {
        let begun = Instant::now();
        loop {
            let answer = mailbox.answer.load(Acquire);
            if answer == request {
                return true;
            }
            futex::wait(&mailbox.answer, answer, LOOK);
            let is_gone = || window.exit_state.load(Acquire) == EXIT_GO || !self.process.is_alive();
            if mailbox.answer.load(Acquire) != request && (begun.elapsed() > ANSWER || is_gone()) {
                return false;
            }
        }
    }

    /// Copies what the buffer holds from `address` on.
    fn take(&self, state: &State, address: u64, buffer: &mut [u8]) -> usize {
        let (start, bytes) = state.held;
        let skipped = address.wrapping_sub(start);
        if skipped >= bytes {
            return 0;
        }
        let length = usize::try_from(bytes - skipped).unwrap_or(usize::MAX).min(buffer.len());
        let read =
            buffer.get_mut(..length).is_some_and(|part| self.arena().read_at(self.buffer() + skipped, part));
        if read { length } else { 0 }
    }
}

impl Memory for ServedMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut state = self.state();
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = address.checked_add(done as u64) else { break };
            let mut taken = self.take(&state, at, rest);
            if taken == 0 {
                // From the page's beginning: it can be read as a whole or not at all.
                let start = at / PAGE * PAGE;
                let wanted = (at - start).saturating_add(rest.len() as u64).max(AHEAD);
                let length = wanted.min(start.wrapping_neg().wrapping_sub(1));
                state.held = (0, 0);
                let bytes = self.request(&mut state, REQUEST_READ, start, length);
                state.held = (start, bytes);
                taken = self.take(&state, at, rest);
            }
            if taken == 0 {
                break;
            }
            done += taken;
        }
        done
    }
}

impl Drop for ServedMemory {
    fn drop(&mut self) {
        let mut state = self.state();
        self.request(&mut state, REQUEST_END, 0, 0);
    }
}
