//! General and vector registers.

use crate::Registers;
use std::arch::x86_64::__cpuid_count;

/// The general registers as ptrace and core files have them (sys/user.h).
pub use libc::user_regs_struct as UserRegisters;

/// Where the parts of the extended state lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Xsave {
    /// As this processor says (CPUID leaf 13).
    Here,
    /// It comes from another machine: everything behind the header may hold vector registers.
    Elsewhere,
}

/// The registers of a thread.
pub fn from_user(user: &UserRegisters, extended: &[u8], layout: Xsave) -> Registers {
    Registers {
        pc: user.rip,
        sp: user.rsp,
        bp: user.rbp,
        thread_pointer: user.fs_base,
        general: vec![
            user.rax, user.rbx, user.rcx, user.rdx, user.rsi, user.rdi, user.rbp, user.rsp, user.r8, user.r9,
            user.r10, user.r11, user.r12, user.r13, user.r14, user.r15,
        ],
        vector: vector_words(extended, layout),
    }
}

/// The general registers of a core file's `NT_PRSTATUS`, in the order of `user_regs_struct`.
pub fn from_core(words: &[u64; 27]) -> UserRegisters {
    let &[
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    ] = words;
    UserRegisters {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        orig_rax,
        rip,
        cs,
        eflags,
        rsp,
        ss,
        fs_base,
        gs_base,
        ds,
        es,
        fs,
        gs,
    }
}

/// The XMM, YMM and ZMM registers as 64-bit words. `extended` is an XSAVE area in the standard format, or the
/// 512 bytes of FXSAVE.
pub fn vector_words(extended: &[u8], layout: Xsave) -> Vec<u64> {
    // XMM0 to XMM15 in the legacy area (Intel SDM volume 1, 13.4.1), which is 512 bytes long; then 64 of header.
    let legacy = std::iter::once(160..416);
    let parts: Vec<_> = match layout {
        // The upper halves of YMM0-15, of ZMM0-15, and all of ZMM16-31.
        Xsave::Here => legacy.chain([2, 6, 7].iter().filter_map(|&component| place(component))).collect(),
        Xsave::Elsewhere => legacy.chain(std::iter::once(576..extended.len())).collect(),
    };
    let mut words = Vec::new();
    for part in parts {
        let bytes = extended.get(part.start..part.end.min(extended.len())).unwrap_or(&[]);
        words.extend(bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)));
    }
    words
}

/// Where a component of the extended state lies in the standard format.
pub fn place(component: u32) -> Option<std::ops::Range<usize>> {
    let leaf = __cpuid_count(0xd, component);
    let (start, length) = (leaf.ebx as usize, leaf.eax as usize);
    (length > 0 && component >= 2).then(|| start..start.saturating_add(length))
}
