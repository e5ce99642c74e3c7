//! Oracle: gimli's evaluation of the same tables, compared by what the rules do to a simulated stack.

use super::{Bytes, find_rule};
use crate::arch::{DWARF_BP, DWARF_RA, DWARF_SP, SIGNAL_BP, SIGNAL_PC, SIGNAL_SP};
use crate::unwind::rule::{Bp, Cfa, Rule};
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, EhFrameHdr, Encoding, EndianSlice, EvaluationResult, Format,
    FrameDescriptionEntry, LittleEndian, Register, RegisterRule, UnwindContext, UnwindExpression,
    UnwindSection, UnwindTableRow, Value,
};
use std::boxed::Box;
use std::path::{Path, PathBuf};
use std::vec::Vec;
use std::{eprintln, format, vec};

type Reader<'a> = EndianSlice<'a, LittleEndian>;
type Row = UnwindTableRow<usize>;
type RaRule = RegisterRule<usize>;

/// FDEs looked at per module; larger modules are sampled evenly.
const MOST_FDES: usize = 12_000;

/// A file's segments at their distances from each other, as the loader would place them.
struct Image {
    memory: Box<[u8]>,
    header: usize,
}

impl Image {
    fn load(path: &Path) -> Option<Image> {
        let file = std::fs::read(path).ok()?;
        let u16_at = |at: usize| Some(u16::from_le_bytes(file.get(at..at + 2)?.try_into().ok()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(file.get(at..at + 8)?.try_into().ok()?) as usize);
        if file.get(..5)? != b"\x7fELF\x02" {
            return None;
        }
        let (table, size, count) = (u64_at(32)?, u16_at(54)?, u16_at(56)?);
        let headers = || (0..usize::from(count)).map(|index| table + index * usize::from(size));
        let loads: Vec<usize> = headers().filter(|&at| u32_at(at) == Some(1)).collect();
        let low = loads.iter().filter_map(|&at| u64_at(at + 16)).min()?;
        let high = loads.iter().filter_map(|&at| Some(u64_at(at + 16)? + u64_at(at + 40)?)).max()?;
        let mut memory = vec![0u8; high - low].into_boxed_slice();
        for at in loads {
            let (offset, address, length) = (u64_at(at + 8)?, u64_at(at + 16)?, u64_at(at + 32)?);
            memory[address - low..][..length].copy_from_slice(&file[offset..][..length]);
        }
        let header = headers().find(|&at| u32_at(at) == Some(0x6474_e550))?;
        let header = memory.as_ptr() as usize + u64_at(header + 16)? - low;
        Some(Image { memory, header })
    }

    fn start(&self) -> usize {
        self.memory.as_ptr() as usize
    }

    fn bytes(&self) -> Bytes {
        // SAFETY: the image's own memory.
        unsafe { Bytes::new(self.start(), self.start() + self.memory.len()) }
    }

    /// From `address` to the end of the image.
    fn slice(&self, address: usize) -> Reader<'_> {
        EndianSlice::new(&self.memory[address - self.start()..], LittleEndian)
    }

    fn rule(&self, pc: usize) -> Option<Rule> {
        find_rule(self.bytes(), self.header, pc)
    }
}

/// What a rule makes of a frame: (canonical frame address, caller's frame pointer, return address).
/// A register that cannot be recovered is none.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Caller {
    cfa: u64,
    bp: Option<u64>,
    ra: Option<u64>,
}

/// Registers of a simulated frame; its memory holds a hash of each address.
#[derive(Clone, Copy)]
struct Machine {
    sp: u64,
    bp: u64,
    pc: u64,
}

const MACHINES: [(u64, u64); 2] =
    [(0x7ffd_0000_1000, 0x7ffd_0000_5340), (0x7ffd_1234_5678, 0x7ffd_1234_5670)];

fn memory(address: u64) -> u64 {
    let mixed = (address ^ 0x5bd1_e995_1234_5678).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^ (mixed >> 29)
}

impl Machine {
    /// What ours does.
    fn apply(self, rule: Rule) -> Caller {
        let at = |base: u64, offset: i32| base.wrapping_add(offset as i64 as u64);
        let cfa = match rule.cfa {
            Cfa::None => return Caller { cfa: 0, bp: None, ra: None },
            Cfa::Sp => at(self.sp, rule.cfa_offset),
            Cfa::Bp | Cfa::FramePointer => at(self.bp, rule.cfa_offset),
            Cfa::AtBp => memory(at(self.bp, rule.cfa_offset)),
            Cfa::AtSp => memory(at(self.sp, rule.cfa_offset)),
            Cfa::Signal => {
                return Caller {
                    cfa: memory(self.sp.wrapping_add(SIGNAL_SP as u64)),
                    bp: Some(memory(self.sp.wrapping_add(SIGNAL_BP as u64))),
                    ra: Some(memory(self.sp.wrapping_add(SIGNAL_PC as u64))),
                };
            }
        };
        let bp = match rule.bp {
            Bp::Same => Some(self.bp),
            Bp::AtCfa => Some(memory(at(cfa, rule.bp_offset))),
            Bp::AtOwn => Some(memory(at(self.bp, rule.bp_offset))),
            Bp::Unknown => None,
        };
        Caller { cfa, bp, ra: Some(memory(cfa.wrapping_sub(8))) }
    }

    fn register(self, register: Register) -> Option<u64> {
        match u64::from(register.0) {
            DWARF_SP => Some(self.sp),
            DWARF_BP => Some(self.bp),
            DWARF_RA => Some(self.pc),
            _ => None,
        }
    }

    /// None if another register's value is needed.
    fn evaluate(
        self,
        section: &EhFrame<Reader<'_>>,
        expression: UnwindExpression<usize>,
        cfa: Option<u64>,
    ) -> Option<u64> {
        let encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };
        let mut evaluation = expression.get(section).ok()?.evaluation(encoding);
        if let Some(cfa) = cfa {
            evaluation.set_initial_value(cfa);
        }
        evaluation.set_max_iterations(1000);
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                    evaluation.resume_with_memory(Value::Generic(memory(address))).ok()?
                }
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register)?)).ok()?
                }
                _ => return None,
            };
        }
        match evaluation.as_result().first()?.location {
            gimli::Location::Address { address } => Some(address),
            _ => None,
        }
    }

    /// What gimli does; none if that takes more than these three registers.
    fn oracle(self, section: &EhFrame<Reader<'_>>, row: &Row) -> Option<Caller> {
        let ra_rule = row.register(Register(DWARF_RA as u16));
        if ra_rule == Some(RegisterRule::Undefined) {
            return Some(Caller { cfa: 0, bp: None, ra: None });
        }
        let cfa = match *row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => {
                self.register(register)?.wrapping_add(offset as u64)
            }
            CfaRule::Expression(expression) => self.evaluate(section, expression, None)?,
        };
        let value = |rule: RaRule, own: u64| match rule {
            RegisterRule::SameValue => Some(own),
            RegisterRule::Offset(n) => Some(memory(cfa.wrapping_add(n as u64))),
            RegisterRule::ValOffset(n) => Some(cfa.wrapping_add(n as u64)),
            RegisterRule::Register(register) => self.register(register),
            RegisterRule::Expression(e) => self.evaluate(section, e, Some(cfa)).map(memory),
            RegisterRule::ValExpression(e) => self.evaluate(section, e, Some(cfa)),
            _ => None,
        };
        let bp = row.register(Register(DWARF_BP as u16)).unwrap_or(RegisterRule::SameValue);
        Some(Caller { cfa, bp: value(bp, self.bp), ra: Some(value(ra_rule?, self.pc)?) })
    }
}

/// Whether the row is one of the ordinary kind, for which there must be a rule.
fn is_ordinary(row: &Row) -> bool {
    let cfa = matches!(*row.cfa(), CfaRule::RegisterAndOffset { register, .. }
        if [DWARF_SP, DWARF_BP].contains(&u64::from(register.0)));
    let ra = row.register(Register(DWARF_RA as u16)) == Some(RegisterRule::Offset(-8));
    let bp = match row.register(Register(DWARF_BP as u16)) {
        None | Some(RegisterRule::SameValue) => true,
        Some(RegisterRule::Offset(n)) => n % 8 == 0,
        _ => false,
    };
    cfa && ra && bp
}

#[derive(Debug, Default)]
struct Counts {
    fdes: usize,
    checked: usize,
    without_rule: usize,
    lost_bp: usize,
}

struct Check<'a> {
    image: &'a Image,
    section: EhFrame<Reader<'a>>,
    bases: BaseAddresses,
}

impl<'a> Check<'a> {
    fn new(image: &'a Image) -> Check<'a> {
        let bases = BaseAddresses::default().set_eh_frame_hdr(image.header as u64);
        let header = EhFrameHdr::new(image.slice(image.header).slice(), LittleEndian);
        let header = header.parse(&bases, 8).expect("a readable .eh_frame_hdr");
        let gimli::Pointer::Direct(section) = header.eh_frame_ptr() else {
            panic!("an indirect pointer to .eh_frame")
        };
        let bases = bases.set_eh_frame(section);
        let mut section = EhFrame::new(image.slice(section as usize).slice(), LittleEndian);
        section.set_address_size(8);
        Check { image, section, bases }
    }

    fn fdes(&self) -> Vec<FrameDescriptionEntry<Reader<'a>>> {
        let mut all = Vec::new();
        let mut entries = self.section.entries(&self.bases);
        while let Ok(Some(entry)) = entries.next() {
            if let CieOrFde::Fde(partial) = entry
                && let Ok(fde) = partial.parse(EhFrame::cie_from_offset)
                && fde.len() > 0
            {
                all.push(fde);
            }
        }
        all
    }

    fn module(&self) -> Counts {
        let mut counts = Counts::default();
        let fdes = self.fdes();
        let stride = fdes.len().div_ceil(MOST_FDES).max(1);
        let mut context = UnwindContext::new();
        for fde in fdes.iter().step_by(stride) {
            counts.fdes += 1;
            let mut rows = match fde.rows(&self.section, &self.bases, &mut context) {
                Ok(rows) => rows,
                // Two initial rows etc.: what gimli cannot read may be refused.
                Err(_) => continue,
            };
            while let Ok(Some(row)) = rows.next_row() {
                let (start, end) = (row.start_address(), row.end_address().min(fde.end_address()));
                if start >= end {
                    continue;
                }
                let mut pcs = vec![start, start + (end - start) / 2, end - 1];
                pcs.dedup();
                for pc in pcs {
                    self.row(fde, row, pc, &mut counts);
                }
            }
        }
        counts
    }

    fn row(&self, fde: &FrameDescriptionEntry<Reader<'a>>, row: &Row, pc: u64, counts: &mut Counts) {
        counts.checked += 1;
        let place =
            || format!("at {:#x} in {:#x}..{:#x}: {row:?}", pc, fde.initial_address(), fde.end_address());
        let Some(rule) = self.image.rule(pc as usize) else {
            counts.without_rule += 1;
            assert!(!is_ordinary(row), "no rule {}", place());
            return;
        };
        assert_eq!(rule.cfa == Cfa::Signal, fde.is_signal_trampoline(), "{rule:?} {}", place());
        for (sp, bp) in MACHINES {
            let machine = Machine { sp, bp, pc };
            let ours = machine.apply(rule);
            let expected = machine.oracle(&self.section, row);
            let expected =
                expected.unwrap_or_else(|| panic!("{rule:?} for what it cannot express {}", place()));
            assert_eq!((ours.cfa, ours.ra), (expected.cfa, expected.ra), "{rule:?} {}", place());
            if rule.bp == Bp::Unknown && rule.cfa != Cfa::Signal {
                counts.lost_bp += 1;
                assert!(!is_ordinary(row), "{rule:?} {}", place());
            } else {
                assert_eq!(ours.bp, expected.bp, "{rule:?} {}", place());
            }
        }
        assert_eq!(Rule::unpack(rule.pack()), rule);
    }
}

/// Checks a module if it is there.
fn check(path: &Path) -> Option<Counts> {
    let image = Image::load(path)?;
    let counts = Check::new(&image).module();
    eprintln!("{}: {counts:?}", path.display());
    assert!(counts.checked > 0 && counts.without_rule * 10 < counts.checked, "{counts:?}");
    Some(counts)
}

/// Paths of the modules loaded here whose names contain `part`.
fn loaded(part: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("own maps");
    let path =
        maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| path.contains(part));
    PathBuf::from(path.unwrap_or_else(|| panic!("{part} is loaded")))
}

#[test]
fn rules_of_the_c_library_agree_with_gimli() {
    check(&loaded("libc.so.6")).expect("libc can be read");
}

#[test]
fn rules_of_the_loader_agree_with_gimli() {
    check(&loaded("ld-linux")).expect("the loader can be read");
}

#[test]
fn rules_of_libgcc_agree_with_gimli() {
    check(&loaded("libgcc_s")).expect("libgcc can be read");
}

#[test]
fn rules_of_this_program_agree_with_gimli() {
    check(&std::env::current_exe().expect("own path")).expect("this program can be read");
}

#[test]
fn rules_of_other_programs_and_libraries_agree_with_gimli() {
    let beside_libc = loaded("libc.so.6");
    let directory = beside_libc.parent().expect("a directory");
    let names = ["libstdc++.so.6", "libcrypto.so.3", "libssl.so.3", "libpython3.11.so.1.0", "libm.so.6"];
    let libraries = names.iter().map(|name| directory.join(name));
    let programs = ["/usr/bin/git", "/usr/bin/python3", "/usr/bin/perl", "/bin/bash", "/usr/bin/gdb"];
    let checked = libraries.chain(programs.iter().map(PathBuf::from)).filter_map(|path| check(&path)).count();
    assert!(checked >= 2, "only {checked} modules were found");
}

/// A table that was damaged may give wrong rules, but must be read without a panic, an endless loop or a read
/// outside of the module.
#[test]
fn damaged_tables_are_read_without_harm() {
    let mut image = Image::load(&loaded("libgcc_s")).expect("libgcc can be read");
    let starts: Vec<u64> = Check::new(&image).fdes().iter().map(|fde| fde.initial_address()).collect();
    let section = image.header - image.start();
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let pristine = image.memory.clone();
    let mut answers = 0;
    for _ in 0..300 {
        // The tables follow their header.
        let damage = 1 + next() as usize % 64;
        for _ in 0..damage {
            let at = section + next() as usize % (image.memory.len() - section);
            image.memory[at] = next() as u8;
        }
        for _ in 0..50 {
            let pc = starts[next() as usize % starts.len()] + next() % 64;
            answers += usize::from(image.rule(pc as usize).is_some());
        }
        if next().is_multiple_of(8) {
            image.memory.copy_from_slice(&pristine);
        }
    }
    assert!(answers > 0);
}

#[test]
fn addresses_outside_of_all_functions_have_no_rule() {
    let image = Image::load(&loaded("libc.so.6")).expect("libc can be read");
    let fdes = Check::new(&image).fdes();
    let mut ranges: Vec<(u64, u64)> =
        fdes.iter().map(|fde| (fde.initial_address(), fde.end_address())).collect();
    ranges.sort_unstable();
    assert_eq!(image.rule(ranges[0].0 as usize - 1), None);
    assert_eq!(image.rule(ranges[ranges.len() - 1].1 as usize), None);
    let mut gaps = 0;
    for pair in ranges.windows(2) {
        if pair[0].1 < pair[1].0 {
            gaps += 1;
            assert_eq!(image.rule(pair[0].1 as usize), None, "{pair:x?}");
        }
    }
    assert!(gaps > 100, "{gaps} gaps");
}
