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
    // Rust's legacy scheme is that of C++ with a hash at the end. Without one it is C++: a variable in an unnamed
    // namespace, say, which Rust's demangler would take for its own.
    let schemes = if has_rust_hash(name) { [rust, cpp] } else { [cpp, rust] };
    for scheme in schemes {
        let mut out = Bounded::default();
        if scheme(name, &mut out) || out.full {
            return out.text;
        }
    }
    let mut out = Bounded::default();
    // An error only says that the name was cut.
    let _ = out.write_str(name);
    out.text
}

/// Whether the name has a component as Rust's legacy scheme has at the end: `h` and 16 hexadecimal digits.
fn has_rust_hash(name: &str) -> bool {
    name.match_indices("17h").any(|(at, start)| {
        let hash = name.as_bytes().get(at + start.len()..).and_then(|rest| rest.split_at_checked(16));
        hash.is_some_and(|(hash, rest)| hash.iter().all(u8::is_ascii_hexdigit) && rest.first() == Some(&b'E'))
    })
}

/// Writes a Rust name without its hash, as `#` asks for. False if it is none.
fn rust(name: &str, out: &mut Bounded) -> bool {
    rustc_demangle::try_demangle(name).is_ok_and(|symbol| write!(out, "{symbol:#}").is_ok())
}

/// Writes a C++ name. False if it is none.
fn cpp(name: &str, out: &mut Bounded) -> bool {
    let options = cpp_demangle::DemangleOptions::new();
    name.starts_with("_Z")
        && cpp_demangle::Symbol::new(name)
            .is_ok_and(|symbol| symbol.structured_demangle(out, &options).is_ok())
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
        assert_eq!(
            demangler.demangle("_ZN5cache12_GLOBAL__N_15tableE"),
            "cache::(anonymous namespace)::table"
        );
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
