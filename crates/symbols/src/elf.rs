//! What leakscope must know of an ELF file before it trusts it with names.
//!
//! Read with plain reads instead of a memory mapping, since the file may be truncated by someone else at any
//! time. Nothing here trusts the file.

use object::elf::{
    ELF_NOTE_GNU, ELFCOMPRESS_ZSTD, FileHeader64, NT_GNU_BUILD_ID, PF_X, SHF_ALLOC, SHF_EXECINSTR,
    SHT_NOBITS, SectionHeader64,
};
use object::read::elf::{
    CompressionHeader as _, FileHeader as _, NoteIterator, ProgramHeader as _, SectionHeader as _,
};
use object::{Endianness, ReadCache};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A section may decompress to at most this many times its size (deflate allows a thousand, debug information
/// reaches ten), unless it is small.
const MAX_COMPRESSION_RATIO: u64 = 64;
/// Sections up to this size may have any ratio.
const SMALL_SECTION: u64 = 1 << 20;
/// Build ids are 20 bytes (SHA-1) nearly always; longer than this is nonsense.
const MAX_BUILD_ID: usize = 64;

/// Why an ELF file is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ElfError {
    /// Could not be opened or read.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// A directory, device or pipe.
    #[error("not a regular file")]
    NotAFile,
    /// Not a 64-bit ELF file, or a broken one.
    #[error("not a usable 64-bit ELF file: {0}")]
    Malformed(#[from] object::Error),
    /// A section claims to decompress to more than can be true.
    #[error("a compressed section is implausibly large")]
    CompressionBomb,
}

impl ElfError {
    /// Whether there is simply no such file.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, ElfError::Io(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory))
    }
}

/// The facts about one ELF file.
#[derive(Debug, Clone, Default)]
pub(crate) struct ElfFile {
    /// GNU build id; empty if it has none.
    pub(crate) build_id: Vec<u8>,
    /// File name and CRC-32 of the separate debug file.
    pub(crate) debug_link: Option<(OsString, u32)>,
    /// Whether it holds DWARF.
    pub(crate) has_dwarf: bool,
    /// Whether that DWARF is compressed by a method that blazesym is built without.
    pub(crate) has_zstd: bool,
    /// Whether it holds a symbol table of its own (not just the dynamic one), be it packed as MiniDebugInfo.
    pub(crate) has_symtab: bool,
    /// Addresses of code in the file, ascending and disjoint as far as the file is sane: its executable
    /// sections, or executable segments if it has no section headers.
    pub(crate) code: Vec<Range<u64>>,
}

impl ElfFile {
    /// Reads the facts about the file at `path`. Never blocks on a pipe or device.
    pub(crate) fn read(path: &Path) -> Result<ElfFile, ElfError> {
        let cache = ReadCache::new(open_regular(path)?);
        ElfFile::parse(&cache)
    }

    fn parse(data: &ReadCache<File>) -> Result<ElfFile, ElfError> {
        let header = FileHeader64::<Endianness>::parse(data)?;
        let endian = header.endian()?;
        let sections = header.sections(endian, data)?;
        let mut facts = ElfFile::default();
        for section in sections.iter() {
            let flags = section.sh_flags(endian);
            if flags.contains(SHF_ALLOC) && flags.contains(SHF_EXECINSTR) {
                push_range(&mut facts.code, section.sh_addr(endian), section.sh_size(endian));
            }
            if section.sh_type(endian) == SHT_NOBITS || section.sh_size(endian) == 0 {
                continue;
            }
            facts.has_zstd |= check_compression(section, endian, data)?;
            match sections.section_name(endian, section) {
                Ok(b".debug_info") => facts.has_dwarf = true,
                Ok(b".symtab" | b".gnu_debugdata") => facts.has_symtab = true,
                Ok(b".gnu_debuglink") => facts.debug_link = debug_link(section, endian, data),
                _ => {}
            }
            if facts.build_id.is_empty() {
                facts.build_id = build_id(section.notes(endian, data), endian);
            }
        }
        // Without section headers the segments tell as much.
        for segment in header.program_headers(endian, data)? {
            if facts.build_id.is_empty() {
                facts.build_id = build_id(segment.notes(endian, data), endian);
            }
            if sections.is_empty() && segment.p_flags(endian).contains(PF_X) {
                push_range(&mut facts.code, segment.p_vaddr(endian), segment.p_memsz(endian));
            }
        }
        facts.code.sort_by_key(|range| range.start);
        Ok(facts)
    }
}

/// Opens a regular file for reading; a pipe or device, whose opening or reading could block, is an error.
pub(crate) fn open_regular(path: &Path) -> Result<File, ElfError> {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(ElfError::NotAFile) }
}

fn push_range(ranges: &mut Vec<Range<u64>>, start: u64, size: u64) {
    if let Some(end) = start.checked_add(size)
        && size > 0
    {
        ranges.push(start..end);
    }
}

/// Whether the section is compressed with zstd. An error if it claims to be more than a decompressor should be
/// asked to produce.
fn check_compression(
    section: &SectionHeader64<Endianness>,
    endian: Endianness,
    data: &ReadCache<File>,
) -> Result<bool, ElfError> {
    let Some((header, _offset, compressed)) = section.compression(endian, data)? else { return Ok(false) };
    let plausible = compressed.saturating_mul(MAX_COMPRESSION_RATIO).max(SMALL_SECTION);
    if header.ch_size(endian) > plausible {
        return Err(ElfError::CompressionBomb);
    }
    Ok(header.ch_type(endian) == ELFCOMPRESS_ZSTD)
}

/// The build id among some notes; empty if there is none or the notes are broken.
fn build_id(
    notes: object::Result<Option<NoteIterator<'_, FileHeader64<Endianness>>>>,
    endian: Endianness,
) -> Vec<u8> {
    let Ok(Some(mut notes)) = notes else { return Vec::new() };
    while let Ok(Some(note)) = notes.next() {
        if note.name() == ELF_NOTE_GNU && note.n_type(endian) == NT_GNU_BUILD_ID {
            let id = note.desc();
            return if id.len() <= MAX_BUILD_ID { id.to_vec() } else { Vec::new() };
        }
    }
    Vec::new()
}

/// The name and CRC in a `.gnu_debuglink` section: a C string, padding to four bytes, the CRC. None if broken.
fn debug_link(
    section: &SectionHeader64<Endianness>,
    endian: Endianness,
    data: &ReadCache<File>,
) -> Option<(OsString, u32)> {
    let bytes = section.data(endian, data).ok()?;
    let name = bytes.split(|&byte| byte == 0).next()?;
    let crc_at = (name.len() + 1).next_multiple_of(4);
    let crc: [u8; 4] = bytes.get(crc_at..crc_at.checked_add(4)?)?.try_into().ok()?;
    // Only a plain file name: anything else would lead out of the directories that are searched.
    let plain = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
    plain.then(|| (OsString::from_vec(name.to_vec()), u32::from_le_bytes(crc)))
}

/// The CRC-32 that a debug link records, over the whole file.
pub(crate) fn debug_link_crc(path: &Path) -> Result<u32, ElfError> {
    use std::io::Read as _;
    let mut file = open_regular(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

/// Lower-case hexadecimal, as build ids are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
