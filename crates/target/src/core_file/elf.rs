//! The ELF header and the program headers.

use super::notes::MappedFile;
use super::{half, quarter, word};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// A run of memory, or of notes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    pub is_notes: bool,
    /// Where its bytes are in the file.
    pub offset: u64,
    pub file_size: u64,
    /// First address.
    pub start: u64,
    /// At least the size in the file.
    pub memory_size: u64,
    pub readable: bool,
    pub writable: bool,
    pub executable: bool,
    /// It has no program header; the list of mapped files tells of it, but not of its permissions.
    pub is_listed_only: bool,
}

/// What is used of the headers.
#[derive(Debug, Default)]
pub struct Header {
    pub segments: Vec<Segment>,
}

const HEADER: u64 = 64;
const ENTRY: usize = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
/// "More than fits here; see the first section header."
const PN_XNUM: u16 = 0xffff;

impl Header {
    /// Reads the headers of a file of `length` bytes.
    pub fn read(file: &File, length: u64) -> Result<Header, String> {
        let header = bytes(file, 0, HEADER.min(length)).ok_or("it cannot be read")?;
        check_kind(&header)?;
        let cut =
            |what: &str| format!("it is cut short: {length} bytes, too few for its {what}; dump it again");
        let table = word(&header, 32).ok_or_else(|| cut("header"))?;
        let entry = quarter(&header, 54).ok_or_else(|| cut("header"))?;
        let mut count = u64::from(quarter(&header, 56).ok_or_else(|| cut("header"))?);
        if usize::from(entry) != ENTRY {
            return Err(format!("its program headers have {entry} bytes each instead of {ENTRY}"));
        }
        if count == u64::from(PN_XNUM) {
            let sections = word(&header, 40).ok_or_else(|| cut("header"))?;
            let section = bytes(file, sections, 64).ok_or_else(|| cut("section header"))?;
            count = u64::from(half(&section, 44).ok_or_else(|| cut("section header"))?);
        }
        let size = count * ENTRY as u64;
        if table.checked_add(size).is_none_or(|end| end > length) {
            return Err(cut(&format!("{count} program headers")));
        }
        let table = bytes(file, table, size).ok_or_else(|| cut("program headers"))?;
        let mut segments = Vec::new();
        for entry in table.as_chunks::<ENTRY>().0 {
            segments.extend(segment(entry)?);
        }
        check_length(&segments, length)?;
        Ok(Header { segments })
    }
}

fn check_kind(header: &[u8]) -> Result<(), String> {
    if !header.starts_with(b"\x7fELF") {
        return Err(
            "it is not an ELF file, so not a core file (if it is compressed, uncompress it first)".into()
        );
    }
    match (header.get(4), header.get(5)) {
        (Some(2), Some(1)) => {}
        (Some(1), _) => return Err("it is of a 32-bit process, which leakscope does not know".into()),
        _ => return Err("it is of a big-endian machine or is damaged".into()),
    }
    match (quarter(header, 16), quarter(header, 18)) {
        (Some(ET_CORE), Some(EM_X86_64)) => Ok(()),
        (Some(ET_CORE), Some(machine)) => {
            let name = match machine {
                183 => "aarch64",
                243 => "RISC-V",
                21 => "PowerPC",
                22 => "S/390",
                3 => "32-bit x86",
                _ => "an unknown architecture",
            };
            Err(format!(
                "it is of a process for {name} (ELF machine {machine}); leakscope knows x86-64 so far"
            ))
        }
        (Some(1..=3), _) => {
            Err("it is a program or library, not a core file; name the core file, and this by --exe".into())
        }
        (Some(kind), _) => Err(format!("it is an ELF file of type {kind}, not a core file (type 4)")),
        (None, _) => Err("it is cut short in its header".into()),
    }
}

fn segment(entry: &[u8; ENTRY]) -> Result<Option<Segment>, String> {
    let field = |at: usize| word(entry, at).unwrap_or(0);
    let kind = half(entry, 0).unwrap_or(0);
    if kind != PT_LOAD && kind != PT_NOTE {
        return Ok(None);
    }
    let flags = half(entry, 4).unwrap_or(0);
    let (offset, start, file_size, memory_size) = (field(8), field(16), field(32), field(40));
    let is_notes = kind == PT_NOTE;
    let memory_size = if is_notes { file_size } else { memory_size.max(file_size) };
    if start.checked_add(memory_size).is_none() || offset.checked_add(file_size).is_none() {
        return Err(format!(
            "a program header is damaged: {memory_size} bytes at {start:#x}, in the file at {offset}"
        ));
    }
    let [executable, writable, readable] = [1, 2, 4].map(|flag| flags & flag != 0);
    let is_listed_only = false;
    Ok(Some(Segment {
        is_notes,
        offset,
        file_size,
        start,
        memory_size,
        readable,
        writable,
        executable,
        is_listed_only,
    }))
}

/// A file that lost its end lost memory: rather no answer than a wrong one.
fn check_length(segments: &[Segment], length: u64) -> Result<(), String> {
    let end = |segment: &Segment| segment.offset + segment.file_size;
    let expected = segments.iter().map(end).max().unwrap_or(0);
    if expected <= length {
        return Ok(());
    }
    let cut = segments.iter().filter(|segment| end(segment) > length);
    let missing: u64 = cut
        .clone()
        .map(|segment| (end(segment) - length).min(segment.file_size))
        .fold(0, u64::saturating_add);
    let first = cut.min_by_key(|segment| segment.offset);
    let from = first.map_or(0, |first| first.start + length.saturating_sub(first.offset));
    Err(format!(
        "it is cut short: {length} bytes of {expected}; {missing} bytes of memory are missing, from address {from:#x} \
         on (a full disk, or a limit on the size of core files: ulimit -c, systemd's ProcessSizeMax); dump it again"
    ))
}

/// The runs of memory, sorted; of overlapping ones, what lies behind the start of the next is cut off.
pub fn disjoint(mut segments: Vec<Segment>) -> Vec<Segment> {
    segments.retain(|segment| segment.memory_size > 0);
    segments.sort_by_key(|segment| segment.start);
    let starts: Vec<u64> = segments.iter().skip(1).map(|segment| segment.start).collect();
    for (segment, next) in segments.iter_mut().zip(starts) {
        segment.memory_size = segment.memory_size.min(next - segment.start);
        segment.file_size = segment.file_size.min(segment.memory_size);
    }
    segments.retain(|segment| segment.memory_size > 0);
    segments
}

/// Runs that are in the list of mapped files and in no program header: gdb leaves those out that nobody has written to.
pub fn listed_only(loads: &[Segment], files: &[MappedFile]) -> Vec<Segment> {
    let mut gaps = Vec::new();
    for file in files {
        let mut at = file.start;
        let from = loads.partition_point(|load| load.start + load.memory_size <= file.start);
        let within = loads.iter().skip(from).take_while(|load| load.start < file.end);
        let ends =
            within.map(|load| (load.start, load.start + load.memory_size)).chain([(file.end, file.end)]);
        for (start, end) in ends {
            if start > at {
                let memory_size = start - at;
                let rest = Segment { readable: true, is_listed_only: true, ..Segment::default() };
                gaps.push(Segment { start: at, memory_size, ..rest });
            }
            at = at.max(end);
        }
    }
    gaps
}

/// Bytes of the file; the caller has bounded their number by the file's length.
pub fn bytes(file: &File, offset: u64, length: u64) -> Option<Vec<u8>> {
    let available = file.metadata().ok()?.len().checked_sub(offset)?;
    let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= available)?];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}
