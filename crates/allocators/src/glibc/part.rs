//! The heap of one C library: its arenas, their memory, and the lists of chunks that only look used.

use super::areas::Areas;
use super::chain::{self, Region, Totals, Walker};
use super::layout::{Layout, Version};
use super::lists::{self, Cached};
use super::{ArenaSummary, Heap, WalkOptions, arena, locate, params, regions, threads};
use crate::error::Error;
use crate::modules::Module;
use crate::read::Cache;
use leakscope_target::Snapshot;
use std::ops::Range;

/// One C library's heap.
pub(super) struct Part {
    pub layout: Layout,
    main: arena::Arena,
    regions: Vec<Region>,
    /// With each its heaps, the newest first.
    others: Vec<(arena::Arena, Vec<arena::Heap>)>,
    pub mapped: Option<params::Mapped>,
}

impl Part {
    pub(super) fn read(
        snapshot: &Snapshot,
        module: &Module,
        version: Option<Version>,
        options: &WalkOptions,
        writable: &Areas,
        heap: &mut Heap,
    ) -> Result<Part, Error> {
        let memory = &*snapshot.memory;
        if let Some(what) = crate::elf::foreign(memory, module) {
            return Err(Error::Foreign { pid: snapshot.pid, module: module.display(), what });
        }
        if let Some(version) = version.filter(|&version| version < Version::OLDEST) {
            return Err(Error::TooOld {
                pid: snapshot.pid,
                module: module.display(),
                version: version.to_string(),
            });
        }
        match version {
            None => heap.notes.push(format!(
                "{} does not say its version; the layout was found by trying",
                module.display()
            )),
            Some(version) if version > Version::NEWEST => heap.notes.push(format!(
                "glibc {version} is newer than {}, and was read like it; check the result",
                Version::NEWEST
            )),
            Some(_) => {}
        }
        let found = locate::main_arena(snapshot, module, version, writable, options.debug_symbols);
        let located = found.map_err(|tried| Error::MainArena {
            pid: snapshot.pid,
            module: module.display(),
            version: version.map_or_else(|| "unknown version".to_owned(), |version| version.to_string()),
            tried,
        })?;
        let layout = located.layout;
        let state = located.arena.address;
        heap.located.push(format!("main_arena of {} at {state:#x} {}", module.display(), located.how));
        heap.states.push(state..state.saturating_add(layout.state.size));
        let (ring, closed) = arena::ring(memory, &located.arena, &layout, writable);
        if !closed {
            heap.torn.push("the ring of arenas is not closed".to_owned());
        }
        let mut others = Vec::new();
        for arena in ring {
            let (heaps, whole) = arena::heaps(memory, &arena, &layout, writable);
            if !whole {
                heap.torn.push(format!("the heaps of the arena at {:#x} are not all linked", arena.address));
            }
            others.push((arena, heaps));
        }
        let taken =
            Areas::new(others.iter().flat_map(|(_, heaps)| heaps.iter().map(arena::Heap::area)).collect());
        let regions = regions::main(snapshot, &located.arena, &layout, writable, &taken, heap);
        let mapped = regions.first().and_then(|region| params::mapped(memory, module, region.start));
        let mut part = Part { layout, main: located.arena, regions, others, mapped };
        if version.is_none() {
            part.layout = part.settle(snapshot, writable);
        }
        Ok(part)
    }

    /// Of the layouts that agree on what was found so far, the one whose lists of free chunks can be followed best: with
    /// the wrong one they lead nowhere, or are not found at all.
    fn settle(&self, snapshot: &Snapshot, writable: &Areas) -> Layout {
        let areas = Areas::new(self.memory());
        let mut cache = Cache::new(&*snapshot.memory);
        let agrees = |layout: &Layout| {
            layout.state == self.layout.state
                && (self.others.is_empty() || layout.heap_info == self.layout.heap_info)
        };
        let mut best = (self.layout, None);
        for (_, layout) in Layout::all().into_iter().filter(|(_, layout)| agrees(layout)) {
            let broken = self.fastbins(&mut cache, &layout, &areas, &mut Cached::default()).len();
            let caches = threads::caches(snapshot, &mut cache, &layout, &areas, writable, &self.arenas());
            let broken_lists: usize = caches.found.iter().map(|(_, contents)| contents.broken.len()).sum();
            let whole: usize = caches.found.iter().map(|(_, contents)| contents.whole).sum();
            let score = (usize::MAX - broken - broken_lists - caches.torn.len(), caches.found.len(), whole);
            if best.1.is_none_or(|known| score > known) {
                best = (layout, Some(score));
            }
        }
        best.0
    }

    /// Addresses of all arenas, sorted.
    fn arenas(&self) -> Vec<u64> {
        let mut arenas: Vec<u64> = self.others.iter().map(|(arena, _)| arena.address).collect();
        arenas.push(self.main.address);
        arenas.sort_unstable();
        arenas
    }

    /// Collects the chunks in fastbins; returns arena and number of the lists that do not end.
    fn fastbins(
        &self,
        cache: &mut Cache,
        layout: &Layout,
        areas: &Areas,
        into: &mut Cached,
    ) -> Vec<(u64, usize)> {
        let mut broken = Vec::new();
        for arena in [&self.main].into_iter().chain(self.others.iter().map(|(arena, _)| arena)) {
            let lists = lists::fastbins(cache, arena, layout, areas, into);
            broken.extend(lists.into_iter().map(|list| (arena.address, list)));
        }
        broken
    }

    /// All ranges that chunks can be in.
    pub(super) fn memory(&self) -> Vec<Range<u64>> {
        let main = self.regions.iter().map(|region| region.start..region.end);
        main.chain(self.others.iter().flat_map(|(_, heaps)| heaps.iter().map(arena::Heap::area))).collect()
    }

    /// Collects chunks in fastbins and per-thread caches.
    pub(super) fn caches(
        &self,
        snapshot: &Snapshot,
        writable: &Areas,
        cached: &mut Cached,
        heap: &mut Heap,
        torn: &mut chain::Torn,
    ) {
        let areas = Areas::new(self.memory());
        let mut cache = Cache::new(&*snapshot.memory);
        for (arena, list) in self.fastbins(&mut cache, &self.layout, &areas, cached) {
            torn.add(|| format!("fastbin {list} of the arena at {arena:#x} does not end"));
        }
        let caches = threads::caches(snapshot, &mut cache, &self.layout, &areas, writable, &self.arenas());
        for message in caches.torn {
            torn.add(|| message);
        }
        if caches.unknown > 0 {
            heap.notes.push(format!(
                "the thread pointers of {} threads are unknown; chunks in their caches count as in use",
                caches.unknown
            ));
        }
        for (address, contents) in caches.found {
            heap.own.push(address);
            for chunk in contents.chunks {
                cached.push(chunk, false);
            }
        }
    }

    /// Where the main arena's structure is.
    pub(super) fn state(&self) -> Range<u64> {
        self.main.address..self.main.address.saturating_add(self.layout.state.size)
    }

    pub(super) fn walk(
        &self,
        walker: &mut Walker,
        areas: &mut Vec<Range<u64>>,
        summaries: &mut Vec<ArenaSummary>,
    ) {
        let mut totals = Totals::default();
        let mut pieces = Vec::new();
        for region in &self.regions {
            pieces.extend(walker.region(region, &mut totals));
        }
        areas.extend(pieces.iter().cloned());
        summaries.push(summary(&self.main, pieces, totals));
        for (arena, heaps) in &self.others {
            let mut totals = Totals::default();
            let mut pieces = Vec::new();
            for heap in heaps.iter().rev() {
                let start = heap.start.saturating_add(self.layout.heap_info);
                let start =
                    if start == arena.address { self.layout.first_chunk_behind(start) } else { Some(start) };
                let region = Region {
                    start: start.unwrap_or(heap.end()),
                    end: heap.end(),
                    top: (heap.start..heap.end()).contains(&arena.top).then_some(arena.top),
                    main: false,
                };
                walker.region(&region, &mut totals);
                pieces.push(heap.area());
            }
            areas.extend(pieces.iter().cloned());
            summaries.push(summary(arena, pieces, totals));
        }
    }
}

fn summary(arena: &arena::Arena, heaps: Vec<Range<u64>>, totals: Totals) -> ArenaSummary {
    ArenaSummary {
        address: arena.address,
        heaps,
        system_bytes: arena.system_mem,
        inuse_bytes: totals.inuse_bytes,
        inuse_blocks: totals.inuse_blocks,
        free_bytes: totals.free_bytes,
        tcache_bytes: totals.tcache_bytes,
        fastbin_bytes: totals.fastbin_bytes,
        top_bytes: totals.top_bytes,
        mutex_locked: arena.locked,
    }
}
