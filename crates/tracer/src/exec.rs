//! `exec` and `posix_spawn`: the new program is traced, too, unless that could harm it.
//!
//! A program may pass an environment of its own making; the tracer's two variables are then put back, the
//! caller's own `LD_PRELOAD` entries behind them. They are taken out for programs that the tracer cannot be
//! loaded into, since the loader would print an error (32-bit) or refuse to start (musl).
//!
//! These may run in a `vfork` child, which shares the parent's memory: nothing but the stack is written.

use crate::{process, real, sys};
use core::ffi::{c_char, c_void};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicU8, AtomicUsize};

type Strings = *const *const c_char;

const MAX_ENTRIES: usize = 1024;
const MAX_TEXT: usize = 4096;
const PRELOAD: &[u8] = b"LD_PRELOAD=";
const ARENA: &[u8] = b"LEAKSCOPE_ARENA=";

/// `LEAKSCOPE_ARENA=...` and the tracer's own path, NUL-terminated, as they were at start.
static ARENA_ENTRY: [AtomicU8; 512] = [const { AtomicU8::new(0) }; 512];
static OBJECT_PATH: [AtomicU8; 1024] = [const { AtomicU8::new(0) }; 1024];
static OBJECT_LENGTH: AtomicUsize = AtomicUsize::new(0);

/// Remembers the tracer's variables. Called once, when tracing begins.
pub(crate) fn remember() {
    // SAFETY: the environment is a vector of NUL-terminated strings.
    unsafe {
        let environment = real::environment();
        if let (Some(arena), Some(preload)) =
            (process::find_variable(environment, ARENA), process::find_variable(environment, PRELOAD))
        {
            let mut index = 0;
            for &byte in ARENA {
                store(&ARENA_ENTRY, &mut index, byte);
            }
            let mut at = arena;
            while *at != 0 {
                store(&ARENA_ENTRY, &mut index, *at as u8);
                at = at.add(1);
            }
            let mut length = 0;
            let mut at = preload;
            while *at != 0 && *at as u8 != b':' && *at as u8 != b' ' {
                store(&OBJECT_PATH, &mut length, *at as u8);
                at = at.add(1);
            }
            OBJECT_LENGTH.store(length, Release);
        }
    }
}

fn store(place: &[AtomicU8], index: &mut usize, byte: u8) {
    // The last byte stays zero.
    if *index + 1 < place.len()
        && let Some(cell) = place.get(*index)
    {
        cell.store(byte, Relaxed);
        *index += 1;
    }
}

/// Room for a changed environment, on the stack.
struct Environment {
    entries: [*const c_char; MAX_ENTRIES],
    preload: [u8; MAX_TEXT],
}

impl Environment {
    fn new() -> Environment {
        Environment { entries: [core::ptr::null(); MAX_ENTRIES], preload: [0; MAX_TEXT] }
    }

    /// The environment to pass on instead of `given`.
    unsafe fn adapt(&mut self, given: Strings, path: *const c_char) -> Strings {
        let length = OBJECT_LENGTH.load(Acquire);
        if length == 0 || given.is_null() {
            return given;
        }
        // SAFETY: the caller passes an environment vector and a path.
        unsafe {
            let wanted = process::window().is_some() && can_be_traced(path);
            let mut count = 0;
            let mut own_preload = None;
            let mut entry = given;
            while !(*entry).is_null() {
                let text = *entry;
                if starts_with(text, PRELOAD) {
                    own_preload = Some(text.add(PRELOAD.len()));
                } else if starts_with(text, ARENA) {
                    // Another run's, begun inside this one: its processes are its own.
                    if !same_text(text, &ARENA_ENTRY) && exists(text.add(ARENA.len())) {
                        return given;
                    }
                } else {
                    // Two entries and the end must fit, too.
                    let Some(place) = self.entries.get_mut(count) else { return given };
                    *place = text;
                    count += 1;
                }
                entry = entry.add(1);
            }
            if count + 3 > MAX_ENTRIES || !self.build_preload(own_preload, length, wanted) {
                return given;
            }
            if wanted {
                self.push(&mut count, ARENA_ENTRY.as_ptr().cast());
            }
            if self.preload.get(PRELOAD.len()).is_some_and(|&byte| byte != 0) {
                let preload = self.preload.as_ptr().cast();
                self.push(&mut count, preload);
            }
            self.entries.as_ptr()
        }
    }

    fn push(&mut self, count: &mut usize, text: *const c_char) {
        if let Some(place) = self.entries.get_mut(*count) {
            *place = text;
            *count += 1;
        }
    }

    /// Writes `LD_PRELOAD=` with the tracer (if `wanted`) and then the caller's entries without it.
    unsafe fn build_preload(&mut self, own: Option<*const c_char>, length: usize, wanted: bool) -> bool {
        let mut used = 0;
        let mut put = |byte: u8| -> bool {
            match self.preload.get_mut(used) {
                Some(place) if used + 1 < MAX_TEXT => {
                    *place = byte;
                    used += 1;
                    true
                }
                _ => false,
            }
        };
        let object = || OBJECT_PATH.iter().take(length).map(|byte| byte.load(Relaxed));
        if !PRELOAD.iter().all(|&byte| put(byte)) || (wanted && !object().all(&mut put)) {
            return false;
        }
        let Some(mut at) = own else { return true };
        let mut first = !wanted;
        // SAFETY: a NUL-terminated string.
        unsafe {
            loop {
                let start = at;
                let mut size = 0;
                while !matches!(*at as u8, 0 | b':' | b' ') {
                    at = at.add(1);
                    size += 1;
                }
                let same = size == length
                    && object().enumerate().all(|(index, byte)| *start.add(index) as u8 == byte);
                if size > 0 && !same {
                    if !first && !put(b':') {
                        return false;
                    }
                    first = false;
                    if !(0..size).all(|index| put(*start.add(index) as u8)) {
                        return false;
                    }
                }
                if *at == 0 {
                    return true;
                }
                at = at.add(1);
            }
        }
    }
}

/// Whether a string equals a stored one.
unsafe fn same_text(text: *const c_char, stored: &[AtomicU8]) -> bool {
    for (index, byte) in stored.iter().enumerate() {
        // SAFETY: comparing stops at the first difference, or at the end of both.
        let (own, other) = (byte.load(Relaxed), unsafe { *text.add(index) } as u8);
        if own != other || own == 0 {
            return own == other;
        }
    }
    false
}

/// Whether there is a file of that name that this process can read.
unsafe fn exists(path: *const c_char) -> bool {
    // SAFETY: the caller passes a NUL-terminated path.
    match unsafe { sys::File::open_read(path.cast()) } {
        Some(file) => {
            file.close();
            true
        }
        None => false,
    }
}

unsafe fn starts_with(text: *const c_char, prefix: &[u8]) -> bool {
    // SAFETY: comparing stops at the first difference, so within the string.
    prefix.iter().enumerate().all(|(index, &byte)| unsafe { *text.add(index) as u8 == byte })
}

/// Whether the loader of the program at `path` would take the tracer. In doubt, yes.
unsafe fn can_be_traced(path: *const c_char) -> bool {
    if path.is_null() {
        return true;
    }
    // SAFETY: the caller passes a NUL-terminated path.
    let Some(file) = (unsafe { sys::File::open_read(path.cast()) }) else { return true };
    let mut head = [0u8; 2048];
    let length = file.read(&mut head);
    let verdict = elf_takes_tracer(head.get(..length).unwrap_or(&[]), |buffer, at| file.read_at(buffer, at));
    file.close();
    verdict
}

/// Judges by the ELF header and the interpreter's name. `read` reads from the file at an offset.
fn elf_takes_tracer(head: &[u8], read: impl Fn(&mut [u8], usize) -> usize) -> bool {
    const CLASS_64: u8 = 2;
    const PT_INTERP: u32 = 3;
    if head.get(..4) != Some(b"\x7fELF") {
        // A script: its interpreter decides, and those are glibc's as a rule.
        return true;
    }
    if head.get(4) != Some(&CLASS_64) {
        return false;
    }
    let word =
        |at: usize| -> Option<u64> { Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?)) };
    let half =
        |at: usize| -> Option<u16> { Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?)) };
    let (Some(table), Some(size), Some(count)) = (word(32), half(54), half(56)) else { return true };
    for index in 0..usize::from(count).min(64) {
        let at = (table as usize).saturating_add(index * usize::from(size));
        let kind = head.get(at..at.saturating_add(4)).and_then(|bytes| bytes.try_into().ok());
        if kind.map(u32::from_le_bytes) != Some(PT_INTERP) {
            continue;
        }
        let Some(offset) = word(at + 8) else { return true };
        let mut name = [0u8; 64];
        let length = read(&mut name, offset as usize);
        let name = name.get(..length).unwrap_or(&[]);
        return !name.windows(7).any(|part| part == b"ld-musl");
    }
    // Static: the variables have no effect.
    true
}

pub(crate) unsafe extern "C" fn execve(path: *const c_char, arguments: Strings, given: Strings) -> i32 {
    type Real = unsafe extern "C" fn(*const c_char, Strings, Strings) -> i32;
    real::resolve();
    let mut environment = Environment::new();
    // SAFETY: the symbol of that name in a C library has that type; the arguments are the caller's own.
    unsafe {
        let adapted = environment.adapt(given, path);
        match real::execve() {
            0 => -1,
            function => core::mem::transmute::<usize, Real>(function)(path, arguments, adapted),
        }
    }
}

pub(crate) unsafe extern "C" fn execv(path: *const c_char, arguments: Strings) -> i32 {
    // SAFETY: the caller's own arguments.
    unsafe { execve(path, arguments, real::environment()) }
}

pub(crate) unsafe extern "C" fn execvpe(file: *const c_char, arguments: Strings, given: Strings) -> i32 {
    type Real = unsafe extern "C" fn(*const c_char, Strings, Strings) -> i32;
    real::resolve();
    let mut environment = Environment::new();
    // SAFETY: as in `execve`. Where PATH will find the file is not known; by its name alone it is not judged.
    unsafe {
        let adapted = environment.adapt(given, path_of(file));
        match real::execvpe() {
            0 => -1,
            function => core::mem::transmute::<usize, Real>(function)(file, arguments, adapted),
        }
    }
}

pub(crate) unsafe extern "C" fn execvp(file: *const c_char, arguments: Strings) -> i32 {
    // SAFETY: the caller's own arguments.
    unsafe { execvpe(file, arguments, real::environment()) }
}

pub(crate) unsafe extern "C" fn fexecve(fd: i32, arguments: Strings, given: Strings) -> i32 {
    type Real = unsafe extern "C" fn(i32, Strings, Strings) -> i32;
    real::resolve();
    let mut environment = Environment::new();
    // SAFETY: as in `execve`.
    unsafe {
        let adapted = environment.adapt(given, core::ptr::null());
        match real::fexecve() {
            0 => -1,
            function => core::mem::transmute::<usize, Real>(function)(fd, arguments, adapted),
        }
    }
}

type Spawn =
    unsafe extern "C" fn(*mut i32, *const c_char, *const c_void, *const c_void, Strings, Strings) -> i32;
const ENOSYS: i32 = 38;

pub(crate) unsafe extern "C" fn posix_spawn(
    pid: *mut i32,
    path: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    given: Strings,
) -> i32 {
    real::resolve();
    let mut environment = Environment::new();
    // SAFETY: as in `execve`.
    unsafe {
        let given = if given.is_null() { real::environment() } else { given };
        let adapted = environment.adapt(given, path);
        match real::posix_spawn() {
            0 => ENOSYS,
            function => {
                let real: Spawn = core::mem::transmute(function);
                real(pid, path, actions, attributes, arguments, adapted)
            }
        }
    }
}

pub(crate) unsafe extern "C" fn posix_spawnp(
    pid: *mut i32,
    file: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: Strings,
    given: Strings,
) -> i32 {
    real::resolve();
    let mut environment = Environment::new();
    // SAFETY: as in `execve`.
    unsafe {
        let given = if given.is_null() { real::environment() } else { given };
        let adapted = environment.adapt(given, path_of(file));
        match real::posix_spawnp() {
            0 => ENOSYS,
            function => {
                let real: Spawn = core::mem::transmute(function);
                real(pid, file, actions, attributes, arguments, adapted)
            }
        }
    }
}

/// `file` if it names a path, else null.
unsafe fn path_of(file: *const c_char) -> *const c_char {
    // SAFETY: a NUL-terminated string, or null.
    unsafe {
        let mut at = file;
        while !at.is_null() && *at != 0 {
            if *at as u8 == b'/' {
                return file;
            }
            at = at.add(1);
        }
    }
    core::ptr::null()
}

#[cfg(test)]
mod tests;
