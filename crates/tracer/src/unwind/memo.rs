//! Whole walks, remembered by where they start.
//!
//! A program that allocates in a loop comes by the same few stacks again and again, each from the same call at the
//! same depth. For each such start one walk is kept as the list of words that it read: if they all still read the
//! same, the walk would give the same stack. That is exact for the reason given in `walker`, and costs one comparison
//! per word.

use super::Registers;
use super::walker::Walked;

const WALKS: usize = 256;
const WORDS: usize = 96;
/// A start that leads to ever new stacks replaces its walk only once in so many times.
const RELUCTANCE: u32 = 64;

/// A word that a walk depended on: its address and value.
type Word = (usize, usize);

struct Walk {
    start: Registers,
    /// Whether the frame pointer at the start decides about the walk.
    uses_bp: bool,
    count: u16,
    generation: u32,
    walked: Walked,
    words: [Word; WORDS],
}

/// A thread's remembered walks. All zero is a valid value.
pub(super) struct Memo {
    asked: u32,
    walks: [Walk; WALKS],
}

fn index_of(start: Registers) -> usize {
    let mixed = (start.pc as u64 ^ (start.sp as u64).rotate_left(20)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed >> 40) as usize % WALKS
}

impl Memo {
    /// Forgets all: a new thread has another stack.
    pub(super) fn clear(&mut self) {
        for walk in &mut self.walks {
            walk.start = Registers::default();
        }
    }

    /// The stack of a walk from `start`, if it was remembered and would go the same way.
    ///
    /// # Safety
    /// `start` must be the registers of the hook's caller, on the stack that remembered walks were made on.
    #[inline(always)]
    pub(super) unsafe fn find(&self, start: Registers, generation: u32) -> Option<Walked> {
        let walk = self.walks.get(index_of(start))?;
        let same_start = walk.start.pc == start.pc
            && walk.start.sp == start.sp
            && (!walk.uses_bp || walk.start.bp == start.bp)
            && walk.generation == generation;
        if !same_start {
            return None;
        }
        let words = walk.words.get(..usize::from(walk.count))?;
        // SAFETY: all addresses lie above the stack pointer of the start, which is the present one, on the thread's
        // own stack.
        let unchanged = words.iter().all(|&(at, value)| unsafe { *(at as *const usize) } == value);
        unchanged.then_some(walk.walked)
    }

    /// Whether a walk from `start` should be remembered now.
    #[inline(always)]
    pub(super) fn wants(&mut self, start: Registers) -> bool {
        self.asked = self.asked.wrapping_add(1);
        let contested = self
            .walks
            .get(index_of(start))
            .is_some_and(|walk| walk.start.pc == start.pc && walk.start.sp == start.sp);
        !contested || self.asked.is_multiple_of(RELUCTANCE)
    }

    /// Remembers a walk, if it fits. `words` yields what it read; none means that it depends on more than words
    /// (see `Needs::Memory`).
    pub(super) fn store(
        &mut self,
        start: Registers,
        uses_bp: bool,
        generation: u32,
        walked: Walked,
        words: impl Iterator<Item = Word>,
    ) {
        let Some(walk) = self.walks.get_mut(index_of(start)) else { return };
        // Invalid until all words are there.
        walk.start = Registers::default();
        let mut count = 0;
        for word in words {
            let Some(place) = walk.words.get_mut(count) else { return };
            *place = word;
            count += 1;
        }
        walk.count = count as u16;
        walk.uses_bp = uses_bp;
        walk.generation = generation;
        walk.walked = walked;
        walk.start = start;
    }
}
