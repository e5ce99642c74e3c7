//! Names of C, C++ and Rust programs agree with addr2line's.

mod support;

use leakscope_symbols::{Options, symbolize};
use std::path::Path;
use support::*;

/// Checks every call of the named functions against addr2line.
fn assert_agrees_with_addr2line(file: &Path, bias: u64, functions: &[&str]) -> leakscope_profile::Symbols {
    let sites = call_sites(file, functions);
    let mut module = module_of(file);
    module.bias = bias;
    let symbols = symbolize(&profile_of(module, &sites), &Options::default()).unwrap();
    for site in sites {
        assert_eq!(told(&symbols, bias, site), addr2line(file, site), "at {site:#x}");
    }
    assert!(symbols.missing.is_empty(), "{:?}", symbols.missing);
    symbols
}

#[test]
fn a_c_program_is_named_with_function_file_and_line() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O0"]);
    assert_agrees_with_addr2line(&program, BIAS, &["<make_buffer", "<outer", "<main"]);
}

#[test]
fn inlined_functions_come_innermost_first_and_are_marked() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2"]);
    let symbols = assert_agrees_with_addr2line(&program, BIAS, &["<make_buffer", "<outer", "<main"]);
    let site = call_sites(&program, &["<outer"])[0];
    let named: Vec<_> = frames(&symbols, BIAS, site)
        .iter()
        .map(|frame| (frame.function.as_deref().unwrap(), frame.line.unwrap(), frame.inlined))
        .collect();
    assert_eq!(named, [("innermost", 14, true), ("middle", 18, true), ("outer", 24, false)]);
    let first = &frames(&symbols, BIAS, site)[0];
    assert_eq!(first.address, site, "the return address itself, within the file");
    assert_eq!(first.module.as_deref(), program.to_str());
}

#[test]
fn the_last_call_of_a_function_that_does_not_return_is_not_the_next_function() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2"]);
    let symbols = assert_agrees_with_addr2line(&program, BIAS, &["<last_call_is_noreturn"]);
    let site = call_sites(&program, &["<last_call_is_noreturn"])[0];
    assert_eq!(told(&symbols, BIAS, site)[0].0.as_deref(), Some("last_call_is_noreturn"));
}

#[test]
fn programs_linked_at_a_fixed_address_are_named() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2", "-no-pie"]);
    assert_agrees_with_addr2line(&program, 0, &["<make_buffer", "<outer", "<main"]);
}

#[test]
fn a_library_linked_above_the_address_where_it_was_loaded_is_named() {
    // As prelink leaves it: addresses in the file are higher than at run time, so the bias wraps around.
    let shop = Workshop::new();
    let flags = ["-g", "-O2", "-shared", "-fPIC", "-Wl,-Ttext-segment=0x3000000000"];
    let library = shop.compile("gcc", C, "libleak.so", &flags);
    let bias = 0x7f00_0000u64.wrapping_sub(0x30_0000_0000);
    assert_agrees_with_addr2line(&library, bias, &["<make_buffer", "<outer"]);
}

#[test]
fn older_and_compressed_debug_information_is_read() {
    let shop = Workshop::new();
    for flags in [["-gdwarf-4", "-O2"], ["-g", "-gz=zlib"], ["-gdwarf-5", "-O1"]] {
        let program = shop.compile("gcc", C, "leak", &flags);
        assert_agrees_with_addr2line(&program, BIAS, &["<make_buffer", "<outer", "<main"]);
    }
}

const CPP: (&str, &str) = (
    "leak.cpp",
    r#"
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace cache {
template <typename Key, typename Value> struct Store {
    std::vector<std::pair<Key, Value *>> entries;
    __attribute__((noinline)) void insert(const Key &key) {
        entries.push_back({key, new Value[16]});
    }
    ~Store() noexcept;
};
template <typename Key, typename Value> Store<Key, Value>::~Store() noexcept { entries.clear(); }

namespace {
struct Hidden {
    std::string text;
    __attribute__((noinline)) explicit Hidden(const char *from) : text(from) { text += from; }
    __attribute__((noinline)) std::string operator()(int times) const {
        std::string all;
        for (int i = 0; i < times; i++) all += text;
        return all;
    }
};
}
}

__attribute__((noinline)) static auto with_lambda(int size) {
    auto make = [size](int extra) { return std::make_unique<std::string>(size + extra, 'x'); };
    return make(2).release();
}

int main(int argc, char **argv) {
    cache::Store<int, long> store;
    for (int i = 0; i < argc; i++) store.insert(i);
    cache::Store<std::string, char> names;
    names.insert(argv[0]);
    cache::Hidden hidden(argv[0]);
    std::map<std::string, int> counts;
    counts[hidden(argc)]++;
    return with_lambda(argc)->size() == counts.size();
}
"#,
);

/// The name without spaces, as demanglers differ in them, and without parameters: cpp_demangle loses the first of
/// a constructor template's and the references in a forwarded pack.
fn essence(name: &str) -> String {
    let name: String = name.split(" [clone").next().unwrap().split_whitespace().collect();
    let name = name.strip_suffix("const").unwrap_or(&name);
    let mut depth = 0;
    for (at, c) in name.char_indices().rev() {
        depth += i32::from(c == ')') - i32::from(c == '(');
        if depth == 0 {
            let is_parameters = c == '(' && !name[..at].ends_with("operator");
            return name[..if is_parameters { at } else { name.len() }].to_owned();
        }
    }
    name.to_owned()
}

#[test]
fn cpp_templates_constructors_and_lambdas_are_named_as_addr2line_names_them() {
    let shop = Workshop::new();
    for level in ["-O0", "-O2"] {
        let program = shop.compile("g++", CPP, "leak", &["-g", "-std=c++17", level]);
        let sites = call_sites(&program, &["cache", "with_lambda", "<main>"]);
        let symbols = symbolize(&profile_of(module_of(&program), &sites), &Options::default()).unwrap();
        for &site in &sites {
            let (ours, oracle) = (told(&symbols, BIAS, site), addr2line(&program, site));
            // A clean-up without a line has no inlined functions here; that it is in the right function counts.
            let from = if oracle[0].1.is_none() { oracle.len() - 1 } else { 0 };
            assert_eq!(ours.len(), oracle.len() - from, "{ours:?} {oracle:?} at {site:#x} with {level}");
            for (ours, oracle) in ours.iter().zip(&oracle[from..]) {
                let (name, known) = (ours.0.as_deref().unwrap(), oracle.0.as_deref().unwrap());
                let (name, known) = (essence(name), essence(known));
                // Names local to a file are bare in the debug information; the symbol table knows them fully.
                assert!(name.ends_with(&known), "{name} for {known}");
                assert!(from > 0 || (&ours.1, ours.2) == (&oracle.1, oracle.2), "{ours:?} for {oracle:?}");
            }
        }
        let all: Vec<_> = sites.iter().flat_map(|&site| told(&symbols, BIAS, site)).collect();
        let named = |name: &str| all.iter().any(|frame| frame.0.as_deref() == Some(name));
        assert!(named("cache::Store<int, long>::insert(int const&)"), "{all:?}");
    }
}

#[test]
fn rust_names_are_readable_without_hashes() {
    let shop = Workshop::new();
    let source = (
        "leak.rs",
        r#"
use std::collections::HashMap;

trait Grow { fn grow(&mut self, by: usize); }

struct Cache<K> { entries: HashMap<K, Vec<u8>> }

impl Grow for Cache<String> {
    #[inline(never)]
    fn grow(&mut self, by: usize) {
        self.entries.insert(format!("key {by}"), vec![7; by]);
    }
}

#[inline(never)]
fn forget(count: usize) {
    std::mem::forget((0..count).map(|n| Box::new(n)).collect::<Vec<_>>());
}

fn main() {
    let mut cache = Cache { entries: HashMap::new() };
    cache.grow(std::env::args().count());
    forget(cache.entries.len());
}
"#,
    );
    for flags in [["-g", "-Copt-level=0"], ["-g", "-Copt-level=2"], ["-Cdebuginfo=line-tables-only", "-O"]] {
        let program = shop.compile("rustc", source, "leak", &flags);
        let sites = call_sites(&program, &["leak"]);
        let symbols = symbolize(&profile_of(module_of(&program), &sites), &Options::default()).unwrap();
        let mut own = 0;
        for &site in &sites {
            let (ours, oracle) = (told(&symbols, BIAS, site), addr2line(&program, site));
            let places = |told: &Told| told.iter().map(|f| (f.1.clone(), f.2)).collect::<Vec<_>>();
            assert_eq!(places(&ours), places(&oracle), "at {site:#x} with {flags:?}");
            for name in ours.iter().filter_map(|frame| frame.0.as_deref()) {
                let hash = name
                    .rsplit("::h")
                    .next()
                    .is_some_and(|end| end.len() == 16 && end.chars().all(|c| c.is_ascii_hexdigit()));
                assert!(!hash && !name.starts_with("_R") && !name.starts_with("_ZN"), "{name}");
            }
            own += usize::from(ours.iter().any(|frame| frame.0.as_deref() == Some("leak::forget")));
        }
        assert!(own > 0, "leak::forget is named with {flags:?}");
        let grow = sites.iter().flat_map(|&site| told(&symbols, BIAS, site)).any(|frame| {
            frame.0.as_deref() == Some("<leak::Cache<alloc::string::String> as leak::Grow>::grow")
        });
        assert!(grow, "a trait's method is named with its type");
    }
}
