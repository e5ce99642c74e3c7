//! Compiles target programs, each once for the same text, compiler and flags.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

/// What the sources include.
const HEADERS: [&str; 2] = ["common.h", "shapes.h"];

/// The directory of the target programs' sources.
pub fn targets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../targets").canonicalize().unwrap()
}

/// The text of one of the sources.
pub fn source(name: &str) -> String {
    let path = targets().join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The compiler of a source by its name's ending.
fn compiler(source: &str) -> &'static str {
    match Path::new(source).extension().and_then(|ending| ending.to_str()) {
        Some("c") => "gcc",
        Some("cpp") => "g++",
        Some("rs") => "rustc",
        other => panic!("no compiler for {source} ({other:?})"),
    }
}

/// Compiles `source` with its usual compiler; `flags` come after the source's name.
pub fn compile(source: &str, flags: &[&str]) -> PathBuf {
    compile_with(compiler(source), source, flags)
}

/// Compiles `source` with `compiler`.
pub fn compile_with(compiler: &str, source: &str, flags: &[&str]) -> PathBuf {
    try_compile_with(compiler, source, flags).unwrap_or_else(|message| panic!("{message}"))
}

/// Compiles `source` with `compiler`, or gives the compiler's complaint.
pub fn try_compile_with(compiler: &str, source: &str, flags: &[&str]) -> Result<PathBuf, String> {
    type Slot = Arc<OnceLock<Result<PathBuf, String>>>;
    static BUILT: LazyLock<Mutex<HashMap<PathBuf, Slot>>> = LazyLock::new(Default::default);

    let mut hasher = DefaultHasher::new();
    (compiler, flags, self::source(source), HEADERS.map(self::source)).hash(&mut hasher);
    let library = flags.contains(&"-shared");
    let stem = Path::new(source).file_stem().unwrap().to_str().unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}-{:016x}", hasher.finish()));
    let output = directory.join(if library { format!("{stem}.so") } else { stem.to_owned() });

    let slot = BUILT.lock().unwrap().entry(output.clone()).or_default().clone();
    slot.get_or_init(|| build(compiler, source, flags, &directory, &output).map(|()| output)).clone()
}

fn build(
    compiler: &str,
    source: &str,
    flags: &[&str],
    directory: &Path,
    output: &Path,
) -> Result<(), String> {
    if output.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(directory).unwrap();
    let unfinished = output.with_extension(format!("unfinished-{}", std::process::id()));
    let mut command = Command::new(compiler);
    match compiler {
        "rustc" => command.args(["--edition", "2021", "-g"]),
        _ => command.args(["-g", "-pthread", "-Wall", "-Wextra"]),
    };
    command.arg(targets().join(source)).args(flags).arg("-o").arg(&unfinished).current_dir(directory);
    let result =
        command.output().map_err(|error| format!("cannot run {compiler} ({error}); is it installed?"))?;
    if !result.status.success() {
        return Err(format!("{command:?}\n{}", String::from_utf8_lossy(&result.stderr)));
    }
    std::fs::rename(&unfinished, output).unwrap();
    Ok(())
}
