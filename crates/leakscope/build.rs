//! Builds the tracer's shared object by a nested cargo, so that one binary carries all.
//!
//! `LEAKSCOPE_TRACER_OBJECT`, if set, names a ready one instead (for packagers).

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=LEAKSCOPE_TRACER_OBJECT");
    let object = match std::env::var_os("LEAKSCOPE_TRACER_OBJECT") {
        Some(path) => PathBuf::from(path),
        None => build(),
    };
    println!("cargo::rustc-env=LEAKSCOPE_TRACER_OBJECT={}", object.display());
}

fn build() -> PathBuf {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let crates = here.parent().expect("the package lies in crates/");
    for name in ["tracer", "heapfile"] {
        println!("cargo::rerun-if-changed={}", crates.join(name).display());
    }
    // A directory of its own: the outer cargo holds the lock of the usual one.
    let target_directory = Path::new(&variable("OUT_DIR")).join("tracer");
    let status = Command::new(variable("CARGO"))
        .args(["rustc", "--package", "leakscope-tracer", "--lib", "--crate-type", "cdylib"])
        .args(["--features", "shared-object", "--profile", "tracer", "--target"])
        .arg(variable("TARGET"))
        .arg("--target-dir")
        .arg(&target_directory)
        .arg("--manifest-path")
        .arg(crates.join("tracer/Cargo.toml"))
        // No start files and no libraries: the object must load beside any C library.
        .args([
            "--",
            "-Clink-arg=-nostdlib",
            "-Clink-arg=-nostartfiles",
            "-Clink-arg=-Wl,-soname,libleakscope.so",
        ])
        // What the outer build is wrapped in or instrumented with is not meant for the object.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        .status()
        .expect("cargo can be run");
    assert!(status.success(), "the tracer did not build");
    target_directory.join(variable("TARGET")).join("tracer/libleakscope_tracer.so")
}
