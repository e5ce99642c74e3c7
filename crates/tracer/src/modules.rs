//! The modules (executable files mapped into the process), as the tracer knows them.
//!
//! A module enters the list when a program counter in it is first met: `_dl_find_object` (glibc 2.35) finds it
//! without a lock, even inside a signal handler; older C libraries are asked by walking the loader's list while
//! it says that it is consistent. Entries are only added; a module that was unloaded is marked.

use crate::arena::Arena;
use crate::real::{self, LinkMap};
use crate::unwind::cfi::Bytes;
use core::cell::UnsafeCell;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU32, AtomicUsize};
use leakscope_heapfile::layout::{ModuleRecord, UNIT, Window};

const CAPACITY: usize = 1024;

/// One module.
#[derive(Clone, Copy)]
pub(crate) struct Module {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) bias: usize,
    /// Address of `.eh_frame_hdr`; 0 if there is none.
    pub(crate) header: usize,
    link_map: *const LinkMap,
}

struct Entry {
    /// 0 = being written, 1 = mapped, 2 = unloaded.
    state: AtomicU32,
    /// The record in the heap file, in units.
    record: AtomicU32,
    module: UnsafeCell<Module>,
}

struct Table([Entry; CAPACITY]);
// SAFETY: an entry's `module` is written by the one thread that claimed its index, before `state` is released.
unsafe impl Sync for Table {}

static TABLE: Table = Table(
    [const {
        Entry {
            state: AtomicU32::new(0),
            record: AtomicU32::new(0),
            module: UnsafeCell::new(Module {
                start: 0,
                end: 0,
                bias: 0,
                header: 0,
                link_map: core::ptr::null(),
            }),
        }
    }; CAPACITY],
);
static COUNT: AtomicUsize = AtomicUsize::new(0);

impl Module {
    /// The module's memory, for checked reads.
    pub(crate) fn bytes(&self) -> Bytes {
        // SAFETY: code at an address in this module is on the current stack, so the module is mapped; the
        // tables that are read (ELF header, notes, eh_frame) are in its readable segments.
        unsafe { Bytes::new(self.start, self.end) }
    }
}

/// Finds the module of `pc` and its number (from 1).
pub(crate) fn find(pc: usize, arena: Arena, window: &Window, tick: u32) -> Option<(u16, Module)> {
    let count = COUNT.load(Acquire).min(CAPACITY);
    for (index, entry) in TABLE.0.iter().enumerate().take(count).rev() {
        if entry.state.load(Acquire) == 1 {
            // SAFETY: published entries are never written again.
            let module = unsafe { *entry.module.get() };
            if (module.start..module.end).contains(&pc) {
                return Some((index as u16 + 1, module));
            }
        }
    }
    let module = ask_loader(pc)?;
    let index = COUNT.fetch_add(1, AcqRel);
    let Some(entry) = TABLE.0.get(index) else {
        COUNT.store(CAPACITY, Relaxed);
        return None;
    };
    // SAFETY: the index was claimed by this thread; readers wait for `state`.
    unsafe { *entry.module.get() = module };
    entry.state.store(1, Release);
    write_record(index, entry, arena, window, tick);
    Some((index as u16 + 1, module))
}

/// Writes the records of all known modules into a new window: a forked child keeps its parent's numbers.
pub(crate) fn write_all(arena: Arena, window: &Window) {
    let count = COUNT.load(Acquire).min(CAPACITY);
    for (index, entry) in TABLE.0.iter().enumerate().take(count) {
        if entry.state.load(Acquire) == 1 {
            write_record(index, entry, arena, window, 0);
        }
    }
}

/// Forgets all modules: what was known of them may be wrong by now. Only while no thread is inside of the tracer.
pub(crate) fn forget() {
    for entry in &TABLE.0 {
        entry.state.store(0, Relaxed);
        entry.record.store(0, Relaxed);
    }
    COUNT.store(0, Release);
}

/// Marks the modules that are no longer mapped. Returns whether there were any.
pub(crate) fn mark_unloaded(arena: Arena, tick: u32) -> bool {
    let mut any = false;
    let count = COUNT.load(Acquire).min(CAPACITY);
    for entry in TABLE.0.iter().take(count) {
        if entry.state.load(Acquire) != 1 {
            continue;
        }
        // SAFETY: published entries are never written again.
        let module = unsafe { *entry.module.get() };
        let same = ask_loader(module.start)
            .is_some_and(|now| now.link_map == module.link_map && now.header == module.header);
        if !same {
            entry.state.store(2, Release);
            if let Some(record) = arena.unit::<ModuleRecord>(entry.record.load(Relaxed)) {
                record.unloaded.store(tick.max(1), Relaxed);
            }
            any = true;
        }
    }
    any
}

fn ask_loader(pc: usize) -> Option<Module> {
    real::find_object(pc).map(|object| Module {
        start: object.start,
        end: object.end,
        bias: object.bias,
        header: object.header,
        link_map: object.link_map,
    })
}

fn write_record(index: usize, entry: &Entry, arena: Arena, window: &Window, _tick: u32) {
    // SAFETY: published entries are never written again.
    let module = unsafe { *entry.module.get() };
    let mut path = [0u8; 1024];
    // SAFETY: the module is mapped, so its link map is alive.
    let length = unsafe { real::module_name(module.link_map, &mut path) };
    let size = size_of::<ModuleRecord>() as u64 + length as u64;
    let Some(offset) = arena.allocate(window, size) else { return };
    let mut build_id = [0u8; 32];
    let build_id_len = build_id_of(&module, &mut build_id);
    let (Some(record), Some(tail)) =
        (arena.at::<ModuleRecord>(offset), arena.at::<u8>(offset + size_of::<ModuleRecord>() as u64))
    else {
        return;
    };
    // SAFETY: the space was just handed out to this thread and is published by the exchange below.
    unsafe {
        let place = core::ptr::from_ref(record).cast_mut();
        (*place).id = index as u32 + 1;
        (*place).start = module.start as u64;
        (*place).end = module.end as u64;
        (*place).bias = module.bias as u64;
        (*place).build_id_len = build_id_len as u32;
        (*place).path_len = length as u32;
        (*place).build_id = build_id;
        core::ptr::copy_nonoverlapping(path.as_ptr(), core::ptr::from_ref(tail).cast_mut(), length);
    }
    let units = (offset / UNIT) as u32;
    entry.record.store(units, Relaxed);
    let mut head = window.modules.load(Acquire);
    loop {
        // SAFETY: still unpublished.
        unsafe { (*core::ptr::from_ref(record).cast_mut()).next = head };
        match window.modules.compare_exchange(head, units, AcqRel, Acquire) {
            Ok(_) => break,
            Err(now) => head = now,
        }
    }
    window.module_count.fetch_add(1, Relaxed);
}

/// Reads the GNU build id from the notes of the mapped file. Returns its length, 0 if there is none.
fn build_id_of(module: &Module, out: &mut [u8; 32]) -> usize {
    find_build_id(module, out).unwrap_or(0)
}

fn find_build_id(module: &Module, out: &mut [u8; 32]) -> Option<usize> {
    const PT_NOTE: u32 = 4;
    const NT_GNU_BUILD_ID: u32 = 3;
    let bytes = module.bytes();
    let base = module.start;
    if bytes.read::<u32>(base)? != u32::from_le_bytes(*b"\x7fELF") {
        return None;
    }
    let headers = base.checked_add(bytes.read::<u64>(base + 32)? as usize)?;
    let size = usize::from(bytes.read::<u16>(base + 54)?);
    let count = usize::from(bytes.read::<u16>(base + 56)?);
    for index in 0..count.min(64) {
        let header = headers.checked_add(index.checked_mul(size)?)?;
        if bytes.read::<u32>(header)? != PT_NOTE {
            continue;
        }
        let mut at = module.bias.wrapping_add(bytes.read::<u64>(header + 16)? as usize);
        let end = at.checked_add(bytes.read::<u64>(header + 40)? as usize)?;
        while at.checked_add(12)? <= end {
            let name = bytes.read::<u32>(at)? as usize;
            let length = bytes.read::<u32>(at + 4)? as usize;
            let kind = bytes.read::<u32>(at + 8)?;
            let data = (at + 12).checked_add(name.next_multiple_of(4))?;
            if kind == NT_GNU_BUILD_ID && name == 4 && length <= out.len() {
                for (place, byte) in out.iter_mut().zip(0..length) {
                    *place = bytes.read::<u8>(data.checked_add(byte)?)?;
                }
                return Some(length);
            }
            at = data.checked_add(length.next_multiple_of(4))?;
        }
    }
    None
}
