//! The table of blocks, compared with a plain list.

mod common;

use common::collect;
use leakscope_reach::{Block, Blocks};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What stays of blocks pushed: of several at one address the largest, and none that starts in the one before it.
fn kept(list: &[(u64, u64)]) -> Vec<Block> {
    let mut largest = BTreeMap::new();
    for &(address, size) in list.iter().filter(|(address, _)| *address != 0) {
        let known = largest.entry(address).or_insert(size);
        *known = size.max(*known);
    }
    let mut kept: Vec<Block> = Vec::new();
    for (address, size) in largest {
        if kept.last().is_none_or(|last| last.address.saturating_add(last.size.max(1)) <= address) {
            kept.push(Block { address, size });
        }
    }
    kept
}

fn check(list: &[(u64, u64)]) {
    let blocks = collect(list.iter().copied());
    let kept = kept(list);
    assert_eq!(blocks.iter().collect::<Vec<_>>(), kept);
    assert_eq!(blocks.len(), kept.len());
    let find = |address: u64| {
        // Ends are one past the last byte, so the very last byte there is belongs to none.
        let address = (address < u64::MAX).then_some(address)?;
        let at = kept.partition_point(|block| block.address <= address).checked_sub(1)?;
        let block = kept[at];
        (address == block.address || address - block.address < block.size).then_some(at)
    };
    for (index, block) in kept.iter().enumerate() {
        assert_eq!(blocks.get(index), Some(*block));
        assert_eq!(blocks.size(index), Some(block.size));
        let end = block.address.saturating_add(block.size);
        for near in
            [block.address, end, block.address / 2 + end / 2, block.address + (end - block.address).min(4096)]
        {
            for address in near.saturating_sub(9)..=near.saturating_add(9) {
                assert_eq!(blocks.find(address), find(address), "{address:#x}");
            }
        }
    }
    for address in [0, 1, 4096, 1 << 34, 1 << 46, (1 << 47) - 1, 1 << 47, u64::MAX - 1, u64::MAX] {
        assert_eq!(blocks.find(address), find(address), "{address:#x}");
    }
    assert_eq!(blocks.get(kept.len()), None);
    assert_eq!(blocks.get(usize::MAX), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_address_is_found_in_the_block_that_holds_it(
        list in prop::collection::vec(
            (
                prop_oneof![
                    8 => (0..4000u64).prop_map(|at| 0x5555_0000_0000 + at * 8),
                    2 => (0..4000u64).prop_map(|at| 0x7f00_0000_0000 + at * 8),
                    2 => 0x7f00_0010_0000..0x7f00_0010_8000u64,
                    1 => (0..1000u64).prop_map(|at| 0x7f00_0400_0000 + (at << 20)),
                    1 => any::<u64>(),
                    1 => 0..1u64 << 47
                ],
                prop_oneof![
                    1 => Just(0u64),
                    10 => 0..200u64,
                    2 => 0..20_000u64,
                    1 => 0..1u64 << 25,
                    1 => any::<u64>()
                ],
            ),
            0..300,
        )
    ) {
        check(&list);
    }
}

#[test]
fn runs_in_any_order_are_merged() {
    // Several arenas, each ascending, of more than one chunk; and thousands of short runs.
    let arena = |base: u64| (0..70_000u64).map(move |at| (base + at * 32, 24));
    let arenas: Vec<_> =
        [0x7f00_0000_0000, 0x5555_0000_0000, 0x7e00_0000_0000].into_iter().flat_map(arena).collect();
    let blocks = collect(arenas.iter().copied());
    assert!(blocks.iter().eq(kept(&arenas)));
    assert!(blocks.iter_from(100_000).eq(kept(&arenas).into_iter().skip(100_000)));
    let scattered: Vec<_> =
        arenas.iter().enumerate().map(|(at, _)| arenas[at * 7919 % arenas.len()]).collect();
    assert!(collect(scattered).iter().eq(kept(&arenas)));
}

#[test]
fn a_block_of_the_whole_address_space_hides_those_inside_it() {
    let blocks = collect([(4096, 1 << 47), (0x5555_0000_0000, 16), ((1 << 47) + 4096, 8)]);
    assert_eq!((blocks.len(), blocks.dropped()), (2, 1));
    assert_eq!(blocks.find(0x5555_0000_0000), Some(0));
    assert_eq!(blocks.find((1 << 47) + 4095), Some(0));
    assert_eq!(blocks.find((1 << 47) + 4096), Some(1));
}

#[test]
fn a_table_scattered_over_the_address_space_takes_little_memory() {
    // Would take 32 GiB if every block had tables of its own.
    let list: Vec<_> = (1..100_000u64).map(|at| ((at * 0x4f1b_cdc8) & !7, 16)).collect();
    check(&list[..5000]);
    assert_eq!(collect(list).len(), 99_999);
}

#[test]
fn no_blocks_are_no_trouble() {
    let blocks = Blocks::default();
    assert!(blocks.is_empty());
    assert_eq!((blocks.get(0), blocks.find(0), blocks.iter().next()), (None, None, None));
    assert!(collect([]).is_empty());
}
