//! What a client of the process notices of scans.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Bench, gib, show};
use crate::bench::child::{Background, progress};
use crate::bench::rotated;
use crate::bench::stats::number;
use crate::bench::table::Section;

/// What goes on while the client asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disturbance {
    Nothing,
    BusyCores,
    Fork,
    Scan,
}

const ALL: [Disturbance; 4] =
    [Disturbance::Nothing, Disturbance::BusyCores, Disturbance::Fork, Disturbance::Scan];

const ROUNDS: usize = 5;
/// A request is due this long after the one before.
const INTERVAL: Duration = Duration::from_millis(1);
const REQUEST: [u8; 64] = [b'?'; 64];

const ABOUT: &str = "\
Milliseconds that a client waits for answers: a thread of the process writes to 16 random pages of the heap and sends 64 \
bytes back over loopback TCP. A request is due every millisecond whether the one before is answered or not (late ones follow \
at once, and count from when they were due), so that a pause of 20 ms counts 20 times. `fork`: the process forks once, \
and the child sleeps as long as a scan takes, with its memory. Busy cores: a loop that does nothing for each core, since a scan \
uses all of them, and client and server run on the same.";

/// Asks during each disturbance.
pub fn measure(bench: &Bench) -> Result<Vec<Section>> {
    if !bench.includes("latency") {
        return Ok(Vec::new());
    }
    let mib = if bench.quick { 256 } else { 1024 };
    let mut heap = bench.heap(&["--mib", &mib.to_string(), "--serve"])?;
    let port = heap.value("port")? as u16;
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = Duration::from_secs_f64(bench.scan(&heap)?.wall_ms / 1e3);
    let mut samples = ALL.map(|disturbance| (disturbance, Vec::new()));
    let mut pauses = Vec::new();
    for round in 0..bench.rounds(ROUNDS) {
        for which in rotated(&[0, 1, 2, 3], round) {
            let Some((disturbance, times)) = samples.get_mut(which) else { continue };
            heap.touch()?;
            let mut round = asking(&mut stream, || {
                match disturbance {
                    Disturbance::Nothing => std::thread::sleep(length),
                    Disturbance::BusyCores => {
                        let _loops = busy_cores()?;
                        std::thread::sleep(length);
                    }
                    Disturbance::Fork => {
                        heap.fork(1, length)?;
                    }
                    Disturbance::Scan => pauses.push(bench.scan(&heap)?.pause_ms),
                }
                Ok(())
            })?;
            round.sort_by(f64::total_cmp);
            times.push(round);
        }
    }
    let mut section = Section {
        title: "Latency of a server that is scanned".to_owned(),
        about: ABOUT.to_owned(),
        columns: ["meanwhile", "requests", "median", "99th percentile", "99.9th", "worst"]
            .map(str::to_owned)
            .to_vec(),
        ..Section::default()
    };
    for (disturbance, rounds) in samples {
        let name = match disturbance {
            Disturbance::Nothing => "nothing",
            Disturbance::BusyCores => "busy cores",
            Disturbance::Fork => "a `fork` of its own",
            Disturbance::Scan => "a scan",
        };
        let requests: usize = rounds.iter().map(Vec::len).sum();
        let mut row = vec![name.to_owned(), number(requests as f64, 0, false)];
        row.extend(
            [0.5, 0.99, 0.999, 1.0].map(|share| show(rounds.iter().map(|times| percentile(times, share)), 2)),
        );
        section.rows.push(row);
    }
    section.remarks.push(format!(
        "Heap: {} in blocks of 200 bytes; two threads. Rounds: {}, percentiles and worst of each. Pauses of the scans: {} ms.",
        gib(mib),
        bench.rounds(ROUNDS),
        show(pauses, 1)
    ));
    progress("latency done");
    Ok(vec![section])
}

/// Sends requests as long as `work` runs; their times in milliseconds.
fn asking(stream: &mut TcpStream, work: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| requests(stream, &over));
        let outcome = work();
        over.store(true, Ordering::Relaxed);
        let times = client.join().map_err(|_| anyhow!("the client panicked"))?;
        outcome?;
        times.context("the server does not answer")
    })
}

fn requests(stream: &mut TcpStream, over: &AtomicBool) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    let mut answer = REQUEST;
    let mut due = Instant::now();
    while !over.load(Ordering::Relaxed) {
        due += INTERVAL;
        // That this thread wakes up late is not the server's fault; that the answer before came late is.
        let early = due.saturating_duration_since(Instant::now());
        let began = if early.is_zero() {
            due
        } else {
            std::thread::sleep(early);
            Instant::now()
        };
        stream.write_all(&REQUEST)?;
        stream.read_exact(&mut answer)?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        // Nor is a late wake-up of this thread a debt.
        due = due.max(began);
    }
    Ok(times)
}

/// A loop for each core, at the usual priority.
fn busy_cores() -> Result<Vec<Background>> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let start = |_| {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]).stdin(Stdio::null()).stdout(Stdio::null());
        Background::start(&mut command)
    };
    (0..cores).map(start).collect()
}

/// Of sorted samples.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_sample_that_so_many_do_not_exceed() {
        let samples: Vec<f64> = (1..=1000).map(f64::from).collect();
        assert_eq!(
            [0.5, 0.99, 0.999, 1.0].map(|share| percentile(&samples, share)),
            [500.0, 990.0, 999.0, 1000.0]
        );
        assert!(percentile(&[], 0.5).is_nan());
    }
}
