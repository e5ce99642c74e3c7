//! The man pages in `man/` and the completions in `completions/` are what the command line's definition gives today.

use crate::cli::{COMMON, Cli, OVERVIEW, Section};
use crate::{demo, leaks, report, run};
use clap::CommandFactory;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use std::collections::BTreeMap;
use std::path::Path;

/// To accept a change, run the test with `LEAKSCOPE_REGENERATE=1`.
#[test]
fn man_pages_and_completions_match_the_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let fresh = generate();
    if std::env::var_os("LEAKSCOPE_REGENERATE").is_some() {
        for (path, text) in &fresh {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(&root)).expect("the source tree is writable");
            std::fs::write(path, text).expect("the source tree is writable");
        }
    }
    let mut found = BTreeMap::new();
    for directory in ["man", "completions"] {
        for entry in std::fs::read_dir(root.join(directory)).expect("the directory is there") {
            let entry = entry.expect("an entry");
            let name = format!("{directory}/{}", entry.file_name().display());
            found.insert(name, std::fs::read_to_string(entry.path()).expect("a text file"));
        }
    }
    for (path, text) in &fresh {
        assert!(
            found.remove(path).as_ref() == Some(text),
            "{path} does not match the command line: run this test with LEAKSCOPE_REGENERATE=1"
        );
    }
    assert!(found.is_empty(), "nothing generates these: {:?}", found.keys());
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

/// Paths in the repository and their content.
fn generate() -> BTreeMap<String, String> {
    let mut command = Cli::command();
    command.build();
    let mut files = BTreeMap::new();
    files.insert("man/leakscope.1".into(), page(&command, COMMON));
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        let name = subcommand.get_name();
        let sections = match name {
            "run" => run::SECTIONS,
            "leaks" => leaks::SECTIONS,
            "report" => report::SECTIONS,
            "demo" => demo::SECTIONS,
            _ => panic!("{name} has no sections on exit status and environment"),
        };
        files.insert(format!("man/leakscope-{name}.1"), page(subcommand, sections));
    }
    for (shell, name) in
        [(Shell::Bash, "leakscope.bash"), (Shell::Zsh, "_leakscope"), (Shell::Fish, "leakscope.fish")]
    {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut visible(), "leakscope", &mut script);
        files.insert(format!("completions/{name}"), String::from_utf8(script).expect("a script is text"));
    }
    files
}

/// The command line without what is hidden, which completions would offer.
fn visible() -> clap::Command {
    let whole = Cli::command();
    let mut command = clap::Command::new("leakscope").version(env!("CARGO_PKG_VERSION"));
    command = command.disable_help_subcommand(true);
    for subcommand in whole.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        command = command.subcommand(subcommand.clone());
    }
    command
}

fn page(command: &clap::Command, sections: &[Section]) -> String {
    let man = Man::new(command.clone())
        .title(command.get_display_name().unwrap_or("leakscope").to_uppercase())
        // A page's date would be that of its generation; the version in the footer tells as much.
        .date(" ")
        .source(concat!("leakscope ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut page = Vec::new();
    let whole = command.has_subcommands();
    let mut render = || -> std::io::Result<()> {
        man.render_title(&mut page)?;
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        if whole {
            let mut roff = Roff::new();
            roff.control("SH", ["DESCRIPTION"]);
            roff.control("nf", []);
            OVERVIEW.lines().for_each(|line| {
                roff.text([roman(line)]);
            });
            roff.control("fi", []);
            roff.to_writer(&mut page)?;
        } else {
            man.render_description_section(&mut page)?;
        }
        man.render_options_section(&mut page)?;
        if whole {
            man.render_subcommands_section(&mut page)?;
        }
        rest(sections, whole).to_writer(&mut page)
    };
    render().expect("a vector takes all");
    let page = String::from_utf8(page).expect("a page is text");
    // Each section brings roff's preamble along; the first is enough.
    let preamble = ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '\n";
    match page.split_once(preamble) {
        Some((before, after)) => format!("{before}{preamble}{}", after.replace(preamble, "")),
        None => page,
    }
}

/// What help ends with, and where to read on.
fn rest(sections: &[Section], whole: bool) -> Roff {
    let mut roff = Roff::new();
    for section in sections {
        roff.control("SH", [section.heading.to_uppercase().as_str()]);
        for (term, meaning) in section.items {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*meaning)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let others: &[&str] = if whole {
        &["leakscope-run(1)", "leakscope-leaks(1)", "leakscope-report(1)", "leakscope-demo(1)"]
    } else {
        &["leakscope(1)", "leakscope-run(1)", "leakscope-leaks(1)", "leakscope-report(1)"]
    };
    roff.text([roman(others.join(", "))]);
    roff
}
