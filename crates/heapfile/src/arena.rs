//! The live form as a file: made by the holder, opened by readers.

use crate::layout::{CHUNK, ChunkHeader, MAGIC, Shard, Superblock, TICK_MS, UNIT, VERSION, Window};
use crate::sampling::Sampling;
use crate::{Error, Snapshot, extract};
use std::fs::{File, OpenOptions};
use std::mem::{align_of, size_of};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

/// A mapped arena.
#[derive(Debug)]
pub struct Arena {
    path: PathBuf,
    file: File,
    base: *mut u8,
    len: u64,
}

// SAFETY: the mapping belongs to the value and is accessed through atomics and checked copies only.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by this value and all references into it borrow the value.
        unsafe { libc::munmap(self.base.cast(), self.len as usize) };
    }
}

impl Arena {
    /// Makes a new arena of `len` bytes (rounded down to chunks), accessible to its owner only. It takes memory
    /// only as it is populated. What is traced into it is sampled as `sampling` says.
    ///
    /// # Errors
    /// If the file exists or cannot be made, sized or mapped.
    pub fn create(path: &Path, len: u64, sampling: Sampling) -> Result<Arena, Error> {
        let len = len / CHUNK * CHUNK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
            .open(path)
            .map_err(Error::io("create", path))?;
        file.set_len(len).map_err(Error::io("size", path))?;
        let arena = Arena::map(path, file, len, true)?;
        // Of chunk 0 only the superblock is ever used.
        arena.populate(0, size_of::<Superblock>() as u64)?;
        let superblock = arena.superblock_mut();
        let realtime = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |duration| duration.as_nanos() as u64);
        // SAFETY: nobody else has the file open yet, and the superblock lies inside the mapping.
        unsafe {
            (*superblock).version = VERSION;
            (*superblock).holder_pid = std::process::id();
            (*superblock).arena_len = len;
            (*superblock).realtime_ns = realtime;
            (*superblock).monotonic_ns = monotonic_ns();
            (*superblock).sampling_interval = sampling.interval;
            (*superblock).seed = sampling.seed;
        }
        arena.superblock().next.store(CHUNK, Relaxed);
        arena.superblock().ready.store(CHUNK, Relaxed);
        arena.superblock().magic.store(MAGIC, Release);
        Ok(arena)
    }

    /// Opens an arena to go on holding it.
    ///
    /// # Errors
    /// If it cannot be opened or is not an arena of this version.
    pub fn open_to_hold(path: &Path) -> Result<Arena, Error> {
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(Error::io("open", path))?;
        Arena::open_file(path, file, true)
    }

    /// Opens an arena for reading.
    ///
    /// # Errors
    /// If it cannot be opened or is not an arena of this version.
    pub fn open(path: &Path) -> Result<Arena, Error> {
        Arena::open_file(path, File::open(path).map_err(Error::io("open", path))?, false)
    }

    fn open_file(path: &Path, file: File, writable: bool) -> Result<Arena, Error> {
        let real_len = file.metadata().map_err(Error::io("examine", path))?.len();
        let mut head = [0u8; 24];
        file.read_exact_at(&mut head, 0).map_err(Error::io("read", path))?;
        let word = |at: usize| {
            head.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        if word(0) != MAGIC {
            return Err(Error::NotAHeapFile { path: path.into(), found: "no arena begins there".into() });
        }
        let version = word(8) as u32;
        if version != VERSION {
            return Err(Error::Version { path: path.into(), found: version, expected: VERSION });
        }
        let len = word(16);
        if len < CHUNK || len % CHUNK != 0 || len > real_len {
            let what = format!("it says that it is {len} bytes long, but the file has {real_len}");
            return Err(Error::Damaged { path: path.into(), what });
        }
        Arena::map(path, file, len, writable)
    }

    fn map(path: &Path, file: File, len: u64, writable: bool) -> Result<Arena, Error> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len as usize,
                protection,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(Error::io("map", path)(std::io::Error::last_os_error()));
        }
        // SAFETY: advice on the mapping just made: holders and readers dump their own memory only.
        unsafe { libc::madvise(base, len as usize, libc::MADV_DONTDUMP) };
        Ok(Arena { path: path.into(), file, base: base.cast(), len })
    }

    /// Backs `start..start + bytes` with memory, charged to the calling process.
    ///
    /// # Errors
    /// If there is no memory or no room in the file system.
    pub fn populate(&self, start: u64, bytes: u64) -> Result<(), Error> {
        // SAFETY: no memory is passed.
        let status =
            unsafe { libc::fallocate(self.file.as_raw_fd(), 0, start as libc::off_t, bytes as libc::off_t) };
        if status != 0 {
            return Err(Error::io("reserve memory in", &self.path)(std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Gives the memory of `start..start + bytes` back; it reads as zero afterwards.
    ///
    /// # Errors
    /// If the file system cannot do that.
    pub fn punch(&self, start: u64, bytes: u64) -> Result<(), Error> {
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed.
        let status = unsafe {
            libc::fallocate(self.file.as_raw_fd(), mode, start as libc::off_t, bytes as libc::off_t)
        };
        if status != 0 {
            return Err(Error::io("release memory in", &self.path)(std::io::Error::last_os_error()));
        }
        Ok(())
    }

    /// Where the arena is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of the arena.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: an arena has at least its superblock.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn superblock_mut(&self) -> *mut Superblock {
        self.base.cast()
    }

    /// The superblock.
    pub fn superblock(&self) -> &Superblock {
        // SAFETY: an arena is at least one chunk long, and the superblock fits a chunk.
        unsafe { &*self.superblock_mut() }
    }

    /// The record at `offset`, if it lies inside what has been handed out.
    pub fn at<T>(&self, offset: u64) -> Option<&T> {
        let size = size_of::<T>() as u64;
        let end = self.end();
        if offset > end || end - offset < size || !offset.is_multiple_of(align_of::<T>() as u64) {
            return None;
        }
        // SAFETY: inside the mapping; records are valid for any bit pattern, and what changes is atomic.
        Some(unsafe { &*self.base.add(offset as usize).cast::<T>() })
    }

    /// End of what has been handed out, within the arena.
    fn end(&self) -> u64 {
        self.superblock().next.load(Acquire).clamp(CHUNK, self.len) / CHUNK * CHUNK
    }

    /// The window at `offset`, if there is one.
    pub fn window(&self, offset: u64) -> Option<&Window> {
        if offset == 0 || !offset.is_multiple_of(CHUNK) {
            return None;
        }
        self.at::<Window>(offset).filter(|window| window.chunk.owner.load(Acquire) == offset)
    }

    /// Where the process of a window keeps its threads' private states, in its own address space.
    pub fn private_states(&self, window: u64) -> Vec<Range<u64>> {
        let Some(window) = self.window(window) else { return Vec::new() };
        let shards = window.shards.iter().take(window.shard_count.load(Acquire) as usize);
        let states = shards.filter_map(|units| {
            let shard: &Shard = self.at(u64::from(units.load(Acquire)) * UNIT)?;
            let (start, len) = (shard.private.load(Relaxed), shard.private_len.load(Relaxed));
            (start != 0).then(|| start..start.saturating_add(len))
        });
        states.collect()
    }

    /// Offsets of all windows in use.
    pub fn windows(&self) -> Vec<u64> {
        let slots = self.superblock().windows.iter().map(|slot| slot.load(Acquire));
        slots.filter(|&offset| self.window(offset).is_some()).collect()
    }

    /// The present tick, as far as the holder has counted.
    pub fn tick(&self) -> u32 {
        self.superblock().tick.load(Relaxed)
    }

    /// The present tick by the clock.
    pub fn clock_tick(&self) -> u32 {
        let elapsed = monotonic_ns().saturating_sub(self.superblock().monotonic_ns);
        (elapsed / (TICK_MS * 1_000_000)) as u32
    }

    /// Chunks that belong to the window at `offset`: (start, chunks).
    pub fn chunks_of(&self, offset: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut at = CHUNK;
        let end = self.end();
        while at < end {
            let mut header = [0u8; 12];
            if self.file.read_exact_at(&mut header, at).is_err() {
                break;
            }
            let [a, b, c, d, e, f, g, h, i, j, k, l] = header;
            let owner = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let chunks = u64::from(u32::from_le_bytes([i, j, k, l])).max(1);
            if owner == offset {
                found.push((at, chunks));
            }
            at = at.saturating_add(chunks.saturating_mul(CHUNK));
        }
        found
    }

    /// Copies bytes from `offset` on, without any consistency among them. Whether all of them are there.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> bool {
        self.file.read_exact_at(buffer, offset).is_ok()
    }

    /// Copies a chunk out, sixteen bytes at a time, so that no slot is torn.
    pub(crate) fn copy_chunk(&self, start: u64) -> Option<Box<[u64]>> {
        if !start.is_multiple_of(CHUNK) || start >= self.end() {
            return None;
        }
        let mut copy = vec![0u64; (CHUNK / 8) as usize].into_boxed_slice();
        // SAFETY: a whole chunk lies inside the mapping, aligned to 16; the copy has the same length.
        unsafe { copy_by_16(self.base.add(start as usize).cast(), copy.as_mut_ptr(), copy.len() / 2) };
        Some(copy)
    }

    /// Returns a window's chunks to the pool, zeroed, and its slot. Only for processes that are gone.
    pub fn release(&self, offset: u64) -> Result<(), Error> {
        let superblock = self.superblock();
        for slot in &superblock.windows {
            if slot.load(Relaxed) == offset {
                slot.store(0, Release);
            }
        }
        let mut chunks = self.chunks_of(offset);
        // The window's own chunk last: an interrupted release leaves a window without tables, not the reverse.
        chunks.sort_by_key(|&(start, _)| start == offset);
        for (start, count) in chunks {
            self.punch(start, count * CHUNK)?;
            self.populate(start, count * CHUNK)?;
            for number in 0..count {
                self.push_free(start + number * CHUNK);
            }
        }
        Ok(())
    }

    fn push_free(&self, chunk: u64) {
        let Some(header) = self.at::<ChunkHeader>(chunk) else { return };
        let free = &self.superblock().free_chunks;
        let _ = free.fetch_update(Release, Acquire, |head| {
            header.next_free.store(head as u32, Relaxed);
            Some(((head >> 32).wrapping_add(1) << 32) | (chunk / CHUNK))
        });
    }

    /// Reads everything about the process of the window at `offset`.
    ///
    /// # Errors
    /// If there is no window there.
    pub fn snapshot(&self, offset: u64) -> Result<Snapshot, Error> {
        extract::snapshot(self, offset).ok_or_else(|| Error::Damaged {
            path: self.path.clone(),
            what: format!("no process's tables are at offset {offset:#x}"),
        })
    }
}

fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Copies `count` pairs of words; each pair is read in one step (an aligned 16-byte load, which is atomic on
/// every x86-64 processor with AVX; elsewhere readers tell a torn slot by its address and size).
unsafe fn copy_by_16(from: *const u64, to: *mut u64, count: usize) {
    #[cfg(target_arch = "x86_64")]
    for index in 0..count {
        // SAFETY: the caller vouches for both ranges; `from` is aligned to 16.
        unsafe {
            std::arch::asm!(
                "movdqa {value}, xmmword ptr [{from}]",
                "movdqu xmmword ptr [{to}], {value}",
                value = out(xmm_reg) _,
                from = in(reg) from.add(index * 2),
                to = in(reg) to.add(index * 2),
                options(nostack, preserves_flags)
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    for index in 0..count * 2 {
        // SAFETY: the caller vouches for both ranges.
        unsafe { *to.add(index) = std::ptr::read_volatile(from.add(index)) };
    }
}
