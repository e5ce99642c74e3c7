//! x86-64, System V ABI, Linux.

#[cfg(feature = "shared-object")]
mod memory;

use core::arch::asm;

/// Makes a system call; returns the kernel's answer (negative errno on failure) and leaves `errno` alone.
///
/// # Safety
/// The arguments must be what the call expects.
#[inline]
pub(crate) unsafe fn syscall(number: usize, args: [usize; 6]) -> isize {
    let result;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; the caller vouches for the arguments.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    result
}

/// System call numbers.
pub(crate) mod nr {
    pub(crate) const READ: usize = 0;
    pub(crate) const OPEN: usize = 2;
    pub(crate) const CLOSE: usize = 3;
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const PREAD64: usize = 17;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const GETPID: usize = 39;
    pub(crate) const MUNLOCK: usize = 150;
    pub(crate) const EXIT_GROUP: usize = 231;
    pub(crate) const READLINK: usize = 89;
    pub(crate) const GETPPID: usize = 110;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const TGKILL: usize = 234;
    pub(crate) const CLOCK_GETTIME: usize = 228;
    pub(crate) const GETRLIMIT: usize = 97;
    pub(crate) const CLONE: usize = 56;
    pub(crate) const WAIT4: usize = 61;
    pub(crate) const KILL: usize = 62;
    pub(crate) const PRCTL: usize = 157;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const PROCESS_VM_READV: usize = 310;
}

/// Writes the registers that calls preserve to `out`, and gives the stack pointer.
#[inline(always)]
pub(crate) fn save_registers(out: &mut [usize; 6]) -> usize {
    let sp;
    // SAFETY: six words are written to an array of six.
    unsafe {
        asm!(
            "mov qword ptr [{out}], rbx",
            "mov qword ptr [{out} + 8], rbp",
            "mov qword ptr [{out} + 16], r12",
            "mov qword ptr [{out} + 24], r13",
            "mov qword ptr [{out} + 32], r14",
            "mov qword ptr [{out} + 40], r15",
            "mov {sp}, rsp",
            out = in(reg) out.as_mut_ptr(),
            sp = lateout(reg) sp,
            options(nostack, preserves_flags)
        );
    }
    sp
}

// Three words of initial-exec TLS, and one that always reads as zero. A `thread_local!` would be general-dynamic in a
// shared object: its first use in a thread may allocate, which would recurse into the hooks.
//
// Put into a running process, where no such memory can be had any more, the object gets other offsets from the thread
// pointer for both (see `leakscope_heapfile::attach`): the three are unused words of the C library's thread control
// block, which is not cleared for a new thread, and the other is the thread's id there, which tells that they are not
// this thread's.
core::arch::global_asm!(
    ".section .tbss.leakscope,\"awT\",@nobits",
    ".balign 16",
    ".globl leakscope_tls",
    ".hidden leakscope_tls",
    ".type leakscope_tls, @object",
    ".size leakscope_tls, 24",
    "leakscope_tls:",
    ".zero 24",
    ".balign 16",
    ".globl leakscope_tid",
    ".hidden leakscope_tid",
    ".type leakscope_tid, @object",
    ".size leakscope_tid, 16",
    "leakscope_tid:",
    ".zero 16",
    ".text",
);

/// Reads the thread's first two words: the address of its state and the epoch it was made in. The epoch is wrong if the
/// words are those of an earlier thread.
#[inline(always)]
pub(crate) fn tls_read() -> (usize, usize) {
    let (state, epoch, owner): (usize, usize, usize);
    // SAFETY: the symbols have been resolved to this thread's own memory; reading it has no side effect.
    unsafe {
        asm!(
            "mov {offset}, qword ptr [rip + leakscope_tls@GOTTPOFF]",
            "mov {owner}, qword ptr [rip + leakscope_tid@GOTTPOFF]",
            "mov {epoch}, qword ptr fs:[{offset} + 8]",
            "mov {owner:e}, dword ptr fs:[{owner}]",
            "mov {offset}, qword ptr fs:[{offset}]",
            offset = out(reg) state,
            epoch = out(reg) epoch,
            owner = out(reg) owner,
            options(nostack, preserves_flags, readonly)
        );
    }
    (state, epoch ^ owner << OWNER_SHIFT)
}

/// Epochs are below this power of two; the thread's id is above.
const OWNER_SHIFT: u32 = 32;

/// Writes them.
#[inline]
pub(crate) fn tls_write(state: usize, epoch: usize) {
    // SAFETY: as above; the words belong to the tracer alone.
    unsafe {
        asm!(
            "mov {offset}, qword ptr [rip + leakscope_tid@GOTTPOFF]",
            "mov {offset:e}, dword ptr fs:[{offset}]",
            "shl {offset}, {shift}",
            "xor {epoch}, {offset}",
            "mov {offset}, qword ptr [rip + leakscope_tls@GOTTPOFF]",
            "mov qword ptr fs:[{offset}], {state}",
            "mov qword ptr fs:[{offset} + 8], {epoch}",
            offset = out(reg) _,
            state = in(reg) state,
            epoch = inout(reg) epoch => _,
            shift = const OWNER_SHIFT,
            options(nostack)
        );
    }
}

/// Reads the thread's third word: its countdown (see `sample`), 0 in a new thread.
#[inline(always)]
pub(crate) fn countdown() -> u64 {
    let countdown;
    // SAFETY: as in `tls_read`.
    unsafe {
        asm!(
            "mov {word}, qword ptr [rip + leakscope_tls@GOTTPOFF]",
            "mov {word}, qword ptr fs:[{word} + 16]",
            word = out(reg) countdown,
            options(nostack, preserves_flags, readonly)
        );
    }
    countdown
}

/// Writes it.
#[inline(always)]
pub(crate) fn set_countdown(value: u64) {
    // SAFETY: as in `tls_write`.
    unsafe {
        asm!(
            "mov {offset}, qword ptr [rip + leakscope_tls@GOTTPOFF]",
            "mov qword ptr fs:[{offset} + 16], {value}",
            offset = out(reg) _,
            value = in(reg) value,
            options(nostack, preserves_flags)
        );
    }
}

/// Runs `body`, which computes with floating-point numbers, in the state that a program starts with, and leaves the
/// program's own as it was: a program may have set another rounding, may have itself signalled (`feenableexcept`), or may
/// ask later what happened (`fetestexcept`).
///
/// What goes in and comes out goes through the instructions that change the state, so that no computation can be
/// moved across them.
#[inline(always)]
pub(crate) fn with_own_floats(
    mut input: (u64, u64),
    body: impl FnOnce((u64, u64)) -> (u64, u64),
) -> (u64, u64) {
    /// All exceptions masked, none noted, to nearest.
    const START: u32 = 0x1f80;
    let (start, mut program) = (START, 0u32);
    // SAFETY: the control and status register is written with what a program starts with.
    unsafe {
        asm!(
            "stmxcsr dword ptr [{program}]",
            "ldmxcsr dword ptr [{start}]",
            "/* {first} {second} */",
            program = in(reg) &raw mut program,
            start = in(reg) &raw const start,
            first = inout(reg) input.0,
            second = inout(reg) input.1,
            options(nostack, preserves_flags)
        );
    }
    let mut output = body(input);
    // SAFETY: the register gets back what it held.
    unsafe {
        asm!(
            "ldmxcsr dword ptr [{program}]",
            "/* {first} {second} */",
            program = in(reg) &raw const program,
            first = inout(reg) output.0,
            second = inout(reg) output.1,
            options(nostack, preserves_flags)
        );
    }
    output
}

/// The thread control block. glibc places it at the top of the stack of every thread it creates.
#[inline]
pub(crate) fn thread_pointer() -> usize {
    let pointer;
    // SAFETY: the first word of the thread control block is its own address (System V ABI, TLS variant II).
    unsafe {
        asm!("mov {}, qword ptr fs:[0]", out(reg) pointer, options(nostack, preserves_flags, readonly))
    };
    pointer
}

/// Replaces 16 bytes in one step if they still hold `old`.
///
/// # Safety
/// `address` must be 16-byte aligned and writable.
#[inline(always)]
pub(crate) unsafe fn compare_exchange_16(address: *mut u64, old: (u64, u64), new: (u64, u64)) -> bool {
    let outcome: u64;
    // SAFETY: rbx is reserved by the compiler, so it is exchanged around the instruction, and no operand may be
    // in it: all registers are named. The caller vouches for the address. Every x86-64 processor that a current
    // distribution runs on has cmpxchg16b.
    unsafe {
        asm!(
            "xchg rsi, rbx",
            "lock cmpxchg16b xmmword ptr [rdi]",
            "sete al",
            "mov rbx, rsi",
            inout("rsi") new.0 => _,
            in("rdi") address,
            inout("rax") old.0 => outcome,
            inout("rdx") old.1 => _,
            in("rcx") new.1,
            options(nostack)
        );
    }
    outcome as u8 != 0
}

/// Asks for the cache line of `address`.
#[inline(always)]
pub(crate) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch of any address has no effect but on the cache.
    unsafe { core::arch::x86_64::_mm_prefetch(address.cast(), core::arch::x86_64::_MM_HINT_T0) };
}

/// Whether `pc` is the kernel's signal return trampoline: `mov rax, 15; syscall` as glibc and musl have it.
///
/// # Safety
/// Nine bytes at `pc` must be readable.
pub(crate) unsafe fn is_signal_trampoline(pc: usize) -> bool {
    const CODE: [u8; 9] = [0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05];
    // SAFETY: the caller vouches for it.
    let found = unsafe { core::ptr::read_unaligned(pc as *const [u8; 9]) };
    found == CODE
}

/// Offsets from the stack pointer in the trampoline to the interrupted registers (rt_sigframe: ucontext at 0,
/// its gregs at 40; REG_RBP = 10, REG_RSP = 15, REG_RIP = 16).
pub(crate) const SIGNAL_BP: usize = 40 + 10 * 8;
/// See [`SIGNAL_BP`].
pub(crate) const SIGNAL_SP: usize = 40 + 15 * 8;
/// See [`SIGNAL_BP`].
pub(crate) const SIGNAL_PC: usize = 40 + 16 * 8;

/// DWARF register numbers.
pub(crate) const DWARF_BP: u64 = 6;
/// See [`DWARF_BP`].
pub(crate) const DWARF_SP: u64 = 7;
/// See [`DWARF_BP`].
pub(crate) const DWARF_RA: u64 = 16;

/// Defines an exported function that calls `$hook` with its own arguments, then the stack pointer at entry
/// (which points to the return address) and the frame pointer at entry. `$sp` and `$bp` name the argument
/// registers that follow the function's own.
#[cfg(feature = "shared-object")]
macro_rules! export {
    ($name:ident, $hook:path, $sp:literal, $bp:literal) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name() {
            core::arch::naked_asm!(
                concat!("mov ", $sp, ", rsp"),
                concat!("mov ", $bp, ", rbp"),
                "jmp {hook}",
                hook = sym $hook,
            )
        }
    };
}
#[cfg(feature = "shared-object")]
pub(crate) use export;

/// As [`export!`], for functions with up to six arguments: the two extra ones go onto the stack.
#[cfg(feature = "shared-object")]
macro_rules! export_on_stack {
    ($name:ident, $hook:path) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name() {
            core::arch::naked_asm!(
                "sub rsp, 8",
                "push rbp",
                "lea rax, [rsp + 16]",
                "push rax",
                "call {hook}",
                "add rsp, 24",
                "ret",
                hook = sym $hook,
            )
        }
    };
}
#[cfg(feature = "shared-object")]
pub(crate) use export_on_stack;

/// Exports a function that needs neither.
#[cfg(feature = "shared-object")]
macro_rules! export_jump {
    ($name:ident, $hook:path) => {
        #[unsafe(naked)]
        #[unsafe(no_mangle)]
        pub(crate) extern "C" fn $name() {
            core::arch::naked_asm!("jmp {hook}", hook = sym $hook)
        }
    };
}
#[cfg(feature = "shared-object")]
pub(crate) use export_jump;
