//! The text report of leaks, for people.

mod common;

use common::{frame, scan};
use leakscope_leaks::*;
use leakscope_report::{LeaksTextOptions, leaks_text};
use std::time::Duration;

fn plain(report: &LeakReport) -> String {
    leaks_text(report, &LeaksTextOptions::default())
}

fn all(report: &LeakReport) -> String {
    leaks_text(report, &LeaksTextOptions { shown: KindSet::ALL, ..LeaksTextOptions::default() })
}

#[test]
fn the_verdict_comes_first_then_records_in_memchecks_words_then_its_summary() {
    let report = plain(&scan());
    println!("{report}");
    assert_eq!(report, include_str!("expected/leaks.txt"));
}

#[test]
fn other_kinds_are_shown_if_asked_for_with_who_holds_them_but_suppressed_records_never() {
    let report = all(&scan());
    println!("{report}");
    assert!(
        report.contains("\n24 bytes in 1 blocks are indirectly lost in loss record 1 of 6\n"),
        "{report}"
    );
    assert!(
        report.contains("\n500,000 bytes in 5,000 blocks are still reachable in loss record 5 of 6\n"),
        "{report}"
    );
    assert!(
        report.contains("held by global sessions in service → Session.cache → entries[…]  (4,990 blocks)\n"),
        "{report}"
    );
    assert!(!report.contains("record 2 of 6") && !report.contains("are not shown"), "{report}");
}

#[test]
fn that_nothing_grows_is_only_said_if_it_can_be_known() {
    let mut scan = scan();
    let retention = |seen| Some(Retention { seen, scans: 1, ..Retention::default() });
    scan.retention = retention(Duration::ZERO);
    assert!(plain(&scan).contains("cannot tell; --every scans again."), "{}", plain(&scan));
    scan.retention = retention(Duration::from_secs(3_600));
    let expected = "No reachable memory keeps growing, judged over 1 h 0 min of allocations.";
    assert!(plain(&scan).contains(expected), "{}", plain(&scan));
}

#[test]
fn the_verdict_is_true_where_less_is_lost() {
    let mut scan = scan();
    scan.summary.definite = Amount::default();
    scan.records.retain(|record| record.kind != Kind::Definite);
    let report = plain(&scan);
    let expected =
        "Nothing is definitely lost; 320 bytes in 1 block are possibly lost; all from pthread_create in";
    assert!(report.starts_with(expected), "{report}");
    scan.summary.possible = Amount::default();
    let expected = "Nothing is lost: 5,000 blocks (488.3 KiB) are still reachable; 1 block suppressed.\n";
    assert!(plain(&scan).starts_with(expected), "{}", plain(&scan));
    assert!(plain(&LeakReport::default()).starts_with("Nothing is lost: there are no blocks.\n"));
}

#[test]
fn a_lost_list_is_lost_with_all_its_nodes_and_an_untraced_record_is_named_by_its_type() {
    let mut scan = scan();
    scan.records.retain(|record| record.type_name.is_some());
    scan.summary = Summary {
        definite: Amount { bytes: 2304, blocks: 48 },
        indirect: Amount { bytes: 1 << 20, blocks: 9 },
        ..Summary::default()
    };
    let expected = "1.0 MiB in 57 blocks are lost; all from net::Session, blocks of 40 to 56 bytes\n";
    assert!(plain(&scan).starts_with(expected), "{}", plain(&scan));
}

#[test]
fn top_keeps_the_largest_and_counts_the_rest() {
    let options = LeaksTextOptions { top: 1, ..LeaksTextOptions::default() };
    let report = leaks_text(&scan(), &options);
    assert!(report.contains("… 2 smaller records with 2.6 KiB not shown"), "{report}");
    assert!(report.contains("record 6 of 6") && !report.contains("record 4 of 6"), "{report}");
}

#[test]
fn suppressions_follow_their_records_and_can_be_read_back() {
    let options = LeaksTextOptions { suppressions: true, ..LeaksTextOptions::default() };
    let scan = scan();
    let report = leaks_text(&scan, &options);
    assert!(report.contains("(no suppression: its stack is not known)"), "{report}");
    let (_, rest) = report.split_once("\n{\n").expect("a suppression");
    let (_, rest) = rest.split_once("\n{\n").expect("another, of the largest record");
    let (body, _) = rest.split_once("\n}\n").expect("its end");
    let mut suppressions = Suppressions::none();
    suppressions.add_text("generated".as_ref(), &format!("{{\n{body}\n}}\n")).expect("it is one");
    let found = |record: &LeakRecord| {
        let (kind, frames, allocator) = (record.kind, &record.stack, record.allocator.as_deref());
        suppressions.find(&Subject { kind, frames, mangled: &[], allocator })
    };
    let matched: Vec<bool> = scan.records.iter().map(|record| found(record).is_some()).collect();
    assert_eq!(matched, [false, false, false, false, false, true]);
}

#[test]
fn how_the_process_was_looked_at_is_told() {
    let mut scan = scan();
    for (snapshot, pause, expected) in [
        (SnapshotKind::Fork, Some(7), "230 ms in a copy of its memory; the process stood still for 7 ms\n"),
        (SnapshotKind::Stopped, Some(240), "230 ms; the process stood still for 240 ms\n"),
        (SnapshotKind::Core, None, "230 ms of a core file\n"),
        (SnapshotKind::Exit, None, "230 ms at exit\n"),
    ] {
        scan.source = Source { snapshot, blocks: BlockSource::Tracer };
        scan.pause = pause.map(Duration::from_millis);
        let report = plain(&scan);
        assert!(report.contains(expected) && report.contains("recorded by the tracer"), "{report}");
    }
}

#[test]
fn names_from_the_process_cannot_act_on_the_terminal() {
    let hostile = "x\x1b[2J\r\n\u{202e}y".to_owned();
    let mut scan = scan();
    scan.process.command = vec![hostile.clone()];
    scan.source.blocks = BlockSource::Allocator { name: hostile.clone() };
    scan.notes = vec![hostile.clone()];
    for used in &mut scan.suppressions {
        used.name.clone_from(&hostile);
        used.origin.path = hostile.clone().into();
    }
    for record in &mut scan.records {
        record.type_name = Some(hostile.clone());
        record.contents = Some(hostile.clone().into_bytes());
        record.holders = vec![Chain { steps: vec![hostile.clone(); 100], blocks: 1 }];
        record.stack = vec![frame(&hostile, &hostile, 1)];
    }
    let report = all(&scan);
    assert!(report.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')), "{report:?}");
    assert!(report.contains("… 92 steps …"), "{report}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let options = LeaksTextOptions { color: true, ..LeaksTextOptions::default() };
    let colored = leaks_text(&scan(), &options);
    assert!(
        colored.contains("\x1b[1;31m1,048,600 (1,048,576 direct, 24 indirect) bytes\x1b[0m in 32 blocks")
    );
    let mut stripped = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        stripped.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    stripped.push_str(rest);
    assert_eq!(stripped, plain(&scan()));
}
