//! The holder's calls for processes at their end, and what processes notice of it: nothing.
//!
//! A holder is needed that calls back, in a process of its own: this test binary, started once more to run the "test"
//! [`holder_process`] alone.

use crate::support::build::compile;
use crate::support::directory::Directory;
use crate::support::process::{Outcome, kill, run, tree_of, wait, wait_until};
use leakscope_holder::{AtExit, ExitingProcess, Memory, Options, Sampling};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

static TRACER: &[u8] = include_bytes!(env!("LEAKSCOPE_TRACER_OBJECT"));
/// Where the command's own output begins.
const BEGIN: &[u8] = b"\n--- begin ---\n";
const DIRECTORY: &str = "LEAKSCOPE_TEST_HOLDER";
const WAY: &str = "LEAKSCOPE_TEST_WAY";
const COMMAND: &str = "LEAKSCOPE_TEST_COMMAND";

/// Not a test: what the tests start as a holder. It writes a line per call to `log`, and ends as its command did.
#[test]
#[ignore = "started by other tests"]
fn holder_process() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    let way = std::env::var(WAY).unwrap();
    let command: Vec<OsString> =
        std::env::var(COMMAND).unwrap().split('\u{1f}').map(OsString::from).collect();
    let log = Mutex::new(std::fs::File::create(directory.join("log")).unwrap());
    let with = way.clone();
    let at_exit = AtExit::new(move |process| {
        let mut log = log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let line = examine(&with, process, &mut log);
        writeln!(log, "{line}").unwrap();
    });
    let options = Options {
        command,
        output: Some(directory.join("heap")),
        tracer: TRACER,
        max_children: 100,
        max_children_bytes: 1 << 30,
        sampling: Sampling::default(),
        at_exit: (way != "none").then_some(at_exit),
    };
    for variable in [DIRECTORY, WAY, COMMAND] {
        // SAFETY: no other thread of this process looks at the environment now.
        unsafe { std::env::remove_var(variable) };
    }
    std::io::stdout().write_all(BEGIN).unwrap();
    let outcome = leakscope_holder::run(&options).unwrap();
    std::fs::write(directory.join("notes"), outcome.notes.join("\n")).unwrap();
    std::process::exit(outcome.ended.exit_status().into());
}

/// What a callback does, and the line that tells of it.
fn examine(way: &str, process: &ExitingProcess, log: &mut std::fs::File) -> String {
    let blocks = |size: u64| {
        let heap = process.heap().unwrap();
        heap.blocks.iter().filter(|block| block.size == size).map(|block| block.address).collect::<Vec<_>>()
    };
    let who = if process.is_command() { "command" } else { "child" };
    let mut line =
        format!("{who} kept={} freed={} own={}", blocks(1234).len(), blocks(4321).len(), blocks(700).len());
    match way {
        "look" => {}
        "slow" => std::thread::sleep(Duration::from_millis(300)),
        "panic" => panic!("on purpose"),
        "hang" | "serve and hang" => {
            let memory = (way != "hang").then(|| process.serve().unwrap());
            writeln!(log, "{line}").unwrap();
            std::thread::sleep(Duration::from_secs(3600));
            drop(memory);
        }
        "release first" => {
            process.release();
            process.release();
            wait_until("the released process's end", || (!process.is_alive()).then_some(()));
            // Ended, reaped or not: its heap file is still here.
            std::thread::sleep(Duration::from_millis(200));
            line += &format!(" later={}", blocks(1234).len());
        }
        "trace" => line += &trace(process),
        "kill and reap" => {
            // What a tracer that does not mind whose child it traces comes to.
            kill(process.pid(), libc::SIGKILL);
            wait_until("the killed process", || {
                // SAFETY: no status is asked for.
                let found = unsafe {
                    libc::waitpid(process.pid() as i32, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG)
                };
                (found != 0).then_some(())
            });
        }
        "serve" => line += &serve(process, &blocks(54321)),
        other => panic!("{other}"),
    }
    line
}

/// Seizes the threads, lets the process go on, and looks at it once more where it really ends.
fn trace(process: &ExitingProcess) -> String {
    let pid = process.pid();
    let mut tids = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let tid: i32 = entry.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: attaching changes nothing in this process.
        let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, libc::PTRACE_O_TRACEEXIT) };
        assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
        tids.push(tid);
    }
    process.release();
    let mut stops = 0;
    for tid in tids {
        let status = wait_until("the stop at the end", || {
            let mut status = 0;
            // SAFETY: `status` is writable.
            let found = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
            (found == tid).then_some(status)
        });
        if status >> 8 == libc::SIGTRAP | libc::PTRACE_EVENT_EXIT << 8 {
            stops += 1;
        }
        // SAFETY: the thread is stopped.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0, 0) };
    }
    let heap = process.heap().unwrap();
    format!(" stops={stops} blocks={}", heap.blocks.iter().filter(|block| block.size == 1234).count())
}

/// Reads the memory that the process serves, and says what is wrong with it.
fn serve(process: &ExitingProcess, marked: &[u64]) -> String {
    let memory = match process.serve() {
        Ok(memory) => memory,
        Err(error) => return format!(" error={error}"),
    };
    assert!(process.serve().is_err(), "only once");
    let &[address] = marked else { return format!(" marked={}", marked.len()) };
    let mut bytes = vec![0; 54321];
    assert_eq!(memory.read(address, &mut bytes), bytes.len());
    assert!(bytes.iter().enumerate().all(|(index, &byte)| byte == (index % 251) as u8));
    // In pieces, at any alignment.
    for start in [1u64, 7, 4095, 20000] {
        let word = memory.word(address + start).unwrap();
        assert_eq!(word.to_ne_bytes(), bytes[start as usize..start as usize + 8]);
    }
    assert_eq!(memory.read(16, &mut bytes), 0);
    assert_eq!(memory.read(u64::MAX - 3, &mut bytes), 0);
    let maps = String::from_utf8(memory.maps()).unwrap();
    let (mut pointers, mut stack, mut read) = (0, None, 0);
    let (_, sp) = process.waiting_thread();
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let (start, end) = (u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
        if !rest.starts_with("rw") || rest.contains("/leakscope-") {
            continue;
        }
        if (start..end).contains(&sp) {
            stack = Some(line.ends_with("[stack]"));
        }
        let mut all = vec![0; (end - start) as usize];
        let length = memory.read(start, &mut all);
        read += length;
        pointers += all[..length].chunks_exact(8).filter(|word| **word == address.to_ne_bytes()).count();
    }
    assert!(read > 3 << 20, "{read} bytes");
    assert!(pointers > 0, "the pointer to the block");
    assert!(memory.word(memory.thread_pointer()).unwrap() == memory.thread_pointer());
    // AT_PAGESZ.
    assert!(memory.auxv().chunks_exact(16).any(|pair| pair[..8] == 6u64.to_ne_bytes()));
    format!(" stack={stack:?} frozen={}", memory.is_frozen())
}

/// A command under a holder that calls back in a certain way.
struct Held {
    directory: Directory,
    outcome: Outcome,
}

impl Held {
    fn log(&self) -> Vec<String> {
        lines(&self.directory.join("log"))
    }
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

fn holder(directory: &Directory, way: &str, command: &[&str]) -> Command {
    let mut holder = Command::new(std::env::current_exe().unwrap());
    holder.args(["--exact", "at_exit::holder_process", "--ignored", "--nocapture", "--test-threads=1"]);
    holder.env(DIRECTORY, directory.path()).env(WAY, way).env(COMMAND, command.join("\u{1f}"));
    holder
}

fn hold(way: &str, command: &[&str]) -> Held {
    let directory = Directory::new();
    let mut outcome = run(&mut holder(&directory, way, command));
    let begin = outcome.stdout.windows(BEGIN.len()).position(|part| part == BEGIN);
    outcome.stdout.drain(..begin.expect("the holder begins") + BEGIN.len());
    Held { directory, outcome }
}

/// Runs a variant of a target program natively and held; status and output must be the same. Gives the calls.
fn calls(way: &str, program: &Path, variant: &str) -> Vec<String> {
    let program = program.to_str().unwrap();
    let native = run(Command::new(program).arg(variant));
    let held = hold(way, &[program, variant]);
    assert_eq!(held.outcome.code(), native.code(), "{variant}, {way}: {}", held.outcome.err());
    assert_eq!(held.outcome.out(), native.out(), "{variant}, {way}");
    assert_eq!(lines(&held.directory.join("notes")), [] as [&str; 0], "{variant}");
    held.log()
}

#[test]
fn every_way_to_end_is_noticed_once() {
    let program = compile("exit_variants.c", &["-O0"]);
    for variant in ["return", "exit", "_exit", "_Exit", "quick_exit", "thread_exit", "main_ends_first"] {
        assert_eq!(calls("look", &program, variant), ["command kept=0 freed=0 own=0"], "{variant}");
    }
    // The kernel's own ways leave nobody to wait.
    for variant in ["exit_group", "abort", "sigsegv", "sigkill", "sigterm"] {
        assert_eq!(calls("look", &program, variant), [] as [&str; 0], "{variant}");
    }
}

#[test]
fn the_programs_own_handlers_run_before() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    for (variant, freed) in [
        ("atexit", 0),
        ("at_quick_exit", 0),
        ("handler_ends", 1),
        ("handler_exits", 1),
        ("signal_handler", 1),
        ("signals", 1),
        ("threads", 1),
        ("exec", 1),
        ("return", 1),
    ] {
        for way in ["look", "slow"] {
            let expected = format!("command kept=1 freed={freed} own=0");
            assert_eq!(calls(way, &program, variant), [expected], "{variant}, {way}");
        }
    }
    let program = compile("exit_of_static_objects.cpp", &["-O0", "-std=c++20"]);
    assert_eq!(calls("look", &program, ""), ["command kept=1 freed=0 own=0"]);
}

#[test]
fn each_child_of_its_own_memory_is_noticed_once_and_others_are_not() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    let parent = "command kept=1 freed=1 own=0";
    for variant in ["fork_exit", "fork__exit", "clone"] {
        for way in ["look", "slow"] {
            let log = calls(way, &program, variant);
            assert_eq!(log, ["child kept=0 freed=0 own=1", parent], "{variant}, {way}");
        }
    }
    assert_eq!(calls("look", &program, "fork_in_vain"), ["child kept=0 freed=0 own=0", parent]);
    assert_eq!(calls("look", &program, "vfork"), [parent]);
    assert_eq!(calls("look", &program, "vfork_in_fork"), ["child kept=0 freed=0 own=0", parent]);
    let many = calls("look", &program, "many");
    assert_eq!(many.len(), 21, "{many:?}");
    assert_eq!(many.last().unwrap(), parent);
}

#[test]
fn a_released_process_ends_while_its_heap_file_is_still_looked_at() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    assert_eq!(calls("release first", &program, "return"), ["command kept=1 freed=1 own=0 later=1"]);
    let log = calls("release first", &program, "fork__exit");
    assert_eq!(log, ["child kept=0 freed=0 own=1 later=0", "command kept=1 freed=1 own=0 later=1"]);
}

#[test]
fn a_callback_may_trace_the_process_to_its_very_end() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    for _ in 0..5 {
        let log = calls("trace", &program, "return");
        assert_eq!(log, ["command kept=1 freed=1 own=0 stops=1 blocks=1"]);
    }
    let log = calls("trace", &program, "exiting_thread");
    assert_eq!(log, ["command kept=1 freed=1 own=0 stops=2 blocks=1"]);
    let log = calls("trace", &program, "fork_exit");
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|line| line.contains("stops=1")), "{log:?}");
}

#[test]
fn a_process_serves_its_memory_where_it_may_not_be_traced() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    let log = calls("serve", &program, "marked");
    assert_eq!(log, ["command kept=1 freed=1 own=0 stack=Some(true) frozen=true"]);
    // Without a copy, and by way of a file.
    let log = calls("serve", &program, "denied");
    assert_eq!(log, ["command kept=1 freed=1 own=0 stack=Some(true) frozen=false"]);
    // A child that serves does not come between its parent and itself.
    let log = calls("serve", &program, "fork_exit");
    assert_eq!(log.len(), 2);
    assert!(log.iter().all(|line| line.ends_with("marked=0")), "{log:?}");
}

#[test]
fn a_sandbox_is_respected() {
    let program = compile("seccomp_strict_filter.c", &["-O0"]);
    let log = calls("serve", &program, "filter");
    assert_eq!(log.len(), 1);
    assert!(log[0].contains("may not make system calls"), "{log:?}");
    assert_eq!(calls("look", &program, "filter").len(), 1);
    assert_eq!(calls("look", &program, "strict"), [] as [&str; 0]);
}

#[test]
fn without_a_callback_nothing_waits() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    for variant in ["return", "fork_exit", "vfork", "at_quick_exit"] {
        assert_eq!(calls("none", &program, variant), [] as [&str; 0], "{variant}");
    }
}

#[test]
fn a_callback_that_panics_lets_the_process_go_on() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    let held = hold("panic", &[program.to_str().unwrap(), "fork_exit"]);
    assert_eq!((held.outcome.code(), held.outcome.out().as_str()), (5, "fork_exit\n"));
    let notes = lines(&held.directory.join("notes"));
    assert!(notes.len() == 1 && notes[0].contains("examination"), "{notes:?}");
}

#[test]
fn a_command_that_a_callback_has_reaped_is_not_waited_for_any_more() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    let held = hold("kill and reap", &[program.to_str().unwrap(), "return"]);
    assert_eq!((held.outcome.code(), held.outcome.out().as_str()), (128 + libc::SIGKILL, "return\n"));
}

#[test]
fn a_process_whose_holder_is_killed_ends_by_itself_with_its_own_status() {
    let program = compile("exit_is_awaited.c", &["-O0"]);
    for way in ["hang", "serve and hang"] {
        let directory = Directory::new();
        let status = directory.join("status");
        let script = format!("{} marked; echo $? > {}", program.display(), status.display());
        let mut child = holder(&directory, way, &["sh", "-c", &script])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let log = directory.join("log");
        wait_until("the call", || std::fs::metadata(&log).ok().filter(|log| log.len() > 0));
        assert!(!status.exists(), "the process waits");
        let processes = tree_of(child.id());
        kill(child.id(), libc::SIGKILL);
        wait(&mut child, "the killed holder");
        let text = wait_until("the process's own end", || {
            std::fs::read_to_string(&status).ok().filter(|text| text.ends_with('\n'))
        });
        assert_eq!(text, "35\n", "{way}");
        for pid in processes {
            let path = PathBuf::from(format!("/proc/{pid}"));
            wait_until("the end of all of them", || (!path.exists()).then_some(()));
        }
        // Nobody is left to remove the arena, unless another run has found it already.
        if let Ok(arena) = std::fs::read_link(directory.join("heap")) {
            let _ = std::fs::remove_file(arena);
        }
    }
}
