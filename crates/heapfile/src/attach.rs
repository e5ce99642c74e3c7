//! What leakscope and a tracer that it puts into a running process tell each other.
//!
//! The object is not loaded by the process's loader: leakscope maps it, relocates it and calls these functions of it in
//! a thread that it makes for that purpose:
//!
//! | function | argument | result |
//! |---|---|---|
//! | `leakscope_begin` | address of a [`Request`] | 0, or one of the `FAILED_*` |
//! | `leakscope_end` | a `STOP_*` | 0: from now on the hooks forward only |
//! | `leakscope_release` | 0 | 0: gives all memory back but the object's own |
//!
//! `leakscope_begin` finds the object as it was mapped first, or as `leakscope_end` and `leakscope_release` have left
//! it. `leakscope_release` may be called only while no thread is inside of the object.
//!
//! Two offsets from the thread pointer are resolved by leakscope, too (`R_X86_64_TPOFF64`, told apart by their place in
//! the object's TLS segment): 24 bytes ([`TLS_BYTES`]) that belong to the tracer, and the four bytes of the C library's note of the
//! thread's id.

/// Place of the tracer's words in its TLS segment.
pub const TLS_WORDS: u64 = 0;
/// How many bytes they are.
pub const TLS_BYTES: u64 = 24;
/// Place of the thread's id in it.
pub const TLS_TID: u64 = 32;

/// The request is of another version.
pub const FAILED_VERSION: u64 = 1;
/// The process is traced already.
pub const FAILED_BUSY: u64 = 2;
/// The descriptor is no arena, or it cannot be mapped.
pub const FAILED_ARENA: u64 = 3;
/// A page of memory cannot be had.
pub const FAILED_MEMORY: u64 = 4;
/// The arena has no room for another process.
pub const FAILED_WINDOW: u64 = 5;
/// One of the functions that the hooks cannot do without is missing.
pub const FAILED_FUNCTIONS: u64 = 6;

/// What the tracer is told at its start.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// [`crate::layout::VERSION`].
    pub version: u32,
    /// The arena's descriptor in the calling thread's table.
    pub descriptor: i32,
    /// The object's own memory.
    pub object: [u64; 2],
    /// Memory of the module that holds the real `malloc`.
    pub allocator: [u64; 2],
    /// 1 if system calls of the process are under rules of its own making.
    pub filtered: u64,
    /// Address of the functions behind the hooks.
    pub functions: u64,
    /// How many there are.
    pub count: u64,
}

/// Longest name of a function, with its end.
pub const NAME_MAX: usize = 56;

/// A function behind a hook.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Its address.
    pub address: u64,
    /// Its name, filled up with zeros.
    pub name: [u8; NAME_MAX],
}
