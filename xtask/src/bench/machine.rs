//! What a reader must know of the machine to judge the numbers.

use std::path::Path;
use std::process::Command;

/// Lines that describe this machine, the tools (with the arguments that ask for their versions) and packages on it.
pub fn describe(root: &Path, tools: &[(&str, &[&str])], packages: &[&str]) -> Vec<String> {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or_else(|| "unknown".to_owned(), |kib| format!("{:.0} GiB", kib as f64 / 1048576.0));
    let system = field("/etc/os-release", "PRETTY_NAME").unwrap_or_default();
    let mut lines = vec![
        format!("processor: {cpu}, {cores} cores; memory: {memory}"),
        format!(
            "system: {}, {}, {}",
            system.trim_matches('"'),
            first_line("uname", &["-sr"]),
            first_line("getconf", &["GNU_LIBC_VERSION"])
        ),
        format!("compilers: {}; {}", first_line("gcc", &["--version"]), first_line("rustc", &["--version"])),
        format!("leakscope: {}", revision(root)),
    ];
    let tools: Vec<String> =
        tools.iter().map(|(program, arguments)| first_line(program, arguments)).collect();
    lines.push(format!("tools: {}", tools.join("; ")));
    let mut query = vec!["--show", "--showformat=${Package} ${Version}\n"];
    query.extend(packages);
    let packages = first_lines("dpkg-query", &query);
    if !packages.is_empty() {
        lines.push(format!("libraries: {}", packages.join("; ")));
    }
    lines
}

fn revision(root: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let version = env!("CARGO_PKG_VERSION");
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return version.to_owned() };
    let clean = git(&["status", "--porcelain", "--untracked-files=no", "--", "crates"]);
    let changes = if clean.is_some_and(|text| text.is_empty()) { "" } else { " with local changes" };
    format!("{version}, commit {commit}{changes}")
}

/// The value of the first `NAME: value` or `NAME=value` line of a file.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once([':', '='])?.1.trim().to_owned())
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let lines = first_lines(program, arguments);
    // sqlite3 and redis-server go on with hashes that help nobody.
    let text = lines.first().map_or("", String::as_str);
    let words: Vec<&str> =
        text.split_whitespace().filter(|word| word.len() < 40 && !word.contains("sha=")).collect();
    let name = program.rsplit('/').next().unwrap_or(program);
    let shown = words.join(" ");
    if shown.is_empty() {
        format!("{name} unknown")
    } else if shown.starts_with(|c: char| c.is_ascii_digit()) {
        format!("{name} {shown}")
    } else {
        shown
    }
}

fn first_lines(program: &str, arguments: &[&str]) -> Vec<String> {
    let Ok(output) = Command::new(program).args(arguments).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}
