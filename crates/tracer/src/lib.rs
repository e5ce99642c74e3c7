//! The tracer: a shared object that lives inside somebody else's process and records every allocation in the
//! heap file. In order of importance: never harm that process, never lie, cost little.
//!
//! How a call goes: an exported symbol (`malloc`, ...) is a two-instruction shim that adds the caller's stack
//! and frame pointer to the arguments and jumps to its hook. The hook finds the thread's state (initial-exec
//! TLS), calls the real function, identifies the stack, counts, and publishes the block.
//!
//! Rules that every line here obeys:
//!
//! * No allocation, no lock, no waiting, no loader call in a hook. The only system calls on a hook's path are
//!   for a thread's or process's first event and for growth beyond what the holder prepared.
//! * The only undefined symbols are a few of libc's, weak where some libc lacks them.
//! * All shared memory is reached through [`arena::Arena`], which checks every offset.
//! * `errno` is never touched: system calls are made directly.
//! * When in doubt, forward the call and count what was missed.

#![no_std]
// Without the exported symbols nothing calls the hooks.
#![cfg_attr(not(feature = "shared-object"), allow(dead_code))]
// The tracer is unsafe to the core: each block says what it relies on; functions state their own contract.
#![allow(clippy::missing_safety_doc)]

#[cfg(test)]
extern crate std;

mod arch;
mod arena;
mod attach;
mod blocks;
mod exec;
mod exit;
mod filter;
mod hooks;
mod limits;
mod mappings;
mod modules;
mod process;
mod real;
mod sample;
mod serve;
mod stacks;
mod sys;
#[cfg(test)]
mod testing;
mod thread;
mod unwind;

#[cfg(feature = "shared-object")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here panics; if it ever did, returning control to the target would be worse than stopping it.
    sys::abort()
}
