//! Which glibc a module is, from the module itself: never from the machine that leakscope runs on.

use super::layout::Version;
use crate::modules::Module;
use leakscope_target::Memory;
use memchr::memmem::Finder;

/// How much of a module's read-only memory is searched; a C library has 2 MiB.
const LARGEST: u64 = 64 << 20;
/// Read at a time.
const PIECE: usize = 1 << 20;
/// Overlap of pieces: longer than the banner.
const OVERLAP: usize = 512;

/// Whether the module holds glibc's malloc by the look of its data, and which version if it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Banner {
    /// The release.
    pub version: Option<Version>,
    /// Strings that only glibc has, banner or not (static executables mostly lack it).
    pub glibc: bool,
}

/// Searches a module's read-only memory for glibc's banner, `GNU C Library (...) stable release version 2.36.`
pub(crate) fn banner(memory: &dyn Memory, module: &Module) -> Banner {
    let library = Finder::new(b"GNU C Library (");
    let release = Finder::new(b"release version ");
    // The message of glibc's own malloc when its top chunk is overwritten; in no other allocator.
    let malloc = Finder::new(b"malloc(): corrupted top size");
    let older = Finder::new(b"malloc(): memory corruption");
    let mut found = Banner::default();
    let mut budget = LARGEST;
    let mut buffer = vec![0; PIECE];
    for range in &module.read_only {
        let mut at = range.start;
        while at < range.end && budget > 0 {
            let length = usize::try_from((range.end - at).min(PIECE as u64)).unwrap_or(PIECE);
            let Some(piece) = buffer.get_mut(..length) else { break };
            let read = memory.read(at, piece);
            let piece = piece.get(..read).unwrap_or(&[]);
            if let Some(position) = library.find(piece) {
                let rest = piece.get(position..).unwrap_or(&[]);
                let rest = rest.get(..OVERLAP.min(rest.len())).unwrap_or(&[]);
                // Distributions put their own name and package version into the parentheses.
                if let Some(version) =
                    release.find(rest).and_then(|start| rest.get(start + 16..)).and_then(Version::parse)
                {
                    return Banner { version: Some(version), glibc: true };
                }
            }
            found.glibc = found.glibc || malloc.find(piece).is_some() || older.find(piece).is_some();
            budget = budget.saturating_sub(length as u64);
            if at + length as u64 >= range.end {
                break;
            }
            at += (length - OVERLAP) as u64;
        }
    }
    found
}
