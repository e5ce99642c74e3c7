//! Memory control groups.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A memory cgroup of a test's own, removed at the end.
pub struct Cgroup {
    path: PathBuf,
    unified: bool,
}

impl Cgroup {
    /// One with a limit. None where that is impossible.
    pub fn new(bytes: u64) -> Option<Cgroup> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("leakscope-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = Path::new(if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" });
        if unified {
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
        }
        let path = root.join(name);
        std::fs::create_dir(&path).ok()?;
        let group = Cgroup { path, unified };
        group.limit(bytes)?;
        let (swap, none) = if unified { ("memory.swap.max", "0") } else { ("memory.swappiness", "0") };
        let _ = std::fs::write(group.path.join(swap), none);
        Some(group)
    }

    /// Sets the limit.
    pub fn limit(&self, bytes: u64) -> Option<()> {
        let file = if self.unified { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::write(self.path.join(file), bytes.to_string()).ok()
    }

    /// Bytes in use.
    pub fn usage(&self) -> u64 {
        let file = if self.unified { "memory.current" } else { "memory.usage_in_bytes" };
        std::fs::read_to_string(self.path.join(file)).unwrap().trim().parse().unwrap()
    }

    /// The file that processes are entered into.
    pub fn processes(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..500 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("could not remove {}", self.path.display());
    }
}
