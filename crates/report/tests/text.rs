//! The text report, for people.

mod common;

use common::{add_up, counts, frame, in_libc, in_service, sampled, service};
use leakscope_profile::*;
use leakscope_report::{TextOptions, text};

fn plain(profile: &Profile, symbols: &Symbols) -> String {
    text(profile, symbols, &TextOptions::default())
}

fn one_site(counts: Counts) -> (Profile, Symbols) {
    let mut symbols = Symbols::default();
    symbols.frames.insert(in_service(1), vec![frame("leak", "a.c", 3)]);
    let site = Site { stack: vec![in_service(1)], counts, ..Site::default() };
    let mut profile = Profile { sites: vec![site], ..Profile::default() };
    profile.process.end = End::Exited(0);
    add_up(&mut profile);
    (profile, symbols)
}

#[test]
fn the_report_answers_sums_up_and_shows_each_site() {
    let (profile, symbols) = service();
    let report = plain(&profile, &symbols);
    println!("{report}");
    let expected = include_str!("expected/service.txt");
    assert_eq!(report, expected);
}

#[test]
fn estimates_are_marked_as_such_with_their_standard_errors() {
    let (profile, symbols) = service();
    let report = plain(&sampled(profile), &symbols);
    println!("{report}");
    assert_eq!(report, include_str!("expected/service_sampled.txt"));
}

#[test]
fn that_no_sample_is_in_use_is_not_taken_for_that_nothing_is() {
    let (mut profile, symbols) = one_site(counts((0, 0), (10, 1), (10, 1), 0));
    profile.sampling = Some(Sampling { interval_bytes: 1, samples: 1 });
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("No sampled allocation was left unfreed: 1 sample, all freed.\n"), "{report}");
    profile.process.end = End::Running;
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("No sampled allocation is in use: 1 sample so far, all freed.\n"), "{report}");
    let sampling = Some(Sampling { interval_bytes: 1, samples: 0 });
    let report = plain(&Profile { sampling, ..Profile::default() }, &symbols);
    assert!(report.starts_with("No allocation was sampled.\n"), "{report}");
}

#[test]
fn nothing_unfreed_says_so() {
    let (mut profile, symbols) = one_site(counts((0, 0), (10, 1), (10, 1), 0));
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("Nothing was left unfreed: 1 allocation, all freed.\n"), "{report}");
    assert!(!report.contains("#1"), "{report}");
    profile.totals.missed_events = 2;
    let report = plain(&profile, &symbols);
    assert!(report.contains("all freed, as far as recorded."), "{report}");
    assert!(report.contains("2 events: allocator calls"), "{report}");
    let report = plain(&Profile::default(), &Symbols::default());
    assert!(report.starts_with("No heap memory was allocated."), "{report}");
}

#[test]
fn one_byte_was_and_two_bytes_were_never_freed() {
    let (profile, symbols) = one_site(counts((1, 1), (1, 1), (1, 1), 0));
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("1 byte in 1 block was never freed; all from leak at a.c:3\n"), "{report}");
    let (mut profile, symbols) = one_site(counts((2, 2), (2, 2), (2, 2), 0));
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("2 bytes in 2 blocks were never freed; all from leak at a.c:3\n"), "{report}");
    profile.process.end = End::Running;
    let report = plain(&profile, &symbols);
    assert!(report.starts_with("2 bytes in 2 blocks are in use, not freed so far;"), "{report}");
    assert!(!report.contains("never"), "{report}");
}

#[test]
fn each_view_sorts_by_its_own_number_and_top_cuts_the_list() {
    let (profile, symbols) = service();
    for (view, first) in [
        (View::InUse, "#1 13.0 MiB (13,631,488 bytes) in 1,000 blocks, 93%"),
        (View::Peak, "#1 14.0 MiB (14,680,064 bytes) in 1,050 blocks, 82%"),
        (View::Allocated, "#1 40.0 MiB (41,943,040 bytes) in 9,000 blocks, 66%"),
        (View::Temporary, "#1 8,000 temporary blocks, 99.9%"),
    ] {
        let report = text(&profile, &symbols, &TextOptions { view, top: 1, color: false });
        assert!(report.contains(first), "{view}: {report}");
        assert!(!report.contains("#2"), "{view}: {report}");
        assert!(report.contains("more site"), "{view}: {report}");
    }
}

#[test]
fn the_blame_goes_past_libraries_and_wrappers_but_they_stay_in_the_stack() {
    let (mut profile, mut symbols) = one_site(counts((5, 1), (5, 1), (5, 1), 0));
    let inner = [frame("xmalloc", "lib/xmalloc.c", 7), frame("std::string::append(char)", "", 0)];
    symbols.frames.insert(in_service(1), [&inner[..], &[frame("load_config", "src/config.cc", 31)]].concat());
    let report = plain(&profile, &symbols);
    assert!(report.contains("all from load_config at src/config.cc:31\n"), "{report}");
    assert!(report.contains("       xmalloc"), "{report}");
    assert!(report.contains("     → load_config"), "{report}");
    // Where there is nothing else, the innermost name.
    symbols.frames.insert(in_service(1), inner.to_vec());
    assert!(plain(&profile, &symbols).contains("all from xmalloc at lib/xmalloc.c:7\n"));
    symbols.frames.clear();
    profile.modules = vec![Module { path: "/srv/service".into(), ..Module::default() }];
    assert!(plain(&profile, &symbols).contains("all from service+0x555555554001\n"));
}

#[test]
fn a_stripped_program_is_blamed_by_module_and_offset_rather_than_the_c_library_around_it() {
    let (mut profile, symbols) = service();
    let mut site = profile.sites.swap_remove(0);
    // Of `strdup` in the C library, two functions of the program, the C library's start code and `_start`.
    let start = site.stack.split_off(site.stack.len() - 3);
    site.stack = [vec![in_libc(0x300), in_service(0x1110), in_service(0x1210)], start].concat();
    profile.sites = vec![site];
    add_up(&mut profile);
    let mut stripped = Symbols::default();
    let names = symbols.frames.into_iter().filter(|(pc, _)| pc.module == Some(1));
    stripped.frames.extend(names);
    let strdup = Frame {
        module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".into()),
        ..frame("strdup", "string.c", 1)
    };
    stripped.frames.insert(in_libc(0x300), vec![strdup]);
    let report = plain(&profile, &stripped);
    assert!(report.contains("all from service+0x1110\n"), "{report}");
    assert!(report.contains("       strdup") && report.contains("     → service+0x1110"), "{report}");
    assert!(!report.contains("__libc_start") && !report.contains("service+0x1050"), "{report}");
}

#[test]
fn a_very_deep_stack_is_shown_without_its_middle() {
    let mut symbols = Symbols::default();
    let stack: Vec<_> = (0..500).map(in_service).collect();
    for (index, pc) in stack.iter().enumerate() {
        symbols.frames.insert(*pc, vec![frame(&format!("f{index}"), "a.c", 1)]);
    }
    let site = Site { stack, counts: counts((5, 1), (5, 1), (5, 1), 0), ..Site::default() };
    let mut profile = Profile { sites: vec![site], ..Profile::default() };
    add_up(&mut profile);
    let report = plain(&profile, &symbols);
    assert!(report.contains("… 460 frames …"), "{report}");
    for (name, shown) in
        [("f0 ", true), ("f29 ", true), ("f30 ", false), ("f489 ", false), ("f490 ", true), ("f499 ", true)]
    {
        assert_eq!(report.contains(&format!(" {name}")), shown, "{name}: {report}");
    }
}

#[test]
fn hostile_names_cannot_reach_the_terminal() {
    let (mut profile, mut symbols) = one_site(counts((5, 1), (5, 1), (5, 1), 0));
    let bad = "evil\x1b]0;owned\x07\u{9b}31m\r\n#1 fake\u{202e}";
    symbols.frames.insert(in_service(1), vec![frame(bad, bad, 3)]);
    symbols.missing = vec![MissingDebugInfo {
        path: bad.into(),
        build_id: bad.into(),
        package: Some(bad.into()),
        reason: bad.into(),
    }];
    profile.process.command = vec![bad.into(), "x".repeat(1 << 20)];
    profile.notes = vec![bad.into()];
    let report = plain(&profile, &symbols);
    assert!(report.chars().all(|c| c == '\n' || !c.is_control()), "{report:?}");
    assert!(!report.contains('\u{202e}'), "{report:?}");
    assert!(!report.lines().any(|line| line.starts_with("#1 fake")), "{report}");
    assert!(report.len() < 10_000, "{}", report.len());
    let colored = text(&profile, &symbols, &TextOptions { color: true, ..TextOptions::default() });
    assert!(colored.contains("\x1b[1m"), "{colored:?}");
    let mut uncolored = colored;
    for attribute in ["0", "1", "2", "33", "1;31"] {
        uncolored = uncolored.replace(&format!("\x1b[{attribute}m"), "");
    }
    assert_eq!(uncolored.trim_end(), report.trim_end());
}
