//! Runs a command to its end, with its input and output, and never for ever.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a slow, busy machine; reached only by what hangs.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How a command ended, and what it wrote.
#[derive(Debug)]
pub struct Outcome {
    /// Its status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// Its exit status as a shell gives it: 128 + N for signal N.
    pub fn code(&self) -> i32 {
        shell_status(self.status)
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// An exit status as a shell gives it.
pub fn shell_status(status: ExitStatus) -> i32 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => panic!("neither exited nor killed: {status:?}"),
    }
}

/// Runs `command` with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Outcome {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    std::thread::scope(|scope| {
        // A command that does not read its input to the end breaks the pipe, rightly.
        scope.spawn(move || drop(stdin.write_all(input)));
        let stdout = scope.spawn(|| read_all(stdout));
        let stderr = scope.spawn(|| read_all(stderr));
        let status = wait(&mut child, &format!("{command:?}"));
        Outcome { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
    })
}

/// Runs `command` with nothing on its standard input.
pub fn run(command: &mut Command) -> Outcome {
    run_with_input(command, b"")
}

fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Waits for `child`; kills it with its descendants and fails the test if that takes beyond all patience.
pub fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > PATIENCE {
            let tree = tree_of(child.id());
            for pid in &tree {
                kill(*pid, libc::SIGKILL);
            }
            panic!("{what} hung (processes {tree:?})");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Polls until `condition` gives a value; a test fails that waits beyond all patience.
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal. A process that is gone already does not matter.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: kill touches no memory of ours; the pid is of a process that a test started.
    unsafe { libc::kill(pid as i32, signal) };
}

/// `pid` and all its living descendants.
pub fn tree_of(pid: u32) -> Vec<u32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        tree.extend(children_of(parent));
        next += 1;
    }
    tree
}

/// The children of a process, by every one of its threads.
pub fn children_of(pid: u32) -> Vec<u32> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// The process `ancestor` and its descendants that run `program`.
pub fn running(ancestor: u32, program: &Path) -> Vec<u32> {
    let runs = |pid: &u32| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    tree_of(ancestor).into_iter().filter(runs).collect()
}

/// The threads of a process with their state letters.
pub fn threads(pid: u32) -> Vec<(u32, char)> {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let tids = tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok());
    tids.filter_map(|tid: u32| Some((tid, state(tid)?))).collect()
}

/// The state letter of a process or thread.
pub fn state(tid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{tid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Who traces a process; 0 for nobody.
pub fn tracer_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}
