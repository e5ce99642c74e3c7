//! Suppressions: which records are known and harmless. Files of memcheck and of LeakSanitizer are read, told apart by
//! their content; ready-made ones are written in memcheck's format.

mod error;
mod generate;
mod lsan;
mod mangled;
mod memcheck;
mod pattern;

pub use error::{Error, Problem};
pub use generate::generate;

use crate::{Amount, KindSet};
use leakscope_profile::Frame;
use leakscope_reach::Kind;
use pattern::{FramePattern, Glob, Items};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files than this, in bytes, are refused.
const LARGEST_FILE: u64 = 16 << 20;
/// The name under which the built-in suppressions' lines are told.
const BUILT_IN: &str = "(built in)";

/// What a suppression is asked about: one stack of blocks of one kind.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The blocks' kind.
    pub kind: Kind,
    /// Frames, innermost first, from the caller of the allocating function on.
    pub frames: &'a [Frame],
    /// The frames' mangled names where they are known; may be shorter.
    pub mangled: &'a [Option<String>],
    /// The allocating function, where it is known.
    pub allocator: Option<&'a str>,
}

/// Where a suppression was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The file, or `(built in)`.
    pub path: PathBuf,
    /// Line, from 1, at which the suppression begins.
    pub line: usize,
}

/// What a suppression has matched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SuppressionUse {
    /// Its name; of one of LeakSanitizer's, its pattern.
    pub name: String,
    /// Where it was written.
    pub origin: Origin,
    /// How many records it suppressed.
    pub records: u64,
    /// Their blocks, and the bytes of those alone.
    pub amount: Amount,
}

/// Suppressions, in the order in which they are tried.
#[derive(Debug, Clone, Default)]
pub struct Suppressions {
    entries: Vec<Entry>,
    notes: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    origin: Origin,
    kinds: KindSet,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    /// Memcheck's: patterns of the innermost frames, in order.
    Frames(Vec<FramePattern>),
    /// LeakSanitizer's: matches the function, the source file or the module of any frame.
    Anywhere(Glob),
}

impl Suppressions {
    /// None at all.
    pub fn none() -> Suppressions {
        Suppressions::default()
    }

    /// Those for what libc, libstdc++ and Rust's std allocate once and keep on purpose (`default.supp`).
    pub fn built_in() -> Suppressions {
        let mut suppressions = Suppressions::default();
        // A test reads it, so it cannot fail here.
        _ = suppressions.add_text(Path::new(BUILT_IN), include_str!("default.supp"));
        suppressions.notes.clear();
        suppressions
    }

    /// Adds those in a file of memcheck's or LeakSanitizer's format.
    ///
    /// # Errors
    /// If the file cannot be read, is larger than 16 MiB, or has a line that does not belong there. Nothing is added
    /// then.
    pub fn add_file(&mut self, path: &Path) -> Result<(), Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(read)?;
        let length = file.take(LARGEST_FILE + 1).read_to_end(&mut bytes).map_err(read)?;
        if u64::try_from(length).is_ok_and(|length| length > LARGEST_FILE) {
            return Err(Error::TooLarge { path: path.to_owned(), limit: LARGEST_FILE });
        }
        self.add_text(path, &String::from_utf8_lossy(&bytes))
    }

    /// Adds those in `text`, which was read from `path`.
    ///
    /// # Errors
    /// As [`Suppressions::add_file`].
    pub fn add_text(&mut self, path: &Path, text: &str) -> Result<(), Error> {
        let lines = Lines::new(path, text);
        let added = match lines.clone().next() {
            None => Added::default(),
            Some((_, first)) if first.starts_with('{') => memcheck::parse(lines)?,
            Some((_, first)) if lsan::is_line(first) => lsan::parse(lines)?,
            Some((line, first)) => return Err(lines.error(line, first, Problem::UnknownFormat)),
        };
        self.notes.extend(added.ignored_note(path));
        self.entries.extend(added.entries);
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What was read but is of no use for leaks.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The name of one.
    pub fn name(&self, index: usize) -> Option<&str> {
        self.entries.get(index).map(|entry| entry.name.as_str())
    }

    /// Where one was written.
    pub fn origin(&self, index: usize) -> Option<&Origin> {
        self.entries.get(index).map(|entry| &entry.origin)
    }

    /// The index of the first that matches.
    pub fn find(&self, subject: &Subject<'_>) -> Option<usize> {
        let mut items = None;
        self.entries.iter().position(|entry| {
            entry.kinds.contains(subject.kind)
                && match &entry.rule {
                    Rule::Frames(patterns) => {
                        items.get_or_insert_with(|| Items::new(subject)).match_patterns(patterns)
                    }
                    Rule::Anywhere(glob) => lsan::matches(glob, subject),
                }
        })
    }
}

/// What a parser has read.
#[derive(Debug, Default)]
struct Added {
    entries: Vec<Entry>,
    /// Kinds of suppression that do not concern leaks, and how many there were.
    ignored: std::collections::BTreeMap<String, usize>,
}

impl Added {
    fn ignore(&mut self, what: &str) {
        const MOST: usize = 8;
        let what: String = what.chars().take(40).collect();
        if self.ignored.len() < MOST || self.ignored.contains_key(&what) {
            *self.ignored.entry(what).or_default() += 1;
        } else {
            *self.ignored.entry("others".to_owned()).or_default() += 1;
        }
    }

    fn ignored_note(&self, path: &Path) -> Option<String> {
        if self.ignored.is_empty() {
            return None;
        }
        let total: usize = self.ignored.values().sum();
        let kinds: Vec<_> = self.ignored.iter().map(|(what, count)| format!("{count} of {what}")).collect();
        Some(format!(
            "{}: {total} suppression{} not of leaks ignored ({})",
            path.display(),
            if total == 1 { "" } else { "s" },
            kinds.join(", ")
        ))
    }
}

/// The lines of a file that are neither empty nor comments, with their numbers from 1.
#[derive(Debug, Clone)]
struct Lines<'a> {
    path: &'a Path,
    lines: std::iter::Enumerate<std::str::Lines<'a>>,
}

impl<'a> Lines<'a> {
    fn new(path: &'a Path, text: &'a str) -> Lines<'a> {
        Lines { path, lines: text.lines().enumerate() }
    }

    fn error(&self, line: usize, item: &str, problem: Problem) -> Error {
        const LONGEST_ITEM: usize = 120;
        let item = item.chars().take(LONGEST_ITEM).collect();
        Error::Syntax { path: self.path.to_owned(), line, item, problem }
    }

    fn origin(&self, line: usize) -> Origin {
        Origin { path: self.path.to_owned(), line }
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, &'a str);

    fn next(&mut self) -> Option<(usize, &'a str)> {
        self.lines
            .by_ref()
            .map(|(index, line)| (index + 1, line.trim()))
            .find(|(_, line)| !line.is_empty() && !line.starts_with('#'))
    }
}
