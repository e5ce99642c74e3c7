//! Whole walks, told apart by one hash over the words that they read.
//!
//! A walk is a pure function of the registers it starts with and the words it reads. From one start (program counter
//! and stack pointer) the words nearly always lie at the same places: the *shape* of the walk. Programs call through
//! function pointers and ever other callers, so the words differ from time to time, and a comparison word by word would
//! mispredict at each difference. Instead all words of the shape are read, without a condition, and summed with
//! a random factor for each place; that hash leads to the stack's number if a walk of this very shape has read these very
//! words before. It is exact up to a collision of 64-bit hashes (multilinear hashing, universal: Carter and Wegman 1979).
//!
//! A start has up to [`WAYS`] shapes, since frames further out may be of other sizes.

use super::{GOLDEN, Registers, scramble};

const SETS: usize = 128;
const WAYS: usize = 4;
/// Words that a shape has room for.
const WORDS: usize = 144;
/// Offsets are in words and have 16 bits; a word further up the stack is beyond a shape's reach.
const REACH: usize = u16::MAX as usize;
const SEEN_SETS: usize = 1024;

/// A random odd factor for each place, and behind them the one for the frame pointer at the start.
static FACTORS: [u64; WORDS + 1] = factors();
const BP_FACTOR: u64 = factors()[WORDS];

const fn factors() -> [u64; WORDS + 1] {
    let mut factors = [0; WORDS + 1];
    let mut index = 0;
    while index < factors.len() {
        factors[index] = random(index as u64 + 1) | 1;
        index += 1;
    }
    factors
}

/// The `number`th output of SplitMix64.
const fn random(number: u64) -> u64 {
    scramble(number.wrapping_mul(GOLDEN))
}

/// The places of the words that a walk from one start reads. All zero: none.
struct Shape {
    /// What its hashes begin with, so that no two shapes share any.
    seed: u64,
    /// All ones if the frame pointer at the start decides about the walk, else zero.
    bp_mask: u64,
    count: u16,
    /// Words above the start's stack pointer (whose own word, the return address below it, is in the key).
    offsets: [u16; WORDS],
}

/// The starts of a set's shapes: one cache line. A program counter of zero is none.
#[repr(align(64))]
struct Keys([(usize, usize); WAYS]);

/// A thread's shapes and what they led to. All zero is a valid value: none.
pub(super) struct Shapes {
    keys: [Keys; SETS],
    shapes: [[Shape; WAYS]; SETS],
    /// Hashes and stack numbers, the newest of a set first.
    seen: [[(u64, u32); WAYS]; SEEN_SETS],
    /// Shapes made.
    made: u64,
}

/// Collects the places of a walk; full or out of reach, it is not kept.
pub(super) struct Places {
    count: usize,
    fits: bool,
    offsets: [u16; WORDS],
}

impl Places {
    pub(super) fn new() -> Places {
        Places { count: 0, fits: true, offsets: [0; WORDS] }
    }

    /// Adds the word at `address`, above `start`'s stack pointer.
    #[inline(always)]
    pub(super) fn push(&mut self, start: Registers, address: usize) {
        let words = address.wrapping_sub(start.sp) / 8;
        match self.offsets.get_mut(self.count) {
            Some(place) if words <= REACH && address >= start.sp => {
                *place = words as u16;
                self.count += 1;
            }
            _ => self.fits = false,
        }
    }
}

fn index_of(start: Registers) -> usize {
    let mixed = (start.pc as u64 ^ (start.sp as u64).rotate_left(20)).wrapping_mul(GOLDEN);
    (mixed >> 40) as usize % SETS
}

impl Shape {
    /// The hash of the words as they are now.
    ///
    /// # Safety
    /// The words must be readable: `start` lies on the stack that the shape was made on, at the same place.
    #[inline(always)]
    unsafe fn hash(&self, start: Registers) -> u64 {
        let count = usize::from(self.count).min(WORDS);
        // Two sums, so that additions wait less for one another.
        let mut even = self.seed.wrapping_add((start.bp as u64 & self.bp_mask).wrapping_mul(BP_FACTOR));
        let mut odd = 0u64;
        let offsets = self.offsets.get(..count).unwrap_or(&[]);
        let factors = FACTORS.get(..count).unwrap_or(&[]);
        let word = |offset: u16| {
            // SAFETY: the caller vouches for it.
            unsafe { *((start.sp + usize::from(offset) * 8) as *const u64) }
        };
        let (pairs, last) = offsets.as_chunks::<2>();
        let (factor_pairs, last_factor) = factors.as_chunks::<2>();
        for (offset, factor) in pairs.iter().zip(factor_pairs) {
            even = even.wrapping_add(word(offset[0]).wrapping_mul(factor[0]));
            odd = odd.wrapping_add(word(offset[1]).wrapping_mul(factor[1]));
        }
        for (offset, factor) in last.iter().zip(last_factor) {
            odd = odd.wrapping_add(word(*offset).wrapping_mul(*factor));
        }
        even.wrapping_add(odd)
    }
}

impl Shapes {
    /// Forgets all: another thread has another stack, an unloaded module other code.
    pub(super) fn clear(&mut self) {
        for keys in &mut self.keys {
            keys.0 = [(0, 0); WAYS];
        }
    }

    /// The number of the stack of a walk from `start`, if one of the same shape has read the same words before.
    ///
    /// # Safety
    /// `start` must be the registers of the hook's caller, on the stack that `learn` was told of walks on.
    #[inline(always)]
    pub(super) unsafe fn find(&self, start: Registers) -> Option<u32> {
        let index = index_of(start);
        let (keys, shapes) = (self.keys.get(index)?, self.shapes.get(index)?);
        for (key, shape) in keys.0.iter().zip(shapes) {
            if *key != (start.pc, start.sp) {
                continue;
            }
            // SAFETY: all words lie above the stack pointer of the start, which is the present one, on the thread's own
            // stack.
            let hash = unsafe { shape.hash(start) };
            let found = self.seen_set(hash).iter().find(|(seen, _)| *seen == hash);
            if let Some(&(_, stack)) = found
                && stack != 0
            {
                return Some(stack);
            }
        }
        None
    }

    /// Notes that a walk from `start`, just made, read these places and gave `stack`.
    ///
    /// # Safety
    /// As for [`Shapes::find`]; the places are words of that stack.
    pub(super) unsafe fn learn(&mut self, start: Registers, uses_bp: bool, places: &Places, stack: u32) {
        if !places.fits || stack == 0 {
            return;
        }
        let index = index_of(start);
        let (Some(keys), Some(shapes)) = (self.keys.get_mut(index), self.shapes.get_mut(index)) else {
            return;
        };
        let bp_mask = if uses_bp { u64::MAX } else { 0 };
        let wanted = places.offsets.get(..places.count).unwrap_or(&[]);
        let same = keys.0.iter().zip(shapes.iter()).position(|(key, shape)| {
            *key == (start.pc, start.sp)
                && shape.bp_mask == bp_mask
                && shape.offsets.get(..usize::from(shape.count)) == Some(wanted)
        });
        let way = same.unwrap_or_else(|| {
            self.made += 1;
            let free = keys.0.iter().position(|key| key.0 == 0);
            free.unwrap_or(self.made as usize % WAYS)
        });
        let (Some(key), Some(shape)) = (keys.0.get_mut(way), shapes.get_mut(way)) else { return };
        if same.is_none() {
            *key = (start.pc, start.sp);
            shape.seed = random(self.made);
            shape.bp_mask = bp_mask;
            shape.count = places.count as u16;
            for (place, &offset) in shape.offsets.iter_mut().zip(wanted) {
                *place = offset;
            }
        }
        // SAFETY: the caller vouches for it.
        let hash = unsafe { shape.hash(start) };
        if let Some(set) = self.seen.get_mut(seen_index(hash)) {
            set.rotate_right(1);
            set[0] = (hash, stack);
        }
    }

    #[inline(always)]
    fn seen_set(&self, hash: u64) -> &[(u64, u32); WAYS] {
        &self.seen[seen_index(hash)]
    }
}

/// The upper bits of a product depend on all bits of its factors.
#[inline(always)]
fn seen_index(hash: u64) -> usize {
    (hash >> (64 - SEEN_SETS.trailing_zeros())) as usize % SEEN_SETS
}
