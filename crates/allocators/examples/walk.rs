//! Lists what glibc's malloc holds in a running process, and how long that took: `walk PID`. The process is left
//! stopped by SIGSTOP; `kill -CONT PID` lets it go on.

#[path = "../tests/support/mod.rs"]
mod support;

use leakscope_allocators::glibc::WalkOptions;
use std::time::Instant;

fn main() {
    let Some(pid) = std::env::args().nth(1).and_then(|text| text.parse().ok()) else {
        eprintln!("usage: walk PID");
        std::process::exit(2);
    };
    let snapshot = support::snapshot(pid);
    for debug_symbols in [true, false, false] {
        let start = Instant::now();
        let (mut count, mut bytes) = (0u64, 0u64);
        let result =
            leakscope_allocators::walk(&snapshot, &WalkOptions { debug_symbols, version: None }, |block| {
                count += 1;
                bytes += block.size;
            });
        let elapsed = start.elapsed();
        match result {
            Ok(heap) if debug_symbols => println!("{heap:#x?}"),
            Ok(_) => {}
            Err(error) => println!("{error}"),
        }
        println!("{count} blocks, {bytes} bytes, {elapsed:?}, peak {} kB", peak());
    }
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
