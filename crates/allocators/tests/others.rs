//! Other allocators, runtimes and threads in the middle of malloc.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod support;

use leakscope_allocators::glibc::{Version, WalkOptions};
use leakscope_allocators::{Allocator, AllocatorCode, Error, in_allocator, recognise, walk};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use support::{Running, compile};

fn host_version() -> Version {
    let output = Command::new("getconf").arg("GNU_LIBC_VERSION").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (major, minor) = text.trim().strip_prefix("glibc ").unwrap().split_once('.').unwrap();
    Version { major: major.parse().unwrap(), minor: minor.parse().unwrap() }
}

#[test]
fn the_version_comes_from_the_library_and_agrees_with_getconf() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&mut Command::new(compile(directory.path(), "plain", &[])));
    let found = recognise(&running.snapshot());
    let [only] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((only.allocator, only.version), (Allocator::Glibc, Some(host_version())));
    assert!(only.listable && !only.replaces_malloc);
    assert!(only.module.ends_with("libc.so.6"), "{}", only.module);
}

#[test]
fn a_static_executable_is_recognised_as_glibc() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&mut Command::new(compile(directory.path(), "plain", &["-static"])));
    let found = recognise(&running.snapshot());
    assert!(
        matches!(found.as_slice(), [only] if only.allocator == Allocator::Glibc && only.listable),
        "{found:?}"
    );
}

fn assert_unsupported(running: &Running, expected: Allocator, name: &str, advice: &str) {
    let result = walk(&running.snapshot(), &WalkOptions::default(), |_| {});
    let error = result.expect_err("another allocator has the blocks");
    assert!(matches!(&error, Error::Unsupported { allocator, .. } if *allocator == expected), "{error}");
    let text = error.to_string();
    for part in [name, advice, &running.pid().to_string()] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn an_allocator_in_mallocs_place_is_named_with_what_can_still_be_done() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "plain", &[]);
    let library = compile(directory.path(), "fake_jemalloc", &["-shared", "-fPIC"]);
    let running = Running::start(Command::new(program).env("LD_PRELOAD", library));
    assert_unsupported(&running, Allocator::Jemalloc, "jemalloc", "leakscope run");
}

#[test]
fn real_allocators_are_recognised_where_they_are_installed() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "plain", &[]);
    for (library, allocator, name) in [
        ("libjemalloc.so.2", Allocator::Jemalloc, "jemalloc"),
        ("libtcmalloc_minimal.so.4", Allocator::Tcmalloc, "tcmalloc"),
        ("libmimalloc.so.2.0", Allocator::Mimalloc, "mimalloc"),
    ] {
        let library = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
        if library.exists() {
            println!("{}", library.display());
            assert_unsupported(
                &Running::start(Command::new(&program).env("LD_PRELOAD", library)),
                allocator,
                name,
                "leakscope run",
            );
        }
    }
}

#[test]
fn musl_is_recognised_where_it_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/plain.c");
    let program = directory.path().join("plain");
    let Ok(output) = Command::new("musl-gcc").arg("-o").arg(&program).arg(source).output() else { return };
    assert!(output.status.success());
    assert_unsupported(
        &Running::start(&mut Command::new(program)),
        Allocator::Musl,
        "musl",
        "linked with glibc",
    );
}

#[test]
fn runtimes_beside_malloc_are_recognised_and_malloc_is_still_listed() {
    for (program, arguments, allocator) in [
        ("python3", ["-c", "print('END', flush=True); import time; time.sleep(1000)"], Allocator::Python),
        ("node", ["-e", "console.log('END'); setTimeout(() => {}, 1e6)"], Allocator::Node),
    ] {
        if Command::new(program).arg("--version").output().is_err() {
            continue;
        }
        println!("{program}");
        let running = Running::start(Command::new(program).args(arguments));
        let snapshot = running.snapshot();
        let found = recognise(&snapshot);
        assert!(found.iter().any(|known| known.allocator == allocator), "{found:?}");
        let mut blocks = 0;
        let heap = walk(&snapshot, &WalkOptions::default(), |_| blocks += 1).unwrap();
        assert!(blocks > 100);
        assert!(heap.notes.iter().any(|note| note.contains(&allocator.to_string())), "{:?}", heap.notes);
    }
}

#[test]
fn busy_threads_lose_no_block_that_stays_and_idle_ones_are_not_inside_malloc() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "busy", &[]);
    let running = Running::start(Command::new(program).arg("3"));
    let (mut inside, mut torn, mut whole) = (0, 0, 0);
    let (mut messages, mut unsure) = (Vec::new(), 0);
    for _ in 0..20 {
        let snapshot = running.snapshot();
        let mut blocks = BTreeMap::new();
        let heap = walk(&snapshot, &WalkOptions::default(), |block| {
            blocks.insert(block.address, block.size);
        });
        let code = AllocatorCode::new(&snapshot);
        let within: Vec<_> = snapshot.threads.iter().filter(|thread| code.holds(&snapshot, thread)).collect();
        // The first two threads wait in pause().
        for idle in snapshot.threads.iter().take(2) {
            assert!(!code.holds(&snapshot, idle), "{:#x}", idle.registers.pc);
        }
        inside += within.len();
        let heap = heap.unwrap();
        (torn, whole) = if heap.is_torn() { (torn + 1, whole) } else { (torn, whole + 1) };
        messages.extend(heap.torn.iter().cloned());
        let ambiguous: BTreeSet<_> = heap.ambiguous.iter().map(|block| block.address).collect();
        for (address, (size, _)) in &running.live {
            let covered = || {
                heap.ambiguous
                    .iter()
                    .any(|block| (block.address..block.address + block.size).contains(address))
            };
            assert!(
                blocks.get(address) == Some(size) || covered(),
                "{address:#x} of {size} is missing; {:?}",
                heap.torn
            );
        }
        // What the threads have by their own account, which is at most one block each behind or ahead of malloc's.
        let slots: BTreeSet<u64> = (0..running.said["slots"])
            .filter_map(|slot| snapshot.memory.word(running.said["all"] + slot * 8))
            .filter(|&block| block != 0)
            .collect();
        let strangers: Vec<_> = blocks
            .keys()
            .filter(|address| !running.live.contains_key(address) && !slots.contains(address))
            .filter(|address| heap.own.binary_search(address).is_err() && !ambiguous.contains(address))
            .collect();
        // Just returned by malloc, not stored yet: one for each thread.
        assert!(strangers.len() <= 3, "{strangers:x?}, {within:x?}");
        let missing = slots.iter().filter(|&slot| !blocks.contains_key(slot)).count();
        assert!(missing <= 3, "{missing}");
        unsure += ambiguous.len();
        for thread in &snapshot.threads {
            resume(thread.tid);
        }
    }
    let snapshot = running.snapshot();
    assert!(!in_allocator(&snapshot, &snapshot.threads[0]));
    println!("{inside} times inside malloc, {torn} torn, {whole} whole, {unsure} ambiguous, {messages:#?}");
    assert!(inside > 0);
}

fn resume(tid: u32) {
    // SAFETY: a signal to a thread of our own child.
    unsafe { libc::kill(tid as libc::pid_t, libc::SIGCONT) };
}

/// The oracle is the full symbol table of the distribution's debug symbols, where they are installed.
#[test]
fn without_local_symbols_the_code_of_malloc_covers_what_the_debug_symbols_name() {
    let directory = tempfile::tempdir().unwrap();
    let running = Running::start(&mut Command::new(compile(directory.path(), "plain", &[])));
    let snapshot = running.snapshot();
    let module = snapshot.mappings.iter().find(|mapping| mapping.path.ends_with(b"libc.so.6")).unwrap();
    let path = String::from_utf8(module.path.clone()).unwrap();
    let notes =
        String::from_utf8(Command::new("readelf").args(["-n", &path]).output().unwrap().stdout).unwrap();
    let Some((_, id)) = notes.split_once("Build ID: ") else { return };
    let id = id.split_whitespace().next().unwrap();
    let debug = format!("/usr/lib/debug/.build-id/{}/{}.debug", &id[..2], &id[2..]);
    if !Path::new(&debug).exists() {
        return;
    }
    let symbols =
        String::from_utf8(Command::new("nm").args(["-S", &debug]).output().unwrap().stdout).unwrap();
    let code = AllocatorCode::new(&snapshot);
    let mut checked = 0;
    for line in symbols.lines() {
        let [address, _, kind, name] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
        let named = [
            "_int_malloc",
            "_int_free",
            "_int_realloc",
            "sysmalloc",
            "malloc_consolidate",
            "unlink_chunk.isra.0",
        ];
        if kind.eq_ignore_ascii_case("t") && named.contains(&name) {
            let address = module.start + u64::from_str_radix(address, 16).unwrap();
            assert!(code.contains(address), "{name}");
            checked += 1;
        }
        if ["qsort", "printf", "pause", "strlen", "pthread_create", "abort", "fopen"].contains(&name) {
            let address = module.start + u64::from_str_radix(address, 16).unwrap();
            assert!(!code.contains(address), "{name}");
        }
    }
    assert!(checked >= 4);
}
