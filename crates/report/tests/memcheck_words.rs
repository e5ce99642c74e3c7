//! The lines that everyone knows from memcheck, against memcheck's own.

use leakscope_leaks::*;
use leakscope_report::{LeaksTextOptions, leaks_text};
use std::process::Command;

/// A block of each kind, with numbers of one and of seven digits.
const PROGRAM: &str = r#"
#include <stdlib.h>
void *volatile sink;
void *volatile start;
char *volatile inside;
__attribute__((noinline)) void lose(size_t n, size_t hanging) {
    void **head = malloc(n);
    if (hanging) head[0] = malloc(hanging);
    sink = head;
    sink = 0;
}
int main(void) {
    lose(1, 0);
    for (int i = 0; i < 1200; i++) lose(1024, 0);
    lose(16, 1234567);
    start = malloc(2000);
    inside = (char *)malloc(30) + 5;
    return 0;
}
"#;

/// The lines of a text, without what memcheck puts before them, that are about loss records or their sums.
fn known_lines(text: &str, prefix: &str) -> Vec<String> {
    let words =
        [" lost in loss record ", " reachable in loss record ", " lost: ", " reachable: ", "suppressed: "];
    text.lines()
        .map(|line| line.strip_prefix(prefix).unwrap_or(line))
        .filter(|line| words.iter().any(|word| line.contains(word)) && !line.contains("ERROR SUMMARY"))
        // The sums' column is set off differently.
        .map(|line| line.trim().to_owned())
        .collect()
}

/// The number before ` word`, with its thousands separators.
fn number_before(line: &str, word: &str) -> Option<u64> {
    let (before, _) = line.split_once(word)?;
    let digits = before.rsplit([' ', '(']).next()?.replace(',', "");
    digits.parse().ok()
}

#[test]
fn loss_records_and_their_sums_read_exactly_as_memchecks() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (source, program) = (directory.path().join("program.c"), directory.path().join("program"));
    std::fs::write(&source, PROGRAM).expect("the temporary directory can be written");
    let built = Command::new("cc").args(["-g", "-O0", "-o"]).arg(&program).arg(&source).status();
    assert!(built.expect("a C compiler").success());
    let run = Command::new("valgrind")
        .args(["--leak-check=full", "--show-leak-kinds=all"])
        .arg(&program)
        .output()
        .expect("valgrind, which this test compares with, is installed");
    let text = String::from_utf8_lossy(&run.stderr);
    let pid = text.split("==").nth(1).expect("a line that begins with ==PID==");
    let theirs = known_lines(&text, &format!("=={pid}=="));
    assert!(theirs.len() >= 11, "{text}");

    let mut report = LeakReport::default();
    for line in theirs.iter().filter(|line| line.contains("loss record")) {
        let kind = match line {
            line if line.contains("definitely") => Kind::Definite,
            line if line.contains("indirectly") => Kind::Indirect,
            line if line.contains("possibly") => Kind::Possible,
            _ => Kind::Reachable,
        };
        let bytes = number_before(line, " bytes").or_else(|| number_before(line, " (")).expect("bytes");
        let indirect_bytes = number_before(line, " indirect").unwrap_or(0);
        let blocks = number_before(line, " blocks").expect("blocks");
        report.summary.of_mut(kind).add(bytes - indirect_bytes, blocks);
        let direct_bytes = bytes - indirect_bytes;
        let block = FoundBlock {
            address: 0,
            size: direct_bytes,
            kind,
            indirect_bytes,
            indirect_blocks: 0,
            stack: None,
            signature: None,
            age: None,
        };
        let mut records = merge([block], &Names::default(), &Suppressions::none()).records;
        records.iter_mut().for_each(|record| record.blocks = blocks);
        report.records.append(&mut records);
    }
    let options = LeaksTextOptions { shown: KindSet::ALL, ..LeaksTextOptions::default() };
    assert_eq!(known_lines(&leaks_text(&report, &options), ""), theirs);
}
