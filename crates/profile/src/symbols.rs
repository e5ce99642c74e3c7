//! Names for the addresses of a profile.

use crate::CodeAddress;
use std::collections::HashMap;

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
