//! Which allocators and language runtimes are in a process, and in which module.

use crate::elf::{self, Object};
use crate::error::Error;
use crate::glibc::{self, Banner, Heap, WalkOptions};
use crate::modules::{Module, modules};
use leakscope_reach::Block;
use leakscope_target::{Memory, Snapshot};
use memchr::memmem;
use std::fmt;

/// Something that manages memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allocator {
    /// The GNU C library's malloc.
    Glibc,
    /// musl's malloc (mallocng or its predecessor).
    Musl,
    /// jemalloc.
    Jemalloc,
    /// tcmalloc, gperftools' or Google's.
    Tcmalloc,
    /// mimalloc.
    Mimalloc,
    /// Go's runtime.
    Go,
    /// A Java virtual machine.
    Jvm,
    /// Node.js (V8).
    Node,
    /// CPython.
    Python,
    /// .NET (CoreCLR).
    DotNet,
}

impl fmt::Display for Allocator {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str(match self {
            Allocator::Glibc => "glibc's malloc",
            Allocator::Musl => "musl's malloc",
            Allocator::Jemalloc => "jemalloc",
            Allocator::Tcmalloc => "tcmalloc",
            Allocator::Mimalloc => "mimalloc",
            Allocator::Go => "Go's runtime",
            Allocator::Jvm => "a Java virtual machine",
            Allocator::Node => "Node.js",
            Allocator::Python => "CPython",
            Allocator::DotNet => ".NET",
        })
    }
}

/// An allocator or runtime in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recognised {
    /// Which.
    pub allocator: Allocator,
    /// Path of the module that holds it, as the process sees it, bounded and without control characters.
    pub module: String,
    /// Its version, where the module says it (glibc).
    pub version: Option<glibc::Version>,
    /// Whether it takes the place of `malloc` for the whole process.
    pub replaces_malloc: bool,
    /// Whether its blocks can be listed.
    pub listable: bool,
}

/// Symbols that tell.
const SIGNS: &[(&[u8], Allocator)] = &[
    (b"mallctl", Allocator::Jemalloc),
    (b"je_mallctl", Allocator::Jemalloc),
    (b"je_malloc", Allocator::Jemalloc),
    (b"_rjem_mallctl", Allocator::Jemalloc),
    (b"_rjem_malloc", Allocator::Jemalloc),
    (b"mi_malloc", Allocator::Mimalloc),
    (b"mi_version", Allocator::Mimalloc),
    (b"tc_malloc", Allocator::Tcmalloc),
    (b"tc_version", Allocator::Tcmalloc),
    (b"TCMallocInternalMalloc", Allocator::Tcmalloc),
    (b"MallocExtension_Internal_GetNumericProperty", Allocator::Tcmalloc),
    (b"runtime.mallocgc", Allocator::Go),
    (b"JNI_CreateJavaVM", Allocator::Jvm),
    (b"_ZN4node5StartEiPPc", Allocator::Node),
    (b"Py_Initialize", Allocator::Python),
    (b"coreclr_initialize", Allocator::DotNet),
    (b"__malloc_alloc_meta", Allocator::Musl),
];

/// Which allocators and runtimes are there. What cannot be read is not recognised; order is that of addresses.
pub fn recognise(snapshot: &Snapshot) -> Vec<Recognised> {
    let all = modules(snapshot);
    let mut found = Vec::new();
    for (module, banner) in libraries_among(snapshot, &all) {
        found.push(Recognised {
            allocator: Allocator::Glibc,
            module: module.display(),
            version: banner.version,
            replaces_malloc: false,
            listable: banner.version.is_none_or(|version| version >= glibc::Version::OLDEST),
        });
    }
    for module in &all {
        let name = module.name();
        if is_musl(&*snapshot.memory, module) {
            found.push(other(Allocator::Musl, module, true));
        }
        if is_glibc_name(name) || name.starts_with(b"ld-linux") {
            continue;
        }
        let wanted = |name: &[u8]| name == b"malloc" || SIGNS.iter().any(|&(sign, _)| sign == name);
        let object = elf::object(snapshot, module, &wanted).unwrap_or_default();
        found.extend(recognised_in(snapshot, module, &object));
    }
    found
}

fn other(allocator: Allocator, module: &Module, replaces_malloc: bool) -> Recognised {
    Recognised { allocator, module: module.display(), version: None, replaces_malloc, listable: false }
}

fn recognised_in(snapshot: &Snapshot, module: &Module, object: &Object) -> Vec<Recognised> {
    let has = |name: &[u8]| object.symbols.iter().any(|symbol| symbol.name == name);
    let mut found: Vec<Recognised> = Vec::new();
    for &(_, allocator) in SIGNS.iter().filter(|(sign, _)| has(sign)) {
        if !found.iter().any(|known| known.allocator == allocator) {
            let malloc = matches!(allocator, Allocator::Jemalloc | Allocator::Mimalloc | Allocator::Tcmalloc);
            // One with a prefix lives beside malloc; only one that defines it takes its place.
            let replaces = (malloc && has(b"malloc")) || allocator == Allocator::Musl;
            found.push(other(allocator, module, replaces));
        }
    }
    let go = || {
        let data = module.data.iter().chain(&module.read_only).take(8);
        data.into_iter().any(|range| {
            let length = (range.end - range.start).min(1 << 20) as usize;
            let head = crate::read::bytes(&*snapshot.memory, range.start, length);
            memmem::find(&head, b"\xff Go buildinf:").is_some()
        })
    };
    if module.path == snapshot.executable
        && !found.iter().any(|known| known.allocator == Allocator::Go)
        && go()
    {
        found.push(other(Allocator::Go, module, false));
    }
    found
}

/// musl is loader and library in one, under either name, and says what it is in its usage message.
fn is_musl(memory: &dyn Memory, module: &Module) -> bool {
    let name = module.name();
    if name.starts_with(b"ld-musl") || name.starts_with(b"libc.musl") {
        return true;
    }
    name == b"libc.so"
        && module.read_only.iter().any(|range| {
            let length = (range.end - range.start).min(4 << 20) as usize;
            memmem::find(&crate::read::bytes(memory, range.start, length), b"musl libc (").is_some()
        })
}

fn is_glibc_name(name: &[u8]) -> bool {
    name == b"libc.so.6" || (name.starts_with(b"libc-2.") && name.ends_with(b".so"))
}

/// The modules that hold glibc's malloc: its shared library (several with `dlmopen`), or a static executable.
pub(crate) fn libraries(snapshot: &Snapshot) -> Vec<(Module, Banner)> {
    libraries_among(snapshot, &modules(snapshot))
}

fn libraries_among(snapshot: &Snapshot, all: &[Module]) -> Vec<(Module, Banner)> {
    let memory: &dyn Memory = &*snapshot.memory;
    let with_banner = |module: &Module| (module.clone(), glibc::banner(memory, module));
    let named = all.iter().filter(|module| is_glibc_name(module.name()));
    let found: Vec<_> = named.map(with_banner).filter(|(_, banner)| banner.glibc).collect();
    if !found.is_empty() {
        return found;
    }
    // Statically linked, or renamed.
    all.iter().map(with_banner).filter(|(_, banner)| banner.glibc).take(1).collect()
}

/// Lists every block in use, of whatever allocator the process uses, if it is one whose structures are read.
///
/// # Errors
/// [`Error::Unsupported`] if another allocator took malloc's place or there is only another; else what the allocator's own
/// walk says.
pub fn walk(snapshot: &Snapshot, options: &WalkOptions, sink: impl FnMut(Block)) -> Result<Heap, Error> {
    let found = recognise(snapshot);
    supported(snapshot, &found)?;
    let mut heap = glibc::walk(snapshot, options, sink)?;
    for known in found.iter().filter(|known| known.allocator != Allocator::Glibc) {
        heap.notes.push(format!(
            "{} ({}) also allocates, outside malloc; those blocks are not listed",
            known.allocator, known.module
        ));
    }
    Ok(heap)
}

/// Says early what [`walk`] would say of the allocator: it need not be done on frozen memory.
///
/// # Errors
/// [`Error::Unsupported`] as of [`walk`].
pub fn check(snapshot: &Snapshot) -> Result<(), Error> {
    supported(snapshot, &recognise(snapshot))
}

fn supported(snapshot: &Snapshot, found: &[Recognised]) -> Result<(), Error> {
    if let Some(known) = found.iter().find(|known| known.replaces_malloc) {
        return Err(unsupported(snapshot, known));
    }
    match found.first() {
        Some(known) if !found.iter().any(|known| known.allocator == Allocator::Glibc) => {
            Err(unsupported(snapshot, known))
        }
        _ => Ok(()),
    }
}

fn unsupported(snapshot: &Snapshot, known: &Recognised) -> Error {
    Error::Unsupported { pid: snapshot.pid, allocator: known.allocator, module: known.module.clone() }
}
