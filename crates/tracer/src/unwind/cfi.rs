//! Call frame information: the `.eh_frame` tables of a mapped module, read in place.
//!
//! Sources: Linux Standard Base, "Exception Frames" (`.eh_frame`, `.eh_frame_hdr`); DWARF 5, section 6.4.
//! Only what unwinding rsp, rbp and rip needs is kept. Whatever is not understood gives no rule, and the
//! caller falls back to assuming a frame pointer.

use super::rule::{Bp, Cfa, Rule};
use crate::arch::{DWARF_BP, DWARF_RA, DWARF_SP};

/// A readable range of memory, with checked reads.
#[derive(Clone, Copy)]
pub(crate) struct Bytes {
    start: usize,
    end: usize,
}

impl Bytes {
    /// # Safety
    /// Where a read within `start..end` is asked for, it must be readable.
    pub(crate) unsafe fn new(start: usize, end: usize) -> Bytes {
        Bytes { start, end }
    }

    /// Reads a plain value at an address.
    pub(crate) fn read<T: Copy>(self, address: usize) -> Option<T> {
        let end = address.checked_add(size_of::<T>())?;
        if address < self.start || end > self.end {
            return None;
        }
        // SAFETY: inside the range that the maker vouched for; only plain integers are read.
        Some(unsafe { core::ptr::read_unaligned(address as *const T) })
    }
}

/// A position in [`Bytes`].
struct Cursor {
    bytes: Bytes,
    at: usize,
    end: usize,
}

impl Cursor {
    fn new(bytes: Bytes, at: usize, end: usize) -> Cursor {
        Cursor { bytes, at, end: end.min(bytes.end) }
    }
    fn take<T: Copy>(&mut self) -> Option<T> {
        let next = self.at.checked_add(size_of::<T>())?;
        if next > self.end {
            return None;
        }
        let value = self.bytes.read(self.at)?;
        self.at = next;
        Some(value)
    }
    fn skip(&mut self, n: usize) -> Option<()> {
        let next = self.at.checked_add(n)?;
        (next <= self.end).then(|| self.at = next)
    }
    fn uleb(&mut self) -> Option<u64> {
        let mut value = 0u64;
        let mut shift = 0;
        loop {
            let byte: u8 = self.take()?;
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
    }
    fn sleb(&mut self) -> Option<i64> {
        let mut value = 0i64;
        let mut shift = 0;
        loop {
            let byte: u8 = self.take()?;
            if shift < 64 {
                value |= i64::from(byte & 0x7f) << shift;
            }
            shift += 7;
            if byte & 0x80 == 0 {
                if byte & 0x40 != 0 && shift < 64 {
                    value |= -1i64 << shift;
                }
                return Some(value);
            }
        }
    }
    /// A pointer in one of the DW_EH_PE encodings (indirect ones are not used for code addresses).
    fn encoded(&mut self, encoding: u8, data_base: usize) -> Option<usize> {
        let place = self.at;
        let value = match encoding & 0x0f {
            0x00 | 0x04 | 0x0c => self.take::<u64>()? as usize,
            0x01 => self.uleb()? as usize,
            0x09 => self.sleb()? as usize,
            0x02 => self.take::<u16>()? as usize,
            0x0a => self.take::<i16>()? as isize as usize,
            0x03 => self.take::<u32>()? as usize,
            0x0b => self.take::<i32>()? as isize as usize,
            _ => return None,
        };
        match encoding & 0x70 {
            0x00 => Some(value),
            0x10 => Some(place.wrapping_add(value)),
            0x30 => Some(data_base.wrapping_add(value)),
            _ => None,
        }
    }
}

/// The rule for `pc` in a module whose `.eh_frame_hdr` is at `header`.
pub(crate) fn find_rule(bytes: Bytes, header: usize, pc: usize) -> Option<Rule> {
    let fde = find_fde(bytes, header, pc)?;
    let entry = Fde::parse(bytes, fde)?;
    if pc < entry.start || pc - entry.start >= entry.length {
        return None;
    }
    entry.rule_at(bytes, pc)
}

/// Binary search in the sorted table of `.eh_frame_hdr`.
fn find_fde(bytes: Bytes, header: usize, pc: usize) -> Option<usize> {
    const TABLE_DATAREL_SDATA4: u8 = 0x3b;
    let mut cursor = Cursor::new(bytes, header, usize::MAX);
    let version: u8 = cursor.take()?;
    let frame_encoding: u8 = cursor.take()?;
    let count_encoding: u8 = cursor.take()?;
    let table_encoding: u8 = cursor.take()?;
    if version != 1 || table_encoding != TABLE_DATAREL_SDATA4 {
        return None;
    }
    cursor.encoded(frame_encoding, header)?;
    let count = cursor.encoded(count_encoding, header)?;
    let table = cursor.at;
    let location = |index: usize| -> Option<usize> {
        let offset: i32 = bytes.read(table.checked_add(index.checked_mul(8)?)?)?;
        Some(header.wrapping_add(offset as isize as usize))
    };
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if location(middle)? <= pc { low = middle + 1 } else { high = middle }
    }
    let index = low.checked_sub(1)?;
    let offset: i32 = bytes.read(table.checked_add(index.checked_mul(8)?)?.checked_add(4)?)?;
    Some(header.wrapping_add(offset as isize as usize))
}

struct Fde {
    start: usize,
    length: usize,
    signal: bool,
    code_align: u64,
    data_align: i64,
    initial: (usize, usize),
    instructions: (usize, usize),
}

impl Fde {
    fn parse(bytes: Bytes, at: usize) -> Option<Fde> {
        let mut cursor = Cursor::new(bytes, at, usize::MAX);
        let length: u32 = cursor.take()?;
        if length == 0 || length == u32::MAX {
            return None;
        }
        let end = cursor.at.checked_add(length as usize)?;
        let cie_place = cursor.at;
        let cie_offset: u32 = cursor.take()?;
        let cie = Cie::parse(bytes, cie_place.checked_sub(cie_offset as usize)?)?;
        cursor.end = end.min(bytes.end);
        let start = cursor.encoded(cie.encoding, 0)?;
        let length = cursor.encoded(cie.encoding & 0x0f, 0)?;
        if cie.augmented {
            let skip = cursor.uleb()?;
            cursor.skip(usize::try_from(skip).ok()?)?;
        }
        Some(Fde {
            start,
            length,
            signal: cie.signal,
            code_align: cie.code_align,
            data_align: cie.data_align,
            initial: cie.instructions,
            instructions: (cursor.at, cursor.end),
        })
    }

    fn rule_at(&self, bytes: Bytes, pc: usize) -> Option<Rule> {
        if self.signal {
            return Some(Rule::SIGNAL);
        }
        let mut machine = Machine {
            row: Row::START,
            initial: Row::START,
            saved: [Row::START; 8],
            depth: 0,
            location: self.start,
            code_align: self.code_align,
            data_align: self.data_align,
        };
        machine.run(bytes, self.initial, usize::MAX)?;
        machine.initial = machine.row;
        machine.location = self.start;
        machine.run(bytes, self.instructions, pc)?;
        machine.row.rule()
    }
}

struct Cie {
    encoding: u8,
    signal: bool,
    augmented: bool,
    code_align: u64,
    data_align: i64,
    instructions: (usize, usize),
}

impl Cie {
    fn parse(bytes: Bytes, at: usize) -> Option<Cie> {
        let mut cursor = Cursor::new(bytes, at, usize::MAX);
        let length: u32 = cursor.take()?;
        if length == 0 || length == u32::MAX {
            return None;
        }
        cursor.end = cursor.at.checked_add(length as usize)?.min(bytes.end);
        let id: u32 = cursor.take()?;
        let version: u8 = cursor.take()?;
        if id != 0 || (version != 1 && version != 3) {
            return None;
        }
        let augmentation = cursor.at;
        while cursor.take::<u8>()? != 0 {}
        let code_align = cursor.uleb()?;
        let data_align = cursor.sleb()?;
        let return_register = if version == 1 { u64::from(cursor.take::<u8>()?) } else { cursor.uleb()? };
        if return_register != DWARF_RA {
            return None;
        }
        let mut cie = Cie {
            encoding: 0,
            signal: false,
            augmented: false,
            code_align,
            data_align,
            instructions: (cursor.at, cursor.end),
        };
        let mut letters = Cursor::new(bytes, augmentation, usize::MAX);
        if letters.take::<u8>()? != b'z' {
            return Some(cie);
        }
        cie.augmented = true;
        let length = usize::try_from(cursor.uleb()?).ok()?;
        let after = cursor.at.checked_add(length)?;
        loop {
            match letters.take::<u8>()? {
                0 => break,
                b'R' => cie.encoding = cursor.take()?,
                b'L' => cursor.skip(1)?,
                b'P' => {
                    let encoding: u8 = cursor.take()?;
                    cursor.encoded(encoding & 0x0f, 0)?;
                }
                b'S' => cie.signal = true,
                b'B' => {}
                _ => return None,
            }
        }
        cie.instructions = (after, cursor.end);
        Some(cie)
    }
}

/// Where the frame pointer of the caller is.
#[derive(Clone, Copy)]
enum BpPlace {
    Same,
    AtCfa(i64),
    AtBp(i64),
    Unknown,
}

/// What the canonical frame address is.
#[derive(Clone, Copy)]
enum CfaPlace {
    Register(u64, i64),
    AtRegister(u64, i64),
    Unknown,
}

#[derive(Clone, Copy)]
struct Row {
    cfa: CfaPlace,
    bp: BpPlace,
    /// Offset of the return address from the CFA; none = there is no caller.
    ra: Option<i64>,
}

impl Row {
    const START: Row = Row { cfa: CfaPlace::Unknown, bp: BpPlace::Same, ra: Some(-8) };

    fn rule(self) -> Option<Rule> {
        match self.ra {
            None => return Some(Rule::END),
            Some(-8) => {}
            Some(_) => return None,
        }
        let (cfa, offset) = match self.cfa {
            CfaPlace::Register(DWARF_SP, n) => (Cfa::Sp, n),
            CfaPlace::Register(DWARF_BP, n) => (Cfa::Bp, n),
            CfaPlace::AtRegister(DWARF_BP, n) => (Cfa::AtBp, n),
            CfaPlace::AtRegister(DWARF_SP, n) => (Cfa::AtSp, n),
            _ => return None,
        };
        let (bp, bp_offset) = match self.bp {
            BpPlace::Same => (Bp::Same, 0),
            BpPlace::AtCfa(n) => (Bp::AtCfa, n),
            BpPlace::AtBp(n) => (Bp::AtOwn, n),
            BpPlace::Unknown => (Bp::Unknown, 0),
        };
        if bp_offset % 8 != 0 || bp_offset.abs() >= 64 << 20 {
            return None;
        }
        Some(Rule { cfa, cfa_offset: i32::try_from(offset).ok()?, bp, bp_offset: bp_offset as i32 })
    }
}

struct Machine {
    row: Row,
    initial: Row,
    saved: [Row; 8],
    depth: usize,
    location: usize,
    code_align: u64,
    data_align: i64,
}

impl Machine {
    /// Runs instructions until the row that covers `pc` is complete.
    fn run(&mut self, bytes: Bytes, (start, end): (usize, usize), pc: usize) -> Option<()> {
        let mut cursor = Cursor::new(bytes, start, end);
        while cursor.at < cursor.end {
            let opcode: u8 = cursor.take()?;
            let low = u64::from(opcode & 0x3f);
            let advance = match (opcode >> 6, opcode) {
                (1, _) => low,
                (2, _) => {
                    let offset = cursor.uleb()? as i64;
                    self.saved_at(low, offset.checked_mul(self.data_align)?);
                    0
                }
                (3, _) => {
                    self.restore(low);
                    0
                }
                (_, 0x00) => 0,
                (_, 0x01) => {
                    // DW_CFA_set_loc: not used by any current compiler for x86-64.
                    return None;
                }
                (_, 0x02) => u64::from(cursor.take::<u8>()?),
                (_, 0x03) => u64::from(cursor.take::<u16>()?),
                (_, 0x04) => u64::from(cursor.take::<u32>()?),
                (_, other) => {
                    self.extended(bytes, &mut cursor, other)?;
                    0
                }
            };
            if advance != 0 {
                let step = advance.checked_mul(self.code_align)?;
                self.location = self.location.checked_add(usize::try_from(step).ok()?)?;
                if self.location > pc {
                    return Some(());
                }
            }
        }
        Some(())
    }

    fn extended(&mut self, bytes: Bytes, cursor: &mut Cursor, opcode: u8) -> Option<()> {
        match opcode {
            // offset_extended, offset_extended_sf, val_offset, val_offset_sf
            0x05 => {
                let (register, offset) = (cursor.uleb()?, cursor.uleb()? as i64);
                self.saved_at(register, offset.checked_mul(self.data_align)?);
            }
            0x11 => {
                let (register, offset) = (cursor.uleb()?, cursor.sleb()?);
                self.saved_at(register, offset.checked_mul(self.data_align)?);
            }
            0x14 | 0x15 => {
                let register = cursor.uleb()?;
                cursor.uleb()?;
                self.lose(register);
            }
            0x06 => {
                let register = cursor.uleb()?;
                self.restore(register);
            }
            // undefined: for the return address, the outermost frame
            0x07 => match cursor.uleb()? {
                DWARF_RA => self.row.ra = None,
                DWARF_BP => self.row.bp = BpPlace::Unknown,
                _ => {}
            },
            // same_value
            0x08 => {
                if cursor.uleb()? == DWARF_BP {
                    self.row.bp = BpPlace::Same;
                }
            }
            // register
            0x09 => {
                let register = cursor.uleb()?;
                cursor.uleb()?;
                self.lose(register);
            }
            // remember_state, restore_state
            0x0a => {
                *self.saved.get_mut(self.depth)? = self.row;
                self.depth += 1;
            }
            0x0b => {
                self.depth = self.depth.checked_sub(1)?;
                self.row = *self.saved.get(self.depth)?;
            }
            // def_cfa, def_cfa_sf, def_cfa_register, def_cfa_offset, def_cfa_offset_sf
            0x0c => self.row.cfa = CfaPlace::Register(cursor.uleb()?, cursor.uleb()? as i64),
            0x12 => {
                let (register, offset) = (cursor.uleb()?, cursor.sleb()?);
                self.row.cfa = CfaPlace::Register(register, offset.checked_mul(self.data_align)?);
            }
            0x0d => {
                let register = cursor.uleb()?;
                if let CfaPlace::Register(place, _) = &mut self.row.cfa {
                    *place = register;
                }
            }
            0x0e => self.set_cfa_offset(cursor.uleb()? as i64),
            0x13 => {
                let offset = cursor.sleb()?.checked_mul(self.data_align)?;
                self.set_cfa_offset(offset);
            }
            // def_cfa_expression
            0x0f => {
                let length = usize::try_from(cursor.uleb()?).ok()?;
                let end = cursor.at.checked_add(length)?;
                self.row.cfa = cfa_expression(Cursor::new(bytes, cursor.at, end), self.location);
                cursor.skip(length)?;
            }
            // expression, val_expression
            0x10 | 0x16 => {
                let register = cursor.uleb()?;
                let length = usize::try_from(cursor.uleb()?).ok()?;
                let end = cursor.at.checked_add(length)?;
                let mut expression = Cursor::new(bytes, cursor.at, end);
                if register == DWARF_BP && opcode == 0x10 {
                    self.row.bp = bp_expression(&mut expression);
                } else {
                    self.lose(register);
                }
                cursor.skip(length)?;
            }
            // GNU_args_size
            0x2e => {
                cursor.uleb()?;
            }
            _ => return None,
        }
        Some(())
    }

    fn set_cfa_offset(&mut self, offset: i64) {
        if let CfaPlace::Register(_, place) = &mut self.row.cfa {
            *place = offset;
        }
    }
    fn saved_at(&mut self, register: u64, offset: i64) {
        match register {
            DWARF_BP => self.row.bp = BpPlace::AtCfa(offset),
            DWARF_RA => self.row.ra = Some(offset),
            _ => {}
        }
    }
    fn restore(&mut self, register: u64) {
        match register {
            DWARF_BP => self.row.bp = self.initial.bp,
            DWARF_RA => self.row.ra = self.initial.ra,
            _ => {}
        }
    }
    fn lose(&mut self, register: u64) {
        match register {
            DWARF_BP => self.row.bp = BpPlace::Unknown,
            // An address that cannot be found gives no rule.
            DWARF_RA => self.row.ra = Some(0),
            _ => {}
        }
    }
}

const OP_DEREF: u8 = 0x06;
const OP_BREG0: u8 = 0x70;
const OP_BREG31: u8 = 0x8f;

/// Understands `breg N; deref` (realigned stacks) and `breg N`. The linker's expression for PLT entries
/// computes `sp + 8`, plus 8 in an entry's second half; no call is ever made from a PLT entry, so a return
/// address never lies in one.
fn cfa_expression(mut cursor: Cursor, _location: usize) -> CfaPlace {
    let mut parse = || -> Option<CfaPlace> {
        let opcode: u8 = cursor.take()?;
        if !(OP_BREG0..=OP_BREG31).contains(&opcode) {
            return None;
        }
        let register = u64::from(opcode - OP_BREG0);
        let offset = cursor.sleb()?;
        if cursor.at == cursor.end {
            return Some(CfaPlace::Register(register, offset));
        }
        let deref: u8 = cursor.take()?;
        (deref == OP_DEREF && cursor.at == cursor.end).then_some(CfaPlace::AtRegister(register, offset))
    };
    parse().unwrap_or(CfaPlace::Unknown)
}

/// Understands `breg rbp, n`: the frame pointer is saved at `bp + n`.
fn bp_expression(cursor: &mut Cursor) -> BpPlace {
    let mut parse = || -> Option<BpPlace> {
        let opcode: u8 = cursor.take()?;
        let offset = cursor.sleb()?;
        (u64::from(opcode.checked_sub(OP_BREG0)?) == DWARF_BP && cursor.at == cursor.end)
            .then_some(BpPlace::AtBp(offset))
    };
    parse().unwrap_or(BpPlace::Unknown)
}

#[cfg(test)]
mod tests;
