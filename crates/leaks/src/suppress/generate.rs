//! Ready-made suppressions, in memcheck's format.

use super::mangled::{pattern_of, pattern_of_inlined};
use crate::{LeakRecord, kind_name};
use leakscope_profile::is_start_frame;
use std::fmt::Write;

/// Valgrind keeps this many frames of a stack if not told otherwise; a suppression of more would never match there.
const VALGRINDS_FRAMES: usize = 12;
/// Longest pattern, in bytes.
const LONGEST: usize = 1024;

/// A suppression that matches the record, here and in Valgrind; none for a record without a stack, since all such would
/// match.
///
/// Names of C++ and Rust functions become patterns of their mangled names, since that is what Valgrind compares.
pub fn generate(record: &LeakRecord) -> Option<String> {
    if record.stack.is_empty() {
        return None;
    }
    let mut out = String::from("{\n   <insert_a_suppression_name_here>\n   Memcheck:Leak\n");
    _ = writeln!(out, "   match-leak-kinds: {}", kind_name(record.kind));
    // Memcheck's stack begins with the allocating function; after it come the adaptors that ours leave out.
    let allocator = record.allocator.as_deref().filter(|_| record.trimmed == 0);
    _ = writeln!(out, "   fun:{}", allocator.map_or_else(|| "*".to_owned(), allocator_pattern));
    let mut room = VALGRINDS_FRAMES - 1;
    if record.trimmed > 0 {
        out.push_str("   ...\n");
        room = room.saturating_sub(record.trimmed).max(1);
    }
    for (index, frame) in record.stack.iter().enumerate() {
        let inner = index.checked_sub(1).and_then(|inner| record.stack.get(inner));
        // Memcheck does not show what is below `main`.
        if room == 0 || (index > 0 && is_start_frame(frame, inner)) {
            break;
        }
        _ = match (usable(&frame.function), usable(&frame.module)) {
            // Debug information names an inlined function without its namespace, and so does memcheck.
            (Some(name), _) if frame.inlined => {
                writeln!(out, "   fun:{}", pattern_of_inlined(name))
            }
            (Some(name), _) => writeln!(out, "   fun:{}", pattern_of(name)),
            (None, Some(module)) => writeln!(out, "   obj:{module}"),
            (None, None) => writeln!(out, "   obj:*"),
        };
        // Inlined frames share the one below them.
        room -= usize::from(!frame.inlined);
    }
    out.push_str("}\n");
    Some(out)
}

/// The names of C++'s operators as Valgrind knows them.
fn allocator_pattern(name: &str) -> String {
    match name {
        _ if name.starts_with("operator new[]") => "_Zna*".to_owned(),
        _ if name.starts_with("operator new") => "_Znw*".to_owned(),
        _ => pattern_of(name),
    }
}

/// A name that stays within its line; a hostile one could end the suppression and begin another.
fn usable(name: &Option<String>) -> Option<&str> {
    let is_safe = |name: &&str| {
        !name.is_empty()
            && name.len() <= LONGEST
            && !name.chars().any(char::is_control)
            && name.trim() == *name
    };
    name.as_deref().filter(is_safe)
}
