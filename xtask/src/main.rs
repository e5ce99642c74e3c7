//! Developer tasks: `cargo xtask test`, `cargo xtask soak`, `cargo xtask bench overhead`, `cargo xtask bench scan`.

mod bench;
mod packages;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer tasks of leakscope")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Check formatting and lints, then run every test; missing Debian packages are installed first
    Test(test::TestArgs),
    /// Run the tests in their long forms: 200 kills, thousands of corrupt files
    Soak(test::TestArgs),
    /// Measure
    #[command(subcommand)]
    Bench(Benchmark),
}

#[derive(Subcommand)]
enum Benchmark {
    /// What tracing costs, beside the other tools; writes bench/overhead.md
    Overhead(bench::OverheadArgs),
    /// What a search for leaks costs the process and takes, beside the other tools; writes bench/scan.md
    Scan(bench::ScanArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Test(args) => test::run(&args, test::Length::Short),
        Task::Soak(args) => test::run(&args, test::Length::Long),
        Task::Bench(Benchmark::Overhead(args)) => bench::overhead(&args),
        Task::Bench(Benchmark::Scan(args)) => bench::scan(&args),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
