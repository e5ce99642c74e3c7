//! Profiles that several tests render.
#![allow(dead_code, reason = "each test file uses some of them")]

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
