//! C++ and Rust names made readable, within bounds.

use std::collections::HashMap;
use std::fmt::{self, Write};

/// Longest name kept, in bytes. Mangled names can stand for exponentially longer ones.
const MAX_NAME: usize = 16 << 10;

/// Demangles names, each once.
#[derive(Default)]
pub(crate) struct Demangler {
    done: HashMap<String, String>,
}

impl Demangler {
    /// The readable form of `name`; `name` itself if it is not mangled.
    pub(crate) fn demangle(&mut self, name: &str) -> String {
        if let Some(done) = self.done.get(name) {
            return done.clone();
        }
        let readable = demangle(name);
        self.done.insert(name.to_owned(), readable.clone());
        readable
    }
}

fn demangle(name: &str) -> String {
    // A symbol's version (`malloc@@GLIBC_2.2.5`) is not part of its name.
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let mut out = Bounded::default();
    // Rust first: its legacy scheme looks like C++ with a hash at the end. `#` leaves the hash out.
    if let Ok(symbol) = rustc_demangle::try_demangle(name) {
        if write!(out, "{symbol:#}").is_ok() || out.full {
            return out.text;
        }
    } else if name.starts_with("_Z")
        && let Ok(symbol) = cpp_demangle::Symbol::new(name)
        && (symbol.structured_demangle(&mut out, &cpp_demangle::DemangleOptions::new()).is_ok() || out.full)
    {
        return out.text;
    }
    out = Bounded::default();
    // An error only says that the name was cut.
    let _ = out.write_str(name);
    out.text
}

/// A string that refuses to grow past [`MAX_NAME`].
#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = MAX_NAME - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let cut = (0..=room).rev().find(|&at| more.is_char_boundary(at)).unwrap_or(0);
        self.text.push_str(more.get(..cut).unwrap_or_default());
        self.full = true;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpp_and_rust_names_become_readable_and_c_names_stay() {
        let mut demangler = Demangler::default();
        assert_eq!(demangler.demangle("_ZN5cache6insertEiPKc"), "cache::insert(int, char const*)");
        assert_eq!(demangler.demangle("_ZN4core3fmt5write17h0123456789abcdefE"), "core::fmt::write");
        assert_eq!(demangler.demangle("_RNvCskwGfYPst2Cb_3foo3bar"), "foo::bar");
        assert_eq!(demangler.demangle("malloc@@GLIBC_2.2.5"), "malloc");
        assert_eq!(demangler.demangle("_Z"), "_Z");
    }

    #[test]
    fn a_name_that_stands_for_gigabytes_is_cut() {
        // Each substitution doubles the one before it: std::pair<X, X> of pairs of pairs.
        let mut name = String::from("_Z1fSt4pairIiiE");
        name.push_str("S_IS0_S0_E");
        for level in 1..34u32 {
            let previous = char::from_digit(level, 36).map(|c| c.to_ascii_uppercase()).unwrap_or('Z');
            name.push_str(&format!("S_IS{previous}_S{previous}_E"));
        }
        assert!(demangle(&name).len() <= MAX_NAME);
    }

    #[test]
    fn an_over_long_plain_name_is_cut_at_a_character() {
        let name = "é".repeat(MAX_NAME);
        let cut = demangle(&name);
        assert!(cut.len() <= MAX_NAME && cut.len() > MAX_NAME - 4);
    }
}
