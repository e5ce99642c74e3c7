//! Stripped programs: names from separate debug files and from copies of the program, on request also where those lie elsewhere;
//! without them the module and the address, and a word about what is missing.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::marks::{differences, marks_of};
use crate::support::process::run;
use crate::support::report::Report;
use crate::support::traced::{Run, Traced, leakscope};
use std::path::{Path, PathBuf};
use std::process::Command;

const SOURCE: &str = "leaks_in_c.c";

/// A stripped copy of the program, with its debug information in a file of its own.
struct Stripped {
    directory: Directory,
    program: PathBuf,
    debug: PathBuf,
    build_id: String,
}

fn stripped() -> Stripped {
    let whole = compile(SOURCE, &["-O1", "-Wl,--build-id=sha1"]);
    let directory = Directory::new();
    let (program, debug) = (directory.join("program"), directory.join("program.debug"));
    let objcopy = |arguments: &[&str], files: &[&Path]| {
        let outcome = run(Command::new("objcopy").args(arguments).args(files).current_dir(directory.path()));
        assert_eq!(outcome.code(), 0, "objcopy {arguments:?}: {}", outcome.err());
    };
    objcopy(&["--only-keep-debug"], &[&whole, &debug]);
    objcopy(&["--strip-all"], &[&whole, &program]);
    let notes = run(Command::new("readelf").arg("-n").arg(&whole)).out();
    let (_, rest) = notes.split_once("Build ID: ").expect("a build id");
    let build_id = rest.split_whitespace().next().unwrap().to_owned();
    Stripped { directory, program, debug, build_id }
}

fn check_marks(report: &Report) {
    let sources = [SOURCE.to_owned()];
    let differences = differences(&marks_of(&sources, "main"), &report.found(&sources), false);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn report_with(traced: &Traced, options: &[&Path]) -> Report {
    let outcome = run(leakscope(["report", "--format", "json"]).args(options).arg(&traced.heap));
    assert_eq!(outcome.code(), 0, "{}", outcome.err());
    Report::parse(&outcome.stdout)
}

#[test]
fn a_stripped_program_is_reported_by_module_and_said_to_be_stripped() {
    let stripped = stripped();
    let traced = Run::new([&stripped.program]).traced();
    assert_eq!(traced.outcome.code(), 0);
    let report = traced.report();
    assert!(
        report.sites.iter().any(|site| (site.inuse_bytes, site.inuse_blocks) == (2048, 64)),
        "the numbers hold"
    );
    let in_program =
        |module: &Option<String>| module.as_deref().is_some_and(|path| path.ends_with("/program"));
    let frames: Vec<_> =
        report.sites.iter().flat_map(|site| &site.stack).filter(|frame| in_program(&frame.module)).collect();
    assert!(!frames.is_empty(), "frames have their module");
    assert!(frames.iter().all(|frame| frame.line.is_none() && frame.file.is_none()), "and no invented lines");
    assert!(traced.outcome.err().contains(&stripped.build_id), "{}", traced.outcome.err());
}

#[test]
fn a_debug_file_beside_the_program_is_found_by_its_link() {
    let stripped = stripped();
    let outcome = run(Command::new("objcopy")
        .arg(format!("--add-gnu-debuglink={}", stripped.debug.display()))
        .arg(&stripped.program)
        .current_dir(stripped.directory.path()));
    assert_eq!(outcome.code(), 0, "{}", outcome.err());
    check_marks(&Run::new([&stripped.program]).traced().report());
    let hidden = stripped.directory.join(".debug");
    std::fs::create_dir(&hidden).unwrap();
    std::fs::rename(&stripped.debug, hidden.join("program.debug")).unwrap();
    check_marks(&Run::new([&stripped.program]).traced().report());
}

#[test]
fn a_debug_directory_is_searched_by_build_id() {
    let stripped = stripped();
    let traced = Run::new([&stripped.program]).traced();
    let (first, rest) = stripped.build_id.split_at(2);
    let place = stripped.directory.join("debug/.build-id").join(first);
    std::fs::create_dir_all(&place).unwrap();
    std::fs::rename(&stripped.debug, place.join(format!("{rest}.debug"))).unwrap();
    check_marks(&report_with(&traced, &[Path::new("--debug-dir"), &stripped.directory.join("debug")]));
}

#[test]
fn a_program_that_is_gone_is_named_from_a_copy() {
    let directory = Directory::new();
    let program = directory.join("program");
    let whole = compile(SOURCE, &["-O1", "-Wl,--build-id=sha1"]);
    std::fs::copy(&whole, &program).unwrap();
    let traced = Run::new([&program]).traced();
    check_marks(&traced.report());
    std::fs::remove_file(&program).unwrap();
    let without = report_with(&traced, &[]);
    assert!(without.found(&[SOURCE.to_owned()]).is_empty(), "no file, no lines");
    check_marks(&report_with(&traced, &[Path::new("--exe"), &whole]));
    // Another program of the same name is not taken for it.
    std::fs::copy(compile("zero_size.c", &["-O0"]), &program).unwrap();
    let wrong = report_with(&traced, &[]);
    assert!(wrong.found(&["zero_size.c".to_owned()]).is_empty(), "a wrong name is worse than none");
}
