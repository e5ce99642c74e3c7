//! Pointers into the middle of a block that count like one to its start (memcheck's `--leak-check-heuristics`).

use crate::lookup::Hit;
use crate::words::places;
use crate::{Block, Blocks, ranges};
use leakscope_target::{Mapping, Memory};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const WORD: u64 = 8;
const PAGE: u64 = 4096;

/// A pattern in which compilers and libraries keep only a pointer into the middle of a block. With `b` the start of
/// the block, `p` the pointer and W the size of a word:
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Heuristic {
    /// The old copy-on-write `std::string`: `p = b + 3W`, `3W + b[1] + 1 = size` and `b[0] <= b[1]`.
    StdString,
    /// The length in front, as sqlite keeps it: `p = b + W` and `b[0] = size - W`.
    Length64,
    /// An array with its cookie: `p = b + W`, `b[0] > 0` and `(size - W) % b[0] = 0`.
    NewArray,
    /// A base class that is not the first: both `*p` and `*b` point to tables of virtual functions.
    MultipleInheritance,
}

impl Heuristic {
    /// All, in the order in which they are tried.
    pub const ALL: [Heuristic; 4] =
        [Heuristic::StdString, Heuristic::Length64, Heuristic::NewArray, Heuristic::MultipleInheritance];

    /// Memcheck's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Heuristic::StdString => "stdstring",
            Heuristic::Length64 => "length64",
            Heuristic::NewArray => "newarray",
            Heuristic::MultipleInheritance => "multipleinheritance",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of heuristics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heuristics(u8);

impl Heuristics {
    /// Every one: memcheck's default.
    pub const ALL: Heuristics = Heuristics(0b1111);
    /// None.
    pub const NONE: Heuristics = Heuristics(0);

    /// This set and `heuristic`.
    pub fn with(self, heuristic: Heuristic) -> Heuristics {
        Heuristics(self.0 | heuristic.bit())
    }

    /// This set but `heuristic`.
    pub fn without(self, heuristic: Heuristic) -> Heuristics {
        Heuristics(self.0 & !heuristic.bit())
    }

    /// Whether `heuristic` is in the set.
    pub fn contains(self, heuristic: Heuristic) -> bool {
        self.0 & heuristic.bit() != 0
    }
}

impl Default for Heuristics {
    fn default() -> Heuristics {
        Heuristics::ALL
    }
}

/// How a pointer leads to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Via {
    Start,
    Interior,
    Heuristic(Heuristic),
}

/// Blocks are looked at in groups of so many, once, when the first interior pointer to one of them turns up.
const GROUP: usize = 64;
/// A group's starts are read at once if they lie within so many bytes.
const SPAN: u64 = 64 << 10;

/// Decides [`Via`]. What a block's own first words say is found out once per block and kept.
pub(crate) struct Judge<'a> {
    memory: &'a dyn Memory,
    blocks: &'a Blocks,
    enabled: Heuristics,
    files: Vec<Range<u64>>,
    code: Vec<Range<u64>>,
    /// The heuristics of which a block's first words fulfil their part, for groups that are `known`.
    fits: Vec<AtomicU8>,
    known: Vec<AtomicU64>,
}

/// What one thread remembers.
#[derive(Default)]
pub(crate) struct Scratch {
    tables: HashMap<u64, bool>,
    pages: HashMap<u64, Vec<u8>>,
    bytes: Vec<u8>,
}

/// Bounds of what a thread remembers.
const MAX_TABLES: usize = 1 << 16;
const MAX_PAGES: usize = 128;
/// Words of a table in which two functions must be found.
const TABLE_WORDS: u64 = 20;

impl<'a> Judge<'a> {
    pub(crate) fn new(
        memory: &'a dyn Memory,
        blocks: &'a Blocks,
        mappings: &[Mapping],
        enabled: Heuristics,
    ) -> Judge<'a> {
        let file = |mapping: &&Mapping| mapping.inode != 0;
        let range = |mapping: &Mapping| mapping.start..mapping.end;
        let files = mappings.iter().filter(file).filter(|mapping| mapping.readable).map(range);
        let code = mappings.iter().filter(file).filter(|mapping| mapping.executable).map(range);
        // Fresh zeroes cost no memory until they are written.
        let size = if enabled == Heuristics::NONE { 0 } else { blocks.len() };
        Judge {
            memory,
            blocks,
            enabled,
            files: ranges::normalize(files),
            code: ranges::normalize(code),
            fits: zeroes(size),
            known: zeroes(size.div_ceil(GROUP * 64)),
        }
    }

    /// How `pointer`, which hit a block, leads to it.
    #[inline]
    pub(crate) fn via(&self, pointer: u64, hit: Hit, scratch: &mut Scratch) -> Via {
        if hit.offset == Some(0) {
            return Via::Start;
        }
        if self.enabled == Heuristics::NONE {
            return Via::Interior;
        }
        self.interior(pointer, hit, scratch)
    }

    fn interior(&self, pointer: u64, hit: Hit, scratch: &mut Scratch) -> Via {
        let block = || self.blocks.get(hit.index);
        let Some(offset) = hit.offset.or_else(|| block().map(|block| pointer - block.address)) else {
            return Via::Interior;
        };
        let offset_fits = match offset {
            WORD => Heuristic::Length64.bit() | Heuristic::NewArray.bit(),
            offset if offset == 3 * WORD => Heuristic::StdString.bit(),
            _ => 0,
        };
        let aligned = if pointer.is_multiple_of(WORD) { Heuristic::MultipleInheritance.bit() } else { 0 };
        let candidates = (offset_fits | aligned) & self.enabled.0;
        if candidates == 0 {
            return Via::Interior;
        }
        let fits = candidates & self.fits(hit.index, scratch);
        let found = Heuristic::ALL.into_iter().filter(|heuristic| fits & heuristic.bit() != 0);
        let found = found.into_iter().find(|heuristic| match heuristic {
            Heuristic::MultipleInheritance => {
                let whole = block().is_some_and(|block| block.end().saturating_sub(pointer) >= WORD);
                whole && self.word(pointer, scratch).is_some_and(|word| self.is_table(word, scratch))
            }
            _ => true,
        });
        found.map_or(Via::Interior, Via::Heuristic)
    }

    /// The heuristics of which the first words of a block fulfil their part.
    fn fits(&self, index: usize, scratch: &mut Scratch) -> u8 {
        let group = index / GROUP;
        let known = self.known.get(group / 64);
        if known.is_some_and(|known| known.load(Ordering::Acquire) >> (group % 64) & 1 == 0) {
            // Two threads may do this at once: both write the same.
            self.look_at(group, scratch);
            known.inspect(|known| _ = known.fetch_or(1 << (group % 64), Ordering::Release));
        }
        self.fits.get(index).map_or(0, |fits| fits.load(Ordering::Relaxed))
    }

    fn look_at(&self, group: usize, scratch: &mut Scratch) {
        let first = group * GROUP;
        let members = || self.blocks.iter_from(first).take(GROUP);
        let (Some(start), Some(last)) = (members().next(), members().last()) else { return };
        let span = last.address - start.address;
        let mut bytes = std::mem::take(&mut scratch.bytes);
        bytes.clear();
        if span <= SPAN {
            bytes.resize((span + last.size.min(2 * WORD)) as usize, 0);
            let read = self.memory.read(start.address, &mut bytes);
            bytes.truncate(read);
        }
        for (index, block) in (first..).zip(members()) {
            let mut words = [None, None];
            for (at, word) in (0..block.size / WORD).zip(&mut words) {
                let from = (block.address - start.address).saturating_add(at * WORD);
                let inside = usize::try_from(from).ok().and_then(|from| bytes.get(from..)?.first_chunk());
                *word = match inside {
                    Some(&chunk) => Some(u64::from_ne_bytes(chunk)),
                    None => self.memory.word(block.address.saturating_add(at * WORD)),
                };
            }
            let fits = self.judge(block, words, scratch);
            if fits != 0
                && let Some(known) = self.fits.get(index)
            {
                known.store(fits, Ordering::Relaxed);
            }
        }
        scratch.bytes = bytes;
    }

    fn judge(&self, block: Block, words: [Option<u64>; 2], scratch: &mut Scratch) -> u8 {
        let mut fits = 0;
        if let [Some(length), Some(capacity)] = words
            && length <= capacity
            && capacity.checked_add(3 * WORD + 1) == Some(block.size)
        {
            fits |= Heuristic::StdString.bit();
        }
        if let [Some(first), _] = words {
            // A pointer behind the first word can only be inside if there is more than that word.
            let rest = block.size.saturating_sub(WORD);
            if first != 0 && first == rest {
                fits |= Heuristic::Length64.bit();
            }
            if first != 0 && rest.is_multiple_of(first) {
                fits |= Heuristic::NewArray.bit();
            }
            if self.enabled.contains(Heuristic::MultipleInheritance) && self.is_table(first, scratch) {
                fits |= Heuristic::MultipleInheritance.bit();
            }
        }
        fits & self.enabled.0
    }

    /// The word at a pointer; pages are kept, since the next pointer is often near.
    fn word(&self, address: u64, scratch: &mut Scratch) -> Option<u64> {
        let page = address / PAGE * PAGE;
        if scratch.pages.len() >= MAX_PAGES && !scratch.pages.contains_key(&page) {
            scratch.pages.clear();
        }
        let bytes = scratch.pages.entry(page).or_insert_with(|| {
            let mut bytes = vec![0; PAGE as usize];
            let read = self.memory.read(page, &mut bytes);
            bytes.truncate(read);
            bytes
        });
        match bytes.get((address - page) as usize..).and_then(|rest| rest.first_chunk()) {
            Some(&chunk) => Some(u64::from_ne_bytes(chunk)),
            None => self.memory.word(address),
        }
    }

    /// Whether a table of virtual functions lies at `address`: in a readable mapping of a file, and of its first words
    /// that are not null, the first two lead to code. Anything else before these says no.
    fn is_table(&self, address: u64, scratch: &mut Scratch) -> bool {
        if !address.is_multiple_of(WORD) || address < PAGE || !ranges::holds(&self.files, address) {
            return false;
        }
        if let Some(&known) = scratch.tables.get(&address) {
            return known;
        }
        let mut bytes = [0; (TABLE_WORDS * WORD) as usize];
        let read = self.memory.read(address, &mut bytes);
        let (words, _) = bytes.get(..read).unwrap_or_default().as_chunks::<8>();
        let words = places(address).zip(words.iter().map(|&word| u64::from_ne_bytes(word)));
        let inside = words.take_while(|&(at, _)| ranges::holds(&self.files, at));
        let functions = inside.map(|(_, word)| word).filter(|&word| word != 0);
        let is_table = functions.take(2).filter(|&word| ranges::holds(&self.code, word)).count() == 2;
        if scratch.tables.len() >= MAX_TABLES {
            scratch.tables.clear();
        }
        scratch.tables.insert(address, is_table);
        is_table
    }
}

/// Atomics that are all zero, without touching their memory where the allocator hands out fresh pages.
pub(crate) fn zeroes<T: Zero>(length: usize) -> Vec<T> {
    // An optimized build turns this into one zeroed allocation and no loop.
    vec![T::PLAIN; length].into_iter().map(T::new).collect()
}

/// An atomic integer.
pub(crate) trait Zero: Sized {
    type Plain: Clone;
    const PLAIN: Self::Plain;
    fn new(plain: Self::Plain) -> Self;
}

impl Zero for AtomicU8 {
    type Plain = u8;
    const PLAIN: u8 = 0;
    fn new(plain: u8) -> AtomicU8 {
        AtomicU8::new(plain)
    }
}

impl Zero for AtomicU64 {
    type Plain = u64;
    const PLAIN: u64 = 0;
    fn new(plain: u64) -> AtomicU64 {
        AtomicU64::new(plain)
    }
}
