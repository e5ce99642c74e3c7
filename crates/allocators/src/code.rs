//! Whether a thread is inside malloc: what it holds in its registers then belongs neither to the heap nor to the
//! program.

use crate::elf::{self, Symbol};
use crate::modules::Module;
use crate::read::{bytes, word_at};
use crate::recognise::libraries;
use leakscope_target::{Memory, Snapshot, Thread};
use std::collections::BTreeSet;
use std::ops::Range;

/// Functions of glibc's malloc that a library exports.
const EXPORTED: &[&[u8]] = &[
    b"malloc",
    b"free",
    b"calloc",
    b"realloc",
    b"memalign",
    b"aligned_alloc",
    b"valloc",
    b"pvalloc",
    b"posix_memalign",
    b"cfree",
    b"malloc_trim",
    b"malloc_usable_size",
    b"malloc_info",
    b"malloc_stats",
    b"mallinfo",
    b"mallinfo2",
    b"mallopt",
    b"free_sized",
    b"free_aligned_sized",
    b"__libc_malloc",
    b"__libc_free",
    b"__libc_calloc",
    b"__libc_realloc",
    b"__libc_memalign",
    b"__libc_valloc",
    b"__libc_pvalloc",
    b"__libc_mallopt",
    b"__default_morecore",
    b"malloc_get_state",
    b"malloc_set_state",
];

/// Its own, which only a full symbol table names.
const LOCAL: &[&[u8]] = &[
    b"_int_malloc",
    b"_int_free",
    b"_int_free_chunk",
    b"_int_free_merge_chunk",
    b"_int_free_create_chunk",
    b"_int_free_maybe_trim",
    b"_int_free_check",
    b"_int_realloc",
    b"_int_memalign",
    b"_mid_memalign",
    b"sysmalloc",
    b"sysmalloc_mmap",
    b"sysmalloc_mmap_fallback",
    b"systrim",
    b"malloc_consolidate",
    b"unlink_chunk",
    b"tcache_init",
    b"tcache_thread_shutdown",
    b"tcache_free_init",
    b"tcache_malloc_init",
    b"tcache_calloc_init",
    b"tcache_double_free_verify",
    b"__malloc_arena_thread_freeres",
    b"arena_get2",
    b"arena_get_retry",
    b"reused_arena",
    b"get_free_list",
    b"_int_new_arena",
    b"new_heap",
    b"alloc_new_heap",
    b"grow_heap",
    b"shrink_heap",
    b"heap_trim",
    b"ptmalloc_init",
    b"__ptmalloc_init",
    b"munmap_chunk",
    b"mremap_chunk",
    b"mtrim",
    b"detach_arena",
    b"musable",
    b"__libc_malloc2",
    b"__libc_calloc2",
    b"__malloc_tcache_free",
    b"malloc_hook_ini",
    b"realloc_hook_ini",
    b"memalign_hook_ini",
    b"__glibc_morecore",
];

/// Bytes of stack above the stack pointer that are looked at: the frames of what malloc calls are small.
const NEAR: usize = 512;

/// Where malloc's code is in a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllocatorCode {
    /// malloc and what belongs to it.
    malloc: Vec<Range<u64>>,
    /// All code of the libraries that hold it.
    libraries: Vec<Range<u64>>,
}

impl AllocatorCode {
    /// Finds it. Without a symbol table, what lies between the exported functions of malloc and the next ones of other
    /// parts counts as malloc too.
    pub fn new(snapshot: &Snapshot) -> AllocatorCode {
        let mut code = AllocatorCode::default();
        for (module, _) in libraries(snapshot) {
            code.add(snapshot, &module);
        }
        code
    }

    fn add(&mut self, snapshot: &Snapshot, module: &Module) {
        let executable = snapshot.mappings.iter().filter(|mapping| mapping.executable);
        let own = executable.filter(|mapping| mapping.start >= module.start && mapping.end <= module.end);
        self.libraries.extend(own.map(|mapping| mapping.start..mapping.end));
        let Some(mut object) = elf::object(snapshot, module, &|_| true) else { return };
        object.symbols.retain(|symbol| symbol.function);
        for range in ranges(&object.symbols, object.full) {
            let shift = |address: u64| module.start.wrapping_add(address.wrapping_sub(object.base));
            self.malloc.push(shift(range.start)..shift(range.end));
        }
    }

    /// Whether `address` is in malloc's code.
    pub fn contains(&self, address: u64) -> bool {
        self.malloc.iter().any(|range| range.contains(&address))
    }

    /// Whether the thread is inside malloc: its program counter is, or it is in something that malloc called.
    pub fn holds(&self, snapshot: &Snapshot, thread: &Thread) -> bool {
        if self.contains(thread.registers.pc) {
            return true;
        }
        // malloc calls only its own library (and the kernel from there): a system call's stub, a lock, memcpy.
        if !within(&self.libraries, thread.registers.pc) {
            return false;
        }
        let stack = bytes(&*snapshot.memory, thread.registers.sp, NEAR);
        let executable = |address: u64| {
            snapshot.mappings.iter().any(|map| map.executable && map.start < address && address < map.end)
        };
        for word in stack.chunks_exact(8).filter_map(|word| word_at(word, 0)) {
            if !executable(word) || !follows_call(&*snapshot.memory, word) {
                continue;
            }
            if self.contains(word) {
                return true;
            }
            // The nearest caller outside the library: what lies beyond is no business of malloc.
            if !within(&self.libraries, word) {
                return false;
            }
        }
        false
    }

    /// The words that a thread inside malloc has in its registers and near frames; none for other threads.
    pub(crate) fn held(&self, snapshot: &Snapshot, thread: &Thread) -> Vec<u64> {
        if !self.holds(snapshot, thread) {
            return Vec::new();
        }
        let stack = bytes(&*snapshot.memory, thread.registers.sp, NEAR);
        let words = stack.chunks_exact(8).filter_map(|word| word_at(word, 0));
        thread.registers.general.iter().copied().chain(words).collect()
    }
}

/// Whether the thread stands inside malloc, so that a chunk may be in its hands alone. Let it run on and take another
/// snapshot; [`AllocatorCode`] answers for many threads.
pub fn in_allocator(snapshot: &Snapshot, thread: &Thread) -> bool {
    AllocatorCode::new(snapshot).holds(snapshot, thread)
}

fn within(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// Whether a call instruction ends right before `address`; weeds out most stack words that only look like code.
fn follows_call(memory: &dyn Memory, address: u64) -> bool {
    if !cfg!(target_arch = "x86_64") {
        return true;
    }
    let Some(start) = address.checked_sub(7) else { return false };
    let code = bytes(memory, start, 7);
    let at = |back: usize| code.len().checked_sub(back).and_then(|index| code.get(index)).copied();
    // call rel32; call *r/m with 0, 1 or 4 bytes of displacement, with and without SIB (ff /2).
    at(5) == Some(0xe8)
        || [(2, 1), (3, 2), (4, 3), (6, 5), (7, 6)].iter().any(|&(opcode, modrm)| {
            at(opcode) == Some(0xff) && at(modrm).is_some_and(|byte| byte >> 3 & 7 == 2)
        })
}

/// The ranges of malloc's functions among all functions.
fn ranges(functions: &[Symbol], full: bool) -> Vec<Range<u64>> {
    let ours = |name: &[u8]| {
        let name = name.split(|&byte| byte == b'.' || byte == b'@').next().unwrap_or(name);
        EXPORTED.contains(&name) || LOCAL.contains(&name)
    };
    let mut sorted: Vec<(u64, u64, bool)> =
        functions.iter().map(|function| (function.address, function.size, ours(&function.name))).collect();
    sorted.sort_unstable();
    let own = |&&(_, _, ours): &&(u64, u64, bool)| ours;
    let end = |address: u64, size: u64| address.saturating_add(size.max(1));
    if full {
        return sorted.iter().filter(own).map(|&(address, size, _)| address..end(address, size)).collect();
    }
    // Several names can stand for one address; one of ours makes it ours.
    let owned: BTreeSet<u64> = sorted.iter().filter(own).map(|&(address, _, _)| address).collect();
    let others: Vec<(u64, u64)> = sorted
        .iter()
        .filter(|(address, _, _)| !owned.contains(address))
        .map(|&(address, size, _)| (address, size))
        .collect();
    let mut ranges = Vec::new();
    for &(address, size, _) in sorted.iter().filter(own) {
        let behind = others.partition_point(|&(other, _)| other < address);
        let before = behind.checked_sub(1).and_then(|index| others.get(index));
        let start = before.map_or(address, |&(other, size)| other.saturating_add(size).min(address));
        let end = end(address, size);
        let next = others.get(behind..).unwrap_or(&[]).iter().find(|&&(other, _)| other >= end);
        ranges.push(start..next.map_or(end, |&(other, _)| other));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, address: u64, size: u64) -> Symbol {
        Symbol { address, size, name: name.into(), function: true }
    }

    #[test]
    fn without_local_symbols_the_gaps_around_malloc_count_as_malloc() {
        let functions = [
            function("qsort", 0x100, 0x20),
            function("malloc", 0x200, 0x40),
            function("__libc_malloc", 0x200, 0x40),
            function("free", 0x280, 0x20),
            function("strlen", 0x400, 0x10),
        ];
        let code = AllocatorCode { malloc: ranges(&functions, false), libraries: Vec::new() };
        for (address, inside) in [(0x110, false), (0x120, true), (0x27f, true), (0x3ff, true), (0x400, false)]
        {
            assert_eq!(code.contains(address), inside, "{address:#x}");
        }
        let code = AllocatorCode { malloc: ranges(&functions, true), libraries: Vec::new() };
        assert!(code.contains(0x23f) && !code.contains(0x250));
    }
}
