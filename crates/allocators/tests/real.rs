//! Real processes, compared block by block with what they say of themselves.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod support;

use leakscope_allocators::glibc::{Heap, WalkOptions, walk};
use leakscope_reach::Block;
use std::collections::BTreeMap;
use std::process::Command;
use support::{Running, compile};

const BY_LOOK: WalkOptions = WalkOptions { debug_symbols: false, version: None };

fn walked(running: &Running, options: &WalkOptions) -> (Heap, BTreeMap<u64, u64>) {
    let snapshot = running.snapshot();
    let mut blocks = BTreeMap::new();
    let heap = walk(&snapshot, options, |block: Block| {
        let before = blocks.insert(block.address, block.size);
        assert_eq!(before, None, "{:#x} came twice", block.address);
    })
    .unwrap();
    (heap, blocks)
}

/// Every block that the program has was found with its size, and nothing else but the library's own.
fn assert_exact(running: &Running, heap: &Heap, blocks: &BTreeMap<u64, u64>) {
    let missing: Vec<_> = running.live.iter().filter(|(address, _)| !blocks.contains_key(address)).collect();
    assert!(
        missing.is_empty(),
        "{} live blocks are missing, first {:x?}; {heap:#x?}",
        missing.len(),
        missing.first()
    );
    for (address, (size, what)) in &running.live {
        assert_eq!(blocks.get(address), Some(size), "size of {address:#x}, {what}");
    }
    let own = |address: &u64| heap.own.binary_search(address).is_ok();
    let extra: Vec<_> =
        blocks.iter().filter(|(address, _)| !running.live.contains_key(address) && !own(address)).collect();
    // A static executable's start-up code allocates (search paths for dlopen and such) before main does.
    let extra: Vec<_> = extra.into_iter().filter(|(address, _)| !running.is_before_main(**address)).collect();
    assert!(
        extra.is_empty(),
        "{} blocks are not the program's: {:x?}; {heap:#x?}",
        extra.len(),
        &extra[..extra.len().min(9)]
    );
    assert_eq!(heap.torn, Vec::<String>::new());
    for block in blocks {
        let inside = heap.areas.iter().any(|area| area.contains(block.0) && block.0 + block.1 <= area.end);
        assert!(inside, "{block:x?} is in no area");
    }
}

/// Sums agree with mallinfo2(), which counts chunks in per-thread caches as used.
fn assert_sums(running: &Running, heap: &Heap) {
    let said = |key: &str| running.said[key];
    let main = &heap.arenas[0];
    assert_eq!(heap.mmapped_blocks, said("mapped_blocks"));
    assert_eq!(heap.mmapped_bytes, said("mapped_bytes"));
    // mallinfo sums arenas but top and fastbins likewise; keepcost is the main arena's alone.
    let sum = |field: fn(&leakscope_allocators::glibc::ArenaSummary) -> u64| {
        heap.arenas.iter().map(field).sum::<u64>()
    };
    assert_eq!(sum(|arena| arena.system_bytes), said("main_system"));
    assert_eq!(sum(|arena| arena.free_bytes + arena.top_bytes + arena.fastbin_bytes), said("main_free"));
    assert_eq!(sum(|arena| arena.fastbin_bytes), said("main_fastbins"));
    assert_eq!(main.top_bytes, said("main_top"));
}

#[test]
fn all_blocks_of_a_program_with_several_arenas_are_found_and_no_others() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    let running = Running::start(Command::new(program).arg("4"));
    for options in [WalkOptions::default(), BY_LOOK] {
        let (heap, blocks) = walked(&running, &options);
        assert_exact(&running, &heap, &blocks);
        assert_sums(&running, &heap);
        assert!(heap.arenas.len() > 1, "{heap:#x?}");
        assert!(heap.arenas.iter().any(|arena| arena.tcache_bytes > 0));
    }
}

#[test]
fn a_single_thread_is_enough_to_find_everything() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    for threads in ["-1", "0"] {
        let running = Running::start(Command::new(&program).arg(threads));
        let (heap, blocks) = walked(&running, &BY_LOOK);
        assert_exact(&running, &heap, &blocks);
        assert_sums(&running, &heap);
        let by_look = heap.located.iter().any(|found| found.contains("by its look"));
        assert_eq!(by_look, threads == "-1", "{:?}", heap.located);
    }
}

#[test]
fn memory_that_others_take_from_brk_is_a_gap_in_the_heap() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    let running = Running::start(Command::new(program).args(["2", "1"]));
    for options in [WalkOptions::default(), BY_LOOK] {
        let (heap, blocks) = walked(&running, &options);
        assert_exact(&running, &heap, &blocks);
        assert!(heap.arenas[0].heaps.len() >= 2, "{:x?}", heap.arenas[0].heaps);
    }
}

#[test]
fn a_statically_linked_glibc_is_found_in_the_executable() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &["-static", "-s", "-DSTATIC"]);
    let running = Running::start(Command::new(program).args(["3", "1"]));
    let (heap, blocks) = walked(&running, &WalkOptions::default());
    assert_exact(&running, &heap, &blocks);
}

#[test]
fn tunables_change_nothing_about_exactness() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    for tunables in [
        "glibc.malloc.tcache_count=0",
        "glibc.malloc.tcache_count=100:glibc.malloc.tcache_max=500",
        "glibc.malloc.mxfast=0",
        "glibc.malloc.mxfast=160",
        "glibc.malloc.arena_max=1",
        "glibc.malloc.mmap_max=0",
        "glibc.malloc.mmap_threshold=4096",
        "glibc.malloc.hugetlb=1",
        "glibc.malloc.perturb=165",
    ] {
        let running = Running::start(Command::new(&program).args(["3", "1"]).env("GLIBC_TUNABLES", tunables));
        let (heap, blocks) = walked(&running, &BY_LOOK);
        println!("{tunables}");
        assert_exact(&running, &heap, &blocks);
    }
}

#[test]
fn an_arena_whose_break_cannot_move_is_found_in_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    // A program started through its loader gets a break right below the loader's or the libraries' mappings.
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let running = Running::start(Command::new(loader).arg(&program).args(["2", "2"]));
    let (heap, blocks) = walked(&running, &BY_LOOK);
    assert_exact(&running, &heap, &blocks);
    assert_sums(&running, &heap);
    assert!(heap.arenas[0].heaps.len() > 2, "{:x?}", heap.arenas[0]);
}

/// Other versions of glibc: directories of their build trees (with `libc.so` and `elf/ld.so`), separated by colons, in
/// `LEAKSCOPE_TEST_GLIBCS`. Nothing is tested without.
#[test]
fn other_versions_of_glibc_are_walked_as_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let Ok(builds) = std::env::var("LEAKSCOPE_TEST_GLIBCS") else { return };
    for build in builds.split(':') {
        let gcc = |file: &str| {
            let output = Command::new("gcc").arg(format!("-print-file-name={file}")).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let own = |file: &str| format!("{build}/{file}");
        let mut parts = vec![own("csu/crt1.o"), own("csu/crti.o"), gcc("crtbegin.o"), own("libc.so")];
        // Threads were a library of their own until 2.34.
        parts.push(own("nptl/libpthread.so"));
        parts.extend([own("libc_nonshared.a"), own("elf/ld.so"), gcc("crtend.o"), own("csu/crtn.o")]);
        parts.retain(|part| std::path::Path::new(part).exists());
        let mut flags = vec!["-DOLD", "-no-pie", "-fno-stack-protector", "-nostdlib", "-nostartfiles"];
        flags.extend(parts.iter().map(String::as_str));
        let program = compile(directory.path(), "patterns", &flags);
        let libraries = directory.path().join(build.replace('/', "-"));
        std::fs::create_dir(&libraries).unwrap();
        for (built, installed) in [("libc.so", "libc.so.6"), ("nptl/libpthread.so", "libpthread.so.0")] {
            let _ = std::fs::copy(own(built), libraries.join(installed));
        }
        for arguments in [["-1", "0"], ["0", "0"], ["4", "0"], ["3", "1"], ["2", "2"]] {
            let mut command = Command::new(own("elf/ld.so"));
            command.arg("--library-path").arg(&libraries).arg(&program).args(arguments);
            // Where there are large lists of the cache (2.42) and mmapped chunks in them (2.43), use them.
            if arguments == ["4", "0"] {
                command.env(
                    "GLIBC_TUNABLES",
                    "glibc.malloc.tcache_max=4194303:glibc.malloc.mmap_threshold=65536",
                );
            }
            let running = Running::start(&mut command);
            let (heap, blocks) = walked(&running, &BY_LOOK);
            println!("{build} {arguments:?}: {:?}, {} blocks, {:?}", heap.version, blocks.len(), heap.notes);
            assert_exact(&running, &heap, &blocks);
        }
    }
}

#[test]
fn a_second_c_library_in_its_own_namespace_is_walked_too() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "namespace", &[]);
    let library = compile(directory.path(), "namespace_library", &["-shared", "-fPIC"]);
    let running = Running::start(Command::new(program).arg(library));
    let (heap, blocks) = walked(&running, &BY_LOOK);
    let missing =
        running.live.iter().filter(|&(address, (size, _))| blocks.get(address) != Some(size)).count();
    assert_eq!(missing, 0, "{heap:#x?}");
    assert_eq!(heap.torn, Vec::<String>::new());
    // Beside the program's: what the loader and the libraries keep of the namespace. None is one that was freed.
    let extra = blocks.len() - running.live.len();
    assert!(extra <= 60, "{extra} of {}", blocks.len());
}

#[test]
fn a_library_that_was_replaced_on_disk_is_read_from_memory() {
    let directory = tempfile::tempdir().unwrap();
    let program = compile(directory.path(), "patterns", &[]);
    let running = Running::start(Command::new(program).arg("1"));
    let mut snapshot = running.snapshot();
    for mapping in snapshot.mappings.iter_mut().filter(|mapping| mapping.path.starts_with(b"/")) {
        mapping.path.extend_from_slice(b" (deleted)");
    }
    let mut blocks = BTreeMap::new();
    let heap = walk(&snapshot, &WalkOptions::default(), |block| {
        blocks.insert(block.address, block.size);
    })
    .unwrap();
    assert_exact(&running, &heap, &blocks);
    let code = leakscope_allocators::AllocatorCode::new(&snapshot);
    assert_eq!(code, leakscope_allocators::AllocatorCode::new(&running.snapshot()));
}
