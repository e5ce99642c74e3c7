//! x86-64.

mod frame;
mod gadgets;
mod registers;
mod syscalls;

pub use frame::{FRAME_BYTES, RED_ZONE, extended_state, signal_frame};
pub use gadgets::{Gadgets, Scanner};
pub use registers::{UserRegisters, Xsave, from_core, from_user};
pub use syscalls::*;

/// The register set of the extended (vector) state, `NT_X86_XSTATE` of elf.h.
pub const EXTENDED_STATE: usize = 0x202;
/// The architecture as seccomp filters see it, `AUDIT_ARCH_X86_64`.
pub const AUDIT: u32 = 0xc000_003e;
/// More than any processor's extended state, AMX tiles included.
pub const EXTENDED_STATE_LIMIT: usize = 16 << 10;
