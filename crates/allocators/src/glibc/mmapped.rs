//! Chunks with a mapping of their own. Nothing lists them: they are found by their headers.
//!
//! A chunk's mapping starts with a header whose size is that of the mapping and has `IS_MMAPPED` alone set. An aligned
//! one lies further on, with its distance from there in `prev_size`; the first header stays behind, out of date.
//! The kernel merges neighbouring mappings, so several can follow each other in one.

use super::areas::Areas;
use super::layout::{FLAGS, HEADER, IS_MMAPPED, Layout, PAGE, align};
use super::params::Mapped;
use leakscope_target::{Memory, Snapshot};
use std::ops::Range;

/// An mmapped chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Its mapping.
    pub area: Range<u64>,
    pub address: u64,
    /// Size without flags, as its header has it.
    pub size: u64,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// By address.
    pub chunks: Vec<Chunk>,
    /// Pages that were not looked at because the budget was spent.
    pub skipped: u64,
}

impl Found {
    fn total(&self) -> Mapped {
        let bytes = self.chunks.iter().map(|chunk| chunk.area.end - chunk.area.start).sum();
        Mapped { count: self.chunks.len() as u64, bytes }
    }
}

/// Pages looked at one by one where no chunk starts at the beginning of a mapping: 16 GiB.
const BUDGET: u64 = 4 << 20;

/// All mmapped chunks outside `elsewhere` (heaps and stacks). With `expected`, the search ends once that is found.
pub(crate) fn find(
    snapshot: &Snapshot,
    layout: &Layout,
    elsewhere: &Areas,
    expected: Option<Mapped>,
) -> Found {
    let memory = &*snapshot.memory;
    let runs = runs(snapshot, elsewhere);
    let mut found = Found::default();
    // Most chunks begin a run or follow one that does.
    let mut rest = Vec::new();
    for run in runs {
        let mut at = run.start;
        while let Some(chunk) = chunk_at(memory, layout, at, run.end) {
            at = chunk.area.end;
            found.chunks.push(chunk);
        }
        rest.push(at..run.end);
    }
    let mut budget = BUDGET;
    for run in rest {
        if expected.is_some_and(|expected| found.total() == expected) {
            break;
        }
        let mut at = run.start;
        while at < run.end {
            if budget == 0 {
                found.skipped += (run.end - at) / PAGE;
                break;
            }
            budget -= 1;
            match chunk_at(memory, layout, at, run.end) {
                Some(chunk) => {
                    at = chunk.area.end;
                    found.chunks.push(chunk);
                }
                None => at += PAGE,
            }
        }
    }
    found.chunks.sort_by_key(|chunk| chunk.address);
    found
}

/// Runs of adjacent anonymous private mappings, without heaps and stacks: a chunk may span several, since `madvise` and
/// `mprotect` split mappings.
fn runs(snapshot: &Snapshot, elsewhere: &Areas) -> Vec<Range<u64>> {
    let anonymous =
        |path: &[u8]| path.is_empty() || path.starts_with(b"[anon") || path.starts_with(b"/anon_hugepage");
    let mut runs: Vec<Range<u64>> = Vec::new();
    for mapping in &snapshot.mappings {
        if mapping.shared || !mapping.readable || !anonymous(&mapping.path) {
            continue;
        }
        let mut start = mapping.start;
        for other in elsewhere.iter().filter(|other| other.start < mapping.end && other.end > mapping.start) {
            push(&mut runs, start..other.start);
            start = start.max(other.end);
        }
        push(&mut runs, start..mapping.end);
    }
    runs
}

fn push(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    if run.start >= run.end {
        return;
    }
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

/// The chunk whose mapping starts at `base` (a page), if there is one; it must end by `end`.
fn chunk_at(memory: &dyn Memory, layout: &Layout, base: u64, end: u64) -> Option<Chunk> {
    let plain = header(memory, layout, base, base)?;
    if let Some(chunk) = aligned(memory, layout, base, end) {
        return Some(chunk);
    }
    let whole = base.checked_add(layout.mapped(plain)?).filter(|&whole| whole <= end);
    // An aligned chunk that `mremap` moved is at no round address any more, and the first header's size is out of date.
    let followed = whole.is_some_and(|whole| whole == end || header(memory, layout, whole, whole).is_some());
    if !followed {
        let last = whole.unwrap_or(end).min(base.saturating_add(1 << 30));
        let mut page = base + PAGE;
        while page < last {
            if let Some(chunk) = chunk_of(memory, layout, base, page - HEADER, end) {
                return Some(chunk);
            }
            page += PAGE;
        }
    }
    Some(Chunk { area: base..whole?, address: base, size: plain })
}

/// An aligned chunk in the mapping that starts at `base`: one header before an address of each power of two.
fn aligned(memory: &dyn Memory, layout: &Layout, base: u64, end: u64) -> Option<Chunk> {
    for shift in 5..47 {
        let user = align(base.checked_add(HEADER)?, 1 << shift)?;
        // Before 2.43 the space in front is at least the smallest chunk, so the next round address may be meant.
        for user in [user, user.checked_add(1 << shift)?] {
            let chunk = user - HEADER;
            if chunk > base
                && chunk < end
                && let Some(chunk) = chunk_of(memory, layout, base, chunk, end)
            {
                return Some(chunk);
            }
        }
        if user >= end {
            break;
        }
    }
    None
}

fn chunk_of(memory: &dyn Memory, layout: &Layout, base: u64, chunk: u64, end: u64) -> Option<Chunk> {
    let size = header(memory, layout, base, chunk)?;
    let whole = chunk.checked_add(layout.mapped(size)?).filter(|&whole| whole <= end)?;
    Some(Chunk { area: base..whole, address: chunk, size })
}

/// The size of the chunk at `chunk`, if its header is that of one in the mapping that starts at `base`.
fn header(memory: &dyn Memory, layout: &Layout, base: u64, chunk: u64) -> Option<u64> {
    let mut header = [0; 16];
    if !memory.read_exact(chunk, &mut header) {
        return None;
    }
    let header = u128::from_le_bytes(header);
    let (distance, word) = (header as u64, (header >> 64) as u64);
    // From 2.43 the lowest bit says that the mapping is of huge pages.
    let distance = if layout.mmapped_like_others { distance & !1 } else { distance };
    let size = word & !FLAGS;
    let mapping = layout.mapped(size)?.checked_add(distance)?;
    (distance == chunk.wrapping_sub(base)
        && word & (FLAGS | 8) == IS_MMAPPED
        && size != 0
        && mapping % PAGE == 0)
        .then_some(size)
}
