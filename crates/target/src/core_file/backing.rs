//! The files from which memory that was not dumped can be read.

use super::elf::Segment;
use super::memory::{CoreMemory, Piece};
use super::notes::Notes;
use super::{half, open_plain, quarter, word};
use crate::Memory;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// More files than this are not opened.
const MOST_FILES: usize = 512;
/// How many names a remark lists.
const MOST_NAMES: usize = 5;
const PT_LOAD: u32 = 1;
const PF_X: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;

/// The pieces of `loads` that were not dumped and stand in files that are the same as then.
pub fn find(
    loads: &mut [Segment],
    notes: &Notes,
    dumped: &CoreMemory,
    exe: Option<(&Path, &[u8])>,
    root: &Path,
    remarks: &mut Vec<String>,
) -> Vec<Piece> {
    let mut files: BTreeMap<&[u8], Option<Arc<File>>> = BTreeMap::new();
    let (mut pieces, mut others, mut absent) = (Vec::new(), Vec::new(), Vec::new());
    for load in loads.iter_mut().filter(|load| load.file_size < load.memory_size) {
        let (start, end) = (load.start + load.file_size, load.start + load.memory_size);
        let Some(mapped) = notes.file_at(start) else { continue };
        if !files.contains_key(&*mapped.path) {
            if files.len() >= MOST_FILES {
                continue;
            }
            let given =
                exe.filter(|&(_, executable)| executable == mapped.path).map(|(exe, _)| exe.to_owned());
            let file = given.or_else(|| under(root, &mapped.path)).and_then(|path| open_plain(&path).ok());
            let file = match file {
                Some(file) if is_other(&file, notes, dumped, &mapped.path) => {
                    others.push(name(&mapped.path));
                    None
                }
                Some(file) => Some(Arc::new(file)),
                None => {
                    absent.push(name(&mapped.path));
                    None
                }
            };
            files.insert(&mapped.path, file);
        }
        if let Some(Some(file)) = files.get(&*mapped.path) {
            let offset = mapped.offset + (start - mapped.start);
            if load.is_listed_only {
                load.executable = is_code(file, offset);
            }
            pieces.push(Piece { start, length: end.min(mapped.end) - start, file: file.clone(), offset });
        }
    }
    remark(
        remarks,
        &others,
        "have changed since the core file was written (other build id) and are not used",
    );
    remark(remarks, &absent, "are not there; what the core file leaves out for them cannot be read");
    pieces
}

fn remark(remarks: &mut Vec<String>, names: &[String], what: &str) {
    if !names.is_empty() {
        let listed: Vec<&str> = names.iter().take(MOST_NAMES).map(String::as_str).collect();
        let more = if names.len() > MOST_NAMES { ", ..." } else { "" };
        remarks.push(format!("{} mapped files {what}: {}{more}", names.len(), listed.join(", ")));
    }
}

fn name(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect::<String>().escape_debug().to_string()
}

/// A path of the core's under `root`, never outside of it.
fn under(root: &Path, path: &[u8]) -> Option<PathBuf> {
    let path = Path::new(OsStr::from_bytes(path.strip_suffix(b" (deleted)").unwrap_or(path)));
    let relative = path.strip_prefix("/").ok()?;
    relative.components().all(|part| matches!(part, Component::Normal(_))).then(|| root.join(relative))
}

/// Whether a file is another than the one that was mapped: both have a build id, and these differ. The kernel dumps
/// the first page of each mapped ELF file for this purpose.
fn is_other(file: &File, notes: &Notes, dumped: &CoreMemory, path: &[u8]) -> bool {
    let Some(first) = notes.files.iter().find(|mapped| mapped.path == path && mapped.offset == 0) else {
        return false;
    };
    let in_core = build_id(|offset, bytes| {
        first.start.checked_add(offset).is_some_and(|at| dumped.read_exact(at, bytes))
    });
    let in_file = build_id(|offset, bytes| file.read_exact_at(bytes, offset).is_ok());
    in_core.is_some() && in_core != in_file
}

/// Whether an ELF file maps what it has at `offset` as code.
fn is_code(file: &File, offset: u64) -> bool {
    let read = |offset: u64, bytes: &mut [u8]| file.read_exact_at(bytes, offset).is_ok();
    program_headers(read).is_some_and(|entries| {
        entries.iter().any(|entry| {
            let (start, size) = (word(entry, 8).unwrap_or(0), word(entry, 32).unwrap_or(0));
            // Mappings begin at a page, their content perhaps behind its beginning.
            half(entry, 0) == Some(PT_LOAD)
                && half(entry, 4).unwrap_or(0) & PF_X != 0
                && (start & !4095..start.saturating_add(size)).contains(&offset)
        })
    })
}

/// The program headers of an ELF file, whose bytes `read` gives by their offset.
fn program_headers(read: impl Fn(u64, &mut [u8]) -> bool) -> Option<Vec<[u8; 56]>> {
    let mut header = [0; 64];
    if !read(0, &mut header) || !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, count) = (word(&header, 32)?, quarter(&header, 56)?);
    (0..u64::from(count.min(64)))
        .map(|index| {
            let mut entry = [0; 56];
            read(table.checked_add(index * 56)?, &mut entry).then_some(entry)
        })
        .collect()
}

/// The build id of an ELF file, whose bytes `read` gives by their offset.
fn build_id(read: impl Fn(u64, &mut [u8]) -> bool) -> Option<Vec<u8>> {
    for entry in program_headers(&read)? {
        let (offset, size) = (word(&entry, 8)?, word(&entry, 32)?);
        if half(&entry, 0)? != PT_NOTE || size > 4096 {
            continue;
        }
        let mut notes = vec![0; usize::try_from(size).ok()?];
        if read(offset, &mut notes)
            && let Some(id) = build_id_note(&notes)
        {
            return Some(id);
        }
    }
    None
}

fn build_id_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let (name, length, kind) = (half(notes, 0)?, half(notes, 4)?, half(notes, 8)?);
        let start = usize::try_from(name).ok()?.checked_next_multiple_of(4)?.checked_add(12)?;
        let end = start.checked_add(usize::try_from(length).ok()?)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16)? == b"GNU\0" {
            return notes.get(start..end).map(<[u8]>::to_vec);
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
}
