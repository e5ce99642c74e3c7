//! redis: requests per second that redis-benchmark gets out of a traced server.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::child::{self, Background, last_lines, progress};
use super::stats::{Spread, number};
use super::table::{Bound, Section};
use super::tool::Tool;
use super::{Bench, arguments, rotated};

/// One way to put load on the server.
struct Load {
    name: &'static str,
    /// Requests that each client sends before it waits for answers.
    pipeline: &'static str,
    requests: u64,
}

const LOADS: [Load; 2] = [
    Load { name: "redis", pipeline: "1", requests: 100_000 },
    Load { name: "redis-pipelined", pipeline: "16", requests: 600_000 },
];

const ROUNDS: usize = 5;
const SLOW_ROUNDS: usize = 1;

const ABOUT: &str = "\
Requests per second, SET and GET of 256-byte values over 100,000 keys by 20 clients, with each client waiting for every \
answer (`redis`) or sending 16 requests at once (`redis-pipelined`). Native as it is, the tools as a share of it.";

/// Runs a server per tool and round, and puts both loads on it.
pub fn measure(bench: &Bench) -> Result<Option<Section>> {
    let loads: Vec<&Load> = LOADS.iter().filter(|load| bench.includes(load.name)).collect();
    if loads.is_empty() {
        return Ok(None);
    }
    let mut columns = vec!["load".to_owned()];
    columns.extend(bench.tools.available().iter().map(|tool| tool.name().to_owned()));
    let mut section =
        Section { title: "redis".to_owned(), about: ABOUT.to_owned(), columns, ..Section::default() };
    for load in loads {
        let mut samples: Vec<(Tool, Vec<(usize, f64)>)> =
            bench.tools.available().iter().map(|tool| (*tool, Vec::new())).collect();
        let order: Vec<usize> = (0..samples.len()).collect();
        for round in 0..bench.rounds(ROUNDS) {
            for index in rotated(&order, round) {
                let Some((tool, values)) = samples.get_mut(index) else { continue };
                if tool.is_slow() && round >= bench.rounds(SLOW_ROUNDS) {
                    continue;
                }
                match throughput(bench, *tool, load) {
                    Ok(rate) => values.push((round, rate)),
                    Err(error) if matches!(tool, Tool::Native | Tool::Leakscope) => return Err(error),
                    Err(error) => {
                        progress(&format!("{} under {}: {error:#}", load.name, tool.name()));
                        section.remarks.push(format!("{} failed on {}.", tool.name(), load.name));
                    }
                }
            }
        }
        let native: Vec<(usize, f64)> =
            samples.iter().filter(|(tool, _)| *tool == Tool::Native).flat_map(|(_, v)| v.clone()).collect();
        let mut row = vec![load.name.to_owned()];
        for (tool, values) in &samples {
            let share = |(round, rate): &(usize, f64)| {
                let (_, base) = native.iter().find(|(other, _)| other == round)?;
                Some(if *tool == Tool::Native { *rate } else { rate / base })
            };
            let Some(spread) = Spread::of(values.iter().filter_map(share)) else {
                row.push("failed".to_owned());
                continue;
            };
            row.push(spread.show(if *tool == Tool::Native { 0 } else { 2 }, false));
            if *tool == Tool::Leakscope {
                let name = format!("{}: throughput, of native's", load.name);
                section.bounds.push(Bound {
                    name,
                    limit: 0.85,
                    measured: spread.median,
                    unit: "",
                    at_least: true,
                });
            }
        }
        progress(&format!("{}: native {}", load.name, number(native.first().map_or(0.0, |n| n.1), 0, false)));
        section.rows.push(row);
    }
    section.remarks.push(format!(
        "Rounds: {} for leakscope and heaptrack, {} with a tenth of the requests for the others. Debian's redis is \
         linked with jemalloc; gperftools and jemalloc take its place.",
        bench.rounds(ROUNDS),
        bench.rounds(SLOW_ROUNDS)
    ));
    Ok(Some(section))
}

fn throughput(bench: &Bench, tool: Tool, load: &Load) -> Result<f64> {
    let scratch = bench.scratch()?;
    let port = free_port()?;
    let words = arguments(&[
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        &scratch.path().to_string_lossy(),
    ]);
    let program = Path::new("/usr/bin/redis-server");
    let program = if program.exists() { program } else { Path::new("redis-server") };
    let mut command = bench.tools.command(tool, program, &words, scratch.path());
    let stderr = scratch.path().join("server-stderr");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(std::fs::File::create(&stderr)?);
    let mut server = Background::start(&mut command)?;
    wait_until_ready(&mut server, port)
        .with_context(|| format!("redis-server under {}: {}", tool.name(), last_lines(&stderr)))?;

    let divisor = if tool.is_slow() { 10 } else { 1 } * if bench.quick { 5 } else { 1 };
    let mut client = Command::new("redis-benchmark");
    client.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "20", "-d", "256", "-r", "100000"]);
    client.args([
        "-t",
        "set,get",
        "--csv",
        "-P",
        load.pipeline,
        "-n",
        &(load.requests / divisor).to_string(),
    ]);
    let finished = child::run(&mut client, scratch.path(), Duration::from_secs(180))?;
    let rate = mean_rate(&finished.stdout)?;
    command_redis(port, "SHUTDOWN NOSAVE")?;
    server.finish(Duration::from_secs(120)).with_context(|| format!("redis-server under {}", tool.name()))?;
    Ok(rate)
}

/// A port that nothing listened on a moment ago.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn wait_until_ready(server: &mut Background, port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(status) = server.ended()? {
            bail!("ended at once: {status}");
        }
        if command_redis(port, "PING").is_ok_and(|answer| answer.starts_with("+PONG")) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("does not answer")
}

fn command_redis(port: u16, command: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = [0; 64];
    // SHUTDOWN is answered by the end of the connection.
    let length = stream.read(&mut answer).unwrap_or(0);
    Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
}

/// The requests per second of both tests taken together, from lines like `"SET","123456.7","0.1",...`.
fn mean_rate(csv: &str) -> Result<f64> {
    let rate = |test: &str| {
        let line = csv.lines().find(|line| line.starts_with(&format!("\"{test}\"")))?;
        line.split(',').nth(1)?.trim_matches('"').parse::<f64>().ok()
    };
    let (Some(set), Some(get)) = (rate("SET"), rate("GET")) else {
        bail!("redis-benchmark printed no rates: {csv}");
    };
    // As many of one as of the other, so the harmonic mean.
    Ok(2.0 / (1.0 / set + 1.0 / get))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_all_requests_over_all_the_time() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"100.0\",\"1\"\n\"GET\",\"300.0\",\"1\"\n";
        assert_eq!(mean_rate(csv).expect("both rates"), 150.0);
        assert!(mean_rate("\"SET\",\"100.0\"\n").is_err());
    }
}
