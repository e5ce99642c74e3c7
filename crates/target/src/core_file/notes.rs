//! The notes: threads, files, arguments (linux/elfcore.h, fs/binfmt_elf.c).

use super::{half, word};
use crate::arch::{self, UserRegisters};

const NT_PRSTATUS: u32 = 1;
const NT_FPREGSET: u32 = 2;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_X86_XSTATE: u32 = arch::EXTENDED_STATE as u32;

/// A mapped file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MappedFile {
    pub start: u64,
    pub end: u64,
    /// Offset in the file in bytes.
    pub offset: u64,
    pub path: Vec<u8>,
}

/// A thread.
#[derive(Debug)]
pub struct CoreThread {
    pub tid: u32,
    pub registers: UserRegisters,
    /// An XSAVE area, or an FXSAVE area if there is no such.
    pub extended: Vec<u8>,
}

/// All that is used of the notes.
#[derive(Debug, Default)]
pub struct Notes {
    pub threads: Vec<CoreThread>,
    /// By address.
    pub files: Vec<MappedFile>,
    pub auxv: Vec<(u64, u64)>,
    pub pid: u32,
    pub name: Vec<u8>,
    pub command: Vec<Vec<u8>>,
}

impl Notes {
    /// Reads one segment of notes, up to the first that is damaged.
    pub fn add(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((kind, content, tail)) = next(rest) {
            self.note(kind, content);
            rest = tail;
        }
        self.files.sort_by_key(|file| file.start);
    }

    fn note(&mut self, kind: u32, content: &[u8]) {
        match kind {
            NT_PRSTATUS => self.threads.extend(thread(content)),
            // These two belong to the thread before them.
            NT_FPREGSET => {
                if let Some(thread) = self.threads.last_mut().filter(|thread| thread.extended.is_empty()) {
                    thread.extended = content.to_vec();
                }
            }
            NT_X86_XSTATE => {
                if let Some(thread) = self.threads.last_mut() {
                    thread.extended = content.to_vec();
                }
            }
            NT_PRPSINFO => self.process(content),
            NT_AUXV => self.auxv = leakscope_proc::parse_auxv(content),
            NT_FILE => self.files.extend(files(content)),
            _ => {}
        }
    }

    /// `struct elf_prpsinfo`: pid at 24, 16 bytes of name at 40, 80 bytes of arguments at 56.
    fn process(&mut self, content: &[u8]) {
        let text = |from: usize, length: usize| {
            let field = content.get(from..from + length).unwrap_or(&[]);
            field.split(|&byte| byte == 0).next().unwrap_or(&[]).to_vec()
        };
        self.pid = half(content, 24).unwrap_or(0);
        self.name = text(40, 16);
        let arguments = text(56, 80);
        let words = arguments.split(|&byte| byte == b' ').filter(|word| !word.is_empty());
        self.command = words.map(<[u8]>::to_vec).collect();
    }

    /// The file mapped at `address`.
    pub fn file_at(&self, address: u64) -> Option<&MappedFile> {
        let behind = self.files.partition_point(|file| file.start <= address);
        let file = self.files.get(behind.checked_sub(1)?)?;
        (address < file.end).then_some(file)
    }
}

/// The next note's kind and content, and what follows it.
fn next(bytes: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let (name, length, kind) = (half(bytes, 0)?, half(bytes, 4)?, half(bytes, 8)?);
    let aligned = |size: u32| usize::try_from(size).ok()?.checked_next_multiple_of(4);
    let start = aligned(name)?.checked_add(12)?;
    let content = bytes.get(start..)?.get(..usize::try_from(length).ok()?)?;
    // The last one may lack its padding.
    let tail = bytes.get(start.checked_add(aligned(length)?)?..).unwrap_or(&[]);
    Some((kind, content, tail))
}

/// `struct elf_prstatus`: pid at 32, registers at 112.
fn thread(content: &[u8]) -> Option<CoreThread> {
    let mut words = [0; 27];
    for (index, register) in words.iter_mut().enumerate() {
        *register = word(content, 112 + 8 * index)?;
    }
    Some(CoreThread { tid: half(content, 32)?, registers: arch::from_core(&words), extended: Vec::new() })
}

/// A count, the page size, then start, end and offset in pages of each, then their names.
fn files(content: &[u8]) -> Vec<MappedFile> {
    let (Some(count), Some(page)) = (word(content, 0), word(content, 8)) else { return Vec::new() };
    let table = content.get(16..).unwrap_or(&[]).as_chunks::<24>().0;
    let Some(table) = usize::try_from(count).ok().and_then(|count| table.get(..count)) else {
        return Vec::new();
    };
    let names = content.get(16 + 24 * table.len()..).unwrap_or(&[]).split(|&byte| byte == 0);
    table
        .iter()
        .zip(names)
        .filter_map(|(entry, name)| {
            let (start, end, offset) = (word(entry, 0)?, word(entry, 8)?, word(entry, 16)?);
            let offset = offset.checked_mul(page)?;
            offset.checked_add(end.checked_sub(start)?)?;
            Some(MappedFile { start, end, offset, path: name.to_vec() })
        })
        .collect()
}
