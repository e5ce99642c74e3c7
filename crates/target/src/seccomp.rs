//! Whether a thread's seccomp filters allow the calls that it would be made to do: a filter may kill the process for
//! one that it does not expect. The filters are read (which needs CAP_SYS_ADMIN) and evaluated here, as the kernel
//! would (seccomp(2), linux/filter.h).

use crate::{arch, ptrace};
use std::path::Path;

/// A call as filters see it: number, instruction pointer behind the call, first arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub number: libc::c_long,
    pub pointer: u64,
    pub arguments: [u64; 4],
}

/// `SECCOMP_RET_ALLOW` and `SECCOMP_RET_LOG`.
const ALLOWED: [u32; 2] = [0x7fff_0000, 0x7ffc_0000];
const ACTION: u32 = 0xffff_0000;
const FILTER: u32 = 2;
/// More filters than this nobody has; the kernel's limit is in instructions.
const MOST_FILTERS: usize = 512;

/// Checks that the filters of a stopped thread allow all of `calls`.
///
/// # Errors
/// Why that is not certain.
pub fn check(root: &Path, tid: u32, calls: &[Seen]) -> Result<(), String> {
    let mode = leakscope_proc::status(root, tid).map_err(|error| error.to_string())?.seccomp;
    if mode == 0 {
        return Ok(());
    }
    if mode != FILTER {
        return Err("it confines its system calls to a few (strict seccomp)".into());
    }
    for index in 0..MOST_FILTERS {
        let program = match ptrace::seccomp_filter(tid, index) {
            Ok(program) => program,
            // There are no more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && index > 0 => return Ok(()),
            Err(error) => {
                return Err(format!(
                    "it confines its system calls (seccomp), and its filter cannot be read to see whether it allows \
                     a copy ({error}; this needs CAP_SYS_ADMIN and no filter on leakscope itself)"
                ));
            }
        };
        for call in calls {
            let action = run(&program, &data(call)).map(|result| result & ACTION);
            if !action.is_some_and(|action| ALLOWED.contains(&action)) {
                return Err(format!("its seccomp filter does not allow system call {}", call.number));
            }
        }
    }
    Err("it has more seccomp filters than can be looked through".into())
}

/// `struct seccomp_data`.
fn data(call: &Seen) -> [u8; 64] {
    let mut bytes = [0; 64];
    let words = [call.number as u64 & 0xffff_ffff | u64::from(arch::AUDIT) << 32, call.pointer];
    let all = words.iter().chain(&call.arguments);
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(all) {
        *to = word.to_ne_bytes();
    }
    bytes
}

/// An instruction: code, jump if true, jump if false, constant.
pub type Instruction = (u16, u8, u8, u32);

/// Runs a classic BPF program. None if it is none that the kernel would take.
fn run(program: &[Instruction], data: &[u8; 64]) -> Option<u32> {
    let (mut a, mut x, mut memory) = (0u32, 0u32, [0u32; 16]);
    let mut at = 0usize;
    // Jumps go forwards only, so this ends.
    loop {
        let &(code, jump_true, jump_false, k) = program.get(at)?;
        at += 1;
        let operand = if code & 8 == 0 { k } else { x };
        match code & 7 {
            // Loads into A, into X.
            0 | 1 => {
                let value = match code & 0xe0 {
                    0x00 => k,
                    0x20 => {
                        let from = usize::try_from(k).ok()?;
                        u32::from_ne_bytes(data.get(from..from.checked_add(4)?)?.try_into().ok()?)
                    }
                    0x60 => *memory.get(usize::try_from(k).ok()?)?,
                    0x80 => 64,
                    _ => return None,
                };
                if code & 7 == 0 { a = value } else { x = value }
            }
            // Stores of A, of X.
            2 => *memory.get_mut(usize::try_from(k).ok()?)? = a,
            3 => *memory.get_mut(usize::try_from(k).ok()?)? = x,
            4 => {
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x10 => a.wrapping_sub(operand),
                    0x20 => a.wrapping_mul(operand),
                    0x30 => a.checked_div(operand)?,
                    0x40 => a | operand,
                    0x50 => a & operand,
                    0x60 => a.checked_shl(operand).unwrap_or(0),
                    0x70 => a.checked_shr(operand).unwrap_or(0),
                    0x80 => a.wrapping_neg(),
                    0xa0 => a ^ operand,
                    _ => return None,
                }
            }
            5 => {
                let is_true = match code & 0xf0 {
                    0x00 => {
                        at = at.checked_add(usize::try_from(k).ok()?)?;
                        continue;
                    }
                    0x10 => a == operand,
                    0x20 => a > operand,
                    0x30 => a >= operand,
                    0x40 => a & operand != 0,
                    _ => return None,
                };
                at += usize::from(if is_true { jump_true } else { jump_false });
            }
            6 => return Some(if code & 0x18 == 0x10 { a } else { k }),
            _ if code & 0xf8 == 0x80 => a = x,
            _ => x = a,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILL: u32 = 0;
    const ALLOW: u32 = 0x7fff_0000;

    fn seen(number: libc::c_long, arguments: [u64; 4]) -> [u8; 64] {
        data(&Seen { number, pointer: 0x1122_3344_5566_7788, arguments })
    }

    #[test]
    fn a_filter_by_number_and_argument_is_followed() {
        // if arch != x86-64 kill; if nr == 56 and the low half of its first argument has bit 17: kill; allow
        let program = [
            (0x20, 0, 0, 4),
            (0x15, 0, 4, arch::AUDIT),
            (0x20, 0, 0, 0),
            (0x15, 0, 3, 56),
            (0x20, 0, 0, 16),
            (0x45, 0, 1, 1 << 17),
            (0x06, 0, 0, KILL),
            (0x06, 0, 0, ALLOW),
        ];
        assert_eq!(run(&program, &seen(56, [0x400, 0, 0, 0])), Some(ALLOW));
        assert_eq!(run(&program, &seen(56, [0x20400, 0, 0, 0])), Some(KILL));
        assert_eq!(run(&program, &seen(57, [0x20400, 0, 0, 0])), Some(ALLOW));
    }

    #[test]
    fn memory_arithmetic_and_registers_work() {
        // A = low half of the instruction pointer; M[3] = A; X = A; A = A - X; A = A + M[3] >> 4
        let program = [
            (0x20, 0, 0, 8),
            (0x02, 0, 0, 3),
            (0x07, 0, 0, 0),
            (0x1c, 0, 0, 0),
            (0x61, 0, 0, 3),
            (0x0c, 0, 0, 0),
            (0x74, 0, 0, 4),
            (0x16, 0, 0, 0),
        ];
        assert_eq!(run(&program, &seen(1, [0; 4])), Some(0x0556_6778));
    }

    #[test]
    fn what_is_no_program_gives_no_result() {
        assert_eq!(run(&[], &seen(1, [0; 4])), None);
        assert_eq!(run(&[(0x20, 0, 0, 62)], &seen(1, [0; 4])), None);
        assert_eq!(run(&[(0x05, 0, 0, u32::MAX)], &seen(1, [0; 4])), None);
        assert_eq!(run(&[(0x34, 0, 0, 0), (0x06, 0, 0, ALLOW)], &seen(1, [0; 4])), None);
    }
}
