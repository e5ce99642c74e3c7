//! Heaps large enough for all the ways that the scan takes: chunks, full blocks, pieces, several threads; and chains.

mod common;

use common::{collect, judge, mapping, scanned};
use leakscope_reach::{Blocks, Heap, Kind, Options, Origin, Progress, Roots, holders, scan, scan_keeping};
use leakscope_target::{Mapping, Memory, Pieces};
use std::sync::Mutex;

const HEAP: u64 = 0x5555_0000_0000;
const DATA: u64 = 0x7f00_0000_0000;

struct Large {
    memory: Pieces,
    blocks: Blocks,
    mappings: Vec<Mapping>,
    roots: Roots,
}

fn random(state: &mut u64, limit: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % limit
}

/// Blocks of up to 200 bytes, some with many pointers, a few of megabytes; a third of it leads nowhere from the roots.
fn large(count: u64, pointers: u64) -> Large {
    let mut state = 88_172_645_463_325_252;
    let mut list = Vec::new();
    let mut at = HEAP + 16;
    for number in 0..count {
        let size = match number % (count / 3) {
            1 => 9 << 18,
            _ => random(&mut state, 200),
        };
        list.push((at, size));
        at += size.next_multiple_of(16) + 16;
    }
    let length = (at - HEAP).next_multiple_of(4096);
    let mut words = vec![0u64; (length / 8) as usize];
    for &(address, size) in &list {
        let mut degree = random(&mut state, pointers);
        if random(&mut state, 50) == 0 || size > 1000 {
            degree = size;
        }
        for place in (0..size / 8).take(degree as usize) {
            let (target, target_size) = list[random(&mut state, count) as usize];
            let inside = if random(&mut state, 4) == 0 { random(&mut state, target_size.max(1)) } else { 0 };
            words[((address - HEAP) / 8 + place) as usize] = target + inside;
        }
    }
    let data = (0..20).map(|_| list[random(&mut state, count) as usize].0);
    let bytes = |words: Vec<u64>| words.into_iter().flat_map(u64::to_ne_bytes).collect::<Vec<u8>>();
    let data = bytes(data.collect());
    let range = DATA..DATA + data.len() as u64;
    Large {
        memory: Pieces::new(vec![(HEAP, bytes(words)), (DATA, data)]),
        blocks: collect(list),
        mappings: vec![mapping(HEAP, HEAP + length, false, false), mapping(DATA, DATA + 4096, false, false)],
        roots: Roots { ranges: std::iter::once(range).collect(), ..Roots::default() },
    }
}

impl Large {
    fn heap(&self) -> Heap<'_> {
        let Large { memory, blocks, mappings, roots } = self;
        Heap { memory, blocks, areas: &[], mappings, roots }
    }
}

#[test]
fn any_number_of_threads_says_the_same() {
    for pointers in [2, 3, 20] {
        let large = large(30_000, pointers);
        let options = |threads| Options { threads, ..Options::default() };
        let one = scanned(&large.heap(), &options(1));
        assert!(one.kinds.contains(&Kind::Reachable));
        for threads in [2, 3, 8] {
            assert!(scanned(&large.heap(), &options(threads)) == one);
        }
    }
}

#[test]
fn full_blocks_and_large_ones_are_scanned_as_the_rules_say() {
    for pointers in [2, 3, 20] {
        let large = large(6000, pointers);
        let options = Options::default();
        assert!(scanned(&large.heap(), &options) == judge(&large.heap(), &options));
    }
}

#[test]
fn progress_reaches_all_blocks() {
    let large = large(10_000, 3);
    let steps = Mutex::new(Vec::new());
    scan(
        &large.heap(),
        &Options::default(),
        Some(&|progress: Progress| steps.lock().unwrap().push(progress)),
    );
    let steps = steps.into_inner().unwrap();
    let counted =
        |step| steps.iter().filter(|progress| progress.step == step).map(|progress| progress.done).max();
    assert_eq!(counted(leakscope_reach::Step::Blocks), Some(10_000));
    assert_eq!(counted(leakscope_reach::Step::Roots), Some(160));
}

#[test]
fn every_hop_of_a_chain_is_a_pointer_to_the_next_block() {
    let large = large(20_000, 3);
    let heap = large.heap();
    let options = Options::default();
    let findings = scan(&heap, &options, None);
    let wanted: Vec<usize> = (0..large.blocks.len()).step_by(7).chain([usize::MAX]).collect();
    let chains = holders(&heap, &options, &wanted, usize::MAX);
    assert_eq!(chains.len(), wanted.len());
    for (&index, chain) in wanted.iter().zip(&chains) {
        let held = matches!(findings.kind(index), Some(Kind::Reachable | Kind::Possible));
        assert_eq!(held, chain.is_some(), "{index}");
        let Some(chain) = chain else { continue };
        let Origin::Memory(root) = chain.origin else { panic!("{:?}", chain.origin) };
        assert!(large.roots.ranges[0].contains(&root));
        let mut pointer = large.memory.word(root);
        for hop in &chain.hops {
            let block = large.blocks.get(hop.block).unwrap();
            assert_eq!(pointer, Some(block.address + hop.into));
            assert!(hop.into == 0 || findings.kind(index) == Some(Kind::Possible) || hop.into < block.size);
            pointer = hop.field.and_then(|field| large.memory.word(block.address + field));
        }
        assert_eq!(chain.hops.last().map(|hop| (hop.block, hop.field)), Some((index, None)));
        // Shortest: with one block less there is none that is as good.
        let shorter = chain.hops.len() - 1;
        if index % 1000 == 0 && findings.kind(index) == Some(Kind::Possible) {
            assert_eq!(holders(&heap, &options, &[index], shorter), [None]);
        }
    }
}

#[test]
fn the_holders_of_all_blocks_are_those_that_are_found_for_each() {
    let large = large(800, 3);
    let heap = large.heap();
    let options = Options::default();
    let (findings, pointers) = scan_keeping(&heap, &options, None);
    let all: Vec<usize> = (0..large.blocks.len()).collect();
    let chains = holders(&heap, &options, &all, usize::MAX);
    let some: Vec<usize> = all.iter().copied().step_by(97).collect();
    let mut links = std::collections::BTreeSet::new();
    for (held, wanted) in [(pointers.holders(None, &[]), &all), (pointers.holders(Some(&some), &[]), &some)] {
        for &index in wanted {
            let path = held.path(index);
            assert_eq!(path.is_some(), chains[index].is_some(), "{index}");
            assert_eq!(path.is_some(), held.is_held(index));
            let (Some(path), Some(chain)) = (path, &chains[index]) else { continue };
            if findings.kind(index) == Some(Kind::Reachable) {
                assert_eq!(path.blocks.len(), chain.hops.len(), "{index}");
            }
            let Origin::Memory(root) = path.origin else { panic!("{:?}", path.origin) };
            let held = |pointer| large.memory.word(pointer).and_then(|word| large.blocks.find(word));
            assert_eq!(held(root), path.blocks.first().copied());
            links.extend(path.blocks.windows(2).map(|pair| (pair[0], pair[1])));
            assert_eq!(path.blocks.last(), Some(&index));
        }
    }
    // Some of them: in a large block it takes long to find one.
    let links: Vec<(usize, usize)> = links.into_iter().step_by(20).collect();
    assert!(links.len() > 10);
    for (&(holder, target), link) in links.iter().zip(pointers.links(&links)) {
        let link = link.unwrap();
        let address = large.blocks.get(holder).unwrap().address + link.field;
        assert_eq!(large.memory.word(address), Some(link.pointer));
        assert_eq!(large.blocks.find(link.pointer), Some(target));
    }
    let nothing = pointers.holders(Some(&[]), &[]);
    assert_eq!((nothing.path(0), nothing.holder(usize::MAX)), (None, None));
}

#[test]
fn a_longer_chain_from_a_lasting_root_is_preferred_to_one_from_a_stack() {
    // The stack leads to the second block directly, a global variable over the first; only the stack to the third.
    let words = [HEAP + 64, 0, 0, 0].map(u64::to_ne_bytes).concat();
    let (stack, global) = (0x1000u64, 0x2000u64);
    let memory = Pieces::new(vec![
        (stack, [HEAP + 64, HEAP + 128].map(u64::to_ne_bytes).concat()),
        (global, HEAP.to_ne_bytes().to_vec()),
        (HEAP, words),
    ]);
    let blocks = collect([(HEAP, 32), (HEAP + 64, 32), (HEAP + 128, 32)]);
    let ranges = vec![stack..stack + 16, global..global + 8];
    let roots = Roots { ranges, words: vec![HEAP], ..Roots::default() };
    let heap = Heap { memory: &memory, blocks: &blocks, areas: &[], mappings: &[], roots: &roots };
    let (_, pointers) = scan_keeping(&heap, &Options::default(), None);
    let weak = stack..stack + 16;
    let held = pointers.holders(None, std::slice::from_ref(&weak));
    let paths: Vec<_> =
        (0..3).filter_map(|index| held.path(index)).map(|path| (path.origin, path.blocks)).collect();
    let expected = [
        (Origin::Memory(global), vec![0]),
        (Origin::Memory(global), vec![0, 1]),
        (Origin::Memory(stack + 8), vec![2]),
    ];
    assert_eq!(paths, expected);
    let held = pointers.holders(None, &[]);
    assert_eq!(held.path(1).map(|path| path.origin), Some(Origin::Memory(stack)));
}

#[test]
fn registers_and_root_blocks_are_origins_too() {
    let memory = Pieces::new(vec![(
        HEAP,
        [HEAP + 64, 0, 0, 0].iter().flat_map(|word: &u64| word.to_ne_bytes()).collect(),
    )]);
    let blocks = collect([(HEAP, 32), (HEAP + 64, 32), (HEAP + 128, 32)]);
    let roots = Roots { words: vec![7, HEAP + 130], blocks: vec![0, 99], ..Roots::default() };
    let heap = Heap { memory: &memory, blocks: &blocks, areas: &[], mappings: &[], roots: &roots };
    let chains = holders(&heap, &Options::default(), &[1, 2], 5);
    let origins: Vec<_> = chains.iter().flatten().map(|chain| (chain.origin, chain.hops.len())).collect();
    assert_eq!(origins, [(Origin::Block, 2), (Origin::Word(1), 1)]);
    assert_eq!(holders(&heap, &Options::default(), &[1], 1), [None]);
    assert_eq!(holders(&heap, &Options::default(), &[0], 0), [None]);
}

#[test]
fn a_block_of_the_whole_address_space_and_roots_everywhere_end() {
    let memory = Pieces::new(vec![(HEAP, HEAP.to_ne_bytes().to_vec())]);
    let all = std::iter::once(0..u64::MAX);
    let roots = Roots { ranges: all.collect(), ..Roots::default() };
    let mappings = [mapping(HEAP, HEAP + 4096, false, false)];
    for list in [vec![(8, u64::MAX)], vec![(8, 1 << 40), (1 << 46, 1 << 46), (u64::MAX - 7, 100)]] {
        let blocks = collect(list);
        for mappings in [&mappings[..], &[]] {
            let roots = if mappings.is_empty() { &Roots::default() } else { &roots };
            let heap = Heap { memory: &memory, blocks: &blocks, areas: &[], mappings, roots };
            let findings = scan(&heap, &Options::default(), None);
            assert_eq!(findings.len(), blocks.len());
        }
    }
}
