//! Reading another process's words in large pieces, around what cannot be read.

use crate::ranges;
use leakscope_target::{Mapping, Memory};
use std::ops::Range;

/// Bytes read at once. Fits the second-level cache, from which the words are then taken.
pub(crate) const BUFFER: usize = 256 << 10;
const PAGE: u64 = 4096;
/// Without mappings to tell, a hole longer than this is taken to have no end.
const MAX_HOLE: u64 = 1 << 20;

/// The addresses of words from `from` on; wraps around rather than panics at the end of the address space.
pub(crate) fn places(from: u64) -> impl Iterator<Item = u64> {
    (0u64..).map(move |word| from.wrapping_add(8 * word))
}

/// What may be read, and how a word becomes a pointer.
pub(crate) struct Reader<'a> {
    memory: &'a dyn Memory,
    /// Readable mappings; empty if unknown.
    readable: Vec<Range<u64>>,
    mask: u64,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(memory: &'a dyn Memory, mappings: &[Mapping], mask: u64) -> Reader<'a> {
        let readable = mappings.iter().filter(|mapping| mapping.readable);
        Reader {
            memory,
            readable: ranges::normalize(readable.map(|mapping| mapping.start..mapping.end)),
            mask,
        }
    }

    /// The words in `bytes`, as pointers.
    pub(crate) fn pointers<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = u64> + use<'b> {
        let (words, _) = bytes.as_chunks::<8>();
        let mask = self.mask;
        words.iter().map(move |&word| u64::from_ne_bytes(word) & mask)
    }

    /// A word as a pointer.
    pub(crate) fn pointer(&self, word: u64) -> u64 {
        word & self.mask
    }

    /// What of `range` may be read, if that is known.
    pub(crate) fn readable(&self, range: &Range<u64>) -> Option<impl Iterator<Item = Range<u64>> + use<'_>> {
        (!self.readable.is_empty()).then(|| ranges::within(&self.readable, range))
    }

    /// Hands over what of `range` can be read, in pieces of whole aligned words that fit the buffer.
    pub(crate) fn pieces(&self, range: &Range<u64>, buffer: &mut Vec<u8>, mut take: impl FnMut(u64, &[u8])) {
        let start = range.start.checked_next_multiple_of(8);
        let Some(aligned) = start.map(|start| start..range.end & !7) else { return };
        if self.readable.is_empty() {
            self.mapped(&aligned, buffer, &mut take);
        }
        for part in ranges::within(&self.readable, &aligned) {
            self.mapped(&part, buffer, &mut take);
        }
    }

    fn mapped(&self, range: &Range<u64>, buffer: &mut Vec<u8>, take: &mut impl FnMut(u64, &[u8])) {
        buffer.resize(BUFFER, 0);
        let (mut at, mut hole) = (range.start, 0);
        while at < range.end {
            let length = usize::try_from(range.end - at).map_or(BUFFER, |left| left.min(BUFFER));
            let Some(wanted) = buffer.get_mut(..length) else { return };
            let read = self.memory.read(at, wanted);
            if let Some(bytes) = wanted.get(..read & !7).filter(|bytes| !bytes.is_empty()) {
                take(at, bytes);
                hole = 0;
            }
            at += (read & !7) as u64;
            if read < length {
                // Mappings change and files are truncated: go on behind the page that cannot be read.
                let next = (at / PAGE + 1).saturating_mul(PAGE);
                hole += next - at;
                if self.readable.is_empty() && hole > MAX_HOLE {
                    return;
                }
                at = next;
            }
        }
    }

    /// Reads as much as possible of a range that fits the buffer; words that cannot be read are 0, which is no
    /// pointer.
    pub(crate) fn fill<'b>(
        &self,
        range: &Range<u64>,
        buffer: &'b mut Vec<u8>,
        spare: &mut Vec<u8>,
    ) -> &'b [u8] {
        buffer.resize(BUFFER, 0);
        let length = usize::try_from(range.end - range.start).map_or(BUFFER, |length| length.min(BUFFER));
        let whole = buffer.get_mut(..length).unwrap_or_default();
        if !self.memory.read_exact(range.start, whole) {
            whole.fill(0);
            self.pieces(range, spare, |at, bytes| {
                let from = (at - range.start) as usize;
                if let Some(part) = whole.get_mut(from..from + bytes.len()) {
                    part.copy_from_slice(bytes);
                }
            });
        }
        whole
    }
}
