//! The files of a process that still runs: it keeps what it mapped, even if that was deleted or replaced since.

use leakscope_profile::Module;
use std::fs;
use std::path::PathBuf;

/// A process that may still run. Its pid may also be another's by now: callers check build ids.
pub(crate) struct Running {
    /// Its directory in /proc.
    directory: PathBuf,
    /// Start address and path of each of its file mappings, once listed.
    mappings: Option<Vec<(u64, PathBuf)>>,
}

impl Running {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Running { directory, mappings: None }
    }

    /// Links that can lead to the file that was mapped for `module`.
    pub(crate) fn files(&mut self, module: &Module) -> Vec<PathBuf> {
        let mappings = self.mappings.get_or_insert_with(|| {
            let entries = fs::read_dir(self.directory.join("map_files"));
            entries.into_iter().flatten().flatten().filter_map(|entry| mapping(entry.path())).collect()
        });
        let within = |start: u64| start >= module.start && start < module.end;
        let mapped = mappings.iter().find(|(start, _)| within(*start)).map(|(_, path)| path.clone());
        // map_files needs privileges that the executable's own link does not.
        mapped.into_iter().chain([self.directory.join("exe")]).collect()
    }
}

/// An entry of `map_files` is named by its addresses: `start-end` in hexadecimal.
fn mapping(path: PathBuf) -> Option<(u64, PathBuf)> {
    let start = path.file_name()?.to_str()?.split('-').next()?;
    Some((u64::from_str_radix(start, 16).ok()?, path))
}
