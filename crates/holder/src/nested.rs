//! Which process a window is of, as `/proc` shows it here. A process writes down the pid that it has for itself, which in
//! a pid namespace of its own is another one.

use leakscope_heapfile::layout::Window;
use leakscope_proc::{Stat, stat, status};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

/// Between two looks at all processes lies so many times what one takes, so that many short-lived children do not make
/// it a burden.
const REST: u32 = 10;

/// Where a window's process is.
pub(crate) enum Place {
    /// It runs, or waits to be reaped, under this pid.
    Here(u32, Stat),
    /// It is no more.
    Gone,
    /// Not known yet; ask again.
    Unknown,
}

/// The processes in nested pid namespaces.
#[derive(Default)]
pub(crate) struct Nested {
    /// Pid here by innermost pid and start time.
    pids: HashMap<(u32, u64), u32>,
    /// The last look at all processes, how long it took, and the latest window that there was before it.
    looked: Option<(Instant, Duration)>,
    latest: u32,
}

impl Nested {
    /// Finds the process of a window. `latest` is the highest serial number of any window; with `now`, the answer is
    /// never [`Place::Unknown`].
    pub(crate) fn find(&mut self, window: &Window, latest: u32, now: bool) -> Place {
        let (own, known) = (window.pid.load(Acquire), window.host_pid.load(Acquire));
        let start = window.start_ticks.load(Acquire);
        let is_it = |pid: u32| {
            let stat = stat(Path::new("/proc"), pid).ok().filter(|stat| stat.start_ticks == start)?;
            Some(Place::Here(pid, stat))
        };
        if let Some(here) = is_it(own) {
            return here;
        }
        if known != 0 {
            return is_it(known).unwrap_or(Place::Gone);
        }
        // While it ran, it would have been found in the last look.
        if window.serial.load(Acquire) > self.latest {
            let rests = self.looked.is_some_and(|(at, took)| at.elapsed() < took * REST);
            if rests && !now {
                return Place::Unknown;
            }
            self.look(latest);
        }
        self.pids.get(&(own, start)).and_then(|&pid| is_it(pid)).unwrap_or(Place::Gone)
    }

    fn look(&mut self, latest: u32) {
        let began = Instant::now();
        self.latest = latest;
        self.pids.clear();
        let proc = Path::new("/proc");
        let entries = std::fs::read_dir(proc).into_iter().flatten().filter_map(Result::ok);
        for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
            let Ok(status) = status(proc, pid) else { continue };
            if let [_, .., inner] = *status.namespace_pids
                && let Ok(stat) = stat(proc, pid)
            {
                self.pids.insert((inner, stat.start_ticks), pid);
            }
        }
        self.looked = Some((Instant::now(), began.elapsed()));
    }
}
