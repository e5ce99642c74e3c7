//! A process that is stopped or killed between any two of its instructions leaves tables that others go on
//! using and a reader can read. A forked child shares the heap file as another thread would; the parent steps it.

use super::{Table, alone};
use crate::stacks;
use crate::testing::{Random, TestHeap, in_child};
use core::ffi::{c_int, c_void};
use leakscope_heapfile::BlockKind;
use leakscope_heapfile::layout::slot;
use std::collections::BTreeMap;
use std::eprintln;
use std::vec::Vec;

/// Blocks of the parent, and of the child in the same and in other regions.
const PARENT: u64 = 0x5555_0000_0000;
const CHILD: u64 = PARENT + 16;
const CHILD_ALONE: u64 = 0x6666_0000_0000;

/// What the child does: inserts into a new span, then so much that the region grows, removes, interns stacks.
/// Must not allocate.
fn work(heap: &TestHeap, blocks: u64) {
    let table = Table(heap);
    for index in 0..blocks {
        table.insert(CHILD + index * 32, child_value(index));
        table.insert(CHILD_ALONE + index * 32, child_value(index));
        if index.is_multiple_of(4)
            && let Some(found) = table.find(CHILD + index * 32, slot::HEAP)
        {
            found.set_state(slot::IN_FLIGHT);
            found.remove();
        }
        child_stack(heap, index);
    }
}

fn child_value(index: u64) -> u32 {
    1_000_000 + index as u32
}

fn child_stack(heap: &TestHeap, index: u64) -> u32 {
    let (arena, window) = (heap.arena, heap.window);
    let outer = stacks::intern(arena, window, stacks::ROOT, 0x1000).unwrap_or(0);
    let node = stacks::intern(arena, window, outer, 0x2000 + index).unwrap_or(0);
    stacks::stack_of(arena, window, node)
}

/// What the parent does at each instant.
struct Onlooker<'a> {
    heap: &'a TestHeap,
    permanent: BTreeMap<u64, (BlockKind, u32)>,
    turn: u64,
}

impl<'a> Onlooker<'a> {
    fn new(heap: &'a TestHeap, blocks: u64) -> Onlooker<'a> {
        let mut permanent = BTreeMap::new();
        for index in 0..blocks {
            let address = PARENT + index * 32;
            assert!(Table(heap).insert(address, index as u32));
            permanent.insert(address, (BlockKind::Heap, index as u32));
        }
        Onlooker { heap, permanent, turn: 0 }
    }

    fn use_tables(&mut self) {
        let table = Table(self.heap);
        self.turn += 1;
        // Inserts, finds and removes one block in the child's own region and one in the common one.
        for (base, value) in [(PARENT + 0x1f000, 5), (CHILD_ALONE + 16, 6)] {
            let address = base + self.turn % 64 * 32;
            assert!(table.insert(address, value));
            assert_eq!(table.value(address), Some(value));
            table.find(address, slot::HEAP).expect("the block").remove();
            assert_eq!(table.value(address), None);
        }
        let index = self.turn % self.permanent.len() as u64;
        assert_eq!(table.value(PARENT + index * 32), Some(index as u32));
        // A stack that the child is interning, too.
        let stack = child_stack(self.heap, self.turn % 8);
        assert_eq!(self.heap.keys_of(stack), [0x2000 + self.turn % 8, 0x1000]);
    }

    fn read(&self) {
        let mut blocks = Table(self.heap).read();
        for (address, block) in &self.permanent {
            assert_eq!(blocks.remove(address).as_ref(), Some(block), "{address:#x}");
        }
        for (address, (_, value)) in blocks {
            let base = if address < CHILD_ALONE { CHILD } else { CHILD_ALONE };
            assert_eq!(value, child_value((address - base) / 32), "{address:#x}");
        }
    }
}

/// A child that waits to be stepped; none if this system does not let processes trace their children.
fn stepped_child(heap: &TestHeap, blocks: u64) -> Option<c_int> {
    // SAFETY: the child only makes system calls and uses the tables.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            if libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) != 0 {
                libc::_exit(99);
            }
            libc::raise(libc::SIGSTOP);
            work(heap, blocks);
            libc::_exit(0);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        if !libc::WIFSTOPPED(status) {
            eprintln!("this system does not let a process trace its child; nothing to step");
            return None;
        }
        Some(pid)
    }
}

/// Lets the child execute one instruction. False once it has ended.
fn step(pid: c_int) -> bool {
    let nothing = core::ptr::null_mut::<c_void>();
    let mut status = 0;
    // SAFETY: the child is stopped and traced by this thread.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_SINGLESTEP, pid, nothing, nothing), 0);
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
    }
    assert!(!libc::WIFSIGNALED(status), "the child was killed: {status:#x}");
    if libc::WIFEXITED(status) {
        assert_eq!(libc::WEXITSTATUS(status), 0);
        return false;
    }
    true
}

fn kill(pid: c_int) {
    let mut status = 0;
    // SAFETY: a child of this process.
    unsafe {
        assert_eq!(libc::kill(pid, libc::SIGKILL), 0);
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
    }
}

#[test]
fn a_thread_stopped_between_any_two_instructions_is_in_nobodys_way() {
    let _turn = alone();
    let heap = TestHeap::new(64 << 20);
    let mut onlooker = Onlooker::new(&heap, 300);
    let Some(pid) = stepped_child(&heap, 3) else { return };
    let mut steps = 0u64;
    while step(pid) {
        steps += 1;
        onlooker.use_tables();
        if steps.is_multiple_of(400) {
            onlooker.read();
        }
    }
    assert!(steps > 500);
    // The child's blocks are all there, whatever the parent did in between.
    for index in 0..3 {
        assert_eq!(Table(&heap).value(CHILD_ALONE + index * 32), Some(child_value(index)));
        let removed = index.is_multiple_of(4);
        let value = Table(&heap).value(CHILD + index * 32);
        assert_eq!(value, (!removed).then(|| child_value(index)));
    }
    onlooker.read();
}

#[test]
fn a_thread_killed_between_two_instructions_leaves_tables_that_work() {
    let _turn = alone();
    let mut random = Random::new(3);
    for _ in 0..30 {
        let heap = TestHeap::new(16 << 20);
        let mut onlooker = Onlooker::new(&heap, 60);
        let Some(pid) = stepped_child(&heap, 2) else { return };
        let last = 100 + random.below(6_000);
        let ended = !(0..last).all(|_| step(pid));
        if !ended {
            kill(pid);
        }
        for _ in 0..200 {
            onlooker.use_tables();
        }
        onlooker.read();
    }
}

#[test]
fn processes_killed_at_random_instants_leave_tables_that_work() {
    let _turn = alone();
    let heap = TestHeap::new(256 << 20);
    let mut onlooker = Onlooker::new(&heap, 2_000);
    let mut random = Random::new(4);
    for round in 0..40u64 {
        // SAFETY: the child only uses the tables.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            let table = Table(&heap);
            let base = CHILD + (1 + round) * 0x100_0000;
            loop {
                for index in 0..50_000 {
                    table.insert(base + index * 32, child_value((base - CHILD) / 32 + index));
                    child_stack(&heap, index);
                }
                for index in 0..50_000 {
                    if let Some(found) = table.find(base + index * 32, slot::HEAP) {
                        found.remove();
                    }
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_micros(random.below(20_000)));
        kill(pid);
        for _ in 0..300 {
            onlooker.use_tables();
        }
        if round % 8 == 7 {
            onlooker.read();
        }
    }
    onlooker.read();
}

/// A child takes a slot away from the parent's view only by inserting: a block of the parent's that the child
/// removes is gone for both.
#[test]
fn processes_see_each_others_changes() {
    let _turn = alone();
    let heap = TestHeap::new(16 << 20);
    let addresses: Vec<u64> = (0..100).map(|index| PARENT + index * 32).collect();
    for &address in &addresses {
        assert!(Table(&heap).insert(address, 7));
    }
    let status = in_child(|| {
        for &address in addresses.iter().step_by(2) {
            match Table(&heap).find(address, slot::HEAP) {
                Some(found) => found.remove(),
                None => return 1,
            }
        }
        0
    });
    assert_eq!(status, 0);
    for (index, &address) in addresses.iter().enumerate() {
        assert_eq!(Table(&heap).value(address).is_some(), !index.is_multiple_of(2));
    }
}
