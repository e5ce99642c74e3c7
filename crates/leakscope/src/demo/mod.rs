//! `leakscope demo`: a small HTTP service that leaks in three ways, driven for a few seconds, and the report on it.
//!
//! It doubles as a first tour, so it prints each command before it runs it. The service ([`service`]) is this same
//! binary, started as any program would be; the requests ([`client`]) come from the demo's own process.

mod client;
mod service;

pub use service::{ServiceArgs, serve};

use crate::cli::{NO_COLOR, STATE_HOME, Section};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What help and man page end with.
pub const SECTIONS: &[Section] = &[
    Section {
        heading: "Exit status",
        items: &[
            ("0", "The service ran, and its leaks were reported."),
            ("2", "Wrong usage."),
            ("125", "Something failed; standard error says what, and what to do."),
        ],
    },
    Section {
        heading: "Environment",
        items: &[
            ("TMPDIR", "Where the directory with the demo's files is made. Unset: /tmp."),
            STATE_HOME,
            NO_COLOR,
        ],
    },
];

/// How often each request is made; with the pause between them, some three seconds.
const ROUNDS: u32 = 600;
/// One report is asked for in so many rounds.
const ROUNDS_PER_REPORT: u32 = 50;
const PAUSE: Duration = Duration::from_millis(4);

/// The service must open its port, and end when told to, within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the demo and leaves its heap file and flame graph in a fresh directory for the user to go on with.
///
/// # Errors
/// If the directory cannot be written, or the service or a command of leakscope fails.
pub fn demo() -> Result<ExitCode> {
    let program = std::env::current_exe().context("cannot tell where leakscope's own program is")?;
    let directory = tempfile::Builder::new()
        .prefix("leakscope-demo-")
        .tempdir()
        .context("cannot create a directory for the demo's files")?
        .keep();
    let heap_file = directory.join("demo.leakscope");
    let port_file = directory.join("port");

    println!("A small web service with three memory leaks, run under leakscope like any other program:\n");
    let mut run = Command::new(&program);
    run.args(["run", "--top", "3", "-o"]).arg(&heap_file);
    run.arg("--").arg(&program).args(["demo-service", "--port-file"]).arg(&port_file);
    print_command(&run);
    let mut service =
        Service { child: run.stdin(Stdio::null()).spawn().context("cannot start leakscope run")? };

    let port = service.wait_for_port(&port_file)?;
    println!(
        "\nIt serves http://127.0.0.1:{port} and now gets {ROUNDS} rounds of requests, about three seconds."
    );
    println!("Then it ends, and leakscope reports what was never freed:\n");
    client::drive(port, ROUNDS, ROUNDS_PER_REPORT, PAUSE)?;
    let status = service.wait_for_end()?;
    if !status.success() {
        bail!("the service under leakscope ended with {status}; its files are in {}", directory.display());
    }

    println!(
        "\nThe heap file would be there had the service been killed, too. As a flame graph, for a browser:\n"
    );
    let mut export = Command::new(&program);
    export
        .arg("report")
        .arg(&heap_file)
        .args(["--format", "flamegraph", "-o"])
        .arg(directory.join("demo.svg"));
    print_command(&export);
    let status = export.status().context("cannot start leakscope report")?;
    if !status.success() {
        bail!("leakscope report --format flamegraph ended with {status}");
    }

    println!("\nTo look further:\n");
    for options in [
        &["--view", "peak"][..],
        &["--view", "temporary"],
        &["--view", "allocated", "--format", "folded"],
        &["--format", "json"],
    ] {
        let mut suggestion = Command::new(&program);
        suggestion.arg("report").arg(&heap_file).args(options);
        print_command(&suggestion);
    }
    println!("\nAll files are in {} (delete it when done).", directory.display());
    Ok(ExitCode::SUCCESS)
}

/// The running `leakscope run`, ended with the demo whatever happens.
struct Service {
    child: Child,
}

impl Service {
    /// Waits until the service has written its port.
    fn wait_for_port(&mut self, port_file: &Path) -> Result<u16> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(port_file) {
                return text
                    .trim()
                    .parse()
                    .with_context(|| format!("no port number in {}", port_file.display()));
            }
            if let Some(status) = self.child.try_wait().context("cannot wait for the service")? {
                bail!("the service ended before it served anything: {status}");
            }
            if Instant::now() > deadline {
                bail!("the service did not open a port within {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn wait_for_end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for the service")? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the service was told to end and still runs after {PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Nothing to do once it has been waited for. `leakscope run` passes SIGTERM on; by SIGKILL the service would be
        // orphaned, so it is what comes last.
        let Ok(None) = self.child.try_wait() else { return };
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: a system call that touches no memory of ours; the pid is that of a child not waited for yet, so
            // it belongs to no other process.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Prints a command as one would type it.
fn print_command(command: &Command) {
    let here = std::env::current_dir().ok();
    let program = shortest(Path::new(command.get_program()), here.as_deref());
    let words = std::iter::once(program.as_os_str()).chain(command.get_args());
    let mut line = String::from("$");
    for word in words {
        // The service is leakscope's own program, too.
        let word = if word == command.get_program() { program.as_os_str() } else { word };
        line.push(' ');
        line.push_str(&quoted(word));
    }
    println!("{line}");
}

/// The path as seen from `here`, if it lies below.
fn shortest(path: &Path, here: Option<&Path>) -> PathBuf {
    match here.and_then(|here| path.strip_prefix(here).ok()) {
        // Without a slash the shell would look for it in PATH.
        Some(below) if below.components().count() == 1 => Path::new(".").join(below),
        Some(below) => below.to_path_buf(),
        None => path.to_path_buf(),
    }
}

/// A word quoted for the shell, if it must be.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_printed_so_that_a_shell_takes_them_as_they_are() {
        assert_eq!(quoted(OsStr::new("/tmp/a-b/c.svg")), "/tmp/a-b/c.svg");
        assert_eq!(quoted(OsStr::new("/tmp/my files/it's")), r"'/tmp/my files/it'\''s'");
        assert_eq!(quoted(OsStr::new("")), "''");
    }

    #[test]
    fn a_program_below_the_current_directory_is_named_from_there() {
        let here = Some(Path::new("/home/me/leakscope"));
        let shown = |path: &str| shortest(Path::new(path), here);
        assert_eq!(
            shown("/home/me/leakscope/target/release/leakscope"),
            Path::new("target/release/leakscope")
        );
        assert_eq!(shown("/home/me/leakscope/leakscope"), Path::new("./leakscope"));
        assert_eq!(shown("/usr/bin/leakscope"), Path::new("/usr/bin/leakscope"));
    }
}
