//! Core files as the kernel and gdb write them.

mod support;

use leakscope_target::{LiveMemory, Memory, Snapshot, Source, core_file};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::Target;

/// A core file of a process by gdb, which runs on.
fn gcore(pid: u32, directory: &Path) -> PathBuf {
    let path = directory.join("core");
    let output = Command::new("gdb")
        .args(["--batch", "-nx", "-p", &pid.to_string(), "-ex"])
        .arg(format!("generate-core-file {}", path.display()))
        .output()
        .expect("gdb is needed");
    assert!(path.exists(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

/// What gdb says of a core file.
fn gdb(exe: &Path, core: &Path, command: &str) -> String {
    let output = Command::new("gdb")
        .args(["--batch", "-nx", "-ex", command])
        .args([exe, core])
        .stderr(Stdio::null())
        .output()
        .expect("gdb is needed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Compares the whole memory of a process at rest with the core's, and says how many bytes were compared.
fn compare(pid: u32, core: &Snapshot) -> u64 {
    let live = LiveMemory::open(pid).unwrap();
    let mappings = leakscope_proc::maps(Path::new("/proc"), pid).unwrap();
    let mut compared = 0;
    for mapping in mappings.iter().filter(|mapping| mapping.readable && !mapping.path.starts_with(b"[v")) {
        let mut page = [0; 4096];
        let mut other = [0; 4096];
        for address in (mapping.start..mapping.end).step_by(4096) {
            // A page of a mapped file behind the file's end cannot be read.
            if live.read(address, &mut page) == 4096 {
                let name = String::from_utf8_lossy(&mapping.path);
                assert_eq!(core.memory.read(address, &mut other), 4096, "{name} {address:#x}");
                // The kernel notes in each thread's rseq area, 32 bytes, where it runs now.
                let different = page.iter().zip(&other).filter(|(a, b)| a != b).count();
                let allowed = if mapping.writable { 32 } else { 0 };
                assert!(different <= allowed, "{name} {address:#x}: {different} bytes");
                compared += 4096;
            }
        }
    }
    compared
}

#[test]
fn a_core_file_by_gdb_holds_the_process_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let target = Target::start("many", &["5"]);
    let pid = target.pid();
    let path = gcore(pid, directory.path());
    let core = core_file::open(&path, None, Path::new("/")).unwrap();
    assert_eq!((core.source, core.pid, core.pause), (Source::Core, pid, None));
    assert!(core.notes.is_empty(), "{:?}", core.notes);
    assert!(compare(pid, &core) > 1 << 20);
    assert_eq!(core.executable, leakscope_proc::executable(Path::new("/proc"), pid).unwrap());
    assert_eq!(core.auxv, leakscope_proc::auxv(Path::new("/proc"), pid).unwrap());
    assert_eq!(core.command, leakscope_proc::cmdline(Path::new("/proc"), pid).unwrap());
    let mut tids: Vec<u32> = core.threads.iter().map(|thread| thread.tid).collect();
    tids.sort_unstable();
    assert_eq!(tids, leakscope_proc::tasks(Path::new("/proc"), pid).unwrap());
    // Each mapping is where the process has it, with the same permissions and file.
    let mappings = leakscope_proc::maps(Path::new("/proc"), pid).unwrap();
    for mapping in &core.mappings {
        let live = mappings.iter().find(|live| live.start <= mapping.start && mapping.end <= live.end);
        let live = live.unwrap_or_else(|| panic!("{mapping:x?}"));
        assert_eq!(mapping.writable, live.writable, "{mapping:x?}");
        assert_eq!(mapping.executable, live.executable, "{mapping:x?}");
        if live.inode != 0 {
            assert_eq!((&mapping.path, mapping.offset), (&live.path, live.offset), "{mapping:x?}");
        }
        assert_eq!(mapping.path == b"[stack]", live.path == b"[stack]", "{mapping:x?}");
    }
    // gdb lists the threads in its own order: so all registers of all threads.
    let text = gdb(&support::compile("many"), &path, "thread apply all info registers rip rsp fs_base");
    for thread in &core.threads {
        let registers = &thread.registers;
        for value in [registers.sp, registers.pc, registers.thread_pointer] {
            assert!(text.contains(&format!("{value:#x}")), "{value:#x} in {text}");
        }
    }
}

/// Lets a program end by SIGABRT so that the kernel writes a core file, if it writes to files here.
fn kernels_core(directory: &Path, name: &str, way: &str) -> Option<(u32, PathBuf)> {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim() != "core" {
        eprintln!("not tested: kernel.core_pattern is {}, not core", pattern.trim());
        return None;
    }
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" \"$1\""]).arg(support::compile(name)).arg(way);
    let mut target = Target::start_command(command.current_dir(directory));
    let pid = target.pid();
    let address = target.ask("go");
    let address = address.split(' ').next().unwrap().to_owned();
    let (_, status) = target.finish();
    assert!(std::os::unix::process::ExitStatusExt::core_dumped(&status), "{status}");
    let names = ["core".to_owned(), format!("core.{pid}")];
    let path = names.iter().map(|name| directory.join(name)).find(|path| path.exists())?;
    std::fs::write(directory.join("address"), address).unwrap();
    Some((pid, path))
}

#[test]
fn a_core_file_by_the_kernel_is_read_with_the_files_it_leaves_out() {
    let directory = tempfile::tempdir().unwrap();
    let Some((pid, path)) = kernels_core(directory.path(), "exiting", "abort") else { return };
    let address: u64 = std::fs::read_to_string(directory.path().join("address")).unwrap().parse().unwrap();
    let core = core_file::open(&path, None, Path::new("/")).unwrap();
    assert_eq!(core.pid, pid);
    assert_eq!(core.memory.word(address), Some(0x600d));
    assert_eq!(core.threads.len(), 4);
    assert!(core.threads.iter().all(|thread| !thread.registers.vector.is_empty()));
    // The code of the program is in its file only.
    let exe = support::compile("exiting");
    let code =
        core.mappings.iter().find(|mapping| mapping.executable && mapping.path == core.executable).unwrap();
    let file = std::fs::read(&exe).unwrap();
    let mut bytes = [0; 4096];
    assert!(core.memory.read_exact(code.start, &mut bytes[..2048]));
    let offset = code.offset as usize;
    assert_eq!(bytes[..2048], file[offset..offset + 2048]);

    // Elsewhere, with nothing but the program given.
    let elsewhere = core_file::open(&path, Some(&exe), directory.path()).unwrap();
    assert!(elsewhere.memory.read_exact(code.start, &mut bytes[..2048]));
    assert_eq!(bytes[..2048], file[offset..offset + 2048]);
    assert!(elsewhere.notes.iter().any(|note| note.contains("libc")), "{:?}", elsewhere.notes);

    // With another program in its place.
    let other = support::compile("server");
    let wrong = core_file::open(&path, Some(&other), Path::new("/")).unwrap();
    assert!(wrong.notes.iter().any(|note| note.contains("build id")), "{:?}", wrong.notes);
    assert_eq!(wrong.memory.read(code.start + 8192 - 4096, &mut bytes), 0);
}

#[test]
fn a_real_core_file_that_is_damaged_is_no_disaster() {
    let directory = tempfile::tempdir().unwrap();
    let target = Target::start("many", &["2"]);
    let path = gcore(target.pid(), directory.path());
    let whole = std::fs::read(&path).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let damaged = directory.path().join("damaged");
    std::fs::write(&damaged, &whole).unwrap();
    let file = std::fs::File::options().write(true).open(&damaged).unwrap();
    for _ in 0..400 {
        // Headers and notes stand at the beginning and, by gdb, at the end.
        let from = if next(2) == 0 { 0 } else { whole.len().saturating_sub(40_000) };
        let at = from + next(6000.min(whole.len() - from));
        std::os::unix::fs::FileExt::write_all_at(&file, &[next(256) as u8], at as u64).unwrap();
        if let Ok(core) = core_file::open(&damaged, None, Path::new("/")) {
            let mut buffer = [0; 64];
            for mapping in &core.mappings {
                core.memory.read(mapping.end - 1, &mut buffer);
            }
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &whole[at..=at], at as u64).unwrap();
    }
    file.set_len(whole.len() as u64 / 2).unwrap();
    let error = core_file::open(&damaged, None, Path::new("/")).err().unwrap().to_string();
    assert!(error.contains(&format!("{} bytes of ", whole.len() / 2)), "{error}");
}
