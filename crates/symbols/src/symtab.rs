//! Names from ELF symbol tables: the full one, the dynamic one, and MiniDebugInfo, the table that Fedora and its
//! kin leave xz-compressed in stripped files.

use crate::elf::{ElfError, open_regular};
use object::elf::{
    FileHeader64, SHF_ALLOC, SHF_EXECINSTR, SHF_TLS, SHN_UNDEF, SHT_DYNSYM, SHT_SYMTAB, STB_GLOBAL,
    STB_LOCAL, STT_COMMON, STT_FUNC, STT_GNU_IFUNC, STT_NOTYPE, STT_OBJECT, STT_TLS, SectionType, Sym64,
};
use object::read::elf::{FileHeader as _, SectionHeader as _, SectionTable, Sym as _, SymbolTable};
use object::{Endianness, ReadCache, ReadRef, SymbolIndex};
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::Path;

/// Largest compressed table that is read, in bytes; real ones are below a megabyte.
const MAX_PACKED: u64 = 64 << 20;
/// Largest table that is unpacked, in bytes.
const MAX_UNPACKED: u64 = 256 << 20;
/// Memory for unpacking, in KiB: twice what xz's strongest preset needs.
const MEMORY_LIMIT: u32 = 128 << 10;
/// How many symbols that overlap an address's neighbourhood are looked at.
const MAX_OVERLAP: usize = 64;

/// What kind of thing is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Functions. Without a size they reach up to the next one.
    Function,
    /// Variables and tables: addresses within `start..start + size`, nothing beyond.
    Data,
    /// Variables of each thread; `start` is where they lie in the file's block of thread-local storage.
    ThreadLocal,
}

/// A function or data object in a symbol table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Symbol {
    /// Mangled name.
    pub(crate) name: String,
    /// Its first address.
    pub(crate) start: u64,
    /// Its size; 0 if the table does not tell, which only functions are excused for.
    pub(crate) size: u64,
}

/// For each address the function or object that the tables of the file have there.
pub(crate) fn look_up(file: &Path, addresses: &[u64], kind: Kind) -> Result<Vec<Option<Symbol>>, ElfError> {
    let cache = ReadCache::new(open_regular(file)?);
    let elf = Elf::parse(&cache)?;
    let mut found = vec![None; addresses.len()];
    elf.fill(&mut found, addresses, SHT_SYMTAB, kind)?;
    elf.fill(&mut found, addresses, SHT_DYNSYM, kind)?;
    if found.iter().any(Option::is_none)
        && let Some((_, section)) = elf.sections.section_by_name(elf.endian, b".gnu_debugdata")
        && section.sh_size(elf.endian) <= MAX_PACKED
        && let Ok(table) = unpack(section.data(elf.endian, elf.data)?)
    {
        Elf::parse(table.as_slice())?.fill(&mut found, addresses, SHT_SYMTAB, kind)?;
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

/// The parts of a file that symbols are read with.
struct Elf<'data, R: ReadRef<'data>> {
    data: R,
    endian: Endianness,
    sections: SectionTable<'data, FileHeader64<Endianness>, R>,
}

impl<'data, R: ReadRef<'data>> Elf<'data, R> {
    fn parse(data: R) -> Result<Self, ElfError> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        Ok(Elf { data, endian, sections: header.sections(endian, data)? })
    }

    /// Looks up the addresses that have nothing yet in one table.
    fn fill(
        &self,
        found: &mut [Option<Symbol>],
        addresses: &[u64],
        table: SectionType,
        kind: Kind,
    ) -> Result<(), ElfError> {
        let symbols = self.sections.symbols(self.endian, self.data, table)?;
        let entries = self.entries(&symbols, table, kind);
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

    /// The symbols of a kind, ascending.
    fn entries(
        &self,
        symbols: &SymbolTable<'data, FileHeader64<Endianness>, R>,
        table: SectionType,
        kind: Kind,
    ) -> Vec<Entry> {
        let endian = self.endian;
        let tls = self.tls_size();
        let is_wanted = |index: SymbolIndex, symbol: &Sym64<Endianness>| match kind {
            Kind::Function => {
                let is_function = match symbol.st_type() {
                    STT_FUNC | STT_GNU_IFUNC => true,
                    STT_NOTYPE => table == SHT_SYMTAB,
                    _ => false,
                };
                // A dynamic table is sparse: without a size it tells nothing of what follows.
                let is_placed = symbol.st_size(endian) > 0 || table == SHT_SYMTAB;
                is_function && is_placed && symbol.st_value(endian) > 0
            }
            Kind::Data => {
                let is_data = match symbol.st_type() {
                    STT_OBJECT | STT_COMMON => true,
                    // Hand-written tables often have no type.
                    STT_NOTYPE => table == SHT_SYMTAB,
                    _ => false,
                };
                is_data && self.is_data_in_section(symbols, index, symbol)
            }
            Kind::ThreadLocal => {
                let size = symbol.st_size(endian);
                symbol.st_type() == STT_TLS
                    && size > 0
                    && symbol.st_value(endian).checked_add(size).is_some_and(|end| end <= tls)
            }
        };
        let mut entries: Vec<Entry> = symbols
            .enumerate()
            .filter(|(_, symbol)| symbol.st_shndx(endian) != SHN_UNDEF)
            .filter(|&(index, symbol)| is_wanted(index, symbol))
            .map(|(_, symbol)| Entry {
                start: symbol.st_value(endian),
                size: symbol.st_size(endian),
                max_end: 0,
                is_global: match kind {
                    Kind::Function => symbol.st_bind() == STB_GLOBAL,
                    // The variables that people know are weak: `environ` beside `__environ`.
                    Kind::Data | Kind::ThreadLocal => symbol.st_bind() != STB_LOCAL,
                },
                name: symbol.st_name(endian),
            })
            .collect();
        entries.sort_by_key(|entry| entry.start);
        let mut max_end = 0;
        for entry in &mut entries {
            max_end = entry.start.saturating_add(entry.size).max(max_end);
            entry.max_end = max_end;
        }
        entries
    }

    /// Whether a symbol lies wholly in the section that it says, which is loaded into memory. Anything else would be
    /// no address (an absolute or a common symbol's value) or swallow its neighbours (a size that cannot be true).
    fn is_data_in_section(
        &self,
        symbols: &SymbolTable<'data, FileHeader64<Endianness>, R>,
        index: SymbolIndex,
        symbol: &Sym64<Endianness>,
    ) -> bool {
        let endian = self.endian;
        let (start, size) = (symbol.st_value(endian), symbol.st_size(endian));
        let Ok(Some(section)) = symbols.symbol_section(endian, symbol, index) else { return false };
        let Ok(section) = self.sections.section(section) else { return false };
        let flags = section.sh_flags(endian);
        // Functions without a type are code; tables in code have one.
        let is_code = symbol.st_type() == STT_NOTYPE && flags.contains(SHF_EXECINSTR);
        let holds = |range: Range<u64>| {
            range.contains(&start) && start.checked_add(size).is_some_and(|end| end <= range.end)
        };
        let first = section.sh_addr(endian);
        let range = first..first.saturating_add(section.sh_size(endian));
        size > 0 && flags.contains(SHF_ALLOC) && !flags.contains(SHF_TLS) && !is_code && holds(range)
    }

    /// The size of the file's block of thread-local storage: its sections for that, which adjoin.
    fn tls_size(&self) -> u64 {
        let sections = self.sections.iter().filter(|section| section.sh_flags(self.endian).contains(SHF_TLS));
        let (mut first, mut end) = (u64::MAX, 0);
        for section in sections {
            let start = section.sh_addr(self.endian);
            first = first.min(start);
            end = start.saturating_add(section.sh_size(self.endian)).max(end);
        }
        end.saturating_sub(first)
    }
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
