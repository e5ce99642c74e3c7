//! The table against a hash map, alone and from several threads; what it costs per block; and what a thread
//! leaves behind that is stopped in the middle (`stopped.rs`).

mod memory;
mod stopped;

use super::{
    EXPECTED, Found, Inserted, MADE, RECENT, SpanPage, find, insert, locate, scan_region, span_of, span_page,
};
use super::{set_huge, take_huge};
use crate::testing::{Random, TestHeap};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::BlockKind;
use leakscope_heapfile::layout::{HUGE, MAPPED_SPACE, slot};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::vec::Vec;

/// The sizes that new regions get are learned process-wide, so these tests take turns.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let guard = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    EXPECTED.store(128, Relaxed);
    RECENT.iter().for_each(|recent| recent.store(0, Relaxed));
    MADE.store(0, Relaxed);
    guard
}

/// The table as a hook uses it.
#[derive(Clone, Copy)]
struct Table<'a>(&'a TestHeap);

impl Table<'_> {
    fn page(self, address: u64) -> Option<&'static SpanPage> {
        span_page(self.0.arena, self.0.window, span_of(address), false)
    }

    /// Inserts a block whose size and stack tell which insertion it was.
    fn insert(self, address: u64, value: u32) -> bool {
        let page = span_page(self.0.arena, self.0.window, span_of(address), true).expect("a span page");
        let words =
            (slot::word0(slot::HEAP, address, 1, stack_of(value)), slot::word1(value, tick_of(value)));
        matches!(
            insert(
                self.0.arena,
                self.0.window,
                page,
                locate(self.0.arena, page, address),
                address,
                words,
                u64::from(value)
            ),
            Inserted::Yes
        )
    }

    fn find(self, address: u64, state: u64) -> Option<Found> {
        let found = find(self.0.arena, self.page(address)?, address, state)?;
        assert_eq!(
            slot::stack(found.word0),
            stack_of(slot::size(found.word1)),
            "two halves of different blocks"
        );
        assert_eq!(slot::birth(found.word1), tick_of(slot::size(found.word1)));
        Some(found)
    }

    fn value(self, address: u64) -> Option<u32> {
        self.find(address, slot::HEAP).map(|found| slot::size(found.word1))
    }

    /// All blocks as a reader sees them.
    fn read(self) -> BTreeMap<u64, (BlockKind, u32)> {
        let snapshot = self.0.snapshot();
        assert_eq!(snapshot.bad_references, 0);
        let count = snapshot.blocks.len();
        let blocks: BTreeMap<u64, (BlockKind, u32)> = snapshot
            .blocks
            .iter()
            .map(|block| {
                let value = block.size as u32;
                assert_eq!((block.stack, block.birth), (stack_of(value), tick_of(value)), "a torn block");
                (block.address, (block.kind, value))
            })
            .collect();
        assert_eq!(blocks.len(), count, "a block was read twice");
        blocks
    }
}

fn stack_of(value: u32) -> u32 {
    value.wrapping_mul(0x9E37_79B1) >> 4
}
fn tick_of(value: u32) -> u32 {
    value.wrapping_mul(0x85EB_CA6B)
}

/// Addresses of the kinds that allocators give out.
fn pick(random: &mut Random) -> u64 {
    match random.below(5) {
        // Dense small blocks of one heap.
        0 | 1 => 0x5555_5577_0000 + random.below(20_000) * 32,
        // A heap of another thread.
        2 => 0x7f00_0000_0030 + random.below(4_000) * 48,
        // Far apart: their own mappings.
        3 => 0x7fff_0000_0010 + random.below(300) * 0x21_0000,
        // An allocator that aligns to eight bytes only, and leaves nothing between blocks.
        _ => 0x1_0000_0000 + random.below(12_000) * 8,
    }
}

#[test]
fn the_table_does_what_a_hash_map_does() {
    let _turn = alone();
    let heap = TestHeap::new(64 << 20);
    let table = Table(&heap);
    for seed in 0..3 {
        let mut random = Random::new(seed);
        let mut model: HashMap<u64, (u32, u64)> = HashMap::new();
        for step in 0..60_000u32 {
            let address = pick(&mut random);
            match model.get(&address).copied() {
                None => {
                    assert!(table.find(address, slot::HEAP).is_none());
                    assert!(table.find(address, slot::IN_FLIGHT).is_none());
                    let value = random.below(1 << 31) as u32;
                    assert!(table.insert(address, value), "step {step}");
                    model.insert(address, (value, slot::HEAP));
                }
                Some((value, state)) => {
                    let found = table.find(address, state).expect("a block that is there");
                    assert_eq!(slot::size(found.word1), value);
                    match random.below(4) {
                        0 => {
                            let other = if state == slot::HEAP { slot::IN_FLIGHT } else { slot::HEAP };
                            found.set_state(other);
                            model.insert(address, (value, other));
                        }
                        _ => {
                            found.remove();
                            model.remove(&address);
                            assert!(table.find(address, state).is_none());
                        }
                    }
                }
            }
        }
        let kind = |state| if state == slot::HEAP { BlockKind::Heap } else { BlockKind::InFlight };
        let expected: BTreeMap<u64, (BlockKind, u32)> =
            model.iter().map(|(&address, &(value, state))| (address, (kind(state), value))).collect();
        assert!(expected.len() > 5_000);
        assert_eq!(table.read(), expected);
        for (&address, &(_, state)) in &model {
            table.find(address, state).expect("a block that is there").remove();
        }
        assert!(table.read().is_empty());
    }
}

#[test]
fn a_region_is_scanned_for_blocks_of_one_state() {
    let _turn = alone();
    let heap = TestHeap::new(16 << 20);
    let table = Table(&heap);
    let base = 0x7f12_3450_0000u64;
    let mut expected = [Vec::new(), Vec::new()];
    for index in 0..3_000u32 {
        let address = base + u64::from(index) * 32;
        assert!(table.insert(address, index));
        if index.is_multiple_of(7) {
            table.find(address, slot::HEAP).expect("the block").set_state(slot::IN_FLIGHT);
        }
        expected[usize::from(index.is_multiple_of(7))].push(address);
    }
    let page = table.page(base).expect("the page");
    for (state, expected) in [slot::HEAP, slot::IN_FLIGHT].into_iter().zip(&expected) {
        let mut seen = Vec::new();
        let ended = scan_region(heap.arena, page, base + 5_000, state, |address, _| {
            seen.push(address);
            false
        });
        seen.sort_unstable();
        assert!(!ended);
        assert_eq!(&seen, expected);
        let mut calls = 0;
        assert!(scan_region(heap.arena, page, base, state, |_, _| {
            calls += 1;
            calls == 10
        }));
        assert_eq!(calls, 10);
    }
}

#[test]
fn a_mapping_and_a_heap_block_can_have_one_address() {
    let _turn = alone();
    let heap = TestHeap::new(16 << 20);
    let address = 0x7f00_0000_0000u64;
    let table = Table(&heap);
    assert!(table.insert(address, 77));
    let key = address | MAPPED_SPACE;
    let page = span_page(heap.arena, heap.window, span_of(key), true).expect("a span page");
    let words = (slot::word0(slot::MAPPED, key, 1, 9), slot::word1(3, 4));
    assert!(matches!(
        insert(heap.arena, heap.window, page, locate(heap.arena, page, key), key, words, u64::MAX),
        Inserted::Yes
    ));
    let snapshot = heap.snapshot();
    let mut blocks: Vec<_> = snapshot.blocks.iter().map(|b| (b.address, b.kind, b.size)).collect();
    blocks.sort_by_key(|block| block.2);
    assert_eq!(blocks, [(address, BlockKind::Heap, 77), (address, BlockKind::Mapped, 3 * 4096)]);
    assert_eq!(table.value(address), Some(77));
}

#[test]
fn sizes_beyond_32_bits_are_kept_beside_the_table() {
    let _turn = alone();
    let heap = TestHeap::new(16 << 20);
    for index in 0..HUGE as u64 {
        assert!(set_huge(heap.window, 0x1000 + index * 16, (5 << 32) + index));
    }
    assert!(!set_huge(heap.window, 0x10, 1), "one more than fits");
    assert_eq!(take_huge(heap.window, 0x1000 + 7 * 16), Some((5 << 32) + 7));
    assert_eq!(take_huge(heap.window, 0x1000 + 7 * 16), None);
    assert!(set_huge(heap.window, 0x10, 6 << 32));
    assert_eq!(take_huge(heap.window, 0x10), Some(6 << 32));
}

#[test]
fn a_full_heap_file_refuses_blocks_and_keeps_those_it_has() {
    let _turn = alone();
    let heap = TestHeap::new(2 << 20);
    let table = Table(&heap);
    let mut kept = BTreeMap::new();
    let mut refused = 0;
    for index in 0..200_000u32 {
        let address = 0x5000_0000_0000 + u64::from(index) * 48;
        let Some(_) = span_page(heap.arena, heap.window, span_of(address), true) else {
            refused += 1;
            continue;
        };
        if table.insert(address, index) {
            kept.insert(address, (BlockKind::Heap, index));
        } else {
            refused += 1;
        }
    }
    assert!(refused > 10_000 && kept.len() > 30_000, "{refused} refused, {} kept", kept.len());
    assert_eq!(table.read(), kept);
    // A slot that becomes free serves again.
    let &address = kept.keys().next().expect("a block");
    table.find(address, slot::HEAP).expect("a block").remove();
    assert!(table.insert(address, 1));
}

/// Threads that allocate, hand blocks to each other and free them, as a correct program does: an address
/// belongs to one of them at a time.
#[test]
fn threads_share_regions_without_losing_a_block() {
    let _turn = alone();
    const THREADS: u64 = 4;
    const OPERATIONS: u32 = 60_000;
    let heap = TestHeap::new(64 << 20);
    // Few regions, so that all threads meet in all buckets and all growth.
    let free: Mutex<Vec<u64>> = Mutex::new((0..40_000u64).map(|i| 0x5555_0000_0000 + i * 32).collect());
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<(u64, u32)>()).unzip();
    let left: Vec<(u64, u32)> = std::thread::scope(|scope| {
        let threads: Vec<_> = receivers
            .into_iter()
            .zip(0u64..)
            .map(|(receiver, number)| {
                let senders = senders.clone();
                let (heap, free) = (&heap, &free);
                scope.spawn(move || {
                    let table = Table(heap);
                    let mut random = Random::new(number);
                    let mut own: Vec<(u64, u32)> = Vec::new();
                    for _ in 0..OPERATIONS {
                        own.extend(receiver.try_iter());
                        match random.below(8) {
                            0..4 => {
                                let taken = {
                                    let mut free = free.lock().expect("no panic");
                                    let index = random.below(free.len().max(1) as u64) as usize;
                                    (!free.is_empty()).then(|| free.swap_remove(index))
                                };
                                let Some(address) = taken else { continue };
                                let value = random.next() as u32 >> 1;
                                assert!(table.insert(address, value));
                                own.push((address, value));
                            }
                            4..7 if !own.is_empty() => {
                                let index = random.below(own.len() as u64) as usize;
                                let (address, value) = own.swap_remove(index);
                                let found = table.find(address, slot::HEAP).expect("the block");
                                assert_eq!(slot::size(found.word1), value);
                                if random.below(10) == 0 {
                                    found.set_state(slot::IN_FLIGHT);
                                }
                                found.remove();
                                free.lock().expect("no panic").push(address);
                            }
                            _ => {
                                if let Some(block) = own.pop() {
                                    let to = random.below(THREADS) as usize;
                                    if let Err(refused) = senders[to].send(block) {
                                        own.push(refused.0);
                                    }
                                }
                            }
                        }
                    }
                    drop(senders);
                    (own, receiver)
                })
            })
            .collect();
        // A reader looks on.
        for _ in 0..20 {
            Table(&heap).read();
        }
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        ended
            .into_iter()
            .flat_map(|(own, receiver)| own.into_iter().chain(receiver.try_iter().collect::<Vec<_>>()))
            .collect()
    });
    let expected: BTreeMap<u64, (BlockKind, u32)> =
        left.iter().map(|&(address, value)| (address, (BlockKind::Heap, value))).collect();
    assert_eq!(expected.len(), left.len());
    assert_eq!(Table(&heap).read(), expected);
}
