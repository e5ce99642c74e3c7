//! Small programs, their build ids and call sites, and what addr2line says of them.
#![allow(dead_code)] // Each test file uses its own part.

use leakscope_profile::{CodeAddress, Frame, Module, Profile, Site, Symbols};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Where the profiles made here pretend that their module was loaded.
pub const BIAS: u64 = 0x5555_0000_0000;

/// Runs a program that must succeed; its standard output.
pub fn run(program: &str, args: &[&str]) -> String {
    let Output { status, stdout, stderr } = Command::new(program).args(args).output().unwrap();
    assert!(status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// A temporary directory with programs in it.
pub struct Workshop {
    dir: tempfile::TempDir,
}

impl Workshop {
    pub fn new() -> Self {
        Workshop { dir: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Compiles `source` (a file name with its text) to `output`.
    pub fn compile(&self, compiler: &str, source: (&str, &str), output: &str, flags: &[&str]) -> PathBuf {
        let (name, text) = source;
        fs::write(self.path(name), text).unwrap();
        let (source, output) = (self.path(name), self.path(output));
        let mut args = flags.to_vec();
        args.extend(["-o", text_of(&output), text_of(&source)]);
        run(compiler, &args);
        output
    }
}

pub fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The build id, as readelf prints it.
pub fn build_id(file: &Path) -> Vec<u8> {
    let notes = run("readelf", &["-n", text_of(file)]);
    let hex = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: ")).unwrap_or_default();
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// Return addresses of the calls in the functions whose symbol contains one of `functions`, by objdump.
pub fn call_sites(file: &Path, functions: &[&str]) -> Vec<u64> {
    let listing = run("objdump", &["-d", text_of(file)]);
    let (mut inside, mut sites) = (false, Vec::new());
    for line in listing.lines() {
        if let Some(name) = line.strip_suffix(">:") {
            inside = functions.iter().any(|function| name.contains(function));
        }
        // "  address:<tab>bytes of the instruction<tab>instruction"
        let columns: Vec<&str> = line.split('\t').collect();
        if let [address, bytes, instruction] = columns[..]
            && inside
            && instruction.starts_with("call")
        {
            let address = u64::from_str_radix(address.trim().trim_end_matches(':'), 16).unwrap();
            sites.push(address + bytes.split_whitespace().count() as u64);
        }
    }
    assert!(!sites.is_empty(), "no calls in {functions:?} of {}", file.display());
    sites
}

/// A profile with one stack of `addresses` (in the file) in one module.
pub fn profile_of(module: Module, addresses: &[u64]) -> Profile {
    let stack = addresses
        .iter()
        .map(|address| CodeAddress { module: Some(0), address: address.wrapping_add(module.bias) })
        .collect();
    let mut profile = Profile { modules: vec![module], ..Profile::default() };
    profile.process.executable = profile.modules[0].path.clone();
    profile.sites.push(Site { stack, ..Site::default() });
    profile
}

/// The module for a file as it is now, position-independent.
pub fn module_of(file: &Path) -> Module {
    Module {
        path: text_of(file).to_owned(),
        build_id: build_id(file),
        start: BIAS,
        end: BIAS + 0x10_0000,
        bias: BIAS,
        unloaded: false,
    }
}

/// Function, file and line of each frame, innermost first.
pub type Told = Vec<(Option<String>, Option<String>, Option<u32>)>;

/// What addr2line says of the instruction before a return address.
pub fn addr2line(file: &Path, return_address: u64) -> Told {
    let address = format!("{:#x}", return_address - 1);
    let text = run("addr2line", &["-f", "-i", "-C", "-e", text_of(file), &address]);
    let lines: Vec<&str> = text.lines().collect();
    let known = |text: &str| (!text.starts_with('?')).then(|| text.to_owned());
    lines
        .chunks(2)
        .map(|pair| {
            let place = pair[1].split(" (discriminator").next().unwrap();
            let (file, line) = place.rsplit_once(':').unwrap();
            (known(pair[0]), known(file), line.parse().ok().filter(|&line| line > 0))
        })
        .collect()
}

/// The same of the symbols, for a profile made by [`profile_of`].
pub fn told(symbols: &Symbols, bias: u64, return_address: u64) -> Told {
    frames(symbols, bias, return_address)
        .iter()
        .map(|frame| (frame.function.clone(), frame.file.clone(), frame.line))
        .collect()
}

/// The frames at one address of the only module.
pub fn frames(symbols: &Symbols, bias: u64, return_address: u64) -> &[Frame] {
    let code = CodeAddress { module: Some(0), address: return_address.wrapping_add(bias) };
    symbols.frames.get(&code).expect("every address has an entry")
}

/// A C program with a leak in a function of its own.
pub const C: (&str, &str) = (
    "leak.c",
    r#"
#include <stdlib.h>
#include <string.h>

void *kept[4];

__attribute__((noinline)) static void *make_buffer(size_t size) {
    void *buffer = malloc(size);
    memset(buffer, 1, size);
    return buffer;
}

static inline __attribute__((always_inline)) void *innermost(size_t size) {
    return calloc(size, 2);
}

static inline __attribute__((always_inline)) void *middle(size_t size) {
    void *made = innermost(size + 1);
    kept[3] = made;
    return made;
}

__attribute__((noinline)) void *outer(size_t size) {
    kept[2] = middle(size);
    return kept[2];
}

__attribute__((noinline)) void last_call_is_noreturn(int status) {
    exit(status);
}

int main(int argc, char **argv) {
    kept[0] = make_buffer(100);
    kept[1] = outer(argc);
    if (argc > 5) last_call_is_noreturn(argc);
    return kept[0] == kept[1];
}
"#,
);
