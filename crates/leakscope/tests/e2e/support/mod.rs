//! What the end-to-end tests share: compiling the target programs, running them, and reading what leakscope says of them.

pub mod build;
pub mod case;
pub mod cgroup;
pub mod directory;
pub mod leaks;
pub mod marks;
pub mod memcheck;
pub mod process;
pub mod random;
pub mod report;
pub mod server;
pub mod traced;

/// Says on the test's output why a test, or a part of one, does not apply on this machine.
pub fn skip(reason: &str) {
    eprintln!("SKIPPED: {reason}");
}

/// Whether the tests run as root.
pub fn is_root() -> bool {
    // SAFETY: geteuid only reads the process's credentials.
    unsafe { libc::geteuid() == 0 }
}

/// The first of `names` (or absolute paths) that is an executable on the search path.
pub fn find_program(names: &[&str]) -> Option<std::path::PathBuf> {
    let mut directories = vec!["/usr/bin".into(), "/usr/sbin".into(), "/bin".into(), "/sbin".into()];
    directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    names
        .iter()
        .find_map(|name| directories.iter().map(|directory| directory.join(name)).find(|p| p.is_file()))
}

/// The path of `name`, or a failed test that says which Debian package has it.
pub fn need_program(name: &str, package: &str) -> std::path::PathBuf {
    find_program(&[name])
        .unwrap_or_else(|| panic!("{name} is not installed; `apt-get install {package}` provides it"))
}
