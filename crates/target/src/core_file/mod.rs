//! Core files: ELF files of type `ET_CORE` as the kernel, gdb's `gcore` and others write them (core(5), elf(5)).
//!
//! Nothing in them is trusted: every offset and count is checked against the file's length.

mod arguments;
mod backing;
mod elf;
mod memory;
mod notes;

use crate::{Error, Mapping, Memory, Snapshot, Source, Thread, arch};
use elf::{Header, Segment};
use memory::CoreMemory;
use notes::Notes;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// More notes than this are not read: those of 20,000 threads.
const MOST_NOTES: u64 = 256 << 20;
/// Entries of the auxiliary vector (getauxval(3)).
const AT_PHDR: u64 = 3;
const AT_ENTRY: u64 = 9;
const AT_EXECFN: u64 = 31;
const AT_SYSINFO_EHDR: u64 = 33;

/// Opens a core file. What it leaves out since it stands in files (code, mostly) is read from these: from `exe` for
/// the program, else from the paths that the core names under `root` (`/`, or the root of the system that it comes
/// from); if they have another build id, they are not used and a note says so.
///
/// # Errors
/// If it is no core file of a 64-bit x86 process, is cut short, or cannot be read.
pub fn open(path: &Path, exe: Option<&Path>, root: &Path) -> Result<Snapshot, Error> {
    read(path, exe, root).map_err(|reason| Error::Core { path: path.to_owned(), reason })
}

fn read(path: &Path, exe: Option<&Path>, root: &Path) -> Result<Snapshot, String> {
    let file = open_plain(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let Header { segments } = Header::read(&file, length)?;
    let mut notes = Notes::default();
    let mut left = MOST_NOTES;
    for segment in segments.iter().filter(|segment| segment.is_notes) {
        left = left.checked_sub(segment.file_size).ok_or("its notes are larger than 256 MiB")?;
        let bytes = elf::bytes(&file, segment.offset, segment.file_size).ok_or("its notes cannot be read")?;
        notes.add(&bytes);
    }
    if notes.threads.is_empty() {
        return Err("it holds no thread's registers (no NT_PRSTATUS note)".into());
    }
    let mut loads = elf::disjoint(segments.into_iter().filter(|segment| !segment.is_notes).collect());
    let listed = elf::listed_only(&loads, &notes.files);
    loads.extend(listed);
    let mut loads = elf::disjoint(loads);
    let file = Arc::new(file);
    let mut remarks = Vec::new();
    let dumped = CoreMemory::new(file.clone(), &loads, Vec::new());
    let executable = executable(&notes);
    let backing =
        backing::find(&mut loads, &notes, &dumped, exe.map(|exe| (exe, &*executable)), root, &mut remarks);
    let memory = CoreMemory::new(file, &loads, backing);
    let missing: u64 = loads
        .iter()
        .filter(|load| load.writable)
        .map(|load| memory.missing(load.start, load.memory_size))
        .sum();
    if missing > 0 {
        remarks.push(format!(
            "{} KiB of writable memory were not dumped (MADV_DONTDUMP, or /proc/PID/coredump_filter)",
            missing / 1024
        ));
    }
    let stack = loads.iter().find(|load| holds(load, &notes, AT_EXECFN));
    let whole = stack.and_then(|stack| arguments::find(&memory, stack, &notes.auxv));
    let command = whole.filter(|whole| !whole.is_empty()).unwrap_or_else(|| notes.command.clone());
    Ok(Snapshot {
        pid: notes.pid,
        start_ticks: 0,
        command,
        mappings: mappings(&loads, &notes),
        threads: threads(&notes),
        auxv: notes.auxv,
        executable,
        memory: Box::new(memory),
        source: Source::Core,
        pause: None,
        root: root.to_owned(),
        notes: remarks,
    })
}

/// Opens a regular file for reading: nothing that could block or that acts when opened.
fn open_plain(path: &Path) -> std::io::Result<File> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

fn value(notes: &Notes, kind: u64) -> Option<u64> {
    notes.auxv.iter().find(|&&(found, _)| found == kind).map(|&(_, value)| value)
}

/// Whether a run of memory holds what an entry of the auxiliary vector points to.
fn holds(load: &Segment, notes: &Notes, kind: u64) -> bool {
    value(notes, kind).is_some_and(|address| (load.start..load.start + load.memory_size).contains(&address))
}

/// The program is the file that holds its entry point.
fn executable(notes: &Notes) -> Vec<u8> {
    [AT_PHDR, AT_ENTRY]
        .iter()
        .filter_map(|&kind| notes.file_at(value(notes, kind)?))
        .map(|file| file.path.clone())
        .next()
        .unwrap_or_default()
}

fn threads(notes: &Notes) -> Vec<Thread> {
    notes
        .threads
        .iter()
        .map(|thread| Thread {
            tid: thread.tid,
            name: if thread.tid == notes.pid { notes.name.clone() } else { Vec::new() },
            registers: arch::from_user(&thread.registers, &thread.extended, arch::Xsave::Elsewhere),
        })
        .collect()
}

fn mappings(loads: &[Segment], notes: &Notes) -> Vec<Mapping> {
    let mut paths: Vec<&[u8]> = notes.files.iter().map(|file| &*file.path).collect();
    paths.sort_unstable();
    paths.dedup();
    loads
        .iter()
        .map(|load| {
            let file = notes.file_at(load.start);
            let path = match file {
                Some(file) => file.path.clone(),
                None if holds(load, notes, AT_EXECFN) => b"[stack]".to_vec(),
                None if holds(load, notes, AT_SYSINFO_EHDR) => b"[vdso]".to_vec(),
                None => Vec::new(),
            };
            // A core file does not tell inodes: a number for each path says what belongs together.
            let inode = file
                .and_then(|file| paths.binary_search(&&*file.path).ok())
                .map_or(0, |index| index as u64 + 1);
            Mapping {
                start: load.start,
                end: load.start + load.memory_size,
                readable: load.readable,
                writable: load.writable,
                executable: load.executable,
                // Nor whether memory is shared.
                shared: false,
                offset: file.map_or(0, |file| file.offset + (load.start - file.start)),
                device: 0,
                inode,
                path,
            }
        })
        .collect()
}

/// The word at an offset, little-endian.
fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The 32-bit number at an offset, little-endian.
fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The 16-bit number at an offset, little-endian.
fn quarter(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Memory in which a place can be said to be missing.
trait Missing: Memory {
    /// How many bytes of a range cannot be read.
    fn missing(&self, start: u64, length: u64) -> u64;
}

#[cfg(test)]
mod tests;
