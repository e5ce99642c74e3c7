//! Heaps made by hand: every layout from 2.26 to 2.43, and what a hostile or interrupted process can leave.

#[path = "support/image.rs"]
mod image;

use image::{ARENA, HEAP, HEAP_BYTES, Image, RELEASES, Release, SECOND, TLS};
use leakscope_allocators::glibc::{Heap, WalkOptions, walk};
use leakscope_allocators::{Error, recognise};
use std::collections::BTreeMap;

fn walked(image: &Image) -> Result<(Heap, BTreeMap<u64, u64>), Error> {
    let mut blocks = BTreeMap::new();
    let heap = walk(&image.snapshot(), &WalkOptions::default(), |block| {
        blocks.insert(block.address, block.size);
        assert!(blocks.len() < 100_000, "more blocks than the memory can hold");
    })?;
    Ok((heap, blocks))
}

fn images() -> impl Iterator<Item = (Release, Image)> {
    RELEASES.iter().map(|&release| (release, Image::new(release)))
}

/// Blocks that are in one of two and not in the other.
fn differences(left: &BTreeMap<u64, u64>, right: &BTreeMap<u64, u64>) -> Vec<(u64, u64)> {
    let only = |a: &BTreeMap<u64, u64>, b: &BTreeMap<u64, u64>| {
        a.iter()
            .filter(|&(address, size)| b.get(address) != Some(size))
            .map(|(&a, &s)| (a, s))
            .collect::<Vec<_>>()
    };
    [only(left, right), only(right, left)].concat()
}

#[test]
fn every_layout_is_walked_exactly() {
    for (release, image) in images() {
        let (heap, blocks) = walked(&image).unwrap();
        assert_eq!(differences(&blocks, &image.live), [], "2.{}: {heap:#x?}", release.minor);
        assert_eq!(heap.torn, Vec::<String>::new(), "2.{}", release.minor);
        assert_eq!(heap.own, [image.tcache], "2.{}", release.minor);
        assert_eq!(heap.version.unwrap().to_string(), format!("2.{}", release.minor));
        assert_eq!(heap.arenas[0].tcache_bytes, 9 * 0x40);
        let fastbins = if release.fastbins == 0 { 0 } else { 40 * 0x50 };
        assert_eq!(heap.arenas[0].fastbin_bytes, fastbins);
        assert_eq!((heap.arenas[0].system_bytes, heap.arenas[1].system_bytes), (HEAP_BYTES, 0x4000));
    }
}

#[test]
fn a_library_that_does_not_say_its_version_is_read_by_its_structures() {
    for (release, mut image) in images() {
        image.libc = b"malloc(): corrupted top size".to_vec();
        let (heap, blocks) = walked(&image).unwrap();
        assert_eq!(heap.version, None);
        // What looks used there in a wrong layout would be lists that cannot be followed.
        let same = blocks == image.live && heap.torn.is_empty();
        assert!(same || heap.is_torn(), "2.{}: neither right nor known to be wrong", release.minor);
        if release.minor == 36 || release.minor == 43 {
            assert!(same, "2.{}", release.minor);
        }
    }
}

#[test]
fn an_older_glibc_is_refused_by_name() {
    let mut image = Image::new(RELEASES[0]);
    image.libc = b"GNU C Library (Old) stable release version 2.23, by somebody".to_vec();
    let error = walked(&image).unwrap_err();
    assert!(matches!(error, Error::TooOld { .. }));
    assert!(error.to_string().contains("2.23"), "{error}");
    assert!(!recognise(&image.snapshot())[0].listable);
}

#[test]
fn lists_that_lead_into_a_circle_or_nowhere_are_reported_and_end() {
    for (release, mut image) in images() {
        let (_, count, lists) = release.tcache;
        let place = image.tcache + lists * count + 2 * 8;
        let head = image.get(place);
        // The head's link leads back to itself.
        image.set(head, if release.mangled { head ^ (head >> 12) } else { head });
        let (heap, blocks) = walked(&image).unwrap();
        assert!(heap.is_torn(), "2.{}", release.minor);
        assert!(!blocks.contains_key(&head), "the head is free all the same");
        image.set(head, 0x1234_5678_9abc_def0);
        assert!(walked(&image).unwrap().0.is_torn());
        if release.fastbins != 0 {
            let mut image = Image::new(release);
            let place = ARENA + release.fastbins + 3 * 8;
            let head = image.get(place);
            image.set(head + 16, if release.mangled { head ^ ((head + 16) >> 12) } else { head });
            assert!(walked(&image).unwrap().0.is_torn());
        }
    }
}

#[test]
fn a_torn_chunk_costs_no_block_behind_it() {
    for size in [0u64, 1, 0x11, 0x13, u64::MAX, 0x7fff_ffff_fff1, 0x10_0001, 0x28 | 1] {
        for (release, mut image) in images() {
            let victims: Vec<u64> =
                image.live.keys().copied().filter(|&block| block < HEAP + HEAP_BYTES).collect();
            let victim = victims[30];
            image.set(victim - 8, size);
            let (heap, blocks) = walked(&image).unwrap();
            assert!(heap.is_torn(), "2.{} {size:#x}", release.minor);
            let missing: Vec<_> = image
                .live
                .keys()
                .filter(|address| !blocks.contains_key(address))
                .filter(|&&address| {
                    !heap
                        .ambiguous
                        .iter()
                        .any(|block| (block.address..=block.address + block.size).contains(&address))
                })
                .collect();
            assert!(missing.len() <= 2, "2.{} {size:#x}: {missing:x?}", release.minor);
            assert!(blocks.len() + 8 >= image.live.len());
        }
    }
}

#[test]
fn a_main_arena_that_contradicts_itself_is_not_taken() {
    for (release, image) in images() {
        for (offset, value) in [
            (release.top, 0),
            (release.top, HEAP + 0x123),
            (release.next, 0),
            (release.next, SECOND + 0x50),
            (release.system_mem, u64::MAX),
            (release.system_mem, 0x7fff_ffff_f000),
            (release.bins + 0x100, HEAP + 0x10),
        ] {
            let mut image = Image::new(image.release);
            image.set(ARENA + offset, value);
            // The second arena's ring leads to it, but it must be consistent all the same, or say that it is not.
            match walked(&image) {
                Err(Error::MainArena { pid: 7, .. }) => {}
                Ok((heap, _)) if heap.is_torn() => {}
                Ok((heap, blocks)) => {
                    let differences = differences(&blocks, &image.live);
                    assert_eq!(differences, [], "2.{} {offset:#x}: {:?}", release.minor, heap.notes);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn nothing_to_read_is_an_error_and_not_a_heap() {
    let image = Image::new(RELEASES[4]);
    let mut snapshot = image.snapshot();
    snapshot.memory = Box::new(leakscope_target::Pieces::default());
    assert!(walk(&snapshot, &WalkOptions::default(), |_| panic!("a block of nothing")).is_err());
    snapshot.mappings.clear();
    let error = walk(&snapshot, &WalkOptions::default(), |_| {}).unwrap_err();
    assert!(matches!(error, Error::NoAllocator { .. }));
}

/// Whatever single words and runs of a process are changed to, the walk ends, and its blocks are within memory.
#[test]
fn no_memory_makes_the_walk_hang_or_leave_memory() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..300 {
        let release = RELEASES[round % RELEASES.len()];
        let mut image = Image::new(release);
        for _ in 0..1 + random(12) {
            let (start, length) = [
                (HEAP, 0x9000),
                (ARENA, release.state),
                (SECOND, 0x1000),
                (TLS, 0x3000),
                (image.tcache, 0x300),
            ][random(5) as usize];
            let address = (start + random(length)) & !7;
            let value = match random(7) {
                0 => random(u64::MAX),
                1 => 0,
                2 => u64::MAX,
                3 => image.get(address) ^ 1 << random(64),
                4 => HEAP + random(HEAP_BYTES),
                5 => ARENA + random(0x800),
                _ => random(0x1000),
            };
            image.set(address, value);
        }
        if let Ok((heap, blocks)) = walked(&image) {
            for (address, size) in blocks {
                let end = address.checked_add(size).unwrap();
                let inside = heap.areas.iter().any(|area| area.start <= address && end <= area.end);
                assert!(inside, "round {round}: {address:#x} of {size:#x} is in no area");
            }
        }
    }
}
