//! What differs between processors: registers, signal frames, and the pieces of code that a remote call is made of.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("leakscope-target knows x86-64 only so far: add a module beside arch/x86_64");
