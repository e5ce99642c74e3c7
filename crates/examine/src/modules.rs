//! The executable and libraries of a snapshot, as far as naming addresses needs them.

use leakscope_profile::{End, Module, Process};
use leakscope_target::{Mapping, Memory, Snapshot, Source};
use std::path::Path;
use std::time::{Duration, SystemTime};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
/// More program headers than any real file has.
const MAX_HEADERS: u16 = 64;
const MAX_NOTES: usize = 64 << 10;

/// The process as reports name it.
pub(crate) fn process(snapshot: &Snapshot) -> Process {
    let lossy = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    Process {
        pid: snapshot.pid,
        start_time: start_time(snapshot.start_ticks),
        command: snapshot.command.iter().map(lossy).collect(),
        executable: lossy(&snapshot.executable),
        end: if snapshot.source == Source::Core { End::Unknown } else { End::Running },
    }
}

/// When a process started, from its start time in clock ticks since boot.
fn start_time(ticks: u64) -> Option<SystemTime> {
    if ticks == 0 {
        return None;
    }
    let text = std::fs::read_to_string(Path::new("/proc/stat")).ok()?;
    let boot: u64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    // SAFETY: sysconf has no preconditions.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&hz| hz > 0)?;
    let since_boot = Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(boot))?.checked_add(since_boot)
}

/// The modules: runs of mappings of one file with code in it.
pub(crate) fn modules(snapshot: &Snapshot) -> Vec<Module> {
    let mut modules: Vec<Module> = Vec::new();
    let mut rest = snapshot.mappings.as_slice();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if first.path.first() != Some(&b'/') || first.offset != 0 {
            continue;
        }
        // The file's other mappings follow, with the loader's anonymous ones (.bss) among them.
        let same = |mapping: &&Mapping| mapping.path == first.path && mapping.inode == first.inode;
        let own = others.iter().take_while(|mapping| same(mapping) || mapping.path.is_empty());
        let own: Vec<&Mapping> = std::iter::once(first).chain(own.filter(same)).collect();
        if !own.iter().any(|mapping| mapping.executable) {
            continue;
        }
        let end = own.last().map_or(first.end, |last| last.end);
        let header = Header::read(&*snapshot.memory, first.start);
        modules.push(Module {
            path: String::from_utf8_lossy(&first.path).into_owned(),
            build_id: header.build_id,
            start: first.start,
            end,
            bias: header.bias,
            unloaded: false,
        });
        let behind = others.partition_point(|mapping| mapping.start < end);
        rest = others.get(behind..).unwrap_or(&[]);
    }
    modules
}

/// What the ELF header in memory says.
#[derive(Default)]
struct Header {
    bias: u64,
    build_id: Vec<u8>,
}

impl Header {
    /// Of the file mapped at `start` (System V ABI, ELF-64 Object File Format).
    fn read(memory: &dyn Memory, start: u64) -> Header {
        let mut file = [0; 64];
        if !memory.read_exact(start, &mut file) || !file.starts_with(b"\x7fELF\x02") {
            return Header { bias: start, ..Header::default() };
        }
        let table = start.wrapping_add(word(&file, 32));
        let size = half(&file, 54);
        let mut header = Header { bias: start, ..Header::default() };
        let mut has_load = false;
        for index in 0..half(&file, 56).min(MAX_HEADERS) {
            let mut entry = [0; 56];
            let at = table.wrapping_add(u64::from(index) * u64::from(size));
            if !memory.read_exact(at, &mut entry) {
                break;
            }
            let (kind, offset, address, length) =
                (word(&entry, 0) as u32, word(&entry, 8), word(&entry, 16), word(&entry, 32));
            if kind == PT_LOAD && !has_load {
                has_load = true;
                // The first segment's page is what is mapped at `start`.
                header.bias = start.wrapping_sub(address.wrapping_sub(offset));
            }
            if kind == PT_NOTE && header.build_id.is_empty() {
                let mut notes = vec![0; usize::try_from(length).unwrap_or(MAX_NOTES).min(MAX_NOTES)];
                let read = memory.read(header.bias.wrapping_add(address), &mut notes);
                notes.truncate(read);
                header.build_id = build_id(&notes).unwrap_or_default();
            }
        }
        header
    }
}

/// The build id among notes.
fn build_id(mut notes: &[u8]) -> Option<Vec<u8>> {
    loop {
        let field = |at: usize| notes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let (name, content, kind) = (field(0)? as usize, field(4)? as usize, field(8)?);
        let start = 12usize.checked_add(name.checked_next_multiple_of(4)?)?;
        let end = start.checked_add(content)?;
        if kind == NT_GNU_BUILD_ID && notes.get(12..16) == Some(b"GNU\0") {
            return Some(notes.get(start..end)?.to_vec());
        }
        notes = notes.get(start.checked_add(content.checked_next_multiple_of(4)?)?..)?;
    }
}

pub(crate) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

pub(crate) fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|half| half.try_into().ok()).map_or(0, u16::from_ne_bytes)
}
