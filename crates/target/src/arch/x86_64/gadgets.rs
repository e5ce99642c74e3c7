//! The pieces of the target's own code that a remote call is made of. Nothing is written into its code.

/// Where they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gadgets {
    /// `syscall; ret`.
    pub syscall: u64,
    /// `mov $15, %eax; syscall`: the call of rt_sigreturn to which signal handlers return.
    pub sigreturn: u64,
    /// How many bytes that is.
    pub sigreturn_length: usize,
    /// What returning without rt_sigreturn needs, if it is there.
    pub restart: Option<Restart>,
}

/// Pieces that put back the three registers which a clone changes, and the stack pointer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Restart {
    /// `pop %rdi; ret`.
    pub pop_rdi: u64,
    /// `pop %rsi; ret`.
    pub pop_rsi: u64,
    /// `pop %rax; ret`.
    pub pop_rax: u64,
    /// `ret $skip`.
    pub ret: u64,
    /// How many bytes that skips.
    pub skip: u64,
}

/// Bytes that `ret $skip` must skip at least: the red zone and two signal frames.
const LEAST_SKIP: u16 = 1152;
const MOST_SKIP: u16 = 8192;
const SYSCALL_RET: &[u8] = b"\x0f\x05\xc3";
const SIGRETURN: [&[u8]; 2] = [b"\x48\xc7\xc0\x0f\0\0\0\x0f\x05", b"\xb8\x0f\0\0\0\x0f\x05"];

/// Looks for them in code that is handed over piece by piece.
#[derive(Debug, Default)]
pub struct Scanner {
    syscall: Option<u64>,
    sigreturn: Option<(u64, usize)>,
    pop_rdi: Option<u64>,
    pop_rsi: Option<u64>,
    pop_rax: Option<u64>,
    ret: Option<(u64, u64)>,
}

impl Scanner {
    /// By how many bytes pieces must overlap, so that nothing is missed between them.
    pub const OVERLAP: usize = 8;

    /// Looks through `code`, which lies at `address`.
    pub fn scan(&mut self, address: u64, code: &[u8]) {
        for (index, window) in code.windows(3).enumerate() {
            let at = address.wrapping_add(index as u64);
            match *window {
                [0x0f, 0x05, 0xc3] => _ = self.syscall.get_or_insert(at),
                [0x48, 0xc7, 0xc0] | [0xb8, 0x0f, 0] if self.sigreturn.is_none() => {
                    let rest = code.get(index..).unwrap_or(&[]);
                    self.sigreturn =
                        SIGRETURN.iter().find(|bytes| rest.starts_with(bytes)).map(|bytes| (at, bytes.len()));
                }
                [0x5f, 0xc3, _] => _ = self.pop_rdi.get_or_insert(at),
                [0x5e, 0xc3, _] => _ = self.pop_rsi.get_or_insert(at),
                [0x58, 0xc3, _] => _ = self.pop_rax.get_or_insert(at),
                [0xc2, low, high] => {
                    let skip = u16::from_le_bytes([low, high]);
                    if skip % 16 == 0 && (LEAST_SKIP..=MOST_SKIP).contains(&skip) {
                        self.ret.get_or_insert((at, u64::from(skip)));
                    }
                }
                _ => {}
            }
        }
    }

    /// What is there, if that is enough.
    pub fn found(&self) -> Option<Gadgets> {
        let (sigreturn, sigreturn_length) = self.sigreturn?;
        let restart = || {
            let (ret, skip) = self.ret?;
            let (pop_rdi, pop_rsi, pop_rax) = (self.pop_rdi?, self.pop_rsi?, self.pop_rax?);
            Some(Restart { pop_rdi, pop_rsi, pop_rax, ret, skip })
        };
        Some(Gadgets { syscall: self.syscall?, sigreturn, sigreturn_length, restart: restart() })
    }

    /// Whether nothing is left to look for.
    pub fn is_complete(&self) -> bool {
        self.found().is_some_and(|found| found.restart.is_some())
    }
}

impl Gadgets {
    /// Whether all of them are (still) where they were found. `holds` compares the bytes at an address.
    pub fn are_there(&self, holds: impl Fn(u64, &[u8]) -> bool) -> bool {
        let skip = self.restart.map_or(0, |restart| restart.skip) as u16;
        let [low, high] = skip.to_le_bytes();
        holds(self.syscall, SYSCALL_RET)
            && SIGRETURN
                .iter()
                .any(|bytes| bytes.len() == self.sigreturn_length && holds(self.sigreturn, bytes))
            && self.restart.is_none_or(|restart| {
                holds(restart.pop_rdi, b"\x5f\xc3")
                    && holds(restart.pop_rsi, b"\x5e\xc3")
                    && holds(restart.pop_rax, b"\x58\xc3")
                    && holds(restart.ret, &[0xc2, low, high])
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_found_where_they_are() {
        let mut code = vec![0x90; 64];
        code[3..6].copy_from_slice(SYSCALL_RET);
        code[10..19].copy_from_slice(SIGRETURN[0]);
        let mut scanner = Scanner::default();
        scanner.scan(0x1000, &code);
        let found = scanner.found().unwrap();
        assert_eq!((found.syscall, found.sigreturn, found.restart), (0x1003, 0x100a, None));
        assert!(!scanner.is_complete());
        code[20..26].copy_from_slice(b"\x5f\xc3\x5e\xc3\x58\xc3");
        code[30..33].copy_from_slice(&[0xc2, 0x08, 0x00]);
        code[40..43].copy_from_slice(&[0xc2, 0x00, 0x08]);
        scanner.scan(0x1000, &code);
        let found = scanner.found().unwrap();
        let restart = found.restart.unwrap();
        assert_eq!((restart.pop_rdi, restart.pop_rsi, restart.pop_rax), (0x1014, 0x1016, 0x1018));
        assert_eq!((restart.ret, restart.skip), (0x1028, 0x800));
        let holds = |address: u64, bytes: &[u8]| code[address as usize - 0x1000..].starts_with(bytes);
        assert!(found.are_there(holds));
        assert!(!found.are_there(|address, bytes| address != 0x1014 && holds(address, bytes)));
    }
}
