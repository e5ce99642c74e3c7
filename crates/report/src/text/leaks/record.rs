//! One loss record.

use super::super::NAME_LIMIT;
use super::super::paint::Paint;
use super::super::stack::write_stack;
use crate::escape::printable;
use crate::units::{count, duration, plural};
use leakscope_leaks::{Chain, Kind, LeakRecord, content};
use leakscope_profile::Frame;
use std::fmt::Write;

/// Most chains of holders shown for one record.
const CHAINS: usize = 3;
/// Most steps shown of one chain: the root and what is nearest to the block.
const STEPS: usize = 8;
/// Most bytes shown of a block's contents.
const CONTENTS: usize = 256;

/// Memcheck's words for a kind.
pub(super) fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Definite => "definitely lost",
        Kind::Indirect => "indirectly lost",
        Kind::Possible => "possibly lost",
        Kind::Reachable => "still reachable",
    }
}

/// Writes record `number` of `all`.
pub(super) fn write(out: &mut String, record: &LeakRecord, number: usize, all: usize, paint: Paint) {
    // Memcheck's line to the letter, since people and scripts search for it.
    let size = if record.indirect_bytes > 0 {
        let (direct, indirect) = (count(record.direct_bytes), count(record.indirect_bytes));
        format!("{} ({direct} direct, {indirect} indirect) bytes", count(record.bytes))
    } else {
        format!("{} bytes", count(record.bytes))
    };
    let size = match record.kind {
        Kind::Definite => paint.number(&size),
        Kind::Possible => paint.warning(&size),
        Kind::Indirect | Kind::Reachable => paint.bold(&size),
    };
    let (blocks, words) = (count(record.blocks), words(record.kind));
    let (number, all) = (count(number as u64), count(all as u64));
    _ = writeln!(out, "\n{size} in {blocks} blocks are {words} in loss record {number} of {all}");
    let untraced = record.stack.is_empty();
    if !untraced {
        let frames: Vec<&Frame> = record.stack.iter().collect();
        write_stack(out, &frames, record.truncated, paint);
    }
    write_facts(out, record, untraced, paint);
    if let Some(bytes) = &record.contents {
        for line in content::dump(bytes, CONTENTS).lines() {
            _ = writeln!(out, "       {}", paint.dim(line));
        }
    }
}

/// What else is known, a line for each thing.
fn write_facts(out: &mut String, record: &LeakRecord, untraced: bool, paint: Paint) {
    let mut line = |label: &str, value: String| {
        _ = writeln!(out, "       {} {value}", paint.dim(&format!("{label:<7}")));
    };
    if let Some(name) = &record.type_name {
        line("type", printable(name, NAME_LIMIT).into_owned());
    }
    let sizes = record.sizes;
    if sizes.min != sizes.max {
        line("size", format!("{} to {} each", count(sizes.min), plural(sizes.max, "byte")));
    } else if untraced || record.blocks > 1 {
        let each = if record.blocks == 1 { "" } else { " each" };
        line("size", format!("{}{each}", plural(sizes.max, "byte")));
    }
    if let Some(content) = record.content {
        line("content", content.to_string());
    }
    if let Some(ages) = record.ages {
        let (youngest, oldest) = (ages.youngest.as_secs_f64(), ages.oldest.as_secs_f64());
        let (from, to) = (duration(youngest), duration(oldest));
        line("age", if from == to { to } else { format!("{from} to {to}") });
    }
    if let (true, [first, rest @ ..]) = (untraced, record.examples.as_slice()) {
        let more = if rest.is_empty() && record.blocks <= 1 { "" } else { ", …" };
        line("at", format!("{first:#x}{more}"));
    }
    for chain in record.holders.iter().take(CHAINS) {
        line("held by", chain_text(chain));
    }
    if let rest @ 1.. = record.holders.len().saturating_sub(CHAINS) {
        line("", format!("… and {}", plural(rest as u64, "other holder")));
    }
}

/// `global sessions in server → Session.cache → entries[…]  (12 blocks)`.
pub(super) fn chain_text(chain: &Chain) -> String {
    let mut steps: Vec<_> =
        chain.steps.iter().map(|step| printable(step, NAME_LIMIT / 2).into_owned()).collect();
    if steps.len() > STEPS {
        let gap = format!("… {} steps …", count((steps.len() - STEPS) as u64));
        steps.splice(1..=steps.len() - STEPS, [gap]);
    }
    let mut text = steps.join(" → ");
    if chain.blocks > 0 {
        _ = write!(text, "  ({})", plural(chain.blocks, "block"));
    }
    text
}
