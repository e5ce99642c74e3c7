//! Whom a process at its end waits for, and for how long. What happens meanwhile is tested end to end.

use super::{GONE_NS, WANTED, at_exit};
use crate::testing::{TestHeap, traced_child};
use crate::{process, sys};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{EXIT_GO, EXIT_NONE};

/// How long a process waits at its end (in tenths of a second), and the state that it leaves.
fn wait_in_child(wanted: bool, examine: u32, lag: u32) -> (i32, u32) {
    let heap = TestHeap::new(32 << 20);
    heap.file.superblock().examine_at_exit.store(1, Release);
    let (status, _) = traced_child(&heap, |_| {
        WANTED.store(wanted, Relaxed);
        let Some(superblock) = process::arena().superblock() else { return 100 };
        superblock.examine_at_exit.store(examine, Release);
        superblock.tick.store(process::clock_tick(superblock).wrapping_sub(lag), Release);
        let begun = sys::monotonic_ns();
        at_exit();
        ((sys::monotonic_ns() - begun) / 100_000_000) as i32
    });
    let own = heap.arena.offset_of(heap.window);
    let window = heap.file.windows().into_iter().find(|&offset| offset != own).expect("the child's window");
    (libc::WEXITSTATUS(status), heap.file.window(window).expect("a window").exit_state.load(Acquire))
}

#[test]
fn a_holder_whose_clock_stands_still_is_not_waited_for_much_longer() {
    let (tenths, state) = wait_in_child(true, 1, 0);
    assert!(tenths >= (GONE_NS / 100_000_000) as i32 && state == EXIT_GO, "{tenths} {state}");
}

#[test]
fn nobody_waits_unless_it_was_asked_to_from_its_start_and_the_holder_still_wants_it() {
    assert_eq!(wait_in_child(false, 1, 0), (0, EXIT_NONE));
    assert_eq!(wait_in_child(true, 0, 0).0, 0);
}
