//! Memcheck's suppression files (Valgrind manual, 2.5 and memcheck manual, 4.4).

use super::pattern::FramePattern;
use super::{Added, Entry, Error, Lines, Problem, Rule};
use crate::KindSet;

/// Most frames of one suppression. (Valgrind itself takes 24.)
const MOST_FRAMES: usize = 512;

/// Reads a whole file.
pub(super) fn parse(mut lines: Lines<'_>) -> Result<Added, Error> {
    let mut added = Added::default();
    while let Some((start, line)) = lines.next() {
        if line != "{" {
            return Err(lines.error(start, line, Problem::ExpectedBrace));
        }
        let name = header(&mut lines, start)?;
        let (at, kind) = header_at(&mut lines, start)?;
        let Some((tools, error_kind)) = kind.split_once(':') else {
            return Err(lines.error(at, kind, Problem::ExpectedKind));
        };
        if !tools.split(',').any(|tool| tool.trim() == "Memcheck") || error_kind.trim() != "Leak" {
            // Not a leak's, unless its writer meant one.
            if error_kind.trim().eq_ignore_ascii_case("leak")
                && tools.to_ascii_lowercase().contains("memcheck")
            {
                return Err(lines.error(at, kind, Problem::ExpectedKind));
            }
            while header(&mut lines, start)? != "}" {}
            added.ignore(kind);
            continue;
        }
        let mut kinds = KindSet::ALL;
        let mut frames = Vec::new();
        loop {
            let (at, line) = header_at(&mut lines, start)?;
            if line == "}" {
                break;
            }
            if let Some(set) = line.strip_prefix("match-leak-kinds:").filter(|_| frames.is_empty()) {
                kinds = set.parse().map_err(|unknown| lines.error(at, line, Problem::LeakKinds(unknown)))?;
                continue;
            }
            if frames.len() >= MOST_FRAMES {
                return Err(lines.error(at, line, Problem::TooManyFrames(MOST_FRAMES)));
            }
            frames.push(FramePattern::parse(line).map_err(|problem| lines.error(at, line, problem))?);
        }
        if frames.iter().all(|frame| matches!(frame, FramePattern::Ellipsis)) {
            return Err(lines.error(start, name, Problem::MatchesAll));
        }
        let origin = lines.origin(start);
        added.entries.push(Entry { name: name.to_owned(), origin, kinds, rule: Rule::Frames(frames) });
    }
    Ok(added)
}

/// The next line within the suppression that began at `start`.
fn header_at<'a>(lines: &mut Lines<'a>, start: usize) -> Result<(usize, &'a str), Error> {
    lines.next().ok_or_else(|| lines.error(start, "{", Problem::NoEnd))
}

fn header<'a>(lines: &mut Lines<'a>, start: usize) -> Result<&'a str, Error> {
    header_at(lines, start).map(|(_, line)| line)
}

#[cfg(test)]
mod tests {
    use super::super::{Subject, Suppressions};
    use super::*;
    use leakscope_profile::Frame;
    use leakscope_reach::Kind;
    use std::path::Path;

    fn read(text: &str) -> Result<Suppressions, Error> {
        let mut suppressions = Suppressions::none();
        suppressions.add_text(Path::new("my.supp"), text).map(|()| suppressions)
    }

    fn stack(functions: &[&str]) -> Vec<Frame> {
        let frame = |function: &&str| Frame {
            function: (**function != *"???").then(|| (*function).to_owned()),
            file: Some(format!("/src/{function}.c")),
            line: Some(7),
            module: Some("/opt/lib/libfoo.so.1".to_owned()),
            ..Frame::default()
        };
        functions.iter().map(frame).collect()
    }

    fn matches(frames: &str, functions: &[&str]) -> bool {
        let suppressions = read(&format!("{{\nname\nMemcheck:Leak\n{frames}\n}}\n")).expect("a suppression");
        let frames = stack(functions);
        let subject = Subject { kind: Kind::Definite, frames: &frames, mangled: &[], allocator: None };
        suppressions.find(&subject).is_some()
    }

    #[test]
    fn frames_match_from_the_inside_and_the_allocator_that_our_stacks_lack_is_matched_by_itself() {
        let trace = ["strdup", "load", "main"];
        for pattern in [
            "fun:malloc\nfun:strdup\nfun:load\nfun:main",
            "fun:malloc\nfun:strdup",
            "fun:*alloc\nfun:str*",
            "fun:strdup",
            "fun:*\nfun:strdup\nfun:l?ad",
            "obj:*/vgpreload_memcheck-amd64-linux.so\nfun:strdup",
            "fun:malloc\nobj:*libfoo.so*\nfun:load",
            "fun:malloc\nsrc:strdup.c\nsrc:/src/load.c:7",
            "fun:malloc\n...\nfun:main",
            "...\nfun:strdup",
            "...\nfun:load\n...\nfun:main\n...",
            "fun:calloc\n...\nfun:load",
        ] {
            assert!(matches(pattern, &trace), "{pattern}");
        }
        for pattern in [
            "fun:malloc\nfun:load",
            "fun:free\nfun:strdup",
            "fun:malloc\nfun:strdup\nfun:main",
            "fun:malloc\nfun:strdup\nfun:load\nfun:main\nfun:_start",
            "fun:malloc\nobj:libfoo.so.1",
            "src:strdup.c:8",
            "...\nfun:main\n...\nfun:load",
            "fun:Strdup",
        ] {
            assert!(!matches(pattern, &trace), "{pattern}");
        }
        assert!(matches("fun:malloc\nobj:*libfoo*\nfun:main", &["???", "main"]));
    }

    #[test]
    fn a_known_allocator_is_the_only_one_that_matches() {
        let suppressions = read("{\nn\nMemcheck:Leak\nfun:calloc\nfun:f\n}").expect("a suppression");
        let frames = stack(&["f"]);
        let found = |allocator| {
            suppressions.find(&Subject { kind: Kind::Definite, frames: &frames, mangled: &[], allocator })
        };
        assert_eq!((found(Some("calloc")), found(Some("malloc")), found(None)), (Some(0), None, Some(0)));
    }

    #[test]
    fn mangled_patterns_match_readable_names() {
        let trace = ["cache::Store<int>::insert(int)", "void run<3>(char const*)", "core::fmt::write"];
        for pattern in [
            "fun:_Znwm\nfun:_ZN5cache5StoreIiE6insertEi\nfun:_Z3runILi3EEvPKc\nfun:_ZN4core3fmt5write17h0123456789abcdefE",
            "fun:_ZN5cache5Store*6insert*",
            "fun:_ZN5cache*",
            "fun:_ZN5cache5StoreIiE6ins*",
            "fun:cache::Store<*>::insert(*)",
            "...\nfun:_RNvNtCs1234_4core3fmt5write*",
        ] {
            assert!(matches(pattern, &trace), "{pattern}");
        }
        for pattern in ["fun:_ZN5cache5StoreIlE6insertEl", "fun:_ZN5cache*6insect*", "fun:_ZN3ache*"] {
            assert!(!matches(pattern, &trace), "{pattern}");
        }
    }

    #[test]
    fn a_pattern_matches_a_given_mangled_name_too() {
        let suppressions = read("{\nn\nMemcheck:Leak\nfun:_ZN?cache*Ei\n}").expect("a suppression");
        let frames = stack(&["cache::f(int)"]);
        let mangled = [Some("_ZN5cache1fEi".to_owned())];
        let subject = Subject { kind: Kind::Definite, frames: &frames, mangled: &mangled, allocator: None };
        assert_eq!(suppressions.find(&subject), Some(0));
    }

    #[test]
    fn kinds_comments_tools_and_other_errors_are_understood() {
        let suppressions = read(
            "# mine\n\n{\n  <insert_a_suppression_name_here>\n  Memcheck:Leak\n  match-leak-kinds: possible,reachable\n  # why\n  fun:f\n}\n\
             {\n a\n Addrcheck,Memcheck:Leak\n fun:g\n}\n\
             {\n b\n Memcheck:Param\n write(buf)\n fun:f\n ...\n}\n{\n c\n Helgrind:Race\n fun:f\n}\n{\n d\n Memcheck:Addr4\n}\n",
        )
        .expect("suppressions");
        assert_eq!(suppressions.len(), 2);
        assert_eq!(suppressions.name(0), Some("<insert_a_suppression_name_here>"));
        assert_eq!(suppressions.origin(1).map(|origin| origin.line), Some(10));
        let frames = stack(&["f"]);
        let find =
            |kind| suppressions.find(&Subject { kind, frames: &frames, mangled: &[], allocator: None });
        assert_eq!((find(Kind::Definite), find(Kind::Possible)), (None, Some(0)));
        let expected = "my.supp: 3 suppressions not of leaks ignored (1 of Helgrind:Race, 1 of Memcheck:Addr4, 1 of Memcheck:Param)";
        assert_eq!(suppressions.notes(), [expected]);
    }

    #[test]
    fn errors_carry_path_line_and_item() {
        for (text, expected) in [
            ("hello\n", "my.supp:1: neither memcheck's"),
            (
                "{\nn\nMemcheck:Leak\nfun:f\n}\n==12== 3 bytes\n",
                "my.supp:6: expected \"{\", which begins a suppression: \"==12== 3 bytes\"",
            ),
            ("\n{\nn\nMemcheck:Leak\nfun:f\n", "my.supp:2: the suppression that begins here has no end"),
            (
                "{\nn\nLeak\nfun:f\n}",
                "my.supp:3: expected the tool and the kind of error, such as \"Memcheck:Leak\": \"Leak\"",
            ),
            ("{\nn\nMemcheck:leak\nfun:f\n}", "my.supp:3: expected the tool"),
            (
                "{\nn\nMemcheck:Leak\nmatch-leak-kinds: lost\nfun:f\n}",
                "my.supp:4: unknown kind of leak \"lost\"",
            ),
            ("{\nn\nMemcheck:Leak\nfn:f\n}", "my.supp:4: expected a frame"),
            ("{\nn\nMemcheck:Leak\nfun:\n}", "my.supp:4: the frame has no pattern"),
            ("{\nn\nMemcheck:Leak\n...\n}", "my.supp:1: the suppression has no frame but"),
            ("{\nn\nMemcheck:Leak\n}", "my.supp:1: the suppression has no frame but"),
            ("{\n}", "my.supp:1: the suppression that begins here"),
        ] {
            let error = read(text).map(|_| ()).expect_err(text).to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
