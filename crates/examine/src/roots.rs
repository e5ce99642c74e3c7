//! Where pointers are looked for first: what memcheck and LeakSanitizer take as roots.
//!
//! * all readable and writable memory but the heap's: global variables, thread-local storage, stacks, what the program
//!   mapped itself, shared memory;
//! * of a thread's stack only what lies above its stack pointer, and the red zone below: further down are remains of
//!   calls that have returned, which would hide leaks at random;
//! * the registers of all threads, those for vectors too.
//!
//! Not roots: device memory, the allocator's own structures, and what the tracer keeps in the process for itself.

use crate::traced::{Traced, is_arena};
use leakscope_reach::Roots;
use leakscope_target::{Mapping, Snapshot, Thread};
use std::ops::Range;

/// Bytes below the stack pointer that a function may use (System V ABI, x86-64).
const RED_ZONE: u64 = 128;

/// The roots of a snapshot but for the memory in `left_out`; those among blocks are added by whoever knows them.
pub(crate) fn roots(snapshot: &Snapshot, traced: Option<&Traced>, left_out: &[Range<u64>]) -> Roots {
    let mut left_out = left_out.to_vec();
    left_out.extend(snapshot.threads.iter().filter_map(|thread| dead_stack(snapshot, thread)));
    if let Some(traced) = traced {
        left_out.extend(traced.own.iter().cloned());
    }
    left_out.sort_unstable_by_key(|range| range.start);
    let mappings = &snapshot.mappings;
    let memory = mappings.iter().enumerate().filter(|&(index, mapping)| {
        is_root(snapshot, mapping) || is_sealed(mapping, mappings.get(index + 1))
    });
    let ranges = memory.flat_map(|(_, mapping)| without(mapping.start..mapping.end, &left_out)).collect();
    let words = snapshot.threads.iter().flat_map(registers).collect();
    Roots { ranges, words, ..Roots::default() }
}

fn is_root(snapshot: &Snapshot, mapping: &Mapping) -> bool {
    let is_device = mapping.path.starts_with(b"/dev/")
        && !mapping.path.starts_with(b"/dev/zero")
        && !mapping.path.starts_with(b"/dev/shm/");
    mapping.readable && mapping.writable && !is_device && !is_arena(snapshot, mapping)
}

/// Whether it is a part of a module's variables that was made read-only once the module was loaded (`PT_GNU_RELRO`). A
/// statically linked program has pointers to blocks there. By the file they go on in what can still be written.
fn is_sealed(mapping: &Mapping, next: Option<&Mapping>) -> bool {
    let is_private_file = mapping.readable && !mapping.writable && !mapping.shared && mapping.inode != 0;
    let length = mapping.end.saturating_sub(mapping.start);
    is_private_file
        && !mapping.executable
        && next.is_some_and(|next| {
            next.writable
                && next.start == mapping.end
                && next.inode == mapping.inode
                && next.path == mapping.path
                && Some(next.offset) == mapping.offset.checked_add(length)
        })
}

/// What of a thread's stack is below its stack pointer. Known of the main thread's stack, and of those that the C
/// library made: there the control block lies at the top of the same mapping.
fn dead_stack(snapshot: &Snapshot, thread: &Thread) -> Option<Range<u64>> {
    let registers = &thread.registers;
    let mapping = mapping_at(&snapshot.mappings, registers.sp)?;
    let is_stack = mapping.path.starts_with(b"[stack")
        || (mapping.inode == 0 && (registers.sp..mapping.end).contains(&registers.thread_pointer));
    let live = registers.sp.saturating_sub(RED_ZONE) & !7;
    (is_stack && live > mapping.start).then_some(mapping.start..live)
}

/// The mapping that holds an address. Mappings are sorted.
pub(crate) fn mapping_at(mappings: &[Mapping], address: u64) -> Option<&Mapping> {
    let behind = mappings.partition_point(|mapping| mapping.start <= address);
    behind.checked_sub(1).and_then(|index| mappings.get(index)).filter(|mapping| address < mapping.end)
}

/// What a thread holds in registers, those for vectors too.
pub(crate) fn registers(thread: &Thread) -> impl Iterator<Item = u64> + use<'_> {
    thread.registers.general.iter().chain(&thread.registers.vector).copied()
}

/// `range` without the parts in `left_out`, which are sorted by their start.
fn without(range: Range<u64>, left_out: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut start = range.start;
    for out in left_out.iter().filter(|out| out.end > range.start && out.start < range.end) {
        if out.start > start {
            parts.push(start..out.start);
        }
        start = start.max(out.end);
    }
    if start < range.end {
        parts.push(start..range.end);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_target::{Pieces, Registers, Source};

    fn snapshot(mappings: Vec<Mapping>, threads: Vec<Registers>) -> Snapshot {
        Snapshot {
            pid: 1,
            start_ticks: 0,
            command: Vec::new(),
            executable: Vec::new(),
            mappings,
            threads: threads.into_iter().map(|registers| Thread { registers, ..Thread::default() }).collect(),
            auxv: Vec::new(),
            memory: Box::new(Pieces::default()),
            source: Source::Core,
            pause: None,
            root: "/".into(),
            notes: Vec::new(),
        }
    }

    fn writable(start: u64, end: u64, path: &str) -> Mapping {
        Mapping { start, end, readable: true, writable: true, path: path.into(), ..Mapping::default() }
    }

    #[test]
    fn below_a_stack_pointer_only_the_red_zone_is_a_root() {
        let main = Registers { sp: 0x7000, thread_pointer: 0x100, ..Registers::default() };
        let other = Registers { sp: 0x3800, thread_pointer: 0x3f00, ..Registers::default() };
        // On memory of its own, as fibers are: nothing can be told of it.
        let fiber = Registers { sp: 0x1800, thread_pointer: 0x100, ..Registers::default() };
        let mappings = vec![
            writable(0x1000, 0x2000, ""),
            writable(0x3000, 0x4000, ""),
            writable(0x6000, 0x8000, "[stack]"),
        ];
        let roots = roots(&snapshot(mappings, vec![main, other, fiber]), None, &[]);
        let expected = [0x1000..0x2000, 0x3800 - 128..0x4000, 0x7000 - 128..0x8000];
        assert_eq!(roots.ranges, expected);
    }

    #[test]
    fn devices_and_memory_that_cannot_be_written_are_no_roots() {
        let read_only = Mapping { writable: false, ..writable(0x5000, 0x6000, "/lib/a.so") };
        let mappings = vec![
            writable(0x1000, 0x2000, "/dev/dri/card0"),
            writable(0x2000, 0x3000, "/dev/shm/table"),
            writable(0x3000, 0x4000, "/lib/a.so"),
            read_only,
        ];
        let roots = roots(&snapshot(mappings, Vec::new()), None, &[]);
        assert_eq!(roots.ranges, [0x2000..0x3000, 0x3000..0x4000]);
    }

    #[test]
    fn variables_that_were_sealed_after_loading_are_roots() {
        let of_file = |start, end, offset, is_writable| Mapping {
            writable: is_writable,
            offset,
            inode: 7,
            ..writable(start, end, "/bin/static")
        };
        let mappings = vec![
            of_file(0x1000, 0x3000, 0x1000, false),
            of_file(0x3000, 0x4000, 0x3000, false),
            of_file(0x4000, 0x5000, 0x4000, true),
            of_file(0x6000, 0x7000, 0x1000, false),
            of_file(0x7000, 0x8000, 0x4000, true),
        ];
        let roots = roots(&snapshot(mappings, Vec::new()), None, &[]);
        assert_eq!(roots.ranges, [0x3000..0x4000, 0x4000..0x5000, 0x7000..0x8000]);
    }

    #[test]
    fn what_is_left_out_may_overlap_and_reach_beyond() {
        assert_eq!(without(10..20, &[5..12, 11..13, 15..16, 19..30]), [13..15, 16..19]);
        assert_eq!(without(10..20, std::slice::from_ref(&(0..40))), []);
    }
}
