//! Folded stacks: one line per stack, the outermost frame first, for flame graph and diff tools.

use crate::escape::{frame_name, printable};
use leakscope_profile::{Kind, NamedSites, Profile, Symbols, View};
use std::collections::BTreeMap;

/// Longest frame name, in characters.
const NAME_LIMIT: usize = 1000;
/// The outermost frame of a stack whose real one is missing, so that it is not taken for a thread's start.
pub(crate) const TRUNCATED: &str = "[truncated]";
/// The innermost frame of mapped memory, which tells it from heap memory of the same caller.
pub(crate) const MAPPED: &str = "[mmap]";
/// The only frame of a stack that could not be followed at all.
pub(crate) const NO_STACK: &str = "[no stack]";

/// One line per distinct stack: functions from the outermost to the innermost joined by `;`, a space, and the number
/// of `view` (bytes, or blocks for [`View::Temporary`]). Stacks with nothing in this view are left out; the lines
/// are sorted. A `;` within a name is written as `:`, since the format has no escape for it.
///
/// Mapped memory ends in a frame `[mmap]`, a stack whose outer end is missing begins with `[truncated]`.
pub fn folded(profile: &Profile, symbols: &Symbols, view: View) -> String {
    let named = profile.named_sites(symbols, view);
    let names = frame_names(&named);
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for site in &named.sites {
        let value = view.value(&site.counts);
        if value == 0 {
            continue;
        }
        let frames = site.stack.iter().rev().filter_map(|&id| names.get(id as usize)).map(String::as_str);
        let outer = site.truncated.then_some(TRUNCATED);
        let missing = (site.stack.is_empty() && !site.truncated).then_some(NO_STACK);
        let inner = (site.kind == Kind::Mapped).then_some(MAPPED);
        let stack: Vec<&str> = outer.into_iter().chain(missing).chain(frames).chain(inner).collect();
        let sum = lines.entry(stack.join(";")).or_default();
        *sum = sum.saturating_add(value);
    }
    let mut out = String::new();
    for (stack, value) in lines {
        out.push_str(&stack);
        out.push(' ');
        out.push_str(&value.to_string());
        out.push('\n');
    }
    out
}

fn frame_names(named: &NamedSites) -> Vec<String> {
    let name = |frame| printable(&frame_name(frame), NAME_LIMIT).replace(';', ":");
    named.frames.iter().map(name).collect()
}
