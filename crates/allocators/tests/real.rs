//! Real processes, compared block by block with what they say of themselves.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod support;

use leakscope_allocators::glibc::{Heap, WalkOptions, walk};
use leakscope_reach::Block;
use std::collections::BTreeMap;
use std::process::Command;
use support::{Running, compile};

const BY_LOOK: WalkOptions = WalkOptions { debug_symbols: false, version: None };

fn walked(running: &Running, options: &WalkOptions) -> (Heap, BTreeMap<u64, u64>) {
    let snapshot = running.snapshot();
    let mut blocks = BTreeMap::new();
    let heap = walk(&snapshot, options, |block: Block| {
        let before = blocks.insert(block.address, block.size);
        assert_eq!(before, None, "{:#x} came twice", block.address);
    })
    .unwrap();
    (heap, blocks)
}

/// Every block that the program has was found with its size, and nothing else but the library's own.
fn assert_exact(running: &Running, heap: &Heap, blocks: &BTreeMap<u64, u64>) {
    let missing: Vec<_> = running.live.iter().filter(|(address, _)| !blocks.contains_key(address)).collect();
    assert!(
        missing.is_empty(),
        "{} live blocks are missing, first {:x?}; {heap:#x?}",
        missing.len(),
        missing.first()
    );
    for (address, (size, what)) in &running.live {
        assert_eq!(blocks.get(address), Some(size), "size of {address:#x}, {what}");
    }
    let own = |address: &u64| heap.own.binary_search(address).is_ok();
    let extra: Vec<_> =
        blocks.iter().filter(|(address, _)| !running.live.contains_key(address) && !own(address)).collect();
    assert!(
        extra.is_empty(),
        "{} blocks are not the program's: {:x?}; {heap:#x?}",
        extra.len(),
        &extra[..extra.len().min(9)]
    );
    assert_eq!(heap.torn, Vec::<String>::new());
    for block in blocks {
        let inside = heap.areas.iter().any(|area| area.contains(block.0) && block.0 + block.1 <= area.end);
        assert!(inside, "{block:x?} is in no area");
    }
}

/// Sums agree with mallinfo2(), which counts chunks in per-thread caches as used.
fn assert_sums(running: &Running, heap: &Heap) {
    let said = |key: &str| running.said[key];
    let main = &heap.arenas[0];
    assert_eq!(heap.mmapped_blocks, said("mapped_blocks"));
    assert_eq!(heap.mmapped_bytes, said("mapped_bytes"));
    // mallinfo sums arenas but top and fastbins likewise; keepcost is the main arena's alone.
    let sum = |field: fn(&leakscope_allocators::glibc::ArenaSummary) -> u64| {
        heap.arenas.iter().map(field).sum::<u64>()
    };
    assert_eq!(sum(|arena| arena.system_bytes), said("main_system"));
    assert_eq!(sum(|arena| arena.free_bytes + arena.top_bytes + arena.fastbin_bytes), said("main_free"));
    assert_eq!(sum(|arena| arena.fastbin_bytes), said("main_fastbins"));
    assert_eq!(main.top_bytes, said("main_top"));
}

#[test]
fn all_blocks_of_a_program_with_several_arenas_are_found_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    let running = Running::start(Command::new(program).arg("4"));
    for options in [WalkOptions::default(), BY_LOOK] {
        let (heap, blocks) = walked(&running, &options);
        assert_exact(&running, &heap, &blocks);
        assert_sums(&running, &heap);
        assert!(heap.arenas.len() > 1, "{heap:#x?}");
        assert!(heap.arenas.iter().any(|arena| arena.tcache_bytes > 0));
    }
}
