//! Whatever the profile, the numbers of every format add up to its totals.

mod common;

use common::{add_up, frame, in_service};
use leakscope_profile::*;
use leakscope_report::{TextOptions, flamegraph, folded, json, pprof, text};
use proptest::prelude::*;

/// Sites over a few addresses, so that many merge, and names with everything that a format could trip over.
fn profiles() -> impl Strategy<Value = (Profile, Symbols)> {
    let number = 0..1u64 << 40;
    let site = (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(0..12u64, 0..6),
        prop::array::uniform7(prop_oneof![Just(0), number]),
    );
    let name = prop_oneof![
        Just("malloc".to_owned()),
        Just("f;g h".to_owned()),
        Just("a\nb 12".to_owned()),
        Just(String::new()),
        "\\PC{0,12}",
        any::<String>(),
    ];
    (prop::collection::vec(site, 0..30), prop::collection::vec((name, 0..3u32), 0..10)).prop_map(
        |(sites, names)| {
            let mut symbols = Symbols::default();
            for (index, (name, line)) in names.iter().enumerate() {
                symbols.frames.insert(in_service(index as u64), vec![frame(name, name, *line)]);
            }
            let site = |(mapped, truncated, stack, n): (bool, bool, Vec<u64>, [u64; 7])| Site {
                kind: if mapped { Kind::Mapped } else { Kind::Heap },
                truncated,
                stack: stack.into_iter().map(in_service).collect(),
                counts: common::counts((n[0], n[1]), (n[2], n[3]), (n[4], n[5]), n[6]),
                samples: Samples::default(),
            };
            let mut profile = Profile { sites: sites.into_iter().map(site).collect(), ..Profile::default() };
            add_up(&mut profile);
            (profile, symbols)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn folded_lines_add_up_to_the_totals_of_each_view((profile, symbols) in profiles()) {
        for view in View::ALL {
            let mut sum = 0;
            let mut stacks = std::collections::HashSet::new();
            for line in folded(&profile, &symbols, view).lines() {
                let (stack, value) = line.rsplit_once(' ').expect("a stack and a number");
                prop_assert!(stack.split(';').all(|frame| !frame.is_empty()), "{line}");
                prop_assert!(stacks.insert(stack.to_owned()), "{line} comes twice");
                sum += value.parse::<u64>().expect("a number");
            }
            prop_assert_eq!(sum, view.value(&profile.totals.counts) + view.value(&profile.mapped));
        }
    }

    #[test]
    fn json_sites_of_each_kind_add_up_to_the_totals((profile, symbols) in profiles()) {
        let report = json(&profile, &symbols, View::InUse);
        for (kind, totals) in [("heap", &report["totals"]), ("mapped", &report["mapped"])] {
            for field in [
                "inuse_bytes", "inuse_blocks", "allocated_bytes", "allocated_blocks", "peak_bytes", "peak_blocks",
                "temporary_blocks",
            ] {
                let sites = report["sites"].as_array().into_iter().flatten();
                let sum: u64 =
                    sites.filter(|site| site["kind"] == kind).filter_map(|site| site[field].as_u64()).sum();
                prop_assert_eq!(Some(sum), totals[field].as_u64(), "{} {}", kind, field);
            }
        }
    }

    #[test]
    fn flame_graph_boxes_own_the_totals_of_each_view((profile, symbols) in profiles()) {
        for view in View::ALL {
            let svg = flamegraph(&profile, &symbols, view, "");
            let line = svg.lines().find_map(|line| line.strip_prefix("const data = ")?.strip_suffix(';'));
            let data: serde_json::Value = serde_json::from_str(line.expect("the data")).expect("JSON");
            let boxes = data["boxes"].as_array().expect("boxes");
            let owned: u64 = boxes.chunks(4).filter_map(|flame| flame[3].as_u64()).sum();
            prop_assert_eq!(owned, view.value(&profile.totals.counts) + view.value(&profile.mapped));
        }
    }

    #[test]
    fn no_name_acts_in_a_terminal_or_breaks_a_line((profile, symbols) in profiles()) {
        for view in View::ALL {
            let report = text(&profile, &symbols, &TextOptions { view, top: 5, color: false });
            let folded = folded(&profile, &symbols, view);
            let svg = flamegraph(&profile, &symbols, view, "title");
            for output in [report, folded, svg] {
                prop_assert!(output.chars().all(|c| c == '\n' || !c.is_control()), "{output:?}");
            }
        }
    }
}

/// Numbers as only a corrupt file has them.
#[test]
fn sums_beyond_64_bits_break_no_format() {
    let most = common::counts((u64::MAX, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, u64::MAX), u64::MAX);
    let site =
        |address, kind| Site { kind, stack: vec![in_service(address)], counts: most, ..Site::default() };
    let sites = vec![site(1, Kind::Heap), site(2, Kind::Heap), site(u64::MAX >> 1, Kind::Mapped)];
    let timeline = [0.0, -1.0, f64::MAX, f64::NAN, f64::INFINITY, 3.0]
        .map(|seconds| TimelinePoint {
            seconds,
            inuse_bytes: u64::MAX,
            rss_bytes: u64::MAX,
            allocated_bytes: 0,
        })
        .to_vec();
    let modules = vec![Module { start: u64::MAX, end: 0, bias: u64::MAX, ..Module::default() }];
    let mut profile = Profile { sites, timeline, modules, ..Profile::default() };
    add_up(&mut profile);
    let symbols = Symbols::default();
    for view in View::ALL {
        assert!(text(&profile, &symbols, &TextOptions { view, ..TextOptions::default() }).contains("#1"));
        assert_eq!(json(&profile, &symbols, view)["totals"]["inuse_bytes"], u64::MAX);
        assert_eq!(folded(&profile, &symbols, view).lines().count(), 3);
        assert!(flamegraph(&profile, &symbols, view, "").contains("</svg>"));
        assert!(!pprof(&profile, &symbols, view).is_empty());
    }
}
