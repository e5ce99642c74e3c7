//! What can be wrong with a suppression file.

use crate::UnknownKind;
use std::path::PathBuf;

/// A suppression file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the suppression file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is too large to be one.
    #[error("the suppression file {path} is larger than {limit} bytes")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
    },
    /// A line does not belong there.
    #[error("{path}:{line}: {problem}: {item:?}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What stands there, cut to 120 characters.
        item: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The first line is of no format.
    #[error(
        "neither memcheck's suppressions (which begin with \"{{\") nor LeakSanitizer's (\"leak:PATTERN\")"
    )]
    UnknownFormat,
    /// Something between two suppressions.
    #[error("expected \"{{\", which begins a suppression")]
    ExpectedBrace,
    /// The file ends within a suppression.
    #[error("the suppression that begins here has no end (\"}}\")")]
    NoEnd,
    /// `}` came before the name and the kind.
    #[error("the suppression lacks its name or its kind (\"Memcheck:Leak\")")]
    Incomplete,
    /// The second line of a suppression is not like `Memcheck:Leak`.
    #[error("expected the tool and the kind of error, such as \"Memcheck:Leak\"")]
    ExpectedKind,
    /// The word after `match-leak-kinds:` is none.
    #[error("{0}")]
    LeakKinds(#[from] UnknownKind),
    /// A line that is no frame.
    #[error("expected a frame (\"fun:NAME\", \"obj:PATH\", \"src:FILE[:LINE]\" or \"...\")")]
    ExpectedFrame,
    /// A frame without a pattern.
    #[error("the frame has no pattern")]
    EmptyPattern,
    /// No frame, or none but `...`, would match everything.
    #[error("the suppression has no frame but \"...\", so that it would match every stack")]
    MatchesAll,
    /// There are more frames than any stack has.
    #[error("more than {0} frames")]
    TooManyFrames(usize),
    /// A line of a LeakSanitizer file that is not `TYPE:PATTERN`.
    #[error("expected TYPE:PATTERN, such as \"leak:libfoo.so\"")]
    ExpectedPattern,
}
