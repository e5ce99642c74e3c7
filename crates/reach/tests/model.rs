//! Random heaps: the scan says what memcheck's rules, written down plainly, say.

mod common;

use common::{collect, judge, mapping, scanned};
use leakscope_reach::{Blocks, Heap, Heuristic, Heuristics, Options, Roots};
use leakscope_target::{Mapping, Pieces};
use proptest::prelude::*;
use std::ops::Range;

const HEAP: u64 = 0x5555_0000_0000;
const DATA: u64 = 0x7f00_0000_0000;
const TABLES: u64 = 0x7f80_0000_0000;
const CODE: u64 = 0x7f80_0010_0000;
const PAGE: u64 = 4096;

/// What a random heap is made of.
#[derive(Debug, Clone)]
struct Recipe {
    /// Gap before each block, in bytes, and its size.
    blocks: Vec<(u64, u64)>,
    /// What the words of the heap and of the data are, in turn.
    words: Vec<(u8, u16, u16)>,
    /// Pages of the heap that cannot be read, though mapped; and that are not mapped.
    holes: Vec<(u8, bool)>,
    areas: Vec<(u64, u64)>,
    roots: Vec<(u64, u64)>,
    /// Words of data that are pointers at all.
    live: u8,
    root_words: Vec<(u8, u16, u16)>,
    root_blocks: Vec<usize>,
    heuristics: u8,
    masked: bool,
    threads: usize,
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let gap = prop_oneof![8 => (0..6u64).prop_map(|gap| gap * 8), 1 => 0..40u64, 1 => (0..9000u64).prop_map(|gap| gap & !7)];
    let size = prop_oneof![
        1 => Just(0u64),
        6 => 1..64u64,
        3 => (1..16u64).prop_map(|words| words * 8),
        1 => 64..600u64,
        1 => 4000..9000u64
    ];
    let word = || (any::<u8>(), any::<u16>(), any::<u16>());
    let what = (
        prop::collection::vec((gap, size), 0..40),
        prop::collection::vec(word(), 1..200),
        prop::collection::vec((0..8u8, any::<bool>()), 0..3),
        prop::collection::vec((0..30_000u64, 0..5000u64), 0..3),
    );
    let from = (
        prop::collection::vec((0..30_000u64, 0..2000u64), 0..3),
        any::<u8>(),
        prop::collection::vec(word(), 0..3),
        prop::collection::vec(0..60usize, 0..2),
        0..16u8,
        any::<bool>(),
        1..4usize,
    );
    (what, from).prop_map(|((blocks, words, holes, areas), from)| {
        let (roots, live, root_words, root_blocks, heuristics, masked, threads) = from;
        Recipe {
            blocks,
            words,
            holes,
            areas,
            roots,
            live,
            root_words,
            root_blocks,
            heuristics,
            masked,
            threads,
        }
    })
}

struct Made {
    memory: Pieces,
    blocks: Blocks,
    areas: Vec<Range<u64>>,
    mappings: Vec<Mapping>,
    roots: Roots,
    options: Options,
}

fn make(recipe: &Recipe) -> Made {
    let mut at = HEAP + 16;
    let mut list = Vec::new();
    for &(gap, size) in &recipe.blocks {
        at += gap;
        list.push((at, size));
        // Mostly aligned, as allocators do it.
        at = (at + size.max(1)).next_multiple_of(if gap % 8 == 0 { 8 } else { 1 });
    }
    let end = at.next_multiple_of(PAGE);
    let blocks = collect(list.iter().copied());
    let word = |&(what, which, offset): &(u8, u16, u16)| {
        let (address, size) = match list.len() {
            0 => (0, 0),
            count => list[usize::from(which) % count],
        };
        let tag = if recipe.masked { u64::from(offset) << 48 } else { 0 };
        match what % 16 {
            0..4 => address | tag,
            4 => address + u64::from(offset) % size.max(1),
            5 => address + size,
            6 => address + 8,
            7 => address + 24,
            8 => size.wrapping_sub(8),
            9 => size.wrapping_sub(25),
            10 => u64::from(offset % 8),
            11 => TABLES + u64::from(which % 16) * 24,
            12 => address + u64::from(offset % 12) * 8,
            13 => u64::from(which) << 32 | u64::from(offset),
            _ => 0,
        }
    };
    let fill = |start: u64, length: u64, live: u8| {
        let places = (start..start + length).step_by(8).enumerate();
        let words = places.map(|(index, at)| {
            let pick = (index as u64 + at / PAGE * 7) as usize % recipe.words.len();
            let chosen = &recipe.words[pick];
            if u64::from(chosen.0) + at / 8 % 64 * 4 <= u64::from(live) { word(chosen) } else { 0 }
        });
        words.flat_map(u64::to_ne_bytes).collect::<Vec<u8>>()
    };
    let (mut pieces, mut mappings) = (Vec::new(), Vec::new());
    for page in (HEAP..end).step_by(PAGE as usize) {
        let number = ((page - HEAP) / PAGE) as u8;
        match recipe.holes.iter().find(|hole| hole.0 == number) {
            Some((_, true)) => mappings.push(mapping(page, page + PAGE, false, false)),
            Some((_, false)) => {}
            None => {
                mappings.push(mapping(page, page + PAGE, false, false));
                pieces.push((page, fill(page, PAGE, 255)));
            }
        }
    }
    // The words must also be what heuristics look for: the first words of some blocks are set to that.
    pieces.push((DATA, fill(DATA, PAGE, recipe.live)));
    mappings.push(mapping(DATA, DATA + PAGE, false, false));
    // Tables with functions, with nothing, with too few, and with something else, over and over, up to the end.
    let table = [0, CODE + 8, CODE + 16, 0, 0, DATA, CODE, 5];
    let tables =
        (0..PAGE / 8).map(|index| if !(40..=505).contains(&index) { table[index as usize % 8] } else { 0 });
    pieces.push((TABLES, tables.flat_map(u64::to_ne_bytes).collect()));
    mappings.push(mapping(TABLES, TABLES + PAGE, true, false));
    mappings.push(mapping(CODE, CODE + PAGE, true, true));
    mappings.sort_by_key(|mapping| mapping.start);
    let ranges = recipe.roots.iter().map(|&(from, length)| HEAP + from..HEAP + from + length);
    let data = DATA..DATA + u64::from(recipe.live) * 8;
    let enabled =
        Heuristic::ALL.into_iter().filter(|&heuristic| recipe.heuristics >> heuristic as u8 & 1 != 0);
    Made {
        memory: Pieces::new(pieces),
        blocks,
        areas: recipe.areas.iter().map(|&(from, length)| HEAP + from..HEAP + from + length).collect(),
        mappings,
        roots: Roots {
            ranges: ranges.chain([data]).collect(),
            words: recipe.root_words.iter().map(word).collect(),
            blocks: recipe.root_blocks.clone(),
        },
        options: Options {
            pointer_mask: if recipe.masked { (1 << 48) - 1 } else { u64::MAX },
            heuristics: enabled.fold(Heuristics::NONE, Heuristics::with),
            threads: recipe.threads,
        },
    }
}

impl Made {
    fn heap(&self) -> Heap<'_> {
        Heap {
            memory: &self.memory,
            blocks: &self.blocks,
            areas: &self.areas,
            mappings: &self.mappings,
            roots: &self.roots,
        }
    }
}

/// Random heaps: few on every change, more in the long form.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_scan_agrees_with_the_rules_on_any_heap(recipe in recipe()) {
        let made = make(&recipe);
        prop_assert_eq!(scanned(&made.heap(), &made.options), judge(&made.heap(), &made.options));
    }
}
