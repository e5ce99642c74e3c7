//! The program headers of a module, as they stand in memory.

use crate::modules::{half, word};
use leakscope_profile::Module;
use leakscope_target::Memory;

pub(crate) const LOAD: u32 = 1;
pub(crate) const DYNAMIC: u32 = 2;
pub(crate) const TLS: u32 = 7;
pub(crate) const EH_FRAME: u32 = 0x6474_e550;
/// More than any real file has.
const MOST: u16 = 64;

/// A segment (System V ABI, ELF-64 Object File Format).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) kind: u32,
    /// At run time; of thread-local storage, where its initial image lies.
    pub(crate) address: u64,
    /// In memory.
    pub(crate) size: u64,
    pub(crate) alignment: u64,
}

/// The segments of a module; none if its header cannot be read.
pub(crate) fn segments(memory: &dyn Memory, module: &Module) -> Vec<Segment> {
    let mut file = [0; 64];
    if !memory.read_exact(module.start, &mut file) || !file.starts_with(b"\x7fELF\x02") {
        return Vec::new();
    }
    let table = module.start.wrapping_add(word(&file, 32));
    let size = u64::from(half(&file, 54));
    let headers = (0..half(&file, 56).min(MOST)).map_while(|index| {
        let mut entry = [0; 56];
        memory.read_exact(table.wrapping_add(u64::from(index) * size), &mut entry).then_some(entry)
    });
    headers
        .map(|entry| Segment {
            kind: word(&entry, 0) as u32,
            address: module.bias.wrapping_add(word(&entry, 16)),
            size: word(&entry, 40),
            alignment: word(&entry, 48),
        })
        .collect()
}
