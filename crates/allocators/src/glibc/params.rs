//! `struct malloc_par mp_`: how many mmapped chunks there are, to check the search for them by.

use crate::modules::Module;
use crate::read::{bytes, half_at, word_at};
use leakscope_target::Memory;

/// What malloc counts of its mmapped chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Mapped {
    pub count: u64,
    pub bytes: u64,
}

/// Finds the counts: `int n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold; size_t mmapped_mem, max_mmapped_mem;
/// char *sbrk_base; size_t tcache_bins`, the same from 2.26 to 2.43, by the first address that `brk` gave, which is at
/// most 15 bytes before the first chunk of the main heap.
pub(crate) fn mapped(memory: &dyn Memory, module: &Module, first_chunk: u64) -> Option<Mapped> {
    const LARGEST: u64 = 16 << 20;
    const BEFORE: usize = 32;
    let mut found = None;
    for range in &module.data {
        let data = bytes(memory, range.start, (range.end - range.start).min(LARGEST) as usize);
        for offset in (BEFORE..data.len()).step_by(8) {
            let Some(base) = word_at(&data, offset) else { break };
            if base > first_chunk || first_chunk - base > 15 {
                continue;
            }
            let mapped = counts(&data, offset - BEFORE);
            // Ambiguity is no answer.
            if mapped.is_some() && found.is_some() && mapped != found {
                return None;
            }
            found = mapped.or(found);
        }
    }
    found
}

fn counts(data: &[u8], at: usize) -> Option<Mapped> {
    let (count, limit, most, fixed) =
        (half_at(data, at)?, half_at(data, at + 4)?, half_at(data, at + 8)?, half_at(data, at + 12)?);
    let (bytes, most_bytes, lists) =
        (word_at(data, at + 16)?, word_at(data, at + 24)?, word_at(data, at + 40)?);
    let plausible = count <= most
        && most <= limit
        && fixed <= 1
        && bytes % 0x1000 == 0
        && most_bytes % 0x1000 == 0
        && bytes <= most_bytes
        && (count == 0) == (bytes == 0)
        && lists <= 76;
    plausible.then_some(Mapped { count: u64::from(count), bytes })
}
