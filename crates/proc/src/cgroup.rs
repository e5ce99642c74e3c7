//! Memory limits of control groups, version 1 and 2 (kernel documentation: admin-guide/cgroup-v1/memory.rst,
//! admin-guide/cgroup-v2.rst).

use crate::stat::number;
use std::path::{Path, PathBuf};

/// Bytes that a process's control group may still take before it meets the tightest limit up the tree. None if
/// there is no limit, or it cannot be read.
pub fn memory_headroom(proc_root: &Path, cgroup_root: &Path, pid: u32) -> Option<u64> {
    let text = std::fs::read(proc_root.join(pid.to_string()).join("cgroup")).ok()?;
    let mut tightest = None;
    for line in text.split(|&byte| byte == b'\n') {
        let mut fields = line.splitn(3, |&byte| byte == b':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = String::from_utf8_lossy(path);
        let path = path.trim_start_matches('/');
        let found = if controllers.is_empty() {
            // A host with both versions mounts version 2 in `unified`.
            [cgroup_root.to_path_buf(), cgroup_root.join("unified")]
                .iter()
                .find_map(|root| headroom(root, path, "memory.max", "memory.current"))
        } else if controllers.split(|&byte| byte == b',').any(|name| name == b"memory") {
            let root = cgroup_root.join("memory");
            headroom(&root, path, "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            None
        };
        tightest = match (tightest, found) {
            (Some(a), Some(b)) => Some(u64::min(a, b)),
            (a, b) => a.or(b),
        };
    }
    tightest
}

/// The least of limit minus usage from `root/path` up to `root`.
fn headroom(root: &Path, path: &str, limit: &str, usage: &str) -> Option<u64> {
    // Version 1 says "no limit" by a huge number.
    const UNLIMITED: u64 = 1 << 62;
    let mut tightest: Option<u64> = None;
    let mut directory: PathBuf = root.join(path);
    loop {
        let limit = value(&directory.join(limit)).filter(|&limit| limit < UNLIMITED);
        if let (Some(limit), Some(usage)) = (limit, value(&directory.join(usage))) {
            let room = limit.saturating_sub(usage);
            tightest = Some(tightest.map_or(room, |least| least.min(room)));
        }
        if directory == root || !directory.pop() || !directory.starts_with(root) {
            return tightest;
        }
    }
}

fn value(path: &Path) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    number(Some(text.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            create_dir_all(path.parent().unwrap()).unwrap();
            write(path, text).unwrap();
        }
        root
    }

    fn headroom_of(files: &[(&str, &str)]) -> Option<u64> {
        let root = tree(files);
        memory_headroom(&root.path().join("proc"), &root.path().join("cgroup"), 7)
    }

    #[test]
    fn the_tightest_ancestor_of_version_2_decides() {
        let files = [
            ("proc/7/cgroup", "0::/a/b\n"),
            ("cgroup/a/b/memory.max", "max\n"),
            ("cgroup/a/b/memory.current", "100\n"),
            ("cgroup/a/memory.max", "1000\n"),
            ("cgroup/a/memory.current", "900\n"),
        ];
        assert_eq!(headroom_of(&files), Some(100));
    }

    #[test]
    fn version_1_says_no_limit_by_a_huge_number() {
        let files = [
            ("proc/7/cgroup", "5:cpu:/x\n4:memory:/a\n0::/\n"),
            ("cgroup/memory/a/memory.limit_in_bytes", "4096\n"),
            ("cgroup/memory/a/memory.usage_in_bytes", "5000\n"),
            ("cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
            ("cgroup/memory/memory.usage_in_bytes", "5000\n"),
        ];
        assert_eq!(headroom_of(&files), Some(0));
    }

    #[test]
    fn without_a_limit_there_is_no_headroom_to_tell() {
        assert_eq!(headroom_of(&[("proc/7/cgroup", "0::/\n")]), None);
        assert_eq!(headroom_of(&[]), None);
    }
}
