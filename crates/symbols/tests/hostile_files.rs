//! Broken ELF files cost their names and nothing else.

mod support;

use leakscope_profile::{Module, Symbols};
use leakscope_symbols::{Options, symbolize};
use std::fs;
use std::path::Path;
use support::*;

/// A small program without build id, so that nothing is refused before it is parsed.
fn small_program(shop: &Workshop) -> std::path::PathBuf {
    let source = (
        "small.c",
        "__attribute__((noinline)) static int g(int n) { __asm__ volatile(\"\" : \"+r\"(n)); return n; }\n\
         static inline __attribute__((always_inline)) int f(int n) { return g(n) + 1; }\n\
         void _start(void) { while (f(1)) {} }\n",
    );
    let flags = ["-g", "-O1", "-nostdlib", "-static", "-Wl,--build-id=none"];
    shop.compile("gcc", source, "small", &flags)
}

fn names_of(file: &Path, site: u64) -> Symbols {
    // A root of its own has no package database to read each time.
    let name = file.file_name().unwrap().to_str().unwrap();
    let module = Module { path: format!("/{name}"), bias: BIAS, ..Module::default() };
    let options = Options { root: file.parent().unwrap().to_path_buf(), ..Options::default() };
    symbolize(&profile_of(module, &[site]), &options).unwrap()
}

#[test]
fn a_file_cut_short_anywhere_gives_names_or_none_and_no_panic() {
    let shop = Workshop::new();
    let program = small_program(&shop);
    let whole = fs::read(&program).unwrap();
    let site = call_sites(&program, &["<_start"])[0];
    assert_eq!(told(&names_of(&program, site), BIAS, site), addr2line(&program, site));
    let cut = shop.path("cut");
    // Every length in the headers, then steps that reach every section.
    for length in (0..=256).chain((257..whole.len()).step_by(61)).chain([whole.len() - 1]) {
        fs::write(&cut, &whole[..length]).unwrap();
        let symbols = names_of(&cut, site);
        let function = told(&symbols, BIAS, site).pop().unwrap().0;
        assert!(function.is_none() || function.as_deref() == Some("_start"), "{function:?} at {length}");
        assert_eq!(symbols.missing.len(), 1, "{length} bytes are not the whole file");
    }
}

#[test]
fn a_file_with_any_byte_changed_does_not_panic_or_hang() {
    let shop = Workshop::new();
    let program = small_program(&shop);
    let whole = fs::read(&program).unwrap();
    let site = call_sites(&program, &["<_start"])[0];
    let changed = shop.path("changed");
    for at in (0..whole.len()).step_by(if cfg!(debug_assertions) { 13 } else { 1 }) {
        for value in [0xff, whole[at].wrapping_add(1), whole[at] ^ 0x80] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&changed, bytes).unwrap();
            assert_eq!(names_of(&changed, site).frames.len(), 1);
        }
    }
}

#[test]
fn a_section_that_claims_to_decompress_to_terabytes_is_refused() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-gz=zlib", "-Wl,--build-id=none"]);
    let site = call_sites(&program, &["<outer"])[0];
    assert!(names_of(&program, site).missing.is_empty());
    let sections = run("readelf", &["-SW", text_of(&program)]);
    let line = sections.lines().find(|line| line.contains(".debug_info")).unwrap();
    let offset = line.split_whitespace().skip_while(|word| *word != "PROGBITS").nth(2).unwrap();
    let offset = usize::from_str_radix(offset, 16).unwrap();
    let mut bytes = fs::read(&program).unwrap();
    // The compression header: type, reserved, size, alignment.
    bytes[offset + 8..offset + 16].copy_from_slice(&(1u64 << 42).to_le_bytes());
    fs::write(&program, bytes).unwrap();
    let symbols = names_of(&program, site);
    assert!(symbols.missing[0].reason.contains("implausibly large"), "{}", symbols.missing[0]);
}

#[test]
fn functions_inlined_ten_thousand_deep_do_not_overflow_the_stack() {
    // Assembled by hand: one function with inlined calls nested far beyond what a compiler makes.
    const DEPTH: usize = 10_000;
    let mut source = String::from(
        ".globl _start\n.text\n_start: call _start\nend:\n\
         .section .debug_abbrev,\"\",@progbits\n\
         .uleb128 1, 0x11\n.byte 1\n.uleb128 0x11, 1, 0x12, 7, 0, 0\n\
         .uleb128 2, 0x2e\n.byte 1\n.uleb128 3, 8, 0x11, 1, 0x12, 7, 0, 0\n\
         .uleb128 3, 0x1d\n.byte 1\n.uleb128 3, 8, 0x11, 1, 0x12, 7, 0, 0\n\
         .uleb128 0\n\
         .section .debug_info,\"\",@progbits\n\
         .long info_end - info_start\ninfo_start: .short 4\n.long 0\n.byte 8\n\
         .uleb128 1\n.quad _start, end - _start\n.uleb128 2\n.asciz \"_start\"\n.quad _start, end - _start\n",
    );
    source.push_str(&".uleb128 3\n.asciz \"i\"\n.quad _start, end - _start\n".repeat(DEPTH));
    source.push_str(&format!(".zero {}\ninfo_end:\n", DEPTH + 2));
    let shop = Workshop::new();
    let flags = ["-nostdlib", "-static", "-Wl,--build-id=none"];
    let program = shop.compile("gcc", ("deep.s", &source), "deep", &flags);
    let site = call_sites(&program, &["<_start"])[0];
    let symbols = names_of(&program, site);
    let outermost = told(&symbols, BIAS, site).pop().unwrap().0;
    assert_eq!(outermost.as_deref(), Some("_start"));
}
