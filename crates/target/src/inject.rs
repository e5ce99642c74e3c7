//! A system call made by a thread of the target, such that leakscope may be killed at any instant.
//!
//! All that the call needs stands in the target before its registers are set, which is one atomic step: a signal frame
//! with the thread's own registers, vector registers and signal mask below its stack (and below the red zone), and
//! code, which the target already has. From then on the thread finds back by itself:
//!
//! ```text
//! rip -> syscall            the call
//!        ret                takes the frame's first word
//!        mov $15, %eax      rt_sigreturn: the kernel restores everything from the frame
//!        syscall
//! ```
//!
//! So there is no moment at which the target depends on leakscope. It is never single-stepped (a tracer's death in a
//! step kills the target by SIGTRAP); it is followed by stops at system calls in the mode (`PTRACE_O_TRACESYSGOOD`) in
//! which the kernel finds no valid signal to send when the tracer dies in such a stop.
//!
//! Returning by rt_sigreturn makes the kernel forget the time limit of a sleep. A thread that sleeps with one is
//! taken only if there is no other, and then returns by a chain of `pop; ret` pieces instead, to the instruction that
//! goes on with the sleep. `ret $n` as its last piece lets the chain lie below the red zone.

use crate::arch::{self, Doing, Gadgets, UserRegisters};
use crate::ptrace;
use crate::seccomp::Seen;
use crate::seize::Stopped;
use crate::{LiveMemory, Memory};
use leakscope_proc::Mapping;
use std::path::Path;

/// What the target is made to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Make a copy of itself: no signal at its end, descriptors shared, so that closing them stays effective.
    Copy,
    /// Reap its child with this pid (as the target sees it), without waiting.
    Reap(u32),
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The call's result as the target sees it.
    pub result: i64,
    /// The copy's pid as leakscope sees it.
    pub child: Option<u32>,
}

/// Where a target's gadgets and stacks are, found before it is stopped.
#[derive(Debug)]
pub struct Site {
    gadgets: Gadgets,
    mappings: Vec<Mapping>,
}

/// How a thread returns from the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By rt_sigreturn.
    Frame,
    /// By a chain to the call that the kernel remembers.
    Chain,
}

/// A thread's call, ready to be made.
#[derive(Debug)]
pub struct Prepared {
    pub tid: u32,
    pub call: Call,
    pub way: Way,
    pub start: UserRegisters,
    /// The registers that the thread has at the end, if it returns by a frame.
    pub end: UserRegisters,
    pub original: UserRegisters,
    pub mask: u64,
    pub at: u64,
    pub bytes: Vec<u8>,
    /// The calls that are made, as a filter sees them.
    pub seen: Vec<Seen>,
}

/// How much of a mapping is looked through at most, and how much at once.
const SCAN_LIMIT: u64 = 64 << 20;
const SCAN_CHUNK: usize = 1 << 20;
/// How far above a place at the bottom of a stack the stack must be unused.
const UNUSED: u64 = 32 << 10;
/// The exit status of a copy that nobody held on to.
pub const ORPHAN_STATUS: u64 = 87;
/// A shared signal mask for everything that runs in between.
pub const ALL_SIGNALS: u64 = u64::MAX;

impl Site {
    /// Looks for the pieces of code in the C library, the loader, the program, in this order. None if they are not
    /// there.
    pub fn find(root: &Path, pid: u32) -> Option<Site> {
        let mappings = leakscope_proc::maps(root, pid).ok()?;
        let memory = LiveMemory::of(root, pid);
        let mut code: Vec<&Mapping> = mappings
            .iter()
            .filter(|mapping| {
                mapping.executable && mapping.readable && !mapping.writable && mapping.inode != 0
            })
            .collect();
        code.sort_by_key(|mapping| preference(&mapping.path));
        let mut scanner = arch::Scanner::default();
        let mut buffer = vec![0; SCAN_CHUNK];
        for mapping in code.iter().take(8) {
            let mut at = mapping.start;
            let end = mapping.end.min(mapping.start.saturating_add(SCAN_LIMIT));
            while at < end && !scanner.is_complete() {
                let length = usize::try_from(end - at).unwrap_or(SCAN_CHUNK).min(SCAN_CHUNK);
                let got = memory.read(at, buffer.get_mut(..length)?);
                scanner.scan(at, buffer.get(..got)?);
                if got < length || got <= arch::Scanner::OVERLAP {
                    break;
                }
                at += if at + got as u64 >= end { got } else { got - arch::Scanner::OVERLAP } as u64;
            }
        }
        Some(Site { gadgets: scanner.found()?, mappings })
    }

    /// Prepares `call` in the thread best suited for it. None if none is. `all` says that no other thread runs.
    pub fn prepare(
        &self,
        root: &Path,
        pid: u32,
        threads: &[Stopped],
        all: bool,
        call: Call,
    ) -> Option<Prepared> {
        let memory = LiveMemory::of(root, pid);
        let holds = |address: u64, bytes: &[u8]| {
            let mut found = vec![0; bytes.len()];
            memory.read_exact(address, &mut found) && found == bytes
        };
        if !self.gadgets.are_there(holds) {
            return None;
        }
        let mut ranked: Vec<(u32, &Stopped)> =
            threads.iter().filter_map(|thread| Some((rank(&thread.registers)?, thread))).collect();
        ranked.sort_by_key(|&(rank, _)| rank);
        let own = || {
            ranked
                .iter()
                .map(|&(_, thread)| thread)
                .filter(|thread| self.has_own_stack(&memory, threads, thread))
        };
        own().find_map(|thread| self.prepare_in(&memory, thread, call, None)).or_else(|| {
            let top = self.unused_stack(threads).filter(|_| all)?;
            ranked.iter().find_map(|&(_, thread)| self.prepare_in(&memory, thread, call, Some(top)))
        })
    }

    fn mapping(&self, address: u64) -> Option<&Mapping> {
        let index = self.mappings.partition_point(|mapping| mapping.end <= address);
        self.mappings
            .get(index)
            .filter(|mapping| mapping.start <= address && mapping.readable && mapping.writable)
    }

    /// Whether the memory below a thread's stack pointer is its stack's. Coroutines and Go's goroutines run on small
    /// stacks in the heap, whose neighbours must not be written to: so only the main thread's stack counts, and a
    /// stack that ends in its thread's own control block, as those of all C libraries do.
    fn has_own_stack(&self, memory: &LiveMemory, threads: &[Stopped], thread: &Stopped) -> bool {
        let (sp, fs) = (thread.registers.rsp, thread.registers.fs_base);
        let Some(mapping) = self.mapping(sp) else { return false };
        let Some(low) = sp.checked_sub(NEEDED).filter(|&low| low >= mapping.start) else { return false };
        let room = memory.read_exact(low, &mut [0; NEEDED as usize]);
        if mapping.path == b"[stack]" {
            return room;
        }
        room && sp < fs
            && fs < mapping.end
            && memory.word(fs) == Some(fs)
            && threads.iter().all(|other| !(low..fs).contains(&other.registers.fs_base))
    }

    /// The end of a place at the far end of the main thread's stack, if that stack is not used nearby.
    fn unused_stack(&self, threads: &[Stopped]) -> Option<u64> {
        let stack = self.mappings.iter().find(|mapping| mapping.path == b"[stack]")?;
        let top = stack.start.checked_add(NEEDED)?;
        let limit = top.checked_add(UNUSED)?;
        let unused = threads.iter().all(|thread| !(stack.start..limit).contains(&thread.registers.rsp));
        (unused && limit <= stack.end).then_some(top)
    }

    /// The call in one thread, with its frames below the thread's own stack or below `top`.
    fn prepare_in(
        &self,
        memory: &LiveMemory,
        thread: &Stopped,
        call: Call,
        top: Option<u64>,
    ) -> Option<Prepared> {
        let chain = |back: UserRegisters| self.chain(thread, back, call).filter(|_| top.is_none());
        let top = top.or(thread.registers.rsp.checked_sub(arch::RED_ZONE))?;
        match arch::doing(&thread.registers) {
            Doing::Foreign => None,
            Doing::Remembered => chain(arch::continued(&thread.registers)),
            Doing::Own if is_about_to_continue(memory, &thread.registers) => chain(thread.registers),
            Doing::Own if self.is_in_chain(memory, &thread.registers) => None,
            Doing::Restartable => self.frame(thread, arch::rewound(&thread.registers), call, top),
            Doing::Own | Doing::Interrupted => {
                let end = outside_restartable_sequence(memory, thread)?;
                self.frame(thread, UserRegisters { orig_rax: u64::MAX, ..end }, call, top)
            }
        }
    }

    /// The call with a return by rt_sigreturn. From `top` downwards: the extended state, the copy's frame, the
    /// thread's own frame; a signal handler would run below all of it.
    fn frame(&self, thread: &Stopped, end: UserRegisters, call: Call, top: u64) -> Option<Prepared> {
        let mask = ptrace::signal_mask(thread.tid).ok()?;
        let extended = arch::extended_state(&thread.extended)?;
        let extended_at = top.checked_sub(extended.len() as u64)? & !63;
        let copy_at = (extended_at - arch::FRAME_BYTES) & !15;
        let frame_at = (copy_at - arch::FRAME_BYTES) & !15;
        let mut bytes = Bytes::new(frame_at, extended_at + extended.len() as u64);
        bytes.put(extended_at, &extended);
        bytes.put(copy_at, &self.exit_frame(&thread.registers, libc::SYS_exit_group, ORPHAN_STATUS, copy_at));
        bytes.put(frame_at, &arch::signal_frame(self.gadgets.sigreturn, &end, mask, extended_at));
        let start = UserRegisters { rsp: frame_at, ..self.calling(&thread.registers, call, copy_at) };
        Some(self.prepared(thread, call, Way::Frame, start, end, mask, bytes))
    }

    /// The call with a return by a chain. Reaping changes more registers than the chain can put back, so it is done
    /// by a thread that is started for it, whose frames take the copy's place.
    fn chain(&self, thread: &Stopped, back: UserRegisters, call: Call) -> Option<Prepared> {
        let restart = self.gadgets.restart?;
        let registers = &thread.registers;
        let last = registers.rsp.checked_sub(restart.skip + 8)?;
        let words = [
            restart.pop_rdi,
            back.rdi,
            restart.pop_rsi,
            back.rsi,
            restart.pop_rax,
            back.rax,
            restart.ret,
            back.rip,
        ];
        let chain_at = last - 8 * (words.len() as u64 - 1);
        let second_at = (registers.rsp - arch::RED_ZONE - arch::FRAME_BYTES) & !15;
        let first_at = (second_at - arch::FRAME_BYTES) & !15;
        if first_at < last + 8 {
            return None;
        }
        let mut bytes = Bytes::new(chain_at, second_at + arch::FRAME_BYTES);
        bytes.put(chain_at, &words.map(u64::to_le_bytes).concat());
        let clone = |flags: i32| {
            arch::calling(
                registers,
                self.gadgets.syscall,
                libc::SYS_clone,
                [flags as u64, first_at, registers.rdx, registers.r10],
            )
        };
        let start = match call {
            Call::Copy => {
                bytes.put(
                    first_at,
                    &self.exit_frame(registers, libc::SYS_exit_group, ORPHAN_STATUS, first_at),
                );
                clone(COPY_FLAGS)
            }
            Call::Reap(_) => {
                let reaping = UserRegisters { rsp: second_at, ..self.calling(registers, call, 0) };
                bytes.put(first_at, &arch::signal_frame(self.gadgets.sigreturn, &reaping, ALL_SIGNALS, 0));
                bytes.put(second_at, &self.exit_frame(registers, libc::SYS_exit, 0, second_at));
                clone(THREAD_FLAGS)
            }
        };
        let start = UserRegisters { rsp: chain_at, ..start };
        Some(self.prepared(thread, call, Way::Chain, start, back, 0, bytes))
    }

    /// Whether a thread is on its way back through an earlier call's chain, in the instant before it enters its own system
    /// call again. A return by rt_sigreturn would make the kernel forget that one.
    fn is_in_chain(&self, memory: &LiveMemory, registers: &UserRegisters) -> bool {
        let Some(restart) = self.gadgets.restart else { return false };
        let is_at = |gadget: u64, length: u64| (gadget..gadget + length).contains(&registers.rip);
        if is_at(restart.ret, 3) {
            return true;
        }
        let pops = [restart.pop_rdi, restart.pop_rsi, restart.pop_rax];
        let may_be = is_at(self.gadgets.syscall, 3) || pops.into_iter().any(|pop| is_at(pop, 2));
        // What is still to be returned to stands on the stack.
        may_be && (0..8).any(|word| memory.word(registers.rsp.wrapping_add(word * 8)) == Some(restart.ret))
    }

    fn calling(&self, registers: &UserRegisters, call: Call, copy_at: u64) -> UserRegisters {
        let (number, arguments) = match call {
            Call::Copy => (libc::SYS_clone, [COPY_FLAGS as u64, copy_at, 0, 0]),
            Call::Reap(pid) => {
                (libc::SYS_wait4, [u64::from(pid), 0, (libc::__WALL | libc::WNOHANG) as u64, 0])
            }
        };
        arch::calling(registers, self.gadgets.syscall, number, arguments)
    }

    /// All calls of the thread and of what it starts, as a filter sees them.
    fn seen(&self, start: &UserRegisters, end: &UserRegisters, call: Call, way: Way) -> Vec<Seen> {
        let at_gadget = |number: libc::c_long, arguments: [u64; 4]| Seen {
            number,
            pointer: arch::returned(start).rip,
            arguments,
        };
        let pointer = self.gadgets.sigreturn + self.gadgets.sigreturn_length as u64;
        let arguments = [start.rdi, start.rsi, start.rdx, start.r10];
        let mut seen = vec![
            at_gadget(start.rax as libc::c_long, arguments),
            Seen { number: libc::SYS_rt_sigreturn, pointer, arguments },
            at_gadget(libc::SYS_exit_group, [ORPHAN_STATUS, 0, 0, 0]),
        ];
        if way == Way::Chain {
            let pointer = arch::returned(end).rip;
            seen.push(Seen { number: libc::SYS_restart_syscall, pointer, arguments });
        }
        // Sooner or later the copy is to be reaped.
        let Seen { number, arguments, .. } = match call {
            Call::Reap(_) => at_gadget(libc::SYS_exit, [0; 4]),
            Call::Copy => {
                let reaping = self.calling(start, Call::Reap(0), 0);
                at_gadget(libc::SYS_wait4, [0, reaping.rsi, reaping.rdx, reaping.r10])
            }
        };
        seen.push(at_gadget(number, arguments));
        seen
    }

    /// A frame that leads to an exit.
    fn exit_frame(&self, registers: &UserRegisters, number: libc::c_long, status: u64, sp: u64) -> Vec<u8> {
        let exit = arch::calling(registers, self.gadgets.syscall, number, [status, 0, 0, 0]);
        arch::signal_frame(self.gadgets.sigreturn, &UserRegisters { rsp: sp, ..exit }, ALL_SIGNALS, 0)
    }

    #[expect(clippy::too_many_arguments, reason = "fills a struct")]
    fn prepared(
        &self,
        thread: &Stopped,
        call: Call,
        way: Way,
        start: UserRegisters,
        end: UserRegisters,
        mask: u64,
        bytes: Bytes,
    ) -> Prepared {
        let (tid, original) = (thread.tid, thread.registers);
        let seen = self.seen(&start, &end, call, way);
        Prepared { tid, call, way, start, end, original, mask, at: bytes.at, bytes: bytes.bytes, seen }
    }
}

/// Bytes that a call needs below a stack pointer, at most: the red zone, the extended state, frames.
const NEEDED: u64 = 16 << 10;
/// No signal at its end, the table of descriptors shared.
const COPY_FLAGS: i32 = libc::CLONE_FILES;
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Bytes to be written to one place.
struct Bytes {
    at: u64,
    bytes: Vec<u8>,
}

impl Bytes {
    fn new(at: u64, end: u64) -> Bytes {
        Bytes { at, bytes: vec![0; usize::try_from(end - at).unwrap_or(0)] }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let from = usize::try_from(at - self.at).unwrap_or(usize::MAX);
        if let Some(place) = self.bytes.get_mut(from..from.saturating_add(bytes.len())) {
            place.copy_from_slice(bytes);
        }
    }
}

/// The C library first.
fn preference(path: &[u8]) -> u32 {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    match name {
        _ if name.starts_with(b"libc.") || name.starts_with(b"libc-") => 0,
        _ if name.starts_with(b"ld-") || name.starts_with(b"ld.") => 1,
        _ if !name.windows(3).any(|part| part == b".so") => 2,
        _ => 3,
    }
}

/// How well a thread is suited, the least first; None if not at all.
fn rank(registers: &UserRegisters) -> Option<u32> {
    match arch::doing(registers) {
        // A signal that wakes these two for good must not come between two of their calls.
        Doing::Restartable
            if matches!(registers.orig_rax as i64, libc::SYS_pause | libc::SYS_rt_sigsuspend) =>
        {
            Some(3)
        }
        Doing::Restartable => Some(0),
        Doing::Own | Doing::Interrupted if registers.orig_rax.cast_signed() >= 0 => Some(1),
        Doing::Own | Doing::Interrupted => Some(2),
        Doing::Remembered => Some(4),
        Doing::Foreign => None,
    }
}

/// Whether a thread is just before the call that goes on with what the kernel remembers: where an earlier stop, or an
/// earlier call of ours, has put it.
fn is_about_to_continue(memory: &LiveMemory, registers: &UserRegisters) -> bool {
    let (address, bytes) = arch::instruction(&arch::returned(registers));
    let mut found = [0; 2];
    registers.orig_rax.cast_signed() < 0
        && registers.rax == libc::SYS_restart_syscall as u64
        && memory.read_exact(address, &mut found)
        && found == *bytes
}

/// The registers with which a thread goes on that may stand inside a restartable sequence (rseq(2)): at its abort
/// handler if so, as after any preemption. The kernel could not see to that itself, since the thread returns from
/// elsewhere. None if this cannot be told.
fn outside_restartable_sequence(memory: &LiveMemory, thread: &Stopped) -> Option<UserRegisters> {
    let registers = thread.registers;
    if registers.orig_rax.cast_signed() >= 0 {
        return Some(registers);
    }
    let Some(area) = ptrace::restartable_sequences(thread.tid)? else { return Some(registers) };
    let descriptor = memory.word(area.wrapping_add(8))?;
    if descriptor == 0 {
        return Some(registers);
    }
    // struct rseq_cs { u32 version, flags; u64 start_ip, post_commit_offset, abort_ip; }
    let field = |offset: u64| memory.word(descriptor.wrapping_add(offset));
    let inside = registers.rip.wrapping_sub(field(8)?) < field(16)?;
    Some(if inside { UserRegisters { rip: field(24)?, ..registers } } else { registers })
}
