//! The tracer's shared object: what a loader would do with it, done from outside.
//!
//! The object has no needed libraries, no initialisers that must run, and few kinds of relocation. Its text holds none, so
//! it can be mapped from the file as it is; data are patched by leakscope, page by page of the process's private copy.
//!
//! Source: System V ABI, chapter 5, and its x86-64 supplement, chapter 4.4.

use object::Endianness;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, Sym};
use object::{elf, read};
use std::collections::BTreeMap;

type Header = elf::FileHeader64<Endianness>;

const PAGE: u64 = 4096;

/// A part of the object that is mapped from its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Page-aligned address in the object's own terms.
    pub address: u64,
    /// Page-aligned offset in the file.
    pub offset: u64,
    /// Bytes that come from the file, in whole pages.
    pub length: u64,
    /// `PROT_*`.
    pub protection: i32,
    /// What must read as zero although the file has bytes there: the rest of the last page.
    pub clear: (u64, u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    /// The object's base plus this.
    Own(u64),
    /// The address of something that the process has, plus this; 0 if it does not have it.
    Foreign(String, u64),
    /// Offset from the thread pointer of this place in the TLS segment.
    Thread(u64),
}

/// The object, taken apart.
#[derive(Debug, Clone)]
pub struct TracerObject {
    segments: Vec<Segment>,
    read_only: (u64, u64),
    span: u64,
    words: Vec<(u64, Value)>,
    functions: BTreeMap<String, u64>,
}

/// An object that cannot be put into a process: not one of leakscope's own making.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// It is no well-formed ELF file.
    #[error("the tracer's object is damaged: {0}")]
    Malformed(#[from] read::Error),
    /// It needs something that only a loader can do.
    #[error("the tracer's object cannot be put into a process: {0}")]
    Unsupported(String),
}

impl TracerObject {
    /// Takes the object apart.
    ///
    /// # Errors
    /// If it is damaged or needs a loader.
    pub fn parse(bytes: &[u8]) -> Result<TracerObject, ObjectError> {
        let header = Header::parse(bytes)?;
        let endian = header.endian()?;
        let mut object = TracerObject {
            segments: Vec::new(),
            read_only: (0, 0),
            span: 0,
            words: Vec::new(),
            functions: BTreeMap::new(),
        };
        for part in header.program_headers(endian, bytes)? {
            match part.p_type(endian) {
                elf::PT_LOAD => object.add_segment(part, endian)?,
                elf::PT_GNU_RELRO => {
                    let start = part.p_vaddr(endian) & !(PAGE - 1);
                    let end = part.p_vaddr(endian).saturating_add(part.p_memsz(endian)) & !(PAGE - 1);
                    object.read_only = (start, end);
                }
                elf::PT_DYNAMIC => object.check_needed(part, endian, bytes)?,
                _ => {}
            }
        }
        object.read_symbols(header, endian, bytes)?;
        Ok(object)
    }

    fn add_segment(
        &mut self,
        part: &elf::ProgramHeader64<Endianness>,
        endian: Endianness,
    ) -> Result<(), ObjectError> {
        let (address, offset) = (part.p_vaddr(endian), part.p_offset(endian));
        let (in_file, in_memory) = (part.p_filesz(endian), part.p_memsz(endian));
        let within = address % PAGE;
        let end = address.checked_add(in_memory).filter(|&end| end < 1 << 32 && in_file <= in_memory);
        let (Some(end), true) = (end, within == offset % PAGE) else {
            return Err(ObjectError::Unsupported("a segment's place".into()));
        };
        let flags = part.p_flags(endian);
        let flag =
            |flag: elf::ProgramFlags, protection: i32| if flags.0 & flag.0 != 0 { protection } else { 0 };
        let protection = flag(elf::PF_R, libc::PROT_READ)
            | flag(elf::PF_W, libc::PROT_WRITE)
            | flag(elf::PF_X, libc::PROT_EXEC);
        let length = (within + in_file).next_multiple_of(PAGE);
        let filled = address + in_file;
        let clear = if in_memory > in_file {
            (filled, filled.next_multiple_of(PAGE).min(end))
        } else {
            (filled, filled)
        };
        self.segments.push(Segment {
            address: address - within,
            offset: offset - within,
            length,
            protection,
            clear,
        });
        self.span = self.span.max(end.next_multiple_of(PAGE));
        Ok(())
    }

    fn check_needed(
        &self,
        part: &elf::ProgramHeader64<Endianness>,
        endian: Endianness,
        bytes: &[u8],
    ) -> Result<(), ObjectError> {
        for entry in part.dynamic(endian, bytes)?.unwrap_or(&[]) {
            if matches!(entry.d_tag(endian), elf::DT_NEEDED | elf::DT_TEXTREL | elf::DT_JMPREL) {
                return Err(ObjectError::Unsupported(format!("dynamic entry {}", entry.d_tag(endian).0)));
            }
        }
        Ok(())
    }

    fn read_symbols(&mut self, header: &Header, endian: Endianness, bytes: &[u8]) -> Result<(), ObjectError> {
        let sections = header.sections(endian, bytes)?;
        let symbols = sections.symbols(endian, bytes, elf::SHT_DYNSYM)?;
        for symbol in symbols.iter() {
            if !symbol.is_undefined(endian) && symbol.st_type() == elf::STT_FUNC {
                let name = symbol.name(endian, symbols.strings())?;
                self.functions.insert(String::from_utf8_lossy(name).into_owned(), symbol.st_value(endian));
            }
        }
        for section in sections.iter() {
            let Some((relocations, _)) = section.rela(endian, bytes)? else { continue };
            for relocation in relocations {
                let addend = relocation.r_addend(endian).cast_unsigned();
                let kind = relocation.r_type(endian, false);
                let value = match kind {
                    elf::R_X86_64_RELATIVE => Value::Own(addend),
                    elf::R_X86_64_TPOFF64 if relocation.r_sym(endian, false) == 0 => Value::Thread(addend),
                    elf::R_X86_64_64 | elf::R_X86_64_GLOB_DAT => {
                        let symbol =
                            symbols.symbol(read::SymbolIndex(relocation.r_sym(endian, false) as usize))?;
                        if symbol.is_undefined(endian) {
                            let name = symbol.name(endian, symbols.strings())?;
                            Value::Foreign(String::from_utf8_lossy(name).into_owned(), addend)
                        } else {
                            Value::Own(symbol.st_value(endian).wrapping_add(addend))
                        }
                    }
                    _ => return Err(ObjectError::Unsupported(format!("a relocation of type {kind}"))),
                };
                self.words.push((relocation.r_offset(endian), value));
            }
        }
        Ok(())
    }

    /// Bytes of address space, in whole pages.
    pub fn span(&self) -> u64 {
        self.span
    }

    /// What is mapped from the file; the rest of the span is memory that reads as zero.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What is made read-only once it has been relocated: start and end in the object's own terms.
    pub fn read_only(&self) -> (u64, u64) {
        self.read_only
    }

    /// An exported function, in the object's own terms.
    pub fn function(&self, name: &str) -> Option<u64> {
        self.functions.get(name).copied()
    }

    /// All exported functions.
    pub fn functions(&self) -> impl Iterator<Item = (&str, u64)> {
        self.functions.iter().map(|(name, &address)| (name.as_str(), address))
    }

    /// Names of what the process must provide, if it can.
    pub fn foreign(&self) -> Vec<&str> {
        let names = self.words.iter().filter_map(|(_, value)| match value {
            Value::Foreign(name, _) => Some(name.as_str()),
            _ => None,
        });
        names.collect()
    }

    /// The words that differ from the file when the object lies at `base`: addresses in its own terms, and values.
    /// `foreign` finds what the process provides, `thread` the offset from the thread pointer of a place in the TLS
    /// segment.
    pub fn relocate(
        &self,
        base: u64,
        foreign: impl Fn(&str) -> Option<u64>,
        thread: impl Fn(u64) -> u64,
    ) -> Vec<(u64, u64)> {
        let value = |value: &Value| match value {
            Value::Own(address) => base.wrapping_add(*address),
            Value::Foreign(name, addend) => foreign(name).map_or(0, |address| address.wrapping_add(*addend)),
            Value::Thread(place) => thread(*place),
        };
        self.words.iter().map(|(address, word)| (*address, value(word))).collect()
    }
}
