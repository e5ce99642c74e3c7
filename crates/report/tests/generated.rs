//! The checked-in code for `profile.proto` is what prost generates today.

use std::path::Path;

/// To accept a change, run the test with `LEAKSCOPE_REGENERATE=1`.
#[test]
fn the_generated_code_matches_the_proto_file() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = here.join("src/pprof/perftools.profiles.rs");
    let out = tempfile::tempdir().expect("a temporary directory");
    let descriptors =
        protox::compile(["profile.proto"], [here.join("proto")]).expect("the proto file compiles");
    prost_build::Config::new().out_dir(out.path()).compile_fds(descriptors).expect("prost generates code");
    let fresh = std::fs::read_to_string(out.path().join("perftools.profiles.rs")).expect("it wrote a file");
    if std::env::var_os("LEAKSCOPE_REGENERATE").is_some() {
        std::fs::write(&checked_in, &fresh).expect("the source tree is writable");
    }
    let current = std::fs::read_to_string(&checked_in).expect("the generated file is there");
    assert!(current == fresh, "proto/profile.proto changed: run this test with LEAKSCOPE_REGENERATE=1");
}
