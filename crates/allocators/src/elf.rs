//! Symbols and the build id of a module: from its file, or, where that is gone or another one, from its memory.

use crate::modules::Module;
use crate::read::{bytes, half_at, word_at};
use leakscope_target::{Memory, Snapshot};
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym};
use object::{Endianness, ReadCache, ReadRef, elf};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

type Header = elf::FileHeader64<Endianness>;

/// Symbol tables beyond this many bytes are not read: no C library's or allocator's is.
const LARGEST_TABLE: u64 = 256 << 20;

/// A symbol: its address in the file's own terms, its size, its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Symbol {
    pub address: u64,
    pub size: u64,
    pub name: Vec<u8>,
    pub function: bool,
}

/// What a module's file, or its memory, tells.
#[derive(Debug, Default)]
pub(crate) struct Object {
    /// Lowest address of a loadable segment, rounded down to a page: what `Module::start` corresponds to.
    pub base: u64,
    /// Build id; empty if there is none.
    pub build_id: Vec<u8>,
    /// Whether it has an interpreter (`PT_INTERP`), so is no static executable.
    pub interpreter: bool,
    /// Symbols wanted: defined ones that the caller's filter let pass.
    pub symbols: Vec<Symbol>,
    /// Whether `.symtab` was there, not only the dynamic table.
    pub full: bool,
}

impl Object {
    /// Where a symbol is in memory.
    pub(crate) fn place(&self, module: &Module, symbol: &Symbol) -> Option<u64> {
        module.start.checked_add(symbol.address.checked_sub(self.base)?)
    }
}

/// Where `path` of the process is to be opened.
pub(crate) fn outside(snapshot: &Snapshot, path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let relative = std::ffi::OsStr::from_bytes(path);
    snapshot.root.join(std::path::Path::new(relative).strip_prefix("/").unwrap_or(relative.as_ref()))
}

/// Reads the module's symbols that `wanted` accepts (by name).
pub(crate) fn object(snapshot: &Snapshot, module: &Module, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Object> {
    from_file(snapshot, module, wanted).or_else(|| from_memory(&*snapshot.memory, module, wanted))
}

/// From the file, if it is still the one that is mapped.
fn from_file(snapshot: &Snapshot, module: &Module, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Object> {
    if module.deleted {
        return None;
    }
    let file = open_regular(&outside(snapshot, &module.path))?;
    let metadata = file.metadata().ok()?;
    if module.inode != 0 && metadata.ino() != module.inode {
        return None;
    }
    parse(file, wanted)
}

/// A regular file only: opening a pipe or a device could block or act.
fn open_regular(path: &std::path::Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let file =
        std::fs::OpenOptions::new().read(true).custom_flags(0o4000 /* O_NONBLOCK */).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// Reads an ELF file on its own, such as separate debug symbols.
pub(crate) fn file_at(path: &std::path::Path, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Object> {
    parse(open_regular(path)?, wanted)
}

fn parse(file: File, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Object> {
    let cache = ReadCache::new(file);
    let data = &cache;
    let header = Header::parse(data).ok()?;
    let endian = header.endian().ok()?;
    let mut object = Object::default();
    let segments = header.program_headers(endian, data).ok()?;
    let first = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD).map(|segment| {
        let address: u64 = segment.p_vaddr(endian);
        address & !0xfff
    });
    object.base = first.min()?;
    object.interpreter = segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP);
    for segment in segments {
        if let Ok(Some(mut notes)) = segment.notes(endian, data) {
            // Bounded: a note takes at least 12 bytes, and a segment of notes is small.
            for _ in 0..1000 {
                let Ok(Some(note)) = notes.next() else { break };
                if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
                    object.build_id = note.desc().to_vec();
                }
            }
        }
    }
    symbols(header, endian, data, wanted, &mut object);
    Some(object)
}

fn symbols<'data, R: ReadRef<'data>>(
    header: &'data Header,
    endian: Endianness,
    data: R,
    wanted: &dyn Fn(&[u8]) -> bool,
    object: &mut Object,
) -> Option<()> {
    let sections = header.sections(endian, data).ok()?;
    for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
        let small = |section: &elf::SectionHeader64<Endianness>| section.sh_size(endian) <= LARGEST_TABLE;
        if !sections.iter().filter(|section| section.sh_type(endian) == kind).all(small) {
            continue;
        }
        let Ok(table) = sections.symbols(endian, data, kind) else { continue };
        object.full |= kind == elf::SHT_SYMTAB && !table.is_empty();
        // All names at once: one by one, each would be a read of its own.
        let Ok(section) = sections.section(table.string_section()) else { continue };
        let Some(strings) = Some(section)
            .filter(|section| small(section))
            .and_then(|section| section.data(endian, data).ok())
        else {
            continue;
        };
        for symbol in table.iter() {
            let name = strings.get(symbol.st_name(endian) as usize..).unwrap_or(&[]);
            let Some(name) = memchr::memchr(0, name).and_then(|end| name.get(..end)) else { continue };
            let defined = symbol.st_shndx(endian) != elf::SHN_UNDEF;
            // A thread-local symbol's value is an offset, not an address.
            if defined && !name.is_empty() && symbol.st_type() != elf::STT_TLS && wanted(name) {
                object.symbols.push(Symbol {
                    address: symbol.st_value(endian),
                    size: symbol.st_size(endian),
                    name: name.to_vec(),
                    function: matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC),
                });
            }
        }
    }
    Some(())
}

/// What kind of program the module is, if it is not one of 64 bits with the lowest byte first.
pub(crate) fn foreign(memory: &dyn Memory, module: &Module) -> Option<&'static str> {
    let head = bytes(memory, module.start, 6);
    match (head.get(..4)?, head.get(4)?, head.get(5)?) {
        (b"\x7fELF", 1, _) => Some("of 32 bits"),
        (b"\x7fELF", _, 2) => Some("big-endian"),
        _ => None,
    }
}

/// From memory: program headers, the dynamic section, and the dynamic symbols that the GNU hash table counts.
fn from_memory(memory: &dyn Memory, module: &Module, wanted: &dyn Fn(&[u8]) -> bool) -> Option<Object> {
    const HEADERS: usize = 64 * 56;
    let head = bytes(memory, module.start, 0x1000);
    if head.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let offset = usize::try_from(word_at(&head, 32)?).ok()?;
    let count = usize::from((half_at(&head, 56)? & 0xffff) as u16).min(64);
    let table = bytes(memory, module.start.checked_add(offset as u64)?, HEADERS);
    let mut object = Object { base: u64::MAX, ..Object::default() };
    let mut dynamic = None;
    for index in 0..count {
        let at = index * 56;
        let (kind, address, size) =
            (half_at(&table, at)?, word_at(&table, at + 16)?, word_at(&table, at + 40)?);
        match kind {
            1 => object.base = object.base.min(address & !0xfff),
            2 => dynamic = Some((address, size)),
            3 => object.interpreter = true,
            _ => {}
        }
    }
    if object.base == u64::MAX {
        return None;
    }
    if let Some((address, size)) = dynamic {
        dynamic_symbols(memory, module, address, size, wanted, &mut object);
    }
    Some(object)
}

fn dynamic_symbols(
    memory: &dyn Memory,
    module: &Module,
    address: u64,
    size: u64,
    wanted: &dyn Fn(&[u8]) -> bool,
    object: &mut Object,
) -> Option<()> {
    let bias = module.start.wrapping_sub(object.base);
    let section = bytes(memory, bias.wrapping_add(address), usize::try_from(size.min(1 << 16)).ok()?);
    let (mut strings, mut strings_size, mut symbols, mut hash) = (0, 0, 0, 0);
    for entry in section.chunks_exact(16) {
        let value = word_at(entry, 8)?;
        match word_at(entry, 0)? {
            0 => break,
            5 => strings = value,
            6 => symbols = value,
            10 => strings_size = value,
            0x6fff_fef5 => hash = value,
            _ => {}
        }
    }
    // The loader stores addresses with the bias added; others (the vDSO, static PIE) leave the file's.
    let place = |value: u64| if value < module.start { bias.wrapping_add(value) } else { value };
    let count = hashed_symbols(memory, place(hash))?.min(1 << 20);
    let table = bytes(memory, place(symbols), usize::try_from(count).ok()?.checked_mul(24)?);
    let strings = bytes(memory, place(strings), usize::try_from(strings_size.min(64 << 20)).ok()?);
    for symbol in table.chunks_exact(24) {
        let kind = half_at(symbol, 4)?;
        let name = strings.get(half_at(symbol, 0)? as usize..).unwrap_or(&[]);
        let name = name.split(|&byte| byte == 0).next().unwrap_or(&[]);
        if kind >> 16 != 0 && kind & 0xf != 6 && !name.is_empty() && wanted(name) {
            object.symbols.push(Symbol {
                address: word_at(symbol, 8)?,
                size: word_at(symbol, 16)?,
                name: name.to_vec(),
                function: matches!(kind & 0xf, 2 | 10),
            });
        }
    }
    Some(())
}

/// How many dynamic symbols there are, by the GNU hash table's last chain.
fn hashed_symbols(memory: &dyn Memory, table: u64) -> Option<u64> {
    let head = bytes(memory, table, 16);
    let (buckets, first, bloom) = (half_at(&head, 0)?, half_at(&head, 4)?, half_at(&head, 8)?);
    let buckets_at = table.checked_add(16)?.checked_add(u64::from(bloom).checked_mul(8)?)?;
    let list = bytes(memory, buckets_at, (buckets.min(1 << 20) as usize) * 4);
    let last = list.chunks_exact(4).filter_map(|bucket| half_at(bucket, 0)).max()?;
    if last < first {
        return Some(u64::from(first));
    }
    let chains = buckets_at.checked_add(u64::from(buckets) * 4)?;
    let mut at = chains.checked_add(u64::from(last - first) * 4)?;
    // The chain that holds the last bucket ends at the entry with its lowest bit set.
    for index in 0..10_000u64 {
        if half_at(&bytes(memory, at, 4), 0)? & 1 == 1 {
            return Some(u64::from(last) + index + 1);
        }
        at = at.checked_add(4)?;
    }
    None
}
