//! The largest sites, each with its numbers and its stack.

use super::TextOptions;
use super::paint::Paint;
use super::stack::write_stack;
use super::summary::{estimated_in_use, rest};
use crate::units::{bytes, count, plural, share};
use leakscope_profile::{End, Frame, Kind, NamedSite, NamedSites, Profile, View};
use std::fmt::Write;

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
        let sampled = profile.sampling.is_some() && kind == Kind::Heap;
        write_numbers(out, index + 1, site, total, (view, sampled), paint);
        let frames: Vec<&Frame> = named.stack(site).collect();
        write_stack(out, &frames, site.truncated, paint);
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

fn write_numbers(
    out: &mut String,
    rank: usize,
    site: &NamedSite,
    total: u64,
    (view, sampled): (View, bool),
    paint: Paint,
) {
    let counts = &site.counts;
    let value = view.value(counts);
    let part = share(value, total);
    let blocks = plural(view.blocks(counts), "block");
    let mut amount = if !view.is_bytes() {
        paint.number(&plural(value, "temporary block"))
    } else if value < 1024 {
        format!("{} in {blocks}", paint.number(&bytes(value)))
    } else {
        format!("{} ({}) in {blocks}", paint.number(&bytes(value)), plural(value, "byte"))
    };
    if sampled {
        // The last digits of an estimate say nothing.
        amount = match view {
            View::InUse => format!("about {}", estimated_in_use(counts, &site.samples)),
            View::Temporary => format!("about {amount}"),
            View::Peak | View::Allocated => format!("about {} in {blocks}", paint.number(&bytes(value))),
        };
    }
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
    if sampled {
        others.push(match view {
            View::InUse => format!("from {}", plural(site.samples.inuse, "sample")),
            _ => format!("from {}", plural(site.samples.allocated, "sample")),
        });
    }
    _ = writeln!(out, "     {}", paint.dim(&others.join(", ")));
}

/// The frame whose line a reader should look at first; none of a site without a stack.
pub(super) fn blamed<'a>(named: &'a NamedSites, site: &'a NamedSite) -> Option<&'a Frame> {
    super::stack::blamed(&named.stack(site).collect::<Vec<_>>())
}
