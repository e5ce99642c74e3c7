//! Sampled hooks, each in a child of this test, so that nothing of it stays.

use crate::testing::{Random, TestHeap, traced_child};
use crate::{arch, filter};
use core::ffi::c_void;
use leakscope_heapfile::sampling::Sampling;

// The exported shims, under other names.
core::arch::global_asm!(
    ".macro shim name:req, hook:req, sp:req, bp:req",
    ".globl \\name",
    ".hidden \\name",
    "\\name:",
    ".cfi_startproc",
    "mov \\sp, rsp",
    "mov \\bp, rbp",
    "jmp \\hook",
    ".cfi_endproc",
    ".endm",
    ".text",
    "shim leakscope_hook_malloc, {malloc}, rsi, rdx",
    "shim leakscope_hook_calloc, {calloc}, rdx, rcx",
    "shim leakscope_hook_realloc, {realloc}, rdx, rcx",
    "shim leakscope_hook_reallocarray, {reallocarray}, rcx, r8",
    "shim leakscope_hook_posix_memalign, {posix_memalign}, rcx, r8",
    "shim leakscope_hook_free, {free}, rsi, rdx",
    malloc = sym super::malloc,
    calloc = sym super::calloc,
    realloc = sym super::realloc,
    reallocarray = sym super::reallocarray,
    posix_memalign = sym super::posix_memalign,
    free = sym super::free,
);
unsafe extern "C" {
    fn leakscope_hook_malloc(size: usize) -> *mut c_void;
    fn leakscope_hook_calloc(count: usize, size: usize) -> *mut c_void;
    fn leakscope_hook_realloc(block: *mut c_void, size: usize) -> *mut c_void;
    fn leakscope_hook_reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void;
    fn leakscope_hook_posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> i32;
    fn leakscope_hook_free(block: *mut c_void);
}

/// Allocates, reallocates and frees in a thousand places, `turns` times; everything is freed in the end.
///
/// # Safety
/// The shims must do what the functions of their names do.
unsafe fn churn(random: &mut Random, turns: u32) {
    let mut blocks = [core::ptr::null_mut::<c_void>(); 1000];
    // SAFETY: blocks are handed back once; no content is used.
    unsafe {
        for _ in 0..turns {
            let block = &mut blocks[random.below(1000) as usize];
            let size = random.below(400) as usize;
            *block = match random.below(6) {
                0 => leakscope_hook_realloc(*block, size + 1),
                1 => leakscope_hook_reallocarray(*block, size + 1, 3),
                // Frees it.
                2 => leakscope_hook_realloc(*block, 0),
                // Fails, and leaves it.
                3 if !block.is_null() => {
                    assert!(leakscope_hook_realloc(*block, usize::MAX / 2).is_null());
                    assert!(leakscope_hook_reallocarray(*block, usize::MAX, 3).is_null());
                    *block
                }
                kind => {
                    leakscope_hook_free(*block);
                    let mut aligned = core::ptr::null_mut();
                    match kind {
                        3 => leakscope_hook_malloc(size),
                        4 => leakscope_hook_calloc(size, 2),
                        _ if leakscope_hook_posix_memalign(&raw mut aligned, 64, size) == 0 => aligned,
                        _ => core::ptr::null_mut(),
                    }
                }
            };
        }
        blocks.iter().for_each(|&block| leakscope_hook_free(block));
    }
}

#[test]
fn once_everything_is_freed_nothing_is_in_use_and_no_address_is_held() {
    for interval in [1, 50, 5000] {
        let heap = TestHeap::sampled(64 << 20, Sampling { interval, seed: 1 });
        let (status, _) = traced_child(&heap, |_| {
            filter::forget();
            // SAFETY: the shims call the hooks, and those the C library.
            unsafe { churn(&mut Random::new(interval), 100_000) };
            if filter::is_empty() { 0 } else { 1 }
        });
        assert_eq!(status, 0, "the child, at {interval}");
        let own = heap.arena.offset_of(heap.window);
        let window =
            heap.file.windows().into_iter().find(|&offset| offset != own).expect("the child's window");
        let snapshot = heap.file.snapshot(window).expect("a readable window");
        assert_eq!(snapshot.blocks, [], "at {interval}");
        let sum = |of: fn(&leakscope_heapfile::Stack) -> u64| snapshot.stacks.iter().map(of).sum::<u64>();
        assert!(sum(|stack| stack.samples) > 100, "at {interval}");
        for stack in &snapshot.stacks {
            assert_eq!(stack.allocated_bytes, stack.freed_bytes, "at {interval}: {stack:?}");
            assert_eq!(stack.allocated_blocks, stack.freed_blocks, "at {interval}: {stack:?}");
        }
        assert_eq!(snapshot.missed_nested + snapshot.missed_full + snapshot.unknown_frees, 0);
    }
}

#[test]
fn a_failed_realloc_leaves_a_recorded_block_as_it_was() {
    let heap = TestHeap::sampled(64 << 20, Sampling { interval: 1, seed: 1 });
    let (status, _) = traced_child(&heap, |_| {
        // SAFETY: as above; the child ends with the block.
        unsafe {
            filter::forget();
            let block = leakscope_hook_malloc(1234);
            i32::from(!leakscope_hook_realloc(block, usize::MAX / 2).is_null())
                + i32::from(!filter::may_hold(block as usize))
        }
    });
    assert_eq!(status, 0);
    let own = heap.arena.offset_of(heap.window);
    let window = heap.file.windows().into_iter().find(|&offset| offset != own).expect("the child's window");
    let snapshot = heap.file.snapshot(window).expect("a readable window");
    let sizes: std::vec::Vec<u64> = snapshot.blocks.iter().map(|block| block.size).collect();
    assert_eq!(sizes, [1234]);
}

#[test]
fn where_everything_is_recorded_nothing_is_ever_passed_over() {
    let heap = TestHeap::new(64 << 20);
    let (status, _) = traced_child(&heap, |_| {
        // SAFETY: as above.
        unsafe { churn(&mut Random::new(7), 10_000) };
        i32::from(arch::countdown() != 0) + i32::from(!filter::may_hold(0x5555_5555_0000))
    });
    assert_eq!(status, 0);
}
