//! Where each thread's copies of the modules' thread-local variables lie, from glibc's own tables: the loader's list of
//! modules gives the order in which it numbered them, and each thread's vector (DTV) has the address of each copy.

use crate::segments::{DYNAMIC, TLS, segments};
use crate::stacks::word_at;
use leakscope_profile::Module;
use leakscope_target::{Memory, Snapshot, Thread};
use std::ops::Range;

const DT_DEBUG: u64 = 21;
const AT_PHDR: u64 = 3;
/// Modules, and entries of a dynamic section: more is a damaged list.
const MOST: usize = 4096;

/// One module's thread-local variables in one thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsBlock {
    pub(crate) range: Range<u64>,
    /// Index into the modules.
    pub(crate) module: usize,
}

/// The modules with thread-local variables in the order of their numbers, from 1 on, with the size of a copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsModules(Vec<(usize, u64)>);

impl TlsModules {
    pub(crate) fn find(snapshot: &Snapshot, modules: &[Module]) -> TlsModules {
        let memory = &*snapshot.memory;
        let size_of = |module: &Module| {
            let own = segments(memory, module);
            own.iter()
                .find(|segment| segment.kind == TLS)
                .map(|segment| segment.size)
                .filter(|&size| size > 0)
        };
        // Unknown if it is a core file without: then only the program's own, which is always the first.
        let mut loaded = link_map(snapshot, modules).unwrap_or_default();
        if loaded.is_empty() {
            let program = modules.iter().position(|module| module.path.as_bytes() == snapshot.executable);
            loaded.extend(program);
        }
        let sized = loaded.into_iter().filter_map(|index| Some((index, size_of(modules.get(index)?)?)));
        TlsModules(sized.collect())
    }

    /// The copies that a thread has, by address.
    pub(crate) fn of(&self, memory: &dyn Memory, thread: &Thread) -> Vec<TlsBlock> {
        let pointer = thread.registers.thread_pointer;
        // tcbhead_t: itself, its vector.
        if pointer == 0 || word_at(memory, pointer) != pointer {
            return Vec::new();
        }
        let vector = word_at(memory, pointer.wrapping_add(8));
        let copies = self.0.iter().zip(1u64..).filter_map(|(&(module, size), number)| {
            let start = word_at(memory, vector.wrapping_add(number * 16));
            // Not made yet: all ones.
            let end = start.checked_add(size).filter(|_| start != 0)?;
            Some(TlsBlock { range: start..end, module })
        });
        let mut copies: Vec<TlsBlock> = copies.collect();
        copies.sort_by_key(|copy| copy.range.start);
        copies
    }
}

/// The modules in the order in which they were loaded, from the loader's list for debuggers (`r_debug`, link.h).
fn link_map(snapshot: &Snapshot, modules: &[Module]) -> Option<Vec<usize>> {
    let memory = &*snapshot.memory;
    let headers = snapshot.auxv.iter().find(|&&(kind, _)| kind == AT_PHDR).map(|&(_, value)| value);
    let program = match headers {
        Some(headers) => modules.iter().position(|module| (module.start..module.end).contains(&headers)),
        None => modules.iter().position(|module| module.path.as_bytes() == snapshot.executable),
    }?;
    let dynamic =
        segments(memory, modules.get(program)?).into_iter().find(|segment| segment.kind == DYNAMIC)?;
    let entries = (dynamic.address..).step_by(16).take(MOST);
    let debug = entries.map_while(|at| {
        let tag = memory.word(at).filter(|&tag| tag != 0)?;
        Some((tag, memory.word(at.wrapping_add(8))?))
    });
    let debug =
        debug.filter(|&(tag, _)| tag == DT_DEBUG).map(|(_, value)| value).find(|&value| value != 0)?;
    let mut order = Vec::new();
    let mut entry = memory.word(debug.wrapping_add(8))?;
    while entry != 0 && order.len() < MOST {
        // l_addr, l_name, l_ld, l_next.
        let section = memory.word(entry.wrapping_add(16))?;
        order.extend(modules.iter().position(|module| (module.start..module.end).contains(&section)));
        entry = memory.word(entry.wrapping_add(24))?;
    }
    Some(order)
}
