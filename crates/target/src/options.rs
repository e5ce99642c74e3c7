//! How a snapshot is to be taken.

use std::path::PathBuf;
use std::time::Duration;

/// How memory is to be frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// By a copy, unless that is impossible or would cost the process more than standing still; the notes say so.
    #[default]
    Auto,
    /// By a copy that the process makes of itself; it runs on. An error if that is impossible.
    Fork,
    /// By letting it stand still as long as the snapshot lives.
    Stop,
}

/// Options of [`snapshot`](crate::snapshot()).
#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// Where proc(5) is mounted.
    pub proc_root: PathBuf,
    /// Where control groups are mounted.
    pub cgroup_root: PathBuf,
    /// How memory is to be frozen.
    pub mode: Mode,
    /// How long the process may stand still by prediction; None for any time. Not looked at with [`Mode::Stop`].
    pub max_pause: Option<Duration>,
}

impl Default for SnapshotOptions {
    fn default() -> SnapshotOptions {
        SnapshotOptions {
            proc_root: "/proc".into(),
            cgroup_root: "/sys/fs/cgroup".into(),
            mode: Mode::Auto,
            max_pause: Some(Duration::from_millis(100)),
        }
    }
}
