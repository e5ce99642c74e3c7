//! A frozen copy of a process at one instant.

use crate::Memory;
use leakscope_proc::Mapping;
use std::path::PathBuf;
use std::time::Duration;

/// Registers of a stopped thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Registers {
    /// Program counter.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub bp: u64,
    /// Thread pointer (x86-64: `fs_base`); leads to the thread's control block and its TLS.
    pub thread_pointer: u64,
    /// All general-purpose registers, `sp` and `bp` among them, in no particular order.
    pub general: Vec<u64>,
    /// The vector registers as 64-bit words (x86-64: XMM/YMM/ZMM from the extended state), which can hold pointers.
    pub vector: Vec<u64>,
}

/// A thread of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thread {
    /// Its tid in leakscope's pid namespace; 0 if unknown.
    pub tid: u32,
    /// Its name; empty if unknown.
    pub name: Vec<u8>,
    /// Its registers.
    pub registers: Registers,
}

/// How the memory was frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// By a remote fork: the process runs on.
    Fork,
    /// The process is stopped as long as the snapshot lives.
    Stopped,
    /// A core file.
    Core,
}

/// A process at one instant. Dropping it lets the process go on, if it was stopped, and gives the copy up.
pub struct Snapshot {
    /// Its pid in leakscope's pid namespace; 0 if unknown.
    pub pid: u32,
    /// Start time in clock ticks since boot; 0 if unknown.
    pub start_ticks: u64,
    /// Argument vector.
    pub command: Vec<Vec<u8>>,
    /// Path of the executable as the process sees it.
    pub executable: Vec<u8>,
    /// Its mappings, by address.
    pub mappings: Vec<Mapping>,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// The auxiliary vector, `(type, value)`; empty if unknown.
    pub auxv: Vec<(u64, u64)>,
    /// Its memory at that instant.
    pub memory: Box<dyn Memory + Send>,
    /// How it was frozen.
    pub source: Source,
    /// How long the process stood still for it, from the first thread's stop to the last one's release; for
    /// [`Source::Stopped`] so far unknown, and for a core file none.
    pub pause: Option<Duration>,
    /// Where the process's paths are to be opened: `/proc/PID/root`, or `/`.
    pub root: PathBuf,
    /// What a reader must know to judge the result.
    pub notes: Vec<String>,
}
