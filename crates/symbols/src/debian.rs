//! Which Debian package would have a file's debug information.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;

/// For each of `files` (absolute paths) that a package installed, the package that has its debug information.
///
/// Reads the file lists of dpkg's database under `root`; without one, the answer is empty.
pub(crate) fn debug_packages<'a>(root: &Path, files: &[&'a str]) -> HashMap<&'a str, String> {
    let mut wanted: HashMap<Vec<u8>, &'a str> = HashMap::new();
    for file in files {
        for spelling in spellings(file) {
            wanted.insert(spelling.into_bytes(), file);
        }
    }
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    let Ok(entries) = fs::read_dir(root.join("var/lib/dpkg/info")) else { return found };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(package) = name.to_str().and_then(|name| name.strip_suffix(".list")) else { continue };
        let Ok(list) = File::open(entry.path()) else { continue };
        let mut list = BufReader::new(list);
        let mut line = Vec::new();
        while matches!(list.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            if let Some(file) = wanted.get(line.strip_suffix(b"\n").unwrap_or(&line)) {
                found.insert(*file, debug_package(package));
            }
            line.clear();
        }
    }
    found
}

/// The names under which dpkg may know a file: since /lib became a link to /usr/lib, packages may say either.
fn spellings(file: &str) -> Vec<String> {
    let mut names = vec![file.to_owned()];
    const MERGED: [&str; 7] = ["/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/", "/libo32/"];
    match file.strip_prefix("/usr") {
        Some(rest) if MERGED.iter().any(|dir| rest.starts_with(dir)) => names.push(rest.to_owned()),
        None if MERGED.iter().any(|dir| file.starts_with(dir)) => names.push(format!("/usr{file}")),
        _ => {}
    }
    names
}

/// The package with the debug information of `package`, which may carry an `:amd64` suffix.
fn debug_package(package: &str) -> String {
    match package.split(':').next().unwrap_or(package) {
        "libc6" => "libc6-dbg".to_owned(),
        name => format!("{name}-dbgsym"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_found_under_either_spelling_of_a_merged_directory() {
        let root = tempfile::tempdir().unwrap();
        let info = root.path().join("var/lib/dpkg/info");
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("libc6:amd64.list"), "/.\n/lib/x86_64-linux-gnu/libc.so.6\n").unwrap();
        fs::write(info.join("redis-server.list"), "/usr/bin/redis-server\n").unwrap();
        fs::write(info.join("redis-server.md5sums"), "/usr/bin/other\n").unwrap();
        let libc = "/usr/lib/x86_64-linux-gnu/libc.so.6";
        let packages =
            debug_packages(root.path(), &[libc, "/bin/redis-server", "/usr/bin/other", "/usr/bin/redis"]);
        assert_eq!(packages.get(libc).map(String::as_str), Some("libc6-dbg"));
        assert_eq!(packages.get("/bin/redis-server").map(String::as_str), Some("redis-server-dbgsym"));
        assert_eq!(packages.len(), 2);
    }

    #[test]
    fn without_a_package_database_nothing_is_claimed() {
        let root = tempfile::tempdir().unwrap();
        assert!(debug_packages(root.path(), &["/usr/bin/true"]).is_empty());
    }
}
