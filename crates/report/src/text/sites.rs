//! The largest sites, each with its numbers and its stack.

use super::paint::Paint;
use super::summary::rest;
use super::{NAME_LIMIT, TextOptions};
use crate::escape::{frame_name, location, printable};
use crate::units::{bytes, count, plural, share};
use leakscope_profile::{
    End, Frame, Kind, NamedSite, NamedSites, Profile, View, is_allocation_wrapper, is_library_frame,
    is_start_frame,
};
use std::fmt::Write;
use std::ops::Range;

/// A stack deeper than this is shown without its middle.
const DEEPEST: usize = 40;
/// How many of the outermost frames remain of such a stack.
const OUTER: usize = 10;
/// Where the column of locations begins at most.
const WIDEST_NAME: usize = 48;

/// The top sites of one kind; nothing if there are none.
pub(super) fn write(
    out: &mut String,
    profile: &Profile,
    named: &NamedSites,
    kind: Kind,
    options: &TextOptions,
    paint: Paint,
) {
    let view = options.view;
    let sites: Vec<_> =
        named.sites.iter().filter(|site| site.kind == kind && view.value(&site.counts) > 0).collect();
    if sites.is_empty() {
        return;
    }
    let (shown, hidden) = sites.split_at(options.top.min(sites.len()));
    let chosen = match (hidden.len(), shown.len()) {
        (0, _) => String::new(),
        (_, top) => format!(" (the largest {} of {})", count(top as u64), count(sites.len() as u64)),
    };
    _ = writeln!(out, "\n{}", paint.bold(&format!("{}{chosen}:", heading(kind, view, profile.process.end))));
    let total = match kind {
        Kind::Heap => view.value(&profile.totals.counts),
        Kind::Mapped => view.value(&profile.mapped),
    };
    for (index, site) in shown.iter().enumerate() {
        write_numbers(out, index + 1, site, total, view, paint);
        write_stack(out, named, site, paint);
    }
    if !hidden.is_empty() {
        let value = hidden.iter().fold(0u64, |sum, site| sum.saturating_add(view.value(&site.counts)));
        _ = writeln!(out, "\n{}", rest(hidden.len(), value, view.is_bytes()));
    }
}

fn heading(kind: Kind, view: View, end: End) -> &'static str {
    let running = end == End::Running;
    match (kind, view) {
        (Kind::Heap, View::InUse) if running => "In use now, by call site",
        (Kind::Heap, View::InUse) => "Never freed, by call site",
        (Kind::Heap, View::Peak) => "In use at the peak, by call site",
        (Kind::Heap, View::Allocated) => "Allocated in all, by call site",
        (Kind::Heap, View::Temporary) => "Temporary allocations, by call site",
        (Kind::Mapped, View::InUse) if running => "Mapped now (anonymous mmap), by call site",
        (Kind::Mapped, View::InUse) => "Never unmapped (anonymous mmap), by call site",
        (Kind::Mapped, View::Peak) => "Mapped at the heap's peak (anonymous mmap), by call site",
        (Kind::Mapped, View::Allocated) => "Mapped in all (anonymous mmap), by call site",
        (Kind::Mapped, View::Temporary) => "Temporary mappings (anonymous mmap), by call site",
    }
}

fn write_numbers(out: &mut String, rank: usize, site: &NamedSite, total: u64, view: View, paint: Paint) {
    let counts = &site.counts;
    let value = view.value(counts);
    let part = share(value, total);
    let blocks = plural(view.blocks(counts), "block");
    let amount = if !view.is_bytes() {
        paint.number(&plural(value, "temporary block"))
    } else if value < 1024 {
        format!("{} in {blocks}", paint.number(&bytes(value)))
    } else {
        format!("{} ({}) in {blocks}", paint.number(&bytes(value)), plural(value, "byte"))
    };
    _ = writeln!(out, "\n{:>4} {amount}, {part}", format!("#{rank}"));
    let mut others = Vec::new();
    if view != View::InUse {
        let in_use = plural(counts.inuse_blocks, "block");
        others.push(format!("{} in {in_use} in use at the end", bytes(counts.inuse_bytes)));
    }
    if view != View::Peak {
        others.push(format!("{} at the peak", bytes(counts.peak_bytes)));
    }
    if view != View::Allocated {
        let allocated = plural(counts.allocated_blocks, "block");
        others.push(format!("{} in {allocated} allocated in all", bytes(counts.allocated_bytes)));
    }
    if view != View::Temporary && counts.temporary_blocks > 0 {
        others.push(plural(counts.temporary_blocks, "temporary block"));
    }
    _ = writeln!(out, "     {}", paint.dim(&others.join(", ")));
}

fn write_stack(out: &mut String, named: &NamedSites, site: &NamedSite, paint: Paint) {
    let all: Vec<&Frame> = named.stack(site).collect();
    let frames = without_start(&all);
    let culprit = blamed_index(frames);
    if frames.is_empty() {
        _ = writeln!(out, "       {}", paint.dim("(the stack is not known)"));
    }
    let names: Vec<_> =
        frames.iter().map(|frame| printable(&frame_name(frame), NAME_LIMIT).into_owned()).collect();
    let width =
        names.iter().map(|name| name.chars().count()).filter(|&n| n <= WIDEST_NAME).max().unwrap_or(0);
    let middle = if frames.len() > DEEPEST { DEEPEST - OUTER..frames.len() - OUTER } else { 0..0 };
    let folded = library_runs(frames);
    for (index, (frame, name)) in frames.iter().zip(&names).enumerate() {
        if let Some(run) = folded.iter().find(|run| run.contains(&index)) {
            if index == run.start {
                let note = format!("… {} library frames …", count(run.len() as u64));
                _ = writeln!(out, "       {}", paint.dim(&note));
            }
            continue;
        }
        if middle.contains(&index) {
            if index == middle.start {
                _ = writeln!(
                    out,
                    "       {}",
                    paint.dim(&format!("… {} frames …", count(middle.len() as u64)))
                );
            }
            continue;
        }
        let mut line = name.clone();
        if let Some(place) = location(frame) {
            let padding = width.saturating_sub(name.chars().count());
            _ = write!(line, "{:padding$}  {}", "", printable(&place, NAME_LIMIT));
        } else if let (Some(_), Some(module)) = (&frame.function, &frame.module) {
            let padding = width.saturating_sub(name.chars().count());
            _ = write!(line, "{:padding$}  in {}", "", printable(module, NAME_LIMIT));
        }
        if frame.inlined {
            line.push_str("  (inlined)");
        }
        if culprit == Some(index) {
            _ = writeln!(out, "     → {}", paint.bold(&line));
        } else if is_library_frame(frame) {
            _ = writeln!(out, "       {}", paint.dim(&line));
        } else {
            _ = writeln!(out, "       {line}");
        }
    }
    if site.truncated {
        _ = writeln!(out, "       {}", paint.dim("… (the stack goes on, but could not be followed further)"));
    }
}

/// Runs of frames of the standard libraries that say nothing about the program: all of a run but the function that the
/// program itself called.
fn library_runs(frames: &[&Frame]) -> Vec<Range<usize>> {
    const SHORTEST: usize = 2;
    let mut runs = Vec::new();
    let mut start = 0;
    for index in 0..=frames.len() {
        if frames.get(index).is_some_and(|frame| is_library_frame(frame)) {
            continue;
        }
        // At the outer end nobody called it. A stack of library frames alone is shown as it is.
        let end = if index < frames.len() { index.saturating_sub(1) } else { index };
        if end.saturating_sub(start) >= SHORTEST && end - start < frames.len() {
            runs.push(start..end);
        }
        start = index + 1;
    }
    runs
}

/// The stack without the runtime's start frames at its outer end, unless nothing else is in it.
fn without_start<'a, 'b>(frames: &'b [&'a Frame]) -> &'b [&'a Frame] {
    let mut end = frames.len();
    while let Some(last) = end.checked_sub(1)
        && let Some(frame) = frames.get(last)
        && is_start_frame(frame, last.checked_sub(1).and_then(|inner| frames.get(inner)).copied())
    {
        end = last;
    }
    frames.get(..end).filter(|rest| !rest.is_empty()).unwrap_or(frames)
}

/// The frame whose line a reader should look at first; none of a site without a stack.
pub(super) fn blamed<'a>(named: &'a NamedSites, site: &'a NamedSite) -> Option<&'a Frame> {
    let frames: Vec<&Frame> = named.stack(site).collect();
    let frames = without_start(&frames);
    frames.get(blamed_index(frames)?).copied()
}

/// The innermost frame that is the program's, has a name and is no mere wrapper around `malloc`; else, as where the
/// program is stripped, the innermost of its frames without a name; else the innermost with a name; else the innermost.
fn blamed_index(frames: &[&Frame]) -> Option<usize> {
    let has_name = |frame: &Frame| frame.function.is_some();
    let is_wrapper = |frame: &Frame| frame.function.as_deref().is_some_and(is_allocation_wrapper);
    let is_programs = |frame: &Frame| !is_library_frame(frame) && !is_wrapper(frame);
    frames
        .iter()
        .position(|frame| has_name(frame) && is_programs(frame))
        .or_else(|| frames.iter().position(|frame| is_programs(frame)))
        .or_else(|| frames.iter().position(|frame| has_name(frame)))
        .or_else(|| (!frames.is_empty()).then_some(0))
}

/// `cache_insert at src/cache.c:42`, bounded.
pub(super) fn frame_at(frame: &Frame) -> String {
    let name = frame_name(frame);
    let name = printable(&name, NAME_LIMIT / 2);
    match (location(frame), &frame.function, &frame.module) {
        (Some(place), ..) => format!("{name} at {}", printable(&place, NAME_LIMIT)),
        (None, Some(_), Some(module)) => format!("{name} in {}", printable(module, NAME_LIMIT)),
        _ => name.into_owned(),
    }
}
