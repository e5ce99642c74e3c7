//! Blocks to records, and records of two scans against each other.

use leakscope_leaks::*;
use leakscope_profile::Frame;
use std::path::Path;
use std::time::Duration;

fn frame(function: &str, line: u32) -> Frame {
    let file = Some("a.c".to_owned());
    Frame { function: Some(function.to_owned()), file, line: Some(line), ..Frame::default() }
}

fn stack(functions: &[&str]) -> Stack {
    Stack { frames: functions.iter().map(|function| frame(function, 1)).collect(), ..Stack::default() }
}

fn block(address: u64, size: u64, kind: Kind) -> FoundBlock {
    FoundBlock {
        address,
        size,
        kind,
        indirect_bytes: 0,
        indirect_blocks: 0,
        stack: None,
        signature: None,
        age: None,
    }
}

fn on(stack: u32, block: FoundBlock) -> FoundBlock {
    FoundBlock { stack: Some(stack), ..block }
}

fn records(blocks: &[FoundBlock], stacks: &[Stack]) -> Merged {
    merge(blocks.iter().copied(), &Names { stacks, types: &[] }, &Suppressions::none())
}

#[test]
fn blocks_of_one_kind_and_stack_are_one_record_and_every_block_is_in_one_sum() {
    // The first two print the same: only the allocator's own frames differ.
    let stacks = [
        stack(&["make", "main"]),
        stack(&["operator new(unsigned long)", "make", "main"]),
        stack(&["other"]),
    ];
    let leader = FoundBlock { indirect_bytes: 40, indirect_blocks: 2, ..block(0x10, 100, Kind::Definite) };
    let blocks = [
        on(0, leader),
        on(1, block(0x200, 50, Kind::Definite)),
        on(0, block(0x300, 15, Kind::Indirect)),
        on(2, block(0x400, 25, Kind::Indirect)),
        on(0, block(0x500, 7, Kind::Reachable)),
    ];
    let merged = records(&blocks, &stacks);
    let seen: Vec<_> = merged
        .records
        .iter()
        .map(|record| (record.kind, record.bytes, record.direct_bytes, record.indirect_blocks, record.blocks))
        .collect();
    let expected = [
        (Kind::Reachable, 7, 7, 0, 1),
        (Kind::Indirect, 15, 15, 0, 1),
        (Kind::Indirect, 25, 25, 0, 1),
        (Kind::Definite, 190, 150, 2, 2),
    ];
    assert_eq!(seen, expected);
    let amount = |bytes, blocks| Amount { bytes, blocks };
    let sums = Summary {
        definite: amount(150, 2),
        indirect: amount(40, 2),
        reachable: amount(7, 1),
        ..Summary::default()
    };
    assert_eq!(merged.summary, sums);
    let largest = &merged.records[3];
    assert_eq!(
        largest.stack.iter().map(|frame| frame.function.as_deref()).collect::<Vec<_>>(),
        [Some("make"), Some("main")]
    );
    assert_eq!((largest.sizes, &largest.examples[..]), (SizeRange { min: 50, max: 100 }, &[0x10, 0x200][..]));
    let places: Vec<_> = blocks.iter().map(|block| merged.record_of(block)).collect();
    assert_eq!(places, [Some(3), Some(3), Some(1), Some(2), Some(0)]);
}

#[test]
fn without_stacks_blocks_are_told_apart_by_type_and_size_class() {
    let types = ["Session".to_owned()];
    let typed = |block| FoundBlock { signature: Some(0), ..block };
    let blocks = [
        block(1, 40, Kind::Definite),
        block(2, 40, Kind::Definite),
        block(3, 56, Kind::Definite),
        typed(block(4, 40, Kind::Definite)),
        typed(block(5, 4096, Kind::Definite)),
        // An eighth of a doubling is one class.
        block(6, 5000, Kind::Definite),
        block(7, 5100, Kind::Definite),
    ];
    let merged = merge(blocks, &Names { stacks: &[], types: &types }, &Suppressions::none());
    let seen: Vec<_> = merged
        .records
        .iter()
        .map(|record| (record.type_name.as_deref(), record.blocks, record.bytes))
        .collect();
    let expected = [
        (Some("Session"), 1, 40),
        (None, 1, 56),
        (None, 2, 80),
        (Some("Session"), 1, 4096),
        (None, 2, 10_100),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_the_caller_does_not_name_is_an_empty_stack_and_sums_saturate() {
    let blocks = [on(7, block(0, u64::MAX, Kind::Definite)), on(8, block(0, u64::MAX, Kind::Definite))];
    let merged = records(&blocks, &[]);
    assert_eq!(merged.records.len(), 1);
    assert_eq!(merged.summary.definite, Amount { bytes: u64::MAX, blocks: 2 });
}

#[test]
fn a_suppressed_record_is_summed_apart_and_its_use_is_counted() {
    let mut suppressions = Suppressions::none();
    let text = "{\n known\n Memcheck:Leak\n match-leak-kinds: definite\n fun:malloc\n fun:make\n}\n";
    suppressions.add_text(Path::new("my.supp"), text).expect("a suppression");
    let stacks = [stack(&["make", "main"]), stack(&["make", "other"]), stack(&["lose"])];
    let blocks = [
        on(0, block(1, 10, Kind::Definite)),
        on(0, block(2, 10, Kind::Definite)),
        on(0, block(3, 3, Kind::Possible)),
        on(1, block(4, 5, Kind::Definite)),
        on(2, block(5, 1, Kind::Definite)),
    ];
    let merged = merge(blocks, &Names { stacks: &stacks, types: &[] }, &suppressions);
    assert_eq!(merged.summary.suppressed, Amount { bytes: 25, blocks: 3 });
    assert_eq!(merged.summary.definite, Amount { bytes: 1, blocks: 1 });
    assert_eq!(merged.summary.total(), Amount { bytes: 29, blocks: 5 });
    let [used] = &merged.suppressions[..] else { panic!("{:?}", merged.suppressions) };
    assert_eq!(
        (used.name.as_str(), used.records, used.amount),
        ("known", 2, Amount { bytes: 25, blocks: 3 })
    );
    assert_eq!((used.origin.path.as_path(), used.origin.line), (Path::new("my.supp"), 1));
    let names: Vec<_> = merged.records.iter().map(|record| record.suppressed_by.as_deref()).collect();
    assert_eq!(names, [None, None, Some("known"), Some("known")]);
}

#[test]
fn ages_span_the_youngest_and_the_oldest() {
    let aged = |seconds, block| FoundBlock { age: Some(Duration::from_secs(seconds)), ..on(0, block) };
    let blocks = [aged(5, block(1, 8, Kind::Definite)), aged(50, block(2, 8, Kind::Definite))];
    let ages = records(&blocks, &[stack(&["f"])]).records[0].ages.expect("known");
    assert_eq!(ages, Ages { youngest: Duration::from_secs(5), oldest: Duration::from_secs(50) });
}

#[test]
fn the_result_does_not_depend_on_the_order_of_blocks() {
    let stacks: Vec<Stack> = (0..50).map(|n| stack(&[&format!("f{}", n % 20), "main"])).collect();
    let mut blocks: Vec<_> =
        (0u32..500).map(|n| on(n % 50, block(u64::from(n) * 64, 32, Kind::Definite))).collect();
    let forward = records(&blocks, &stacks).records;
    blocks.reverse();
    assert_eq!(records(&blocks, &stacks).records, forward);
    assert_eq!(forward.len(), 20);
}

#[test]
fn a_later_scan_tells_what_is_new_grown_and_gone_per_minute_and_who_held_it() {
    let stacks = [stack(&["grows"]), stack(&["stays"]), stack(&["goes"]), stack(&["comes"])];
    let before = records(
        &[
            on(0, block(0x10, 100, Kind::Definite)),
            on(1, block(0x20, 7, Kind::Definite)),
            on(2, block(0x30, 9, Kind::Definite)),
            on(0, block(0x40, 100, Kind::Reachable)),
        ],
        &stacks,
    );
    let lost = on(0, block(0x40, 100, Kind::Definite));
    let after = records(
        &[
            on(0, block(0x10, 100, Kind::Definite)),
            lost,
            on(1, block(0x20, 7, Kind::Definite)),
            on(3, block(0x50, 40, Kind::Definite)),
        ],
        &stacks,
    );
    let held_by = vec!["global cache".to_owned(), "cache.entries[…] in Session".to_owned()];
    let record = after.record_of(&lost).expect("it is in one");
    let comparison = compare(
        Scan { records: &before.records, summary: &before.summary },
        Scan { records: &after.records, summary: &after.summary },
        Duration::from_secs(30),
        [LostBetween { record, size: 100, held_by: held_by.clone() }],
    );
    let seen: Vec<_> = comparison
        .changes
        .iter()
        .map(|change| (change.status, change.kind, change.bytes, change.blocks))
        .collect();
    let expected = [
        (ChangeStatus::Grown, Kind::Definite, 100, 1),
        (ChangeStatus::New, Kind::Definite, 40, 1),
        (ChangeStatus::Gone, Kind::Definite, -9, -1),
        (ChangeStatus::Gone, Kind::Reachable, -100, -1),
    ];
    assert_eq!(seen, expected);
    assert_eq!(comparison.changes[0].bytes_per_minute, 200.0);
    let held = &comparison.changes[0].held_before[0];
    assert_eq!((&held.chain.steps, held.chain.blocks, held.bytes), (&held_by, 1, 100));
    let was = comparison.changes[2].was.as_ref().expect("the record that is gone");
    assert_eq!(was.stack[0].function.as_deref(), Some("goes"));
    // 247 bytes in 4 blocks are lost now, 116 in 3 were.
    assert_eq!(comparison.lost, Amount { bytes: 131, blocks: 1 });
    assert_eq!((comparison.lost_bytes_per_minute, comparison.lost_blocks_per_minute), (262.0, 2.0));
}

#[test]
fn two_equal_scans_have_no_changes_and_no_time_between_them_is_no_division_by_zero() {
    let scan = records(&[block(1, 8, Kind::Definite)], &[]);
    let scan = Scan { records: &scan.records, summary: &scan.summary };
    let comparison = compare(scan, scan, Duration::ZERO, []);
    assert!(comparison.changes.is_empty() && comparison.lost_bytes_per_minute == 0.0, "{comparison:?}");
}
