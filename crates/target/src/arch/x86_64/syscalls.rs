//! System calls by number, and what becomes of those that are in progress when a thread stops.

use super::UserRegisters;
use libc::{c_long, *};

/// Codes with which a system call says "restart me" (linux/errno.h); they are seen by a tracer only.
const ERESTARTSYS: i64 = -512;
const ERESTARTNOINTR: i64 = -513;
const ERESTARTNOHAND: i64 = -514;
const ERESTART_RESTARTBLOCK: i64 = -516;

/// Length of the `syscall` instruction.
const INSTRUCTION: u64 = 2;

/// What a stopped thread was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It was in its own code, or a system call has finished.
    Own,
    /// In a system call that is to be entered again from its beginning.
    Restartable,
    /// In a system call that goes on with what the kernel remembers of it (the end of its time limit); that memory is
    /// lost when the thread returns from a signal.
    Remembered,
    /// A system call that ends with EINTR although no handler ran, and does no harm if entered again.
    Interrupted,
    /// In 32-bit code.
    Foreign,
}

/// What a stopped thread was doing, by its registers.
pub fn doing(registers: &UserRegisters) -> Doing {
    if registers.cs != 0x33 {
        return Doing::Foreign;
    }
    let number = registers.orig_rax.cast_signed();
    if number < 0 {
        return Doing::Own;
    }
    match registers.rax.cast_signed() {
        ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => Doing::Restartable,
        // Without a time limit, or with one that is a point in time, nothing is lost.
        ERESTART_RESTARTBLOCK if is_exact(registers) => Doing::Restartable,
        ERESTART_RESTARTBLOCK => Doing::Remembered,
        error if error == -i64::from(EINTR) && INTERRUPTED.contains(&number) => Doing::Interrupted,
        _ => Doing::Own,
    }
}

/// Calls that end with EINTR after a stop without any handler (signal(7), "Interruption of system calls by stop
/// signals", and sockets with a time limit), and that have done nothing when they do.
const INTERRUPTED: [c_long; 23] = [
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_rt_sigtimedwait,
    SYS_msgrcv,
    SYS_msgsnd,
    SYS_semop,
    SYS_semtimedop,
    SYS_io_getevents,
    SYS_io_uring_enter,
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_accept,
    SYS_accept4,
    SYS_connect,
];

/// Whether a call that the kernel remembers can be entered again without a difference.
fn is_exact(registers: &UserRegisters) -> bool {
    match registers.orig_rax as c_long {
        // A negative time limit is none.
        libc::SYS_poll => (registers.rdx as i32) < 0,
        libc::SYS_futex => {
            let operation = registers.rsi as i32 & 0x7f;
            operation == FUTEX_WAIT_BITSET || operation == FUTEX_LOCK_PI
        }
        _ => false,
    }
}

/// The registers with which a thread enters its system call again.
pub fn rewound(registers: &UserRegisters) -> UserRegisters {
    let mut again = *registers;
    again.rip = again.rip.wrapping_sub(INSTRUCTION);
    again.rax = registers.orig_rax;
    again.orig_rax = u64::MAX;
    again
}

/// The registers with which a thread goes on with the system call that the kernel remembers.
pub fn continued(registers: &UserRegisters) -> UserRegisters {
    UserRegisters { rax: SYS_restart_syscall as u64, ..rewound(registers) }
}

/// The bytes of the instruction that [`rewound`] goes back to, and its address.
pub fn instruction(registers: &UserRegisters) -> (u64, &'static [u8]) {
    (registers.rip.wrapping_sub(INSTRUCTION), b"\x0f\x05")
}

/// The registers behind the instruction that calls the kernel, before it.
pub fn returned(registers: &UserRegisters) -> UserRegisters {
    UserRegisters { rip: registers.rip.wrapping_add(INSTRUCTION), ..*registers }
}

/// Registers that call the kernel at `gadget`.
pub fn calling(registers: &UserRegisters, gadget: u64, number: c_long, arguments: [u64; 4]) -> UserRegisters {
    let [rdi, rsi, rdx, r10] = arguments;
    let orig_rax = u64::MAX;
    UserRegisters { rip: gadget, rax: number as u64, orig_rax, rdi, rsi, rdx, r10, ..*registers }
}

/// Whether it is a thread's own end, or the process's.
pub fn exits(registers: &UserRegisters) -> Option<Exits> {
    match registers.orig_rax as c_long {
        libc::SYS_exit => Some(Exits::Thread),
        libc::SYS_exit_group => Some(Exits::Process),
        _ => None,
    }
}

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exits {
    /// One thread.
    Thread,
    /// All of them.
    Process,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(number: c_long, result: i64, rsi: u64, rdx: u64) -> UserRegisters {
        // SAFETY: plain numbers, for which zeros are valid.
        let zeros: UserRegisters = unsafe { std::mem::zeroed() };
        UserRegisters {
            cs: 0x33,
            rip: 0x1002,
            orig_rax: number as u64,
            rax: result.cast_unsigned(),
            rsi,
            rdx,
            ..zeros
        }
    }

    #[test]
    fn calls_in_progress_are_told_apart() {
        assert_eq!(doing(&stopped(-1, -512, 0, 0)), Doing::Own);
        assert_eq!(doing(&stopped(SYS_read, 7, 0, 0)), Doing::Own);
        assert_eq!(doing(&stopped(SYS_read, -512, 0, 0)), Doing::Restartable);
        assert_eq!(doing(&stopped(SYS_pause, -514, 0, 0)), Doing::Restartable);
        assert_eq!(doing(&stopped(SYS_nanosleep, -516, 0, 0)), Doing::Remembered);
        assert_eq!(doing(&stopped(SYS_poll, -516, 0, 1000)), Doing::Remembered);
        assert_eq!(doing(&stopped(SYS_poll, -516, 0, u64::MAX)), Doing::Restartable);
        assert_eq!(doing(&stopped(SYS_futex, -516, 0x89, 0)), Doing::Restartable);
        assert_eq!(doing(&stopped(SYS_futex, -516, 0x80, 0)), Doing::Remembered);
        assert_eq!(doing(&stopped(SYS_epoll_wait, -4, 0, 0)), Doing::Interrupted);
        assert_eq!(doing(&stopped(SYS_close, -4, 0, 0)), Doing::Own);
        assert_eq!(doing(&UserRegisters { cs: 0x23, ..stopped(SYS_read, -512, 0, 0) }), Doing::Foreign);
    }

    #[test]
    fn a_rewound_call_is_entered_again() {
        let again = rewound(&stopped(SYS_epoll_wait, -4, 1, 2));
        assert_eq!((again.rip, again.rax, again.orig_rax), (0x1000, SYS_epoll_wait as u64, u64::MAX));
        assert_eq!(continued(&stopped(SYS_poll, -516, 1, 2)).rax, 219);
    }
}
