//! The executable and shared objects of a process, from its mappings.

use leakscope_target::{Mapping, Snapshot};
use std::ops::Range;

/// A file that is mapped as a program or library: a run of mappings of one file, with at least one executable.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// Path as the process sees it, without the kernel's ` (deleted)`.
    pub path: Vec<u8>,
    /// Whether the file has been removed or replaced since.
    pub deleted: bool,
    pub inode: u64,
    /// Address of its first byte (where its ELF header is mapped).
    pub start: u64,
    /// One past its last mapping.
    pub end: u64,
    /// Its writable mappings (initialised data).
    pub data: Vec<Range<u64>>,
    /// Its readable and not writable ones.
    pub read_only: Vec<Range<u64>>,
}

impl Module {
    pub(crate) fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or(&self.path)
    }

    /// For messages: bounded, since the name is another process's.
    pub(crate) fn display(&self) -> String {
        let text = String::from_utf8_lossy(&self.path);
        text.chars().filter(|character| !character.is_control()).take(200).collect()
    }
}

/// All modules, by address. One that is loaded several times (`dlmopen`) appears as often.
pub(crate) fn modules(snapshot: &Snapshot) -> Vec<Module> {
    let mut found: Vec<(Module, bool)> = Vec::new();
    for mapping in &snapshot.mappings {
        if mapping.path.first() != Some(&b'/') || mapping.end <= mapping.start {
            continue;
        }
        let (path, deleted) = match mapping.path.strip_suffix(b" (deleted)") {
            Some(path) => (path, true),
            None => (mapping.path.as_slice(), false),
        };
        let same = |module: &Module| {
            module.path == path
                && module.inode == mapping.inode
                && mapping.offset != 0
                && module.end <= mapping.start
        };
        // A file offset of 0 starts another load of the same file, unless the loader split its first segment.
        match found.last_mut().filter(|(module, _)| {
            same(module)
                || (module.path == path
                    && mapping.start == module.end
                    && mapping.offset == 0
                    && mapping.writable)
        }) {
            Some((module, executable)) => {
                module.end = mapping.end;
                *executable |= mapping.executable;
                place(module, mapping);
            }
            None => {
                let mut module = Module {
                    path: path.to_vec(),
                    deleted,
                    inode: mapping.inode,
                    start: mapping.start,
                    end: mapping.end,
                    data: Vec::new(),
                    read_only: Vec::new(),
                };
                place(&mut module, mapping);
                found.push((module, mapping.executable));
            }
        }
    }
    found.into_iter().filter(|&(_, executable)| executable).map(|(module, _)| module).collect()
}

fn place(module: &mut Module, mapping: &Mapping) {
    let range = mapping.start..mapping.end;
    if mapping.writable && !mapping.shared {
        module.data.push(range);
    } else if mapping.readable {
        module.read_only.push(range);
    }
}
