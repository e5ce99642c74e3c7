//! Which function's frame a place on a thread's stack belongs to: each stack is unwound once, by the unwind tables that
//! lie in the process's own memory.

use crate::modules::word;
use crate::segments::{EH_FRAME, LOAD, segments};
use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{ExplicitModuleSectionInfo, FrameAddress, Unwinder};
use leakscope_profile::Module;
use leakscope_target::{Memory, Registers};
use std::collections::HashSet;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Frames that are told apart on one stack; of a deeper recursion the rest has no names.
const MOST_FRAMES: usize = 512;
/// The largest unwind table that is read.
const MOST_TABLE: u64 = 64 << 20;

/// A frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StackFrame {
    /// Where it lies.
    pub(crate) range: Range<u64>,
    /// An address in its function: the next instruction.
    pub(crate) pc: u64,
}

type Bytes = std::sync::Arc<[u8]>;

/// Unwinds stacks; reads each module's table when it is first needed.
pub(crate) struct Stacks<'a> {
    memory: &'a dyn Memory,
    modules: &'a [Module],
    added: HashSet<u64>,
    unwinder: UnwinderX86_64<Bytes>,
    cache: CacheX86_64,
}

impl<'a> Stacks<'a> {
    pub(crate) fn new(memory: &'a dyn Memory, modules: &'a [Module]) -> Stacks<'a> {
        Stacks {
            memory,
            modules,
            added: HashSet::new(),
            unwinder: UnwinderX86_64::new(),
            cache: CacheX86_64::new(),
        }
    }

    /// The frames of a thread, innermost first; as many as can be told.
    pub(crate) fn frames(&mut self, registers: &Registers) -> Vec<StackFrame> {
        let mut frames = Vec::new();
        // The tables are another process's, and the parser is not ours: a panic costs the rest of the names.
        _ = catch_unwind(AssertUnwindSafe(|| self.unwind(registers, &mut frames)));
        frames
    }

    fn unwind(&mut self, registers: &Registers, frames: &mut Vec<StackFrame>) {
        let mut known = UnwindRegsX86_64::new(registers.pc, registers.sp, registers.bp);
        let mut address = FrameAddress::from_instruction_pointer(registers.pc);
        while frames.len() < MOST_FRAMES {
            self.add_module(address.address());
            let start = known.sp();
            let memory = self.memory;
            let mut read = |at: u64| memory.word(at).ok_or(());
            let caller = self.unwinder.unwind_frame(address, &mut known, &mut self.cache, &mut read);
            let Ok(Some(caller)) = caller else {
                // The outermost function, or one without a table: its frame has no known end, but begins here.
                frames.push(StackFrame { range: start..start, pc: address.address() });
                return;
            };
            if known.sp() <= start {
                return;
            }
            frames.push(StackFrame { range: start..known.sp(), pc: address.address() });
            let Some(next) = FrameAddress::from_return_address(caller) else { return };
            address = next;
        }
    }

    /// Makes the module that holds `pc` known.
    fn add_module(&mut self, pc: u64) {
        let Some(module) = self.modules.iter().find(|module| (module.start..module.end).contains(&pc)) else {
            return;
        };
        if !self.added.insert(module.start) {
            return;
        }
        if let Some(sections) = self.sections(module) {
            let name = String::new();
            let range = module.start..module.end;
            self.unwinder.add_module(framehop::Module::new(name, range, module.bias, sections));
        }
    }

    fn sections(&self, module: &Module) -> Option<ExplicitModuleSectionInfo<Bytes>> {
        let segments = segments(self.memory, module);
        let index = segments.iter().find(|segment| segment.kind == EH_FRAME)?;
        let header = self.read(index.address, index.size)?;
        // version, encoding of the pointer to .eh_frame (Linux Standard Base, 10.6.2): 4 bytes from here, in practice.
        let (version, encoding) = (*header.first()?, *header.get(1)?);
        if version != 1 || encoding != 0x1b {
            return None;
        }
        let offset = i32::from_ne_bytes(header.get(4..8)?.try_into().ok()?);
        let table = index.address.wrapping_add(4).wrapping_add_signed(i64::from(offset));
        // How long it is does not stand there; not beyond its segment.
        let load = segments.iter().find(|segment| {
            segment.kind == LOAD && table.checked_sub(segment.address).is_some_and(|at| at < segment.size)
        })?;
        let length = load.address.wrapping_add(load.size).wrapping_sub(table);
        let eh_frame = self.read(table, length)?;
        // Addresses as in the file, which is where `module.bias` takes them from.
        let in_file = |address: u64, bytes: &Bytes| {
            let start = address.wrapping_sub(module.bias);
            Some(start..start.checked_add(bytes.len() as u64)?)
        };
        Some(ExplicitModuleSectionInfo {
            base_svma: 0,
            eh_frame_hdr_svma: in_file(index.address, &header),
            eh_frame_svma: in_file(table, &eh_frame),
            eh_frame_hdr: Some(header),
            eh_frame: Some(eh_frame),
            ..ExplicitModuleSectionInfo::default()
        })
    }

    fn read(&self, address: u64, length: u64) -> Option<Bytes> {
        let mut bytes = vec![0; usize::try_from(length.min(MOST_TABLE)).ok()?];
        let read = self.memory.read(address, &mut bytes);
        bytes.truncate(read);
        (!bytes.is_empty()).then(|| bytes.into())
    }
}

/// The word at `address`, or 0.
pub(crate) fn word_at(memory: &dyn Memory, address: u64) -> u64 {
    let mut bytes = [0; 8];
    if memory.read_exact(address, &mut bytes) { word(&bytes, 0) } else { 0 }
}
