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

/// Where `n_mmaps` is, in bytes before `sbrk_base`: up to 2.34; from 2.35, where an odd number of ints
/// (`hp_flags` came before it) leaves four bytes of padding behind them.
const COUNTS: [usize; 2] = [32, 36];

/// Finds the counts: `int n_mmaps, n_mmaps_max, max_n_mmaps, no_dyn_threshold; size_t mmapped_mem, max_mmapped_mem;
/// char *sbrk_base; size_t tcache_bins` (2.26 to 2.43), by the first address that `brk` gave, which is at most 15 bytes
/// before the first chunk of the main heap.
pub(crate) fn mapped(memory: &dyn Memory, module: &Module, first_chunk: u64) -> Option<Mapped> {
    const LARGEST: u64 = 16 << 20;
    const BEFORE: usize = 40;
    let mut found = None;
    for range in &module.data {
        let data = bytes(memory, range.start, (range.end - range.start).min(LARGEST) as usize);
        for offset in (BEFORE..data.len()).step_by(8) {
            let Some(base) = word_at(&data, offset) else { break };
            if base > first_chunk || first_chunk - base > 15 {
                continue;
            }
            for mapped in COUNTS.into_iter().filter_map(|before| counts(&data, offset, offset - before)) {
                // Ambiguity is no answer.
                if found.is_some_and(|found| found != mapped) {
                    return None;
                }
                found = Some(mapped);
            }
        }
    }
    found
}

/// The counts, with `sbrk_base` and `n_mmaps` at these offsets, if they make sense.
fn counts(data: &[u8], base: usize, at: usize) -> Option<Mapped> {
    let (count, limit, most, fixed) =
        (half_at(data, at)?, half_at(data, at + 4)?, half_at(data, at + 8)?, half_at(data, at + 12)?);
    let (bytes, most_bytes, lists) =
        (word_at(data, base - 16)?, word_at(data, base - 8)?, word_at(data, base + 8)?);
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
