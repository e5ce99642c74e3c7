//! Runs a measured command with a time limit.
//!
//! Commands stay in the benchmark's own process group, so that an interrupt at the terminal ends them all.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// What a finished command left behind.
pub struct Finished {
    /// From just before it was started to its end.
    pub wall: Duration,
    /// All it wrote to stdout.
    pub stdout: String,
}

/// Runs `command` to its end, its stdout and stderr in files in `scratch`.
///
/// # Errors
/// If it cannot be started, runs for longer than `limit` (it is then killed with its descendants) or does not exit with 0;
/// the error ends with the last lines it wrote to stderr.
pub fn run(command: &mut Command, scratch: &Path, limit: Duration) -> Result<Finished> {
    let (stdout, stderr) = (scratch.join("stdout"), scratch.join("stderr"));
    command
        .stdin(Stdio::null())
        .stdout(File::create(&stdout).with_context(|| format!("cannot write {}", stdout.display()))?)
        .stderr(File::create(&stderr).with_context(|| format!("cannot write {}", stderr.display()))?);
    let began = Instant::now();
    let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let (status, timed_out) = wait(child, limit)?;
    let wall = began.elapsed();
    if timed_out || !status.success() {
        let why = if timed_out { format!("took longer than {limit:?}") } else { status.to_string() };
        bail!("{command:?}: {why}\n{}", last_lines(&stderr));
    }
    let stdout = std::fs::read(&stdout).with_context(|| format!("cannot read {}", stdout.display()))?;
    Ok(Finished { wall, stdout: String::from_utf8_lossy(&stdout).into_owned() })
}

/// Waits for `child`, and kills it with its descendants when `limit` is over.
fn wait(mut child: Child, limit: Duration) -> Result<(ExitStatus, bool)> {
    let pid = pid(&child)?;
    let (ended, watch) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let timed_out = watch.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout);
        if timed_out {
            kill_family(pid, Signal::KILL);
        }
        timed_out
    });
    // Reaped only after the watchdog is gone, so that it cannot kill a process that reused the pid.
    waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
    drop(ended);
    let timed_out = watchdog.join().unwrap_or(false);
    Ok((child.wait()?, timed_out))
}

/// A command that runs beside others and ends with its owner: first by SIGTERM, then by SIGKILL, with its
/// descendants.
pub struct Background {
    child: Child,
}

impl Background {
    /// Starts `command`; set its standard streams first.
    pub fn start(command: &mut Command) -> Result<Self> {
        let child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self { child })
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it has not ended after `limit`, or not with status 0.
    pub fn finish(mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("ended with {status}"),
                None if Instant::now() > deadline => bail!("still runs after {limit:?}"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let (Ok(None), Ok(pid)) = (self.child.try_wait(), pid(&self.child)) {
            kill_family(pid, Signal::TERM);
            std::thread::sleep(Duration::from_millis(100));
            if matches!(self.child.try_wait(), Ok(None)) {
                kill_family(pid, Signal::KILL);
                let _ = self.child.wait();
            }
        }
    }
}

fn pid(child: &Child) -> Result<Pid> {
    let raw = i32::try_from(child.id()).context("pid out of range")?;
    Pid::from_raw(raw).context("pid is zero")
}

/// Sends a signal to a process and its descendants.
fn kill_family(root: Pid, signal: Signal) {
    // All are found before the first dies: an orphan's parent is another.
    for pid in family(root) {
        let _ = kill_process(pid, signal);
    }
}

/// A process and its descendants.
fn family(root: Pid) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parents: Vec<(Pid, i32)> =
        numbers.filter_map(|number| Some((Pid::from_raw(number)?, parent_of(number)?))).collect();
    let mut family = vec![root];
    let mut next = 0;
    while let Some(parent) = family.get(next).map(|pid| pid.as_raw_nonzero().get()) {
        family.extend(parents.iter().filter(|(_, its)| *its == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    family
}

fn parent_of(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the state and the parent follow it.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The end of a file, for error messages.
pub fn last_lines(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(12)..).unwrap_or_default().join("\n")
}

/// A line of progress on stderr.
pub fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_command_that_overstays_is_killed_with_its_children() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let pid_file = scratch.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", pid_file.display());
        let error =
            run(&mut shell(&script), scratch.path(), Duration::from_millis(500)).err().expect("an error");
        assert!(error.to_string().contains("took longer"), "{error}");
        let grandchild = std::fs::read_to_string(&pid_file).expect("pid of the sleep");
        // It dies at once, but perhaps on another core, and its new parent reaps it in its own time.
        let stat =
            || std::fs::read_to_string(format!("/proc/{}/stat", grandchild.trim())).unwrap_or_default();
        let dead = |stat: String| stat.is_empty() || stat.contains(") Z ") || stat.contains(") X ");
        let deadline = Instant::now() + Duration::from_secs(60);
        while !dead(stat()) {
            assert!(Instant::now() < deadline, "the grandchild lives on: {}", stat());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_failing_command_is_an_error_that_quotes_its_stderr() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let error = run(&mut shell("echo why >&2; exit 3"), scratch.path(), Duration::from_secs(60));
        let text = error.err().expect("an error").to_string();
        assert!(text.contains("exit status: 3") && text.contains("why"), "{text}");
    }
}
