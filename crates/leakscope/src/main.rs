//! leakscope's command line: one file per subcommand, which parses, calls and renders.

mod cli;
mod demo;
mod exit;
#[cfg(test)]
mod generated;
mod leaks;
mod report;
mod run;
mod sampling;

use clap::Parser;
use cli::{Cli, Subcommands};
use std::process::ExitCode;

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
        Subcommands::Leaks(args) => leaks::leaks(&args),
        Subcommands::Report(args) => report::report(&args),
        Subcommands::Demo => demo::demo(),
        Subcommands::Hold(args) => run::hold(&args),
        Subcommands::DemoService(args) => demo::serve(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| exit::failed(&error))
}
