//! Target programs in C, compiled once per run of the tests.
#![allow(dead_code, reason = "not each test uses all of it")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

/// Compiles `tests/targets/<name>.c`.
pub fn compile(name: &str) -> PathBuf {
    static BUILT: LazyLock<Mutex<HashMap<String, PathBuf>>> = LazyLock::new(Default::default);
    let mut built = BUILT.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(path) = built.get(name) {
        return path.clone();
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/targets").join(format!("{name}.c"));
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let result = Command::new("gcc")
        .args(["-O1", "-g", "-pthread", "-Wall", "-Wextra", "-D_GNU_SOURCE", "-march=native", "-o"])
        .args([&output, &source])
        .output()
        .expect("gcc is needed");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    built.insert(name.to_owned(), output.clone());
    output
}

/// A running target program, killed when dropped.
pub struct Target {
    pub child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Target {
    /// Starts a target program and waits for its first line, `ready`.
    pub fn start(name: &str, arguments: &[&str]) -> Target {
        Target::start_command(Command::new(compile(name)).args(arguments))
    }

    pub fn start_command(command: &mut Command) -> Target {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut target = Target { child, input, output };
        assert_eq!(target.line(), "ready");
        target
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it writes.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("its output can be read");
        line.trim_end().to_owned()
    }

    /// Writes a line to it and gives its answer.
    pub fn ask(&mut self, line: &str) -> String {
        let input = self.input.as_mut().expect("still open");
        writeln!(input, "{line}").expect("it reads its input");
        self.line()
    }

    /// Closes its input, on which it ends, and gives the rest of its output and its status.
    pub fn finish(mut self) -> (String, std::process::ExitStatus) {
        self.input = None;
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).expect("its output can be read");
        (rest, self.child.wait().expect("it ends"))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The children of a process with their states, by reading all of `/proc`.
pub fn children(pid: u32) -> Vec<(u32, char)> {
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|child| {
        let stat = leakscope_proc::stat(Path::new("/proc"), child).ok()?;
        (stat.parent == pid).then_some((child, stat.state.into()))
    })
    .collect()
}

/// Waits until `condition` holds; a test that waits in vain fails.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The state letter of a process.
pub fn state(pid: u32) -> char {
    leakscope_proc::stat(Path::new("/proc"), pid).map_or('?', |stat| stat.state.into())
}
