//! Serves the process's memory to the holder where the holder may not look at it (`ptrace` is forbidden): requests
//! come through a mailbox in the heap file, and the bytes go back the same way.
//!
//! The memory is that of a copy made by a fork, so that it stands still. The copy has one thread, which runs nothing
//! but the loop here, with all signals blocked; it ends when the process goes on, with the thread that made it, or
//! when nobody is left to ask. The rest of the process does not notice it: it sends no signal when it ends, and
//! ordinary `wait` calls do not see it.

use crate::arena::Arena;
use crate::exit::{self, Patience};
use crate::{arch, sys};
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{
    ANSWER_MAX, EXIT_GO, EXIT_SERVE, EXIT_SERVING, EXIT_UNABLE, Mailbox, REQUEST_AUXV, REQUEST_END,
    REQUEST_MAPS, REQUEST_READ, Superblock, UNIT, Window,
};

/// What an answer must at least be able to hold.
const ANSWER_LEAST: u64 = 128 << 10;

/// Serves until the process may go on, if that is possible.
pub(crate) fn serve(arena: Arena, superblock: &'static Superblock, window: &'static Window) {
    let served = if exit::is_filtered() { None } else { Server::new(arena, superblock, window) };
    match served {
        Some(server) => server.run(),
        None => {
            answer_serve(window, EXIT_UNABLE);
        }
    }
}

/// Tells the holder what came of its wish; false if it has lost patience.
fn answer_serve(window: &Window, state: u32) -> bool {
    let told = window.exit_state.compare_exchange(EXIT_SERVE, state, AcqRel, Relaxed).is_ok();
    if told {
        exit::wake(&window.exit_state);
    }
    told
}

struct Server {
    superblock: &'static Superblock,
    window: &'static Window,
    mailbox: &'static Mailbox,
    buffer: *mut u8,
    capacity: usize,
}

impl Server {
    /// Makes room in the heap file.
    fn new(arena: Arena, superblock: &'static Superblock, window: &'static Window) -> Option<Server> {
        let head = size_of::<Mailbox>() as u64;
        let room = |capacity: u64| Some((arena.allocate(window, head + capacity)?, capacity));
        let (offset, capacity) = room(ANSWER_MAX).or_else(|| room(ANSWER_LEAST))?;
        let mailbox: &Mailbox = arena.at(offset)?;
        let buffer = arena.slice::<u8>(offset + head, usize::try_from(capacity).ok()?)?;
        mailbox.capacity.store(capacity as u32, Relaxed);
        mailbox.thread_pointer.store(arch::thread_pointer() as u64, Relaxed);
        window.exit_mailbox.store(u32::try_from(offset / UNIT).ok()?, Release);
        // Written through a pointer to the mapping, of which other processes make no slices.
        let buffer = arena.base().wrapping_add(buffer.as_ptr() as usize - arena.base() as usize);
        Some(Server { superblock, window, mailbox, buffer, capacity: capacity as usize })
    }

    fn run(mut self) {
        let parent = sys::getpid();
        let mask = sys::block_signals();
        match sys::fork() {
            0 => {
                sys::die_with_parent();
                // Between the fork and that call the parent may have died. (In a pid namespace of its own, the copy
                // does not see it.)
                if [0, parent].contains(&sys::getppid()) {
                    self.answer();
                }
                sys::exit_group(0)
            }
            child if child > 0 => {
                sys::restore_signals(&mask);
                self.mailbox.server.store(child as u32, Relaxed);
                if answer_serve(self.window, EXIT_SERVING) {
                    self.wait_for_holder();
                }
                sys::kill_and_reap(child as u32);
            }
            // No process or no memory for one: the thread itself serves, while others may still run.
            _ => {
                sys::restore_signals(&mask);
                self.mailbox.server.store(0, Relaxed);
                if answer_serve(self.window, EXIT_SERVING) {
                    self.answer();
                }
                self.wait_for_holder();
            }
        }
    }

    /// Waits until the process may go on.
    fn wait_for_holder(&self) {
        let mut patience = Patience::new(self.superblock);
        loop {
            let state = self.window.exit_state.load(Acquire);
            if state == EXIT_GO || patience.is_over() {
                return;
            }
            exit::sleep(&self.window.exit_state, state);
        }
    }

    /// Answers requests until there will be no more.
    fn answer(&mut self) {
        let pid = sys::getpid();
        let mut patience = Patience::new(self.superblock);
        let mut file: Option<(u32, sys::File)> = None;
        let mut answered = 0;
        loop {
            let request = self.mailbox.request.load(Acquire);
            if request == answered {
                if self.window.exit_state.load(Acquire) == EXIT_GO || patience.is_over() {
                    break;
                }
                exit::sleep(&self.mailbox.request, request);
                continue;
            }
            let kind = self.mailbox.kind.load(Relaxed);
            let address = self.mailbox.address.load(Relaxed);
            let length = (self.mailbox.length.load(Relaxed) as usize).min(self.capacity);
            let done = match kind {
                REQUEST_READ => self.copy(pid, address, length),
                REQUEST_MAPS | REQUEST_AUXV => self.read_file(&mut file, kind, address == 0),
                _ => 0,
            };
            self.mailbox.done.store(done as u32, Relaxed);
            self.mailbox.answer.store(request, Release);
            exit::wake(&self.mailbox.answer);
            answered = request;
            if kind == REQUEST_END {
                break;
            }
        }
        if let Some((_, file)) = file {
            file.close();
        }
    }

    /// Copies `length` bytes of this process's memory into the buffer, up to the first that cannot be read. Either
    /// way is by the kernel, which answers with an error where a load would be a fault.
    fn copy(&mut self, pid: u32, address: u64, length: usize) -> usize {
        let address = address as usize;
        // SAFETY: the buffer has room for `length` bytes and is this server's alone.
        match unsafe { sys::copy_memory(pid, address, self.buffer, length) } {
            Some(done) => done,
            // The call itself is not to be had.
            None => {
                // SAFETY: a literal with NUL.
                let Some(memory) = (unsafe { sys::File::open_read(c"/proc/self/mem".as_ptr().cast()) })
                else {
                    return 0;
                };
                let done = memory.read_at(self.buffer(length), address);
                memory.close();
                done
            }
        }
    }

    /// Reads the next part of a file about this process.
    fn read_file(&mut self, open: &mut Option<(u32, sys::File)>, kind: u32, from_start: bool) -> usize {
        if from_start || open.as_ref().is_none_or(|&(of, _)| of != kind) {
            if let Some((_, file)) = open.take() {
                file.close();
            }
            let path = if kind == REQUEST_MAPS { c"/proc/self/maps" } else { c"/proc/self/auxv" };
            // SAFETY: a literal with NUL.
            *open = unsafe { sys::File::open_read(path.as_ptr().cast()) }.map(|file| (kind, file));
        }
        let Some((_, file)) = open else { return 0 };
        file.read(self.buffer(usize::MAX))
    }

    fn buffer(&mut self, length: usize) -> &mut [u8] {
        // SAFETY: inside the mapping; handed out by the arena to this server alone, and used for one call.
        unsafe { core::slice::from_raw_parts_mut(self.buffer, length.min(self.capacity)) }
    }
}
