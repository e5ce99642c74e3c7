//! Measures scans of made-up heaps in a forked process: `cargo run --release -p leakscope-reach --example speed --
//! [SHAPE|all] [GiB] [blocks in millions] [threads]`.
//!
//! The heap is built by a child, which is read with process_vm_readv, so that this process's memory is the scan's own.

use leakscope_reach::{Block, Blocks, BlocksBuilder, Heap, Kind, Options, Roots, scan};
use leakscope_target::{Mapping, Memory};
use std::time::Instant;

struct Child(libc::pid_t);

impl Memory for Child {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let remote = libc::iovec { iov_base: address as *mut _, iov_len: buffer.len() };
        // SAFETY: the local side is the buffer, which is borrowed mutably; the kernel checks the remote side.
        let read = unsafe { libc::process_vm_readv(self.0, &local, 1, &remote, 1, 0) };
        usize::try_from(read).unwrap_or(0)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: ends and reaps the child that this process forked.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

const SHAPES: [&str; 10] =
    ["list", "reverse", "shuffled", "lists1000", "double", "tree", "array", "cxx", "dense", "lost"];

/// A small generator of numbers without a dependency.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// Start and size of each block: sizes from half to one and a half of the average, 16 bytes apart.
fn layout(base: u64, bytes: u64, count: usize) -> impl Iterator<Item = Block> {
    let average = bytes as usize / count / 16;
    let mut random = Random(88_172_645_463_325_252);
    let mut at = base + 16;
    (0..count).map(move |_| {
        let units = (average / 2 + random.below(average + 1)).max(2) as u64;
        let block = Block { address: at, size: units * 16 - 8 };
        at += units * 16;
        block
    })
}

/// Writes the heap, and returns its roots. Runs in the child, so it may take memory.
fn build(shape: &str, base: u64, bytes: u64, count: usize, end: u64) -> Vec<u64> {
    let blocks: Vec<Block> =
        layout(base, bytes, count).take_while(|block| block.address + block.size < end).collect();
    let put = |address: u64, value: u64| {
        // SAFETY: the address lies in the mapping made for the heap.
        unsafe { (address as *mut u64).write(value) }
    };
    // Every page is there, filled with words that are no pointers.
    for block in &blocks {
        for at in (block.address..block.address + block.size - 7).step_by(8) {
            put(at, at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20);
        }
    }
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let address = |index: usize| blocks.get(index).map_or(0, |block| block.address);
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    let mut shuffle = |order: &mut Vec<usize>| {
        for index in (1..order.len()).rev() {
            order.swap(index, random.below(index + 1));
        }
    };
    let link = |order: &[usize], lists: usize, double: bool, at: u64| {
        for list in order.chunks(order.len().div_ceil(lists)) {
            for pair in list.windows(2) {
                put(address(pair[0]) + at, address(pair[1]));
                if double {
                    put(address(pair[1]) + at + 8, address(pair[0]));
                }
            }
        }
        order.chunks(order.len().div_ceil(lists)).map(|list| address(list[0])).collect::<Vec<u64>>()
    };
    match shape {
        "list" => link(&order, 1, false, 0),
        "reverse" => {
            order.reverse();
            link(&order, 1, false, 0)
        }
        "shuffled" => {
            shuffle(&mut order);
            link(&order, 1, false, 0)
        }
        "lists1000" => {
            shuffle(&mut order);
            link(&order, 1000, false, 0)
        }
        "double" => {
            shuffle(&mut order);
            link(&order, 1000, true, 0)
        }
        // A binary tree with parent pointers, as of a map, shuffled.
        "tree" => {
            shuffle(&mut order);
            for (place, &index) in order.iter().enumerate() {
                for child in [2 * place + 1, 2 * place + 2] {
                    if let Some(&below) = order.get(child) {
                        put(address(index) + 8 * (child % 2) as u64, address(below));
                        put(address(below) + 16, address(index));
                    }
                }
            }
            vec![address(order[0])]
        }
        // Blocks held by large arrays of pointers, in the second half of the mapping.
        "array" | "dense" => {
            shuffle(&mut order);
            if shape == "array" {
                // The first block's memory stands for the array, found through roots one by one.
                order.iter().map(|&index| address(index)).collect()
            } else {
                // Every word of three quarters of the blocks is a pointer.
                for block in &blocks {
                    for at in (block.address..block.address + block.size - 7).step_by(8) {
                        put(at, address(random.below(blocks.len())));
                    }
                }
                vec![address(0)]
            }
        }
        // Lists through the second word, as intrusive ones, with a "length" that no heuristic accepts.
        "cxx" => {
            shuffle(&mut order);
            for list in order.chunks(5000) {
                for pair in list.windows(2) {
                    put(address(pair[0]) + 16, address(pair[1]) + 8);
                }
            }
            order.chunks(5000).map(|list| address(list[0])).collect()
        }
        // A thousandth in lists that nothing points to, all the rest reachable.
        "lost" => {
            shuffle(&mut order);
            let lost = order.split_off(order.len() - order.len() / 1000);
            link(&lost, lost.len() / 4, false, 0);
            link(&order, 1000, true, 0)
        }
        _ => Vec::new(),
    }
}

/// A figure of /proc/self/status in KiB.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn number_of_rounds() -> usize {
    std::env::var("ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// Seconds of processor time that this process has used: with other work on the machine, steadier than the clock.
fn processor() -> f64 {
    // SAFETY: filled in by the call, for which zeroes are a valid start.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: f64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let gib = number(1, 1.0);
    let count = (number(2, 5.0) * 1e6) as usize;
    let threads = number(3, 2.0) as usize;
    let shape = arguments.first().map_or("all", String::as_str);
    if shape != "all" {
        measure(shape, (gib * (1u64 << 30) as f64) as u64, count, threads);
        return;
    }
    // Each in a process of its own: the peak of resident memory cannot be reset everywhere.
    let Ok(program) = std::env::current_exe() else { return };
    for shape in SHAPES {
        let rest = arguments.iter().skip(1);
        _ = std::process::Command::new(&program).arg(shape).args(rest).status();
    }
}

fn measure(shape: &str, bytes: u64, count: usize, threads: usize) {
    // SAFETY: a fresh anonymous mapping.
    let heap = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes as usize + (bytes as usize / 8),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    let base = heap as u64;
    let end = base + bytes + bytes / 8;
    // The roots are written to the front of a mapping of their own.
    let room = 8 * count + 4096;
    // SAFETY: a fresh anonymous mapping, shared, so that its length comes back.
    let roots = unsafe {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), room, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    // SAFETY: the child only writes to its memory, and waits to be killed.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let found = build(shape, base, bytes, count, end);
        for (at, root) in found.iter().enumerate() {
            // SAFETY: there is room for a root per block; the first word says how many there are.
            unsafe { (roots as *mut u64).add(at + 1).write(*root) }
        }
        // SAFETY: the first word of the shared mapping; the other process polls it.
        unsafe {
            std::sync::atomic::AtomicU64::from_ptr(roots.cast())
                .store(found.len() as u64 + 1, std::sync::atomic::Ordering::Release);
            loop {
                libc::pause();
            }
        }
    }
    let memory = Child(child);
    // SAFETY: the first word of the shared mapping, which the child writes at last.
    let ready = unsafe { std::sync::atomic::AtomicU64::from_ptr(roots.cast()) };
    let root_words = loop {
        match ready.load(std::sync::atomic::Ordering::Acquire) {
            0 => std::thread::sleep(std::time::Duration::from_millis(10)),
            count => break count - 1,
        }
    };
    let mapping = |start: u64, end: u64| Mapping {
        start,
        end,
        readable: true,
        writable: true,
        executable: false,
        shared: false,
        offset: 0,
        device: 0,
        inode: 0,
        path: Vec::new(),
    };
    let mut mappings = vec![mapping(base, end), mapping(roots as u64, roots as u64 + room as u64)];
    mappings.sort_by_key(|mapping| mapping.start);
    let before = status("VmRSS:");
    let started = Instant::now();
    let mut builder = BlocksBuilder::default();
    let blocks = layout(base, bytes, count).take_while(|block| block.address + block.size < end);
    blocks.for_each(|block| builder.push(block));
    let blocks: Blocks = builder.finish();
    let built = started.elapsed();
    let first = roots as u64 + 8;
    let ranges = std::iter::once(first..first + root_words * 8).collect();
    let found_roots = Roots { ranges, ..Roots::default() };
    let areas: Vec<_> = std::iter::once(base..end).collect();
    let heap =
        Heap { memory: &memory, blocks: &blocks, areas: &areas, mappings: &mappings, roots: &found_roots };
    let options = Options { threads, ..Options::default() };
    let (mut times, mut processor_times) = (Vec::new(), Vec::new());
    let mut peak = 0;
    let mut text = String::new();
    for round in 0..number_of_rounds() {
        let last = std::sync::Mutex::new((None, started.elapsed()));
        let steps = std::sync::Mutex::new(Vec::new());
        let started_round = started.elapsed();
        *last.lock().unwrap() = (None, started_round);
        let progress = |progress: leakscope_reach::Progress| {
            let mut last = last.lock().unwrap();
            if last.0 != Some(progress.step) {
                steps.lock().unwrap().push((progress.step, started.elapsed()));
                last.0 = Some(progress.step);
            }
        };
        let used = processor();
        let findings = scan(&heap, &options, Some(&progress));
        let ended = started.elapsed();
        times.push((ended - started_round).as_secs_f64());
        processor_times.push(processor() - used);
        if round == 0 {
            peak = status("VmHWM:");
        }
        let steps = steps.into_inner().unwrap();
        let ends = steps.iter().skip(1).map(|step| step.1).chain([ended]);
        let spans = steps
            .iter()
            .zip(ends)
            .map(|(step, end)| format!("{:?} {:.3}", step.0, (end - step.1).as_secs_f64()));
        text = format!(
            "{} | R {} P {} I {} D {}",
            spans.collect::<Vec<_>>().join(" "),
            findings.count(Kind::Reachable).blocks,
            findings.count(Kind::Possible).blocks,
            findings.count(Kind::Indirect).blocks,
            findings.count(Kind::Definite).blocks,
        );
    }
    times.sort_by(f64::total_cmp);
    processor_times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    println!(
        "{shape:10} {:.2} M blocks {:.2} GiB: build {:.3} s, scan {median:.3} s ({:.3} to {:.3}; processor {:.3}), {:.2} GB/s, peak +{:.1} MiB | {text}",
        blocks.len() as f64 / 1e6,
        bytes as f64 / (1u64 << 30) as f64,
        built.as_secs_f64(),
        times[0],
        times[times.len() - 1],
        processor_times[processor_times.len() / 2],
        bytes as f64 / 1e9 / median,
        (peak.saturating_sub(before)) as f64 / 1024.0,
    );
}
