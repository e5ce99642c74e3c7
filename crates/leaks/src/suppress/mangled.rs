//! Patterns written as mangled names against names that are readable already, and back.
//!
//! Memcheck matches mangled names; leakscope's stacks have readable ones. A whole mangled name is made readable and
//! compared. One with wildcards cannot be; but a mangled name spells each identifier out after its length
//! (`5cache6insert`), and those must occur in the readable name in the same order.

use std::fmt::{self, Write};

/// Longest readable name, in bytes, as in leakscope's stacks.
const LONGEST: usize = 16 << 10;

/// A `fun:` pattern that is a mangled name.
#[derive(Debug, Clone)]
pub(super) enum Mangled {
    /// Without wildcards: the name made readable.
    Whole(String),
    /// With wildcards: the identifiers in it.
    Parts(Vec<Part>),
    /// As [`pattern_of`] makes them of a readable name, which is done again to compare.
    Generated(String),
}

/// An identifier.
#[derive(Debug, Clone)]
pub(super) struct Part {
    text: String,
    /// Whether a wildcard cuts it short.
    open: bool,
}

impl Mangled {
    /// None if the pattern is no mangled name.
    pub(super) fn parse(pattern: &str) -> Option<Mangled> {
        if pattern.starts_with("_*") {
            return Some(Mangled::Generated(pattern.to_owned()));
        }
        if !["_Z", "_R", "_?"].iter().any(|prefix| pattern.starts_with(prefix)) {
            return None;
        }
        if pattern.contains(['*', '?']) {
            let parts = parts(pattern);
            return Some(if parts.is_empty() {
                Mangled::Generated(pattern.to_owned())
            } else {
                Mangled::Parts(parts)
            });
        }
        demangled(pattern).map(Mangled::Whole)
    }

    /// Whether it can stand for this readable name.
    pub(super) fn matches(&self, readable: &str) -> bool {
        match self {
            Mangled::Whole(name) => {
                // Names from debug information alone can lack their parameters.
                name == readable || (!readable.contains('(') && without_parameters(name) == readable)
            }
            Mangled::Generated(pattern) => pattern_of(readable) == *pattern,
            Mangled::Parts(parts) => {
                // Splitting a name is dear, and most names fail this.
                let mut words = identifiers(readable);
                parts.iter().all(|part| readable.contains(&part.text))
                    && parts.iter().all(|part| {
                        words.any(
                            |word| if part.open { word.starts_with(&part.text) } else { word == part.text },
                        )
                    })
            }
        }
    }
}

/// The identifiers of a mangled name with wildcards, by the lengths before them.
fn parts(pattern: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut rest = pattern;
    let mut before = ('_', '_');
    while let Some(c) = rest.chars().next() {
        // A crate's number in Rust's newer scheme: `Cs1a2b_`.
        if let Some((number, after)) = rest.strip_prefix("Cs").and_then(|rest| rest.split_once('_'))
            && number.chars().all(|c| c.is_ascii_alphanumeric())
        {
            rest = after;
            before = ('_', '_');
            continue;
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if digits == 0 {
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
            before = (before.1, c);
            continue;
        }
        let (number, after) = rest.split_at(digits);
        // `Li10E` is the number ten as a template argument; `S1_`, `T0_`, `s0_` and `B4_` refer to what was before.
        let is_literal = before.0 == 'L' && before.1.is_ascii_lowercase();
        let is_reference = "STsB".contains(before.1) && after.starts_with('_');
        let length = number.parse::<usize>().ok().filter(|&length| length > 0);
        let length = length.filter(|_| !is_literal && !is_reference);
        let identifier = length.and_then(|length| identifier(after, length));
        before = ('_', '_');
        match identifier {
            Some((part, used)) => {
                if is_worth_comparing(&part.text) {
                    parts.push(part);
                }
                rest = after.get(used..).unwrap_or_default();
            }
            None => rest = after,
        }
    }
    parts
}

/// The identifier of `length` bytes at the start of `text`, or what a wildcard leaves of it, and its length.
fn identifier(text: &str, length: usize) -> Option<(Part, usize)> {
    let window = text.get(..length.min(text.len()))?;
    let cut = window.find(['*', '?']);
    let open = cut.is_some() || length > text.len();
    let word = window.get(..cut.unwrap_or(window.len()))?;
    let is_identifier = word.starts_with(|c: char| !c.is_ascii_digit()) && !open
        || (open && cut.is_some() && !word.is_empty());
    (is_identifier && word.chars().all(|c| c.is_alphanumeric() || "_$.".contains(c)))
        .then(|| (Part { text: word.to_owned(), open }, word.len()))
}

/// Not the hash of Rust's older scheme, its escapes, or a C++ anonymous namespace.
fn is_worth_comparing(word: &str) -> bool {
    let is_hash =
        word.len() == 17 && word.starts_with('h') && word.chars().skip(1).all(|c| c.is_ascii_hexdigit());
    !is_hash && !word.contains(['$', '.']) && word != "_GLOBAL__N_1"
}

/// The words of a readable name.
fn identifiers(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// The readable form of a mangled name of C++ or Rust, as leakscope's stacks have it; none if it is not one.
pub(super) fn demangled(name: &str) -> Option<String> {
    let mut out = Bounded(String::new());
    if let Ok(symbol) = rustc_demangle::try_demangle(name) {
        write!(out, "{symbol:#}").ok()?;
        return Some(out.0);
    }
    let symbol = name.starts_with("_Z").then(|| cpp_demangle::Symbol::new(name).ok())??;
    symbol.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new()).ok()?;
    Some(out.0)
}

/// A string that refuses to grow past [`LONGEST`]: a mangled name can stand for an exponentially longer one.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.0.len() + more.len() > LONGEST {
            return Err(fmt::Error);
        }
        self.0.push_str(more);
        Ok(())
    }
}

/// `ns::f` of `ns::f(int)`; all of a name without parameters.
fn without_parameters(name: &str) -> &str {
    let Some(end) = name.rfind(')') else { return name };
    let mut depth = 0usize;
    for (at, c) in name.get(..=end).unwrap_or(name).char_indices().rev() {
        match c {
            ')' => depth += 1,
            '(' if depth <= 1 => return name.get(..at).filter(|name| !name.is_empty()).unwrap_or(name),
            '(' => depth -= 1,
            _ => {}
        }
    }
    name
}

/// The innermost name alone: `insert` of `ns::Cache<int>::insert(int)`.
pub(super) fn bare_name(name: &str) -> &str {
    let name = without_parameters(name);
    let name = if name.ends_with('>') && !name.contains("operator") {
        let mut depth = 0usize;
        let open = name.char_indices().rev().find(|&(_, c)| {
            match c {
                '>' => depth += 1,
                '<' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0
        });
        open.and_then(|(at, _)| name.get(..at)).map_or(name, |name| name.trim_end_matches("::"))
    } else {
        name
    };
    name.rsplit("::").next().unwrap_or(name)
}

/// As [`bare_name`], with closures under one name: `{{closure}}` and `{closure#0}` are the same in two schemes.
pub(super) fn inlined_name(name: &str) -> &str {
    let bare = bare_name(name);
    if bare.contains("{closure") || bare.contains("{{closure") { "{{closure}}" } else { bare }
}

/// A pattern in memcheck's syntax for an inlined function: its name without its namespace, which is all that debug
/// information has, with template arguments or without.
pub(super) fn pattern_of_inlined(name: &str) -> String {
    let bare = inlined_name(name);
    let is_word = !bare.is_empty() && bare.chars().all(|c| c.is_alphanumeric() || c == '_');
    match is_word {
        false => "*".to_owned(),
        true if name.len() == bare.len() => name.to_owned(),
        true => format!("{bare}*"),
    }
}

/// A pattern in memcheck's syntax for the mangled form of a readable name: its identifiers in order, each after its
/// length. A name that is not mangled is itself. What no identifier tells (an operator, a closure) is a wildcard.
pub(super) fn pattern_of(name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_alphanumeric() || "_.$".contains(c));
    if is_plain {
        return name.to_owned();
    }
    let path = path(name);
    let mut pattern = String::from("_");
    for word in &path.words {
        _ = write!(pattern, "*{}{word}", word.len());
    }
    _ = match path.last {
        Last::Constructor => write!(pattern, "*C?E"),
        Last::Destructor => write!(pattern, "*D?E"),
        Last::Operator(code) if path.words.is_empty() => return format!("_Z{code}*"),
        // A conversion; its type follows.
        Last::Operator("cv") => write!(pattern, "*cv"),
        // Within a class or a namespace, `E` ends the name.
        Last::Operator(code) => write!(pattern, "*{code}E"),
        Last::Word if path.words.is_empty() => return "*".to_owned(),
        Last::Word => Ok(()),
    };
    pattern + "*"
}

/// A readable name, as far as mangling spells it out.
struct Path<'a> {
    words: Vec<&'a str>,
    last: Last,
}

/// What the function itself is called.
enum Last {
    /// As the last word says.
    Word,
    /// As its class.
    Constructor,
    /// As its class, with a tilde.
    Destructor,
    /// `operator`, with its code in mangled names.
    Operator(&'static str),
}

/// C++'s operators and their codes (Itanium C++ ABI, 5.1.3); longer ones before those that they begin with.
const OPERATORS: [(&str, &str); 44] = [
    (" new[]", "na"),
    (" new", "nw"),
    (" delete[]", "da"),
    (" delete", "dl"),
    ("()", "cl"),
    ("[]", "ix"),
    ("->*", "pm"),
    ("->", "pt"),
    ("<<=", "lS"),
    (">>=", "rS"),
    ("<=>", "ss"),
    ("+=", "pL"),
    ("-=", "mI"),
    ("*=", "mL"),
    ("/=", "dV"),
    ("%=", "rM"),
    ("^=", "eO"),
    ("&=", "aN"),
    ("|=", "oR"),
    ("<<", "ls"),
    (">>", "rs"),
    ("==", "eq"),
    ("!=", "ne"),
    ("<=", "le"),
    (">=", "ge"),
    ("&&", "aa"),
    ("||", "oo"),
    ("++", "pp"),
    ("--", "mm"),
    ("=", "aS"),
    ("<", "lt"),
    (">", "gt"),
    ("+", "p?"),
    ("-", "??"),
    ("*", "??"),
    ("/", "dv"),
    ("%", "rm"),
    ("^", "eo"),
    ("&", "a?"),
    ("|", "or"),
    ("~", "co"),
    ("!", "nt"),
    (",", "cm"),
    (" ", "cv"),
];

/// The identifiers of a readable name's path, without return type, parameters, template arguments, and what mangling
/// abbreviates in `std`.
fn path(name: &str) -> Path<'_> {
    const ABBREVIATED: [&str; 7] =
        ["std", "string", "allocator", "basic_string", "istream", "ostream", "iostream"];
    let mut words: Vec<&str> = Vec::new();
    let mut last = Last::Word;
    let mut depth = 0usize;
    let mut start = None;
    let bytes = name.as_bytes();
    for (at, &byte) in bytes.iter().enumerate().chain(std::iter::once((name.len(), &b' '))) {
        let is_word = byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
        if depth == 0 && is_word {
            start.get_or_insert(at);
            continue;
        }
        if let Some(word) = start.take().and_then(|start| name.get(start..at)) {
            if word == "operator" {
                let rest = name.get(at..).unwrap_or_default();
                let code = OPERATORS.iter().find(|(operator, _)| rest.starts_with(operator));
                last = code.map_or(Last::Word, |&(_, code)| Last::Operator(code));
                break;
            }
            words.push(word);
        }
        match byte {
            // What came before the last space was a return type.
            b' ' if depth == 0 && at < name.len() => words.clear(),
            b'(' if depth == 0
                && !words.is_empty()
                && !name.get(at..).is_some_and(|rest| rest.starts_with("(anonymous")) =>
            {
                break;
            }
            b'(' | b'<' | b'[' | b'{' => depth += 1,
            b')' | b'>' | b']' | b'}' => depth = depth.saturating_sub(1),
            // A destructor's name is not spelled out.
            b'~' if depth == 0 => {
                last = Last::Destructor;
                break;
            }
            _ => {}
        }
    }
    if let [.., class, constructor] = words.as_slice()
        && class == constructor
    {
        words.pop();
        last = Last::Constructor;
    }
    let in_std = words.first() == Some(&"std");
    words.retain(|word| !(in_std && ABBREVIATED.contains(word)));
    Path { words, last }
}

#[cfg(test)]
mod tests {
    use super::super::pattern::Glob;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_generated_pattern_matches_the_mangled_name_and_the_readable_one_but_not_anothers() {
        let mangled = [
            "_ZN5cache5StoreIiE6insertEi",
            "_ZN5cache5StoreIiE6removeEi",
            "_Z4makei",
            "_ZN12_GLOBAL__N_17Session4openEPKc",
            "_ZN7SessionC1Ev",
            "_ZN7SessionD2Ev",
            "_ZN7SessionpLEi",
            "_ZplRK7SessionS1_",
            "_ZN7SessioncvbEv",
            "_ZZ4mainENKUlvE_clEv",
            "_ZNK7Session3getEv",
            "_ZNSt6vectorIiSaIiEE17_M_realloc_insertIJiEEEvN9__gnu_cxx17__normal_iteratorIPiS1_EEDpOT_",
            "_Z3runILi3EEvPKc",
            "_ZN4core3fmt5write17h0123456789abcdefE",
            "_ZN3app4main28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE",
            "_RNvNtCs1234_3foo3bar3baz",
            "_RNvMs_NtCs1234_5cache5storeNtB4_5Store6update",
        ];
        for name in mangled {
            let readable = demangled(name).expect(name);
            let pattern = pattern_of(&readable);
            assert!(pattern.starts_with('_'), "{readable}: {pattern}");
            for other in mangled {
                let other_readable = demangled(other).expect(other);
                assert_eq!(Glob::new(&pattern).matches(other), other == name, "{pattern} {other}");
                let parsed = Mangled::parse(&pattern).expect("a mangled pattern");
                assert_eq!(parsed.matches(&other_readable), other == name, "{pattern} {other_readable}");
            }
        }
    }

    #[test]
    fn names_are_told_from_what_is_around_them() {
        for (name, expected) in [
            ("insert", "insert"),
            ("ns::Cache<int>::insert(int)", "insert"),
            ("ns::make<std::vector<int> >", "make"),
            ("alloc::vec::Vec<T>::push", "push"),
            ("std::function<void (int)>::operator()(int) const", "operator()"),
            ("", ""),
        ] {
            assert_eq!(bare_name(name), expected);
        }
        assert_eq!(pattern_of("cache_insert"), "cache_insert");
        assert_eq!(pattern_of("operator new(unsigned long)"), "_Znw*");
    }

    proptest! {
        #[test]
        fn no_name_is_too_strange(name in "[_ZN0-9a-z:<>() *?~$]{0,40}", other in ".{0,40}") {
            bare_name(&name);
            bare_name(&other);
            pattern_of(&name);
            pattern_of(&other);
            if let Some(pattern) = Mangled::parse(&format!("_Z{name}")) {
                pattern.matches(&other);
            }
        }
    }
}
