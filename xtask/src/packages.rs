//! Debian packages: which of a list are missing, and their installation.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Installs what is missing of the packages listed in `list`.
///
/// On systems without dpkg nothing can be checked; a note says what is needed.
///
/// # Errors
/// If packages are missing and cannot be installed; without root's rights the error is the command to run.
pub fn require(list: &Path) -> Result<()> {
    let text = std::fs::read_to_string(list).with_context(|| format!("cannot read {}", list.display()))?;
    let wanted = parse(&text);
    let names: Vec<&str> = wanted.iter().flatten().copied().collect();
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev} ${Package}\n"])
        .args(&names)
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else {
        eprintln!("note: no dpkg-query here, so not checked: {}", names.join(" "));
        return Ok(());
    };
    let missing = missing(&wanted, &String::from_utf8_lossy(&output.stdout));
    if missing.is_empty() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        let chosen: Vec<&str> = missing
            .iter()
            .filter_map(|choices| available(choices).ok().or(choices.first().copied()))
            .collect();
        bail!(
            "packages are missing; install them, then run this again:\n    \
             sudo apt-get update && sudo apt-get install --yes --no-install-recommends {}",
            chosen.join(" ")
        );
    }
    apt_get(&["update"])?;
    let chosen = missing.iter().map(|choices| available(choices)).collect::<Result<Vec<_>>>()?;
    eprintln!("installing {}", chosen.join(" "));
    let _services_stay_off = NoServiceStarts::new();
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(chosen);
    apt_get(&arguments)
}

/// One entry per line, each a list of alternatives; `#` starts a comment.
fn parse(text: &str) -> Vec<Vec<&str>> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default())
        .map(|line| line.split('|').map(str::trim).filter(|name| !name.is_empty()).collect::<Vec<_>>())
        .filter(|choices| !choices.is_empty())
        .collect()
}

/// The entries of which no alternative is installed, given dpkg-query's `STATUS NAME` lines.
fn missing<'a>(wanted: &[Vec<&'a str>], installed: &str) -> Vec<Vec<&'a str>> {
    let is_installed = |name: &str| {
        installed.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("ii") && words.next() == Some(name)
        })
    };
    wanted.iter().filter(|choices| !choices.iter().any(|name| is_installed(name))).cloned().collect()
}

/// The first alternative that this release of Debian has.
fn available<'a>(choices: &[&'a str]) -> Result<&'a str> {
    for name in choices {
        let output = Command::new("apt-cache").args(["show", "--no-all-versions", name]).output();
        if output.context("cannot run apt-cache")?.status.success() {
            return Ok(name);
        }
    }
    bail!("this system's package sources have none of: {}", choices.join(", "))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Cargo's own lines are on stderr; keep stdout for the tests.
        .stdout(std::io::stderr())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {}: {status}", arguments.join(" "));
    }
    Ok(())
}

/// While it lives, packages that bring a service (nginx, redis-server) do not start it: the tests want the programs only.
struct NoServiceStarts {
    written: bool,
}

impl NoServiceStarts {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> Self {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        // An existing policy is the administrator's and stays as it is.
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(Self::POLICY);
        let written = file.and_then(|mut file| file.write_all(b"#!/bin/sh\nexit 101\n")).is_ok();
        Self { written }
    }
}

impl Drop for NoServiceStarts {
    fn drop(&mut self) {
        if self.written {
            let _ = std::fs::remove_file(Self::POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_may_hold_comments_blank_lines_and_alternatives() {
        let list = "# needed\n\ngcc\n  g++  # C++\nlibfoo4 | libfoo4t64\n";
        assert_eq!(parse(list), [vec!["gcc"], vec!["g++"], vec!["libfoo4", "libfoo4t64"]]);
    }

    #[test]
    fn only_fully_installed_packages_count_and_any_alternative_will_do() {
        let wanted = vec![vec!["gcc"], vec!["git"], vec!["perl"], vec!["libfoo4", "libfoo4t64"]];
        let installed = "ii  gcc\niU  git\nrc  perl\nii  libfoo4t64\n";
        assert_eq!(missing(&wanted, installed), [vec!["git"], vec!["perl"]]);
    }
}
