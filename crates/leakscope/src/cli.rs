//! The command line's definition: parser, help, man pages and shell completions all come from it.

use crate::{demo, leaks, report, run};
use clap::{Parser, Subcommand};

/// What a bare `leakscope` prints first.
pub const OVERVIEW: &str = "\
Find which service's memory grows, explain what kind of growth it is, locate the
line of code, and keep it from coming back.

  leakscope run -- COMMAND   trace every allocation of a program you can start;
                             at the end: which lines never freed their memory
  leakscope leaks PID        of a process that runs already: which of its memory is
                             lost (nothing points to it any more)
  leakscope report           look again at the last run, or in another way:
                             --format flamegraph -o heap.svg
  leakscope demo             see it work: a small service that leaks in three ways";

/// Find, explain, locate and prevent memory leaks in live Linux services.
#[derive(Parser)]
#[command(name = "leakscope", version, before_help = OVERVIEW, arg_required_else_help = true)]
#[command(disable_help_subcommand = true, after_long_help = long_help(COMMON))]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Subcommands,
}

/// The subcommands.
#[derive(Subcommand)]
pub enum Subcommands {
    /// Run a command with every allocation traced; report what was never freed
    ///
    /// Standard input, output and error are the command's own. The report goes to standard error after the
    /// command has ended: how much was allocated, the peak, what was in use at the end, and the call sites whose
    /// memory was never freed, by function, file and line.
    ///
    /// Child processes and the programs that they execute are traced too, each into a heap file of its own; with
    /// those that outlive the command, leakscope stays in the background until they end.
    ///
    /// Signals sent to leakscope go on to the command. A program that cannot be traced (statically linked, built
    /// for musl, 32-bit, set-user-ID) runs as it would without leakscope, and a note says why.
    ///
    /// The heap file can be read at any time, also while the command runs: leakscope report FILE.
    #[command(after_long_help = long_help(run::SECTIONS))]
    Run(run::Args),
    /// Show a heap file, live or from a process that has ended
    ///
    /// The heap file may be of a process that still runs, that has ended, or that was killed; it may come from
    /// another machine (see --exe and --debug-dir).
    #[command(after_long_help = long_help(report::SECTIONS))]
    Report(report::Args),
    /// Find the blocks that nothing points to any more, in a running process, a core file or a command
    ///
    /// What memcheck --leak-check=full tells, of a process that runs as it is: nothing has to be prepared, and it stands
    /// still for some milliseconds only. Blocks are listed from glibc's own structures; if the process runs under
    /// leakscope (leakscope run), each record has the stack that allocated it.
    ///
    /// With a COMMAND, it is run under the tracer and examined at its exit.
    #[command(after_long_help = long_help(leaks::SECTIONS))]
    Leaks(leaks::Args),
    /// A first tour: a small HTTP service that leaks in three ways, and the report that finds them
    ///
    /// The service listens on the loopback address, gets requests for about three seconds and ends. The demo
    /// prints each command that it runs, and leaves the heap file and a flame graph in a new directory under
    /// $TMPDIR (/tmp).
    #[command(after_long_help = long_help(demo::SECTIONS))]
    Demo,
    /// Keep the heap file of processes that outlive their command (leakscope run starts this itself)
    #[command(hide = true)]
    Hold(run::HoldArgs),
    /// The service of the demo
    #[command(hide = true)]
    DemoService(demo::ServiceArgs),
}

/// A section that help and man page end with.
pub struct Section {
    /// Its heading.
    pub heading: &'static str,
    /// Terms and what they mean.
    pub items: &'static [(&'static str, &'static str)],
}

/// What holds for leakscope as a whole.
pub const COMMON: &[Section] = &[
    Section {
        heading: "Exit status",
        items: &[
            ("0", "Success. (leakscope run exits as its command did.)"),
            ("2", "Wrong usage."),
            (
                "125",
                "leakscope itself could not do its work; standard error says what failed, and what to do.",
            ),
        ],
    },
    Section {
        heading: "Environment",
        items: &[
            STATE_HOME,
            NO_COLOR,
            ("DEBUGINFOD_URLS", "Servers of debug information; see leakscope report --help."),
        ],
    },
];

/// Where heap files go.
pub const STATE_HOME: (&str, &str) = (
    "XDG_STATE_HOME",
    "leakscope keeps its files in $XDG_STATE_HOME/leakscope. Unset: /var/lib/leakscope for root, else \
     ~/.local/state/leakscope.",
);

/// Colour.
pub const NO_COLOR: (&str, &str) = ("NO_COLOR", "If set and not empty, there is no colour on a terminal.");

/// Names from the network.
pub const DEBUGINFOD: (&str, &str) = (
    "DEBUGINFOD_URLS",
    "Servers (http or https, separated by spaces) that are asked for debug information by build id. Unset: nothing \
     is asked over the network. DEBUGINFOD_CACHE_PATH, DEBUGINFOD_TIMEOUT and DEBUGINFOD_MAXTIME (seconds) and \
     DEBUGINFOD_MAXSIZE (bytes) mean what they mean to debuginfod's own client.",
);

/// Columns of the text of an item in help, and where they begin.
const WIDTH: usize = 86;
const INDENT: &str = "          ";

/// The sections as help shows them, in the form of clap's own.
pub fn long_help(sections: &[Section]) -> String {
    let mut help = String::new();
    for section in sections {
        if !help.is_empty() {
            help.push('\n');
        }
        help.push_str(&format!("{}:\n", section.heading));
        for (term, meaning) in section.items {
            help.push_str(&format!("  {term}"));
            let mut column = WIDTH + 1;
            for word in meaning.split_whitespace() {
                let length = word.chars().count();
                if column + 1 + length > WIDTH {
                    help.push_str(&format!("\n{INDENT}{word}"));
                    column = length;
                } else {
                    help.push_str(&format!(" {word}"));
                    column += 1 + length;
                }
            }
            help.push('\n');
        }
    }
    help
}
