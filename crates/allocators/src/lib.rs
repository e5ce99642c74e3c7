//! The live blocks of a process, from its allocator's own structures.
//!
//! [`recognise`] says which allocators and runtimes are in a process; [`glibc::walk`] lists every block of glibc's malloc
//! from outside, without a symbol and without the process's help. What it reads is another process's memory: every
//! pointer, size and count in it is checked, every loop bounded, and what does not fit is reported, not guessed.

mod code;
mod elf;
mod error;
pub mod glibc;
mod modules;
mod read;
mod recognise;

pub use code::{AllocatorCode, in_allocator};
pub use error::Error;
pub use recognise::{Allocator, Recognised, check, recognise, walk};
