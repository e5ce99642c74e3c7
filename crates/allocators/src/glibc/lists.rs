//! Chunks that are free although the next chunk says they are in use: those in fastbins and per-thread caches.

use super::areas::Areas;
use super::arena::Arena;
use super::layout::{FLAGS, HEADER, IS_MMAPPED, Layout, MIN_CHUNK, Tcache};
use crate::read::Cache;
use std::ops::ControlFlow;

/// Free chunks by address. The kind is in the lowest bit, which a chunk's address does not use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cached {
    /// Chunk address, plus 1 if it is in a fastbin.
    chunks: Vec<u64>,
}

impl Cached {
    pub(crate) fn push(&mut self, chunk: u64, fastbin: bool) {
        self.chunks.push(chunk | u64::from(fastbin));
    }

    /// Sorted, each once; returns how many were there twice, which only a damaged list can cause.
    pub(crate) fn finish(&mut self) -> usize {
        self.chunks.sort_unstable();
        let before = self.chunks.len();
        self.chunks.dedup_by_key(|chunk| *chunk & !1);
        self.chunks.shrink_to_fit();
        before - self.chunks.len()
    }

    /// Those from `address` on, for a walk in the order of addresses.
    pub(crate) fn from(&self, address: u64) -> Cursor<'_> {
        let behind = self.chunks.partition_point(|&chunk| chunk < address);
        Cursor { rest: self.chunks.get(behind..).unwrap_or(&[]) }
    }

    pub(crate) fn contains(&self, chunk: u64) -> bool {
        self.from(chunk).free(chunk).is_some()
    }
}

/// A position in [`Cached`].
pub(crate) struct Cursor<'a> {
    rest: &'a [u64],
}

impl Cursor<'_> {
    /// Whether `chunk` is free, and in a fastbin (`Some(true)`) or a cache. Asked in the order of addresses.
    #[inline]
    pub(crate) fn free(&mut self, chunk: u64) -> Option<bool> {
        loop {
            let &next = self.rest.first()?;
            if next & !1 > chunk {
                return None;
            }
            self.rest = self.rest.get(1..).unwrap_or(&[]);
            if next & !1 == chunk {
                return Some(next & 1 == 1);
            }
        }
    }
}

/// How following a list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// At its null.
    Whole,
    /// At something that is no chunk of that list, or back at a chunk seen before.
    Broken,
}

/// Follows a list of at most `most` places, from `first` on. `next` returns the place after one, or `None` where it is
/// not of the list. Cycles end by Brent's algorithm: the place at each power of two is remembered.
pub(crate) fn follow(
    first: u64,
    most: u64,
    mut next: impl FnMut(u64) -> Option<u64>,
    mut each: impl FnMut(u64) -> ControlFlow<()>,
) -> End {
    let (mut at, mut count, mut remembered, mut power) = (first, 0u64, 0, 1u64);
    while at != 0 {
        if count >= most || at == remembered {
            return End::Broken;
        }
        let Some(following) = next(at) else { return End::Broken };
        if each(at).is_break() {
            return End::Broken;
        }
        count += 1;
        if count == power {
            (remembered, power) = (at, power.saturating_mul(2));
        }
        at = following;
    }
    End::Whole
}

/// Adds the chunks of an arena's fastbins; says which lists are broken.
pub(crate) fn fastbins(
    cache: &mut Cache,
    arena: &Arena,
    layout: &Layout,
    areas: &Areas,
    into: &mut Cached,
) -> Vec<usize> {
    let mut broken = Vec::new();
    let most = areas.bytes() / MIN_CHUNK;
    for (index, &head) in arena.fastbins.iter().enumerate() {
        let wanted = MIN_CHUNK + index as u64 * 0x10;
        let next = |chunk: u64| {
            if !chunk.is_multiple_of(16)
                || !areas.contains(chunk)
                || cache.word(chunk.checked_add(8)?)? & !FLAGS != wanted
            {
                return None;
            }
            let place = chunk.checked_add(HEADER)?;
            Some(layout.reveal(place, cache.word(place)?))
        };
        let end = follow(head, most, next, |chunk| {
            into.push(chunk, true);
            ControlFlow::Continue(())
        });
        if end == End::Broken {
            broken.push(index);
        }
    }
    broken
}

/// What a per-thread cache holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Chunk addresses.
    pub chunks: Vec<u64>,
    /// Lists that did not end at null.
    pub broken: Vec<u64>,
    /// Lists with entries that were whole.
    pub whole: usize,
}

/// Entries of the per-thread cache at `address`, followed to null whatever the counts say.
pub(crate) fn tcache(
    cache: &mut Cache,
    address: u64,
    kind: &Tcache,
    layout: &Layout,
    heaps: &Areas,
    writable: &Areas,
) -> Option<Contents> {
    /// A count is 16 bits wide, and limits what glibc itself puts into a list.
    const MOST: u64 = 1 << 16;
    let mut contents = Contents::default();
    for index in 0..kind.bins {
        let head = cache.word(address.checked_add(kind.bins * kind.count + index * 8)?)?;
        let next = |block: u64| {
            let chunk = block.checked_sub(HEADER).filter(|_| block.is_multiple_of(16))?;
            if !heaps.contains(chunk) && !writable.contains(chunk) {
                return None;
            }
            let size = cache.word(chunk + 8)?;
            let mmapped = size & IS_MMAPPED != 0;
            if !kind.fits(index, size & !FLAGS) || (mmapped && !layout.mmapped_like_others) {
                return None;
            }
            if !mmapped && !heaps.contains(chunk) {
                return None;
            }
            Some(layout.reveal(block, cache.word(block)?))
        };
        let before = contents.chunks.len();
        let end = follow(head, MOST, next, |block| {
            contents.chunks.push(block - HEADER);
            ControlFlow::Continue(())
        });
        match end {
            End::Broken => contents.broken.push(index),
            End::Whole => contents.whole += usize::from(contents.chunks.len() > before),
        }
    }
    Some(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walked(links: &[(u64, u64)], first: u64, most: u64) -> (Vec<u64>, End) {
        let mut seen = Vec::new();
        let next = |at| links.iter().find(|&&(from, _)| from == at).map(|&(_, to)| to);
        let end = follow(first, most, next, |at| {
            seen.push(at);
            ControlFlow::Continue(())
        });
        (seen, end)
    }

    #[test]
    fn a_list_ends_at_null_at_a_stranger_at_a_cycle_and_at_its_bound() {
        assert_eq!(walked(&[(1, 2), (2, 3), (3, 0)], 1, 9), (vec![1, 2, 3], End::Whole));
        assert_eq!(walked(&[(1, 2)], 1, 9), (vec![1], End::Broken));
        assert_eq!(walked(&[(1, 2), (2, 3), (3, 0)], 1, 2), (vec![1, 2], End::Broken));
        let (seen, end) = walked(&[(1, 2), (2, 3), (3, 4), (4, 2)], 1, 1000);
        assert_eq!(end, End::Broken);
        assert!(seen.len() < 12, "{seen:?}");
        assert_eq!(walked(&[(1, 1)], 1, 1000), (vec![1], End::Broken));
        assert_eq!(walked(&[], 0, 9), (vec![], End::Whole));
    }

    #[test]
    fn a_cursor_finds_what_is_cached_in_the_order_of_addresses() {
        let mut cached = Cached::default();
        for (chunk, fastbin) in [(0x30, true), (0x10, false), (0x30, true), (0x50, false)] {
            cached.push(chunk, fastbin);
        }
        assert_eq!(cached.finish(), 1);
        let mut cursor = cached.from(0x10);
        assert_eq!(cursor.free(0x10), Some(false));
        assert_eq!(cursor.free(0x20), None);
        assert_eq!(cursor.free(0x30), Some(true));
        assert_eq!(cursor.free(0x60), None);
        assert!(cached.contains(0x50) && !cached.contains(0x40));
    }
}
