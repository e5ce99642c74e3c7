//! Shapes of lost and held memory, one at a time: memcheck sees of each what was planted, and `leakscope leaks` says what
//! memcheck says.
//!
//! What was planted stands in the programs' tables of shapes, in the comment beside the name: bytes/blocks of each kind,
//! counting what has a frame in the program's source. `?` stands for bytes that are the library's business, or both numbers.
//! After `memcheck:` stands what memcheck sees where it is known to err; leakscope must then see what was planted.

use crate::support::build::{compile, source};
use crate::support::directory::Directory;
use crate::support::leaks::{Amount, Kind, Leaks};
use crate::support::marks::Place;
use crate::support::memcheck::{Record, memcheck, memcheck_children};
use crate::support::process::{Outcome, run};
use crate::support::traced::leakscope;
use crate::support::{find_program, skip};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

/// Source, flags of the usual build, flags of the optimized one.
type Program = (&'static str, &'static [&'static str], &'static [&'static str]);

const PROGRAMS: &[Program] = &[
    ("leak_shapes_c.c", &["-O0"], &["-O2"]),
    ("leak_shapes_threads.c", &["-O0"], &["-O2"]),
    ("leak_shapes_cpp.cpp", &["-O0", "-std=c++20"], &["-O2", "-std=c++20"]),
    (
        "leak_shapes_cpp.cpp",
        &["-O0", "-std=c++20", "-D_GLIBCXX_USE_CXX11_ABI=0"],
        &["-O2", "-std=c++20", "-D_GLIBCXX_USE_CXX11_ABI=0"],
    ),
    ("leak_shapes_rust.rs", &["-C", "opt-level=0"], &["-C", "opt-level=2"]),
];

/// The long form: optimized builds too, and each shape in a process of memcheck's own. Otherwise memcheck starts once for each
/// program, which forks a child for each shape.
fn long_form() -> bool {
    std::env::var("LEAKSCOPE_SHAPES").is_ok_and(|value| value == "each")
}

/// What a mark says of one kind; numbers not given may be anything.
#[derive(Debug, Clone, Copy)]
struct Planted {
    bytes: Option<u64>,
    blocks: Option<u64>,
}

impl Planted {
    fn admits(self, amount: Amount) -> bool {
        self.bytes.is_none_or(|bytes| bytes == amount.bytes)
            && self.blocks.is_none_or(|blocks| blocks == amount.blocks)
    }
}

/// By kind; kinds not given are nothing.
type Mark = BTreeMap<Kind, Planted>;

/// One shape to be examined.
#[derive(Debug)]
struct Shape {
    source: &'static str,
    name: String,
    program: PathBuf,
    planted: Mark,
    /// What memcheck sees instead.
    memcheck: Option<Mark>,
}

impl Shape {
    fn command(&self) -> [PathBuf; 2] {
        [self.program.clone(), PathBuf::from(&self.name)]
    }
}

fn parse_mark(text: &str) -> Option<Mark> {
    let number = |text: &str| match text {
        "?" => Some(None),
        text => text.parse().ok().map(Some),
    };
    if text.trim() == "nothing" {
        return Some(Mark::new());
    }
    text.split_whitespace()
        .map(|word| {
            let (kind, amount) = word.split_once('=')?;
            let kind = Kind::ALL.into_iter().find(|candidate| candidate.name() == kind)?;
            let (bytes, blocks) = amount.split_once('/').unwrap_or((amount, amount));
            Some((kind, Planted { bytes: number(bytes)?, blocks: number(blocks)? }))
        })
        .collect()
}

/// The marks of a source by the shape's name: planted, and what memcheck sees instead.
fn marks_of_shapes(source: &str) -> BTreeMap<String, (Mark, Option<Mark>)> {
    let text = self::source(source);
    let (_, table) = text.split_once("hapes").expect("a table");
    let mut marks = BTreeMap::new();
    for line in table.lines() {
        let Some((entry, comment)) = line.split_once(", // ") else { continue };
        let entry = entry.trim();
        let name = entry.strip_prefix("SHAPE(").and_then(|rest| rest.strip_suffix(')')).unwrap_or(entry);
        let (planted, memcheck) = match comment.split_once(" memcheck: ") {
            Some((planted, memcheck)) => (planted, Some(memcheck)),
            None => (comment, None),
        };
        let Some(planted) = parse_mark(planted) else { continue };
        let memcheck = memcheck.map(|mark| parse_mark(mark).unwrap_or_else(|| panic!("bad mark: {line}")));
        assert!(marks.insert(name.to_owned(), (planted, memcheck)).is_none(), "{name} stands there twice");
    }
    marks
}

/// The shapes of a program.
fn shapes(source: &'static str, flags: &[&str]) -> Vec<Shape> {
    let program = compile(source, flags);
    let marks = marks_of_shapes(source);
    let list = run(Command::new(&program).arg("list"));
    assert_eq!(list.code(), 0, "{source} list: {}", list.err());
    let shape = |name: &str| {
        let (planted, memcheck) =
            marks.get(name).unwrap_or_else(|| panic!("{source}: {name} has no mark, or a bad one"));
        Shape {
            source,
            name: name.to_owned(),
            program: program.clone(),
            planted: planted.clone(),
            memcheck: memcheck.clone(),
        }
    };
    list.out().lines().map(shape).collect()
}

/// What an observer found of one shape.
#[derive(Debug, Default)]
struct Seen {
    /// Of the process, without what the loader keeps for its threads.
    totals: BTreeMap<Kind, Amount>,
    /// What has a frame in the program's source, by kind and innermost such place.
    places: BTreeMap<(Kind, Place), Amount>,
}

impl Seen {
    fn total(&self, kind: Kind) -> Amount {
        self.totals.get(&kind).copied().unwrap_or_default()
    }

    fn own(&self, kind: Kind) -> Amount {
        self.places.iter().filter(|((of, _), _)| *of == kind).map(|(_, amount)| *amount).sum()
    }

    fn add(&mut self, kind: Kind, amount: Amount, place: Option<Place>) {
        *self.totals.entry(kind).or_default() += amount;
        if let Some(place) = place {
            *self.places.entry((kind, place)).or_default() += amount;
        }
    }

    /// How it differs from a mark.
    fn differences(&self, mark: &Mark) -> Vec<String> {
        let nothing = Planted { bytes: Some(0), blocks: Some(0) };
        let differs = |kind: &Kind| {
            let planted = mark.get(kind).copied().unwrap_or(nothing);
            // Everything counts but what the runtime still has in reach.
            let found = if *kind == Kind::Reachable { self.own(*kind) } else { self.total(*kind) };
            (!planted.admits(found)).then(|| {
                let name = kind.name();
                format!("{name}: planted {planted:?}, found {found:?}")
            })
        };
        Kind::ALL.iter().filter_map(differs).collect()
    }
}

/// Whether it is the vector of a thread's storage, which the loader makes at the thread's start. Its only pointer leads behind
/// its first entry, so memcheck calls it possibly lost while the thread lives.
fn is_the_loaders(record: &Record) -> bool {
    record.passes_through("allocate_dtv") || record.passes_through("_dl_allocate_tls")
}

/// Before libc's memory is torn down: that would change registers and streams, and unmap what ended threads left.
const MEMCHECK_OPTIONS: &[&str] = &["--run-libc-freeres=no", "--run-cxx-freeres=no"];

fn seen_by_memcheck(records: &[Record], shape: &Shape) -> Seen {
    let mut seen = Seen::default();
    let sources = [shape.source.to_owned()];
    for record in records.iter().filter(|record| !is_the_loaders(record)) {
        seen.add(record.kind, record.direct, record.place(&sources));
    }
    seen
}

/// Applies `examine` to all `things`, two at a time, and gives the results in their order.
fn two_at_a_time<T: Sync, R: Send>(things: &[T], examine: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((index, thing)) = Some(next.fetch_add(1, Ordering::Relaxed))
                    .and_then(|index| Some((index, things.get(index)?)))
                {
                    let result = examine(thing);
                    results.lock().unwrap().insert(index, result);
                }
            });
        }
    });
    results.into_inner().unwrap().into_values().collect()
}

/// What memcheck sees of every shape, examined once for both tests; none without valgrind.
static EXAMINED: LazyLock<Vec<(Shape, Seen)>> = LazyLock::new(|| {
    let Some(valgrind) = find_program(&["valgrind"]) else {
        skip("valgrind is not installed");
        return Vec::new();
    };
    let mut shapes: Vec<Vec<Shape>> =
        PROGRAMS.iter().map(|&(source, usual, _)| shapes(source, usual)).collect();
    let seen = if long_form() {
        shapes.extend(PROGRAMS.iter().map(|&(source, _, optimizing)| self::shapes(source, optimizing)));
        let each: Vec<&Shape> = shapes.iter().flatten().collect();
        two_at_a_time(&each, |shape| {
            seen_by_memcheck(&memcheck(&valgrind, MEMCHECK_OPTIONS, &shape.command()), shape)
        })
    } else {
        let by_program = two_at_a_time(&shapes, |shapes| {
            let mut command = vec![shapes[0].program.clone()];
            command.extend(shapes.iter().map(|shape| PathBuf::from(&shape.name)));
            let children = memcheck_children(&valgrind, MEMCHECK_OPTIONS, &command);
            shapes.iter().map(|shape| seen_by_memcheck(&children[&shape.name], shape)).collect::<Vec<_>>()
        });
        by_program.into_iter().flatten().collect()
    };
    shapes.into_iter().flatten().zip(seen).collect()
});

#[test]
fn memcheck_sees_what_each_shape_planted() {
    let mut wrong = Vec::new();
    for (shape, seen) in EXAMINED.iter() {
        for difference in seen.differences(shape.memcheck.as_ref().unwrap_or(&shape.planted)) {
            wrong.push(format!("{} {}: {difference}", shape.program.display(), shape.name));
        }
    }
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}

/// How what leakscope says of a shape differs from what memcheck says, or from what was planted where memcheck errs.
fn disagreements(shape: &Shape, memcheck: &Seen) -> Vec<String> {
    let directory = Directory::new();
    let json = directory.join("leaks.json");
    let mut option = std::ffi::OsString::from("--json=");
    option.push(&json);
    let outcome: Outcome =
        run(leakscope(["leaks", "--show-leak-kinds=all"]).arg(option).arg("--").args(shape.command()));
    if outcome.code() != 0 {
        return vec![format!("exit status {}: {}", outcome.code(), outcome.err())];
    }
    // It ends by a system call of its own, past the C library: nothing but a tracer by ptrace from the start would see it.
    if shape.name == "held_in_the_red_zone" {
        let said = outcome.err().contains("without coming to an exit that can be examined");
        return if said {
            Vec::new()
        } else {
            vec![format!("no word of the missing examination: {}", outcome.err())]
        };
    }
    let text = match std::fs::read(&json) {
        Ok(text) => text,
        Err(error) => return vec![format!("no JSON ({error}): {}", outcome.err())],
    };
    let leaks = match std::panic::catch_unwind(|| Leaks::parse(&text)) {
        Ok(leaks) => leaks,
        Err(_) => return vec!["unreadable JSON".to_owned()],
    };

    let sources = [shape.source.to_owned()];
    let mut seen = Seen::default();
    for record in &leaks.records {
        seen.add(record.kind, record.direct(), record.place(&sources));
    }
    let mut wrong = Vec::new();
    let summary = &leaks.summary;
    for (kind, summed) in [
        (Kind::Definite, summary.definite),
        (Kind::Indirect, summary.indirect),
        (Kind::Possible, summary.possible),
    ] {
        if seen.total(kind) != summed {
            let name = kind.name();
            wrong.push(format!("{name}: records sum to {:?}, the summary says {summed:?}", seen.total(kind)));
        }
        if shape.memcheck.is_none() && memcheck.total(kind) != summed {
            let name = kind.name();
            wrong.push(format!("{name}: memcheck {:?}, leakscope {summed:?}", memcheck.total(kind)));
        }
    }
    if shape.memcheck.is_some() {
        wrong.extend(seen.differences(&shape.planted));
        return wrong;
    }
    let (theirs, ours) = (&memcheck.places, &seen.places);
    // Where the mark gives no numbers, the library's and the loader's own are among them.
    let open = |kind: &Kind| shape.planted.get(kind).is_some_and(|planted| planted.blocks.is_none());
    let mut places: Vec<_> = theirs.keys().chain(ours.keys()).filter(|(kind, _)| !open(kind)).collect();
    places.sort();
    places.dedup();
    for place in places {
        let (theirs, ours) = (theirs.get(place), ours.get(place));
        if theirs != ours {
            let (kind, (file, line)) = place;
            wrong.push(format!("{} at {file}:{line}: memcheck {theirs:?}, leakscope {ours:?}", kind.name()));
        }
    }
    wrong
}

#[test]
fn leaks_says_of_each_shape_what_memcheck_says() {
    let wrong: Vec<String> = two_at_a_time(&EXAMINED, |(shape, memcheck)| {
        let what = format!("{} {}", shape.program.display(), shape.name);
        disagreements(shape, memcheck)
            .into_iter()
            .map(|difference| format!("{what}: {difference}"))
            .collect::<Vec<_>>()
    })
    .into_iter()
    .flatten()
    .collect();
    assert!(wrong.is_empty(), "{} differences\n{}", wrong.len(), wrong.join("\n"));
}
