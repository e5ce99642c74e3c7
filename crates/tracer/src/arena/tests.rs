use super::Arena;
use crate::testing::TestHeap;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{CHUNK, ChunkHeader, Superblock, UNIT, Window};
use std::vec::Vec;

#[test]
fn no_reference_leads_outside_of_the_mapping() {
    let heap = TestHeap::new(4 << 20);
    let (arena, len) = (heap.arena, heap.arena.len());
    assert!(arena.at::<AtomicU64>(len - 8).is_some());
    for outside in [len - 7, len, len + 8, u64::MAX, u64::MAX - 7, 1 << 63] {
        assert!(arena.at::<AtomicU64>(outside).is_none(), "{outside:#x}");
        assert!(arena.slice::<AtomicU64>(outside, 1).is_none());
    }
    assert!(arena.at::<AtomicU64>(4).is_none(), "misaligned");
    assert!(arena.at::<Window>(len - CHUNK).is_some());
    assert!(arena.at::<Window>(len - UNIT).is_none());
    assert!(arena.slice::<AtomicU64>(0, (len / 8) as usize).is_some());
    assert!(arena.slice::<AtomicU64>(8, (len / 8) as usize).is_none());
    assert!(arena.slice::<AtomicU64>(8, usize::MAX).is_none());
    assert!(arena.unit::<AtomicU64>(0).is_none());
    assert!(arena.unit::<AtomicU64>(u32::MAX).is_none());
    assert!(Arena::NONE.superblock().is_none());
    assert!(Arena::NONE.take_chunks(1, 5).is_none());
}

/// Ranges that threads were handed, checked for being zero when handed out.
fn take_all(heap: &TestHeap, seed: u64) -> Vec<(u64, u64)> {
    let mut random = crate::testing::Random::new(seed);
    let mut taken = Vec::new();
    loop {
        let bytes = match random.below(50) {
            0 => 1 + random.below(3 * CHUNK),
            1..5 => 1 + random.below(CHUNK),
            _ => 1 + random.below(4_000),
        };
        let Some(offset) = heap.arena.allocate(heap.window, bytes) else { return taken };
        assert!(offset.is_multiple_of(UNIT));
        let words = heap.arena.slice::<AtomicU64>(offset, (bytes / 8) as usize).expect("inside");
        for word in words {
            assert_eq!(word.swap(seed + 1, Relaxed), 0);
        }
        taken.push((offset, offset + bytes));
    }
}

#[test]
fn space_is_handed_out_once_zeroed_and_until_there_is_none() {
    let heap = TestHeap::new(48 << 20);
    let mut taken: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                scope.spawn({
                    let heap = &heap;
                    move || take_all(heap, seed)
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    taken.sort_unstable();
    for pair in taken.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{pair:x?} overlap");
    }
    assert!(taken[taken.len() - 1].1 <= heap.arena.len());
    let sum: u64 = taken.iter().map(|(start, end)| end - start).sum();
    assert!(sum > heap.arena.len() / 2, "{sum} bytes");
    // Every piece belongs to the window, so that its end gives all of it back.
    let own = heap.arena.offset_of(heap.window);
    let chunks: u64 = heap.file.chunks_of(own).iter().map(|&(_, count)| count).sum();
    let used = heap.file.superblock().next.load(Relaxed) / CHUNK - 1;
    assert_eq!((chunks, u64::from(heap.window.chunks.load(Relaxed))), (used, used));
}

#[test]
fn chunks_that_ended_processes_gave_back_are_used_again_zeroed() {
    let heap = TestHeap::new(8 << 20);
    let other = crate::process::claim(heap.arena, 0).expect("a second window");
    let offset = heap.arena.offset_of(other);
    let mut filled = 0;
    while let Some(at) = heap.arena.allocate(other, 1_000) {
        heap.arena.at::<AtomicU64>(at).expect("inside").store(u64::MAX, Relaxed);
        filled += 1;
    }
    assert!(filled > 1_000 && heap.arena.take_chunks(1, 9).is_none());
    heap.file.release(offset).expect("a hole can be punched");
    // As much as was there, by several threads at once.
    let taken: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let heap = &heap;
                scope.spawn(move || core::iter::from_fn(|| heap.arena.take_chunks(1, 9)).collect::<Vec<_>>())
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let mut chunks: Vec<u64> = taken.into_iter().flatten().collect();
    chunks.sort_unstable();
    let count = chunks.len();
    chunks.dedup();
    assert_eq!(chunks.len(), count, "a chunk was handed out twice");
    assert!(count >= 24, "{count} chunks");
    for chunk in chunks {
        let header: &ChunkHeader = heap.arena.at(chunk).expect("inside");
        assert_eq!((header.owner.load(Relaxed), header.next_free.load(Relaxed)), (9, 0));
        let rest =
            heap.arena.slice::<AtomicU64>(chunk + UNIT, ((CHUNK - UNIT) / 8) as usize).expect("inside");
        assert!(rest.iter().all(|word| word.load(Relaxed) == 0));
    }
}

#[test]
fn a_large_process_takes_what_is_left_when_its_usual_pieces_are_too_large() {
    let heap = TestHeap::new(32 << 20);
    let mut last = heap.arena.len();
    heap.window.chunks.store(1_000, Relaxed);
    while let Some(offset) = heap.arena.allocate(heap.window, CHUNK / 2) {
        last = heap.arena.len() - offset;
    }
    assert!(last <= 2 * CHUNK, "{last} bytes were left");
}

#[test]
fn beyond_what_the_holder_prepared_only_the_budget_is_populated() {
    let heap = TestHeap::new(16 << 20);
    let superblock: &Superblock = heap.file.superblock();
    superblock.ready.store(superblock.next.load(Acquire), Release);
    assert_eq!(heap.arena.take_chunks(1, 5), None);
    superblock.self_budget.store(3 * CHUNK as i64 + 100, Relaxed);
    for _ in 0..3 {
        assert!(heap.arena.take_chunks(1, 5).is_some());
    }
    assert_eq!(heap.arena.take_chunks(1, 5), None);
    assert_eq!(superblock.self_budget.load(Relaxed), 100);
    // What the holder adds is used without it.
    superblock.ready.store(heap.arena.len(), Release);
    assert!(heap.arena.take_chunks(1, 5).is_some());
    assert_eq!(superblock.self_budget.load(Relaxed), 100);
}

#[test]
fn an_absurd_number_of_chunks_is_refused() {
    let heap = TestHeap::new(4 << 20);
    for chunks in [17, 1 << 20, u64::MAX / CHUNK, u64::MAX / CHUNK + 1, u64::MAX] {
        assert_eq!(heap.arena.take_chunks(chunks, 5), None);
    }
    assert!(heap.arena.take_chunks(1, 5).is_some());
}
