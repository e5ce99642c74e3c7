//! Memcheck's rules one by one, on heaps small enough to be read.

mod common;

use common::{collect, judge, mapping, scanned};
use leakscope_reach::{Heap, Heuristic, Heuristics, Kind, Options, Roots, scan};
use leakscope_target::{Mapping, Pieces};
use std::collections::BTreeMap;

const HEAP: u64 = 0x5555_0000_0000;
const DATA: u64 = 0x7f00_0000_0000;
const TABLES: u64 = 0x7f80_0000_0000;
const CODE: u64 = 0x7f80_0010_0000;

/// A heap of blocks `(offset, size)`, words at offsets, and root words.
#[derive(Default, Clone)]
struct Case {
    blocks: Vec<(u64, u64)>,
    words: BTreeMap<u64, u64>,
    roots: Vec<u64>,
    tables: Vec<u64>,
    options: Options,
}

fn at(offset: u64) -> u64 {
    HEAP + offset
}

impl Case {
    fn new(blocks: &[(u64, u64)], words: &[(u64, u64)], roots: &[u64]) -> Case {
        Case {
            blocks: blocks.to_vec(),
            words: words.iter().copied().collect(),
            roots: roots.to_vec(),
            options: Options { threads: 1, ..Options::default() },
            ..Case::default()
        }
    }

    fn with<T>(&self, ask: impl Fn(&Heap<'_>, &Options) -> T) -> T {
        let blocks = collect(self.blocks.iter().map(|&(offset, size)| (at(offset), size)));
        let end =
            self.blocks.iter().map(|&(offset, size)| offset + size).max().unwrap_or(0).next_multiple_of(4096);
        let heap = (0..end).step_by(8).map(|offset| self.words.get(&offset).copied().unwrap_or(0));
        let bytes =
            |words: &mut dyn Iterator<Item = u64>| words.flat_map(u64::to_ne_bytes).collect::<Vec<u8>>();
        let mut tables = self.tables.clone();
        tables.resize(512, 0);
        let memory = Pieces::new(vec![
            (HEAP, bytes(&mut heap.into_iter())),
            (DATA, bytes(&mut self.roots.iter().copied())),
            (TABLES, bytes(&mut tables.into_iter())),
        ]);
        let mappings: Vec<Mapping> = vec![
            mapping(HEAP, HEAP + end, false, false),
            mapping(DATA, DATA + 4096, false, false),
            mapping(TABLES, TABLES + 4096, true, false),
            mapping(CODE, CODE + 4096, true, true),
        ];
        let data = DATA..DATA + self.roots.len() as u64 * 8;
        let roots = Roots { ranges: std::iter::once(data).collect(), ..Roots::default() };
        let heap = Heap { memory: &memory, blocks: &blocks, areas: &[], mappings: &mappings, roots: &roots };
        ask(&heap, &self.options)
    }

    #[track_caller]
    fn kinds(&self, expected: &[Kind]) {
        let verdict = self.with(scanned);
        assert_eq!(verdict.kinds, expected);
        assert_eq!(verdict, self.with(judge));
    }

    #[track_caller]
    fn heuristic(&self, expected: Option<Heuristic>) {
        let verdict = self.with(scanned);
        assert_eq!(verdict.heuristics[0], expected);
        assert_eq!(verdict, self.with(judge));
        let kind = if expected.is_some() { Kind::Reachable } else { Kind::Possible };
        assert_eq!(verdict.kinds[0], kind);
        // Switched off, it is an interior pointer as any other.
        if let Some(heuristic) = expected {
            let mut off = self.clone();
            off.options.heuristics = Heuristics::ALL.without(heuristic);
            assert_ne!(off.with(scanned).heuristics[0], expected);
            off.options.heuristics = Heuristics::NONE;
            assert_eq!(off.with(scanned).kinds[0], Kind::Possible);
        }
    }
}

use Kind::{Definite, Indirect, Possible, Reachable};

#[test]
fn a_start_makes_reachable_the_inside_possible_and_one_past_the_end_nothing() {
    Case::new(&[(0, 40), (64, 40), (128, 40)], &[], &[at(0), at(64 + 39), at(128 + 40)])
        .kinds(&[Reachable, Possible, Definite]);
}

#[test]
fn a_block_of_no_bytes_is_matched_by_its_start_alone() {
    Case::new(&[(0, 0), (16, 0)], &[], &[at(0), at(17)]).kinds(&[Reachable, Definite]);
}

#[test]
fn an_upgrade_from_possible_reaches_all_that_hangs_off() {
    let blocks = [(0, 16), (16, 16), (32, 16), (48, 32)];
    let words = [(0, at(16)), (16, at(32)), (48, at(0))];
    Case::new(&blocks, &words, &[at(4)]).kinds(&[Possible, Possible, Possible, Definite]);
    Case::new(&blocks, &words, &[at(4), at(48)]).kinds(&[Reachable; 4]);
}

#[test]
fn a_cycle_has_one_leader_and_a_later_leader_takes_over_groups() {
    // 0 <-> 1; 3 -> 1 through the inside; 2 -> 4, 5 -> 2.
    let blocks = [(0, 16), (16, 24), (48, 16), (64, 16), (80, 16), (96, 16)];
    let words = [(0, at(16)), (16, at(0)), (64, at(20)), (48, at(80)), (96, at(48))];
    let case = Case::new(&blocks, &words, &[]);
    case.kinds(&[Definite, Indirect, Indirect, Definite, Indirect, Definite]);
    case.with(|heap, options| {
        let findings = scan(heap, options, None);
        assert_eq!(findings.indirect(0).bytes, 24);
        assert_eq!(findings.indirect(3).blocks, 0);
        assert_eq!((findings.indirect(5).blocks, findings.indirect(5).bytes), (2, 32));
        assert_eq!(findings.count(Definite).blocks, 3);
    });
}

#[test]
fn a_block_that_points_to_itself_is_its_own_leader() {
    Case::new(&[(0, 16)], &[(0, at(0))], &[]).kinds(&[Definite]);
}

#[test]
fn a_string_is_found_by_the_start_of_its_characters() {
    let string = |length, capacity, size, pointer| {
        Case::new(&[(0, size)], &[(0, length), (8, capacity)], &[at(pointer)])
    };
    string(10, 15, 40, 24).heuristic(Some(Heuristic::StdString));
    string(15, 15, 40, 24).heuristic(Some(Heuristic::StdString));
    string(0, 0, 25, 24).heuristic(Some(Heuristic::StdString));
    string(16, 15, 40, 24).heuristic(None);
    string(10, 16, 40, 24).heuristic(None);
    string(10, 15, 40, 32).heuristic(None);
    string(10, u64::MAX - 3, 40, 24).heuristic(None);
}

#[test]
fn a_length_in_front_is_that_of_the_rest() {
    let block = |first, size, pointer| Case::new(&[(0, size)], &[(0, first)], &[at(pointer)]);
    block(48, 56, 8).heuristic(Some(Heuristic::Length64));
    block(1, 9, 8).heuristic(Some(Heuristic::Length64));
    block(48, 56, 16).heuristic(None);
    block(49, 56, 8).heuristic(None);
    block(0, 56, 8).heuristic(None);
}

#[test]
fn an_array_has_a_cookie_that_divides_the_rest() {
    let block = |first, size, pointer| Case::new(&[(0, size)], &[(0, first)], &[at(pointer)]);
    block(6, 56, 8).heuristic(Some(Heuristic::NewArray));
    block(1, 56, 8).heuristic(Some(Heuristic::NewArray));
    block(5, 56, 8).heuristic(None);
    block(96, 56, 8).heuristic(None);
    block(6, 56, 16).heuristic(None);
}

#[test]
fn a_second_base_has_a_table_of_functions_as_the_first_has() {
    let case = |first: u64, inner: u64, pointer: u64, table: &[u64]| {
        let mut case = Case::new(&[(0, 48)], &[(0, TABLES + first), (16, TABLES + inner)], &[at(pointer)]);
        case.tables = table.to_vec();
        case
    };
    let table = [CODE, CODE + 16, 0, 0, CODE, 0, CODE + 4, DATA, CODE, CODE];
    let found = Some(Heuristic::MultipleInheritance);
    case(0, 0, 16, &table).heuristic(found);
    case(0, 16, 16, &table).heuristic(found);
    // The inner word is no table, since what follows the one function is data.
    case(0, 48, 16, &table).heuristic(None);
    case(48, 0, 16, &table).heuristic(None);
    case(0, 0, 24, &table).heuristic(None);
    case(0, 0, 17, &table).heuristic(None);
    case(4, 0, 16, &table).heuristic(None);
    // The second function is the twentieth word, or comes too late.
    let apart = |between: usize| [vec![CODE], vec![0; between], vec![CODE]].concat();
    case(0, 0, 16, &apart(18)).heuristic(found);
    case(0, 0, 16, &apart(19)).heuristic(None);
}

#[test]
fn tags_in_pointers_are_masked() {
    let mut case = Case::new(&[(0, 16), (16, 16)], &[(0, at(16) | 3 << 56)], &[at(0) | 1]);
    case.kinds(&[Possible, Definite]);
    case.options.pointer_mask = 0x0000_ffff_ffff_fff8;
    case.kinds(&[Reachable, Reachable]);
}
