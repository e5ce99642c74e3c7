//! From blocks to a report: the scan, records, names.

use crate::listing::Listing;
use crate::traced::{Traced, is_arena};
use crate::{Error, Options, modules, roots};
use leakscope_heapfile::layout::TICK_MS;
use leakscope_leaks::{
    BlockSource, Collector, FoundBlock, Kind, LeakReport, Names, Outcome, SnapshotKind, Stack, content,
};
use leakscope_profile::{MissingDebugInfo, formats};
use leakscope_reach::{Blocks, Findings, Heap, OnProgress, scan};
use leakscope_symbols::symbolize;
use leakscope_target::{Snapshot, Source};
use std::time::{Duration, Instant};

/// Bytes of a block that its content hint is judged by, and that are kept if contents are asked for.
const LOOKED_AT: usize = 4096;
const KEPT: usize = 256;

/// Scans a snapshot and reports.
pub(crate) fn make(
    snapshot: &Snapshot,
    listing: Listing,
    traced: Option<&Traced>,
    options: &Options,
    progress: Option<OnProgress<'_>>,
) -> Result<LeakReport, Error> {
    let began = Instant::now();
    let mut roots = roots::roots(snapshot, traced, &listing.no_roots);
    roots.blocks = listing.held;
    let heap = Heap {
        memory: &*snapshot.memory,
        blocks: &listing.blocks,
        areas: &listing.areas,
        mappings: &snapshot.mappings,
        roots: &roots,
    };
    let findings = scan(&heap, &options.scan, progress);
    let scan_time = began.elapsed();

    let mut collector = Collector::default();
    let found = found_blocks(&listing.blocks, &findings, &listing.own, traced);
    found.for_each(|block| collector.add(&block));
    let wanted = collector.stacks(|kind| kind != Kind::Reachable || options.shown.contains(kind));
    let (stacks, missing) = match traced {
        Some(traced) => name_stacks(traced, &wanted, options)?,
        None => (Vec::new(), Vec::new()),
    };
    let types: Vec<String> = Vec::new();
    let names = Names { stacks: &stacks, types: &types };
    let merged = collector.finish(&names, &options.suppressions);

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
        notes: snapshot.notes.iter().cloned().chain(shared(snapshot)).chain(listing.notes).collect(),
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
    if std::env::var_os("DEBUG_HOLDERS").is_some() {
        for record in &report.records {
            if record.kind != Kind::Possible && record.kind != Kind::Reachable {
                continue;
            }
            let wanted: Vec<usize> = record.examples.iter().filter_map(|&a| listing.blocks.find(a)).collect();
            for chain in leakscope_reach::holders(&heap, &options.scan, &wanted, 20) {
                eprintln!(
                    "{:?} {} {:?}: {chain:x?}",
                    record.kind,
                    record.bytes,
                    record.stack.first().map(|f| (&f.function, f.line))
                );
                if let Some(chain) = chain {
                    if let leakscope_reach::Origin::Memory(at) = chain.origin {
                        eprintln!("   in {:x?}", roots::mapping_at(&snapshot.mappings, at));
                        for t in &snapshot.threads {
                            eprintln!(
                                "   thread {} pc {:x} sp {:x} tp {:x}",
                                t.tid, t.registers.pc, t.registers.sp, t.registers.thread_pointer
                            );
                        }
                    }
                }
            }
        }
    }
    Ok(report)
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
            signature: None,
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
