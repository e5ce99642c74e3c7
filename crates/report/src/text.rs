//! The report for people: the answer in one line, a summary, the largest sites with their stacks.

mod leaks;
mod paint;
mod sites;
mod stack;
mod summary;

use crate::escape::printable;
use crate::units::count;
pub use leaks::{LeaksTextOptions, leaks_text};
use leakscope_profile::{Kind, MissingDebugInfo, NamedSites, Profile, Symbols, View};
use paint::Paint;
use std::fmt::Write;

/// Longest function name, path or note shown, in characters.
const NAME_LIMIT: usize = 240;
/// Most notes, and most modules without debug information, that are listed.
const LIST_LIMIT: usize = 20;

/// What a text report shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextOptions {
    /// What sites are chosen and sorted by.
    pub view: View,
    /// How many sites are shown.
    pub top: usize,
    /// Whether to use ANSI colours.
    pub color: bool,
}

impl Default for TextOptions {
    fn default() -> TextOptions {
        TextOptions { view: View::InUse, top: 10, color: false }
    }
}

/// The report as text of lines up to about 110 columns (long names may exceed them).
///
/// Frames by which a runtime gets to `main` or to a thread's function are left out; the other formats have them.
pub fn text(profile: &Profile, symbols: &Symbols, options: &TextOptions) -> String {
    let paint = Paint { on: options.color };
    let named = profile.named_sites(symbols, options.view);
    let mut out = String::new();
    _ = writeln!(out, "{}\n", paint.bold(&answer(profile, symbols, options.view, &named)));
    summary::write(&mut out, profile, paint);
    sites::write(&mut out, profile, &named, Kind::Heap, options, paint);
    sites::write(&mut out, profile, &named, Kind::Mapped, options, paint);
    write_notes(&mut out, &profile.notes, paint);
    write_missing(&mut out, &symbols.missing, paint);
    out
}

/// The answer is about unfreed memory, by whatever view the sites are sorted.
fn answer(profile: &Profile, symbols: &Symbols, view: View, named: &NamedSites) -> String {
    if view == View::InUse {
        summary::answer(profile, named)
    } else {
        summary::answer(profile, &profile.named_sites(symbols, View::InUse))
    }
}

fn write_notes(out: &mut String, notes: &[String], paint: Paint) {
    if notes.is_empty() {
        return;
    }
    out.push('\n');
    for note in notes.iter().take(LIST_LIMIT) {
        _ = writeln!(out, "{} {}", paint.warning("Note:"), printable(note, 4 * NAME_LIMIT));
    }
    write_rest(out, notes.len(), "note");
}

fn write_missing(out: &mut String, missing: &[MissingDebugInfo], paint: Paint) {
    if missing.is_empty() {
        return;
    }
    _ = writeln!(out, "\n{}", paint.warning("Missing debug info:"));
    for module in missing.iter().take(LIST_LIMIT) {
        _ = write!(out, "  {}", printable(&module.path, NAME_LIMIT));
        if !module.build_id.is_empty() {
            _ = write!(out, " (build id {})", printable(&module.build_id, 64));
        }
        _ = write!(out, ": {}", printable(&module.reason, NAME_LIMIT));
        if let Some(package) = &module.package {
            _ = write!(out, "; Debian package {}", printable(package, NAME_LIMIT));
        }
        out.push('\n');
    }
    write_rest(out, missing.len(), "module");
}

fn write_rest(out: &mut String, listed: usize, noun: &str) {
    if let rest @ 1.. = listed.saturating_sub(LIST_LIMIT) {
        _ = writeln!(out, "  … and {} more {noun}{}", count(rest as u64), if rest == 1 { "" } else { "s" });
    }
}
