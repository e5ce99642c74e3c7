//! The calls of ptrace(2) that are used here. A tracee belongs to the thread that seized it: all of them must be made
//! by that thread, and its stops are waited for by id, so that nobody else's wait is disturbed.

use crate::arch::UserRegisters;
use std::io;
use std::time::{Duration, Instant};

/// What a wait for a tracee said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// It stands still because of an interrupt, at its birth, or because its whole process is stopped by a signal.
    Stop {
        /// The stop signal if the whole process is stopped by one.
        group: Option<i32>,
    },
    /// A signal is about to be delivered; whoever resumes it must hand the signal over.
    Signal(i32),
    /// At a `PTRACE_EVENT_*` other than a stop.
    At(i32),
    /// At the entry to or the exit from a system call.
    Syscall,
    /// It has ended.
    Ended,
}

/// One call of ptrace(2) without a result of its own.
fn call(request: libc::c_uint, tid: u32, address: usize, data: usize) -> io::Result<libc::c_long> {
    // SAFETY: the callers pass, for each request, the addresses of live objects of the type which it asks for, or
    // plain numbers; a wrong tid is an error, not a hazard.
    let result = unsafe { libc::ptrace(request, tid as libc::pid_t, address, data) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Becomes the tracer of a thread without stopping it.
pub fn seize(tid: u32, options: i32) -> io::Result<()> {
    call(libc::PTRACE_SEIZE, tid, 0, options as usize).map(drop)
}

/// Replaces the options given at the seizure.
pub fn set_options(tid: u32, options: i32) -> io::Result<()> {
    call(libc::PTRACE_SETOPTIONS, tid, 0, options as usize).map(drop)
}

/// Asks a thread to stop; what it was doing in the kernel is restarted afterwards.
pub fn interrupt(tid: u32) -> io::Result<()> {
    call(libc::PTRACE_INTERRUPT, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go on, with a signal or 0.
pub fn resume(tid: u32, signal: i32) -> io::Result<()> {
    call(libc::PTRACE_CONT, tid, 0, signal as usize).map(drop)
}

/// As [`resume`], up to the next entry to or exit from a system call.
pub fn resume_to_syscall(tid: u32, signal: i32) -> io::Result<()> {
    call(libc::PTRACE_SYSCALL, tid, 0, signal as usize).map(drop)
}

/// Lets a thread whose process is stopped by a signal stay so until it is continued.
pub fn listen(tid: u32) -> io::Result<()> {
    call(libc::PTRACE_LISTEN, tid, 0, 0).map(drop)
}

/// Lets a stopped thread go on untraced, with a signal or 0.
pub fn detach(tid: u32, signal: i32) -> io::Result<()> {
    call(libc::PTRACE_DETACH, tid, 0, signal as usize).map(drop)
}

/// The number that belongs to an event: the new thread's id, or the exit status.
pub fn event_message(tid: u32) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    call(libc::PTRACE_GETEVENTMSG, tid, 0, &raw mut message as usize)?;
    Ok(message)
}

/// The general registers of a stopped thread.
pub fn registers(tid: u32) -> io::Result<UserRegisters> {
    // SAFETY: plain numbers, for which zeros are valid.
    let mut registers: UserRegisters = unsafe { std::mem::zeroed() };
    let length = size_of::<UserRegisters>();
    get_set(tid, NT_PRSTATUS, (&raw mut registers).cast(), length).map(|_| registers)
}

/// Sets all general registers of a stopped thread in one step.
pub fn set_registers(tid: u32, registers: &UserRegisters) -> io::Result<()> {
    let vector = libc::iovec {
        iov_base: (&raw const *registers).cast_mut().cast(),
        iov_len: size_of::<UserRegisters>(),
    };
    call(libc::PTRACE_SETREGSET, tid, NT_PRSTATUS, &raw const vector as usize).map(drop)
}

const NT_PRSTATUS: usize = 1;

/// One of the register sets of a stopped thread (elf.h, `NT_*`), as many bytes as it has, at most as fit `buffer`.
pub fn register_set(tid: u32, set: usize, buffer: &mut [u8]) -> io::Result<Vec<u8>> {
    let length = get_set(tid, set, buffer.as_mut_ptr().cast(), buffer.len())?;
    Ok(buffer.get(..length).unwrap_or(&[]).to_vec())
}

fn get_set(tid: u32, set: usize, base: *mut libc::c_void, length: usize) -> io::Result<usize> {
    let mut vector = libc::iovec { iov_base: base, iov_len: length };
    call(libc::PTRACE_GETREGSET, tid, set, &raw mut vector as usize)?;
    Ok(vector.iov_len)
}

/// The signal mask that a stopped thread has or, if a system call changed it for its own duration, will have again.
pub fn signal_mask(tid: u32) -> io::Result<u64> {
    let mut mask = 0u64;
    call(libc::PTRACE_GETSIGMASK, tid, size_of::<u64>(), &raw mut mask as usize)?;
    Ok(mask)
}

/// Sets the signal mask of a stopped thread.
pub fn set_signal_mask(tid: u32, mask: u64) -> io::Result<()> {
    call(libc::PTRACE_SETSIGMASK, tid, size_of::<u64>(), &raw const mask as usize).map(drop)
}

/// Where a stopped thread stands, if its stop was reported to somebody else's wait: the number that tells the kind
/// of stop is in the siginfo too. None while it runs.
pub fn missed_event(tid: u32) -> Option<Event> {
    // SAFETY: plain numbers, for which zeros are valid.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    match call(libc::PTRACE_GETSIGINFO, tid, 0, &raw mut info as usize) {
        Ok(_) => Some(decode(info.si_signo, info.si_code >> 8)),
        // A stop of the whole process has no siginfo.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Some(Event::Stop { group: Some(libc::SIGSTOP) })
        }
        Err(_) => None,
    }
}

fn decode(signal: i32, event: i32) -> Event {
    match event {
        libc::PTRACE_EVENT_STOP => Event::Stop { group: (signal != libc::SIGTRAP).then_some(signal) },
        1..libc::PTRACE_EVENT_STOP if signal == libc::SIGTRAP => Event::At(event),
        _ if signal == libc::SIGTRAP | 0x80 => Event::Syscall,
        _ => Event::Signal(signal),
    }
}

/// Looks for news of one tracee. None if there is none yet; [`Event::Ended`] also if it is no tracee any more.
pub fn poll(tid: u32) -> Option<Event> {
    poll_for(tid as libc::pid_t).map(|(_, event)| event)
}

/// Looks for news of any tracee of the calling thread.
pub fn poll_any() -> Option<(u32, Event)> {
    poll_for(-1).filter(|&(tid, _)| tid != 0)
}

fn poll_for(tid: libc::pid_t) -> Option<(u32, Event)> {
    let mut status = 0;
    // SAFETY: status is a live int.
    let result =
        unsafe { libc::waitpid(tid, &raw mut status, libc::WNOHANG | libc::__WALL | libc::__WNOTHREAD) };
    match result {
        0 => None,
        -1 if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => None,
        -1 => Some((0, Event::Ended)),
        tid if libc::WIFSTOPPED(status) => Some((tid as u32, decode(libc::WSTOPSIG(status), status >> 16))),
        tid => Some((tid as u32, Event::Ended)),
    }
}

/// Waits for news of one tracee until `deadline`. Does not miss a stop that another thread's wait has taken away.
pub fn wait(tid: u32, deadline: Instant) -> Option<Event> {
    for round in 0u32.. {
        if let Some(event) = poll(tid) {
            return Some(event);
        }
        if round % 64 == 63
            && let Some(event) = missed_event(tid)
        {
            // Its notification may still be on the way; if so, take it, so that it is not read a second time.
            return Some(poll(tid).unwrap_or(event));
        }
        if round > 16 {
            if Instant::now() >= deadline {
                break;
            }
            std::thread::sleep(Duration::from_micros(if round < 400 { 20 } else { 500 }));
        } else {
            std::thread::yield_now();
        }
    }
    None
}

/// Where a thread has registered its restartable sequences (rseq(2)): an address, none, or (None) not to be told,
/// before Linux 5.13.
pub fn restartable_sequences(tid: u32) -> Option<Option<u64>> {
    // struct ptrace_rseq_configuration { u64 pointer; u32 size, signature, flags, pad; }
    let mut configuration = [0u64; 3];
    let size = size_of_val(&configuration);
    call(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, size, &raw mut configuration as usize).ok()?;
    let [pointer, ..] = configuration;
    Some((pointer != 0).then_some(pointer))
}

/// `PTRACE_SECCOMP_GET_FILTER` of linux/ptrace.h.
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

/// One of the seccomp filters of a stopped thread, the latest first.
pub fn seccomp_filter(tid: u32, index: usize) -> io::Result<Vec<(u16, u8, u8, u32)>> {
    let count = call(SECCOMP_GET_FILTER, tid, index, 0)?;
    // SAFETY: plain numbers, for which zeros are valid.
    let empty: libc::sock_filter = unsafe { std::mem::zeroed() };
    // A filter does not change, and has at most 4096 instructions.
    let mut filter = vec![empty; usize::try_from(count).unwrap_or(0).max(1 << 12)];
    let count = call(SECCOMP_GET_FILTER, tid, index, filter.as_mut_ptr() as usize)?;
    filter.truncate(usize::try_from(count).unwrap_or(0));
    Ok(filter.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect())
}
