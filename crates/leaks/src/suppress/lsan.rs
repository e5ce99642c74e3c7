//! LeakSanitizer's suppression files: lines of `leak:PATTERN`, matched with the function, the source file or the
//! module of any frame.

use super::pattern::Glob;
use super::{Added, Entry, Error, Lines, Problem, Rule, Subject};
use crate::KindSet;

/// Whether a line looks like `TYPE:PATTERN`. The other sanitizers' files are of the same format.
pub(super) fn is_line(line: &str) -> bool {
    line.split_once(':').is_some_and(|(kind, _)| {
        !kind.is_empty() && kind.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    })
}

/// Reads a whole file.
pub(super) fn parse(mut lines: Lines<'_>) -> Result<Added, Error> {
    let mut added = Added::default();
    while let Some((at, line)) = lines.next() {
        let Some((kind, pattern)) = line.split_once(':').filter(|_| is_line(line)) else {
            return Err(lines.error(at, line, Problem::ExpectedPattern));
        };
        if kind != "leak" {
            added.ignore(kind);
            continue;
        }
        let glob = glob(pattern.trim()).ok_or_else(|| lines.error(at, line, Problem::EmptyPattern))?;
        added.entries.push(Entry {
            name: pattern.trim().to_owned(),
            origin: lines.origin(at),
            kinds: KindSet::ALL,
            rule: Rule::Anywhere(glob),
        });
    }
    Ok(added)
}

/// A pattern may begin and end anywhere, unless `^` or `$` says otherwise; `*` is anything. None if there is nothing
/// to match.
fn glob(pattern: &str) -> Option<Glob> {
    let (start, rest) = match pattern.strip_prefix('^') {
        Some(rest) => ("", rest),
        None => ("*", pattern),
    };
    let (rest, end) = match rest.strip_suffix('$') {
        Some(rest) => (rest, ""),
        None => (rest, "*"),
    };
    (!rest.is_empty()).then(|| Glob::stars_only(&format!("{start}{rest}{end}")))
}

/// Whether the pattern is found in any frame.
pub(super) fn matches(glob: &Glob, subject: &Subject<'_>) -> bool {
    let named = subject.frames.iter().any(|frame| {
        [&frame.function, &frame.file, &frame.module].into_iter().flatten().any(|name| glob.matches(name))
    });
    named
        || subject.mangled.iter().flatten().any(|name| glob.matches(name))
        || subject.allocator.is_some_and(|name| glob.matches(name))
}

#[cfg(test)]
mod tests {
    use super::super::Suppressions;
    use super::*;
    use leakscope_profile::Frame;
    use leakscope_reach::Kind;
    use std::path::Path;

    fn frames() -> Vec<Frame> {
        let frame = |function: &str, file: &str, module: &str| Frame {
            function: Some(function.to_owned()),
            file: Some(file.to_owned()),
            module: Some(module.to_owned()),
            ..Frame::default()
        };
        vec![
            frame("ns::Cache::insert(int)", "/src/cache.cc", "/usr/lib/libcache.so.1"),
            frame("main", "/src/main.cc", "/srv/app"),
        ]
    }

    #[test]
    fn patterns_are_found_in_function_file_and_module_of_any_frame() {
        for (pattern, expected) in [
            ("Cache::insert", true),
            ("libcache.so", true),
            ("main.cc", true),
            ("^main$", true),
            ("^insert", false),
            ("^ns::*insert", true),
            ("*app$", true),
            ("app?", false),
            ("cache.c$", false),
            ("cache.cc$", true),
            ("CACHE", false),
        ] {
            let mut suppressions = Suppressions::none();
            suppressions.add_text(Path::new("l"), &format!("# c\nleak:{pattern}\n")).expect(pattern);
            let frames = frames();
            let subject = Subject { kind: Kind::Definite, frames: &frames, mangled: &[], allocator: None };
            assert_eq!(suppressions.find(&subject).is_some(), expected, "{pattern}");
        }
    }

    #[test]
    fn other_sanitizers_lines_are_ignored_and_said_and_broken_ones_refused() {
        let mut suppressions = Suppressions::none();
        suppressions.add_text(Path::new("l"), "race:f\nleak:g\nthread:h\n").expect("suppressions");
        assert_eq!(suppressions.len(), 1);
        assert_eq!(suppressions.notes(), ["l: 2 suppressions not of leaks ignored (1 of race, 1 of thread)"]);
        for (text, expected) in [
            ("leak:f\nhello\n", "l:2: expected TYPE:PATTERN, such as \"leak:libfoo.so\": \"hello\""),
            ("leak:\n", "l:1: the frame has no pattern: \"leak:\""),
            ("leak:^$\n", "l:1: the frame has no pattern"),
        ] {
            let error = suppressions.add_text(Path::new("l"), text).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(suppressions.len(), 1);
    }
}
