//! Signal frames as the kernel writes and `rt_sigreturn` reads them (arch/x86/include/uapi/asm/sigcontext.h,
//! ucontext.h; `struct rt_sigframe`).

use super::registers::{UserRegisters, place};

/// Bytes below the stack pointer that a function may use without telling (x86-64 ABI).
pub const RED_ZONE: u64 = 128;
/// Size of a signal frame without the extended state: return address, ucontext, siginfo.
pub const FRAME_BYTES: u64 = 8 + 304 + 128;

/// The extended state is there; `ss` is there; it is to be restored as it says.
const UC_FLAGS: u64 = 1 | 2 | 4;
/// No value of `ss_flags` that sigaltstack(2) takes. rt_sigreturn sets the alternate stack too, which nobody can
/// read from outside; with this value it fails at that, and goes on (`restore_altstack`).
const NO_STACK_FLAGS: u64 = 0x7f;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
/// AMX tile data, which a process has only after it asked for it.
const TILE_DATA: u32 = 18;

/// A frame from which `rt_sigreturn` makes the thread have these registers and this signal mask. It begins with
/// `returns_to`: whoever arrives at its start by a `ret` executes that code next. `extended_at` is the address of an
/// [`extended_state`], 0 for a fresh one.
pub fn signal_frame(returns_to: u64, registers: &UserRegisters, mask: u64, extended_at: u64) -> Vec<u8> {
    let r = registers;
    let flags = if extended_at == 0 { UC_FLAGS & !1 } else { UC_FLAGS };
    let selectors = r.cs & 0xffff | (r.ss & 0xffff) << 48;
    let words = [
        // pretcode; uc_flags, uc_link, uc_stack { ss_sp, ss_flags, ss_size }
        returns_to,
        flags,
        0,
        0,
        NO_STACK_FLAGS,
        0,
        // sigcontext
        r.r8,
        r.r9,
        r.r10,
        r.r11,
        r.r12,
        r.r13,
        r.r14,
        r.r15,
        r.rdi,
        r.rsi,
        r.rbp,
        r.rbx,
        r.rdx,
        r.rax,
        r.rcx,
        r.rsp,
        r.rip,
        r.eflags,
        selectors,
        0,
        0,
        0,
        0,
        extended_at,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        // uc_sigmask
        mask,
    ];
    let mut frame: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    frame.resize(FRAME_BYTES as usize, 0);
    frame
}

/// What ptrace gives as extended state, in the form in which it stands in a signal frame (at an address that is a
/// multiple of 64). None if it is not understood.
pub fn extended_state(state: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u64::from_le_bytes(state.get(at..at + 8)?.try_into().ok()?));
    // ptrace puts the features that the kernel has enabled into the software-reserved bytes.
    let mut features = word(464)?;
    let in_use = word(512)?;
    if in_use & !features != 0 || features & 3 != 3 {
        return None;
    }
    if in_use & 1 << TILE_DATA == 0 {
        features &= !(1 << TILE_DATA);
    }
    let end = (2..63).filter(|&component| features & 1 << component != 0).map(place);
    let size =
        end.map(|place| place.map(|place| place.end)).try_fold(576, |most, end| Some(most.max(end?)))?;
    let mut area = state.get(..size)?.to_vec();
    let mut reserved = Vec::with_capacity(48);
    reserved.extend(MAGIC1.to_le_bytes());
    reserved.extend((size as u32 + 4).to_le_bytes());
    reserved.extend(features.to_le_bytes());
    reserved.extend((size as u32).to_le_bytes());
    reserved.resize(48, 0);
    area.get_mut(464..512)?.copy_from_slice(&reserved);
    // The compaction word and the reserved ones must be 0.
    area.get_mut(520..576)?.fill(0);
    area.extend(MAGIC2.to_le_bytes());
    Some(area)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_the_layout_of_the_c_library() {
        // SAFETY: plain numbers, for which zeros are valid.
        let mut registers: UserRegisters = unsafe { std::mem::zeroed() };
        (registers.rip, registers.rsp, registers.r8, registers.rax) = (11, 22, 33, 44);
        (registers.cs, registers.ss) = (0x33, 0x2b);
        let frame = signal_frame(1, &registers, 0x55, 0x66);
        assert_eq!(frame.len() as u64, FRAME_BYTES);
        // SAFETY: the frame holds a whole ucontext behind the return address, except that the C library's is longer
        // (its own FPU state at the end), which is not read here.
        let mut context: libc::ucontext_t = unsafe { std::mem::zeroed() };
        // SAFETY: both are live and at least 304 bytes long.
        unsafe { std::ptr::copy_nonoverlapping(frame[8..].as_ptr(), (&raw mut context).cast(), 304) };
        let registers = &context.uc_mcontext.gregs;
        assert_eq!(registers[libc::REG_RIP as usize], 11);
        assert_eq!(registers[libc::REG_RSP as usize], 22);
        assert_eq!(registers[libc::REG_R8 as usize], 33);
        assert_eq!(registers[libc::REG_RAX as usize], 44);
        assert_eq!(registers[libc::REG_CSGSFS as usize], 0x33 | 0x2b << 48);
        assert_eq!(context.uc_mcontext.fpregs as usize, 0x66);
        // SAFETY: the set begins with a word of the kernel's mask.
        assert_eq!(unsafe { *(&raw const context.uc_sigmask).cast::<u64>() }, 0x55);
    }

    #[test]
    fn a_state_that_is_cut_or_odd_is_refused() {
        assert_eq!(extended_state(&[]), None);
        assert_eq!(extended_state(&[0; 600]), None);
        let mut state = vec![0; 2696];
        state[464] = 3;
        assert_eq!(extended_state(&state).map(|area| area.len()), Some(580));
        state[512] = 4;
        assert_eq!(extended_state(&state), None);
        state[464] = 7;
        assert_eq!(extended_state(&state[..580]), None);
    }
}
