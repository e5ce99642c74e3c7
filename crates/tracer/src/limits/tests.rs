use super::{KEPT, RLIMIT_AS, setrlimit};
use crate::testing::{TestHeap, traced_child};
use crate::{process, sys};
use core::sync::atomic::Ordering::Acquire;
use leakscope_heapfile::layout::CHUNK;

const RESERVED: u64 = 512 << 20;

#[test]
fn what_a_program_may_use_of_its_address_space_does_not_include_the_reservation() {
    let heap = TestHeap::new(RESERVED);
    let (status, _) = traced_child(&heap, |_| {
        let arena = process::arena();
        let end = arena.base() as usize + arena.len() as usize;
        if arena.len() != RESERVED || !sys::is_readable(end - 4096) {
            return 1;
        }
        // Limits of other kinds, and no limit, change nothing.
        // SAFETY: limits to read.
        let files = unsafe { setrlimit(7, &[64, 64]) };
        // SAFETY: as above.
        let unlimited = unsafe { setrlimit(RLIMIT_AS, &[u64::MAX; 2]) };
        if files != 0 || unlimited != 0 || !sys::is_readable(end - 4096) {
            return 2;
        }
        // SAFETY: as above.
        if unsafe { setrlimit(RLIMIT_AS, &[4 << 30, u64::MAX]) } != 0 {
            return 3;
        }
        if sys::address_space_limit() != Some(4 << 30) || sys::is_readable(end - 4096) {
            return 4;
        }
        // What is kept serves until it is used up; then there is an answer instead of a fault.
        let Some((window, superblock)) = process::window().zip(arena.superblock()) else { return 5 };
        let mut taken = 0;
        while let Some(offset) = arena.allocate(window, CHUNK / 2) {
            let Some(word) = arena.at::<core::sync::atomic::AtomicU64>(offset) else { return 6 };
            word.store(1, core::sync::atomic::Ordering::Relaxed);
            taken += CHUNK / 2;
            if taken > RESERVED {
                return 7;
            }
        }
        if taken < KEPT / 4 || superblock.next.load(Acquire) > KEPT + (8 << 20) {
            return 8;
        }
        0
    });
    assert_eq!(status, 0, "check {}", libc::WEXITSTATUS(status));
}

#[test]
fn a_process_short_of_address_space_maps_little_of_the_arena() {
    let heap = TestHeap::new(RESERVED);
    // SAFETY: limits of this process are only read.
    let status = crate::testing::in_child(|| unsafe {
        let limit = libc::rlimit { rlim_cur: 3 << 30, rlim_max: libc::RLIM_INFINITY };
        if libc::setrlimit(libc::RLIMIT_AS, &raw const limit) != 0 {
            return 9;
        }
        let (status, _) = traced_child(&heap, |_| i32::from(process::arena().len() > (3 << 30) / 8));
        libc::WEXITSTATUS(status)
    });
    assert_eq!(libc::WEXITSTATUS(status), 0);
}
