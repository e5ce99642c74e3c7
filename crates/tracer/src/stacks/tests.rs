use super::{ROOT, intern, mapping_of, stack_of};
use crate::testing::{Random, TestHeap};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::layout::{
    MAX_STACKS, MODULE_PSEUDO, NODE_BLOCK, NODE_BLOCKS, PC_BITS, PSEUDO_MAPPED, STACK_BLOCK,
};
use std::collections::{HashMap, HashSet};
use std::vec::Vec;

/// The number of the stack of these keys, outermost first.
fn number(heap: &TestHeap, keys: &[u64]) -> u32 {
    let parent = keys
        .iter()
        .fold(ROOT, |parent, &key| intern(heap.arena, heap.window, parent, key).expect("space for a node"));
    stack_of(heap.arena, heap.window, parent)
}

/// A stack out of few frames, so that many share their outer part.
fn random_stack(random: &mut Random) -> Vec<u64> {
    let depth = 1 + random.below(30);
    (0..depth)
        .map(|level| 0x1000 + level * 0x10000 + random.below(3) * 8 + (random.below(2) << PC_BITS))
        .collect()
}

#[test]
fn equal_stacks_have_one_number_and_different_ones_have_two() {
    let heap = TestHeap::new(64 << 20);
    let mut random = Random::new(1);
    let mut numbers: HashMap<Vec<u64>, u32> = HashMap::new();
    for _ in 0..20_000 {
        let keys = random_stack(&mut random);
        let stack = number(&heap, &keys);
        assert_ne!(stack, 0);
        let mut read = heap.keys_of(stack);
        read.reverse();
        assert_eq!(read, keys);
        assert_eq!(*numbers.entry(keys).or_insert(stack), stack);
    }
    assert_eq!(numbers.values().collect::<HashSet<_>>().len(), numbers.len());
    assert!(heap.window.nodes.load(Relaxed) as usize > 10 * NODE_BLOCK, "the index has grown several times");
    // A reader finds the same.
    let snapshot = heap.snapshot();
    assert_eq!(snapshot.bad_references, 0);
    for (keys, &stack) in &numbers {
        let mut node = snapshot.stacks[stack as usize].node as usize;
        for &key in keys.iter().rev() {
            assert_eq!(snapshot.nodes[node].key, key);
            node = snapshot.nodes[node].parent as usize;
        }
        assert_eq!(node, ROOT as usize);
    }
}

#[test]
fn a_stack_may_be_the_outer_part_of_another() {
    let heap = TestHeap::new(16 << 20);
    let keys: Vec<u64> = (1..=2 * STACK_BLOCK as u64).collect();
    let numbers: HashSet<u32> = (1..=keys.len()).map(|length| number(&heap, &keys[..length])).collect();
    assert_eq!(numbers.len(), keys.len());
    for length in [1, 2, 1000, keys.len()] {
        assert_eq!(heap.keys_of(number(&heap, &keys[..length])).len(), length);
    }
}

#[test]
fn threads_that_intern_the_same_stacks_lose_none() {
    let heap = TestHeap::new(128 << 20);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let heap = &heap;
            scope.spawn(move || {
                // Pairs of threads meet in the very same stacks.
                let mut random = Random::new(thread / 2);
                for _ in 0..10_000 {
                    let keys = random_stack(&mut random);
                    let mut read = heap.keys_of(number(heap, &keys));
                    read.reverse();
                    assert_eq!(read, keys);
                }
            });
        }
    });
    // Threads that raced may have made a node twice, and when the index grows either may come to be the one that is
    // found. Once nobody races, each stack keeps the number that it has then.
    let all_again = || {
        for pair in 0..2 {
            let mut random = Random::new(pair);
            for _ in 0..10_000 {
                number(&heap, &random_stack(&mut random));
            }
        }
        heap.snapshot().stacks.len()
    };
    assert_eq!(all_again(), all_again());
}

#[test]
fn a_mapping_is_told_from_a_block_of_the_same_stack() {
    let heap = TestHeap::new(16 << 20);
    let stack = number(&heap, &[1, 2, 3]);
    let mapping = mapping_of(heap.arena, heap.window, stack);
    assert_ne!(mapping, stack);
    let marker = u64::from(MODULE_PSEUDO) << PC_BITS | PSEUDO_MAPPED;
    assert_eq!(heap.keys_of(mapping), [marker, 3, 2, 1]);
    assert_eq!(mapping_of(heap.arena, heap.window, stack), mapping);
    assert_eq!(heap.keys_of(mapping_of(heap.arena, heap.window, 0)), [marker]);
}

#[test]
fn when_numbers_run_out_further_stacks_are_summed_under_0() {
    let heap = TestHeap::new(16 << 20);
    heap.window.stacks.store(MAX_STACKS - 2, Relaxed);
    let numbers: Vec<u32> = (1..=4).map(|key| number(&heap, &[key])).collect();
    assert_eq!(numbers, [MAX_STACKS - 2, MAX_STACKS - 1, 0, 0]);
    assert_eq!(number(&heap, &[1]), MAX_STACKS - 2);
    let most = (NODE_BLOCK * NODE_BLOCKS) as u32;
    heap.window.nodes.store(most - 1, Relaxed);
    assert_eq!(intern(heap.arena, heap.window, ROOT, 100), Some(most - 1));
    assert_eq!(intern(heap.arena, heap.window, ROOT, 101), None);
    assert_eq!(intern(heap.arena, heap.window, ROOT, 100), Some(most - 1));
}

#[test]
fn without_space_there_is_no_new_stack_and_the_old_ones_stay() {
    let heap = TestHeap::new(1 << 20);
    let first = number(&heap, &[7, 8, 9]);
    let refused = (0..200_000).find(|&key| intern(heap.arena, heap.window, ROOT, 1_000 + key).is_none());
    assert!(refused.is_some());
    assert_eq!(number(&heap, &[7, 8, 9]), first);
}
