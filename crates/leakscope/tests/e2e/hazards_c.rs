//! The C target programs about what a program does with memory: one hazard each.

use crate::support::build::compile;
use crate::support::case::{Ran, case};
use crate::support::directory::Directory;
use crate::support::marks::{Expected, differences, line_containing, marks_of};
use crate::support::skip;
use crate::support::traced::Run;

/// The report's note or summary must own up to something, in these words among others.
fn says(ran: &Ran, words: &[&str]) {
    let said = ran.traced.said(&ran.native).to_lowercase();
    assert!(
        words.iter().any(|word| said.contains(word)),
        "none of {words:?} in what leakscope said:\n{said}"
    );
}

#[test]
fn every_plain_leak_is_booked_to_its_line() {
    for ran in case("leaks_in_c.c").check() {
        let report = ran.traced.report();
        let line = line_containing("leaks_in_c.c", "malloc(size); // LEAK");
        let callers = |name: &str| {
            report
                .sites_at("leaks_in_c.c", line)
                .filter(|site| site.passes_through(&["checked_malloc", name, "main"]))
                .map(|site| (site.inuse_bytes, site.inuse_blocks))
                .fold((0, 0), |sum, next| (sum.0 + next.0, sum.1 + next.1))
        };
        assert_eq!(callers("caller_one"), (200, 2), "through caller_one");
        assert_eq!(callers("caller_two"), (153, 3), "through caller_two");
        let text = ran.traced.said(&ran.native);
        assert!(text.contains("leaks_in_c.c:"), "the summary names file and line:\n{text}");
    }
}

#[test]
fn each_way_to_link_and_to_describe_a_program_gives_the_same_lines() {
    for flags in [
        &["-O1", "-no-pie"] as &[&'static str],
        &["-O2", "-fno-plt"],
        &["-O2", "-fomit-frame-pointer", "-fcf-protection=none"],
        &["-O2", "-fno-omit-frame-pointer"],
        &["-O3", "-flto", "-ffat-lto-objects"],
        &["-O0", "-gdwarf-4"],
        &["-O0", "-gz"],
        &["-O0", "-Wl,-z,now,-z,relro", "-Wl,--build-id=none"],
        &["-O0", "-fno-asynchronous-unwind-tables"],
        &["-O2", "-Wl,--hash-style=sysv"],
    ] {
        case("leaks_in_c.c").flags(flags).check();
    }
}

#[test]
fn memory_freed_by_destructors_of_threads_is_freed() {
    case("free_after_tls_destructors.c").check();
}

#[test]
fn memory_lost_by_unloaded_libraries_keeps_their_names() {
    for ran in case("dlopen_dlclose_loop.c")
        .library("dlopen_dlclose_loop_first.c")
        .library("dlopen_dlclose_loop_second.c")
        .check()
    {
        for source in ["dlopen_dlclose_loop_first.c", "dlopen_dlclose_loop_second.c"] {
            let report = ran.traced.report();
            let line = line_containing(source, "// LEAK");
            for site in report.sites_at(source, line) {
                assert!(site.passes_through(&["lose", "visit", "main"]), "{:?}", site.functions());
            }
        }
    }
}

#[test]
fn a_library_replaced_on_disk_gets_no_wrong_names() {
    let directory = Directory::new();
    let program = compile("module_replaced_on_disk.c", &["-O0"]);
    let (used, other) = (directory.join("libused.so"), directory.join("libother.so"));
    std::fs::copy(compile("dlopen_dlclose_loop_first.c", &["-O0", "-shared", "-fPIC"]), &used).unwrap();
    std::fs::copy(compile("dlopen_dlclose_loop_second.c", &["-O0", "-shared", "-fPIC"]), &other).unwrap();
    let traced = Run::new([program, used, other]).traced();
    assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
    let report = traced.report();
    let in_library: Vec<_> = report.sites.iter().filter(|site| site.inuse_bytes == 24).collect();
    assert_eq!(in_library.len(), 1);
    for frame in report.sites.iter().flat_map(|site| &site.stack) {
        let file = frame.file.as_deref().unwrap_or_default();
        assert!(!file.contains("second"), "a frame of the file that was never loaded: {frame:?}");
    }
    let found = report.found(&["module_replaced_on_disk.c".to_owned()]);
    let line = line_containing("module_replaced_on_disk.c", "lose(); // LEAK");
    assert_eq!(
        found[&("module_replaced_on_disk.c".to_owned(), line)].heap,
        (24, 1),
        "the caller is still named"
    );
}

#[test]
fn a_linker_namespace_of_its_own_does_no_harm() {
    for ran in case("dlmopen_namespace.c").library("dlmopen_namespace_library.c").check() {
        let report = ran.traced.report();
        let line = line_containing("dlmopen_namespace.c", "malloc(61)");
        for site in report.sites_at("dlmopen_namespace.c", line) {
            assert!(site.passes_through(&["call_back", "use", "main"]), "{:?}", site.functions());
        }
    }
}

#[test]
fn realloc_books_a_block_to_the_call_that_gave_it_its_size() {
    case("realloc_edge_cases.c").check();
}

#[test]
fn each_way_to_ask_for_alignment_is_seen_with_the_bytes_asked_for() {
    case("aligned_variants.c").check();
}

#[test]
fn malloc_usable_size_works_for_null_and_for_all() {
    case("usable_size_of_null.c").check();
}

#[test]
fn errno_is_what_libc_makes_it() {
    case("errno_is_preserved.c").check();
}

#[test]
fn a_handler_may_enter_a_hook_while_another_is_half_done() {
    for ran in case("signal_handler_allocates.c").report_unchecked().check() {
        // A mapping made while the same thread is inside a hook may be forwarded unrecorded, if it is counted as missed.
        let report = ran.traced.report();
        let found = report.found(&ran.sources);
        let mut marks = marks_of(&ran.sources, "main");
        let place = (
            "signal_handler_allocates.c".to_owned(),
            line_containing("signal_handler_allocates.c", "// MAPPED"),
        );
        marks.insert(place.clone(), Expected::Any);
        let differences = differences(&marks, &found, false);
        assert!(differences.is_empty(), "{differences:?}");
        let kept = found.get(&place).map_or(0, |found| found.mapped.1);
        assert!(
            kept <= 50 && kept + report.totals.missed_events >= 50,
            "{kept} of 50 mappings recorded, {} missed",
            report.totals.missed_events
        );
    }
}

#[test]
fn a_handler_may_jump_out_of_a_hook() {
    case("longjmp_out_of_handler.c").check();
}

#[test]
fn thousands_of_short_threads_lose_what_they_lost() {
    case("thread_churn.c").check();
}

#[test]
fn a_thread_with_the_smallest_stack_can_allocate() {
    case("small_thread_stacks.c").check();
}

#[test]
fn at_least_128_frames_are_recorded() {
    for (depth, flags) in [(110, ["-O0"]), (110, ["-O2"]), (1000, ["-O0"]), (1000, ["-O2"])] {
        for ran in case("deep_recursion.c").flags(&flags).arg(depth.to_string()).check() {
            let report = ran.traced.report();
            let line = line_containing("deep_recursion.c", "// LEAK");
            let site = report.sites_at("deep_recursion.c", line).next().unwrap();
            let levels = site.functions().iter().filter(|name| **name == "descend").count();
            if depth == 110 {
                assert_eq!(levels, depth + 1, "a stack of that depth is whole");
                assert!(site.passes_through(&["descend", "main"]));
            } else {
                assert!(levels >= 126, "only {levels} frames of a deep stack");
            }
        }
    }
}

#[test]
fn stacks_are_whole_without_frame_pointers_and_through_libc() {
    for flags in [&["-O2", "-fomit-frame-pointer"] as &[&'static str], &["-O1"], &["-O0"], &["-O3"]] {
        for ran in case("no_frame_pointers.c").flags(flags).check() {
            let report = ran.traced.report();
            let expect = |text: &str, path: &[&str]| {
                let line = line_containing("no_frame_pointers.c", text);
                let mut sites = report
                    .sites_at("no_frame_pointers.c", line)
                    .filter(|site| site.inuse_blocks > 0)
                    .peekable();
                assert!(sites.peek().is_some());
                for site in sites {
                    assert!(site.passes_through(path), "{flags:?}: {:?}", site.functions());
                }
            };
            expect("malloc(10 + value)", &["lose_one", "compare", "sort_records", "main"]);
            expect("malloc(7)", &["compare_keys", "search_tree", "main"]);
            expect("malloc(13)", &["variable_length_array", "main"]);
        }
    }
}

#[test]
fn fibers_allocate_on_stacks_of_their_own() {
    for ran in case("swapcontext_fibers.c").check() {
        let report = ran.traced.report();
        let line = line_containing("swapcontext_fibers.c", "malloc(88)");
        for site in report.sites_at("swapcontext_fibers.c", line) {
            assert!(site.passes_through(&["lose_in_fiber", "fiber"]), "{:?}", site.functions());
        }
    }
}

#[test]
fn a_handlers_stack_goes_on_in_the_interrupted_code() {
    for ran in case("sigaltstack_allocates.c").check() {
        let report = ran.traced.report();
        let line = line_containing("sigaltstack_allocates.c", "malloc(56)");
        for site in report.sites_at("sigaltstack_allocates.c", line) {
            assert!(site.passes_through(&["on_signal", "interrupted", "main"]), "{:?}", site.functions());
        }
    }
}

#[test]
fn blocks_that_pass_the_tracer_by_do_no_harm() {
    case("deepbind_library.c").library("deepbind_library_plugin.c").check();
}

#[test]
fn memory_allocated_before_any_constructor_is_seen() {
    case("early_constructor_allocates.c").check();
}

#[test]
fn memory_freed_after_main_is_freed() {
    case("late_destructor_frees.c").check();
}

#[test]
fn a_program_with_its_own_malloc_runs_and_is_told() {
    for ran in case("own_malloc_interposed.c").flags(&["-O0", "-fno-builtin"]).report_unchecked().check() {
        says(&ran, &["own allocator", "own malloc", "its own", "another allocator", "interposed"]);
    }
}

#[test]
fn a_program_that_measures_its_own_heap_sees_the_same() {
    case("mallinfo2_malloc_info_mtrace.c").check();
}

#[test]
fn glibcs_malloc_debugging_library_works_along() {
    let Some(library) = ["/lib/x86_64-linux-gnu/libc_malloc_debug.so.0", "/lib64/libc_malloc_debug.so.0"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
    else {
        return skip("libc_malloc_debug.so.0 is not installed");
    };
    case("leaks_in_c.c").env("LD_PRELOAD", library).check();
    case("leaks_in_c.c")
        .env("LD_PRELOAD", library)
        .env("GLIBC_TUNABLES", "glibc.malloc.check=3")
        .flags(&["-O0"])
        .check();
    let directory = Directory::new();
    for ran in case("mallinfo2_malloc_info_mtrace.c")
        .flags(&["-O0"])
        .env("LD_PRELOAD", library)
        .env("MALLOC_TRACE", directory.join("trace"))
        .check()
    {
        drop(ran);
        let trace = std::fs::read_to_string(directory.join("trace")).unwrap();
        assert!(
            trace.lines().filter(|line| line.contains(" + ")).count() >= 102,
            "mtrace wrote its own trace"
        );
    }
}

#[test]
fn mappings_are_followed_through_partial_unmapping() {
    case("mmap_munmap_mremap.c").check();
}

#[test]
fn blocks_beyond_four_gibibytes_have_their_size() {
    let program = compile("huge_sizes.c", &["-O0"]);
    if Run::new([program]).natively().code() != 0 {
        return skip("this machine refuses blocks of several GiB");
    }
    case("huge_sizes.c").check();
}

#[test]
fn blocks_of_no_bytes_count_as_blocks() {
    case("zero_size.c").check();
}

#[test]
fn cancelled_threads_free_what_their_cleanup_frees() {
    case("cancel_thread.c").check();
}

#[test]
fn a_block_freed_by_another_thread_is_freed() {
    case("mixed_cross_thread_free.c").check();
}

#[test]
fn sized_frees_of_c23_are_frees() {
    case("c23_free_sized.c").check();
}

#[test]
fn temporary_blocks_are_counted_exactly() {
    case("temporary_allocations.c").check();
}

#[test]
fn the_peak_is_right_in_sum_and_by_line() {
    for ran in case("peak_and_growth.c").check() {
        let totals = ran.traced.report().totals;
        let expected = 30_000_000;
        assert!(totals.peak_bytes.abs_diff(expected) <= expected / 100 + 65536, "peak {}", totals.peak_bytes);
    }
}

#[test]
fn an_optimized_call_is_found_through_its_inlined_frames() {
    for ran in case("leaks_in_c.c").flags(&["-O3"]).check() {
        let report = ran.traced.report();
        assert!(report.sites.iter().all(|site| site.stack.last().is_none_or(|frame| !frame.inlined)));
    }
}

#[test]
fn programs_may_stand_anywhere() {
    use std::os::unix::ffi::OsStrExt;
    let directory = Directory::new();
    let sources = ["leaks_in_c.c".to_owned()];
    for (name, is_text) in [(b"a 'b\" %s (deleted)" as &[u8], true), (b"not text: \xff\n", false)] {
        let odd = directory.join(std::ffi::OsStr::from_bytes(name));
        std::fs::create_dir(&odd).unwrap();
        let program = odd.join("program");
        std::fs::copy(compile("leaks_in_c.c", &["-O0"]), &program).unwrap();
        let traced = Run::new([&program]).traced();
        assert_eq!(traced.outcome.code(), 0, "{}", traced.outcome.err());
        let report = traced.report();
        assert!(report.totals.inuse_blocks >= 172, "{:?}", report.totals);
        if is_text {
            let differences = differences(&marks_of(&sources, "main"), &report.found(&sources), false);
            assert!(differences.is_empty(), "{differences:?}");
        }
    }
}
