//! The heap file: what the tracer writes and everyone else reads.
//!
//! It has two forms with the same content:
//!
//! * **live** ([`layout`]): one *arena* in shared memory for a whole run, into which the tracers of all its
//!   processes write and which the holder keeps populated. One arena, not one file per process, because a
//!   forked child must be able to start writing without opening, creating or mapping anything: by then it may
//!   have closed its descriptors, changed its root, dropped its user or forbidden itself system calls. All it
//!   does is claim chunks by an atomic operation.
//! * **sealed** (`sealed`): one compact, checksummed file per process, written by the holder when the process
//!   has ended, or by a reader on request.
//!
//! Both are read into a `Snapshot`: plain vectors, every offset and count checked on the way.
//!
//! Invariants of the live form:
//!
//! 1. Nothing in it is a pointer; offsets count from the start of the arena and are checked against its length
//!    by the readers *and* by the tracer (another process of the run could have overwritten them).
//! 2. A block becomes visible, and vanishes, in one atomic step on its 16-byte slot. Slots never move.
//! 3. Nobody waits: every table is either insert-only or has slots owned by whoever may remove them.
//! 4. Counters are per thread and only grow; sums over threads are right to within one operation in flight
//!    per thread.

#![cfg_attr(not(feature = "std"), no_std)]

pub mod attach;
pub mod layout;
pub mod sampling;

#[cfg(feature = "std")]
mod arena;
#[cfg(feature = "std")]
mod error;
#[cfg(feature = "std")]
mod extract;
#[cfg(feature = "std")]
pub mod sealed;
#[cfg(feature = "std")]
mod snapshot;

#[cfg(feature = "std")]
pub use arena::Arena;
#[cfg(feature = "std")]
pub use error::Error;
#[cfg(feature = "std")]
pub use snapshot::{Block, BlockKind, End, Module, Node, Process, Snapshot, Stack, Thread, TimelinePoint};
