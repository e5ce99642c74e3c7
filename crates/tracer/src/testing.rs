//! What tests of several modules need: a heap file of their own, and a source of repeatable chance.

use crate::arena::Arena;
use crate::{process, stacks};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use leakscope_heapfile::layout::{CHUNK, ORIGIN_EXEC, STACK_BLOCK, STATE_LIVE, Superblock, UNIT, Window};
use leakscope_heapfile::sampling::Sampling;
use std::path::Path;
use std::vec::Vec;

/// A heap file made as the holder makes one, mapped as the tracer maps it, with a window.
pub(crate) struct TestHeap {
    /// The holder's and reader's side.
    pub(crate) file: leakscope_heapfile::Arena,
    pub(crate) arena: Arena,
    pub(crate) window: &'static Window,
    _directory: tempfile::TempDir,
}

// SAFETY: all access to the mapping is by atomics, as in the traced process.
unsafe impl Send for TestHeap {}
// SAFETY: as above.
unsafe impl Sync for TestHeap {}

impl TestHeap {
    /// A heap file that takes memory as it is touched. It stays mapped for as long as the value lives, so that
    /// references must not be kept longer.
    pub(crate) fn new(len: u64) -> TestHeap {
        TestHeap::sampled(len, Sampling::default())
    }

    /// The same for processes whose allocations are sampled.
    pub(crate) fn sampled(len: u64, sampling: Sampling) -> TestHeap {
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let directory = directory.expect("a temporary directory");
        let path = directory.path().join("arena");
        let file = leakscope_heapfile::Arena::create(&path, len, sampling).expect("a new arena");
        file.superblock().ready.store(len, Release);
        let arena = map(&path, len);
        let window = process::claim(arena, ORIGIN_EXEC).expect("a window");
        window.state.store(STATE_LIVE, Release);
        TestHeap { file, arena, window, _directory: directory }
    }

    /// Bytes of the file that have been handed out; of chunk 0 only the superblock is ever backed by memory.
    pub(crate) fn taken(&self) -> u64 {
        let next = self.file.superblock().next.load(Relaxed);
        next - CHUNK + size_of::<Superblock>() as u64
    }

    /// What a reader sees of the window.
    pub(crate) fn snapshot(&self) -> leakscope_heapfile::Snapshot {
        self.file.snapshot(self.arena.offset_of(self.window)).expect("a readable window")
    }

    /// Node keys of a stack, innermost first.
    pub(crate) fn keys_of(&self, stack: u32) -> Vec<u64> {
        let block = self.window.stack_blocks[stack as usize / STACK_BLOCK].load(Acquire);
        let place = u64::from(block) * UNIT + u64::from(stack) % STACK_BLOCK as u64 * 4;
        let mut number = self.arena.at::<AtomicU32>(place).expect("a place for the stack").load(Acquire);
        let mut keys = Vec::new();
        while number != stacks::ROOT {
            let node = stacks::node(self.arena, self.window, number).expect("a node");
            keys.push(node.key.load(Relaxed));
            number = node.parent.load(Relaxed);
        }
        keys
    }
}

impl Drop for TestHeap {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; tests keep no reference into it.
        unsafe { libc::munmap(self.arena.base().cast(), self.arena.len() as usize) };
    }
}

/// Maps an arena's file once more, as another process of the run would.
pub(crate) fn map(path: &Path, len: u64) -> Arena {
    let path = std::ffi::CString::new(path.to_str().expect("a plain path")).expect("no NUL");
    // SAFETY: a NUL-terminated path; a new mapping of the whole file.
    unsafe {
        let file = crate::sys::File::open_rw(path.as_ptr().cast()).expect("the arena opens");
        let base = file.map_shared(len as usize).expect("the arena can be mapped");
        file.close();
        Arena::new(base, len)
    }
}

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Runs `body` in a forked child and returns its wait status. The child must not allocate; whatever `body`
/// returns is its exit status.
pub(crate) fn in_child(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child only runs `body`, then ends without any handler.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            let status = body();
            libc::_exit(status);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        status
    }
}

unsafe extern "C" {
    static mut environ: *const *const core::ffi::c_char;
}

/// Path of the object in the environment of traced children.
pub(crate) const OBJECT: &str = "/opt/tracer/leakscope.so";

/// Runs `body` in a forked child (see [`in_child`]) that has been told of `heap` as `leakscope run` tells a
/// program, and has a window of its own there. What `body` writes to the descriptor that it is handed is returned
/// beside the wait status.
pub(crate) fn traced_child(heap: &TestHeap, body: impl FnOnce(i32) -> i32) -> (i32, Vec<u8>) {
    let path = heap.file.path().to_str().expect("a plain path");
    let arena = std::ffi::CString::new(std::format!("LEAKSCOPE_ARENA={path}")).expect("no NUL");
    let preload = std::ffi::CString::new(std::format!("LD_PRELOAD={OBJECT}:/opt/own.so")).expect("no NUL");
    let environment = [arena.as_ptr(), preload.as_ptr(), core::ptr::null()];
    let mut pipe = [0; 2];
    // SAFETY: two descriptors are written.
    assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
    let status = in_child(|| {
        // SAFETY: the child has one thread, and the vector outlives it.
        unsafe { environ = environment.as_ptr() };
        if process::ensure() { body(pipe[1]) } else { 125 }
    });
    let mut output = Vec::new();
    // SAFETY: the descriptors are this function's own; the reader takes the one that stays.
    unsafe {
        use std::io::Read;
        use std::os::fd::FromRawFd;
        libc::close(pipe[1]);
        std::fs::File::from_raw_fd(pipe[0]).read_to_end(&mut output).expect("the pipe can be read");
    }
    (status, output)
}
