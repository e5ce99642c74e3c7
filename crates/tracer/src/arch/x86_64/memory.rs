//! What the compiler calls for copies and comparisons.
//!
//! The C library's are chosen when the loader relocates the object (IFUNC), which nobody can do from outside for an
//! object that is put into a running process. These are hidden, so no other module is bound to them. They are on no hot
//! path, where sizes are known and copies are inlined.

core::arch::global_asm!(
    ".macro leakscope_function name",
    ".globl \\name",
    ".hidden \\name",
    ".type \\name, @function",
    "\\name:",
    ".endm",
    ".text",
    // rdi: to, rsi: from, rdx: bytes; gives `to`.
    "leakscope_function memcpy",
    "mov rax, rdi",
    "mov rcx, rdx",
    "rep movsb",
    "ret",
    // The same for ranges that overlap: from the end if `to` lies inside of what is copied.
    "leakscope_function memmove",
    "mov rax, rdi",
    "mov rcx, rdx",
    "mov r8, rdi",
    "sub r8, rsi",
    "cmp r8, rdx",
    "jb 2f",
    "rep movsb",
    "ret",
    "2:",
    "lea rdi, [rdi + rdx - 1]",
    "lea rsi, [rsi + rdx - 1]",
    "std",
    "rep movsb",
    "cld",
    "ret",
    // rdi: to, esi: byte, rdx: bytes; gives `to`.
    "leakscope_function memset",
    "mov r8, rdi",
    "mov eax, esi",
    "mov rcx, rdx",
    "rep stosb",
    "mov rax, r8",
    "ret",
    // rdi, rsi: what is compared, rdx: bytes; gives the difference of the first bytes that differ, or 0.
    "leakscope_function bcmp",
    "leakscope_function memcmp",
    "mov rcx, rdx",
    "xor eax, eax",
    "cmp rax, rcx",
    "repe cmpsb",
    "je 2f",
    "movzx eax, byte ptr [rdi - 1]",
    "movzx edx, byte ptr [rsi - 1]",
    "sub eax, edx",
    "2:",
    "ret",
);
