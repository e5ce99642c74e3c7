//! Memcheck's rules once more, as plainly as possible: slow, over maps, one word at a time.

#![allow(dead_code)]

use leakscope_reach::{Block, Blocks, BlocksBuilder, Heap, Heuristic, Kind, Options};
use leakscope_target::Mapping;
use std::collections::{BTreeMap, BTreeSet};

/// A mapping as the kernel would list it.
pub fn mapping(start: u64, end: u64, file: bool, executable: bool) -> Mapping {
    Mapping {
        start,
        end,
        readable: true,
        writable: !executable,
        executable,
        shared: false,
        offset: 0,
        device: 0,
        inode: u64::from(file),
        path: Vec::new(),
    }
}

pub fn collect(list: impl IntoIterator<Item = (u64, u64)>) -> Blocks {
    let mut builder = BlocksBuilder::default();
    for (address, size) in list {
        builder.push(Block { address, size });
    }
    builder.finish()
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub kinds: Vec<Kind>,
    /// Blocks and bytes that hang off a leader, by its index, if there are any.
    pub indirect: BTreeMap<usize, (u64, u64)>,
    pub heuristics: Vec<Option<Heuristic>>,
}

struct Model<'a> {
    heap: &'a Heap<'a>,
    options: &'a Options,
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pointer {
    Start(usize),
    Interior(usize),
    Heuristic(usize, Heuristic),
}

impl Model<'_> {
    fn block_at(&self, address: u64) -> Option<usize> {
        let index = self.blocks.partition_point(|block| block.address <= address).checked_sub(1)?;
        let block = self.blocks[index];
        (block.address == address || address - block.address < block.size).then_some(index)
    }

    fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        self.heap.mappings.iter().find(|mapping| mapping.start <= address && address < mapping.end)
    }

    fn is_table(&self, address: u64) -> bool {
        let in_file = |at| self.mapping_at(at).is_some_and(|mapping| mapping.readable && mapping.inode != 0);
        let mut functions = 0;
        for at in (0..20).map(|word| address.wrapping_add(8 * word)) {
            if !address.is_multiple_of(8) || address < 4096 || !in_file(at) {
                return false;
            }
            let Some(word) = self.heap.memory.word(at) else { return false };
            if word == 0 {
                continue;
            }
            if !self.mapping_at(word).is_some_and(|mapping| mapping.executable && mapping.inode != 0) {
                return false;
            }
            functions += 1;
            if functions == 2 {
                return true;
            }
        }
        false
    }

    fn heuristic(&self, block: Block, pointer: u64) -> Option<Heuristic> {
        let offset = pointer - block.address;
        // A word of the block, if it lies wholly inside and can be read.
        let word = |at: u64| {
            let inside = at.checked_add(8).is_some_and(|end| end <= block.size);
            if inside { self.heap.memory.word(block.address + at) } else { None }
        };
        let enabled = |heuristic| self.options.heuristics.contains(heuristic);
        if enabled(Heuristic::StdString)
            && offset == 24
            && let (Some(length), Some(capacity)) = (word(0), word(8))
            && u128::from(capacity) + 25 == u128::from(block.size)
            && length <= capacity
        {
            return Some(Heuristic::StdString);
        }
        if let Some(first) = word(0)
            && offset == 8
            && first > 0
        {
            if enabled(Heuristic::Length64) && first == block.size - 8 {
                return Some(Heuristic::Length64);
            }
            if enabled(Heuristic::NewArray) && (block.size - 8).is_multiple_of(first) {
                return Some(Heuristic::NewArray);
            }
        }
        if enabled(Heuristic::MultipleInheritance)
            && pointer.is_multiple_of(8)
            && let (Some(first), Some(inner)) = (word(0), word(offset))
            && self.is_table(first)
            && self.is_table(inner)
        {
            return Some(Heuristic::MultipleInheritance);
        }
        None
    }

    fn pointer(&self, word: u64) -> Option<Pointer> {
        let address = word & self.options.pointer_mask;
        let index = self.block_at(address)?;
        let block = self.blocks[index];
        if block.address == address {
            return Some(Pointer::Start(index));
        }
        Some(match self.heuristic(block, address) {
            Some(heuristic) => Pointer::Heuristic(index, heuristic),
            None => Pointer::Interior(index),
        })
    }

    fn contents(&self, index: usize) -> Vec<Pointer> {
        let block = self.blocks[index];
        let Some(start) = block.address.checked_next_multiple_of(8) else { return Vec::new() };
        let end = block.address.saturating_add(block.size) & !7;
        // Only what is mapped: a block of the size of the address space would never end.
        let mapped = self.heap.mappings.iter().filter(|mapping| mapping.readable);
        let parts = mapped.map(|mapping| mapping.start.max(start)..mapping.end.min(end));
        let words = parts.flat_map(|part| part.step_by(8));
        words.filter_map(|at| self.heap.memory.word(at)).filter_map(|word| self.pointer(word)).collect()
    }

    fn roots(&self) -> Vec<Pointer> {
        let mut places = BTreeSet::new();
        for range in &self.heap.roots.ranges {
            for at in (range.start.next_multiple_of(8)..range.end & !7).step_by(8) {
                let in_area = self.heap.areas.iter().any(|area| area.contains(&at));
                let mapped = self.mapping_at(at).is_some_and(|mapping| mapping.readable);
                if mapped && !in_area && self.block_at(at).is_none() {
                    places.insert(at);
                }
            }
        }
        let words = places.into_iter().filter_map(|at| self.heap.memory.word(at));
        let pointers =
            words.chain(self.heap.roots.words.iter().copied()).filter_map(|word| self.pointer(word));
        let blocks = self.heap.roots.blocks.iter().filter(|&&index| index < self.blocks.len());
        pointers.chain(blocks.map(|&index| Pointer::Start(index))).collect()
    }
}

/// The kinds of all blocks, by the rules as written.
pub fn judge(heap: &Heap<'_>, options: &Options) -> Verdict {
    let model = Model { heap, options, blocks: heap.blocks.iter().collect() };
    let contents: Vec<_> = (0..model.blocks.len()).map(|index| model.contents(index)).collect();
    let roots = model.roots();
    let target = |pointer| match pointer {
        Pointer::Start(index) | Pointer::Interior(index) | Pointer::Heuristic(index, _) => index,
    };
    let close = |seeds: &[Pointer], interior: bool| {
        let mut reached = BTreeSet::new();
        let mut waiting = seeds.to_vec();
        while let Some(pointer) = waiting.pop() {
            let counts = interior || !matches!(pointer, Pointer::Interior(_));
            if counts && reached.insert(target(pointer)) {
                waiting.extend(&contents[target(pointer)]);
            }
        }
        reached
    };
    let reachable = close(&roots, false);
    let possible = close(&roots, true);
    let mut kinds = vec![None; model.blocks.len()];
    let mut heuristics = vec![None; model.blocks.len()];
    for &index in &possible {
        kinds[index] = Some(Kind::Possible);
    }
    for &index in &reachable {
        kinds[index] = Some(Kind::Reachable);
    }
    let mut ways: BTreeMap<usize, Vec<Pointer>> = BTreeMap::new();
    for &pointer in roots.iter().chain(reachable.iter().flat_map(|&holder| &contents[holder])) {
        ways.entry(target(pointer)).or_default().push(pointer);
    }
    for &index in &reachable {
        let ways = &ways[&index];
        if !ways.iter().any(|way| matches!(way, Pointer::Start(_))) {
            let found = ways.iter().filter_map(|way| match way {
                Pointer::Heuristic(_, heuristic) => Some(*heuristic),
                _ => None,
            });
            heuristics[index] = found.min();
        }
    }
    let mut groups: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for leader in 0..model.blocks.len() {
        if kinds[leader].is_some() {
            continue;
        }
        let mut group = BTreeSet::new();
        let mut waiting = vec![leader];
        while let Some(index) = waiting.pop() {
            for pointer in &contents[index] {
                let next = target(*pointer);
                if next != leader && kinds[next].is_none() {
                    kinds[next] = Some(Kind::Indirect);
                    group.insert(next);
                    if let Some(earlier) = groups.remove(&next) {
                        group.extend(earlier);
                    }
                    waiting.push(next);
                }
            }
        }
        groups.insert(leader, group);
    }
    let bytes = |group: &BTreeSet<usize>| {
        group.iter().fold(0u64, |sum, &index| sum.saturating_add(model.blocks[index].size))
    };
    let indirect = groups.iter().filter(|(_, group)| !group.is_empty());
    Verdict {
        kinds: kinds.into_iter().map(|kind| kind.unwrap_or(Kind::Definite)).collect(),
        indirect: indirect.map(|(&leader, group)| (leader, (group.len() as u64, bytes(group)))).collect(),
        heuristics,
    }
}

/// What the scan says, in the same form.
pub fn scanned(heap: &Heap<'_>, options: &Options) -> Verdict {
    let findings = leakscope_reach::scan(heap, options, None);
    let indices = || 0..heap.blocks.len();
    let indirect = indices().filter(|&index| findings.kind(index) == Some(Kind::Definite));
    let indirect =
        indirect.map(|index| (index, findings.indirect(index))).filter(|(_, count)| count.blocks > 0);
    Verdict {
        kinds: indices().filter_map(|index| findings.kind(index)).collect(),
        indirect: indirect.map(|(index, count)| (index, (count.blocks, count.bytes))).collect(),
        heuristics: indices().map(|index| findings.heuristic(index)).collect(),
    }
}
