//! How long a process stands still for a snapshot, beside what `fork()` costs it.
//!
//! `pause PID [ROUNDS]` takes snapshots of a process. `pause --own MIB THREADS [ROUNDS]` starts a process with so much
//! memory and so many threads, which measures its own `fork()` first.

use leakscope_target::{Mode, SnapshotOptions, snapshot};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize| arguments.get(index).and_then(|text| text.parse::<u32>().ok());
    match arguments.first().map(String::as_str) {
        Some("--own") => own(number(1).unwrap_or(1024), number(2).unwrap_or(1), number(3).unwrap_or(10)),
        Some("--victim") => victim(number(1).unwrap_or(1024), number(2).unwrap_or(1)),
        Some(_) if number(0).is_some() => measure(number(0).unwrap_or(0), number(1).unwrap_or(10)),
        _ => {
            eprintln!("usage: pause PID [ROUNDS] | pause --own MIB THREADS [ROUNDS]");
            ExitCode::from(2)
        }
    }
}

/// Least, median and most in milliseconds.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |index: usize| times.get(index).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!(
        "least {:.2} ms, median {:.2} ms, most {:.2} ms",
        at(0),
        at(times.len() / 2),
        at(times.len().max(1) - 1)
    )
}

fn measure(pid: u32, rounds: u32) -> ExitCode {
    let options = SnapshotOptions { mode: Mode::Fork, max_pause: None, ..SnapshotOptions::default() };
    let (mut pauses, mut whole, mut dropping) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        match snapshot(pid, &options) {
            Ok(snapshot) => {
                whole.push(start.elapsed());
                pauses.extend(snapshot.pause);
                let start = Instant::now();
                drop(snapshot);
                dropping.push(start.elapsed());
            }
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::from(125);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("pause:     {}", summary(pauses));
    println!("taking it: {}", summary(whole));
    println!("dropping:  {}", summary(dropping));
    ExitCode::SUCCESS
}

fn own(mib: u32, threads: u32, rounds: u32) -> ExitCode {
    let Ok(exe) = std::env::current_exe() else { return ExitCode::FAILURE };
    let mut command = Command::new(exe);
    command.args(["--victim", &mib.to_string(), &threads.to_string()]);
    let Ok(mut child) = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
        return ExitCode::FAILURE;
    };
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let _ = BufReader::new(output).read_line(&mut line);
    }
    println!("{mib} MiB, {} threads", threads + 1);
    print!("fork():    {line}");
    let code = measure(child.id(), rounds);
    let _ = child.kill();
    let _ = child.wait();
    code
}

fn victim(mib: u32, threads: u32) -> ExitCode {
    let mut memory = vec![0u8; (mib as usize) << 20];
    // SAFETY: advice on memory that this process owns; pages as most heaps have them.
    unsafe { libc::madvise(memory.as_mut_ptr().cast(), memory.len(), libc::MADV_NOHUGEPAGE) };
    memory.chunks_mut(4096).for_each(|page| page.fill(1));
    for _ in 0..threads {
        std::thread::spawn(std::thread::park);
    }
    let times = (0..10).map(|_| {
        let start = Instant::now();
        // SAFETY: the child calls _exit at once.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe { libc::_exit(0) };
        }
        let elapsed = start.elapsed();
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        elapsed
    });
    println!("{}", summary(times.collect()));
    let mut end = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut end);
    std::hint::black_box(&memory);
    ExitCode::SUCCESS
}
