//! The functions behind the hooks, found without the loader's help.
//!
//! `dlsym` may allocate and lock, so the tracer reads the loader's list of link maps and their symbol tables
//! itself, once, when the loader says that the list is consistent. What comes after the tracer in that list is
//! what `RTLD_NEXT` would search.

use crate::sys;
use core::ffi::{c_char, c_void};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicUsize};
use leakscope_heapfile::attach;

/// The public head of the loader's `struct link_map` (link.h).
#[repr(C)]
pub(crate) struct LinkMap {
    bias: usize,
    name: *const u8,
    dynamic: *const Dynamic,
    next: *const LinkMap,
    previous: *const LinkMap,
}

#[repr(C)]
struct Dynamic {
    tag: i64,
    value: usize,
}

/// `struct r_debug` (link.h).
#[repr(C)]
struct LoaderDebug {
    version: i32,
    map: *const LinkMap,
    breakpoint: usize,
    state: i32,
    loader_base: usize,
}

/// `struct dl_find_object` (dlfcn.h, glibc 2.35).
#[repr(C)]
struct FoundObject {
    flags: u64,
    start: *const c_void,
    end: *const c_void,
    link_map: *const LinkMap,
    eh_frame_hdr: *const c_void,
    reserved: [u64; 7],
}

unsafe extern "C" {
    #[link_name = "_DYNAMIC"]
    static OWN_DYNAMIC: Dynamic;
}

// Weak references: absent in some C libraries, then null.
core::arch::global_asm!(
    ".weak _r_debug",
    ".weak _dl_find_object",
    ".weak environ",
    ".weak __libc_stack_end",
    ".weak __libc_single_threaded",
    ".pushsection .data.rel.ro.leakscope_weak,\"aw\",@progbits",
    ".balign 8",
    ".globl leakscope_weak",
    ".hidden leakscope_weak",
    "leakscope_weak:",
    ".quad _r_debug",
    ".quad _dl_find_object",
    ".quad environ",
    ".quad __libc_stack_end",
    ".quad __libc_single_threaded",
    ".popsection",
);
unsafe extern "C" {
    #[link_name = "leakscope_weak"]
    static WEAK: [usize; 5];
}

fn weak(index: usize) -> Option<usize> {
    // SAFETY: filled by relocation before any code of this object runs; read volatile since the compiler
    // cannot see the loader write it.
    let value = unsafe { core::ptr::read_volatile(core::ptr::addr_of!(WEAK).cast::<usize>().add(index)) };
    (value != 0).then_some(value)
}

fn loader() -> Option<&'static LoaderDebug> {
    // SAFETY: the loader's `_r_debug` is valid for the process's life.
    weak(0).map(|address| unsafe { &*(address as *const LoaderDebug) })
}

/// The process's environment.
pub(crate) fn environment() -> *const *const c_char {
    // SAFETY: libc's `environ` is a pointer variable.
    let known = weak(2).map(|address| unsafe { *(address as *const *const *const c_char) });
    match known {
        Some(environment) if !environment.is_null() => environment,
        _ => initial_environment(),
    }
}

/// The environment as the kernel laid it out, for events before libc has set `environ`: the stack begins with the
/// number of arguments, the arguments, a null pointer, then the environment (System V ABI).
fn initial_environment() -> *const *const c_char {
    let Some(stack) = main_stack_end() else { return core::ptr::null() };
    // SAFETY: the loader recorded where the kernel's words begin.
    unsafe {
        let count = *(stack as *const usize);
        (stack as *const *const c_char).add(count.saturating_add(2))
    }
}

/// Whether libc knows this process to have one thread only (`sys/single_threaded.h`, glibc 2.32); what `malloc` itself
/// goes by.
#[inline(always)]
pub(crate) fn is_single_threaded() -> bool {
    // SAFETY: libc's `__libc_single_threaded` is a char variable.
    weak(4).is_some_and(|address| unsafe { core::ptr::read_volatile(address as *const u8) } != 0)
}

/// Highest address of the main thread's stack that frames can be at.
pub(crate) fn main_stack_end() -> Option<usize> {
    // SAFETY: the loader's `__libc_stack_end` is a pointer variable.
    weak(3).map(|address| unsafe { *(address as *const usize) })
}

macro_rules! real_functions {
    ($($index:literal $name:ident),* $(,)?) => {
        /// Names of the real functions, NUL-terminated, by index.
        const NAMES: &[&[u8]] = &[$(concat!(stringify!($name), "\0").as_bytes()),*];
        static ADDRESSES: [AtomicUsize; NAMES.len()] = [const { AtomicUsize::new(0) }; NAMES.len()];
        $(
            #[doc = concat!("Address of the real `", stringify!($name), "`; 0 if there is none.")]
            #[inline(always)]
            #[allow(non_snake_case)]
            pub(crate) fn $name() -> usize {
                ADDRESSES[$index].load(Relaxed)
            }
        )*
    };
}

real_functions! {
    0 malloc, 1 calloc, 2 realloc, 3 free, 4 posix_memalign, 5 aligned_alloc, 6 memalign, 7 valloc,
    8 pvalloc, 9 reallocarray, 10 munmap, 11 free_sized, 12 free_aligned_sized, 13 mmap,
    14 mremap, 15 malloc_usable_size, 16 dlclose, 17 fork, 18 execve, 19 execvpe, 20 fexecve, 21 posix_spawn,
    22 posix_spawnp, 23 setrlimit, 24 prlimit, 25 _Fork, 26 clock_gettime,
    27 mlockall, 28 prctl, 29 _exit, 30 __cxa_atexit, 31 __cxa_at_quick_exit,
}

static RESOLVED: AtomicBool = AtomicBool::new(false);

/// Finds all real functions if that has not happened yet. False as long as the loader is at work.
pub(crate) fn resolve() -> bool {
    if RESOLVED.load(Acquire) {
        return true;
    }
    let Some(loader) = loader() else { return false };
    // SAFETY: see `loader`; the loader writes `state` while single-threaded or under its own lock.
    let state = unsafe { core::ptr::read_volatile(&raw const loader.state) };
    if state != 0 || loader.map.is_null() {
        return false;
    }
    let mut map = loader.map;
    // SAFETY: the list is consistent, and at this time only the first thread exists.
    unsafe {
        while !map.is_null() && !core::ptr::eq((*map).dynamic, &raw const OWN_DYNAMIC) {
            map = (*map).next;
        }
        if map.is_null() {
            return false;
        }
        let after = (*map).next;
        for (name, place) in NAMES.iter().zip(&ADDRESSES) {
            place.store(search(after, name), Relaxed);
        }
    }
    RESOLVED.store(true, Release);
    true
}

/// Takes the real functions from the outside: the object was not loaded by the process's loader. False if one that the
/// hooks cannot do without is missing.
///
/// # Safety
/// The request must be right about the process.
pub(crate) unsafe fn take(request: &attach::Request) -> bool {
    // SAFETY: the caller vouches for it.
    let given = unsafe {
        core::slice::from_raw_parts(request.functions as *const attach::Function, request.count as usize)
    };
    for (name, place) in NAMES.iter().zip(&ADDRESSES) {
        let found = given.iter().find(|function| function.name.starts_with(name));
        place.store(found.map_or(0, |function| function.address as usize), Relaxed);
    }
    let words = request.allocator.iter().chain(&request.object);
    for (place, &word) in ALLOCATOR.iter().zip(words) {
        place.store(word as usize, Relaxed);
    }
    RESOLVED.store(true, Release);
    [malloc(), calloc(), realloc(), free()].iter().all(|&address| address != 0)
}

/// The modules that hold the real `malloc` and this object.
static ALLOCATOR: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];

/// Whether code at `pc` belongs to the module that holds the real `malloc`, or to a hook on its way there: its calls of
/// hooked functions are its own affair.
pub(crate) fn is_allocator(pc: usize) -> bool {
    let [start, end, own_start, own_end] = &ALLOCATOR;
    if end.load(Relaxed) == 0
        && let (Some(object), Some(own)) =
            (find_object(malloc()), find_object(is_allocator as *const () as usize))
    {
        // Not at the start: then the loader cannot tell yet.
        start.store(object.start, Relaxed);
        own_start.store(own.start, Relaxed);
        own_end.store(own.end, Relaxed);
        end.store(object.end, Relaxed);
    }
    let within = |start: &AtomicUsize, end: &AtomicUsize| pc >= start.load(Relaxed) && pc < end.load(Relaxed);
    within(start, end) || within(own_start, own_end)
}

/// Whether `malloc` of the program means something other than the tracer's.
pub(crate) fn malloc_is_overridden(own: usize) -> bool {
    let Some(loader) = loader() else { return false };
    // SAFETY: as in `resolve`.
    let first = unsafe { search(loader.map, b"malloc\0") };
    first != 0 && first != own
}

/// The first definition of a function in the list from `map` on.
unsafe fn search(mut map: *const LinkMap, name: &[u8]) -> usize {
    let mut budget = 4096;
    while !map.is_null() && budget > 0 {
        // SAFETY: the caller passes a consistent list.
        unsafe {
            if let Some(address) = Symbols::of(&*map)
                .and_then(|symbols| symbols.find(name, false).or_else(|| symbols.find(name, true)))
            {
                return address;
            }
            map = (*map).next;
        }
        budget -= 1;
    }
    0
}

#[repr(C)]
struct Symbol {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: usize,
    size: usize,
}

/// A module's dynamic symbol table.
struct Symbols {
    bias: usize,
    table: *const Symbol,
    strings: *const u8,
    versions: *const u16,
    gnu_hash: *const u32,
    sysv_hash: *const u32,
}

impl Symbols {
    unsafe fn of(map: &LinkMap) -> Option<Symbols> {
        const DT_HASH: i64 = 4;
        const DT_STRTAB: i64 = 5;
        const DT_SYMTAB: i64 = 6;
        const DT_GNU_HASH: i64 = 0x6fff_fef5;
        const DT_VERSYM: i64 = 0x6fff_fff0;
        let bias = map.bias;
        // glibc relocates these entries in place, other loaders (and read-only modules) do not.
        let pointer = |value: usize| if value < bias { value + bias } else { value };
        let mut symbols = Symbols {
            bias,
            table: core::ptr::null(),
            strings: core::ptr::null(),
            versions: core::ptr::null(),
            gnu_hash: core::ptr::null(),
            sysv_hash: core::ptr::null(),
        };
        let mut entry = map.dynamic;
        if entry.is_null() {
            return None;
        }
        // SAFETY: the dynamic section of a loaded module ends with a null tag.
        unsafe {
            while (*entry).tag != 0 {
                let value = (*entry).value;
                match (*entry).tag {
                    DT_HASH => symbols.sysv_hash = pointer(value) as *const u32,
                    DT_STRTAB => symbols.strings = pointer(value) as *const u8,
                    DT_SYMTAB => symbols.table = pointer(value) as *const Symbol,
                    DT_GNU_HASH => symbols.gnu_hash = pointer(value) as *const u32,
                    DT_VERSYM => symbols.versions = pointer(value) as *const u16,
                    _ => {}
                }
                entry = entry.add(1);
            }
        }
        (!symbols.table.is_null() && !symbols.strings.is_null()).then_some(symbols)
    }

    /// The function of that name: its default version, or (`hidden`) any.
    unsafe fn find(&self, name: &[u8], hidden: bool) -> Option<usize> {
        // SAFETY: the tables belong to a loaded module.
        unsafe {
            if !self.gnu_hash.is_null() {
                self.find_gnu(name, hidden)
            } else if !self.sysv_hash.is_null() {
                self.find_linear(name, hidden)
            } else {
                None
            }
        }
    }

    /// Source: "GNU Hash ELF Sections" as the GNU linker writes them.
    unsafe fn find_gnu(&self, name: &[u8], hidden: bool) -> Option<usize> {
        let mut hash = 5381u32;
        for &byte in name.iter().take_while(|&&byte| byte != 0) {
            hash = hash.wrapping_mul(33).wrapping_add(u32::from(byte));
        }
        // SAFETY: header of four words, then the bloom filter, the buckets and the chains.
        unsafe {
            let buckets = *self.gnu_hash;
            let first = *self.gnu_hash.add(1);
            let bloom_words = *self.gnu_hash.add(2) as usize;
            let bucket_table = self.gnu_hash.add(4 + bloom_words * 2);
            if buckets == 0 {
                return None;
            }
            let mut index = *bucket_table.add((hash % buckets) as usize);
            if index < first {
                return None;
            }
            let chains = bucket_table.add(buckets as usize);
            loop {
                let chain = *chains.add((index - first) as usize);
                if chain | 1 == hash | 1
                    && let Some(address) = self.check(index as usize, name, hidden)
                {
                    return Some(address);
                }
                if chain & 1 != 0 {
                    return None;
                }
                index += 1;
            }
        }
    }

    unsafe fn find_linear(&self, name: &[u8], hidden: bool) -> Option<usize> {
        // SAFETY: the second word of a SysV hash table is the number of symbols.
        unsafe {
            let count = *self.sysv_hash.add(1) as usize;
            (0..count).find_map(|index| self.check(index, name, hidden))
        }
    }

    /// The address of symbol `index` if it is a function of that name, and its default version unless `hidden`.
    unsafe fn check(&self, index: usize, name: &[u8], hidden: bool) -> Option<usize> {
        const STT_FUNC: u8 = 2;
        const STT_GNU_IFUNC: u8 = 10;
        const HIDDEN: u16 = 0x8000;
        // SAFETY: the index comes from the module's own hash table; names end in NUL.
        unsafe {
            let symbol = &*self.table.add(index);
            let is_hidden = !self.versions.is_null() && *self.versions.add(index) & HIDDEN != 0;
            if symbol.section == 0 || (is_hidden && !hidden) {
                return None;
            }
            let text = self.strings.add(symbol.name as usize);
            if name.iter().enumerate().any(|(i, &byte)| *text.add(i) != byte) {
                return None;
            }
            let address = self.bias.wrapping_add(symbol.value);
            match symbol.info & 15 {
                STT_FUNC => Some(address),
                STT_GNU_IFUNC => {
                    let resolver: extern "C" fn() -> usize = core::mem::transmute(address);
                    Some(resolver())
                }
                _ => None,
            }
        }
    }
}

/// A loaded object.
pub(crate) struct Object {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) bias: usize,
    pub(crate) header: usize,
    pub(crate) link_map: *const LinkMap,
}

/// The object that contains `pc`.
pub(crate) fn find_object(pc: usize) -> Option<Object> {
    match weak(1) {
        Some(function) => {
            // SAFETY: documented to be callable anywhere, also in signal handlers, without locks.
            unsafe {
                let find: extern "C" fn(usize, *mut FoundObject) -> i32 = core::mem::transmute(function);
                let mut found = core::mem::MaybeUninit::<FoundObject>::zeroed();
                if find(pc, found.as_mut_ptr()) != 0 {
                    return None;
                }
                let found = found.assume_init();
                let bias = if found.link_map.is_null() { 0 } else { (*found.link_map).bias };
                Some(Object {
                    start: found.start as usize,
                    end: found.end as usize,
                    bias,
                    header: found.eh_frame_hdr as usize,
                    link_map: found.link_map,
                })
            }
        }
        None => find_object_by_walk(pc),
    }
}

/// For C libraries without `_dl_find_object`: walks the loader's list if it is consistent. Modules whose first
/// segment starts at their load bias (all shared objects and position-independent executables) are found.
fn find_object_by_walk(pc: usize) -> Option<Object> {
    const PT_LOAD: u32 = 1;
    const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
    let loader = loader()?;
    // SAFETY: see `resolve`.
    if unsafe { core::ptr::read_volatile(&raw const loader.state) } != 0 {
        return None;
    }
    let mut map = loader.map;
    let mut budget = 4096;
    // SAFETY: the list is consistent; each readable first page is probed before it is read.
    unsafe {
        while !map.is_null() && budget > 0 {
            let bias = (*map).bias;
            if bias != 0 && bias <= pc && sys::is_readable(bias) && *(bias as *const u32) == 0x464c_457f {
                let headers = bias + *((bias + 32) as *const usize);
                let size = usize::from(*((bias + 54) as *const u16));
                let count = usize::from(*((bias + 56) as *const u16));
                let (mut end, mut header) = (bias, 0);
                for index in 0..count.min(64) {
                    let at = headers + index * size;
                    let address = bias.wrapping_add(*((at + 16) as *const usize));
                    match *(at as *const u32) {
                        PT_LOAD => end = end.max(address.wrapping_add(*((at + 40) as *const usize))),
                        PT_GNU_EH_FRAME => header = address,
                        _ => {}
                    }
                }
                if pc < end {
                    return Some(Object { start: bias, end, bias, header, link_map: map });
                }
            }
            map = (*map).next;
            budget -= 1;
        }
    }
    None
}

/// Copies a module's path; the executable's own (which the loader leaves empty) comes from the process.
///
/// # Safety
/// `map` must be null or alive.
pub(crate) unsafe fn module_name(map: *const LinkMap, out: &mut [u8]) -> usize {
    // SAFETY: names of live link maps end in NUL.
    unsafe {
        if !map.is_null() && !(*map).name.is_null() && *(*map).name != 0 {
            let mut length = 0;
            for place in out.iter_mut() {
                let byte = *(*map).name.add(length);
                if byte == 0 {
                    break;
                }
                *place = byte;
                length += 1;
            }
            return length;
        }
        sys::readlink(c"/proc/self/exe".as_ptr().cast(), out)
    }
}
