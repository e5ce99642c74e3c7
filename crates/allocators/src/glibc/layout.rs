//! Where glibc keeps what, by version: 64-bit layouts of 2.26 to 2.43 (malloc/malloc.c and malloc/arena.c there).

use std::fmt;

/// A release of glibc.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 2, so far.
    pub major: u16,
    /// Release.
    pub minor: u16,
}

impl Version {
    /// The oldest whose layout is known: the first with a per-thread cache.
    pub const OLDEST: Version = Version { major: 2, minor: 26 };
    /// The newest whose layout is known; later ones are read like it.
    pub const NEWEST: Version = Version { major: 2, minor: 43 };

    /// Parses `2.36`, also with something behind it (`2.42.9000` is what 2.43 is called before its release).
    pub fn parse(text: &[u8]) -> Option<Version> {
        let mut numbers = text.split(|&byte| !byte.is_ascii_digit());
        let major = number(numbers.next()?)?;
        let minor = number(numbers.next()?)?;
        let development = numbers.next().and_then(number).is_some_and(|patch| patch >= 9000);
        Some(Version { major, minor: minor + u16::from(development) })
    }
}

fn number(digits: &[u8]) -> Option<u16> {
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|&number| number < u16::MAX)
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// Flags in the low bits of a chunk's size.
pub(crate) const PREV_INUSE: u64 = 1;
pub(crate) const IS_MMAPPED: u64 = 2;
pub(crate) const NON_MAIN_ARENA: u64 = 4;
pub(crate) const FLAGS: u64 = 7;

/// Smallest chunk, and the header before a block's address.
pub(crate) const MIN_CHUNK: u64 = 0x20;
pub(crate) const HEADER: u64 = 0x10;
pub(crate) const PAGE: u64 = 0x1000;

/// Bins of an arena: unsorted, small and large; each a pair of pointers.
pub(crate) const BINS: usize = 127;
/// `NONCONTIGUOUS_BIT` of an arena's flags.
pub(crate) const NONCONTIGUOUS: u32 = 2;
/// Lists of chunks that are freed and not yet merged.
pub(crate) const FASTBINS: u64 = 10;

/// Sizes that a thread's heaps can have, and their alignment: 64 MiB, and four huge pages with `glibc.malloc.hugetlb`.
pub(crate) const HEAP_SIZES: [u64; 3] = [64 << 20, 8 << 20, 4 << 30];

/// `struct malloc_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct State {
    /// `fastbinsY`; none from 2.43.
    pub fastbins: Option<u64>,
    pub top: u64,
    pub bins: u64,
    pub next: u64,
    pub system_mem: u64,
    /// Of the whole structure.
    pub size: u64,
}

/// 2.26.
const STATE_26: State =
    State { fastbins: Some(0x8), top: 0x58, bins: 0x68, next: 0x868, system_mem: 0x880, size: 0x890 };
/// 2.27 to 2.42: `have_fastchunks` came in.
const STATE_27: State =
    State { fastbins: Some(0x10), top: 0x60, bins: 0x70, next: 0x870, system_mem: 0x888, size: 0x898 };
/// 2.43: fastbins are gone.
const STATE_43: State =
    State { fastbins: None, top: 0x8, bins: 0x18, next: 0x818, system_mem: 0x830, size: 0x840 };

/// `struct tcache_perthread_struct`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tcache {
    /// Size of the chunk that holds it.
    pub chunk: u64,
    /// Bytes of one count.
    pub count: u64,
    pub bins: u64,
    /// Counts are of free slots, not of entries, and are never above the limit.
    pub slots: bool,
}

const TCACHE_26: Tcache = Tcache { chunk: 0x250, count: 1, bins: 64, slots: false };
const TCACHE_30: Tcache = Tcache { chunk: 0x290, count: 2, bins: 64, slots: false };
const TCACHE_42: Tcache = Tcache { chunk: 0x300, count: 2, bins: 76, slots: true };

impl Tcache {
    /// Whether a chunk of this size can hold the structure. malloc gives 16 bytes more where the rest of a free chunk
    /// would be no chunk, and 2.43 pads twice where it knows the arena.
    pub(crate) fn is_chunk(&self, size: u64) -> bool {
        let largest = self.chunk + if self.slots { 0x20 } else { 0x10 };
        size >= self.chunk && size <= largest
    }

    /// Whether a chunk of this size belongs into the list `index`. Lists 0 to 63 hold one size each; those of 2.42 and
    /// later behind them all sizes of one power of two.
    pub(crate) fn fits(&self, index: u64, size: u64) -> bool {
        const SMALL: u64 = 64;
        if index < SMALL {
            return size == MIN_CHUNK + index * 0x10;
        }
        let largest_small = MIN_CHUNK + (SMALL - 1) * 0x10;
        size > largest_small
            && index + u64::from(size.leading_zeros()) == SMALL + u64::from(largest_small.leading_zeros())
    }
}

/// All that differs from version to version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub state: State,
    /// Size of `heap_info` before a heap's first chunk or arena.
    pub heap_info: u64,
    pub tcache: Tcache,
    /// Links of tcache and fastbins are mangled by their own address (2.32, "safe-linking").
    pub mangled: bool,
    /// An mmapped chunk counts its header twice, as other chunks do, and can be in a tcache (2.43).
    pub mmapped_like_others: bool,
}

impl Layout {
    /// The layout of a version.
    pub(crate) fn of(version: Version) -> Layout {
        let since = |minor| version >= Version { major: 2, minor };
        Layout {
            state: match () {
                () if since(43) => STATE_43,
                () if since(27) => STATE_27,
                () => STATE_26,
            },
            heap_info: if since(35) { 0x30 } else { 0x20 },
            tcache: match () {
                () if since(42) => TCACHE_42,
                () if since(30) => TCACHE_30,
                () => TCACHE_26,
            },
            mangled: since(32),
            mmapped_like_others: since(43),
        }
    }

    /// One layout of each kind, the most common first: tried in turn where the version is not known.
    pub(crate) fn all() -> Vec<(Version, Layout)> {
        let minors = [36, 43, 42, 32, 30, 27, 26];
        minors
            .iter()
            .map(|&minor| Version { major: 2, minor })
            .map(|version| (version, Layout::of(version)))
            .collect()
    }

    /// Other layouts of the per-thread cache that distributions have carried back into this version.
    pub(crate) fn tcaches(&self) -> Vec<Tcache> {
        match self.tcache {
            TCACHE_26 => vec![TCACHE_26, TCACHE_30],
            TCACHE_30 if !self.mangled => vec![TCACHE_30, TCACHE_26],
            only => vec![only],
        }
    }

    /// First address past the arena structure that can be a chunk, for an arena at `arena` within its heap.
    pub(crate) fn first_chunk_behind(&self, arena: u64) -> Option<u64> {
        align(arena.checked_add(self.state.size)?, 0x10)
    }

    /// Decodes a link stored at `place`.
    pub(crate) fn reveal(&self, place: u64, value: u64) -> u64 {
        if self.mangled { value ^ (place >> 12) } else { value }
    }

    /// Bytes of an mmapped chunk's mapping from the chunk on, given its size without flags.
    pub(crate) fn mapped(&self, size: u64) -> Option<u64> {
        if self.mmapped_like_others { size.checked_add(HEADER) } else { Some(size) }
    }

    /// Usable bytes of an mmapped chunk.
    pub(crate) fn mmapped_usable(&self, size: u64) -> u64 {
        size.saturating_sub(if self.mmapped_like_others { 8 } else { HEADER })
    }
}

/// Rounds up to a power of two.
pub(crate) fn align(value: u64, to: u64) -> Option<u64> {
    Some(value.checked_add(to - 1)? & !(to - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_and_development_is_the_next_release() {
        let parse = |text: &[u8]| Version::parse(text);
        assert_eq!(parse(b"2.36"), Some(Version { major: 2, minor: 36 }));
        assert_eq!(parse(b"2.42.9000"), Some(Version { major: 2, minor: 43 }));
        assert_eq!(parse(b"2.36-9+deb12u14"), Some(Version { major: 2, minor: 36 }));
        assert!(parse(b"2.9") < parse(b"2.26"));
        for broken in [&b"2"[..], b"", b"x.y", b"2.99999999", b"99999999.1"] {
            assert_eq!(parse(broken), None);
        }
    }

    #[test]
    fn lists_of_the_per_thread_cache_hold_the_sizes_that_glibc_puts_there() {
        assert!(TCACHE_30.fits(0, 0x20) && TCACHE_30.fits(63, 0x410));
        assert!(!TCACHE_30.fits(1, 0x20));
        // 2.42: list 64 + clz(0x410) - clz(size), up to 4 MiB.
        assert!(TCACHE_42.fits(64, 0x420) && TCACHE_42.fits(64, 0x7f0) && TCACHE_42.fits(65, 0x800));
        assert!(!TCACHE_42.fits(64, 0x410) && !TCACHE_42.fits(65, 0x7f0));
        assert!(TCACHE_42.fits(75, 0x40_0000 - 0x10) && !TCACHE_42.fits(76, 0x40_0000 - 0x10));
    }

    #[test]
    fn a_heap_info_grew_and_safe_linking_came_when_the_release_notes_say() {
        let of = |minor| Layout::of(Version { major: 2, minor });
        assert_eq!((of(34).heap_info, of(35).heap_info), (0x20, 0x30));
        assert_eq!((of(31).mangled, of(32).mangled), (false, true));
        assert_eq!(of(29).tcache.chunk, 0x250);
        assert_eq!(of(42).state, of(27).state);
    }
}
