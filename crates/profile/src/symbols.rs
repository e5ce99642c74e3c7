//! Names for the addresses of a profile.

use crate::CodeAddress;
use std::collections::HashMap;
use std::fmt::{self, Write as _};

/// One function on a stack; several (inlined) frames can share an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Frame {
    /// Demangled function name; none if unknown.
    pub function: Option<String>,
    /// Source file; none if unknown.
    pub file: Option<String>,
    /// Line in `file`, from 1.
    pub line: Option<u32>,
    /// Path of the module.
    pub module: Option<String>,
    /// Address within the module's ELF file, or the run-time address where there is no module.
    pub address: u64,
    /// Whether this function was inlined into the next outer frame.
    pub inlined: bool,
}

/// A module for which only addresses or exported names could be given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MissingDebugInfo {
    /// Path of the module.
    pub path: String,
    /// Its build id, in lower-case hexadecimal; empty if it has none.
    pub build_id: String,
    /// The Debian package that would have the debug information, where that can be told.
    pub package: Option<String>,
    /// Why there are no full names: stripped, replaced on disk, file gone.
    pub reason: String,
}

impl fmt::Display for MissingDebugInfo {
    /// One line without a line break: `PATH (build id ID): REASON; debug information is in package PACKAGE`. Paths
    /// come from other processes, so control characters are escaped and the length is bounded.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_plain(f, &self.path)?;
        match self.build_id.as_str() {
            "" => f.write_str(" (no build id): ")?,
            id => write!(f, " (build id {id}): ")?,
        }
        write_plain(f, &self.reason)?;
        if let Some(package) = &self.package {
            f.write_str("; debug information is in package ")?;
            write_plain(f, package)?;
        }
        Ok(())
    }
}

/// Writes at most 512 characters of `text`, control characters escaped.
fn write_plain(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    const MAX: usize = 512;
    for c in text.chars().take(MAX) {
        match c.is_control() || is_bidi_control(c) {
            true => write!(f, "{}", c.escape_unicode())?,
            false => f.write_char(c)?,
        }
    }
    if text.chars().nth(MAX).is_some() { f.write_str("...") } else { Ok(()) }
}

/// Characters that reorder the text around them on a terminal.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Names for every address of a profile.
#[derive(Debug, Clone, Default)]
pub struct Symbols {
    /// For each address its frames, the innermost inlined function first; never empty.
    pub frames: HashMap<CodeAddress, Vec<Frame>>,
    /// Modules that could not be named fully, sorted by path.
    pub missing: Vec<MissingDebugInfo>,
}

impl Symbols {
    /// The frames of a whole stack, innermost first. Addresses without an entry yield one nameless frame.
    pub fn stack<'a>(&'a self, stack: &'a [CodeAddress]) -> impl Iterator<Item = Frame> + 'a {
        stack.iter().flat_map(|pc| match self.frames.get(pc) {
            Some(frames) if !frames.is_empty() => frames.clone(),
            _ => vec![Frame { address: pc.address, ..Frame::default() }],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::MissingDebugInfo;

    #[test]
    fn missing_debug_information_is_told_in_one_line_whatever_the_path_holds() {
        let mut missing = MissingDebugInfo {
            path: "/usr/lib/libfoo.so.1".to_owned(),
            build_id: "ab12".to_owned(),
            package: Some("libfoo1-dbgsym".to_owned()),
            reason: "stripped, exported names only".to_owned(),
        };
        assert_eq!(
            missing.to_string(),
            "/usr/lib/libfoo.so.1 (build id ab12): stripped, exported names only; \
             debug information is in package libfoo1-dbgsym"
        );
        missing.path = format!("/tmp/a\n\x1b[31m\u{202e}{}", "x".repeat(5000));
        missing.build_id.clear();
        missing.package = None;
        let line = missing.to_string();
        assert!(line.starts_with("/tmp/a\\u{a}\\u{1b}[31m\\u{202e}xxx"), "{line}");
        assert!(line.ends_with("... (no build id): stripped, exported names only") && line.len() < 700);
    }
}
