//! Reading another process's memory: in order through a window, or at random through a cache of pages.

use leakscope_target::Memory;

/// A word of a slice of bytes.
pub(crate) fn word_at(bytes: &[u8], offset: usize) -> Option<u64> {
    let end = offset.checked_add(8)?;
    Some(u64::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

/// Half a word of a slice of bytes.
pub(crate) fn half_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let end = offset.checked_add(4)?;
    Some(u32::from_le_bytes(bytes.get(offset..end)?.try_into().ok()?))
}

/// Bytes from `address` on, as many of `length` as can be read.
pub(crate) fn bytes(memory: &dyn Memory, address: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    let read = memory.read(address, &mut buffer);
    buffer.truncate(read);
    buffer
}

const LARGE: usize = 4 << 20;
const SMALL: usize = 1 << 12;
/// Chunks that are larger than this on average are read header by header: what lies between is more than a system call
/// costs.
const FAR: usize = 1 << 12;

/// Reads chunk headers in the order of addresses.
pub(crate) struct Window<'a> {
    memory: &'a dyn Memory,
    start: u64,
    bytes: Vec<u8>,
    valid: usize,
    hits: u32,
    next: usize,
    parallel: bool,
}

impl<'a> Window<'a> {
    pub(crate) fn new(memory: &'a dyn Memory) -> Window<'a> {
        let parallel = std::thread::available_parallelism().is_ok_and(|count| count.get() > 1);
        Window { memory, start: 0, bytes: Vec::new(), valid: 0, hits: 0, next: SMALL, parallel }
    }

    /// The two words of the chunk header at `address`: the previous chunk's size, and its own size with flags.
    #[inline]
    pub(crate) fn header(&mut self, address: u64) -> Option<(u64, u64)> {
        if let Some(header) = self.present(address) {
            self.hits += 1;
            return Some(header);
        }
        self.next = if (self.hits as usize + 1) * FAR > self.valid {
            (self.next * 4).min(LARGE)
        } else {
            (self.next / 4).max(SMALL)
        };
        self.hits = 0;
        self.start = address;
        self.valid = 0;
        if self.bytes.len() < self.next {
            self.bytes.resize(self.next, 0);
        }
        let wanted = self.bytes.get_mut(..self.next)?;
        self.valid = match self.parallel && wanted.len() == LARGE {
            true => read_halves(self.memory, address, wanted),
            false => self.memory.read(address, wanted),
        };
        self.present(address)
    }

    #[inline]
    fn present(&self, address: u64) -> Option<(u64, u64)> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let end = offset.checked_add(16)?;
        let header: &[u8; 16] = self.bytes.get(..self.valid)?.get(offset..end)?.try_into().ok()?;
        let value = u128::from_le_bytes(*header);
        Some((value as u64, (value >> 64) as u64))
    }
}

/// Reads with two threads: the kernel's copying takes ten times as long as the look at what it copied.
fn read_halves(memory: &dyn Memory, address: u64, buffer: &mut [u8]) -> usize {
    let (first, second) = buffer.split_at_mut(buffer.len() / 2);
    let Some(middle) = address.checked_add(first.len() as u64) else { return memory.read(address, first) };
    let whole = first.len();
    std::thread::scope(|scope| {
        let other = std::thread::Builder::new().spawn_scoped(scope, || memory.read(middle, second));
        let read = memory.read(address, first);
        let rest = other.ok().and_then(|other| other.join().ok()).unwrap_or(0);
        if read == whole { whole + rest } else { read }
    })
}

const PAGE: usize = 1 << 12;
/// Pages kept: 4 MiB, more than the second-level cache of most machines.
const PAGES: usize = 1 << 10;

/// Reads words at random; a list of chunks mostly stays within few pages.
pub(crate) struct Cache<'a> {
    memory: &'a dyn Memory,
    /// Page number + 1 of each slot; 0 for none.
    tags: Vec<u64>,
    lengths: Vec<u16>,
    bytes: Vec<u8>,
}

impl<'a> Cache<'a> {
    pub(crate) fn new(memory: &'a dyn Memory) -> Cache<'a> {
        Cache { memory, tags: vec![0; PAGES], lengths: vec![0; PAGES], bytes: vec![0; PAGES * PAGE] }
    }

    /// The word at `address`, which must be aligned to 8.
    pub(crate) fn word(&mut self, address: u64) -> Option<u64> {
        if !address.is_multiple_of(8) {
            return None;
        }
        let page = address / PAGE as u64;
        let slot = (page % PAGES as u64) as usize;
        let space = self.bytes.get_mut(slot * PAGE..(slot + 1) * PAGE)?;
        let tag = self.tags.get_mut(slot)?;
        let length = self.lengths.get_mut(slot)?;
        if *tag != page + 1 {
            *length = self.memory.read(page * PAGE as u64, space) as u16;
            *tag = page + 1;
        }
        word_at(space.get(..usize::from(*length))?, (address % PAGE as u64) as usize)
    }
}
