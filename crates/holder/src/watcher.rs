//! Watches the processes of a run: their timeline, their end, their heap files.

use crate::exits::Claims;
use crate::nested::{Nested, Place};
use crate::places::Places;
use crate::seal::{SealedFile, seal};
use crate::{Ended, Options, Outcome};
use leakscope_heapfile::layout::{STATE_LIVE, Shard, TIMELINE, UNIT, Window};
use leakscope_heapfile::{Arena, End};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, atomic::AtomicU8};
use std::thread::JoinHandle;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(40);
/// Threads whose names are looked up in one round.
const NAMES_PER_ROUND: usize = 32;

pub(crate) struct Watcher {
    stop: mpsc::Sender<Ended>,
    thread: JoinHandle<Outcome>,
}

impl Watcher {
    pub(crate) fn start(
        arena: Arc<Arena>,
        root: u32,
        places: &Places,
        options: &Options,
        claims: Arc<Claims>,
    ) -> Watcher {
        let (stop, stopped) = mpsc::channel();
        let limits = (options.max_children, options.max_children_bytes);
        let work = Work { claims, ..Work::new(arena, root, places.file.clone(), limits) };
        let thread = std::thread::spawn(move || {
            if let Some(directory) = work.arena.path().parent() {
                crate::recover::recover(directory, limits);
            }
            work.run(&stopped)
        });
        Watcher { stop, thread }
    }

    /// Tells how the command ended, and waits until all is written.
    pub(crate) fn finish(self, ended: Ended) -> Outcome {
        let _ = self.stop.send(ended);
        self.thread.join().unwrap_or_else(|_| Outcome {
            ended,
            file: None,
            children: Vec::new(),
            dropped: 0,
            remaining: Vec::new(),
            notes: vec!["leakscope's watcher failed; the heap file was left unsealed".into()],
        })
    }
}

/// The watcher's own state.
pub(crate) struct Work {
    arena: Arc<Arena>,
    root: u32,
    file: PathBuf,
    /// Most children's heap files, and their bytes.
    limits: (usize, u64),
    /// Rounds between two points of a window's timeline, and rounds since the last.
    step: HashMap<u64, (u32, u32)>,
    children: Vec<SealedFile>,
    dropped: usize,
    file_written: bool,
    notes: Vec<String>,
    /// Windows that are being examined are left alone.
    claims: Arc<Claims>,
    nested: Nested,
}

impl Work {
    /// `root` is the command's pid; 0 if the command itself has been dealt with.
    pub(crate) fn new(arena: Arc<Arena>, root: u32, file: PathBuf, limits: (usize, u64)) -> Work {
        Work {
            arena,
            root,
            file,
            limits,
            step: HashMap::new(),
            children: Vec::new(),
            dropped: 0,
            file_written: false,
            notes: Vec::new(),
            claims: Arc::default(),
            nested: Nested::default(),
        }
    }

    fn run(mut self, stopped: &mpsc::Receiver<Ended>) -> Outcome {
        loop {
            match stopped.recv_timeout(INTERVAL) {
                Ok(ended) => return self.conclude(ended),
                Err(RecvTimeoutError::Timeout) => {
                    self.round();
                }
                Err(RecvTimeoutError::Disconnected) => return self.conclude(Ended::Exited(0)),
            }
        }
    }

    /// Looks at every process once. Returns how many still run.
    pub(crate) fn round(&mut self) -> usize {
        let mut running = 0;
        let arena = self.arena.clone();
        let newest = newest_programs(&arena);
        for offset in arena.windows() {
            let Some(window) = arena.window(offset) else { continue };
            if window.end.load(Acquire) != 0 {
                continue;
            }
            match self.life(window, &newest, false) {
                // The command itself is sealed when its status is known.
                Life::Ended(end) if !self.is_root(window, &newest) => {
                    let claims = self.claims.clone();
                    if let Some(_claim) = claims.claim(offset) {
                        self.settle(offset, end);
                    }
                }
                Life::Running(pid) => {
                    running += 1;
                    if let Some(pid) = pid {
                        self.note_time(offset, pid);
                    }
                }
                Life::Ended(_) => {}
            }
        }
        running
    }

    fn is_root(&self, window: &Window, newest: &Newest) -> bool {
        window.pid.load(Acquire) == self.root && !was_replaced(window, newest)
    }

    /// Whether a window's process runs; with `now`, it is found out whatever that takes.
    fn life(&mut self, window: &Window, newest: &Newest, now: bool) -> Life {
        if window.state.load(Acquire) < STATE_LIVE {
            return Life::Running(None);
        }
        if was_replaced(window, newest) {
            return Life::Ended(End::Replaced);
        }
        let latest = newest.values().copied().max().unwrap_or(0);
        match self.nested.find(window, latest, now) {
            Place::Here(_, stat) if stat.has_ended() => Life::Ended(zombie_end(stat.exit_code)),
            Place::Here(pid, _) => Life::Running(Some(pid)),
            Place::Unknown => Life::Running(None),
            Place::Gone => Life::Ended(End::Unknown),
        }
    }

    /// Adds a point to a window's timeline. When it is full, every second point goes and the step doubles.
    fn note_time(&mut self, offset: u64, pid: u32) {
        let arena = self.arena.clone();
        let Some(window) = arena.window(offset) else { return };
        let (step, since) = self.step.entry(offset).or_insert((1, 0));
        *since += 1;
        if *since < *step {
            return;
        }
        *since = 0;
        let mut used = window.timeline_len.load(Relaxed) as usize;
        if used >= TIMELINE {
            halve(window);
            used = window.timeline_len.load(Relaxed) as usize;
            *step = step.saturating_mul(2);
        }
        let (inuse, allocated) = totals(&arena, window);
        let rss = leakscope_proc::resident_bytes(Path::new("/proc"), pid).unwrap_or(0);
        if let Some(point) = window.timeline.get(used) {
            point.tick.store(arena.clock_tick(), Relaxed);
            point.inuse.store(inuse, Relaxed);
            point.rss.store(rss, Relaxed);
            point.allocated.store(allocated, Relaxed);
            window.timeline_len.store(used as u32 + 1, Release);
        }
        window.host_pid.store(pid, Release);
        note_thread_names(window);
    }

    /// Seals an ended child's file and takes its space back.
    fn settle(&mut self, offset: u64, end: End) {
        let Ok(mut snapshot) = self.arena.snapshot(offset) else { return };
        snapshot.process.end = end;
        let process = &snapshot.process;
        let path = self.child_path(if process.host_pid != 0 { process.host_pid } else { process.pid });
        match seal(&snapshot, &path) {
            Ok(file) => self.keep(file),
            Err(error) => {
                self.dropped += 1;
                self.note(format!("cannot write {}: {error}", path.display()));
            }
        }
        self.step.remove(&offset);
        if let Err(error) = self.arena.release(offset) {
            self.note(format!("space in the heap file could not be reused: {error}"));
        }
    }

    fn note(&mut self, note: String) {
        if self.notes.len() < 8 && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// `FILE.<pid>`, and `FILE.<pid>.2` and so on for the programs that one process executed in turn.
    fn child_path(&self, pid: u32) -> PathBuf {
        let base = format!("{}.{pid}", self.file.display());
        let taken = |path: &Path| path.symlink_metadata().is_ok();
        let first = PathBuf::from(&base);
        if !taken(&first) {
            return first;
        }
        (2..100_000)
            .map(|number| PathBuf::from(format!("{base}.{number}")))
            .find(|path| !taken(path))
            .unwrap_or(first)
    }

    /// Keeps a child's file, within the limits: children with nothing unfreed go first, then the smallest.
    fn keep(&mut self, file: SealedFile) {
        self.children.push(file);
        loop {
            let size = self.children.iter().fold(0u64, |sum, file| sum.saturating_add(file.size));
            if self.children.len() <= self.limits.0 && size <= self.limits.1 {
                return;
            }
            let least = self.children.iter().enumerate().min_by_key(|(_, file)| file.unfreed);
            let Some(index) = least.map(|(index, _)| index) else { return };
            let file = self.children.remove(index);
            let _ = std::fs::remove_file(&file.path);
            self.dropped += 1;
        }
    }

    /// The command has ended: writes what is left.
    fn conclude(mut self, ended: Ended) -> Outcome {
        let arena = self.arena.clone();
        let newest = newest_programs(&arena);
        let mut remaining = crate::hold::remaining_children();
        let mut failed = false;
        let mut windows = arena.windows();
        windows.sort_by_key(|&offset| arena.window(offset).map_or(0, |window| window.serial.load(Acquire)));
        for offset in windows {
            let Some(window) = arena.window(offset) else { continue };
            if self.is_root(window, &newest) {
                failed |= !self.settle_root(offset, ended);
                continue;
            }
            match self.life(window, &newest, true) {
                Life::Ended(end) => self.settle(offset, end),
                Life::Running(pid) => remaining.push(pid.unwrap_or(window.pid.load(Acquire))),
            }
        }
        remaining.sort_unstable();
        remaining.dedup();
        let refused = arena.superblock().windows_refused.load(Relaxed);
        if refused > 0 {
            self.note(format!("{refused} processes could not be traced: no memory for their heap files"));
        }
        if remaining.is_empty() && !failed {
            let _ = std::fs::remove_file(arena.path());
            if !self.file_written && self.file.is_symlink() {
                let _ = std::fs::remove_file(&self.file);
            }
        } else if !remaining.is_empty() {
            self.leave_behind(&remaining);
        }
        Outcome {
            ended,
            file: self.file_written.then(|| self.file.clone()),
            children: self.children,
            dropped: self.dropped,
            remaining,
            notes: self.notes,
        }
    }

    /// Processes outlive the command: a second holder stays with them.
    fn leave_behind(&mut self, pids: &[u32]) {
        let arena = self.arena.path().to_path_buf();
        let one = pids.len() == 1;
        let what = format!(
            "{} of the command's descendants still {}",
            if one { "one".into() } else { pids.len().to_string() },
            if one { "runs and stays traced" } else { "run and stay traced" }
        );
        match crate::hold::leave_behind(&arena, &self.file, pids, self.limits) {
            Ok(()) => self.note(format!(
                "{what}: {}.PID is written when a process ends; until then see \
                 leakscope report --pid PID {}",
                self.file.display(),
                arena.display()
            )),
            Err(error) => self
                .note(format!("{what} into {}, but nobody will make files of it: {error}", arena.display())),
        }
    }

    /// The holder was killed. If the processes have ended since, writes what is left and removes the arena.
    pub(crate) fn recover(mut self) {
        let arena = self.arena.clone();
        let newest = newest_programs(&arena);
        let windows: Vec<_> =
            arena.windows().into_iter().filter_map(|offset| Some((offset, arena.window(offset)?))).collect();
        if windows.iter().any(|(_, window)| matches!(self.life(window, &newest, true), Life::Running(_))) {
            return;
        }
        for (offset, window) in windows {
            if self.is_root(window, &newest) {
                let Ok(mut snapshot) = arena.snapshot(offset) else { return };
                snapshot.process.end = End::Unknown;
                snapshot.process.host_pid = self.root;
                if seal(&snapshot, &self.file).is_err() {
                    return;
                }
            } else if let Life::Ended(end) = self.life(window, &newest, true) {
                self.settle(offset, end);
            }
        }
        let _ = std::fs::remove_file(arena.path());
        if self.file.is_symlink() {
            let _ = std::fs::remove_file(&self.file);
        }
    }

    /// All processes have ended, the command itself before: writes what is left and removes the arena.
    pub(crate) fn finish(mut self) -> Vec<SealedFile> {
        let arena = self.arena.clone();
        let newest = newest_programs(&arena);
        for offset in arena.windows() {
            if let Some(window) = arena.window(offset)
                && window.end.load(Acquire) == 0
                && let Life::Ended(end) = self.life(window, &newest, true)
            {
                self.settle(offset, end);
            }
        }
        let _ = std::fs::remove_file(arena.path());
        if self.file.is_symlink() {
            let _ = std::fs::remove_file(&self.file);
        }
        self.children
    }

    /// Seals the command's own file. On failure the arena stays.
    fn settle_root(&mut self, offset: u64, ended: Ended) -> bool {
        self.note_time(offset, self.root);
        let Ok(mut snapshot) = self.arena.snapshot(offset) else { return false };
        snapshot.process.end = match ended {
            Ended::Exited(status) => End::Exited(status as u32),
            Ended::Signaled(signal) => End::Signaled(signal as u32),
        };
        snapshot.process.host_pid = self.root;
        if let Some(window) = self.arena.window(offset) {
            let (kind, status) = match ended {
                Ended::Exited(status) => (1, status),
                Ended::Signaled(signal) => (2, signal),
            };
            window.end_status.store(status as u32, Relaxed);
            window.end.store(kind, Release);
        }
        match seal(&snapshot, &self.file) {
            Ok(_) => {
                self.file_written = true;
                true
            }
            Err(error) => {
                self.note(format!(
                    "cannot write {}: {error}; the heap file stays in memory at {}",
                    self.file.display(),
                    self.arena.path().display()
                ));
                // The link still leads there.
                self.file_written = self.file.is_symlink();
                false
            }
        }
    }
}

/// The newest program of each process (pid and start time), by serial number.
type Newest = HashMap<(u32, u64), u32>;

fn identity(window: &Window) -> (u32, u64) {
    (window.pid.load(Acquire), window.start_ticks.load(Acquire))
}

fn newest_programs(arena: &Arena) -> Newest {
    let mut newest = Newest::new();
    for window in arena.windows().into_iter().filter_map(|offset| arena.window(offset)) {
        let serial = newest.entry(identity(window)).or_default();
        *serial = window.serial.load(Acquire).max(*serial);
    }
    newest
}

/// Whether the same process has executed another program since.
fn was_replaced(window: &Window, newest: &Newest) -> bool {
    newest.get(&identity(window)).is_some_and(|&serial| serial > window.serial.load(Acquire))
}

enum Life {
    /// Under this pid, if that is known already.
    Running(Option<u32>),
    Ended(End),
}

/// The wait status of a zombie, where it may be read.
fn zombie_end(exit_code: u32) -> End {
    match (exit_code & 0x7f, exit_code >> 8) {
        (0, status) => End::Exited(status & 0xff),
        (signal, _) => End::Signaled(signal),
    }
}

/// Heap bytes in use and ever allocated, by the sums over all threads.
fn totals(arena: &Arena, window: &Window) -> (u64, u64) {
    let count = (window.shard_count.load(Acquire) as usize).min(window.shards.len());
    let mut allocated = 0u64;
    let mut freed = 0u64;
    for units in window.shards.iter().take(count) {
        let offset = u64::from(units.load(Acquire)) * UNIT;
        if offset != 0
            && let Some(shard) = arena.at::<Shard>(offset)
        {
            freed = freed.wrapping_add(shard.freed_bytes.load(Relaxed));
            allocated = allocated.wrapping_add(shard.allocated_bytes.load(Relaxed));
        }
    }
    (allocated.saturating_sub(freed), allocated)
}

fn halve(window: &Window) {
    let mut kept = 0;
    for index in (1..TIMELINE).step_by(2) {
        let (Some(from), Some(first), Some(to)) =
            (window.timeline.get(index), window.timeline.get(index - 1), window.timeline.get(kept))
        else {
            break;
        };
        // Of each pair the higher one stays, so that peaks survive.
        let from = if first.inuse.load(Relaxed) > from.inuse.load(Relaxed) { first } else { from };
        to.tick.store(from.tick.load(Relaxed), Relaxed);
        to.inuse.store(from.inuse.load(Relaxed), Relaxed);
        to.rss.store(from.rss.load(Relaxed), Relaxed);
        to.allocated.store(from.allocated.load(Relaxed), Relaxed);
        kept += 1;
    }
    window.timeline_len.store(kept as u32, Release);
}

/// Writes down the names of threads that are seen for the first time.
fn note_thread_names(window: &Window) {
    let pid = window.pid.load(Relaxed);
    let unnamed = |name: &[AtomicU8]| name.first().is_some_and(|byte| byte.load(Relaxed) == 0);
    let records =
        window.threads.iter().filter(|record| record.tid.load(Acquire) != 0 && unnamed(&record.name));
    for record in records.take(NAMES_PER_ROUND) {
        let path = format!("/proc/{pid}/task/{}/comm", record.tid.load(Acquire));
        if let Ok(name) = std::fs::read(path) {
            let name = name.iter().take_while(|&&byte| byte != b'\n').take(15);
            for (place, &byte) in record.name.iter().zip(name) {
                place.store(byte, Relaxed);
            }
        }
    }
}
