//! Programs compiled and run by tests, and snapshots of them taken without any other crate's help: stopped by
//! ptrace for their registers, read through `/proc/PID/mem`.
#![allow(dead_code)]

use leakscope_target::{Mapping, Memory, Registers, Snapshot, Source, Thread};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Compiles `tests/programs/NAME.c` into `directory`.
pub fn compile(directory: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(format!("{name}.c"));
    let program = directory.join(name);
    let output = Command::new("gcc")
        .args(["-O1", "-g", "-pthread", "-fno-builtin", "-D_GNU_SOURCE", "-o"])
        .arg(&program)
        .arg(&source)
        .args(flags)
        .output()
        .expect("gcc is needed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

/// A running program that has said all it has to say.
pub struct Running {
    child: Child,
    /// Live blocks by its own account: address, usable size, what it is.
    pub live: BTreeMap<u64, (u64, String)>,
    /// `key value` pairs that it printed.
    pub said: BTreeMap<String, u64>,
}

impl Running {
    /// Runs it until it prints `END`. Lines before: `B ADDRESS SIZE WHAT` for a block, `V KEY VALUE` for a number.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let output = child.stdout.take().expect("piped");
        let (mut live, mut said, mut ended) = (BTreeMap::new(), BTreeMap::new(), false);
        for line in BufReader::new(output).lines() {
            let line = line.expect("text");
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("B"), Some(address), Some(size), what) => {
                    let address = u64::from_str_radix(address, 16).expect("an address");
                    let what = what.unwrap_or_default().to_owned();
                    let before = live.insert(address, (size.parse().expect("a size"), what));
                    assert_eq!(before, None, "{address:#x} is live twice");
                }
                (Some("V"), Some(key), Some(value), _) => {
                    said.insert(key.to_owned(), value.parse().expect("a number"));
                }
                (Some("END"), ..) => {
                    ended = true;
                    break;
                }
                _ => panic!("the program printed {line:?}"),
            }
        }
        assert!(ended, "the program ended too early");
        Running { child, live, said }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether a block was allocated by a static executable's start-up code, as it lies before main's first.
    pub fn is_before_main(&self, address: u64) -> bool {
        self.said.get("first").is_some_and(|&first| address < first && first - address < 0x2000)
    }

    /// A snapshot; the program stays stopped by SIGSTOP.
    pub fn snapshot(&self) -> Snapshot {
        snapshot(self.pid())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Live(File);

impl Memory for Live {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.0.read_at(rest, address.wrapping_add(done as u64)) {
                Ok(read) if read > 0 => done += read,
                _ => break,
            }
        }
        done
    }
}

pub fn snapshot(pid: u32) -> Snapshot {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let mut tids: Vec<u32> = std::fs::read_dir(process.join("task"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    tids.sort_unstable();
    let threads =
        tids.iter().map(|&tid| Thread { tid, name: Vec::new(), registers: registers(tid) }).collect();
    let maps = std::fs::read_to_string(process.join("maps")).unwrap();
    let executable = std::fs::read_link(process.join("exe")).unwrap();
    Snapshot {
        pid,
        start_ticks: 0,
        command: Vec::new(),
        executable: executable.into_os_string().into_encoded_bytes(),
        mappings: maps.lines().map(mapping).collect(),
        threads,
        auxv: Vec::new(),
        memory: Box::new(Live(File::open(process.join("mem")).unwrap())),
        source: Source::Stopped,
        pause: None,
        root: process.join("root"),
        notes: Vec::new(),
    }
}

fn mapping(line: &str) -> Mapping {
    let mut fields = line.splitn(6, ' ');
    let mut next = || fields.next().unwrap_or_default();
    let (range, permissions, offset, device, inode, path) = (next(), next(), next(), next(), next(), next());
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let (major, minor) = device.split_once(':').unwrap();
    let may = |letter: char| permissions.contains(letter);
    Mapping {
        start: hex(start),
        end: hex(end),
        readable: may('r'),
        writable: may('w'),
        executable: may('x'),
        shared: may('s'),
        offset: hex(offset),
        device: hex(major) << 32 | hex(minor),
        inode: inode.parse().unwrap(),
        path: path.trim_start().as_bytes().to_vec(),
    }
}

/// Stops a thread by ptrace, reads its registers, leaves it stopped by SIGSTOP.
fn registers(tid: u32) -> Registers {
    let tid = tid as libc::pid_t;
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: plain system calls on a child's thread; `registers` is as large as the kernel fills it.
    unsafe {
        assert_eq!(
            libc::ptrace(libc::PTRACE_ATTACH, tid, null, null),
            0,
            "{}",
            std::io::Error::last_os_error()
        );
        let mut status = 0;
        assert_eq!(libc::waitpid(tid, &mut status, libc::__WALL), tid);
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let mut vector = libc::iovec {
            iov_base: (&raw mut registers).cast(),
            iov_len: size_of::<libc::user_regs_struct>(),
        };
        // NT_PRSTATUS.
        let kind = std::ptr::without_provenance_mut::<libc::c_void>(1);
        assert_eq!(libc::ptrace(libc::PTRACE_GETREGSET, tid, kind, &raw mut vector), 0);
        let stop = std::ptr::without_provenance_mut::<libc::c_void>(libc::SIGSTOP as usize);
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, tid, null, stop), 0);
        let general = [
            registers.r15,
            registers.r14,
            registers.r13,
            registers.r12,
            registers.rbp,
            registers.rbx,
            registers.r11,
            registers.r10,
            registers.r9,
            registers.r8,
            registers.rax,
            registers.rcx,
            registers.rdx,
            registers.rsi,
            registers.rdi,
            registers.rsp,
        ];
        Registers {
            pc: registers.rip,
            sp: registers.rsp,
            bp: registers.rbp,
            thread_pointer: registers.fs_base,
            general: general.to_vec(),
            vector: Vec::new(),
        }
    }
}
