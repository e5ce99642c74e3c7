//! The README promises nothing that the program does not have.

use std::process::Command;

const README: &str = include_str!("../../../README.md");

/// The commands of leakscope that the README shows, in code blocks and between backquotes, as words.
fn commands() -> Vec<Vec<String>> {
    let blocks =
        README.lines().map(|line| line.trim_start_matches("$ ").trim_start_matches("target/release/"));
    let spans = README.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let words = |text: &str| {
        // What follows `--` is the traced command's own, what follows `#` a remark.
        let own = text.split(" -- ").next()?.split('#').next()?.strip_prefix("leakscope ")?;
        Some(own.split_whitespace().map(|word| word.trim_matches(['[', ']']).to_owned()).collect::<Vec<_>>())
    };
    let known_words =
        |words: &Vec<String>| words.first().is_some_and(|word| word.chars().all(char::is_lowercase));
    // A sentence that begins with the program's name is no command: its first word is no subcommand's.
    let prose = ["tells", "says", "shows"];
    let found = blocks.chain(spans).filter_map(words).filter(known_words);
    found.filter(|words| words.first().is_some_and(|word| !prose.contains(&word.as_str()))).collect()
}

#[test]
fn every_command_and_option_in_the_readme_is_in_the_help() {
    let commands = commands();
    assert!(commands.len() >= 6, "the README shows few commands: {commands:?}");
    for command in commands {
        let (subcommand, options) = command.split_first().expect("a subcommand");
        let output = Command::new(env!("CARGO_BIN_EXE_leakscope")).args([subcommand, "--help"]).output();
        let output = output.expect("leakscope runs");
        assert!(output.status.success(), "leakscope has no command {subcommand}: {command:?}");
        let help = String::from_utf8_lossy(&output.stdout).into_owned();
        let named = |option: &str| help.split([' ', ',', '\n', '=', '[']).any(|word| word == option);
        for option in options.iter().filter(|word| word.starts_with('-')) {
            let option = option.split('=').next().unwrap_or_default();
            assert!(named(option), "leakscope {subcommand} has no option {option}: {command:?}\n{help}");
        }
    }
}
