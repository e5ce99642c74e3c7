//! The C++ target programs.

use crate::support::case::case;
use crate::support::marks::line_containing;

#[test]
fn each_form_of_new_counts_once() {
    case("operator_new_variants.cpp").check();
    case("operator_new_variants.cpp").flags(&["-O2", "-std=c++20", "-fno-builtin"]).check();
}

#[test]
fn a_programs_own_operator_new_counts_once() {
    case("operator_new_replaced.cpp").check();
}

#[test]
fn exceptions_unwind_as_ever() {
    case("cpp_exceptions.cpp").check();
    case("cpp_exceptions.cpp").flags(&["-O2", "-std=c++20"]).check();
}

#[test]
fn inlined_functions_are_named_innermost_first() {
    for ran in case("cpp_inlined_leak.cpp").flags(&["-O2", "-std=c++20"]).check() {
        let report = ran.traced.report();
        let line = line_containing("cpp_inlined_leak.cpp", "malloc(size)");
        let site = report.sites_at("cpp_inlined_leak.cpp", line).next().unwrap();
        let frames: Vec<(&str, bool)> = site
            .stack
            .iter()
            .map(|frame| (frame.function.as_deref().unwrap_or_default(), frame.inlined))
            .collect();
        let at = frames.iter().position(|(name, _)| name.starts_with("innermost")).unwrap();
        let (names, inlined): (Vec<_>, Vec<_>) = frames[at..at + 3].iter().copied().unzip();
        assert!(names[1].starts_with("middle") && names[2].starts_with("outermost"), "{frames:?}");
        assert_eq!(inlined, [true, true, false], "{frames:?}");
    }
}

#[test]
fn containers_cycles_and_threads_lose_what_they_hold() {
    for ran in case("cpp_containers_leak.cpp").check() {
        let report = ran.traced.report();
        let functions = report.sites.iter().flat_map(|site| site.functions()).collect::<Vec<_>>();
        assert!(functions.iter().any(|name| name.contains("std::")), "names are demangled: {functions:?}");
        assert!(!functions.iter().any(|name| name.starts_with("_Z")), "names are demangled: {functions:?}");
    }
}

#[test]
fn stacks_are_whole_without_frame_pointers_and_through_libstdcxx() {
    for flags in [&["-O0", "-std=c++20"] as &[&'static str], &["-O2", "-std=c++20", "-fomit-frame-pointer"]] {
        for ran in case("cpp_no_frame_pointers.cpp").flags(flags).check() {
            let report = ran.traced.report();
            let expect = |text: &str, path: &[&str]| {
                let line = line_containing("cpp_no_frame_pointers.cpp", text);
                let sites: Vec<_> = report.sites_at("cpp_no_frame_pointers.cpp", line).collect();
                assert!(!sites.is_empty());
                for site in sites {
                    assert!(site.passes_through(path), "{:?}", site.functions());
                }
            };
            expect("malloc(19)", &["LosingBuffer::overflow", "write_three", "main"]);
            expect("malloc(23)", &["lose_in_sort", "main"]);
            expect("malloc(size)", &["call", "main"]);
        }
    }
}

#[test]
fn coroutines_allocate_on_whatever_stack_resumes_them() {
    case("cpp_coroutines.cpp").check();
}
