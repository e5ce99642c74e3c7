//! Suppressions against Valgrind: ours read what it writes and match what it matches, and it reads ours.

mod common;

use common::{Loss, build, memcheck};
use leakscope_leaks::*;
use std::path::Path;

/// Loses blocks in every way that makes a suppression interesting.
const C: &str = r#"
#include <stdlib.h>
#include <string.h>
void *volatile sink;
#define LOSE __attribute__((noinline)) void
LOSE lose(size_t n) { sink = malloc(n); sink = 0; }
LOSE lose_zeroed(size_t n) { sink = calloc(1, n); sink = 0; }
LOSE lose_text(void) { sink = strdup("0123456789"); sink = 0; }
static inline __attribute__((always_inline)) void inner(void) { sink = malloc(77); sink = 0; }
LOSE outer(void) { inner(); }
LOSE again(int depth) { if (depth) again(depth - 1); else lose(55); sink = 0; }
LOSE lose_list(void) { void **head = malloc(16); head[0] = malloc(100); sink = head; sink = 0; }
char *volatile kept; void *volatile start;
int main(void) {
    lose(10); lose_zeroed(20); lose_text(); outer(); again(3); lose_list();
    kept = (char *)malloc(300) + 8;
    start = malloc(400);
    return 0;
}
"#;

const CPP: &str = r#"
#include <cstdlib>
#include <string>
#include <vector>
void *volatile sink;
#define NOINLINE __attribute__((noinline))
namespace cache {
template <class T> struct Store {
    NOINLINE Store() { sink = malloc(sizeof(T) + 40); sink = 0; }
    NOINLINE void insert(T value) { sink = new T[10]{value}; sink = 0; }
    NOINLINE void operator+=(T value) { sink = new T(value); sink = 0; }
};
}
namespace { struct Hidden { NOINLINE static void lose(int n) { sink = malloc(n); sink = 0; } }; }
template <class F> NOINLINE void apply(F f) { f(); sink = 0; }
NOINLINE void strings() { sink = new std::vector<std::string>(3, std::string(100, 'x')); sink = 0; }
int main() {
    cache::Store<int> ints; cache::Store<long> longs;
    ints.insert(1); longs.insert(2); ints += 3;
    Hidden::lose(60);
    apply([] { sink = malloc(70); });
    strings();
    return 0;
}
"#;

const RUST: &str = r#"
use std::cell::RefCell;
use std::collections::HashMap;
thread_local! { static LOCAL: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) }; }
fn main() {
    println!("hello");
    LOCAL.with(|local| local.borrow_mut().push(1));
    let map: HashMap<String, u32> = [("a".to_owned(), 1)].into();
    let named = std::thread::Builder::new().name("worker".into());
    named.spawn(|| LOCAL.with(|local| local.borrow_mut().push(2))).unwrap().join().unwrap();
    std::thread::spawn(|| loop { std::thread::park() });
    _ = std::panic::catch_unwind(|| panic!("on purpose"));
    std::io::stdin().read_line(&mut String::new()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(map);
}
"#;

fn parsed(text: &str) -> Suppressions {
    let mut suppressions = Suppressions::none();
    suppressions.add_text(Path::new("valgrind"), text).unwrap_or_else(|error| panic!("{error}: {text}"));
    suppressions
}

/// Whether the suppressions match the record, as far as Valgrind's frames tell.
fn matches(suppressions: &Suppressions, loss: &Loss) -> bool {
    let (kind, frames, allocator) = (loss.kind(), loss.callers(), loss.allocator());
    let found = |allocator| suppressions.find(&Subject { kind, frames, mangled: &[], allocator }).is_some();
    // That it is not known which function allocated must not matter.
    assert_eq!(found(allocator), found(None), "{}", loss.text);
    found(None)
}

/// The records of the losses, as leakscope makes them.
fn records(losses: &[Loss]) -> Vec<LeakRecord> {
    let stacks: Vec<Stack> =
        losses.iter().map(|loss| Stack { frames: loss.callers().to_vec(), ..Stack::default() }).collect();
    let blocks = (0u32..).zip(losses).map(|(stack, loss)| FoundBlock {
        address: 4096 * u64::from(stack),
        size: loss.bytes,
        kind: loss.kind(),
        indirect_bytes: 0,
        indirect_blocks: 0,
        stack: Some(stack),
        signature: None,
        age: None,
    });
    merge(blocks, &Names { stacks: &stacks, types: &[] }, &Suppressions::none()).records
}

/// Checks that every suppression that Valgrind makes matches its own record alone.
fn each_matches_its_own(losses: &[Loss], expected: usize) {
    assert!(losses.len() >= expected, "{losses:#?}");
    for own in losses {
        let suppressions = parsed(&own.suppression);
        assert_eq!((suppressions.len(), suppressions.notes().len()), (1, 0));
        for loss in losses {
            let same = own.suppression == loss.suppression;
            assert_eq!(matches(&suppressions, loss), same, "{} {:#?}", own.suppression, loss.frames);
        }
    }
}

/// Checks that Valgrind, given a suppression that leakscope made of one record, no longer reports that one, but all
/// others. The same functions of other template arguments are not told apart.
fn valgrind_obeys_ours(program: &Path, losses: &[Loss]) {
    for record in records(losses) {
        let text = generate(&record).expect("it has a stack");
        let ours = parsed(&text);
        let file = program.with_extension("supp");
        std::fs::write(&file, &text).expect("the temporary directory can be written");
        let left = memcheck(program, &[&format!("--suppressions={}", file.display())]);
        let remaining = |losses: &[Loss], spare: bool| -> Vec<_> {
            let kept = losses.iter().filter(|loss| !(spare && matches(&ours, loss)));
            kept.map(|loss| (loss.kind.clone(), loss.suppression.clone())).collect()
        };
        assert_eq!(remaining(&left, false), remaining(losses, true), "{text}");
        let function = |name: &str| name.replace("long", "int");
        let own = record.stack[0].function.as_deref().map(function);
        let same = losses
            .iter()
            .filter(|loss| Some(function(loss.innermost())) == own && loss.kind() == record.kind);
        let hidden = losses.len() - left.len();
        assert!(1 <= hidden && hidden <= same.count(), "{hidden} hidden by {text}");
    }
}

#[test]
fn of_a_c_program_each_other_suppressions_are_understood() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, options) in
        [("plain.c", &["-g", "-O0"][..]), ("inlined.c", &["-g", "-O2"]), ("stripped.c", &["-O1"])]
    {
        let program = build(directory.path(), name, C, "cc", options);
        let losses = memcheck(&program, &[]);
        each_matches_its_own(&losses, 9);
        // It takes a run of Valgrind for each record.
        if name == "inlined.c" {
            valgrind_obeys_ours(&program, &losses);
        }
    }
}

#[test]
fn of_a_cpp_program_mangled_and_readable_names_find_each_other() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = build(directory.path(), "program.cc", CPP, "c++", &["-g", "-O1"]);
    let losses = memcheck(&program, &["--run-cxx-freeres=yes"]);
    each_matches_its_own(&losses, 8);
    valgrind_obeys_ours(&program, &losses);
}

#[test]
fn the_built_in_suppressions_cover_what_the_standard_libraries_keep_here_and_in_valgrind() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let keep_all =
        ["--default-suppressions=no", "--run-libc-freeres=no", "--run-cxx-freeres=no", "--num-callers=60"];
    let file = directory.path().join("default.supp");
    std::fs::write(&file, include_str!("../src/suppress/default.supp")).expect("it can be written");
    let cpp = "#include <cstdio>\n#include <locale>\n#include <pwd.h>\n#include <time.h>\nint main() { puts(\"hello\"); \
               time_t now = 0; localtime(&now); getpwnam(\"root\"); return 0; }\n";
    let programs = [
        build(directory.path(), "program.rs", RUST, "rustc", &["-g", "--edition=2024"]),
        build(directory.path(), "optimized.rs", RUST, "rustc", &["-O", "--edition=2024"]),
        build(directory.path(), "program.cc", cpp, "c++", &["-g"]),
    ];
    let built_in = Suppressions::built_in();
    assert!(built_in.len() > 20 && built_in.notes().is_empty());
    for program in programs {
        let losses = memcheck(&program, &keep_all);
        assert!(losses.len() >= 2, "{losses:#?}");
        for loss in &losses {
            assert!(matches(&built_in, loss), "{} {:#?}\n{}", loss.text, loss.frames, loss.suppression);
        }
        let with = format!("--suppressions={}", file.display());
        let left = memcheck(&program, &[&keep_all[..], &[&with]].concat());
        assert!(left.is_empty(), "{left:#?}");
    }
}

#[test]
fn the_built_in_suppressions_hide_none_of_a_programs_own_losses() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let built_in = Suppressions::built_in();
    for (name, source, compiler) in [("program.c", C, "cc"), ("program.cc", CPP, "c++")] {
        let program = build(directory.path(), name, source, compiler, &["-g"]);
        for loss in memcheck(&program, &[]) {
            assert!(!matches(&built_in, &loss), "{} in {}", loss.text, loss.innermost());
        }
    }
}

#[test]
fn records_are_in_memchecks_order() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = build(directory.path(), "program.c", C, "cc", &["-g", "-O0"]);
    let losses = memcheck(&program, &[]);
    let place = |loss: &Loss| -> usize {
        let (_, number) = loss.text.split_once("loss record ").expect("its number");
        number.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
    };
    let mut sorted: Vec<&Loss> = losses.iter().collect();
    sorted.sort_by_key(|loss| place(loss));
    // The list's head counts with what hangs off it, which the XML tells as leaked bytes.
    let expected: Vec<_> = sorted.iter().map(|loss| (loss.kind(), loss.bytes, loss.innermost())).collect();
    let records = records(&losses);
    let ours: Vec<_> = records
        .iter()
        .map(|record| (record.kind, record.bytes, record.stack[0].function.as_deref().expect("a name")))
        .collect();
    assert_eq!(ours, expected);
}
