//! The marks in the target programs are checked against an independent observer: valgrind's memcheck, which sees every block
//! that is left at the end. (What leakscope reports is checked against the same marks elsewhere.)

use crate::support::build::compile;
use crate::support::marks::{Expected, Found, Place, differences, line_containing, marks_of};
use crate::support::memcheck::memcheck;
use crate::support::{find_program, skip};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What memcheck finds unfreed, by place.
fn unfreed(
    valgrind: &Path,
    command: &[PathBuf],
    arguments: &[&str],
    sources: &[String],
) -> BTreeMap<Place, Found> {
    let mut words: Vec<&OsStr> = command.iter().map(|path| path.as_os_str()).collect();
    words.extend(arguments.iter().map(OsStr::new));
    let options = ["--keep-debuginfo=yes", "--child-silent-after-fork=yes"];
    let mut places = BTreeMap::<Place, Found>::new();
    for record in memcheck(valgrind, &options, &words) {
        if let Some(place) = record.place(sources) {
            let found = places.entry(place).or_default();
            found.heap.0 += record.direct.bytes;
            found.heap.1 += record.direct.blocks;
        }
    }
    places
}

/// Source, libraries, arguments.
type Subject = (&'static str, &'static [&'static str], &'static [&'static str]);

/// Lines where memcheck is known to see something else than the program asked for: not pvalloc at all, no bytes for `new` of
/// none (libstdc++ asks for one).
const SEEN_DIFFERENTLY: &[(&str, &str)] =
    &[("aligned_variants.c", "keep(pvalloc(400))"), ("operator_new_variants.cpp", "::operator new(0)")];

const SUBJECTS: &[Subject] = &[
    ("leaks_in_c.c", &[], &[]),
    ("free_after_tls_destructors.c", &[], &[]),
    ("atfork_handlers_allocate.c", &[], &[]),
    ("dlopen_dlclose_loop.c", &["dlopen_dlclose_loop_first.c", "dlopen_dlclose_loop_second.c"], &[]),
    ("realloc_edge_cases.c", &[], &[]),
    ("aligned_variants.c", &[], &[]),
    ("usable_size_of_null.c", &[], &[]),
    ("signal_handler_allocates.c", &[], &[]),
    ("thread_churn.c", &[], &[]),
    ("small_thread_stacks.c", &[], &[]),
    ("exit_variants.c", &[], &["return"]),
    ("exit_variants.c", &[], &["quick_exit"]),
    ("exit_variants.c", &[], &["thread_exit"]),
    ("no_frame_pointers.c", &[], &[]),
    ("swapcontext_fibers.c", &[], &[]),
    ("sigaltstack_allocates.c", &[], &[]),
    ("early_constructor_allocates.c", &[], &[]),
    ("late_destructor_frees.c", &[], &[]),
    ("mmap_munmap_mremap.c", &[], &[]),
    ("zero_size.c", &[], &[]),
    ("cancel_thread.c", &[], &[]),
    ("mixed_cross_thread_free.c", &[], &[]),
    ("c23_free_sized.c", &[], &[]),
    ("temporary_allocations.c", &[], &[]),
    ("peak_and_growth.c", &[], &[]),
    ("raw_clone_fork.c", &[], &[]),
    ("operator_new_variants.cpp", &[], &[]),
    ("cpp_exceptions.cpp", &[], &[]),
    ("cpp_inlined_leak.cpp", &[], &[]),
    ("cpp_containers_leak.cpp", &[], &[]),
    ("cpp_no_frame_pointers.cpp", &[], &[]),
    ("cpp_coroutines.cpp", &[], &[]),
    ("rust_leaks.rs", &[], &[]),
    ("rust_panics.rs", &[], &[]),
];

#[test]
fn memcheck_finds_what_the_marks_say() {
    let Some(valgrind) = find_program(&["valgrind"]) else {
        return skip("valgrind is not installed");
    };
    let mut wrong = Vec::new();
    for &(source, libraries, arguments) in SUBJECTS {
        let flags: &[&str] = match source.rsplit_once('.') {
            Some((_, "rs")) => &["-C", "opt-level=0"],
            Some((_, "cpp")) => &["-O0", "-std=c++20"],
            _ => &["-O0"],
        };
        let mut command = vec![compile(source, flags)];
        let mut sources = vec![source.to_owned()];
        for library in libraries {
            command.push(compile(library, &[flags, &["-shared", "-fPIC"]].concat()));
            sources.push((*library).to_owned());
        }
        let found = unfreed(&valgrind, &command, arguments, &sources);
        let mut marks = marks_of(&sources, "main");
        for (source, text) in SEEN_DIFFERENTLY.iter().filter(|(file, _)| *file == source) {
            marks.insert(((*source).to_owned(), line_containing(source, text)), Expected::Any);
        }
        for difference in differences(&marks, &found, true) {
            wrong.push(format!("{source} {arguments:?}: {difference}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
