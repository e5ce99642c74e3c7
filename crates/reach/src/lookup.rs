//! Blocks in four bytes each, and which one holds an address.
//!
//! Blocks lie by address in *segments*: runs of pages without a long gap. Every page of a segment knows its first
//! block and how far the block before it reaches in; a block itself is its place in its page and its size. Segments
//! are found through a two-level table over the address space, which also answers most words that are no pointers.

use crate::Block;
use std::fmt;

/// A block's place within its page in units of 8 bytes, above its size in bytes.
const SIZE_BITS: u32 = 23;
/// Stands for a size that does not fit, or an address that is no multiple of 8: see `odd`.
const ODD: u32 = (1 << SIZE_BITS) - 1;

const PAGE_BITS: u32 = 12;
const PAGE: u64 = 1 << PAGE_BITS;
/// Pages without a start of a block between two blocks of one segment: bounds the pages to twelve or so per block.
const MAX_GAP: u64 = 16;

/// Every so many blocks, the page is noted.
const HINT_BITS: u32 = 7;

/// The address space in granules of 1 MiB, and tables of 16 Ki of them.
const GRANULE_BITS: u32 = 20;
const TABLE_BITS: u32 = 14;
const TOP_BITS: u32 = 47 - GRANULE_BITS - TABLE_BITS;
/// More tables than this (16 MiB) only a hostile block list needs: what lies beyond is searched for.
const MAX_TABLES: usize = 256;
/// Entries of the top level: nothing there, search the segments, all of it within this segment, else a table + 1.
const NOTHING: u32 = 0;
const SEARCH: u32 = u32::MAX;
const WITHIN: u32 = 1 << 31;

/// More blocks than this are dropped (and counted): an edge of the graph of blocks keeps 29 bits for its target.
pub(crate) const MAX_BLOCKS: usize = (1 << 29) - 1;

/// The first block that starts in a page or behind it, and how many bytes of the page belong to the block before.
#[derive(Debug, Clone, Copy, Default)]
struct Page {
    first: u32,
    covered: u16,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    /// A multiple of the page size.
    start: u64,
    /// One past the last byte of the last block, which may lie far behind the last page.
    end: u64,
    /// Its pages in `pages`; one more follows, which tells where the next segment's blocks begin.
    slot: usize,
    pages: usize,
}

/// Blocks by address, not overlapping, in little more than four bytes each.
#[derive(Clone, Default)]
pub struct Blocks {
    entries: Vec<u32>,
    pages: Vec<Page>,
    segments: Vec<Segment>,
    hints: Vec<u32>,
    /// Blocks that do not fit an entry, by index.
    odd: Vec<(usize, Block)>,
    top: Vec<u32>,
    tables: Vec<u32>,
    low: u64,
    span: u64,
    dropped: usize,
}

impl fmt::Debug for Blocks {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.iter()).finish()
    }
}

/// Addresses that are looked up together.
const TOGETHER: usize = 64;

/// A page of a segment, or what lies behind its last one.
#[derive(Debug, Clone, Copy)]
struct Slot {
    slot: usize,
    is_behind: bool,
}

/// The blocks that start in a page.
#[derive(Debug, Clone, Copy)]
struct Entries {
    first: usize,
    count: usize,
    covered: u32,
}

/// How far a lookup has come.
#[derive(Debug, Clone, Copy)]
enum PageOf {
    Nothing,
    Slot(Slot),
    Page(Entries),
}

/// What an address points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hit {
    pub index: usize,
    /// How far into the block; none if that needs a look at [`Blocks::get`].
    pub offset: Option<u64>,
}

impl Blocks {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many that were pushed are missing, because they overlapped others or were too many.
    pub fn dropped(&self) -> usize {
        self.dropped
    }

    /// The block at `index`, in the order of addresses.
    pub fn get(&self, index: usize) -> Option<Block> {
        self.iter_from(index).next()
    }

    /// The index of the block that holds `address`, or, for one of no bytes, starts there.
    pub fn find(&self, address: u64) -> Option<usize> {
        self.locate(address).map(|hit| hit.index)
    }

    /// All, by address.
    pub fn iter(&self) -> Iter<'_> {
        self.iter_from(0)
    }

    /// Those from `index` on, by address.
    pub fn iter_from(&self, index: usize) -> Iter<'_> {
        let mut slot = self.hints.get(index >> HINT_BITS).map_or(0, |&slot| slot as usize);
        let mut segment = self.segments.partition_point(|segment| segment.slot <= slot).saturating_sub(1);
        // The pages between two hints are few, unless blocks are large.
        let limit =
            self.hints.get((index >> HINT_BITS) + 1).map_or(self.pages.len(), |&slot| slot as usize + 1);
        if let Some(between) = self.pages.get(slot..limit) {
            slot += between.partition_point(|page| page.first as usize <= index).saturating_sub(1);
            while self.segments.get(segment + 1).is_some_and(|next| next.slot <= slot) {
                segment += 1;
            }
        }
        Iter { blocks: self, index, slot, segment }
    }

    /// The size of the block at `index`: cheaper than [`Blocks::get`].
    pub fn size(&self, index: usize) -> Option<u64> {
        match *self.entries.get(index)? & ODD {
            ODD => self.odd_at(index).map(|block| block.size),
            size => Some(u64::from(size)),
        }
    }

    fn odd_at(&self, index: usize) -> Option<Block> {
        let at = self.odd.binary_search_by_key(&index, |&(index, _)| index).ok()?;
        self.odd.get(at).map(|&(_, block)| block)
    }

    /// The lowest address in a block, and how many follow up to the highest.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        (self.low, self.span)
    }

    fn segment_at(&self, address: u64) -> Option<&Segment> {
        if address.wrapping_sub(self.low) >= self.span {
            return None;
        }
        let granule = (address >> GRANULE_BITS) as usize;
        let mut at = match *self.top.get(granule >> TABLE_BITS).unwrap_or(&SEARCH) {
            NOTHING => return None,
            SEARCH => self.segments.partition_point(|segment| segment.end <= address),
            within if within & WITHIN != 0 => (within & !WITHIN) as usize,
            table => {
                let at = ((table as usize - 1) << TABLE_BITS) + (granule & ((1 << TABLE_BITS) - 1));
                (*self.tables.get(at)? as usize).checked_sub(1)?
            }
        };
        loop {
            let segment = self.segments.get(at)?;
            if address < segment.start {
                return None;
            }
            if address < segment.end {
                return Some(segment);
            }
            at += 1;
        }
    }

    /// What `address` points to.
    #[inline]
    pub(crate) fn locate(&self, address: u64) -> Option<Hit> {
        self.locate_in(self.page_at(address)?, address)
    }

    /// What each of the addresses points to, appended to `hits`.
    ///
    /// A lookup is three steps, each of which misses the cache if addresses are far apart. Taken step by step for many
    /// addresses, their misses overlap, which is several times faster than address by address.
    pub(crate) fn locate_all(&self, addresses: &[u64], hits: &mut Vec<Option<Hit>>) {
        let mut at = [PageOf::Nothing; TOGETHER];
        for addresses in addresses.chunks(TOGETHER) {
            for (at, &address) in at.iter_mut().zip(addresses) {
                *at = self.slot_at(address).map_or(PageOf::Nothing, PageOf::Slot);
            }
            let mut touched = 0;
            for (at, &address) in at.iter_mut().zip(addresses) {
                let PageOf::Slot(slot) = *at else { continue };
                let Some(page) = self.page(slot) else { continue };
                // The middle of the search: where the block is if blocks are spread evenly.
                let guess = page.first + (page.count as u64 * (address % PAGE) / PAGE) as usize;
                touched |= self.entries.get(guess).copied().unwrap_or(0);
                *at = PageOf::Page(page);
            }
            std::hint::black_box(touched);
            hits.extend(at.iter().zip(addresses).map(|(at, &address)| match *at {
                PageOf::Nothing => None,
                PageOf::Slot(_) => self.locate(address),
                PageOf::Page(page) => self.locate_in(page, address),
            }));
        }
    }

    fn slot_at(&self, address: u64) -> Option<Slot> {
        let segment = self.segment_at(address)?;
        let page = ((address - segment.start) >> PAGE_BITS) as usize;
        Some(match page >= segment.pages {
            true => Slot { slot: segment.slot + segment.pages, is_behind: true },
            false => Slot { slot: segment.slot + page, is_behind: false },
        })
    }

    fn page(&self, Slot { slot, is_behind }: Slot) -> Option<Entries> {
        if is_behind {
            let first = self.pages.get(slot)?.first as usize;
            return Some(Entries { first, count: 0, covered: u32::MAX });
        }
        let &[this, next] = self.pages.get(slot..slot + 2)? else { return None };
        let first = this.first as usize;
        Some(Entries { first, count: next.first as usize - first, covered: u32::from(this.covered) })
    }

    fn page_at(&self, address: u64) -> Option<Entries> {
        self.page(self.slot_at(address)?)
    }

    #[inline]
    fn locate_in(&self, page: Entries, address: u64) -> Option<Hit> {
        let Entries { first, count, covered } = page;
        let entries = self.entries.get(first..first + count)?;
        let within = (address % PAGE) as u32;
        let key = within >> 3 << SIZE_BITS | ODD;
        let mut count = entries.partition_point(|&entry| entry <= key);
        loop {
            let Some(before) = count.checked_sub(1) else {
                return (within < covered).then_some(Hit { index: first.checked_sub(1)?, offset: None });
            };
            let entry = *entries.get(before)?;
            let (offset, size) = match entry & ODD {
                ODD => {
                    let block = self.odd_at(first + before)?;
                    if block.address > address {
                        count = before;
                        continue;
                    }
                    (address - block.address, block.size)
                }
                size => (u64::from(within - (entry >> SIZE_BITS << 3)), u64::from(size)),
            };
            return (offset < size.max(1)).then_some(Hit { index: first + before, offset: Some(offset) });
        }
    }

    /// The first block that ends behind `address`; [`Blocks::len`] if none does.
    pub(crate) fn first_ending_behind(&self, address: u64) -> usize {
        let at = self.segments.partition_point(|segment| segment.end <= address);
        let Some(segment) = self.segments.get(at) else { return self.len() };
        let first_of = |slot: usize| self.pages.get(slot).map_or(self.len(), |page| page.first as usize);
        if address < segment.start {
            return first_of(segment.slot);
        }
        if let Some(hit) = self.locate(address) {
            return hit.index;
        }
        // No block holds the address, so those of its page that start before it end before it.
        let page = ((address - segment.start) >> PAGE_BITS) as usize;
        let first = first_of(segment.slot + page);
        first + self.iter_from(first).take_while(|block| block.address < address).count()
    }
}

/// Blocks by address.
#[derive(Clone)]
pub struct Iter<'a> {
    blocks: &'a Blocks,
    index: usize,
    slot: usize,
    segment: usize,
}

impl Iterator for Iter<'_> {
    type Item = Block;

    #[inline]
    fn next(&mut self) -> Option<Block> {
        let entry = *self.blocks.entries.get(self.index)?;
        let mut segment = self.blocks.segments.get(self.segment)?;
        while self.blocks.pages.get(self.slot + 1)?.first as usize <= self.index {
            self.slot += 1;
            if self.slot == segment.slot + segment.pages {
                self.slot += 1;
                self.segment += 1;
                segment = self.blocks.segments.get(self.segment)?;
            }
        }
        let index = self.index;
        self.index += 1;
        if entry & ODD == ODD {
            return self.blocks.odd_at(index);
        }
        let page = segment.start + (((self.slot - segment.slot) as u64) << PAGE_BITS);
        Some(Block { address: page + u64::from(entry >> SIZE_BITS << 3), size: u64::from(entry & ODD) })
    }
}

/// Builds [`Blocks`] from blocks by address.
pub(crate) struct Indexer {
    blocks: Blocks,
    /// The last block pushed; waits, since the next may be a larger one at the same address.
    waiting: Option<Block>,
    last_page: u64,
    last_end: u64,
}

impl Indexer {
    pub(crate) fn with_capacity(blocks: usize) -> Indexer {
        let entries = Vec::with_capacity(blocks.min(MAX_BLOCKS));
        Indexer { blocks: Blocks { entries, ..Blocks::default() }, waiting: None, last_page: 0, last_end: 0 }
    }

    pub(crate) fn push(&mut self, block: Block) {
        match &mut self.waiting {
            Some(waiting) if block.address == waiting.address => {
                waiting.size = waiting.size.max(block.size);
                self.blocks.dropped += 1;
            }
            Some(waiting) if block.address < waiting.end() => self.blocks.dropped += 1,
            Some(waiting) => {
                let earlier = std::mem::replace(waiting, block);
                self.add(earlier);
            }
            None => self.waiting = Some(block),
        }
    }

    fn add(&mut self, block: Block) {
        let index = self.blocks.entries.len();
        if index >= MAX_BLOCKS {
            self.blocks.dropped += 1;
            return;
        }
        let page = block.address >> PAGE_BITS;
        if self.blocks.segments.is_empty() || page - self.last_page > MAX_GAP {
            self.end_segment();
            let (start, slot) = (page << PAGE_BITS, self.blocks.pages.len());
            self.blocks.segments.push(Segment { start, end: 0, slot, pages: 0 });
            self.blocks.pages.push(Page { first: index as u32, covered: 0 });
        } else {
            for page in self.last_page + 1..=page {
                let covered = self.last_end.saturating_sub(page << PAGE_BITS).min(PAGE);
                self.blocks.pages.push(Page { first: index as u32, covered: covered as u16 });
            }
        }
        if index.is_multiple_of(1 << HINT_BITS) {
            self.blocks.hints.push(self.blocks.pages.len() as u32 - 1);
        }
        let size = if block.address.is_multiple_of(8) && block.size < u64::from(ODD) {
            block.size as u32
        } else {
            ODD
        };
        if size == ODD {
            self.blocks.odd.push((index, block));
        }
        self.blocks.entries.push(((block.address % PAGE) as u32 >> 3) << SIZE_BITS | size);
        (self.last_page, self.last_end) = (page, block.end());
    }

    fn end_segment(&mut self) {
        if let Some(segment) = self.blocks.segments.last_mut() {
            segment.end = self.last_end;
            segment.pages = self.blocks.pages.len() - segment.slot;
            self.blocks.pages.push(Page { first: self.blocks.entries.len() as u32, covered: 0 });
        }
    }

    pub(crate) fn finish(mut self) -> Blocks {
        if let Some(last) = self.waiting.take() {
            self.add(last);
        }
        self.end_segment();
        let mut blocks = self.blocks;
        if let Some(first) = blocks.iter().next() {
            blocks.low = first.address;
            blocks.span = self.last_end - first.address;
        }
        blocks.entries.shrink_to_fit();
        blocks.pages.shrink_to_fit();
        fill_tables(&mut blocks);
        blocks
    }
}

/// Notes, for each granule, the first segment that reaches into it.
fn fill_tables(blocks: &mut Blocks) {
    let (top, tables) = (&mut blocks.top, &mut blocks.tables);
    if blocks.segments.is_empty() {
        return;
    }
    top.resize(1 << TOP_BITS, NOTHING);
    let part = 1u64 << (GRANULE_BITS + TABLE_BITS);
    for (index, segment) in blocks.segments.iter().enumerate() {
        let parts = segment.start / part..(segment.end - 1) / part + 1;
        for (at, top) in top.iter_mut().enumerate().take(parts.end as usize).skip(parts.start as usize) {
            let range = at as u64 * part..(at as u64 + 1) * part;
            if *top == NOTHING {
                if segment.start <= range.start && segment.end >= range.end && index < WITHIN as usize {
                    *top = WITHIN | index as u32;
                    continue;
                }
                if tables.len() >> TABLE_BITS >= MAX_TABLES {
                    *top = SEARCH;
                    continue;
                }
                tables.resize(tables.len() + (1 << TABLE_BITS), 0);
                *top = (tables.len() >> TABLE_BITS) as u32;
            }
            if *top == SEARCH || *top & WITHIN != 0 {
                continue;
            }
            let base = (*top as usize - 1) << TABLE_BITS;
            let from = (segment.start.max(range.start) - range.start) >> GRANULE_BITS;
            let to = (segment.end.min(range.end) - 1 - range.start) >> GRANULE_BITS;
            let granules = tables.get_mut(base + from as usize..=base + to as usize);
            for granule in granules.into_iter().flatten().filter(|granule| **granule == 0) {
                *granule = index as u32 + 1;
            }
        }
    }
}
