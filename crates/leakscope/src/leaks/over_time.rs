//! `leakscope leaks PID --every TIME`: scans again and again, each compared with the one before.

use super::{Args, ProgressLine};
use crate::{exit, report};
use anyhow::{Context, Result};
use leakscope_examine::{Options, Staleness, Watch};
use leakscope_leaks::LeakReport;
use leakscope_reach::Progress;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Scans until the count is reached, SIGINT or SIGTERM comes, or the process ends; the status is by the last scan.
pub(super) fn run(args: &Args, pid: u32, every: Duration, options: Options) -> Result<ExitCode> {
    let ends = Ends::watch(pid)?;
    let mut json = match &args.json {
        Some(Some(path)) => Some(report::create(path)?),
        _ => None,
    };
    let mut watch = Watch::new(pid, options);
    let mut status = 0;
    let mut number = 0u64;
    let mut next = Instant::now();
    loop {
        if let Some(time) = args.staleness {
            let staleness = Staleness::begin(pid)?;
            match ends.wait_until(Instant::now() + time)? {
                Wake::Time => watch.set_referenced(Some(staleness.end()?)),
                Wake::Signal => break,
                Wake::Ended => {
                    exit::say(&format!("process {pid} has ended"));
                    break;
                }
            }
        }
        let progress = ProgressLine::default();
        let tell = |progress_made: Progress| progress.tell(progress_made);
        let scanned = watch.scan(Some(&tell));
        progress.clear();
        let found = match scanned {
            Ok(found) => found,
            // It ended while it was looked at; what was found before stands.
            Err(error) if number > 0 && ends.process_has_ended() => {
                exit::say(&format!("process {pid} has ended ({error})"));
                break;
            }
            Err(error) => return Err(error.into()),
        };
        number += 1;
        status = found.outcome.exit_status();
        write(args, found, number, json.as_mut())?;
        if args.count == Some(number) {
            break;
        }
        // From scan to scan, however long one takes; never two at once.
        next = (next + every).max(Instant::now());
        match ends.wait_until(next)? {
            Wake::Time => {}
            Wake::Signal => break,
            Wake::Ended => {
                exit::say(&format!("process {pid} has ended"));
                break;
            }
        }
    }
    Ok(ExitCode::from(status))
}

fn write(args: &Args, found: &LeakReport, number: u64, json: Option<&mut File>) -> Result<()> {
    if let (Some(file), Some(Some(path))) = (json, &args.json) {
        return args.write_json_line(found, file, path);
    }
    let mut out = std::io::stdout().lock();
    if args.json.is_some() {
        return args.write_json_line(found, &mut out, Path::new("standard output"));
    }
    let mut text = String::new();
    if number > 1 {
        text.push_str(&format!("\n{:=<100}\n", format!("== scan {number} ")));
    }
    text.push_str(&args.text(found, report::has_color(&std::io::stdout())));
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.context("cannot write the report to standard output")
}

/// Why a wait is over.
enum Wake {
    Time,
    Signal,
    Ended,
}

/// What ends the scans early.
struct Ends {
    signals: OwnedFd,
    process: OwnedFd,
}

impl Ends {
    /// From here on SIGINT and SIGTERM wait until somebody looks, so a scan is never cut short.
    fn watch(pid: u32) -> Result<Ends> {
        // SAFETY: the set is initialized by sigemptyset before it is used, and outlives the calls.
        let signals = unsafe {
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        let signals = owned(signals).context("cannot wait for signals")?;
        // SAFETY: pidfd_open takes two numbers.
        let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::c_int, 0) };
        let process = owned(RawFd::try_from(process).unwrap_or(-1))
            .with_context(|| format!("cannot watch process {pid}"))?;
        Ok(Ends { signals, process })
    }

    fn process_has_ended(&self) -> bool {
        matches!(self.poll(Duration::ZERO), Ok(Some(Wake::Ended)))
    }

    fn wait_until(&self, time: Instant) -> Result<Wake> {
        loop {
            let left = time.saturating_duration_since(Instant::now());
            match self.poll(left)? {
                Some(wake) => return Ok(wake),
                None if time <= Instant::now() => return Ok(Wake::Time),
                None => {}
            }
        }
    }

    /// What has happened, or happens within this time.
    fn poll(&self, patience: Duration) -> Result<Option<Wake>> {
        let on = |fd: &OwnedFd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let mut both = [on(&self.signals), on(&self.process)];
        // A millisecond too late rather than many calls too early.
        let milliseconds = i32::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the array holds two entries and is borrowed for the call.
        let ready = unsafe { libc::poll(both.as_mut_ptr(), 2, milliseconds) };
        let [signals, process] = both;
        if ready < 0 {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error).context("cannot wait for the next scan"),
            };
        }
        Ok(match (process.revents, signals.revents) {
            (0, 0) => None,
            (0, _) => Some(Wake::Signal),
            _ => Some(Wake::Ended),
        })
    }
}

fn owned(fd: RawFd) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given it, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
