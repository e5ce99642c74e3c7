//! The process's place in the arena: found at start, given up at fork, taken anew by the child.
//!
//! Whether this is still the process that the thread-local words belong to is decided by one page that reads as
//! zero in every forked child (`MADV_WIPEONFORK`), however it was forked. Children that share memory (`vfork`,
//! `posix_spawn`) go on as their parent.

use crate::arena::Arena;
use crate::{exec, hooks, modules, real, sample, sys};
use core::ffi::c_char;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
use leakscope_heapfile::attach;
use leakscope_heapfile::layout::{
    self, BUMP_BITS, CHUNK, FLAG_OWN_MALLOC, MAGIC, ORIGIN_ATTACH, ORIGIN_EXEC, ORIGIN_FORK, STATE_LIVE,
    STATE_STOPPED, Shard, Superblock, TICK_MS, UNIT, VERSION, Window,
};

const UNINITIALISED: u32 = 0;
const INITIALISING: u32 = 1;
const ON: u32 = 2;
const OFF: u32 = 3;

static MODE: AtomicU32 = AtomicU32::new(UNINITIALISED);
static ARENA_BASE: AtomicPtr<u8> = AtomicPtr::new(core::ptr::null_mut());
static ARENA_LEN: AtomicU64 = AtomicU64::new(0);
static WINDOW: AtomicU64 = AtomicU64::new(0);
static PID: AtomicU32 = AtomicU32::new(0);
/// Counts processes along the line of forks; each one's thread-local words carry its number.
static GENERATION: AtomicUsize = AtomicUsize::new(1);
static ZERO: AtomicUsize = AtomicUsize::new(0);
static FORK_PAGE: AtomicPtr<AtomicUsize> = AtomicPtr::new((&raw const ZERO).cast_mut());
/// The fork page of a tracing that has ended.
static OLD_FORK_PAGE: AtomicPtr<AtomicUsize> = AtomicPtr::new(core::ptr::null_mut());
/// What was in use at the last fork, noted by the child at once; `u64::MAX` = not noted.
static INHERITED: [AtomicU64; 2] = [const { AtomicU64::new(u64::MAX) }; 2];

/// Windows of the parent, its parent and so on, for frees of inherited blocks; 0 = none.
pub(crate) static ANCESTORS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
/// Tick of the fork that made this process; 0 if none did.
pub(crate) static FORK_TICK: AtomicU32 = AtomicU32::new(0);

/// The number that valid thread-local words carry; 0 while the process has none.
#[inline(always)]
pub(crate) fn epoch() -> usize {
    // SAFETY: points to `ZERO` or to the fork page, both valid for ever.
    unsafe { (*FORK_PAGE.load(Relaxed)).load(Relaxed) }
}

/// The mapping of the arena.
pub(crate) fn arena() -> Arena {
    let base = ARENA_BASE.load(Acquire);
    if base.is_null() {
        return Arena::NONE;
    }
    // SAFETY: stored once after mapping.
    unsafe { Arena::new(base, ARENA_LEN.load(Relaxed)) }
}

/// This process's window.
pub(crate) fn window() -> Option<&'static Window> {
    if MODE.load(Acquire) != ON { None } else { arena().at(WINDOW.load(Acquire)) }
}

/// This process's pid.
pub(crate) fn pid() -> u32 {
    PID.load(Relaxed)
}

/// Whether tracing is off for good.
pub(crate) fn is_off() -> bool {
    MODE.load(Relaxed) == OFF
}

/// Gives up tracing; the file says why.
pub(crate) fn stop(reason: u32) {
    if let Some(window) = window() {
        window.stop_reason.store(reason, Relaxed);
        window.state.store(STATE_STOPPED, Release);
    }
    MODE.store(OFF, Release);
    FORK_PAGE.store((&raw const ZERO).cast_mut(), Release);
}

/// Makes sure that this process has a window: at the first event of a program, and of a forked child.
/// False while that is impossible (too early, another thread is at it) or tracing is off.
pub(crate) fn ensure() -> bool {
    match MODE.load(Acquire) {
        ON => epoch() != 0 || adopt_child(),
        UNINITIALISED => start(),
        _ => false,
    }
}

fn start() -> bool {
    if !real::resolve() {
        return false;
    }
    if MODE.compare_exchange(UNINITIALISED, INITIALISING, AcqRel, Relaxed).is_err() {
        return false;
    }
    match set_up() {
        Some(()) => {
            MODE.store(ON, Release);
            true
        }
        None => {
            MODE.store(OFF, Release);
            false
        }
    }
}

fn set_up() -> Option<()> {
    let path = arena_path()?;
    // SAFETY: the value of an environment variable ends in NUL.
    let file = unsafe { sys::File::open_rw(path)? };
    let mapped = map_arena(&file);
    file.close();
    let arena = mapped?;
    let page = sys::map_fork_page()?.cast::<AtomicUsize>();
    ARENA_LEN.store(arena.len(), Relaxed);
    ARENA_BASE.store(arena.base(), Release);
    sample::start(arena.superblock()?);
    let window = claim(arena, ORIGIN_EXEC)?;
    describe(window);
    if real::malloc_is_overridden(hooks::own_malloc()) {
        window.flags.fetch_or(FLAG_OWN_MALLOC, Relaxed);
    }
    exec::remember();
    publish(arena, window, page);
    Some(())
}

/// Makes the window this process's, and the thread-local words of earlier ones void.
fn publish(arena: Arena, window: &Window, page: *mut AtomicUsize) {
    window.state.store(STATE_LIVE, Release);
    WINDOW.store(arena.offset_of(window), Release);
    // SAFETY: mapped by the caller.
    unsafe { (*page).store(GENERATION.load(Relaxed), Release) };
    FORK_PAGE.store(page, Release);
}

/// Begins tracing in a process that has been running, with the arena that it was given the descriptor of; an error is
/// one of `attach::FAILED_*`. Only while no other thread is inside of the tracer.
pub(crate) fn begin(descriptor: i32) -> Result<(), u64> {
    if matches!(MODE.load(Acquire), ON | INITIALISING) {
        return Err(attach::FAILED_BUSY);
    }
    let arena = map_arena(&sys::File::of(descriptor)).ok_or(attach::FAILED_ARENA)?;
    let Some(page) = sys::map_fork_page() else {
        unmap(arena);
        return Err(attach::FAILED_MEMORY);
    };
    GENERATION.fetch_add(1, Relaxed);
    forget_ancestors();
    ARENA_LEN.store(arena.len(), Relaxed);
    ARENA_BASE.store(arena.base(), Release);
    if let Some(superblock) = arena.superblock() {
        sample::start(superblock);
    }
    let Some(window) = claim(arena, ORIGIN_ATTACH) else {
        release_memory(page);
        return Err(attach::FAILED_WINDOW);
    };
    describe(window);
    publish(arena, window, page.cast());
    MODE.store(ON, Release);
    Ok(())
}

fn forget_ancestors() {
    for ancestor in &ANCESTORS {
        ancestor.store(0, Relaxed);
    }
    for word in &INHERITED {
        word.store(u64::MAX, Relaxed);
    }
    FORK_TICK.store(0, Relaxed);
}

/// Ends tracing; the memory stays mapped.
pub(crate) fn end(reason: u32) {
    let page = FORK_PAGE.load(Acquire);
    stop(reason);
    OLD_FORK_PAGE.store(page, Release);
}

/// Gives back what [`begin`] mapped. Only after [`end`], while no thread is inside of the tracer.
pub(crate) fn release() {
    release_memory(OLD_FORK_PAGE.swap(core::ptr::null_mut(), Relaxed).cast());
}

fn release_memory(page: *mut u8) {
    let arena = arena();
    ARENA_BASE.store(core::ptr::null_mut(), Release);
    unmap(arena);
    if !page.is_null() && page != (&raw const ZERO).cast_mut().cast() {
        // SAFETY: mapped by `begin`, and no longer referred to.
        unsafe { sys::munmap(page, sys::PAGE) };
    }
}

fn unmap(arena: Arena) {
    if arena.len() != 0 {
        // SAFETY: mapped by `begin`; the caller vouches that no thread uses it.
        unsafe { sys::munmap(arena.base(), arena.len() as usize) };
    }
}

fn arena_path() -> Option<*const u8> {
    // SAFETY: NUL-terminated variable strings, ended by a null pointer.
    unsafe { find_variable(real::environment(), b"LEAKSCOPE_ARENA=").map(|value| value.cast()) }
}

/// The value of an environment variable; `prefix` is its name with the equals sign.
///
/// # Safety
/// `environment` must be null or an environment vector.
pub(crate) unsafe fn find_variable(
    environment: *const *const c_char,
    prefix: &[u8],
) -> Option<*const c_char> {
    let mut entry = environment;
    if entry.is_null() {
        return None;
    }
    // SAFETY: the vector ends with null; comparing stops at the first difference, so within the string.
    unsafe {
        while !(*entry).is_null() {
            let text = *entry;
            if prefix.iter().enumerate().all(|(index, &byte)| *text.add(index) as u8 == byte) {
                return Some(text.add(prefix.len()));
            }
            entry = entry.add(1);
        }
    }
    None
}

fn map_arena(file: &sys::File) -> Option<Arena> {
    let mut head = [0u64; 4];
    // SAFETY: any bytes are valid integers.
    let bytes = unsafe { core::slice::from_raw_parts_mut(head.as_mut_ptr().cast::<u8>(), 32) };
    if file.read_at(bytes, 0) != 32 || head[0] != MAGIC || head[1] as u32 != VERSION {
        return None;
    }
    let length = head[2];
    if length < layout::CHUNK || !length.is_multiple_of(layout::CHUNK) {
        return None;
    }
    // Reserving counts against RLIMIT_AS; a process that is short of address space keeps it for itself.
    let length = match sys::address_space_limit() {
        Some(limit) => length.min((limit / 8) & !(layout::CHUNK - 1)),
        None => length,
    };
    if length < 8 * layout::CHUNK {
        return None;
    }
    let base = file.map_shared(usize::try_from(length).ok()?)?;
    // SAFETY: just mapped.
    unsafe {
        // A core dump of the target should hold the target.
        sys::madvise(base, length as usize, sys::MADV_DONTDUMP);
        Some(Arena::new(base, length))
    }
}

/// Takes a chunk, makes a window of it and lists it in the superblock.
pub(crate) fn claim(arena: Arena, origin: u32) -> Option<&'static Window> {
    let superblock = arena.superblock()?;
    let claimed = claim_in(arena, superblock, origin);
    if claimed.is_none() {
        superblock.windows_refused.fetch_add(1, Relaxed);
    }
    claimed
}

fn claim_in(arena: Arena, superblock: &Superblock, origin: u32) -> Option<&'static Window> {
    let offset = arena.take_chunks(1, 0)?;
    let window: &'static Window = arena.at(offset)?;
    let pid = sys::getpid();
    PID.store(pid, Relaxed);
    window.chunk.owner.store(offset, Relaxed);
    window.chunks.store(1, Relaxed);
    let used = (size_of::<Window>() as u64).div_ceil(UNIT);
    window.bump.store((offset / UNIT + used) << BUMP_BITS | (CHUNK / UNIT - used), Relaxed);
    window.pid.store(pid, Relaxed);
    window.ppid.store(sys::getppid(), Relaxed);
    window.origin.store(origin, Relaxed);
    window.serial.store(superblock.windows_made.fetch_add(1, Relaxed) + 1, Relaxed);
    window.started.store(now(superblock), Relaxed);
    window.nodes.store(1, Relaxed);
    window.stacks.store(1, Relaxed);
    window.start_ticks.store(start_ticks(), Relaxed);
    let slots = &superblock.windows;
    let begin = pid as usize % slots.len();
    let (left, right) = slots.split_at(begin);
    for slot in right.iter().chain(left) {
        if slot.load(Relaxed) == 0 && slot.compare_exchange(0, offset, AcqRel, Relaxed).is_ok() {
            return Some(window);
        }
    }
    None
}

/// The present tick. The holder keeps it; should the holder be gone, a thread notices (see `thread`).
#[inline(always)]
pub(crate) fn now(superblock: &Superblock) -> u32 {
    superblock.tick.load(Relaxed)
}

/// The present tick by the clock.
pub(crate) fn clock_tick(superblock: &Superblock) -> u32 {
    (sys::monotonic_ns().saturating_sub(superblock.monotonic_ns) / (TICK_MS * 1_000_000)) as u32
}

fn start_ticks() -> u64 {
    let mut text = [0u8; 1024];
    // SAFETY: a literal with NUL.
    let Some(file) = (unsafe { sys::File::open_read(c"/proc/self/stat".as_ptr().cast()) }) else {
        return 0;
    };
    let length = file.read(&mut text);
    file.close();
    parse_start_ticks(text.get(..length).unwrap_or(&[])).unwrap_or(0)
}

/// Field 22 of `/proc/PID/stat`; the command in field 2 may contain spaces and parentheses.
fn parse_start_ticks(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|&byte| byte == b')')?;
    let field = stat.get(after + 1..)?.split(|&byte| byte == b' ').filter(|f| !f.is_empty()).nth(19)?;
    field.iter().try_fold(0u64, |number, &digit| {
        let digit = digit.checked_sub(b'0').filter(|&digit| digit < 10)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Writes the executable and the command line into the window.
fn describe(window: &Window) {
    let mut buffer = [0u8; layout::EXE_MAX];
    // SAFETY: a literal with NUL.
    let length = unsafe { sys::readlink(c"/proc/self/exe".as_ptr().cast(), &mut buffer) };
    for (place, &byte) in window.exe.iter().zip(buffer.iter().take(length)) {
        place.store(byte, Relaxed);
    }
    window.exe_len.store(length as u32, Relaxed);
    // SAFETY: a literal with NUL.
    if let Some(file) = unsafe { sys::File::open_read(c"/proc/self/cmdline".as_ptr().cast()) } {
        let mut total = 0;
        loop {
            let length = file.read(&mut buffer);
            let room = window.command.get(total..).unwrap_or(&[]);
            if length == 0 || room.is_empty() {
                break;
            }
            for (place, &byte) in room.iter().zip(buffer.iter().take(length)) {
                place.store(byte, Relaxed);
            }
            total += length.min(room.len());
        }
        file.close();
        window.command_len.store(total as u32, Relaxed);
    }
}

/// The first event in a forked child: leaves the parent's window alone and takes one of its own. No file is
/// opened for that, and nothing is mapped.
fn adopt_child() -> bool {
    // SAFETY: `ON` implies that the fork page is mapped.
    let page = unsafe { &*FORK_PAGE.load(Acquire) };
    // The page doubles as the lock among the child's first threads: whoever comes second goes untraced.
    if page.compare_exchange(0, usize::MAX, AcqRel, Relaxed).is_err() {
        return page.load(Relaxed) != usize::MAX && epoch() != 0;
    }
    let arena = arena();
    let parent_offset = WINDOW.load(Relaxed);
    let adopted = (|| {
        let parent: &Window = arena.at(parent_offset)?;
        let (blocks, bytes) = match INHERITED.each_ref().map(|word| word.swap(u64::MAX, Relaxed)) {
            [u64::MAX, _] | [_, u64::MAX] => in_use(arena, parent),
            [blocks, bytes] => (blocks, bytes),
        };
        let window = claim(arena, ORIGIN_FORK)?;
        window.parent.store(parent_offset, Relaxed);
        window.inherited_blocks.store(blocks, Relaxed);
        window.inherited_bytes.store(bytes, Relaxed);
        copy_bytes(&parent.exe, &parent.exe_len, &window.exe, &window.exe_len);
        copy_bytes(&parent.command, &parent.command_len, &window.command, &window.command_len);
        window.flags.store(parent.flags.load(Relaxed), Relaxed);
        modules::write_all(arena, window);
        for index in (1..ANCESTORS.len()).rev() {
            if let (Some(to), Some(from)) = (ANCESTORS.get(index), ANCESTORS.get(index - 1)) {
                to.store(from.load(Relaxed), Relaxed);
            }
        }
        ANCESTORS[0].store(parent_offset, Relaxed);
        FORK_TICK.store(window.started.load(Relaxed), Relaxed);
        window.state.store(STATE_LIVE, Release);
        WINDOW.store(arena.offset_of(window), Release);
        Some(())
    })();
    if adopted.is_none() {
        MODE.store(OFF, Release);
        FORK_PAGE.store((&raw const ZERO).cast_mut(), Release);
        return false;
    }
    let generation = GENERATION.fetch_add(1, Relaxed) + 1;
    page.store(generation, Release);
    true
}

fn copy_bytes(
    from: &[core::sync::atomic::AtomicU8],
    from_len: &AtomicU32,
    to: &[core::sync::atomic::AtomicU8],
    to_len: &AtomicU32,
) {
    let length = from_len.load(Relaxed);
    for (place, byte) in to.iter().zip(from).take(length as usize) {
        place.store(byte.load(Relaxed), Relaxed);
    }
    to_len.store(length.min(to.len() as u32), Relaxed);
}

/// Blocks and bytes in use by the sums over all shards.
fn in_use(arena: Arena, window: &Window) -> (u64, u64) {
    let count = (window.shard_count.load(Acquire) as usize).min(window.shards.len());
    let mut sums = (0u64, 0u64);
    for units in window.shards.iter().take(count) {
        if let Some(shard) = arena.unit::<Shard>(units.load(Acquire)) {
            let blocks = shard.allocated_blocks.load(Relaxed).wrapping_sub(shard.freed_blocks.load(Relaxed));
            let bytes = shard.allocated_bytes.load(Relaxed).wrapping_sub(shard.freed_bytes.load(Relaxed));
            sums = (sums.0.wrapping_add(blocks), sums.1.wrapping_add(bytes));
        }
    }
    sums
}

/// Called in the child right after `fork`: notes what it inherited, while that is still the parent's state.
pub(crate) fn note_fork() {
    if MODE.load(Relaxed) == ON && epoch() == 0 {
        let arena = arena();
        if let Some(parent) = arena.at::<Window>(WINDOW.load(Relaxed)) {
            let (blocks, bytes) = in_use(arena, parent);
            INHERITED[0].store(blocks, Relaxed);
            INHERITED[1].store(bytes, Relaxed);
        }
    }
}

/// Runs when the loader initialises the object.
#[allow(dead_code)]
extern "C" fn initialise() {
    ensure();
}

#[cfg(feature = "shared-object")]
#[used]
#[unsafe(link_section = ".init_array")]
static INITIALISE: extern "C" fn() = initialise;

#[cfg(test)]
mod tests {
    use super::parse_start_ticks;

    #[test]
    fn the_start_time_is_found_behind_a_hostile_command_name() {
        let stat = b"42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20 21";
        assert_eq!(parse_start_ticks(stat), Some(987_654));
        assert_eq!(parse_start_ticks(b"42 (x"), None);
    }
}

#[cfg(test)]
mod fork_tests;
