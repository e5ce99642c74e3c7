//! Function names from ELF symbol tables: the full one, the dynamic one, and MiniDebugInfo, the table that Fedora
//! and its kin leave xz-compressed in stripped files.

use crate::elf::{ElfError, open_regular};
use object::elf::{
    FileHeader64, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STB_GLOBAL, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE,
};
use object::read::elf::{FileHeader as _, SectionHeader as _, SectionTable, Sym as _};
use object::{Endianness, ReadCache, ReadRef};
use std::io::{self, Read as _};
use std::path::Path;

/// Largest compressed table that is read, in bytes; real ones are below a megabyte.
const MAX_PACKED: u64 = 64 << 20;
/// Largest table that is unpacked, in bytes.
const MAX_UNPACKED: u64 = 256 << 20;
/// Memory for unpacking, in KiB: twice what xz's strongest preset needs.
const MEMORY_LIMIT: u32 = 128 << 10;
/// How many symbols that overlap an address's neighbourhood are looked at.
const MAX_OVERLAP: usize = 64;

/// A function in a symbol table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// Mangled name.
    pub(crate) name: String,
    /// Its first address.
    pub(crate) start: u64,
    /// Its size; 0 if the table does not tell.
    pub(crate) size: u64,
}

/// For each address the function that the tables of the file have there.
pub(crate) fn look_up(file: &Path, addresses: &[u64]) -> Result<Vec<Option<Symbol>>, ElfError> {
    let cache = ReadCache::new(open_regular(file)?);
    let data = &cache;
    let header = FileHeader64::<Endianness>::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut found = vec![None; addresses.len()];
    fill(&mut found, addresses, &sections, endian, data, SHT_SYMTAB)?;
    fill(&mut found, addresses, &sections, endian, data, SHT_DYNSYM)?;
    if found.iter().any(Option::is_none)
        && let Some((_, section)) = sections.section_by_name(endian, b".gnu_debugdata")
        && section.sh_size(endian) <= MAX_PACKED
        && let Ok(table) = unpack(section.data(endian, data)?)
    {
        let data = table.as_slice();
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        fill(&mut found, addresses, &header.sections(endian, data)?, endian, data, SHT_SYMTAB)?;
    }
    Ok(found)
}

fn unpack(packed: &[u8]) -> io::Result<Vec<u8>> {
    let mut table = Vec::new();
    let unpacked = lzma_rust2::XzReader::new_mem_limit(packed, false, MEMORY_LIMIT);
    unpacked.take(MAX_UNPACKED).read_to_end(&mut table)?;
    Ok(table)
}

/// A symbol before its name is read.
struct Entry {
    start: u64,
    size: u64,
    /// End of the farthest-reaching symbol up to this one.
    max_end: u64,
    is_global: bool,
    name: u32,
}

/// Looks up the addresses that have nothing yet in one table of a file.
fn fill<'data, R: ReadRef<'data>>(
    found: &mut [Option<Symbol>],
    addresses: &[u64],
    sections: &SectionTable<'data, FileHeader64<Endianness>, R>,
    endian: Endianness,
    data: R,
    table: object::elf::SectionType,
) -> Result<(), ElfError> {
    let symbols = sections.symbols(endian, data, table)?;
    let is_function =
        |kind| kind == STT_FUNC || kind == STT_GNU_IFUNC || (kind == STT_NOTYPE && table == SHT_SYMTAB);
    let mut entries: Vec<Entry> = symbols
        .iter()
        .filter(|symbol| is_function(symbol.st_type()) && symbol.st_shndx(endian) != SHN_UNDEF)
        .map(|symbol| Entry {
            start: symbol.st_value(endian),
            size: symbol.st_size(endian),
            max_end: 0,
            is_global: symbol.st_bind() == STB_GLOBAL,
            name: symbol.st_name(endian),
        })
        // A dynamic table is sparse: without a size it tells nothing of what follows.
        .filter(|entry| entry.start > 0 && (entry.size > 0 || table == SHT_SYMTAB))
        .collect();
    entries.sort_by_key(|entry| entry.start);
    let mut max_end = 0;
    for entry in &mut entries {
        max_end = entry.start.saturating_add(entry.size).max(max_end);
        entry.max_end = max_end;
    }
    let name_of = |entry: &Entry| {
        let name = symbols.strings().get(entry.name).ok()?;
        (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
    };
    for (slot, &address) in found.iter_mut().zip(addresses) {
        if slot.is_none() {
            *slot = best_at(&entries, address, name_of);
        }
    }
    Ok(())
}

/// The symbol that holds `address`: the innermost one, and of several at one place the one that people know.
fn best_at(entries: &[Entry], address: u64, name_of: impl Fn(&Entry) -> Option<String>) -> Option<Symbol> {
    let end = entries.partition_point(|entry| entry.start <= address);
    let before = entries.get(..end)?.iter().rev().take(MAX_OVERLAP);
    let mut holding = before.clone().take_while(|entry| entry.max_end > address);
    let start = match holding.find(|entry| address - entry.start < entry.size) {
        Some(sized) => sized.start,
        // Hand-written code often has no sizes; it reaches up to the next symbol.
        None => before.clone().next().filter(|nearest| nearest.size == 0)?.start,
    };
    let size = before.clone().filter(|entry| entry.start == start).map(|entry| entry.size).max()?;
    let same = before.filter(|entry| entry.start == start && entry.size == size);
    same.filter_map(|entry| Some((entry, name_of(entry)?)))
        // `malloc` rather than `__libc_malloc`.
        .min_by_key(|(entry, name)| {
            let underscores = name.bytes().take_while(|&byte| byte == b'_').count();
            let is_mangled = name.starts_with("_Z") || name.starts_with("_R");
            (!is_mangled, !entry.is_global, underscores, name.len(), name.clone())
        })
        .map(|(_, name)| Symbol { name, start, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(symbols: &[(u64, u64)]) -> Vec<Entry> {
        let mut max_end = 0;
        let entry = |(name, &(start, size)): (usize, &(u64, u64))| {
            max_end = max_end.max(start + size);
            Entry { start, size, max_end, is_global: true, name: name as u32 }
        };
        symbols.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn an_address_between_functions_has_no_name_and_one_in_nested_functions_the_inner() {
        let table = entries(&[(100, 10), (200, 50), (210, 5), (300, 0)]);
        let at =
            |address| best_at(&table, address, |entry| Some(entry.name.to_string())).map(|found| found.name);
        assert_eq!(at(99), None);
        assert_eq!(at(109).as_deref(), Some("0"));
        assert_eq!(at(110), None);
        assert_eq!(at(212).as_deref(), Some("2"));
        assert_eq!(at(216).as_deref(), Some("1"), "behind the inner function, still in the outer");
        assert_eq!(at(250), None);
        assert_eq!(at(1000).as_deref(), Some("3"), "no size: up to the next");
    }

    #[test]
    fn of_several_names_the_one_that_people_know_is_taken() {
        let table = entries(&[(100, 10), (100, 10), (100, 10)]);
        let names = ["__libc_malloc", "malloc", "__GI___libc_malloc"];
        let found = best_at(&table, 105, |entry| names.get(entry.name as usize).map(|&name| name.to_owned()));
        assert_eq!(found.unwrap().name, "malloc");
    }
}
