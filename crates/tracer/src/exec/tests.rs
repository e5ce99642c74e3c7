use super::{Environment, MAX_ENTRIES, MAX_TEXT, Strings, elf_takes_tracer};
use crate::testing::{OBJECT, TestHeap, traced_child};
use core::ffi::{CStr, c_char};
use std::ffi::CString;
use std::format;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

/// What a traced program's `execve(path, ..., given)` hands on. The order is that of the new environment.
fn adapted(given: &[String], path: Option<&Path>) -> Vec<String> {
    let heap = TestHeap::new(16 << 20);
    let given: Vec<CString> =
        given.iter().map(|entry| CString::new(entry.as_str()).expect("no NUL")).collect();
    let mut vector: Vec<*const c_char> = given.iter().map(|entry| entry.as_ptr()).collect();
    vector.push(core::ptr::null());
    let path = path.map(|path| CString::new(path.to_str().expect("a plain path")).expect("no NUL"));
    let (status, output) = traced_child(&heap, |pipe| {
        let mut environment = Environment::new();
        // SAFETY: an environment vector and a path, or null.
        unsafe {
            let path = path.as_ref().map_or(core::ptr::null(), |path| path.as_ptr());
            let mut entry: Strings = environment.adapt(vector.as_ptr(), path);
            while !(*entry).is_null() {
                let text = CStr::from_ptr(*entry).to_bytes_with_nul();
                libc::write(pipe, text.as_ptr().cast(), text.len());
                entry = entry.add(1);
            }
        }
        0
    });
    assert_eq!(status, 0);
    let arena = format!("LEAKSCOPE_ARENA={}", heap.file.path().display());
    let text = String::from_utf8(output).expect("UTF-8");
    text.split_terminator('\0')
        .map(|entry| entry.replace(&arena, "ARENA").replace(OBJECT, "OBJECT"))
        .collect()
}

fn strings<const N: usize>(entries: [&str; N]) -> Vec<String> {
    entries.iter().map(|entry| entry.replace("OBJECT", OBJECT)).collect()
}

#[test]
fn an_environment_that_was_passed_on_stays_as_it_was() {
    let given =
        strings(["HOME=/", "LD_PRELOAD=OBJECT:/opt/own.so", "LEAKSCOPE_ARENA=/old", "LD_PRELOADED=no"]);
    let expected = ["HOME=/", "LD_PRELOADED=no", "ARENA", "LD_PRELOAD=OBJECT:/opt/own.so"];
    assert_eq!(adapted(&given, None), expected);
}

#[test]
fn a_cleared_environment_gets_the_tracers_variables_back() {
    assert_eq!(adapted(&[], None), ["ARENA", "LD_PRELOAD=OBJECT"]);
}

#[test]
fn the_programs_own_preloads_follow_the_tracer_in_their_order() {
    for (own, expected) in [
        ("/a.so:/b.so", "OBJECT:/a.so:/b.so"),
        ("/a.so /b.so", "OBJECT:/a.so:/b.so"),
        ("/a.so:OBJECT:/b.so", "OBJECT:/a.so:/b.so"),
        ("OBJECT:OBJECT OBJECT", "OBJECT"),
        ("::/a.so: :", "OBJECT:/a.so"),
        ("", "OBJECT"),
        ("OBJECT2:XOBJECT", "OBJECT:OBJECT2:XOBJECT"),
    ] {
        let given = strings([&format!("LD_PRELOAD={own}")]);
        assert_eq!(adapted(&given, None), ["ARENA", &format!("LD_PRELOAD={expected}")], "{own}");
    }
}

/// As glibc's loader has it.
#[test]
fn of_two_preload_variables_the_last_counts() {
    let given = strings(["LD_PRELOAD=/a.so", "X=1", "LD_PRELOAD=/b.so"]);
    assert_eq!(adapted(&given, None), ["X=1", "ARENA", "LD_PRELOAD=OBJECT:/b.so"]);
}

#[test]
fn an_environment_too_large_to_adapt_is_passed_on_as_it_is() {
    let entries = |count: usize| -> Vec<String> { (0..count).map(|number| format!("V{number}=x")).collect() };
    let fits = adapted(&entries(MAX_ENTRIES - 3), None);
    assert_eq!(fits.len(), MAX_ENTRIES - 1);
    assert_eq!(fits.last().map(String::as_str), Some("LD_PRELOAD=OBJECT"));
    for count in [MAX_ENTRIES - 2, MAX_ENTRIES, MAX_ENTRIES + 1, 3 * MAX_ENTRIES] {
        assert_eq!(adapted(&entries(count), None), entries(count));
    }
    let long = strings([&format!("LD_PRELOAD=/{}", "a".repeat(MAX_TEXT))]);
    assert_eq!(adapted(&long, None), long);
}

/// A little-endian ELF file of one program header, for the interpreter `name` if there is one.
fn elf(class: u8, name: Option<&[u8]>) -> Vec<u8> {
    let mut file = std::vec![0u8; 64 + 56];
    file[..4].copy_from_slice(b"\x7fELF");
    file[4] = class;
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&1u16.to_le_bytes());
    if let Some(name) = name {
        file[64..68].copy_from_slice(&3u32.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file.extend(name);
        file.push(0);
    }
    file
}

const GLIBC: &[u8] = b"/lib64/ld-linux-x86-64.so.2";
const MUSL: &[u8] = b"/lib/ld-musl-x86_64.so.1";

fn verdict(file: &[u8]) -> bool {
    elf_takes_tracer(&file[..file.len().min(2048)], |buffer, offset| {
        let rest = file.get(offset..).unwrap_or(&[]);
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        length
    })
}

#[test]
fn programs_of_another_width_or_c_library_are_not_traced() {
    assert!(verdict(&elf(2, Some(GLIBC))));
    assert!(verdict(&elf(2, None)), "static: no harm");
    assert!(!verdict(&elf(2, Some(MUSL))));
    assert!(!verdict(&elf(1, Some(GLIBC))));
    assert!(verdict(b"#!/bin/sh\n"));
    assert!(verdict(b""));
    assert!(verdict(&std::fs::read("/proc/self/exe").expect("own program")));
}

#[test]
fn damaged_programs_are_judged_without_a_panic() {
    let whole = elf(2, Some(MUSL));
    for length in 0..whole.len() {
        verdict(&whole[..length]);
    }
    for at in 4..120 {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            verdict(&damaged);
            damaged[at..(at + 8).min(120)].fill(byte);
            verdict(&damaged);
        }
    }
}

#[test]
fn the_tracer_is_taken_out_for_programs_that_cannot_load_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str, content: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    };
    let given = strings(["A=1", "LD_PRELOAD=OBJECT:/own.so", "LEAKSCOPE_ARENA=/x", "B=2"]);
    let without = ["A=1", "B=2", "LD_PRELOAD=/own.so"].map(str::to_string);
    let with = ["A=1", "B=2", "ARENA", "LD_PRELOAD=OBJECT:/own.so"].map(str::to_string);
    assert_eq!(adapted(&given, Some(&file("musl", &elf(2, Some(MUSL))))), without);
    assert_eq!(adapted(&given, Some(&file("narrow", &elf(1, Some(GLIBC))))), without);
    assert_eq!(adapted(&given, Some(&file("glibc", &elf(2, Some(GLIBC))))), with);
    assert_eq!(adapted(&given, Some(&file("script", b"#!/bin/sh\n"))), with);
    assert_eq!(adapted(&given, Some(&directory.path().join("missing"))), with);
    let only = strings(["LD_PRELOAD=OBJECT", "LEAKSCOPE_ARENA=/x"]);
    assert!(adapted(&only, Some(&file("musl2", &elf(2, Some(MUSL))))).is_empty());
}

#[test]
fn outside_of_a_traced_process_the_environment_is_not_touched() {
    let vector = [c"LD_PRELOAD=/a.so".as_ptr(), core::ptr::null()];
    let mut environment = Environment::new();
    // SAFETY: an environment vector, null.
    unsafe {
        assert_eq!(environment.adapt(vector.as_ptr(), core::ptr::null()), vector.as_ptr());
        assert!(environment.adapt(core::ptr::null(), core::ptr::null()).is_null());
    }
}
