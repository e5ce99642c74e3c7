//! Signals: leakscope takes none for itself. What is sent to it goes on to the command; what the terminal sends
//! to both reaches the command directly.

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Signals that are passed on.
const PASSED: &[i32] = &[
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGWINCH,
    libc::SIGCONT,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGURG,
    libc::SIGPWR,
];
/// Its sender was the kernel: the terminal, which signals the whole process group.
const SI_KERNEL: i32 = 0x80;

/// Whether SIGPIPE was ignored when this process began. Rust's runtime ignores it before `main`, and has it at its
/// default in a child; a service manager's choice must reach the command.
static PIPE_IGNORED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_pipe() {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: asking changes nothing; zero is a valid value where the call fails.
    let handler = unsafe {
        libc::sigaction(libc::SIGPIPE, std::ptr::null(), action.as_mut_ptr());
        action.assume_init().sa_sigaction
    };
    PIPE_IGNORED.store(handler == libc::SIG_IGN, Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_PIPE: extern "C" fn() = note_pipe;

/// In the child, before it executes the command: gives SIGPIPE the disposition that leakscope was started with.
pub(crate) fn restore_pipe() {
    let action = if PIPE_IGNORED.load(Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: async-signal-safe.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

fn set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the signal numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in PASSED.iter().chain(&[libc::SIGCHLD]) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Blocks them for this thread and the threads it will start. Returns the mask before.
pub(crate) fn block() -> libc::sigset_t {
    let set = set();
    let mut old = MaybeUninit::uninit();
    // SAFETY: both sets are valid; the call fills `old`.
    unsafe {
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, old.as_mut_ptr());
        old.assume_init()
    }
}

/// Stops this process together with the command that `signal` has stopped, if a shell's job control waits for that.
///
/// A service that is stopped from elsewhere (`kill -STOP`) is continued there too, and by its pid alone: had
/// leakscope stopped along with it, it would never see it end.
pub(crate) fn stop_as_a_job(signal: i32) {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else { return };
    // SAFETY: the descriptor is open; neither call has other preconditions.
    let in_foreground = unsafe { libc::tcgetpgrp(terminal.as_raw_fd()) == libc::getpgrp() };
    if in_foreground || [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU].contains(&signal) {
        // SAFETY: a signal to this process; it goes on from here when it is continued.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
}

/// Sets the mask back.
pub(crate) fn restore(mask: &libc::sigset_t) {
    // SAFETY: a valid set; async-signal-safe.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Something arrived.
pub(crate) enum Arrival {
    /// A child changed its state.
    Child,
    /// Pass this signal on to the command.
    PassOn(i32),
    /// Nothing to do.
    Nothing,
}

/// Waits for a signal, at most `timeout`.
pub(crate) fn wait(timeout: Duration) -> Arrival {
    let set = set();
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the set and the timeout are valid, the call fills `info`.
    let signal = unsafe { libc::sigtimedwait(&set, info.as_mut_ptr(), &timeout) };
    // SAFETY: zero or filled by the kernel.
    let info = unsafe { info.assume_init() };
    match signal {
        libc::SIGCHLD => Arrival::Child,
        signal if signal > 0 && info.si_code != SI_KERNEL => Arrival::PassOn(signal),
        _ => Arrival::Nothing,
    }
}
