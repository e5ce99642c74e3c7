//! A heap made by hand, by the layout tables of glibc's releases: independent of what the crate believes of them.
#![allow(dead_code)]

use leakscope_target::{Mapping, Pieces, Registers, Snapshot, Source, Thread};
use std::collections::BTreeMap;

pub const LIBC: u64 = 0x7f00_0000_0000;
pub const DATA: u64 = LIBC + 0x20_0000;
/// Where `main_arena` is put.
pub const ARENA: u64 = DATA + 0x340;
pub const HEAP: u64 = 0x5555_0000_0000;
pub const HEAP_BYTES: u64 = 0x21000;
pub const MAPPED: u64 = 0x7e00_0000_0000;
pub const TLS: u64 = 0x7d00_0000_0000;
pub const THREAD: u64 = TLS + 0x2000;
/// A second arena, in its own heap.
pub const SECOND: u64 = 0x7c00_0000_0000;

/// The layout of a release, written down once more: offsets of `malloc_state`, size of `heap_info`, tcache.
#[derive(Debug, Clone, Copy)]
pub struct Release {
    pub minor: u64,
    pub fastbins: u64,
    pub top: u64,
    pub bins: u64,
    pub next: u64,
    pub system_mem: u64,
    pub state: u64,
    pub heap_info: u64,
    /// Chunk size, bytes per count, lists.
    pub tcache: (u64, u64, u64),
    pub mangled: bool,
}

pub const RELEASES: [Release; 7] = {
    let base = Release {
        minor: 36,
        fastbins: 0x10,
        top: 0x60,
        bins: 0x70,
        next: 0x870,
        system_mem: 0x888,
        state: 0x898,
        heap_info: 0x30,
        tcache: (0x290, 2, 64),
        mangled: true,
    };
    [
        Release {
            minor: 26,
            fastbins: 8,
            top: 0x58,
            bins: 0x68,
            next: 0x868,
            system_mem: 0x880,
            state: 0x890,
            heap_info: 0x20,
            tcache: (0x250, 1, 64),
            mangled: false,
        },
        Release { minor: 28, heap_info: 0x20, tcache: (0x250, 1, 64), mangled: false, ..base },
        Release { minor: 31, heap_info: 0x20, mangled: false, ..base },
        Release { minor: 33, heap_info: 0x20, ..base },
        base,
        Release { minor: 42, tcache: (0x300, 2, 76), ..base },
        Release {
            minor: 43,
            fastbins: 0,
            top: 8,
            bins: 0x18,
            next: 0x818,
            system_mem: 0x830,
            state: 0x840,
            tcache: (0x300, 2, 76),
            ..base
        },
    ]
};

/// Memory under construction, by pages.
pub struct Image {
    pub release: Release,
    words: BTreeMap<u64, u64>,
    /// Next chunk of the main heap.
    at: u64,
    behind_free: bool,
    /// Blocks in use.
    pub live: BTreeMap<u64, u64>,
    pub tcache: u64,
    pub libc: Vec<u8>,
}

impl Image {
    pub fn set(&mut self, address: u64, value: u64) {
        assert_eq!(address % 8, 0);
        self.words.insert(address, value);
    }

    pub fn get(&self, address: u64) -> u64 {
        self.words.get(&address).copied().unwrap_or(0)
    }

    /// A chunk of the main heap; returns its address.
    pub fn chunk(&mut self, size: u64) -> u64 {
        let at = self.at;
        self.set(at + 8, size | u64::from(!self.behind_free));
        self.behind_free = false;
        self.at += size;
        at
    }

    /// A block in use; returns its address.
    pub fn used(&mut self, size: u64) -> u64 {
        let chunk = self.chunk(size);
        self.live.insert(chunk + 16, size - 8);
        chunk + 16
    }

    /// A free chunk: the next chunk knows.
    pub fn free(&mut self, size: u64) -> u64 {
        let chunk = self.chunk(size);
        self.set(self.at, size);
        self.behind_free = true;
        chunk
    }

    fn link(&self, place: u64, to: u64) -> u64 {
        if self.release.mangled { to ^ (place >> 12) } else { to }
    }

    /// Puts chunks into a list of the cache, the last first.
    pub fn cache(&mut self, chunks: &[u64]) {
        let mut next = 0;
        let mut list = 0;
        for &chunk in chunks {
            let block = chunk + 16;
            list = ((self.get(chunk + 8) & !7) - 0x20) / 16;
            self.set(block, self.link(block, next));
            next = block;
        }
        let (_, count, lists) = self.release.tcache;
        self.set(self.tcache + lists * count + list * 8, next);
    }

    pub fn fastbin(&mut self, chunks: &[u64]) {
        let mut next = 0;
        let mut list = 0;
        for &chunk in chunks {
            list = ((self.get(chunk + 8) & !7) - 0x20) / 16;
            self.set(chunk + 16, self.link(chunk + 16, next));
            next = chunk;
        }
        self.set(ARENA + self.release.fastbins + list * 8, next);
    }

    fn bins(&mut self, arena: u64) {
        for bin in 0..127 {
            let own = arena + self.release.bins + bin * 16 - 16;
            self.set(own + 16, own);
            self.set(own + 24, own);
        }
    }

    /// A heap with blocks in use and free ones of each kind, a second arena, and mmapped chunks.
    pub fn new(release: Release) -> Image {
        let mut image = Image {
            release,
            words: BTreeMap::new(),
            at: HEAP,
            behind_free: false,
            live: BTreeMap::new(),
            tcache: 0,
            libc: format!(
                "\0GNU C Library (Somebody 1) stable release version 2.{}.\nmalloc(): corrupted top size\0",
                release.minor
            )
            .into_bytes(),
        };
        let (size, count, lists) = release.tcache;
        image.tcache = image.used(size);
        if lists == 76 {
            for at in (0..lists * count).step_by(8) {
                image.set(image.tcache + at, 0x0007_0007_0007_0007);
            }
        }
        image.set(THREAD - 0x48, image.tcache);
        image.set(THREAD - 0x40, ARENA);
        let mut cached = Vec::new();
        let mut fast = Vec::new();
        for round in 0..40 {
            image.used(0x20 + round % 7 * 0x10);
            cached.push(image.chunk(0x40));
            fast.push(image.chunk(0x50));
            image.used(0x20);
            image.free(0x90 + round % 3 * 0x10);
            image.used(0x400 + round * 0x10);
        }
        // A list may be longer than glibc's default limit.
        let (inside, spare) = cached.split_at(9);
        image.cache(inside);
        for &chunk in spare {
            image.live.insert(chunk + 16, 0x38);
        }
        if release.fastbins != 0 {
            image.fastbin(&fast);
        } else {
            image.live.extend(fast.iter().map(|chunk| (chunk + 16, 0x48)));
        }
        image.bins(ARENA);
        let top = image.at;
        image.set(ARENA + release.top, top);
        image.set(top + 8, (HEAP + HEAP_BYTES - top) | 1);
        image.set(ARENA + release.system_mem, HEAP_BYTES);
        image.set(ARENA + release.system_mem + 8, HEAP_BYTES);
        image.second();
        image.mapped();
        image
    }

    fn second(&mut self) {
        let release = self.release;
        let arena = SECOND + release.heap_info;
        self.set(SECOND, arena);
        self.set(SECOND + 16, 0x4000);
        self.set(SECOND + 24, 0x5000);
        self.bins(arena);
        self.set(ARENA + release.next, arena);
        self.set(arena + release.next, ARENA);
        let mut at = (arena + release.state + 15) & !15;
        for round in 0..10 {
            let size = 0x30 + round * 0x20;
            self.set(at + 8, size | 5);
            self.live.insert(at + 16, size - 8);
            at += size;
        }
        self.set(arena + release.top, at);
        self.set(at + 8, (SECOND + 0x4000 - at) | 1);
        self.set(arena + release.system_mem, 0x4000);
    }

    /// A plain chunk, right behind it one aligned to 256 bytes, then one aligned to a page.
    fn mapped(&mut self) {
        let header = if self.release.minor >= 43 { 16 } else { 0 };
        let usable = |size: u64| if header == 0 { size - 16 } else { size - 8 };
        for (start, distance) in [(MAPPED, 0), (MAPPED + 0x3000, 0xf0), (MAPPED + 0x6000, 0xff0)] {
            self.set(start + 8, (0x3000 - header) | 2);
            let size = 0x3000 - header - distance;
            self.set(start + distance, distance);
            self.set(start + distance + 8, size | 2);
            self.live.insert(start + distance + 16, usable(size));
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let ranges = [
            (HEAP, HEAP_BYTES),
            (DATA, 0x3000),
            (MAPPED, 0x9000),
            (TLS, 0x3000),
            (SECOND, 0x5000),
            (LIBC, 0x1000),
        ];
        let mut pieces = Vec::new();
        for (start, length) in ranges {
            let mut bytes = vec![0; length as usize];
            for (&address, value) in self.words.range(start..start + length) {
                let offset = (address - start) as usize;
                bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
            }
            if start == LIBC {
                bytes[0x100..0x100 + self.libc.len()].copy_from_slice(&self.libc);
            }
            pieces.push((start, bytes));
        }
        let map = |start, end, path: &str, writable, offset| Mapping {
            start,
            end,
            readable: true,
            writable,
            executable: !writable && !path.is_empty(),
            offset,
            inode: u64::from(path.starts_with('/')),
            path: path.into(),
            ..Mapping::default()
        };
        let mut mappings = vec![
            map(HEAP, HEAP + HEAP_BYTES, "[heap]", true, 0),
            map(LIBC, LIBC + 0x1000, "/lib/libc.so.6", false, 0),
            map(DATA, DATA + 0x3000, "/lib/libc.so.6", true, 0x1000),
            map(MAPPED, MAPPED + 0x9000, "", true, 0),
            map(TLS, TLS + 0x3000, "", true, 0),
            map(SECOND, SECOND + 0x5000, "", true, 0),
        ];
        mappings.sort_by_key(|mapping| mapping.start);
        let registers = Registers { thread_pointer: THREAD, ..Registers::default() };
        Snapshot {
            pid: 7,
            start_ticks: 0,
            command: Vec::new(),
            executable: b"/bin/made-by-hand".to_vec(),
            mappings,
            threads: vec![Thread { tid: 7, name: Vec::new(), registers }],
            auxv: Vec::new(),
            memory: Box::new(Pieces::new(pieces)),
            source: Source::Core,
            pause: None,
            root: "/nowhere".into(),
            notes: Vec::new(),
        }
    }
}
