//! Sets of addresses as sorted ranges.

use std::ops::Range;

/// Sorted, merged, without empty ones.
pub(crate) fn normalize(ranges: impl IntoIterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.into_iter().filter(|range| range.start < range.end).collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// What of `range` lies in `set`, which is normalized.
pub(crate) fn within<'a>(
    set: &'a [Range<u64>],
    range: &Range<u64>,
) -> impl Iterator<Item = Range<u64>> + use<'a> {
    let Range { start, end } = *range;
    let first = set.partition_point(|part| part.end <= start);
    let parts = set.get(first..).unwrap_or_default().iter().take_while(move |part| part.start < end);
    parts.map(move |part| part.start.max(start)..part.end.min(end))
}

/// What of `range` does not lie in `set`, which is normalized.
pub(crate) fn without(set: &[Range<u64>], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut from = range.start;
    for hole in within(set, range) {
        if from < hole.start {
            rest.push(from..hole.start);
        }
        from = hole.end;
    }
    if from < range.end {
        rest.push(from..range.end);
    }
    rest
}

/// Whether `set`, which is normalized, holds `address`.
pub(crate) fn holds(set: &[Range<u64>], address: u64) -> bool {
    let at = set.partition_point(|range| range.end <= address);
    set.get(at).is_some_and(|range| range.start <= address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_merged_and_subtracted() {
        let set = normalize([30..40, 10..20, 15..25, 50..50, 40..45]);
        assert_eq!(set, [10..25, 30..45]);
        assert_eq!(within(&set, &(20..35)).collect::<Vec<_>>(), [20..25, 30..35]);
        assert_eq!(without(&set, &(5..50)), [5..10, 25..30, 45..50]);
        assert!(holds(&set, 24) && !holds(&set, 25) && !holds(&set, 9));
    }
}
