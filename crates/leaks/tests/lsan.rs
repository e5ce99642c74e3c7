//! LeakSanitizer's suppressions against LeakSanitizer itself.

mod common;

use leakscope_leaks::*;
use leakscope_profile::Frame;
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = r#"
#include <cstdlib>
namespace ns { struct Cache { __attribute__((noinline)) void insert(int n) { void *volatile p = malloc(n); p = 0; } }; }
int main() { ns::Cache cache; cache.insert(40); return 0; }
"#;

#[test]
fn a_pattern_matches_where_leaksanitizer_lets_it_match() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program =
        common::build(directory.path(), "cache.cc", PROGRAM, "c++", &["-g", "-O0", "-fsanitize=leak"]);
    let path = |path: &Path| path.to_str().map(ToOwned::to_owned);
    let frame = |function: &str| Frame {
        function: Some(function.to_owned()),
        file: path(&directory.path().join("cache.cc")),
        module: path(&program),
        ..Frame::default()
    };
    let frames = [frame("ns::Cache::insert(int)"), frame("main")];
    let file = directory.path().join("lsan.supp");
    let is_suppressed = |text: &str| {
        std::fs::write(&file, text).expect("it can be written");
        let options = format!("suppressions={}:exitcode=23", file.display());
        let run = Command::new(&program).env("LSAN_OPTIONS", options).output().expect("it runs");
        let said = String::from_utf8_lossy(&run.stderr);
        // It needs ptrace, which some sandboxes forbid.
        assert!(matches!(run.status.code(), Some(0 | 23)) && !said.contains("fatal error"), "{said}");
        run.status.success()
    };
    assert!(!is_suppressed("# nothing\n"), "LeakSanitizer finds the leak");
    for pattern in [
        "Cache::insert",
        "cache.cc.out",
        "cache.cc",
        "^main$",
        "^insert",
        "^ns::*insert",
        "*cc.out$",
        "cache.cc.ou?",
        "cache.c$",
        "cache.cc$",
        "CACHE",
        "^ns::Cache::insert$",
        "^ns::Cache::insert(int)$",
        "ns*(int)$",
        "_ZN2ns5Cache6insertEi",
        "**main**",
    ] {
        let text = format!("# a comment\nrace:main\nleak:{pattern}\n");
        let mut suppressions = Suppressions::none();
        suppressions.add_text(&file, &text).expect(pattern);
        let subject = Subject { kind: Kind::Definite, frames: &frames, mangled: &[], allocator: None };
        assert_eq!(
            suppressions.find(&subject).is_some(),
            is_suppressed(&format!("leak:{pattern}\n")),
            "{pattern}"
        );
    }
}
