//! Patterns of names and of stacks.

use super::mangled::{Mangled, bare_name, demangled, inlined_name};
use super::{Problem, Subject};
use leakscope_profile::Frame;

/// A pattern with wildcards, for a whole string.
#[derive(Debug, Clone)]
pub(super) struct Glob {
    pattern: Box<str>,
    /// Whether `?` stands for any byte, as in memcheck's, or for itself, as in LeakSanitizer's.
    question: bool,
}

impl Glob {
    /// `*` is anything, `?` any one byte.
    pub(super) fn new(pattern: &str) -> Glob {
        Glob { pattern: pattern.into(), question: true }
    }

    /// `*` is anything.
    pub(super) fn stars_only(pattern: &str) -> Glob {
        Glob { pattern: pattern.into(), question: false }
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        // Most names differ at once.
        let first =
            |text: &str| text.bytes().next().filter(|&byte| byte != b'*' && (byte != b'?' || !self.question));
        if first(&self.pattern).is_some_and(|byte| text.bytes().next() != Some(byte)) {
            return false;
        }
        let one = |&pattern: &u8, &byte: &u8| pattern == byte || (pattern == b'?' && self.question);
        wild(self.pattern.as_bytes(), text.as_bytes(), |&byte| byte == b'*', one, true)
    }
}

/// Matches a sequence against patterns of which some (`any`) stand for any number of items, in time at most the product
/// of the lengths: when the patterns after the last wildcard fail, the wildcard takes one more item; earlier ones need
/// not be tried again. With `whole`, all of `items` must be used up; else patterns match their beginning.
fn wild<P, T>(
    patterns: &[P],
    items: &[T],
    any: impl Fn(&P) -> bool,
    one: impl Fn(&P, &T) -> bool,
    whole: bool,
) -> bool {
    let (mut pattern, mut item) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    loop {
        match (patterns.get(pattern), items.get(item)) {
            (Some(p), _) if any(p) => {
                retry = Some((pattern + 1, item));
                pattern += 1;
                continue;
            }
            (Some(p), Some(t)) if one(p, t) => {
                pattern += 1;
                item += 1;
                continue;
            }
            (None, None) => return true,
            (None, Some(_)) if !whole => return true,
            _ => {}
        }
        let Some((after, from)) = retry else { return false };
        if from >= items.len() {
            return false;
        }
        retry = Some((after, from + 1));
        (pattern, item) = (after, from + 1);
    }
}

/// One line of a memcheck suppression.
#[derive(Debug, Clone)]
pub(super) enum FramePattern {
    /// `fun:`
    Function(FunctionPattern),
    /// `obj:`: the module's path.
    Object(Glob),
    /// `src:FILE` or `src:FILE:LINE`, the file with or without its directory.
    Source { file: Glob, line: Option<u32> },
    /// `...`: any number of frames.
    Ellipsis,
}

impl FramePattern {
    pub(super) fn parse(text: &str) -> Result<FramePattern, Problem> {
        if text == "..." {
            return Ok(FramePattern::Ellipsis);
        }
        let (kind, pattern) = text.split_once(':').ok_or(Problem::ExpectedFrame)?;
        let pattern = pattern.trim();
        match kind {
            "fun" | "obj" | "src" if pattern.is_empty() => Err(Problem::EmptyPattern),
            "fun" => Ok(FramePattern::Function(FunctionPattern::new(pattern))),
            "obj" => Ok(FramePattern::Object(Glob::new(pattern))),
            "src" => {
                let split = pattern.rsplit_once(':');
                let with_line = split.and_then(|(file, line)| Some((file, line.parse().ok()?)));
                let (file, line) = with_line.map_or((pattern, None), |(file, line)| (file, Some(line)));
                Ok(FramePattern::Source { file: Glob::new(file), line })
            }
            _ => Err(Problem::ExpectedFrame),
        }
    }

    fn matches(&self, item: &Item<'_>) -> bool {
        match (self, item) {
            (FramePattern::Ellipsis, _) => true,
            (FramePattern::Function(pattern), Item::Frame(frame)) => pattern.matches(frame),
            (FramePattern::Function(pattern), Item::Allocator(known)) => pattern.matches_allocator(*known),
            (FramePattern::Object(glob), Item::Frame(Named { frame, .. })) => {
                glob.matches(frame.module.as_deref().unwrap_or(UNKNOWN))
            }
            (FramePattern::Object(glob), Item::Allocator(_)) => glob.matches(MEMCHECKS_MODULE),
            (FramePattern::Source { file, line }, Item::Frame(Named { frame, .. })) => {
                let path = frame.file.as_deref().unwrap_or(UNKNOWN);
                let name = path.rsplit('/').next().unwrap_or(path);
                line.is_none_or(|line| frame.line == Some(line)) && (file.matches(path) || file.matches(name))
            }
            (FramePattern::Source { .. }, Item::Allocator(_)) => false,
        }
    }
}

/// What memcheck matches where a frame has no name.
const UNKNOWN: &str = "???";
/// Where memcheck's allocating functions are; suppressions made from stripped symbols name it.
const MEMCHECKS_MODULE: &str = "/usr/libexec/valgrind/vgpreload_memcheck-amd64-linux.so";
/// Functions that allocate, as memcheck names them.
const ALLOCATORS: [&str; 23] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
    "_Znwm",
    "_Znam",
    "_ZnwmRKSt9nothrow_t",
    "_ZnamRKSt9nothrow_t",
    "_ZnwmSt11align_val_t",
    "_ZnamSt11align_val_t",
    "_ZnwmSt11align_val_tRKSt9nothrow_t",
    "_ZnamSt11align_val_tRKSt9nothrow_t",
    "__builtin_new",
    "__builtin_vec_new",
    "operator new(unsigned long)",
    "operator new[](unsigned long)",
    "operator new(unsigned long, std::nothrow_t const&)",
    "operator new[](unsigned long, std::nothrow_t const&)",
];

/// `fun:`, against mangled and readable names.
#[derive(Debug, Clone)]
pub(super) struct FunctionPattern {
    glob: Glob,
    /// The pattern without a symbol's version (`@GLIBC_2.34`), which our names never have.
    versionless: Option<Glob>,
    mangled: Option<Mangled>,
    /// The pattern as the name of an inlined function, without its template arguments.
    inlined: String,
}

impl FunctionPattern {
    fn new(pattern: &str) -> FunctionPattern {
        let plain = pattern.split_once('@').map(|(name, _)| name).filter(|name| !name.is_empty());
        FunctionPattern {
            glob: Glob::new(pattern),
            versionless: plain.map(Glob::new),
            mangled: Mangled::parse(plain.unwrap_or(pattern)),
            inlined: inlined_name(pattern).to_owned(),
        }
    }

    fn matches_name(&self, name: &str) -> bool {
        self.glob.matches(name) || self.versionless.as_ref().is_some_and(|glob| glob.matches(name))
    }

    fn matches(&self, frame: &Named<'_>) -> bool {
        let Some(name) = frame.frame.function.as_deref() else {
            return self.matches_name(frame.mangled.unwrap_or(UNKNOWN));
        };
        self.matches_name(name)
            || frame.mangled.is_some_and(|name| self.matches_name(name))
            || self.mangled.as_ref().is_some_and(|pattern| pattern.matches(name))
            // Debug information names an inlined function without its namespace, and so does memcheck.
            || frame.bare.is_some_and(|(bare, inlined)| self.matches_name(bare) || self.inlined == inlined)
            || (&*self.glob.pattern == "(below main)" && name.starts_with("__libc_start"))
    }

    fn matches_allocator(&self, known: Option<&str>) -> bool {
        match known {
            None => ALLOCATORS.iter().any(|name| self.matches_name(name)),
            Some(known) => {
                let same =
                    |name: &&&str| **name == known || demangled(name).is_some_and(|name| name == known);
                self.matches_name(known) || ALLOCATORS.iter().filter(same).any(|name| self.matches_name(name))
            }
        }
    }
}

/// What a line of a suppression is matched with.
enum Item<'a> {
    /// The allocating function, which is the first frame for memcheck; its name if known.
    Allocator(Option<&'a str>),
    /// A frame.
    Frame(Named<'a>),
}

/// A frame with all the names that it can be matched by.
struct Named<'a> {
    frame: &'a Frame,
    mangled: Option<&'a str>,
    /// Of an inlined function: its name without its namespace, with template arguments and without.
    bare: Option<(&'a str, &'a str)>,
}

/// A stack made ready for being matched with many suppressions.
pub(super) struct Items<'a>(Vec<Item<'a>>);

impl<'a> Items<'a> {
    /// The allocating function, which memcheck's stacks begin with and ours lack, is put before the frames.
    pub(super) fn new(subject: &Subject<'a>) -> Items<'a> {
        let mangled = subject.mangled.iter().map(Option::as_deref).chain(std::iter::repeat(None));
        let frames = subject.frames.iter().zip(mangled).map(|(frame, mangled)| {
            let name = frame.function.as_deref().filter(|_| frame.inlined);
            Item::Frame(Named {
                frame,
                mangled,
                bare: name.map(|name| (bare_name(name), inlined_name(name))),
            })
        });
        Items(std::iter::once(Item::Allocator(subject.allocator)).chain(frames).collect())
    }

    /// Whether the patterns match the stack from its inner end on. A pattern that begins with the allocating function's
    /// caller matches, too. Nothing matches an empty stack: `fun:malloc` alone would hide every untraced block.
    pub(super) fn match_patterns(&self, patterns: &[FramePattern]) -> bool {
        let any = |pattern: &FramePattern| matches!(pattern, FramePattern::Ellipsis);
        let from = |items: &[Item<'_>]| wild(patterns, items, any, FramePattern::matches, false);
        let frames = self.0.get(1..).unwrap_or_default();
        !frames.is_empty() && (from(&self.0) || from(frames))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, in exponential time.
    fn slow(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => (0..=text.len()).any(|skip| slow(rest, &text[skip..])),
            ([b'?', rest @ ..], [_, text @ ..]) => slow(rest, text),
            ([p, rest @ ..], [t, text @ ..]) if p == t => slow(rest, text),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn globs_match_as_their_definition_says(pattern in "[ab*?]{0,8}", text in "[ab]{0,8}") {
            prop_assert_eq!(Glob::new(&pattern).matches(&text), slow(pattern.as_bytes(), text.as_bytes()));
        }
    }

    #[test]
    fn a_glob_of_many_stars_does_not_take_forever() {
        assert!(!Glob::new(&"a*".repeat(2000)).matches(&"a".repeat(1999)));
        assert!(!Glob::new(&("*a".repeat(1000) + "b")).matches(&"a".repeat(10_000)));
    }
}
