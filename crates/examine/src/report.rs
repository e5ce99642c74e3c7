//! From blocks to a report: the scan, records, names.

use crate::holders::{self, Naming};
use crate::listing::Listing;
use crate::places::Places;
use crate::traced::{Traced, is_arena};
use crate::types::Types;
use crate::watch::{Kept, lost_since};
use crate::{Error, Options, modules, retention, roots};
use leakscope_heapfile::layout::TICK_MS;
use leakscope_leaks::{
    BlockSource, Collector, FoundBlock, History, Kind, LeakReport, LostBetween, Names, Outcome, SnapshotKind,
    Stack, content,
};
use leakscope_profile::{MissingDebugInfo, formats};
use leakscope_reach::{Blocks, Findings, Heap, OnProgress, scan_keeping};
use leakscope_symbols::symbolize;
use leakscope_target::{Snapshot, Source};
use std::time::{Duration, Instant};

/// Bytes of a block that its content hint is judged by, and that are kept if contents are asked for.
const LOOKED_AT: usize = 4096;
const KEPT: usize = 256;

/// What a scan has to do with scans before and after it.
#[derive(Default, Clone, Copy)]
pub(crate) struct OverTime<'a> {
    /// What was kept of the one before.
    pub(crate) earlier: Option<&'a Kept>,
    /// Whether there will be one after it.
    pub(crate) keep: bool,
}

/// A report, and what a comparison needs.
pub(crate) struct Made {
    pub(crate) report: LeakReport,
    /// What was lost since the scan before.
    pub(crate) lost: Vec<LostBetween>,
    pub(crate) kept: Option<Kept>,
}

/// Scans a snapshot, whose blocks began to be listed at `began`, and reports.
pub(crate) fn make(
    snapshot: &Snapshot,
    listing: Listing,
    traced: Option<&Traced>,
    began: Instant,
    options: &Options,
    over_time: OverTime<'_>,
    progress: Option<OnProgress<'_>>,
) -> Result<Made, Error> {
    let mut roots = roots::roots(snapshot, traced, &listing.no_roots);
    roots.blocks = listing.held;
    let heap = Heap {
        memory: &*snapshot.memory,
        blocks: &listing.blocks,
        areas: &listing.areas,
        mappings: &snapshot.mappings,
        roots: &roots,
    };
    let (findings, pointers) = scan_keeping(&heap, &options.scan, progress);
    let scan_time = began.elapsed();

    // Names cost little beside the scan, but a heap without leaks needs none.
    let shown = options.shown;
    let is_named = |kind: Kind| kind != Kind::Reachable || shown.contains(kind);
    let any = [Kind::Definite, Kind::Indirect, Kind::Possible, Kind::Reachable]
        .into_iter()
        .any(|kind| is_named(kind) && findings.count(kind).blocks > 0);
    let places = if any || over_time.keep { Places::of(snapshot) } else { Places::default() };
    let wanted = |&index: &usize| findings.kind(index).is_some_and(is_named);
    let all = 0..listing.blocks.len();
    let types = Types::find(
        snapshot,
        &places,
        &listing.blocks,
        all.filter(wanted),
        |index| wanted(&index),
        &options.symbols,
    );

    let mut collector = Collector::default();
    let found = found_blocks(&listing.blocks, &findings, &listing.own, &types, traced);
    found.for_each(|block| collector.add(&block));
    let wanted = collector.stacks(|kind| kind != Kind::Reachable || options.shown.contains(kind));
    let (stacks, missing) = match traced {
        Some(traced) => name_stacks(traced, &wanted, options)?,
        None => (Vec::new(), Vec::new()),
    };
    let names = Names { stacks: &stacks, types: &types.names };
    let mut merged = collector.finish(&names, &options.suppressions);

    let (retention, history) = if options.retained {
        let none = History::default();
        let before = over_time.earlier.map_or(&none, |earlier| &earlier.history);
        let elapsed = over_time.earlier.map_or(Duration::ZERO, |earlier| began.duration_since(earlier.at));
        let history = before.with(&merged.records, elapsed);
        let found = found_blocks(&listing.blocks, &findings, &listing.own, &types, traced);
        let found = retention::retention(found, &merged, traced, options.referenced.as_ref(), &history);
        (Some(found), history)
    } else {
        (None, History::default())
    };

    let growing = retention.iter().flat_map(|retention| &retention.records).map(|retained| retained.record);
    let examples = holders::wanted(&merged.records, growing, shown, &listing.blocks);
    let holders = if over_time.keep {
        pointers.holders(None, &places.stacks())
    } else {
        let blocks: Vec<usize> = examples.iter().map(|&(_, block)| block).collect();
        pointers.holders(Some(&blocks), &places.stacks())
    };
    let naming = Naming { snapshot, blocks: &listing.blocks, places: &places, options: &options.symbols };
    holders::add(&mut merged.records, &examples, &holders, &pointers, naming);
    drop(pointers);
    let lost = match over_time.earlier {
        Some(earlier) => {
            let found = found_blocks(&listing.blocks, &findings, &listing.own, &types, traced);
            let lost = found.filter_map(|block| Some((merged.record_of(&block)?, block)));
            lost_since(earlier, lost, snapshot, &places, &listing.blocks, options, began)
        }
        None => Vec::new(),
    };

    let process = match traced {
        Some(traced) => {
            let mut process = modules::process(snapshot);
            if process.command.is_empty() {
                process = formats::stacks(&traced.heap, &[]).process;
            }
            process
        }
        None => modules::process(snapshot),
    };
    let mut report = LeakReport {
        process,
        outcome: Outcome::of(&merged.summary, options.errors),
        errors: options.errors,
        scan: scan_time,
        summary: merged.summary,
        records: merged.records,
        suppressions: merged.suppressions,
        retention,
        notes: snapshot
            .notes
            .iter()
            .cloned()
            .chain(shared(snapshot))
            .chain(listing.notes)
            .chain(options.suppressions.notes().iter().cloned())
            .collect(),
        missing,
        ..LeakReport::default()
    };
    report.source.snapshot = match snapshot.source {
        Source::Fork => SnapshotKind::Fork,
        Source::Stopped => SnapshotKind::Stopped,
        Source::Core => SnapshotKind::Core,
    };
    report.source.blocks = listing.source;
    for torn in &listing.torn {
        report
            .notes
            .push(format!("the heap was in use while it was frozen: {torn}; its blocks may be wrong"));
    }
    add_contents(&mut report, snapshot, &listing.blocks, options);
    let kept = over_time.keep.then_some(Kept {
        start_ticks: snapshot.start_ticks,
        blocks: listing.blocks,
        holders,
        places,
        history,
        at: began,
    });
    Ok(Made { report, lost, kept })
}

/// What a copy of a process's memory does not freeze, in words. The tracer's own arena holds nothing of the process's.
fn shared(snapshot: &Snapshot) -> Option<String> {
    let shared = snapshot.mappings.iter().filter(|mapping| mapping.shared && mapping.writable);
    let others = shared.filter(|mapping| !is_arena(snapshot, mapping));
    let bytes: u64 = others.map(|mapping| mapping.end.saturating_sub(mapping.start)).sum();
    (snapshot.source == Source::Fork && bytes > 0).then(|| {
        format!(
            "{} KiB of writable memory shared with other processes is not frozen: what is read there may be newer \
             than the rest",
            bytes / 1024
        )
    })
}

/// All blocks but those of the C library's own (indices, sorted), with what was found about them.
fn found_blocks<'a>(
    blocks: &'a Blocks,
    findings: &'a Findings,
    own: &'a [usize],
    types: &'a Types,
    traced: Option<&'a Traced>,
) -> impl Iterator<Item = FoundBlock> + use<'a> {
    let now = traced.map_or(0, |traced| traced.heap.tick);
    let mut own = own.iter().copied().peekable();
    blocks.iter().enumerate().filter_map(move |(index, block)| {
        if own.next_if_eq(&index).is_some() {
            return None;
        }
        let kind = findings.kind(index)?;
        let indirect = if kind == Kind::Definite { findings.indirect(index) } else { Default::default() };
        let recorded = traced.and_then(|traced| traced.block(block.address));
        Some(FoundBlock {
            address: block.address,
            size: block.size,
            kind,
            indirect_bytes: indirect.bytes,
            indirect_blocks: indirect.blocks,
            stack: recorded.map(|recorded| recorded.stack),
            signature: types.of(index),
            age: recorded.map(|recorded| {
                Duration::from_millis(u64::from(now.saturating_sub(recorded.birth)) * TICK_MS)
            }),
        })
    })
}

/// The wanted stacks with names, by their numbers; the others are empty.
fn name_stacks(
    traced: &Traced,
    wanted: &[u32],
    options: &Options,
) -> Result<(Vec<Stack>, Vec<MissingDebugInfo>), Error> {
    let profile = formats::stacks(&traced.heap, wanted);
    let symbols = symbolize(&profile, &options.symbols)?;
    let mut stacks = vec![Stack::default(); wanted.last().map_or(0, |&last| last as usize + 1)];
    for (site, &number) in profile.sites.iter().zip(wanted) {
        if let Some(stack) = stacks.get_mut(number as usize) {
            stack.frames = site.stack.iter().flat_map(|&pc| profile.frames_of(&symbols, pc)).collect();
            stack.truncated = site.truncated;
        }
    }
    Ok((stacks, symbols.missing))
}

/// Says what kind of data a block of each record holds; the data itself only on request.
fn add_contents(report: &mut LeakReport, snapshot: &Snapshot, blocks: &Blocks, options: &Options) {
    let has_stacks = report.source.blocks == BlockSource::Tracer;
    for record in &mut report.records {
        // With a stack, the hint would only be noise.
        if !options.contents && has_stacks && !record.stack.is_empty() {
            continue;
        }
        let block = record.examples.first().and_then(|&address| blocks.get(blocks.find(address)?));
        let Some(block) = block else { continue };
        let mut bytes = vec![0; usize::try_from(block.size).unwrap_or(LOOKED_AT).min(LOOKED_AT)];
        let read = snapshot.memory.read(block.address, &mut bytes);
        bytes.truncate(read);
        let is_pointer =
            |word: u64| blocks.find(word).is_some() || roots::mapping_at(&snapshot.mappings, word).is_some();
        record.content = Some(content::hint(&bytes, is_pointer));
        if options.contents {
            bytes.truncate(KEPT);
            record.contents = Some(bytes);
        }
    }
}
