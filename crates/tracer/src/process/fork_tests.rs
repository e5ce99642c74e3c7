//! Which processes are their own: each line of forks in children of this test, so that nothing of it stays.

use super::{ANCESTORS, MODE, ON, ensure, epoch, note_fork, window};
use crate::testing::{TestHeap, in_child, traced_child};
use crate::{arch, hooks, sys};
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_heapfile::Snapshot;
use std::vec::Vec;

// The exported shims, under other names.
core::arch::global_asm!(
    ".text",
    ".globl leakscope_test_malloc",
    ".hidden leakscope_test_malloc",
    "leakscope_test_malloc:",
    ".cfi_startproc",
    "mov rsi, rsp",
    "mov rdx, rbp",
    "jmp {malloc}",
    ".cfi_endproc",
    ".globl leakscope_test_free",
    ".hidden leakscope_test_free",
    "leakscope_test_free:",
    ".cfi_startproc",
    "mov rsi, rsp",
    "mov rdx, rbp",
    "jmp {free}",
    ".cfi_endproc",
    malloc = sym hooks::malloc,
    free = sym hooks::free,
);
unsafe extern "C" {
    fn leakscope_test_malloc(size: usize) -> *mut c_void;
    fn leakscope_test_free(block: *mut c_void);
}

/// A failed condition becomes the child's exit status: its line.
macro_rules! check {
    ($condition:expr) => {
        if !$condition {
            return line!() as i32 % 120 + 1;
        }
    };
}

/// Snapshots of all windows but the test's own first one, oldest first.
fn snapshots(heap: &TestHeap) -> Vec<Snapshot> {
    let own = heap.arena.offset_of(heap.window);
    let windows = heap.file.windows().into_iter().filter(|&offset| offset != own);
    let mut all: Vec<Snapshot> =
        windows.map(|offset| heap.file.snapshot(offset).expect("a readable window")).collect();
    all.sort_by_key(|snapshot| snapshot.process.serial);
    all
}

#[test]
fn a_forked_child_has_a_window_of_its_own_from_its_first_event_on() {
    let heap = TestHeap::new(32 << 20);
    let (status, _) = traced_child(&heap, |_| {
        check!(MODE.load(Relaxed) == ON && epoch() != 0);
        let Some(own) = window() else { return 124 };
        check!(own.pid.load(Relaxed) == sys::getpid());
        // SAFETY: the shims of malloc and free; the second child ends without them.
        let (kept, given_up) = unsafe { (leakscope_test_malloc(1000), leakscope_test_malloc(500)) };
        let before = epoch();
        let status = in_child(|| {
            check!(epoch() == 0);
            note_fork();
            // SAFETY: as above; blocks of the parent are the child's, too.
            unsafe {
                leakscope_test_free(given_up);
                check!(epoch() != 0 && epoch() != before);
                leakscope_test_malloc(77);
            }
            let Some(child) = window() else { return 124 };
            check!(child.pid.load(Relaxed) == sys::getpid() && !core::ptr::eq(child, own));
            check!(ANCESTORS[0].load(Relaxed) == crate::process::arena().offset_of(own));
            // A child of the child, without handlers and hooks.
            in_child(|| {
                check!(epoch() == 0 && ensure() && epoch() != 0);
                check!(ANCESTORS[1].load(Relaxed) == crate::process::arena().offset_of(own));
                // SAFETY: as above.
                unsafe { leakscope_test_free(kept) };
                0
            })
        });
        check!(status == 0 && epoch() == before);
        check!(window().is_some_and(|now| core::ptr::eq(now, own)));
        // SAFETY: as above.
        unsafe { leakscope_test_free(given_up) };
        0
    });
    assert_eq!(status, 0, "line (modulo 120) {}", libc::WEXITSTATUS(status) - 1);
    let [parent, child, grandchild] = &snapshots(&heap)[..] else { panic!("three windows") };
    let sizes = |snapshot: &Snapshot| snapshot.blocks.iter().map(|block| block.size).collect::<Vec<_>>();
    assert_eq!(sizes(parent), [1000]);
    assert_eq!(sizes(child), [77]);
    assert!(sizes(grandchild).is_empty());
    assert!(!parent.process.forked && child.process.forked && grandchild.process.forked);
    assert_eq!((child.inherited_blocks, child.inherited_bytes), (2, 1500));
    assert_eq!((child.inherited_freed_blocks, child.inherited_freed_bytes), (1, 500));
    assert_eq!((child.unknown_frees, grandchild.unknown_frees), (0, 0));
    assert_eq!((grandchild.inherited_freed_blocks, grandchild.inherited_freed_bytes), (1, 1000));
    assert_eq!((parent.inherited_blocks, parent.missed_nested), (0, 0));
    assert_eq!(
        (child.process.exe.clone(), child.process.ppid),
        (parent.process.exe.clone(), parent.process.pid)
    );
}

#[test]
fn a_raw_fork_that_no_handler_sees_is_noticed() {
    let heap = TestHeap::new(32 << 20);
    let (status, _) = traced_child(&heap, |_| {
        // SAFETY: the child checks one word and ends.
        unsafe {
            let pid = arch::syscall(57, [0; 6]);
            if pid == 0 {
                libc::_exit(c_int::from(epoch() != 0));
            }
            let mut status = 0;
            libc::waitpid(pid as c_int, &raw mut status, 0);
            check!(status == 0);
        }
        check!(epoch() != 0);
        0
    });
    assert_eq!(status, 0);
    assert_eq!(snapshots(&heap).len(), 1, "a child without an event has no window");
}

extern "C" fn look_at_epoch(seen: *mut c_void) -> c_int {
    // SAFETY: the parent's word, which it waits for.
    unsafe { *seen.cast::<usize>() = epoch() };
    0
}

#[test]
fn a_child_that_shares_memory_goes_on_as_its_parent() {
    let heap = TestHeap::new(32 << 20);
    let (status, _) = traced_child(&heap, |_| {
        let mut seen = 0usize;
        let mut stack = [0u128; 4096];
        // SAFETY: the parent sleeps until the child, on a stack of its own, has ended.
        unsafe {
            let top = stack.as_mut_ptr().add(stack.len() - 1).cast();
            let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
            let pid = libc::clone(look_at_epoch, top, flags, (&raw mut seen).cast());
            check!(pid > 0);
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            check!(status == 0);
        }
        check!(core::hint::black_box(seen) == epoch() && epoch() != 0);
        0
    });
    assert_eq!(status, 0);
}

#[test]
fn a_damaged_or_foreign_arena_is_not_used() {
    for damage in [0, 8, 16] {
        let heap = TestHeap::new(32 << 20);
        // SAFETY: nobody else uses this heap file.
        unsafe { *heap.arena.base().add(damage) ^= 0xff };
        let (status, _) = traced_child(&heap, |_| 0);
        assert_eq!(libc::WEXITSTATUS(status), 125, "damage at {damage}");
    }
}
