//! Real programs: sqlite3, python3 and a compiler, each as a whole command.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::child::progress;
use super::stats::Spread;
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, arguments, rotated};

/// A command, and the same with about an eighth of the work for the slow tools.
struct Program {
    name: &'static str,
    program: PathBuf,
    environment: &'static [(&'static str, &'static str)],
    full: Vec<OsString>,
    eighth: Vec<OsString>,
}

const ROUNDS: usize = 5;
const SLOW_ROUNDS: usize = 1;

/// The promise for all of them: whole time, in native's.
const LIMIT: f64 = 1.6;

const ABOUT: &str = "\
Whole commands, from their start to their end, with everything a tool does at the end (leakscope's report with its symbols \
too). Native in seconds, the tools in multiples of it. `sqlite3`: a generated script of inserts, indexes and queries on \
`:memory:`. `python3`: records, dictionaries, sorting, JSON; once as it comes and once with every object from malloc. \
`cc1`: gcc's compiler proper, `-O2`, 3,000 generated lines.";

/// Runs all programs that were asked for.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    let programs: Vec<Program> =
        programs(bench)?.into_iter().filter(|program| bench.includes(program.name)).collect();
    if programs.is_empty() {
        return Ok(None);
    }
    let mut columns = vec!["program".to_owned()];
    columns.extend(bench.tools.available().iter().map(|tool| tool.name().to_owned()));
    let mut section =
        Section { title: "Real programs".to_owned(), about: ABOUT.to_owned(), columns, ..Section::default() };
    for program in programs {
        let samples = sample(bench, &program, &mut section.remarks)?;
        let mut row = vec![program.name.to_owned()];
        for tool in bench.tools.available() {
            let Some(spread) =
                samples.get(tool.name()).and_then(|samples| Spread::of(samples.iter().copied()))
            else {
                row.push("failed".to_owned());
                continue;
            };
            row.push(match tool {
                Tool::Native => format!("{} s", spread.show(2, false)),
                _ => spread.show(2, false),
            });
            // PYTHONMALLOC=malloc is for debugging; the promise is for python as it comes.
            if *tool == Tool::Leakscope && program.environment.is_empty() {
                let name = format!("{}: whole time, in native's", program.name);
                let measured = spread.median;
                section.bounds.push(Bound { name, limit: LIMIT, measured, unit: "", at_least: false });
            }
        }
        section.rows.push(row);
    }
    section.remarks.push(format!(
        "Rounds: {} for leakscope and heaptrack, {} for the others, on about an eighth of the work and compared with \
         native on the same eighth, so that their start-up weighs more.",
        bench.rounds(ROUNDS),
        bench.rounds(SLOW_ROUNDS)
    ));
    Ok(Some(section))
}

/// Seconds for native, multiples of the same round's native for the others.
fn sample(
    bench: &Bench,
    program: &Program,
    remarks: &mut Vec<String>,
) -> Result<BTreeMap<&'static str, Vec<f64>>> {
    let mut samples: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let mut seconds = |tool: Tool, words: &[OsString]| -> Result<Option<f64>> {
        match bench.run_with(tool, &program.program, words, program.environment, Duration::from_secs(180)) {
            Ok(finished) => Ok(Some(finished.wall.as_secs_f64())),
            Err(error) if matches!(tool, Tool::Native | Tool::Leakscope) => Err(error),
            Err(error) => {
                progress(&format!("{}: {error:#}", program.name));
                remarks.push(format!("{} failed on {}.", tool.name(), program.name));
                Ok(None)
            }
        }
    };
    // Once unmeasured, so that no tool pays for reading files from the disk.
    seconds(Tool::Native, &program.eighth)?;
    let quick = bench.quick;
    for round in 0..bench.rounds(ROUNDS) {
        let full = if quick { &program.eighth } else { &program.full };
        let fast: Vec<Tool> =
            bench.tools.available().iter().copied().filter(|tool| !tool.is_slow()).collect();
        let mut times = BTreeMap::new();
        for tool in rotated(&fast, round) {
            if let Some(time) = seconds(tool, full)? {
                times.insert(tool.name(), time);
            }
        }
        let native = *times.get(Tool::Native.name()).context("no native time")?;
        for (tool, time) in times {
            let value = if tool == Tool::Native.name() { time } else { time / native };
            samples.entry(tool).or_default().push(value);
        }
        if round < bench.rounds(SLOW_ROUNDS) {
            let Some(native) = seconds(Tool::Native, &program.eighth)? else { continue };
            for tool in bench.tools.available().iter().filter(|tool| tool.is_slow()) {
                if let Some(time) = seconds(*tool, &program.eighth)? {
                    samples.entry(tool.name()).or_default().push(time / native);
                }
            }
        }
    }
    let medians = samples.iter().filter_map(|(tool, values)| {
        Some(format!("{tool} {:.2}", Spread::of(values.iter().copied())?.median))
    });
    progress(&format!("{} [s, then multiples]: {}", program.name, medians.collect::<Vec<_>>().join(", ")));
    Ok(samples)
}

fn programs(bench: &Bench) -> Result<Vec<Program>> {
    let directory = bench.directory.path();
    let file = |name: &str, text: String| -> Result<PathBuf> {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    let mut all = Vec::new();
    if bench.includes("sqlite3") {
        let read = |path: PathBuf| arguments(&[":memory:", &format!(".read '{}'", path.display())]);
        all.push(Program {
            name: "sqlite3",
            program: "sqlite3".into(),
            environment: &[],
            full: read(file("full.sql", sql(160_000))?),
            eighth: read(file("eighth.sql", sql(20_000))?),
        });
    }
    let script = file("objects.py", include_str!("../../../bench/workloads/objects.py").to_owned())?;
    let allocators: [(_, &[_]); 2] = [("python3", &[]), ("python3-malloc", &[("PYTHONMALLOC", "malloc")])];
    for (name, environment) in allocators {
        let words = |rounds: &str| {
            let mut words = vec![script.clone().into_os_string()];
            words.push(rounds.into());
            words
        };
        // Past a version manager's shim, which is a shell script.
        let system = Path::new("/usr/bin/python3");
        let program = if system.exists() { system } else { Path::new("python3") };
        all.push(Program {
            name,
            program: program.to_path_buf(),
            environment,
            full: words("16"),
            eighth: words("2"),
        });
    }
    if bench.includes("cc1") {
        let compile = |path: PathBuf| {
            let mut words = arguments(&["-quiet", "-O2", "-o", "/dev/null"]);
            words.push(path.into_os_string());
            words
        };
        all.push(Program {
            name: "cc1",
            program: cc1()?,
            environment: &[],
            full: compile(file("full.c", c_source(230))?),
            eighth: compile(file("eighth.c", c_source(29))?),
        });
    }
    Ok(all)
}

/// gcc's compiler proper: the tools that do not follow children would see nothing of it behind the `gcc` driver.
fn cc1() -> Result<PathBuf> {
    let output = Command::new("gcc").arg("-print-prog-name=cc1").output().context("cannot run gcc")?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !path.is_absolute() {
        bail!("gcc does not say where its cc1 is");
    }
    Ok(path)
}

/// A script for sqlite3 with `orders` single inserts, then indexes, queries, updates and deletes over them.
fn sql(orders: u32) -> String {
    let mut text = String::from(
        "CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT, city TEXT);\n\
         CREATE TABLE orders(id INTEGER PRIMARY KEY, customer INTEGER, article TEXT, price REAL, note TEXT);\nBEGIN;\n",
    );
    let mut state = 1u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (state >> 8) % below
    };
    for id in 0..orders / 20 {
        let _ = writeln!(
            text,
            "INSERT INTO customer VALUES({id}, 'name {}', 'city {}');",
            random(9999),
            random(50)
        );
    }
    for id in 0..orders {
        let _ = writeln!(
            text,
            "INSERT INTO orders VALUES({id}, {}, 'article {}', {}.{:02}, '{}');",
            random(orders / 20),
            random(1000),
            random(500),
            random(100),
            "note ".repeat(1 + random(30) as usize),
        );
    }
    text.push_str(
        "COMMIT;\n\
         CREATE INDEX orders_customer ON orders(customer);\n\
         CREATE INDEX orders_article ON orders(article, price);\n\
         SELECT city, count(*), sum(price) FROM orders JOIN customer ON customer.id = customer GROUP BY city ORDER BY 3;\n\
         SELECT article, group_concat(id) FROM orders WHERE price > 400 GROUP BY article ORDER BY length(note), article;\n\
         UPDATE orders SET note = upper(note) || article WHERE price < 100;\n\
         SELECT count(DISTINCT note), max(length(note)) FROM orders WHERE note LIKE '%NOTE%article 1%';\n\
         DELETE FROM orders WHERE id % 3 = 0;\n\
         SELECT name, (SELECT group_concat(article, ', ') FROM orders WHERE customer = customer.id) FROM customer ORDER BY 2;\n",
    );
    text
}

/// A C file of `functions` functions of 13 lines with loops, branches and calls among them.
fn c_source(functions: u32) -> String {
    let mut text = String::from("struct item { long key; double weight; struct item *next; };\n");
    for i in 0..functions {
        let callee = if i == 0 { "n + 1".to_owned() } else { format!("f{}(list, n - {i})", i / 2) };
        let _ = writeln!(
            text,
            "long f{i}(struct item *list, long n) {{\n\
             \x20   long sum = n * {i}, table[16];\n\
             \x20   for (int k = 0; k < 16; k++) table[k] = n * k + {i};\n\
             \x20   for (struct item *at = list; at && sum < 1000000; at = at->next) {{\n\
             \x20       switch (at->key % {}) {{\n\
             \x20       case 0: sum += at->key ^ table[at->key & 15]; break;\n\
             \x20       case 1: at->weight *= 1.5 + sum; break;\n\
             \x20       case 2: sum -= (long)at->weight / (1 + (n & {}));\n\
             \x20       default: table[sum & 15] += {i};\n\
             \x20       }}\n\
             \x20   }}\n\
             \x20   return sum > {} ? sum + table[n & 15] : {callee};\n\
             }}",
            3 + i % 9,
            1 + i % 31,
            i * 7,
        );
    }
    text
}
