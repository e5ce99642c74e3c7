//! Damaged and foreign files.

use super::*;
use std::io::Write;

/// A small core file: one thread, one mapped page.
fn small() -> Vec<u8> {
    let mut status = vec![0; 336];
    status[32..36].copy_from_slice(&77u32.to_le_bytes());
    // rsp is the twentieth of the registers.
    status[112 + 19 * 8..112 + 20 * 8].copy_from_slice(&0x1010u64.to_le_bytes());
    let mut files = Vec::new();
    for number in [1u64, 4096, 0x5000, 0x6000, 2] {
        files.extend(number.to_le_bytes());
    }
    files.extend(b"/nowhere/file\0");
    let mut notes = Vec::new();
    for (kind, content) in [(1u32, &status), (0x4649_4c45, &files)] {
        notes.extend(5u32.to_le_bytes());
        notes.extend((content.len() as u32).to_le_bytes());
        notes.extend(kind.to_le_bytes());
        notes.extend(b"CORE\0\0\0\0");
        notes.extend(content);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
    file.extend([0u32.to_le_bytes()].concat());
    file.extend([64u16, 56, 3, 0, 0, 0].map(u16::to_le_bytes).concat());
    let notes_at = 64 + 3 * 56;
    let memory_at = notes_at + notes.len() as u64;
    for (kind, flags, offset, start, file_size, memory_size) in [
        (4u32, 0u32, notes_at, 0, notes.len() as u64, 0),
        (1, 6, memory_at, 0x1000, 4096, 4096),
        (1, 5, memory_at + 4096, 0x5000, 0, 4096),
    ] {
        file.extend([kind, flags].map(u32::to_le_bytes).concat());
        file.extend([offset, start, 0, file_size, memory_size, 1].map(u64::to_le_bytes).concat());
    }
    file.extend(notes);
    file.extend((0..4096).map(|byte| byte as u8));
    file
}

fn opened(bytes: &[u8]) -> Result<Snapshot, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    open(file.path(), None, Path::new("/nonexistent")).map_err(|error| error.to_string())
}

#[test]
fn a_small_core_file_is_read() {
    let snapshot = opened(&small()).unwrap();
    assert_eq!((snapshot.threads[0].tid, snapshot.threads[0].registers.sp), (77, 0x1010));
    let memory = &snapshot.memory;
    assert_eq!(memory.word(0x1008), Some(u64::from_le_bytes([8, 9, 10, 11, 12, 13, 14, 15])));
    let mut buffer = [0; 64];
    assert_eq!(memory.read(0x1ff0, &mut buffer), 16);
    assert_eq!(memory.read(0x5000, &mut buffer), 0);
    assert_eq!(snapshot.mappings.len(), 2);
    assert_eq!((&*snapshot.mappings[1].path, snapshot.mappings[1].offset), (&b"/nowhere/file"[..], 8192));
    assert!(snapshot.mappings[0].writable && snapshot.mappings[1].executable);
    assert!(snapshot.notes[0].contains("/nowhere/file"), "{:?}", snapshot.notes);
}

#[test]
fn a_file_that_is_something_else_is_named() {
    let change = |at: usize, bytes: &[u8]| {
        let mut file = small();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        opened(&file).err().unwrap()
    };
    assert!(change(18, &[183, 0]).contains("aarch64"));
    assert!(change(4, &[1]).contains("32-bit"));
    assert!(change(5, &[2]).contains("big-endian"));
    assert!(change(16, &[2, 0]).contains("not a core file"));
    assert!(change(0, b"PK").contains("not an ELF file"));
    assert!(opened(b"").err().unwrap().contains("not an ELF file"));
    assert!(opened(b"\x7fELF\x02\x01").err().unwrap().contains("cut short"));
    assert!(open(Path::new("/dev/zero"), None, Path::new("/")).is_err());
    assert!(open(Path::new("/nonexistent"), None, Path::new("/")).is_err());
}

#[test]
fn a_cut_file_says_how_much_is_missing() {
    let file = small();
    let error = opened(&file[..file.len() - 96]).err().unwrap();
    assert!(error.contains(&format!("{} bytes of {}", file.len() - 96, file.len())), "{error}");
    assert!(error.contains("96 bytes of memory are missing, from address 0x1fa0"), "{error}");
}

#[test]
fn no_damage_makes_it_panic_or_hang() {
    let whole = small();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for round in 0..4000 {
        let mut file = whole.clone();
        for _ in 0..=next(6) {
            // Mostly in the headers and notes, where it matters.
            let at = next(if round % 4 == 0 { file.len() } else { 700 });
            file[at] = if next(2) == 0 { next(256) as u8 } else { 0xff };
        }
        if next(8) == 0 {
            file.truncate(next(file.len()));
        }
        if let Ok(snapshot) = opened(&file) {
            for mapping in &snapshot.mappings {
                let mut buffer = [0; 100];
                snapshot.memory.read(mapping.start, &mut buffer);
                snapshot.memory.read(mapping.end.wrapping_sub(50), &mut buffer);
            }
        }
    }
}
