//! Everything that depends on the processor: entry shims, thread-local words, system calls, wide atomics.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the tracer has been ported to x86-64 only; add a module beside arch/x86_64");
