//! Names of data agree with nm's, at the addresses that the program itself has its data at.

mod support;

use leakscope_profile::{End, Module, Process};
use leakscope_symbols::{DataObject, Options, class_of, data_objects, thread_local_objects};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use support::*;

/// Prints where its data is: `name address` a line, addresses in hexadecimal. The first line is where it is loaded.
const CPP: (&str, &str) = (
    "data.cpp",
    r#"
#include <link.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

int table[100];
static char buffer[4096];
char zeroed[1 << 20];
const char *const banner = "leak";
extern "C" { struct point { int x, y; } origin = {1, 2}; extern char untyped[16]; }
asm(".data\n.globl untyped\nuntyped: .zero 16\n.size untyped, 16\n.previous");

namespace cache {
std::string title("a title");
template <typename T> struct Pool { static T *first; };
template <typename T> T *Pool<T>::first;
namespace { long hidden = 3; }
}

static int *counter() { static int count = 7; return &count; }
struct Config { static long limit; };
long Config::limit = 5;

thread_local int first_of_thread = 1;
static thread_local char of_thread[64];
int *thread_counter() { static thread_local int calls; return &calls; }

struct Named { virtual ~Named() {} long name = 0; };
struct Counted { virtual ~Counted() {} virtual int count() { return 0; } long references = 0; };
struct Session : Named, Counted { int count() override { return 1; } };
namespace { struct Local : Named {}; }
template <typename T> struct Box : Named { T value{}; };

void *while_constructed;
struct Base { virtual ~Base() {} long base = 0; };
struct Left : virtual Base { Left() { while_constructed = *(void **)this; } long left = 0; };
struct Right : virtual Base { long right = 0; };
struct Diamond : Left, Right {};

static void print(const char *name, const volatile void *address) { printf("%s %lx\n", name, (long)address); }

static int find_block(struct dl_phdr_info *info, size_t, void *block) {
    *(void **)block = info->dlpi_tls_data;
    return 1; // The program itself comes first.
}

int main() {
    FILE *maps = fopen("/proc/self/maps", "r");
    unsigned long start, end = 0;
    char line[4096];
    while (fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        if (!strstr(line, "/data")) continue;
        sscanf(line, "%lx-%lx", &from, &to);
        if (!end) start = from;
        end = to;
    }
    printf("start %lx\nend %lx\n", start, end);
    print("table", table);
    print("table+100", (char *)table + 100);
    print("table-last", (char *)table + sizeof table - 1);
    print("buffer", buffer + 17);
    print("zeroed", zeroed + sizeof zeroed - 1);
    print("banner", &banner);
    print("origin", &origin.y);
    print("untyped", untyped + 15);
    print("title", &cache::title);
    print("pool", &cache::Pool<Session>::first);
    print("hidden", &cache::hidden);
    print("count", counter());
    print("limit", &Config::limit);
    print("stdout", &stdout);
    print("environ", &environ);

    Session *session = new Session;
    print("vptr-session", *(void **)session);
    print("vptr-session-second", *(void **)(Counted *)session);
    print("vptr-local", *(void **)new Local);
    print("vptr-box", *(void **)new Box<int>);
    Diamond *diamond = new Diamond;
    print("vptr-diamond", *(void **)diamond);
    print("vptr-diamond-second", *(void **)(Right *)diamond);
    print("vptr-constructed", while_constructed);

    print("heap", session);
    int local;
    print("stack", &local);
    print("code", (void *)&counter);
    print("low", (void *)8);

    char *block = 0;
    dl_iterate_phdr(find_block, &block);
    printf("tls-first %lx\n", (long)((char *)&first_of_thread - block));
    printf("tls-buffer %lx\n", (long)(of_thread + 5 - block));
    printf("tls-calls %lx\n", (long)((char *)thread_counter() - block));
    printf("tls-beyond %lx\n", 1l << 20);
    delete session;
    delete diamond;
    return 0;
}
"#,
);

/// A program, what it printed of itself, and what nm says of it (before it is stripped).
struct Data {
    shop: Workshop,
    program: PathBuf,
    printed: HashMap<String, u64>,
    module: Module,
    oracle: Vec<NmSymbol>,
}

/// A line of `nm -SC`.
#[derive(Debug, Clone)]
struct NmSymbol {
    address: u64,
    size: u64,
    name: String,
}

impl Data {
    fn new(flags: &[&str]) -> Self {
        let shop = Workshop::new();
        let program = shop.compile("g++", CPP, "data", &[&["-g", "-O1", "-std=c++17"], flags].concat());
        let printed: HashMap<String, u64> = run(text_of(&program), &[])
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap())
            .map(|(name, value)| (name.to_owned(), u64::from_str_radix(value, 16).unwrap()))
            .collect();
        let (start, end) = (printed["start"], printed["end"]);
        let bias = if flags.contains(&"-no-pie") { 0 } else { start };
        let module = Module { start, end, bias, ..module_of(&program) };
        let oracle = nm(&program, "-SC");
        Data { shop, program, printed, module, oracle }
    }

    /// The names of all that the program printed.
    fn named(&self, options: &Options) -> HashMap<u64, DataObject> {
        let addresses: Vec<u64> = self.printed.values().copied().collect();
        data_objects(&ended(), std::slice::from_ref(&self.module), &addresses, options)
    }

    fn name<'a>(&self, named: &'a HashMap<u64, DataObject>, printed: &str) -> Option<&'a str> {
        named.get(&self.printed[printed]).map(|object| object.name.as_str())
    }

    fn class<'a>(&self, named: &'a HashMap<u64, DataObject>, printed: &str) -> Option<&'a str> {
        class_of(named.get(&self.printed[printed])?)
    }

    /// Every object is one that nm has there; names for what nm has nothing at are none.
    fn assert_agrees_with_nm(&self, named: &HashMap<u64, DataObject>) {
        // To nm, thread-local variables are at their offsets.
        let is_data = |name: &str| !name.starts_with("tls-") && name != "start" && name != "low";
        for (printed, &address) in self.printed.iter().filter(|(name, _)| is_data(name)) {
            let in_file = address.wrapping_sub(self.module.bias);
            let there: Vec<&NmSymbol> = self
                .oracle
                .iter()
                .filter(|symbol| in_file.wrapping_sub(symbol.address) < symbol.size)
                .collect();
            let Some(object) = named.get(&address) else {
                assert!(there.is_empty() || printed == "code", "{printed}: {there:?}");
                continue;
            };
            assert_eq!(object.module, self.module.path);
            assert!(
                there.iter().any(|symbol| {
                    let name = symbol.name.split('@').next().unwrap();
                    (name, symbol.size) == (&object.name, object.size)
                        && in_file - symbol.address == object.offset
                }),
                "{printed}: {object:?} for {there:?}"
            );
        }
    }

    /// Moves the symbols to a debug file, found by a link.
    fn separate(&self) {
        let debug = self.shop.path("data.debug");
        run("objcopy", &["--only-keep-debug", text_of(&self.program), text_of(&debug)]);
        self.strip();
        run("objcopy", &[&format!("--add-gnu-debuglink={}", text_of(&debug)), text_of(&self.program)]);
    }

    fn strip(&self) {
        run("strip", &["--strip-all", text_of(&self.program)]);
    }
}

/// A process that does not run any more, so that only its files can be asked.
fn ended() -> Process {
    Process { end: End::Exited(0), ..Process::default() }
}

/// The sized symbols of data (those of functions are `t` and `w`) that nm lists, with their demangled names.
fn nm(file: &Path, flags: &str) -> Vec<NmSymbol> {
    let listing = run("nm", &[flags, text_of(file)]);
    let number = |text| u64::from_str_radix(text, 16).ok();
    listing
        .lines()
        .filter_map(|line| {
            let mut columns = line.splitn(4, ' ');
            let (address, size) = (number(columns.next()?)?, number(columns.next()?)?);
            let (kind, name) = (columns.next()?, columns.next()?.to_owned());
            (kind.len() == 1 && !"tTwW".contains(kind)).then_some(NmSymbol { address, size, name })
        })
        .collect()
}

#[test]
fn variables_are_named_as_nm_names_them_wherever_the_program_is_loaded() {
    for flags in [&[][..], &["-no-pie"], &["-O0"], &["-static"]] {
        let data = Data::new(flags);
        // A static program is position-dependent; it has its own `stdout`, and all of the library.
        let data = match flags.contains(&"-static") {
            true => Data { module: Module { bias: 0, ..data.module.clone() }, ..data },
            false => data,
        };
        let named = data.named(&Options::default());
        data.assert_agrees_with_nm(&named);
        let expected = [
            ("table", "table"),
            ("table+100", "table"),
            ("table-last", "table"),
            ("buffer", "buffer"),
            ("zeroed", "zeroed"),
            ("origin", "origin"),
            ("untyped", "untyped"),
            ("title", "cache::title[abi:cxx11]"),
            ("pool", "cache::Pool<Session>::first"),
            ("hidden", "cache::(anonymous namespace)::hidden"),
            ("count", "counter()::count"),
            ("limit", "Config::limit"),
            ("stdout", "stdout"),
            ("environ", "environ"),
        ];
        for (printed, name) in expected {
            assert_eq!(data.name(&named, printed), Some(name), "{printed} with {flags:?}");
        }
        for printed in ["heap", "stack", "code", "low"] {
            assert_eq!(data.name(&named, printed), None, "{printed} with {flags:?}");
        }
        let inside = &named[&data.printed["table+100"]];
        assert_eq!((inside.offset, inside.size), (100, 400));
    }
}

#[test]
fn zeroed_data_behind_the_last_mapping_of_the_file_is_named() {
    let data = Data::new(&[]);
    let zeroed = data.printed["zeroed"];
    assert!(zeroed >= data.module.end, "the test would show nothing");
    assert_eq!(data.name(&data.named(&Options::default()), "zeroed"), Some("zeroed"));
}

#[test]
fn an_address_just_past_an_object_is_never_that_object() {
    let data = Data::new(&[]);
    let ends: Vec<u64> = data.oracle.iter().map(|symbol| symbol.address + symbol.size).collect();
    let addresses: Vec<u64> = ends.iter().map(|end| end.wrapping_add(data.module.bias)).collect();
    let named = data_objects(&ended(), std::slice::from_ref(&data.module), &addresses, &Options::default());
    for (end, address) in ends.into_iter().zip(addresses) {
        let there = |name: &str| {
            data.oracle.iter().any(|symbol| {
                symbol.name.split('@').next() == Some(name) && end.wrapping_sub(symbol.address) < symbol.size
            })
        };
        assert!(named.get(&address).is_none_or(|object| there(&object.name)), "{:?}", named.get(&address));
    }
}

#[test]
fn the_first_word_of_an_object_tells_its_class() {
    for flags in [&["-O0"][..], &["-O2"], &["-O2", "-no-pie"]] {
        let data = Data::new(flags);
        let named = data.named(&Options::default());
        data.assert_agrees_with_nm(&named);
        let expected = [
            ("vptr-session", "Session"),
            ("vptr-session-second", "Session"),
            ("vptr-local", "(anonymous namespace)::Local"),
            ("vptr-box", "Box<int>"),
            ("vptr-diamond", "Diamond"),
            ("vptr-diamond-second", "Diamond"),
            ("vptr-constructed", "Diamond"),
        ];
        for (printed, class) in expected {
            assert_eq!(data.class(&named, printed), Some(class), "{printed} with {flags:?}");
        }
        assert_eq!(data.name(&named, "vptr-session"), Some("vtable for Session"));
        assert_eq!(data.name(&named, "vptr-constructed"), Some("construction vtable for Left-in-Diamond"));
        for printed in ["table", "table+100", "title", "count", "banner"] {
            assert_eq!(data.class(&named, printed), None, "{printed} is no table of virtual functions");
        }
    }
}

#[test]
fn a_stripped_program_with_a_debug_file_has_all_names() {
    let data = Data::new(&[]);
    let whole = data.named(&Options::default());
    data.separate();
    assert_eq!(data.named(&Options::default()), whole);
    assert_eq!(data.name(&whole, "count"), Some("counter()::count"));
}

#[test]
fn a_stripped_program_alone_has_the_names_that_it_exports() {
    let mut data = Data::new(&["-rdynamic"]);
    data.strip();
    data.oracle = nm(&data.program, "-SCD");
    data.oracle.retain(|symbol| symbol.name != "untyped");
    let named = data.named(&Options::default());
    data.assert_agrees_with_nm(&named);
    assert_eq!(data.name(&named, "table"), Some("table"));
    assert_eq!(data.class(&named, "vptr-session"), Some("Session"));
    assert_eq!(data.name(&named, "buffer"), None, "it is local");
    assert_eq!(data.class(&named, "vptr-local"), None);
    assert_eq!(data.name(&named, "untyped"), None, "only the full table is trusted with those");
}

#[test]
fn another_file_of_that_path_names_nothing() {
    let data = Data::new(&[]);
    let other = Data::new(&["-DOTHER", "-O2"]);
    fs::copy(&other.program, &data.program).unwrap();
    assert_eq!(data.named(&Options::default()), HashMap::new());
    let copy = Options { exe: Some(other.program.clone()), ..Options::default() };
    assert_eq!(data.named(&copy), HashMap::new(), "nor does a stand-in that is another program");
}

#[test]
fn a_copy_of_the_program_stands_in_for_it() {
    let data = Data::new(&[]);
    let whole = data.named(&Options::default());
    let copy = data.shop.path("copy");
    fs::rename(&data.program, &copy).unwrap();
    assert_eq!(data.named(&Options::default()), HashMap::new());
    assert_eq!(data.named(&Options { exe: Some(copy), ..Options::default() }), whole);
}

#[test]
fn thread_local_variables_are_named_by_their_offset_in_the_block() {
    let data = Data::new(&[]);
    let other = Module { path: "/nonexistent/lib.so".to_owned(), ..Module::default() };
    let modules = [other, data.module.clone()];
    let offset = |printed: &str| data.printed[printed];
    let wanted: Vec<(usize, u64)> = ["tls-first", "tls-buffer", "tls-calls", "tls-beyond"]
        .into_iter()
        .flat_map(|printed| [(0, offset(printed)), (1, offset(printed)), (2, offset(printed))])
        .collect();
    let named = thread_local_objects(&ended(), &modules, &wanted, &Options::default());
    let name = |printed: &str| named.get(&(1, offset(printed))).map(|object| object.name.as_str());
    assert_eq!(name("tls-first"), Some("first_of_thread"));
    assert_eq!(name("tls-buffer"), Some("of_thread"));
    assert_eq!(name("tls-calls"), Some("thread_counter()::calls"));
    assert_eq!(named.len(), 3, "{named:?}");
    let buffer = &named[&(1, offset("tls-buffer"))];
    assert_eq!((buffer.offset, buffer.size), (5, 64));
    for object in named.values() {
        let same = |symbol: &&NmSymbol| (&symbol.name, symbol.size) == (&object.name, object.size);
        assert!(data.oracle.iter().any(|symbol| same(&symbol)), "{object:?}");
    }
}

#[test]
fn rust_statics_are_named_without_hashes_and_rust_tables_are_no_classes() {
    let shop = Workshop::new();
    let source = (
        "statics.rs",
        r#"
use std::sync::atomic::{AtomicUsize, Ordering};
mod cache { pub static ENTRIES: super::AtomicUsize = super::AtomicUsize::new(3); }
fn next() -> usize { static COUNT: AtomicUsize = AtomicUsize::new(1); COUNT.fetch_add(1, Ordering::Relaxed) }
trait Speak { fn speak(&self) -> usize; }
impl Speak for u8 { fn speak(&self) -> usize { next() } }
fn main() {
    let spoken: Box<dyn Speak> = Box::new(std::env::args().count() as u8);
    println!("{}", spoken.speak() + cache::ENTRIES.fetch_add(1, Ordering::Relaxed));
}
"#,
    );
    let program = shop.compile("rustc", source, "statics", &["-g", "-Csymbol-mangling-version=v0"]);
    let legacy = shop.compile("rustc", source, "legacy", &["-g"]);
    for program in [program, legacy] {
        let addresses: Vec<u64> = nm(&program, "-SC").iter().map(|symbol| symbol.address + BIAS).collect();
        let named = data_objects(&ended(), &[module_of(&program)], &addresses, &Options::default());
        let names: Vec<&str> = named.values().map(|object| object.name.as_str()).collect();
        for name in ["cache::ENTRIES", "next::COUNT"] {
            let is_it = |full: &&str| full.split_once("::").is_some_and(|(_, rest)| rest == name);
            assert!(names.iter().any(is_it), "{name} of {}", program.display());
        }
        assert!(named.values().all(|object| class_of(object).is_none()));
    }
}

#[test]
fn a_broken_file_gives_some_names_or_none_and_no_panic() {
    let data = Data::new(&["-Wl,--build-id=none"]);
    let whole = fs::read(&data.program).unwrap();
    let module = Module { build_id: Vec::new(), ..data.module.clone() };
    let sections = run("readelf", &["-SW", text_of(&data.program)]);
    let place = |name: &str| {
        let line = sections.lines().find(|line| line.contains(name)).unwrap();
        let mut words = line.split_whitespace().skip_while(|word| *word != name).skip(3);
        let mut number = || usize::from_str_radix(words.next().unwrap(), 16).unwrap();
        (number(), number())
    };
    let (offset, size) = place(".symtab");
    // The section headers are at the end, 64 bytes each.
    let headers = whole.len() - 64 * 40;
    let at: Vec<usize> =
        (0..64).chain((offset..offset + size).step_by(7)).chain((headers..whole.len()).step_by(3)).collect();
    let addresses: Vec<u64> = data.printed.values().copied().collect();
    let offsets: Vec<(usize, u64)> = addresses.iter().map(|&address| (0, address)).collect();
    let broken = data.shop.path("data");
    for (turn, at) in at.into_iter().enumerate() {
        let mut bytes = whole.clone();
        bytes[at] = [0xff, 0, whole[at] ^ 0x80][turn % 3];
        fs::write(&broken, bytes).unwrap();
        let modules = std::slice::from_ref(&module);
        for (address, object) in data_objects(&ended(), modules, &addresses, &Options::default()) {
            assert!(object.offset < object.size, "{object:?} at {address:#x}");
        }
        thread_local_objects(&ended(), modules, &offsets, &Options::default());
    }
    for length in (0..whole.len()).step_by(997) {
        fs::write(&broken, &whole[..length]).unwrap();
        data_objects(&ended(), std::slice::from_ref(&module), &addresses, &Options::default());
    }
}

#[test]
fn a_symbol_that_claims_more_than_its_section_names_nothing() {
    let shop = Workshop::new();
    let source = (
        "claims.s",
        ".globl _start\n.text\n_start: ret\n.data\n\
         .globl greedy, honest, absolute, marker\n\
         .type greedy, @object\n.type honest, @object\n.type absolute, @object\n.type marker, @object\n\
         greedy: .quad 1\n.size greedy, 0x7fffffffffffffff\n\
         honest: .quad 2\n.size honest, 8\n\
         marker: .quad 3\n\
         absolute = 0x1234\n.size absolute, 64\n",
    );
    let program = shop.compile("gcc", source, "claims", &["-nostdlib", "-static", "-Wl,--build-id"]);
    let listing = run("nm", &[text_of(&program)]);
    let address = |name: &str| {
        let line = listing.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
        u64::from_str_radix(line.split(' ').next().unwrap(), 16).unwrap()
    };
    let wanted: Vec<u64> =
        ["greedy", "honest", "absolute", "marker"].into_iter().map(|name| address(name) + BIAS).collect();
    let module = Module { start: 0, ..module_of(&program) };
    let named = data_objects(&ended(), &[module], &wanted, &Options::default());
    let names: Vec<Option<&str>> =
        wanted.iter().map(|address| named.get(address).map(|object| object.name.as_str())).collect();
    assert_eq!(names, [None, Some("honest"), None, None]);
}
