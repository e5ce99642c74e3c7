//! Finds the files that can name a module's addresses.
//!
//! A file is believed only if it is the one that was mapped: its build id must be the recorded one. Wrong names
//! are worse than none.

use crate::Options;
use crate::debuginfod::Client;
use crate::elf::{ElfError, ElfFile, debug_link_crc, hex};
use crate::running::Running;
use leakscope_profile::{End, Module, Process};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How deep below a `--debug-dir` files are looked for.
const MAX_DEPTH: usize = 16;
/// How many files below the `--debug-dir`s are looked at.
const MAX_FILES: usize = 200_000;
/// Where distributions install separate debug files.
const SYSTEM_DEBUG_DIRS: [&str; 2] = ["usr/lib/debug", "usr/local/lib/debug"];

/// What was found for one module.
#[derive(Debug, Default)]
pub(crate) struct Located {
    /// The file with DWARF.
    pub(crate) debug: Option<PathBuf>,
    /// Files with a symbol table, the fuller first; for what DWARF does not name.
    pub(crate) symbols: Vec<PathBuf>,
    /// Where the module has code, in addresses of the file.
    pub(crate) code: Vec<Range<u64>>,
    /// Why names are not full; none exactly if `debug` is set.
    pub(crate) reason: Option<String>,
}

impl Located {
    /// Nothing, for this reason.
    pub(crate) fn nothing(reason: String) -> Located {
        Located { reason: Some(reason), ..Located::default() }
    }
}

/// A file that the user says is the program.
#[derive(Debug, Clone)]
pub(crate) struct StandIn {
    pub(crate) path: PathBuf,
    pub(crate) elf: ElfFile,
}

/// The module's own file, as far as it is there.
enum OnDisk {
    Same(PathBuf, ElfFile),
    Replaced(String),
    Gone,
    Unreadable(ElfError),
}

/// Looks for files; remembers what it has seen.
pub(crate) struct Finder<'a> {
    options: &'a Options,
    /// All directories of debug files: the user's, then the system's.
    debug_dirs: Vec<PathBuf>,
    /// Build id to files below the user's directories; filled when first needed.
    index: Option<HashMap<Vec<u8>, Vec<PathBuf>>>,
    debuginfod: Client<'a>,
    process_start: Option<SystemTime>,
    /// The process, unless it has ended.
    running: Option<Running>,
}

impl<'a> Finder<'a> {
    /// For the modules of `process`.
    pub(crate) fn new(options: &'a Options, process: &Process) -> Self {
        let system = SYSTEM_DEBUG_DIRS.iter().map(|dir| options.root.join(dir));
        let debug_dirs = options.debug_dirs.iter().cloned().chain(system).collect();
        let debuginfod = Client::new(&options.debuginfod);
        let running = (process.end == End::Running && process.pid != 0)
            .then(|| Running::new(options.proc.join(process.pid.to_string())));
        Finder { options, debug_dirs, index: None, debuginfod, process_start: process.start_time, running }
    }

    /// All directories of debug files.
    pub(crate) fn debug_dirs(&self) -> &[PathBuf] {
        &self.debug_dirs
    }

    /// Finds the files for `module`; `stand_in` takes the place of its own file.
    pub(crate) fn locate(&mut self, module: &Module, stand_in: Option<&StandIn>) -> Located {
        let mut files = Vec::new();
        let on_disk = self.on_disk(module);
        files.extend(stand_in.map(|file| (file.path.clone(), file.elf.clone())));
        let mut absence = match on_disk {
            OnDisk::Same(path, elf) => {
                files.push((path, elf));
                String::new()
            }
            OnDisk::Replaced(how) => how,
            OnDisk::Gone if module.build_id.is_empty() => "not found, and it has no build id".to_owned(),
            OnDisk::Gone => "not found".to_owned(),
            OnDisk::Unreadable(error) => error.to_string(),
        };
        if files.is_empty()
            && !module.build_id.is_empty()
            && let Some(running) = &mut self.running
        {
            for path in running.files(module) {
                if files.is_empty() {
                    push_if_same(&mut files, path, &module.build_id);
                }
            }
        }
        if !has_dwarf(&files) {
            self.find_debug_files(module, &mut files);
        }
        let mut refusal = None;
        if !has_dwarf(&files) {
            match self.debuginfod.find(&module.build_id) {
                Ok(Some(path)) => push_if_same(&mut files, path, &module.build_id),
                Ok(None) => {}
                Err(problem) => refusal = Some(problem),
            }
        }
        // What the module's own path holds does not matter once the file itself was found elsewhere.
        if !files.is_empty() {
            absence = without_dwarf(&files);
        }
        assemble(files, refusal.map_or(absence.clone(), |refusal| format!("{absence}; {refusal}")))
    }

    fn on_disk(&self, module: &Module) -> OnDisk {
        let path = module.path.strip_suffix(" (deleted)").unwrap_or(&module.path);
        let Some(path) = below(&self.options.root, path) else { return OnDisk::Gone };
        let elf = match ElfFile::read(&path) {
            Ok(elf) => elf,
            Err(error) if error.is_not_found() => return OnDisk::Gone,
            Err(error) => return OnDisk::Unreadable(error),
        };
        if elf.build_id != module.build_id {
            let there = match elf.build_id.is_empty() {
                true => "none".to_owned(),
                false => hex(&elf.build_id),
            };
            return OnDisk::Replaced(format!("replaced on disk (build id there: {there})"));
        }
        // Without build ids only time can tell, and a file changed since the process started is another file.
        if elf.build_id.is_empty() && self.changed_since_start(&path) {
            return OnDisk::Replaced("changed on disk since the process started".to_owned());
        }
        OnDisk::Same(path, elf)
    }

    fn changed_since_start(&self, path: &Path) -> bool {
        let (Some(start), Ok(metadata)) = (self.process_start, fs::metadata(path)) else { return false };
        let seconds = u64::try_from(metadata.ctime()).unwrap_or(0);
        let nanos = u64::try_from(metadata.ctime_nsec()).unwrap_or(0);
        // A start time read from /proc is exact to a clock tick.
        let changed = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_nanos(nanos);
        changed > start + Duration::from_secs(1)
    }

    /// Separate debug files, as gdb looks for them, and any file of the same build id below the user's directories.
    fn find_debug_files(&mut self, module: &Module, files: &mut Vec<(PathBuf, ElfFile)>) {
        if let Some((first, rest)) = module.build_id.split_first()
            && !rest.is_empty()
        {
            for directory in &self.debug_dirs {
                let name = format!("{first:02x}/{}.debug", hex(rest));
                push_if_same(files, directory.join(".build-id").join(&name), &module.build_id);
                push_if_same(files, directory.join(&name), &module.build_id);
            }
        }
        if !has_dwarf(files) {
            self.follow_debug_links(module, files);
        }
        if !has_dwarf(files) && !module.build_id.is_empty() && !self.options.debug_dirs.is_empty() {
            let directories = &self.options.debug_dirs;
            let index = self.index.get_or_insert_with(|| index_by_build_id(directories));
            for path in index.get(&module.build_id).into_iter().flatten() {
                push_if_same(files, path.clone(), &module.build_id);
            }
            // A file found just now can have a link of its own.
            if !has_dwarf(files) {
                self.follow_debug_links(module, files);
            }
        }
    }

    fn follow_debug_links(&self, module: &Module, files: &mut Vec<(PathBuf, ElfFile)>) {
        let links: Vec<_> =
            files.iter().filter_map(|(path, elf)| Some((path.clone(), elf.debug_link.clone()?))).collect();
        for (path, (name, crc)) in links {
            for candidate in self.link_candidates(module, &path, &name) {
                let Ok(elf) = ElfFile::read(&candidate) else { continue };
                let same = match module.build_id.is_empty() || elf.build_id.is_empty() {
                    true => debug_link_crc(&candidate).is_ok_and(|found| found == crc),
                    false => elf.build_id == module.build_id,
                };
                if same && elf.has_dwarf {
                    files.push((candidate, elf));
                    return;
                }
            }
        }
    }

    fn link_candidates(&self, module: &Module, path: &Path, name: &OsStr) -> Vec<PathBuf> {
        let mut candidates = Vec::new();
        if let Some(directory) = path.parent() {
            candidates.push(directory.join(name));
            candidates.push(directory.join(".debug").join(name));
        }
        let recorded = Path::new(&module.path).parent();
        for debug_dir in &self.debug_dirs {
            for directory in [path.parent(), recorded].into_iter().flatten() {
                candidates.extend(
                    directory.to_str().and_then(|dir| below(debug_dir, dir)).map(|dir| dir.join(name)),
                );
            }
            candidates.push(debug_dir.join(name));
        }
        candidates.retain(|candidate| candidate != path);
        candidates
    }
}

fn has_dwarf(files: &[(PathBuf, ElfFile)]) -> bool {
    files.iter().any(|(_, elf)| elf.has_dwarf)
}

fn push_if_same(files: &mut Vec<(PathBuf, ElfFile)>, path: PathBuf, build_id: &[u8]) {
    if let Ok(elf) = ElfFile::read(&path)
        && elf.build_id == build_id
        && !files.iter().any(|(known, _)| *known == path)
    {
        files.push((path, elf));
    }
}

/// Puts the files to their uses; `reason` holds if none has usable DWARF.
fn assemble(files: Vec<(PathBuf, ElfFile)>, reason: String) -> Located {
    let debug = files.iter().find(|(_, elf)| elf.has_dwarf && !elf.has_zstd).map(|(path, _)| path.clone());
    let reason = debug.is_none().then_some(reason);
    let code =
        files.iter().map(|(_, elf)| &elf.code).find(|code| !code.is_empty()).cloned().unwrap_or_default();
    let (full, dynamic): (Vec<_>, Vec<_>) = files.into_iter().partition(|(_, elf)| elf.has_symtab);
    let symbols = full.into_iter().chain(dynamic).map(|(path, _)| path).collect();
    Located { debug, symbols, code, reason }
}

/// Why files that are the right ones do not give full names.
fn without_dwarf(files: &[(PathBuf, ElfFile)]) -> String {
    if files.iter().any(|(_, elf)| elf.has_zstd) {
        return "its debug information is compressed with zstd, which leakscope cannot read".to_owned();
    }
    match files.iter().any(|(_, elf)| elf.has_symtab) {
        true => "no debug information, function names only".to_owned(),
        false => "stripped, exported names only".to_owned(),
    }
}

/// `path` looked up below `root`; none if it is not absolute or leads out of it.
pub(crate) fn below(root: &Path, path: &str) -> Option<PathBuf> {
    if path.contains('\0') {
        return None;
    }
    let mut components = Path::new(path).components();
    if components.next() != Some(Component::RootDir) {
        return None;
    }
    let mut joined = root.to_path_buf();
    for component in components {
        match component {
            Component::Normal(name) => joined.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(joined)
}

/// Every ELF file below the directories by its build id. Directories that are links are not followed.
fn index_by_build_id(directories: &[PathBuf]) -> HashMap<Vec<u8>, Vec<PathBuf>> {
    let mut index: HashMap<Vec<u8>, Vec<PathBuf>> = HashMap::new();
    let mut pending: Vec<(PathBuf, usize)> = directories.iter().map(|dir| (dir.clone(), 0)).collect();
    let mut files = 0;
    while let Some((directory, depth)) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                if depth < MAX_DEPTH {
                    pending.push((entry.path(), depth + 1));
                }
                continue;
            }
            files += 1;
            if files > MAX_FILES {
                return index;
            }
            let path = entry.path();
            if let Ok(elf) = ElfFile::read(&path)
                && !elf.build_id.is_empty()
            {
                index.entry(elf.build_id).or_default().push(path);
            }
        }
    }
    index
}
