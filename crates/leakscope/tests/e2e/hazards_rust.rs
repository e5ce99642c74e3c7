//! The Rust target programs.

use crate::support::case::case;
use crate::support::marks::line_containing;

#[test]
fn every_way_in_which_rust_keeps_memory_is_booked_to_its_line() {
    for ran in case("rust_leaks.rs").status(12).check() {
        let report = ran.traced.report();
        let line = line_containing("rust_leaks.rs", "Box::leak(Box::new");
        let site = report.sites_at("rust_leaks.rs", line).next().unwrap();
        assert!(
            site.functions().iter().any(|name| name.contains("leak_a_box")),
            "demangled names: {:?}",
            site.functions()
        );
        assert!(
            !site.functions().iter().any(|name| name.starts_with("_ZN") || name.starts_with("_R")),
            "demangled names: {:?}",
            site.functions()
        );
    }
}

#[test]
fn panics_unwind_as_ever() {
    case("rust_panics.rs").check();
}
