//! Taking a snapshot.
//!
//! Tracing is bound to a thread of the tracer's: its tracees obey that thread alone, and are let go when it ends. So
//! each snapshot has a thread of its own, which lives as long as the snapshot; thus the snapshot may move between
//! threads. Reading memory does not need the tracer.

use crate::checkpoint::{Step, reached};
use crate::fork::{self, Copy};
use crate::guardian::Guardian;
use crate::plan::{self, Plan};
use crate::reap::{self, Leftover};
use crate::seize::{Group, Stopped};
use crate::{Error, LiveMemory, Memory, Snapshot, SnapshotOptions, Source, Thread, arch};
use leakscope_proc::{Mapping, maps};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long threads may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a process is tried that the kernel does not allow to be traced, and the wait in between.
const ATTEMPTS: u32 = 4;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(5);

/// Takes a snapshot of process `pid`.
///
/// # Errors
/// Why it cannot be taken, and what to do about it. The process runs on unharmed.
pub fn snapshot(pid: u32, options: &SnapshotOptions) -> Result<Snapshot, Error> {
    let mut attempt = 1;
    loop {
        let options = options.clone();
        let taken = held(pid, move |hold| {
            let plan = plan::make(pid, &options)?;
            take(plan, &options, hold)
        });
        match taken {
            // Another tracer that has let it go meanwhile, such as another leakscope, looks like that too.
            Err(Error::NotPermitted { .. }) if attempt < ATTEMPTS => std::thread::sleep(BETWEEN_ATTEMPTS),
            taken => return taken,
        }
        attempt += 1;
    }
}

/// What keeps a snapshot's process as it is: the thread that traces it. Dropping it gives that up, and waits until
/// all is cleaned up.
#[derive(Debug)]
pub struct Hold {
    release: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The tracing thread's side of a hold.
pub struct Holder {
    results: Sender<Result<Snapshot, Error>>,
    pub released: Receiver<()>,
}

impl Holder {
    /// Hands the snapshot over and waits until it is dropped.
    pub fn hand_over(self, snapshot: Snapshot) {
        if self.results.send(Ok(snapshot)).is_ok() {
            let _ = self.released.recv();
        }
    }
}

/// Runs `work` on a thread of its own, which either fails or hands over a snapshot.
fn held(
    pid: u32,
    work: impl FnOnce(Holder) -> Result<(), Error> + Send + 'static,
) -> Result<Snapshot, Error> {
    let (hold, result) = start(pid, work)?;
    match result.recv() {
        Ok(snapshot) => snapshot.map(|snapshot| keep(snapshot, hold)),
        Err(_) => Err(Error::Vanished { pid, during: "it was being traced" }),
    }
}

/// Starts a thread that traces.
pub fn start(
    pid: u32,
    work: impl FnOnce(Holder) -> Result<(), Error> + Send + 'static,
) -> Result<(Hold, Receiver<Result<Snapshot, Error>>), Error> {
    let (results, result) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let failures = results.clone();
    let body = move || {
        // Waits of some µs must not become ones of 50 µs more.
        // SAFETY: changes a number of the calling thread only.
        unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
        if let Err(error) = work(Holder { results, released }) {
            let _ = failures.send(Err(error));
        }
    };
    let thread = std::thread::Builder::new().name("leakscope-trace".into()).spawn(body);
    let thread = thread.map_err(|source| Error::System { pid, tried: "start a thread to trace", source })?;
    Ok((Hold { release: Some(release), thread: Some(thread) }, result))
}

/// Binds a snapshot to what holds its process.
pub fn keep(mut snapshot: Snapshot, hold: Hold) -> Snapshot {
    let memory = std::mem::replace(&mut snapshot.memory, Box::new(crate::Pieces::default()));
    snapshot.memory = Box::new(Held { memory, _hold: hold });
    snapshot
}

/// Memory that is there as long as the hold.
struct Held {
    memory: Box<dyn Memory + Send>,
    _hold: Hold,
}

impl Memory for Held {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.memory.read(address, buffer)
    }
}

fn take(mut plan: Plan, options: &SnapshotOptions, holder: Holder) -> Result<(), Error> {
    let (root, pid) = (&options.proc_root, plan.pid);
    let mut guardian = None;
    if plan.site.is_some() {
        let left = reap::leftovers(root, pid)
            .into_iter()
            .filter(|&leftover| !reap::reap(root, pid, leftover))
            .count();
        if left > 0 {
            plan::give_copy_up(&mut plan, options, "an earlier copy of it has not been reaped yet")?;
        } else {
            guardian = Guardian::start(root, pid);
        }
    }
    let group = Group::stop(root, pid, STOP_TIMEOUT)?;
    reached(Step::Stopped);
    let threads = group.registers()?;
    let Some(site) = plan.site.take() else { return stopped(plan, options, group, threads, holder) };
    match fork::freeze(&threads, &site, (root, plan.bearer), guardian.as_mut()) {
        Ok(copy) => {
            let pause = group.release();
            reached(Step::Released);
            let copy_is = Leftover { pid: copy.pid, inner: copy.inner };
            let result = forked(plan, options, copy, threads, pause, holder);
            if fork::give_up(root, pid, copy_is)
                && let Some(guardian) = guardian.as_mut()
            {
                guardian.all_done();
            }
            result
        }
        Err(reason) => {
            plan::give_copy_up(&mut plan, options, &reason)?;
            stopped(plan, options, group, threads, holder)
        }
    }
}

fn forked(
    plan: Plan,
    options: &SnapshotOptions,
    copy: Copy,
    threads: Vec<Stopped>,
    pause: Duration,
    holder: Holder,
) -> Result<(), Error> {
    let (root, pid) = (&options.proc_root, plan.pid);
    fork::bind(root, copy.pid).map_err(|reason| Error::CannotFork { pid, reason })?;
    // If memory runs out, the copy is the one to be given up.
    let _ = std::fs::write(root.join(copy.pid.to_string()).join("oom_score_adj"), "1000");
    let mappings = match copy.mappings {
        Some(mappings) => mappings,
        None => maps(root, copy.pid)?,
    };
    let memory = LiveMemory::of(root, copy.pid).with(copy.instead);
    let mut snapshot = describe(plan, root, mappings, threads, Box::new(memory), Source::Fork);
    snapshot.pause = Some(pause);
    holder.hand_over(snapshot);
    Ok(())
}

fn stopped(
    plan: Plan,
    options: &SnapshotOptions,
    group: Group,
    threads: Vec<Stopped>,
    holder: Holder,
) -> Result<(), Error> {
    let root = &options.proc_root;
    let mappings = maps(root, plan.bearer)?;
    let memory = Box::new(LiveMemory::of(root, plan.bearer));
    let snapshot = describe(plan, root, mappings, threads, memory, Source::Stopped);
    holder.hand_over(snapshot);
    drop(group);
    Ok(())
}

/// A snapshot of what was found.
pub fn describe(
    plan: Plan,
    root: &Path,
    mappings: Vec<Mapping>,
    threads: Vec<Stopped>,
    memory: Box<dyn Memory + Send>,
    source: Source,
) -> Snapshot {
    let (pid, bearer) = (plan.pid, plan.bearer);
    let threads = threads.iter().map(|thread| Thread {
        tid: thread.tid,
        name: leakscope_proc::comm(root, pid, thread.tid).unwrap_or_default(),
        registers: arch::from_user(&thread.registers, &thread.extended, arch::Xsave::Here),
    });
    Snapshot {
        pid,
        start_ticks: leakscope_proc::stat(root, pid).map_or(0, |stat| stat.start_ticks),
        command: leakscope_proc::cmdline(root, bearer).unwrap_or_default(),
        executable: leakscope_proc::executable(root, bearer).unwrap_or_default(),
        mappings,
        threads: threads.collect(),
        auxv: leakscope_proc::auxv(root, bearer).unwrap_or_default(),
        memory,
        source,
        pause: None,
        root: root.join(bearer.to_string()).join("root"),
        notes: plan.notes,
    }
}
