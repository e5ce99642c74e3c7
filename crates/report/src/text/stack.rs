//! Stacks, for people: the line to look at marked, library frames folded.

use super::NAME_LIMIT;
use super::paint::Paint;
use crate::escape::{frame_name, location, printable};
use crate::units::count;
use leakscope_profile::{Frame, is_allocation_wrapper, is_library_frame, is_start_frame};
use std::fmt::Write;
use std::ops::Range;

/// A stack deeper than this is shown without its middle.
const DEEPEST: usize = 40;
/// How many of the outermost frames remain of such a stack.
const OUTER: usize = 10;
/// Where the column of locations begins at most.
const WIDEST_NAME: usize = 48;

/// Writes a stack, innermost frame first, the frame to look at marked by an arrow.
pub(super) fn write_stack(out: &mut String, all: &[&Frame], truncated: bool, paint: Paint) {
    let frames = without_start(all);
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
    if truncated {
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

/// The frame whose line a reader should look at first; none of an empty stack.
pub(super) fn blamed<'a>(frames: &[&'a Frame]) -> Option<&'a Frame> {
    let frames = without_start(frames);
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
