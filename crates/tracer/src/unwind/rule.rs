//! How to step from one frame to its caller, as eight bytes.

/// Where the canonical frame address (the caller's stack pointer after return) comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Cfa {
    /// Outermost frame: there is no caller.
    None = 0,
    /// `cfa = sp + n`.
    Sp = 1,
    /// `cfa = bp + n`.
    Bp = 2,
    /// `cfa = *(bp + n)`: functions that realign their stack.
    AtBp = 3,
    /// `cfa = *(sp + n)`.
    AtSp = 4,
    /// The kernel's signal frame: all registers are in the saved context.
    Signal = 5,
    /// No unwinding information (generated code, say): assume a frame pointer, `cfa = bp + 16`.
    FramePointer = 6,
}

/// Where the caller's frame pointer comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Bp {
    /// Unchanged by this frame.
    Same = 0,
    /// `*(cfa + n)`.
    AtCfa = 1,
    /// `*(bp + n)`.
    AtOwn = 2,
    /// Lost.
    Unknown = 3,
}

/// The whole rule. The return address is always at `cfa - 8` (or in the signal frame).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    pub(crate) cfa: Cfa,
    pub(crate) cfa_offset: i32,
    pub(crate) bp: Bp,
    /// In bytes; multiples of 8 within 64 MiB.
    pub(crate) bp_offset: i32,
}

/// A rule as one word, which is how it is kept and passed: [`Rule`]'s mixed fields would be written and read back
/// in different sizes, and such reads wait for the writes.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Packed(pub(crate) u64);

impl Packed {
    /// The rule.
    #[inline(always)]
    pub(crate) fn rule(self) -> Rule {
        Rule::unpack(self.0)
    }
}

impl Rule {
    /// The outermost frame.
    pub(crate) const END: Rule = Rule { cfa: Cfa::None, cfa_offset: 0, bp: Bp::Same, bp_offset: 0 };
    /// Code without unwinding information.
    pub(crate) const FRAME_POINTER: Rule =
        Rule { cfa: Cfa::FramePointer, cfa_offset: 16, bp: Bp::AtCfa, bp_offset: -16 };
    /// The signal trampoline.
    pub(crate) const SIGNAL: Rule = Rule { cfa: Cfa::Signal, cfa_offset: 0, bp: Bp::Unknown, bp_offset: 0 };

    /// `bits 0-3 cfa, 4-7 bp, 8-31 bp_offset / 8, 32-63 cfa_offset`.
    pub(crate) fn pack(self) -> u64 {
        self.cfa as u64
            | (self.bp as u64) << 4
            | (((self.bp_offset >> 3) as u32 as u64) & 0xff_ffff) << 8
            | (self.cfa_offset as u32 as u64) << 32
    }

    /// The inverse of [`Rule::pack`]; unknown values become the end of the stack.
    #[inline(always)]
    pub(crate) fn unpack(word: u64) -> Rule {
        let cfa = match word & 15 {
            1 => Cfa::Sp,
            2 => Cfa::Bp,
            3 => Cfa::AtBp,
            4 => Cfa::AtSp,
            5 => Cfa::Signal,
            6 => Cfa::FramePointer,
            _ => Cfa::None,
        };
        let bp = match (word >> 4) & 15 {
            0 => Bp::Same,
            1 => Bp::AtCfa,
            2 => Bp::AtOwn,
            _ => Bp::Unknown,
        };
        let bp_offset = (((word >> 8) as u32) << 8) as i32 >> 8 << 3;
        Rule { cfa, cfa_offset: (word >> 32) as i32, bp, bp_offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packed_rule_unpacks_to_itself() {
        for cfa in [Cfa::None, Cfa::Sp, Cfa::Bp, Cfa::AtBp, Cfa::AtSp, Cfa::Signal, Cfa::FramePointer] {
            for bp in [Bp::Same, Bp::AtCfa, Bp::AtOwn, Bp::Unknown] {
                for cfa_offset in [0, 8, 16, -8, i32::MAX, i32::MIN] {
                    for bp_offset in [0, -16, 8, -(64 << 20) + 8, (64 << 20) - 8] {
                        let rule = Rule { cfa, cfa_offset, bp, bp_offset };
                        assert_eq!(Rule::unpack(rule.pack()), rule);
                    }
                }
            }
        }
    }
}
