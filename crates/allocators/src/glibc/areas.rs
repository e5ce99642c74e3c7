//! Address ranges: what is mapped, and what belongs to heaps.

use leakscope_target::Snapshot;
use std::ops::Range;

/// Ranges by address, not overlapping.
#[derive(Debug, Clone, Default)]
pub(crate) struct Areas {
    ranges: Vec<Range<u64>>,
}

impl Areas {
    /// Sorted and merged.
    pub(crate) fn new(mut ranges: Vec<Range<u64>>) -> Areas {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Areas { ranges: merged }
    }

    /// Private, writable memory of the snapshot: where a heap can be.
    pub(crate) fn writable(snapshot: &Snapshot) -> Areas {
        let heap = snapshot
            .mappings
            .iter()
            .filter(|mapping| mapping.readable && mapping.writable && !mapping.shared);
        Areas::new(heap.map(|mapping| mapping.start..mapping.end).collect())
    }

    /// The range that holds `address`.
    pub(crate) fn find(&self, address: u64) -> Option<&Range<u64>> {
        let behind = self.ranges.partition_point(|range| range.start <= address);
        self.ranges.get(behind.checked_sub(1)?).filter(|range| address < range.end)
    }

    pub(crate) fn contains(&self, address: u64) -> bool {
        self.find(address).is_some()
    }

    /// Whether all `length` bytes from `address` on are in one range.
    pub(crate) fn holds(&self, address: u64, length: u64) -> bool {
        let end = address.checked_add(length);
        self.find(address).is_some_and(|range| end.is_some_and(|end| end <= range.end))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.ranges.iter()
    }

    pub(crate) fn into_ranges(self) -> Vec<Range<u64>> {
        self.ranges
    }

    /// Bytes in all.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranges.iter().fold(0, |sum, range| sum + (range.end - range.start))
    }
}
