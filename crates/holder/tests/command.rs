//! What a command is found to be, before it is run.

use leakscope_holder::{Error, Untraceable, resolve};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;
const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// The beginning of an ELF file, by the System V ABI: class, machine, and a loader's name after two program headers.
fn elf(class: u8, machine: u16, loader: Option<&str>) -> Vec<u8> {
    let mut file = vec![0u8; 64];
    file[..4].copy_from_slice(b"\x7fELF");
    (file[4], file[5], file[6]) = (class, 1, 1);
    file[16..18].copy_from_slice(&3u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&2u16.to_le_bytes());
    let mut header = |kind: u32, offset: u64, size: u64| {
        let mut header = [0u8; 56];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[32..40].copy_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&header);
    };
    header(PT_LOAD, 0, 1 << 20);
    let name = format!("{}\0", loader.unwrap_or_default());
    header(if loader.is_some() { PT_INTERP } else { PT_LOAD }, 64 + 2 * 56, name.len() as u64);
    file.extend_from_slice(name.as_bytes());
    file
}

struct Programs(tempfile::TempDir);

impl Programs {
    fn new() -> Programs {
        Programs(tempfile::tempdir().unwrap())
    }

    fn add(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }
}

fn judged(path: &Path) -> Option<Untraceable> {
    let resolved = resolve(path.as_os_str()).unwrap();
    assert_eq!(resolved.path, path);
    resolved.untraceable
}

#[test]
fn a_program_is_told_by_its_elf_header_and_its_loader() {
    let programs = Programs::new();
    let judge = |name: &str, content: Vec<u8>| judged(&programs.add(name, content, 0o755));
    let is = |kind: fn(PathBuf) -> Untraceable, name: &str| Some(kind(programs.0.path().join(name)));
    assert_eq!(judge("glibc", elf(2, MACHINE_X86_64, Some(GLIBC))), None);
    assert_eq!(judge("musl", elf(2, MACHINE_X86_64, Some(MUSL))), is(Untraceable::Musl, "musl"));
    assert_eq!(judge("static", elf(2, MACHINE_X86_64, None)), is(Untraceable::Static, "static"));
    assert_eq!(judge("old", elf(1, 3, None)), is(Untraceable::Not64Bit, "old"));
    let foreign = elf(2, MACHINE_AARCH64, Some(GLIBC));
    assert_eq!(judge("foreign", foreign), is(Untraceable::ForeignProcessor, "foreign"));
}

#[test]
fn each_reason_names_the_file_the_obstacle_and_what_to_do() {
    for (reason, word) in [
        (Untraceable::Static("/srv/app".into()), "dynamically"),
        (Untraceable::Musl("/srv/app".into()), "glibc"),
        (Untraceable::Not64Bit("/srv/app".into()), "x86-64"),
        (Untraceable::ForeignProcessor("/srv/app".into()), "x86-64"),
        (Untraceable::SetUser("/srv/app".into()), "as the user"),
        (Untraceable::Capabilities("/srv/app".into()), "copy"),
    ] {
        let text = reason.to_string();
        assert!(text.contains("not traced") && text.contains("/srv/app") && text.contains(word), "{text}");
    }
}

#[test]
fn a_broken_elf_file_is_left_to_the_kernel() {
    let programs = Programs::new();
    let whole = elf(2, MACHINE_X86_64, Some(MUSL));
    for length in 0..whole.len() {
        // Nothing is cut off that the answer rests on without the answer being none.
        let found = judged(&programs.add("cut", &whole[..length], 0o755));
        assert!(!matches!(found, Some(Untraceable::Static(_))), "{length} bytes: {found:?}");
    }
    for at in 0..whole.len() {
        for value in [0, 0x7f, 0xff] {
            let mut broken = whole.clone();
            broken[at] = value;
            judged(&programs.add("broken", broken, 0o755));
        }
    }
    let mut endless = whole;
    endless[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
    assert_eq!(judged(&programs.add("endless", endless, 0o755)), None);
}

#[test]
fn a_script_is_what_its_interpreter_is() {
    let programs = Programs::new();
    let fixed = programs.add("static-shell", elf(2, MACHINE_X86_64, None), 0o755);
    let dynamic = programs.add("shell", elf(2, MACHINE_X86_64, Some(GLIBC)), 0o755);
    let script = |name: &str, line: String| judged(&programs.add(name, line, 0o755));
    assert_eq!(script("one", format!("#!{}\n", dynamic.display())), None);
    let reason = Some(Untraceable::Static(fixed.clone()));
    assert_eq!(script("two", format!("#! \t{} -e\nls\n", fixed.display())), reason);
    let through = programs.0.path().join("two");
    assert_eq!(script("three", format!("#!{}\n", through.display())), reason);
    let itself = programs.0.path().join("four");
    assert_eq!(script("four", format!("#!{}\n", itself.display())), None);
    for line in ["#!", "#!\n", "#! \t\n", "#!/nonexistent/interpreter\n", "echo without a line\n"] {
        assert_eq!(script("odd", line.into()), None, "{line:?}");
    }
}

#[test]
fn a_program_that_changes_its_user_is_told_from_one_that_is_the_users_own() {
    let programs = Programs::new();
    let path = programs.add("own", elf(2, MACHINE_X86_64, Some(GLIBC)), 0o4755);
    assert_eq!(judged(&path), None, "executing it changes nothing");
    let other = programs.add("other", elf(2, MACHINE_X86_64, Some(GLIBC)), 0o755);
    if path.metadata().unwrap().uid() != 0 || chown(&other, Some(65534), Some(65534)).is_err() {
        eprintln!("skipped in part: only root can give files away");
        return;
    }
    std::fs::set_permissions(&other, Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(judged(&other), Some(Untraceable::SetUser(other.clone())));
    std::fs::set_permissions(&other, Permissions::from_mode(0o2755)).unwrap();
    assert_eq!(judged(&other), Some(Untraceable::SetUser(other.clone())));
    // The bit without group execution means mandatory locking.
    std::fs::set_permissions(&other, Permissions::from_mode(0o2745)).unwrap();
    assert_eq!(judged(&other), None);
}

#[test]
fn what_cannot_be_run_is_refused_with_the_reason() {
    let programs = Programs::new();
    let refused = |path: &Path| match resolve(path.as_os_str()) {
        Err(Error::NotExecutable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&programs.add("data", "text", 0o644)).contains("chmod +x"));
    assert!(refused(programs.0.path()).contains("directory"));
    for name in ["", "/nonexistent/program", "no-such-program-anywhere"] {
        let error = resolve(name.as_ref()).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn a_name_without_a_slash_is_looked_up_in_path() {
    assert!(resolve("sh".as_ref()).unwrap().path.ends_with("sh"));
    assert!(resolve("sh".as_ref()).unwrap().path.is_absolute());
}
