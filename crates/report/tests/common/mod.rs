//! Profiles that several tests render.
#![allow(dead_code, reason = "each test file uses some of them")]

use leakscope_leaks::{
    Ages, Amount, BlockSource, Chain, Change, ChangeStatus, Cohort, Comparison, ContentHint, HeldBefore,
    Kind as LeakKind, KindSet, LeakRecord, LeakReport, Origin, Outcome, Retained, Retention, SizeRange,
    SnapshotKind, Source, Staleness, Summary, SuppressionUse,
};
use leakscope_profile::*;
use std::time::{Duration, UNIX_EPOCH};

/// Start of the service's module in [`service`].
pub const SERVICE_BIAS: u64 = 0x5555_5555_4000;
/// Start of the C library in [`service`].
pub const LIBC_BIAS: u64 = 0x7fff_f7c0_0000;

pub fn in_service(offset: u64) -> CodeAddress {
    CodeAddress { module: Some(0), address: SERVICE_BIAS + offset }
}

pub fn in_libc(offset: u64) -> CodeAddress {
    CodeAddress { module: Some(1), address: LIBC_BIAS + offset }
}

pub fn frame(function: &str, file: &str, line: u32) -> Frame {
    Frame {
        function: Some(function.to_owned()),
        file: Some(file.to_owned()),
        line: Some(line),
        module: Some("/srv/service".to_owned()),
        ..Frame::default()
    }
}

pub fn inlined(frame: Frame) -> Frame {
    Frame { inlined: true, ..frame }
}

pub fn counts(inuse: (u64, u64), allocated: (u64, u64), peak: (u64, u64), temporary: u64) -> Counts {
    Counts {
        inuse_bytes: inuse.0,
        inuse_blocks: inuse.1,
        allocated_bytes: allocated.0,
        allocated_blocks: allocated.1,
        peak_bytes: peak.0,
        peak_blocks: peak.1,
        temporary_blocks: temporary,
    }
}

/// Sets the totals to the sums over the sites.
pub fn add_up(profile: &mut Profile) {
    profile.totals.counts = Counts::default();
    profile.mapped = Counts::default();
    for site in &profile.sites {
        match site.kind {
            Kind::Heap => profile.totals.counts += site.counts,
            Kind::Mapped => profile.mapped += site.counts,
        }
    }
}

/// A small C++ service: a cache that only grows, called at two addresses of one line; a buffer through the standard
/// library; a lost string of a stripped library; a mapping.
pub fn service() -> (Profile, Symbols) {
    let mut symbols = Symbols::default();
    let mut name = |pc: CodeAddress, frames: Vec<Frame>| {
        symbols.frames.insert(pc, frames);
    };
    let libc = |function: &str| Frame {
        function: Some(function.to_owned()),
        module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()),
        ..Frame::default()
    };
    name(in_service(0x1100), vec![frame("cache_insert", "src/cache.c", 42)]);
    name(in_service(0x1120), vec![frame("cache_insert", "src/cache.c", 42)]);
    name(
        in_service(0x1200),
        vec![
            inlined(frame("parse_header", "src/http.c", 17)),
            frame("handle_request(Request const&)", "src/server.c", 120),
        ],
    );
    name(in_service(0x1300), vec![frame("main", "src/main.c", 9)]);
    name(
        in_service(0x1400),
        vec![
            inlined(frame("operator new(unsigned long)", "/usr/include/c++/12/new", 5)),
            inlined(frame(
                "std::vector<char, std::allocator<char> >::reserve(unsigned long)",
                "/usr/include/c++/12/bits/vector.tcc",
                79,
            )),
            frame("Worker::fill()", "src/worker.cc", 33),
        ],
    );
    name(in_libc(0x100), vec![libc("__libc_start_call_main")]);
    name(in_libc(0x200), vec![libc("__libc_start_main")]);
    name(in_service(0x1050), vec![Frame { file: None, line: None, ..frame("_start", "", 0) }]);
    let start = [in_libc(0x100), in_libc(0x200), in_service(0x1050)];
    let stack = |inner: &[CodeAddress]| [inner, &start].concat();
    let site = |stack: Vec<CodeAddress>, counts| Site { stack, counts, ..Site::default() };
    let mib = 1 << 20;
    let mut profile = Profile {
        process: Process {
            pid: 4711,
            start_time: Some(UNIX_EPOCH + Duration::from_millis(1_790_000_000_250)),
            command: ["/srv/service", "--port", "80", "two words"].map(str::to_owned).to_vec(),
            executable: "/srv/service".to_owned(),
            end: End::Exited(0),
        },
        timeline: (0..40)
            .map(|second| TimelinePoint {
                seconds: f64::from(second) / 2.0,
                inuse_bytes: u64::from(second as u32) * mib / 3,
                rss_bytes: 20 * mib,
                allocated_bytes: u64::from(second as u32) * mib,
            })
            .collect(),
        modules: vec![
            Module {
                path: "/srv/service".to_owned(),
                build_id: vec![0xab; 20],
                start: SERVICE_BIAS,
                end: SERVICE_BIAS + 0x10_000,
                bias: SERVICE_BIAS,
                unloaded: false,
            },
            Module {
                path: "/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned(),
                build_id: vec![0xcd; 20],
                start: LIBC_BIAS,
                end: LIBC_BIAS + 0x20_0000,
                bias: LIBC_BIAS,
                unloaded: false,
            },
            Module {
                path: "/opt/lib/libstripped.so.1".to_owned(),
                start: 0x7000_0000_0000,
                end: 0x7000_0001_0000,
                bias: 0x7000_0000_0000,
                ..Module::default()
            },
        ],
        sites: vec![
            site(
                stack(&[in_service(0x1100), in_service(0x1200), in_service(0x1300)]),
                counts((9 * mib, 700), (10 * mib, 800), (9 * mib, 700), 0),
            ),
            site(
                stack(&[in_service(0x1120), in_service(0x1200), in_service(0x1300)]),
                counts((4 * mib, 300), (5 * mib, 400), (5 * mib, 350), 3),
            ),
            site(
                stack(&[in_service(0x1400), in_service(0x1300)]),
                counts((mib, 33), (40 * mib, 9_000), (2 * mib, 66), 8_000),
            ),
            Site {
                truncated: true,
                ..site(
                    vec![CodeAddress { module: Some(2), address: 0x7000_0000_1234 }],
                    counts((24, 1), (24, 1), (24, 1), 0),
                )
            },
            site(stack(&[in_service(0x1300)]), counts((0, 0), (6 * mib, 6), (mib, 1), 6)),
            Site {
                kind: Kind::Mapped,
                ..site(stack(&[in_service(0x1300)]), counts((mib, 1), (3 * mib, 3), (2 * mib, 2), 0))
            },
        ],
        notes: vec!["Tracing stopped early: the disk was full.".to_owned()],
        ..Profile::default()
    };
    add_up(&mut profile);
    symbols.missing = vec![MissingDebugInfo {
        path: "/opt/lib/libstripped.so.1".to_owned(),
        build_id: "0011aabb".to_owned(),
        package: Some("libstripped1-dbgsym".to_owned()),
        reason: "stripped".to_owned(),
    }];
    (profile, symbols)
}

/// The same profile as if it came from samples: nine, five of them of blocks in use.
pub fn sampled(mut profile: Profile) -> Profile {
    const BYTES: f64 = (1u64 << 40) as f64;
    profile.sampling = Some(Sampling { interval_bytes: 512 << 10, samples: 9 });
    let samples = |allocated, inuse, inuse_bytes_variance, inuse_blocks_variance| Samples {
        allocated,
        inuse,
        inuse_bytes_variance,
        inuse_blocks_variance,
    };
    let known = [
        samples(2, 2, BYTES / 4.0, 400.0),
        samples(1, 1, BYTES / 4.0, 100.0),
        samples(3, 1, BYTES / 4.0, 100.0),
        samples(1, 1, BYTES / 4.0, 300.0),
        samples(2, 0, 0.0, 0.0),
    ];
    for (site, samples) in profile.sites.iter_mut().zip(known) {
        site.samples = samples;
        profile.totals.samples += samples;
    }
    profile
}

/// A scan of the service: a cache that lost its lists, a growing set of sessions known only by their class, a thread's
/// storage, and what is still reachable; compared with a scan a minute before.
pub fn scan() -> LeakReport {
    let path: Vec<Frame> = vec![
        frame("cache_insert", "src/cache.c", 42),
        inlined(frame("parse_header", "src/http.c", 17)),
        frame("handle_request(Request const&)", "src/server.c", 120),
        frame("main", "src/main.c", 9),
        frame("__libc_start_call_main", "", 0),
    ];
    let record = LeakRecord {
        kind: LeakKind::Definite,
        bytes: 1_048_600,
        direct_bytes: 1_048_576,
        indirect_bytes: 24,
        indirect_blocks: 1,
        blocks: 32,
        stack: path,
        truncated: false,
        trimmed: 0,
        allocator: Some("malloc".to_owned()),
        type_name: None,
        sizes: SizeRange { min: 32_768, max: 32_768 },
        content: Some(ContentHint::MostlyPointers),
        contents: Some(b"GET / HTTP/1.1\r\n\x1b[31m".to_vec()),
        holders: Vec::new(),
        ages: Some(Ages { youngest: Duration::from_secs(3), oldest: Duration::from_secs(7_380) }),
        examples: vec![0x5555_5575_92a0],
        suppressed_by: None,
    };
    let small = LeakRecord {
        bytes: 24,
        direct_bytes: 24,
        indirect_bytes: 0,
        indirect_blocks: 0,
        blocks: 1,
        sizes: SizeRange { min: 24, max: 24 },
        content: None,
        contents: None,
        ages: None,
        ..record.clone()
    };
    let chain = |blocks| Chain {
        steps: ["global sessions in service", "Session.cache", "entries[…]"].map(str::to_owned).to_vec(),
        blocks,
    };
    let records = vec![
        LeakRecord { kind: LeakKind::Indirect, ..small.clone() },
        LeakRecord {
            stack: vec![frame("strdup", "", 0)],
            suppressed_by: Some("mine".to_owned()),
            ..small.clone()
        },
        LeakRecord {
            kind: LeakKind::Possible,
            bytes: 320,
            direct_bytes: 320,
            stack: vec![Frame {
                function: Some("pthread_create".to_owned()),
                module: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".to_owned()),
                ..Frame::default()
            }],
            truncated: true,
            ..small.clone()
        },
        LeakRecord {
            bytes: 2304,
            direct_bytes: 2304,
            blocks: 48,
            stack: Vec::new(),
            type_name: Some("net::Session".to_owned()),
            sizes: SizeRange { min: 40, max: 56 },
            content: Some(ContentHint::Pointers),
            examples: vec![0x5555_5575_0010, 0x5555_5575_0050],
            ..small.clone()
        },
        LeakRecord {
            kind: LeakKind::Reachable,
            bytes: 500_000,
            direct_bytes: 500_000,
            blocks: 5_000,
            stack: vec![frame("session_new", "src/session.c", 7), frame("main", "src/main.c", 9)],
            sizes: SizeRange { min: 100, max: 100 },
            holders: vec![chain(4_990), Chain { steps: vec!["stack of worker()".to_owned()], blocks: 0 }],
            ..small.clone()
        },
        record.clone(),
    ];
    let amount = |bytes, blocks| Amount { bytes, blocks };
    let gone = LeakRecord { stack: vec![frame("tmp_open", "src/tmp.c", 3)], ..small };
    LeakReport {
        process: Process { end: End::Running, ..service().0.process },
        outcome: Outcome::Leaks,
        errors: KindSet::DEFAULT_ERRORS,
        source: Source {
            snapshot: SnapshotKind::Fork,
            blocks: BlockSource::Allocator { name: "glibc 2.36".to_owned() },
        },
        pause: Some(Duration::from_micros(14_500)),
        scan: Duration::from_millis(230),
        summary: Summary {
            definite: amount(1_050_880, 80),
            indirect: amount(24, 1),
            possible: amount(320, 1),
            reachable: amount(500_000, 5_000),
            suppressed: amount(24, 1),
        },
        records,
        suppressions: vec![SuppressionUse {
            name: "mine".to_owned(),
            origin: Origin { path: "/etc/leaks.supp".into(), line: 12 },
            records: 1,
            amount: amount(24, 1),
        }],
        comparison: Some(Comparison {
            seconds: 60.0,
            totals: vec![(LeakKind::Definite, 65_536, 2), (LeakKind::Indirect, 0, 0)],
            lost: amount(65_536, 2),
            lost_bytes_per_minute: 65_536.0,
            lost_blocks_per_minute: 2.0,
            changes: vec![
                Change {
                    status: ChangeStatus::Grown,
                    record: Some(5),
                    previous: Some(4),
                    bytes: 65_536,
                    blocks: 2,
                    bytes_per_minute: 65_536.0,
                    blocks_per_minute: 2.0,
                    held_before: vec![HeldBefore { chain: chain(2), bytes: 65_536 }],
                    ..Change::default()
                },
                Change {
                    status: ChangeStatus::Gone,
                    previous: Some(0),
                    was: Some(Box::new(gone)),
                    bytes: -24,
                    blocks: -1,
                    bytes_per_minute: -24.0,
                    blocks_per_minute: -1.0,
                    ..Change::default()
                },
            ],
        }),
        retention: Some(Retention {
            seen: Duration::from_secs(7_200),
            scans: 3,
            staleness: Some(Staleness {
                waited: Duration::from_secs(10),
                resident: 1_048_576,
                referenced: 262_144,
            }),
            records: vec![Retained {
                record: 4,
                cohorts: vec![
                    Cohort {
                        oldest: Duration::from_secs(7_200),
                        youngest: Duration::from_secs(3_600),
                        live: amount(240_000, 2_400),
                    },
                    Cohort {
                        oldest: Duration::from_secs(3_600),
                        youngest: Duration::ZERO,
                        live: amount(260_000, 2_600),
                    },
                ],
                allocated: Some(amount(9_000_000, 90_000)),
                grown_scans: 2,
                grown_bytes: 20_000,
                grown_blocks: 200,
                bytes_per_minute: 4_166.0,
                stale: Some(0.75),
            }],
        }),
        notes: vec!["2 chunks were ambiguous: a thread was inside malloc.".to_owned()],
        missing: service().1.missing,
    }
}
