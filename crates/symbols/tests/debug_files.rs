//! Which files are believed, and where they are looked for.

mod support;

use leakscope_profile::{CodeAddress, End, Module, Profile, Site, Symbols};
use leakscope_symbols::{Error, Options, symbolize};
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use support::*;

/// A stripped program, the file with its debug information, and a call in `outer`.
struct Stripped {
    shop: Workshop,
    program: PathBuf,
    debug: PathBuf,
    site: u64,
    /// What addr2line says of the site, from the file before it was stripped.
    oracle: Told,
}

impl Stripped {
    /// The link is in the program if `link`.
    fn new(flags: &[&str], link: bool) -> Self {
        let shop = Workshop::new();
        let program = shop.compile("gcc", C, "leak", &[&["-g", "-O2"], flags].concat());
        let site = call_sites(&program, &["<outer"])[0];
        let oracle = addr2line(&program, site);
        let debug = shop.path("leak.debug");
        run("objcopy", &["--only-keep-debug", text_of(&program), text_of(&debug)]);
        run("strip", &["--strip-all", text_of(&program)]);
        if link {
            run("objcopy", &[&format!("--add-gnu-debuglink={}", text_of(&debug)), text_of(&program)]);
        }
        Stripped { shop, program, debug, site, oracle }
    }

    /// Moves the debug file below a directory of the workshop.
    fn move_debug(&self, to: &str) -> PathBuf {
        let to = self.shop.path(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::rename(&self.debug, &to).unwrap();
        to
    }

    fn symbolize(&self, options: &Options) -> Symbols {
        symbolize(&profile_of(module_of(&self.program), &[self.site]), options).unwrap()
    }

    fn assert_full(&self, symbols: &Symbols) {
        assert_eq!(told(symbols, BIAS, self.site), self.oracle);
        assert_eq!(symbols.missing, []);
    }

    fn assert_nameless(&self, symbols: &Symbols, reason: &str) {
        assert_eq!(told(symbols, BIAS, self.site), [(None, None, None)]);
        assert_eq!(frames(symbols, BIAS, self.site)[0].address, self.site);
        let [missing] = &symbols.missing[..] else { panic!("{:?}", symbols.missing) };
        assert!(missing.reason.contains(reason), "{missing}");
    }
}

fn with_debug_dir(dir: &Path) -> Options {
    Options { debug_dirs: vec![dir.to_path_buf()], ..Options::default() }
}

fn build_id_path(build_id: &[u8]) -> String {
    let hex: String = build_id.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".build-id/{}/{}.debug", &hex[..2], &hex[2..])
}

#[test]
fn a_stripped_program_says_that_it_is_and_gives_module_and_address() {
    let stripped = Stripped::new(&[], false);
    stripped.move_debug("elsewhere/leak.debug");
    let symbols = stripped.symbolize(&Options::default());
    stripped.assert_nameless(&symbols, "stripped");
    assert_eq!(frames(&symbols, BIAS, stripped.site)[0].module.as_deref(), stripped.program.to_str());
    let id: String = build_id(&stripped.program).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(symbols.missing[0].build_id, id);
}

#[test]
fn a_debug_link_leads_to_the_file_beside_the_program_or_in_its_debug_directory() {
    let stripped = Stripped::new(&[], true);
    stripped.assert_full(&stripped.symbolize(&Options::default()));
    stripped.move_debug(".debug/leak.debug");
    stripped.assert_full(&stripped.symbolize(&Options::default()));
}

#[test]
fn a_debug_link_is_followed_below_a_debug_directory_by_the_programs_path() {
    let stripped = Stripped::new(&[], true);
    let below = format!("tree{}/leak.debug", text_of(stripped.program.parent().unwrap()));
    stripped.move_debug(&below);
    stripped.assert_full(&stripped.symbolize(&with_debug_dir(&stripped.shop.path("tree"))));
}

#[test]
fn a_debug_link_without_build_ids_is_believed_by_its_checksum_only() {
    let stripped = Stripped::new(&["-Wl,--build-id=none"], true);
    assert_eq!(build_id(&stripped.program), []);
    stripped.assert_full(&stripped.symbolize(&Options::default()));
    let mut bytes = fs::read(&stripped.debug).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&stripped.debug, bytes).unwrap();
    stripped.assert_nameless(&stripped.symbolize(&Options::default()), "stripped");
}

#[test]
fn a_debug_link_to_a_file_of_another_build_is_not_followed() {
    let stripped = Stripped::new(&[], true);
    let other = Stripped::new(&["-DOTHER", "-O1"], false);
    fs::copy(&other.debug, &stripped.debug).unwrap();
    stripped.assert_nameless(&stripped.symbolize(&Options::default()), "stripped");
}

#[test]
fn the_build_id_tree_of_a_debug_directory_is_used() {
    let stripped = Stripped::new(&[], false);
    let id = build_id(&stripped.program);
    stripped.move_debug(&format!("tree/{}", build_id_path(&id)));
    stripped.assert_full(&stripped.symbolize(&with_debug_dir(&stripped.shop.path("tree"))));
}

#[test]
fn the_system_debug_directory_is_looked_up_below_the_root() {
    let stripped = Stripped::new(&[], false);
    let id = build_id(&stripped.program);
    stripped.move_debug(&format!("root/usr/lib/debug/{}", build_id_path(&id)));
    fs::create_dir_all(stripped.shop.path("root/srv")).unwrap();
    fs::copy(&stripped.program, stripped.shop.path("root/srv/leak")).unwrap();
    let mut module = module_of(&stripped.program);
    module.path = "/srv/leak".to_owned();
    let options = Options { root: stripped.shop.path("root"), ..Options::default() };
    stripped.assert_full(&symbolize(&profile_of(module, &[stripped.site]), &options).unwrap());
}

#[test]
fn any_directory_is_searched_for_the_build_id_even_if_the_program_is_not_here() {
    let stripped = Stripped::new(&[], false);
    let mut module = module_of(&stripped.program);
    module.path = "/nonexistent/opt/service".to_owned();
    stripped.move_debug("heap/of/files/x");
    let profile = profile_of(module, &[stripped.site]);
    stripped.assert_full(&symbolize(&profile, &with_debug_dir(&stripped.shop.path("heap"))).unwrap());
    stripped.assert_nameless(&symbolize(&profile, &Options::default()).unwrap(), "not found");
}

#[test]
fn a_copy_of_the_program_stands_in_for_the_one_that_is_not_here() {
    let shop = Workshop::new();
    let copy = shop.compile("gcc", C, "copy", &["-g", "-O2"]);
    let site = call_sites(&copy, &["<outer"])[0];
    let mut module = module_of(&copy);
    module.path = "/nonexistent/opt/service".to_owned();
    let options = Options { exe: Some(copy.clone()), ..Options::default() };
    let symbols = symbolize(&profile_of(module.clone(), &[site]), &options).unwrap();
    assert_eq!(told(&symbols, BIAS, site), addr2line(&copy, site));
    // A profile without the build id has only the user's word.
    module.build_id.clear();
    let symbols = symbolize(&profile_of(module.clone(), &[site]), &options).unwrap();
    assert_eq!(told(&symbols, BIAS, site), addr2line(&copy, site));
    // Another program is refused, and so is what is no program.
    module.build_id = vec![1; 20];
    let refused = symbolize(&profile_of(module.clone(), &[site]), &options);
    assert!(matches!(refused, Err(Error::OtherExe { .. })), "{refused:?}");
    let options = Options { exe: Some(shop.path("leak.c")), ..Options::default() };
    assert!(matches!(symbolize(&profile_of(module, &[site]), &options), Err(Error::Exe { .. })));
}

#[test]
fn a_debug_directory_that_is_not_there_is_an_error() {
    let options = with_debug_dir(Path::new("/nonexistent/debug"));
    assert!(matches!(symbolize(&Profile::default(), &options), Err(Error::DebugDir { .. })));
}

#[test]
fn a_program_replaced_on_disk_gives_no_names_and_says_so() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2"]);
    let site = call_sites(&program, &["<outer"])[0];
    let mut module = module_of(&program);
    shop.compile("gcc", C, "leak", &["-g", "-O0"]);
    for path in [text_of(&program).to_owned(), format!("{} (deleted)", text_of(&program))] {
        module.path = path;
        let symbols = symbolize(&profile_of(module.clone(), &[site]), &Options::default()).unwrap();
        assert_eq!(told(&symbols, BIAS, site), [(None, None, None)]);
        assert!(symbols.missing[0].reason.starts_with("replaced on disk"), "{}", symbols.missing[0]);
    }
}

#[test]
fn a_program_without_build_id_that_is_newer_than_the_process_gives_no_names() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2", "-Wl,--build-id=none"]);
    let site = call_sites(&program, &["<outer"])[0];
    let mut profile = profile_of(module_of(&program), &[site]);
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, site), addr2line(&program, site));
    profile.process.start_time = Some(std::time::SystemTime::now() - std::time::Duration::from_secs(3600));
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, site), [(None, None, None)]);
    assert!(symbols.missing[0].reason.starts_with("changed on disk"), "{}", symbols.missing[0]);
}

#[test]
fn a_program_without_build_id_in_which_the_addresses_do_not_fit_gives_no_names() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2", "-Wl,--build-id=none"]);
    let site = call_sites(&program, &["<outer"])[0];
    let symbols =
        symbolize(&profile_of(module_of(&program), &[site, 0x50_0000]), &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, site), [(None, None, None)]);
    assert!(symbols.missing[0].reason.starts_with("replaced on disk"), "{}", symbols.missing[0]);
}

#[test]
fn a_deleted_program_is_not_found_unless_it_is_there_again() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", C, "leak", &["-g", "-O2"]);
    let site = call_sites(&program, &["<outer"])[0];
    let mut module = module_of(&program);
    module.path.push_str(" (deleted)");
    let profile = profile_of(module, &[site]);
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, site), addr2line(&program, site));
    fs::remove_file(&program).unwrap();
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, site), [(None, None, None)]);
    assert_eq!(symbols.missing[0].reason, "not found");
}

#[test]
fn a_stripped_library_gives_exported_names_and_never_a_neighbours() {
    let shop = Workshop::new();
    let library = shop.compile("gcc", C, "libleak.so", &["-g", "-O2", "-shared", "-fPIC"]);
    let exported = call_sites(&library, &["<outer"])[0];
    let hidden = call_sites(&library, &["<make_buffer"])[0];
    run("strip", &["--strip-all", text_of(&library)]);
    let symbols =
        symbolize(&profile_of(module_of(&library), &[exported, hidden]), &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, exported), [(Some("outer".to_owned()), None, None)]);
    assert_eq!(told(&symbols, BIAS, hidden), [(None, None, None)]);
    assert!(symbols.missing[0].reason.starts_with("stripped"), "{}", symbols.missing[0]);
}

#[test]
fn a_library_unloaded_and_loaded_again_elsewhere_is_named_both_times_and_missed_once() {
    let shop = Workshop::new();
    let library = shop.compile("gcc", C, "libleak.so", &["-g", "-O2", "-shared", "-fPIC"]);
    let site = call_sites(&library, &["<outer"])[0];
    let first = Module { unloaded: true, ..module_of(&library) };
    let second = Module { bias: BIAS + 0x7000_0000, start: BIAS + 0x7000_0000, ..module_of(&library) };
    let stack = vec![
        CodeAddress { module: Some(0), address: first.bias + site },
        CodeAddress { module: Some(1), address: second.bias + site },
    ];
    let mut profile = Profile { modules: vec![first, second], ..Profile::default() };
    profile.sites.push(Site { stack: stack.clone(), ..Site::default() });
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(symbols.frames[&stack[0]], symbols.frames[&stack[1]]);
    assert_eq!(symbols.frames[&stack[0]][0].function.as_deref(), Some("innermost"));
    fs::remove_file(&library).unwrap();
    assert_eq!(symbolize(&profile, &Options::default()).unwrap().missing.len(), 1);
}

#[test]
fn generated_code_the_kernels_pages_and_unknown_modules_get_nameless_frames() {
    let vdso = Module { path: "[vdso]".to_owned(), bias: 0x7fff_0000, ..Module::default() };
    let mut profile = Profile { modules: vec![vdso], ..Profile::default() };
    let stack = vec![
        CodeAddress { module: None, address: 0x1234 },
        CodeAddress { module: Some(0), address: 0x7fff_0042 },
        CodeAddress { module: Some(7), address: 0x99 },
        CodeAddress { module: Some(0), address: 0 },
    ];
    profile.sites.push(Site { stack: stack.clone(), ..Site::default() });
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    let seen: Vec<_> =
        symbols.stack(&stack).map(|frame| (frame.function, frame.module, frame.address)).collect();
    let vdso = || Some("[vdso]".to_owned());
    assert_eq!(seen[0], (None, None, 0x1234));
    assert_eq!(seen[1], (None, vdso(), 0x42));
    assert_eq!(seen[2], (None, None, 0x99));
    assert_eq!(seen[3].1, vdso());
    assert_eq!(symbols.missing, []);
}

#[test]
fn modules_that_no_site_uses_are_not_reported_missing() {
    let gone = Module { path: "/nonexistent/lib.so".to_owned(), ..Module::default() };
    let profile = Profile { modules: vec![gone], ..Profile::default() };
    assert_eq!(symbolize(&profile, &Options::default()).unwrap().missing, []);
}

#[test]
fn the_debian_package_with_the_debug_information_is_told() {
    let stripped = Stripped::new(&[], false);
    let root = stripped.shop.path("root");
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::copy(&stripped.program, root.join("usr/bin/leak")).unwrap();
    fs::write(root.join("var/lib/dpkg/info/leaky.list"), "/usr\n/usr/bin\n/usr/bin/leak\n").unwrap();
    let mut module = module_of(&stripped.program);
    module.path = "/usr/bin/leak".to_owned();
    let options = Options { root, ..Options::default() };
    let symbols = symbolize(&profile_of(module, &[stripped.site]), &options).unwrap();
    assert_eq!(symbols.missing[0].package.as_deref(), Some("leaky-dbgsym"));
}

#[test]
fn pipes_devices_and_paths_that_lead_out_of_the_root_are_not_opened() {
    let shop = Workshop::new();
    let fifo = shop.path("fifo");
    run("mkfifo", &[text_of(&fifo)]);
    for path in [text_of(&fifo), "/dev/zero", "/../../../etc/passwd", "/tmp", "/a\0b"] {
        let module = Module { path: path.to_owned(), build_id: vec![1, 2], ..Module::default() };
        let symbols = symbolize(&profile_of(module, &[0x1000]), &Options::default()).unwrap();
        assert_eq!(symbols.missing.len(), 1, "{path:?}");
    }
}

#[test]
fn a_program_replaced_on_disk_while_it_runs_is_still_named() {
    let shop = Workshop::new();
    let program = shop.compile("gcc", ("wait.c", WAITING), "wait", &["-g", "-O2"]);
    let site = call_sites(&program, &["<main"])[0];
    let (module, oracle) = (module_of(&program), addr2line(&program, site));
    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It has said something, so it is no longer the test in the middle of starting it.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    fs::remove_file(&program).unwrap();
    shop.compile("gcc", C, "wait", &["-g", "-O2"]);
    let mut profile = profile_of(module, &[site]);
    profile.process.pid = child.id();
    let while_running = symbolize(&profile, &Options::default()).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert_eq!(told(&while_running, BIAS, site), oracle);
    assert_eq!(while_running.missing, []);
    // Ended, as the profile says: whoever has the pid now is not asked.
    profile.process.pid = std::process::id();
    profile.process.end = End::Exited(0);
    let after = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&after, BIAS, site), [(None, None, None)]);
}

/// Says that it runs and then waits for the end of its input.
const WAITING: &str = "#include <stdio.h>\nint main(void) {\n    putchar('x');\n    fflush(stdout);\n    \
                       return getchar() == EOF ? 0 : 1;\n}\n";

#[test]
fn a_program_with_debug_information_for_a_small_part_says_so() {
    let shop = Workshop::new();
    let known =
        shop.compile("gcc", ("part.c", "int part(int n) { return n + 1; }\n"), "part.o", &["-g", "-c"]);
    let program = shop.compile("gcc", C, "leak", &["-O1", text_of(&known)]);
    let sites = call_sites(&program, &["<make_buffer", "<outer", "<main"]);
    assert!(sites.len() > 3);
    let symbols = symbolize(&profile_of(module_of(&program), &sites), &Options::default()).unwrap();
    let function = told(&symbols, BIAS, sites[0]).pop().unwrap().0;
    assert_eq!(function.as_deref(), Some("make_buffer"), "the symbol table still names it");
    let reason = &symbols.missing[0].reason;
    assert_eq!(*reason, format!("debug information for only 0 of {} addresses", sites.len()));
}

/// A stripped library with its function names packed into it, as Fedora's packages are; `make_buffer` is static.
fn library_with_mini_debug_info(shop: &Workshop) -> PathBuf {
    let library = shop.compile("gcc", C, "libleak.so", &["-g", "-O1", "-shared", "-fPIC"]);
    let (debug, mini) = (shop.path("debug"), shop.path("mini"));
    run("objcopy", &["--only-keep-debug", text_of(&library), text_of(&debug)]);
    run("objcopy", &["-S", "--keep-symbol=make_buffer", text_of(&debug), text_of(&mini)]);
    run("xz", &[text_of(&mini)]);
    run("strip", &["--strip-all", text_of(&library)]);
    let section = format!(".gnu_debugdata={}.xz", text_of(&mini));
    run("objcopy", &["--add-section", &section, text_of(&library)]);
    library
}

#[test]
fn function_names_packed_into_a_stripped_file_are_read() {
    let shop = Workshop::new();
    let whole = shop.compile("gcc", C, "whole", &["-g", "-O1", "-shared", "-fPIC"]);
    let (hidden, exported) = (call_sites(&whole, &["<make_buffer"])[0], call_sites(&whole, &["<outer"])[0]);
    let library = library_with_mini_debug_info(&shop);
    let profile = profile_of(module_of(&library), &[hidden, exported]);
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, hidden), [(Some("make_buffer".to_owned()), None, None)]);
    assert_eq!(told(&symbols, BIAS, exported), [(Some("outer".to_owned()), None, None)]);
    assert_eq!(symbols.missing[0].reason, "no debug information, function names only");
    // Garbage instead of the packed names costs only those.
    let packed = fs::read(shop.path("mini.xz")).unwrap();
    let mut bytes = fs::read(&library).unwrap();
    let at = bytes.windows(packed.len()).position(|window| window == packed).unwrap();
    for byte in &mut bytes[at + 12..at + packed.len()] {
        *byte = !*byte;
    }
    fs::write(&library, bytes).unwrap();
    let symbols = symbolize(&profile, &Options::default()).unwrap();
    assert_eq!(told(&symbols, BIAS, hidden), [(None, None, None)]);
    assert_eq!(told(&symbols, BIAS, exported), [(Some("outer".to_owned()), None, None)]);
}
