//! leakscope's command line: one file per subcommand, which parses, calls and renders.

mod demo;
mod exit;
mod report;
mod run;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

const OVERVIEW: &str = "\
Find which service's memory grows, explain what kind of growth it is, locate the line of code, and keep it from
coming back.

  a program you can start       leakscope run -- COMMAND        every allocation traced; at the end the call
                                                                sites whose memory was never freed
  look again, or another way    leakscope report                the last run; --format flamegraph -o heap.svg
  see it work first             leakscope demo                  a small service that leaks in three ways";

/// Find, explain, locate and prevent memory leaks in live Linux services.
#[derive(Parser)]
#[command(name = "leakscope", version, before_help = OVERVIEW, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Run a command with every allocation traced; report what was never freed
    Run(run::Args),
    /// Show a heap file, live or from a process that has ended
    Report(report::Args),
    /// A first tour: a small HTTP service that leaks in three ways, and the report that finds them
    Demo,
    #[command(hide = true)]
    DemoService(demo::ServiceArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; wrong usage is 2.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    let result = match cli.command {
        Subcommands::Run(args) => run::run(&args),
        Subcommands::Report(args) => report::report(&args),
        Subcommands::Demo => demo::demo(),
        Subcommands::DemoService(args) => demo::serve(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| exit::failed(&error))
}
