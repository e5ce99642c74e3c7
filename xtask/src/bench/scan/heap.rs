//! A running `bench/workloads/heap.c`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::child::Background;
use crate::bench::value;

/// A process with blocks, which obeys; it ends with its owner.
pub struct Heap {
    process: Background,
    input: ChildStdin,
    answers: Receiver<String>,
    ready: String,
}

/// How long it may take to build a heap or to answer. A process that stands still for longer was not let go.
const PATIENCE: Duration = Duration::from_secs(120);

impl Heap {
    /// Starts one and waits until its heap is there.
    ///
    /// # Errors
    /// If it ends, or does not get ready.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Background::start(&mut command)?;
        let input = process.child().stdin.take().context("no pipe to the workload")?;
        let output = process.child().stdout.take().context("no pipe from the workload")?;
        let (sender, answers) = mpsc::channel();
        // Ends with the process.
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.map_while(|line| sender.send(line).ok()).for_each(drop);
        });
        let mut heap = Self { process, input, answers, ready: String::new() };
        heap.ready = heap.answer().with_context(|| format!("heap {}", arguments.join(" ")))?;
        Ok(heap)
    }

    pub fn pid(&self) -> u32 {
        self.value("pid").map_or(0, |pid| pid as u32)
    }

    /// What it said of itself when it was ready.
    pub fn value(&self, name: &str) -> Result<f64> {
        value(&self.ready, name)
    }

    fn answer(&mut self) -> Result<String> {
        match self.answers.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(_) => match self.process.ended()? {
                Some(status) => anyhow::bail!("the workload ended: {status}"),
                None => anyhow::bail!("the workload has not answered for {PATIENCE:?}"),
            },
        }
    }

    fn command(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context("the workload does not listen")?;
        self.answer().with_context(|| format!("command {line}"))
    }

    /// Lets it write to each of its pages; in milliseconds.
    pub fn touch(&mut self) -> Result<f64> {
        Ok(value(&self.command("touch")?, "touch_ns")? / 1e6)
    }

    /// The same while a child that it has forked for that lives.
    pub fn touch_while_copied(&mut self) -> Result<f64> {
        Ok(value(&self.command("copied")?, "touch_ns")? / 1e6)
    }

    /// Lets it fork `count` times a child that does nothing for a while, each time after it has written to its pages;
    /// the median time in milliseconds.
    pub fn fork(&mut self, count: u32, child: Duration) -> Result<f64> {
        let answer = self.command(&format!("fork {count} {}", child.as_millis()))?;
        Ok(value(&answer, "fork_ns")? / 1e6)
    }
}
