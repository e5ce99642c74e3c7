//! The one-line answer and the block of totals.

use super::paint::Paint;
use super::sites::blamed;
use super::stack::frame_at;
use crate::escape::{command_line, printable};
use crate::sparkline::sparkline;
use crate::units::{bytes, count, duration, estimated_bytes, estimated_plural, plural, share};
use leakscope_profile::{Counts, End, Kind, NamedSites, Profile, Samples};
use std::fmt::Write;

pub(super) const COMMAND_LIMIT: usize = 500;
const SPARKLINE_WIDTH: usize = 60;

/// How much was never freed, and where the largest part of it came from. `named` is sorted by bytes in use.
pub(super) fn answer(profile: &Profile, named: &NamedSites) -> String {
    let counts = &profile.totals.counts;
    let running = profile.process.end == End::Running;
    if counts.inuse_blocks == 0 && counts.inuse_bytes == 0 {
        let mut line = match &profile.sampling {
            None => nothing_in_use(counts.allocated_blocks, running),
            Some(sampling) => nothing_sampled_in_use(sampling.samples, running),
        };
        if profile.totals.missed_events > 0 {
            line.push_str(", as far as recorded");
        }
        return line + ".";
    }
    let verb = match (running, counts.inuse_bytes == 1) {
        (true, true) => "is in use, not freed so far",
        (true, false) => "are in use, not freed so far",
        (false, true) => "was never freed",
        (false, false) => "were never freed",
    };
    let mut line = match profile.sampling {
        None => format!("{} {verb}", in_blocks(counts.inuse_bytes, counts.inuse_blocks)),
        Some(_) => format!("About {} {verb}", estimated_in_use(counts, &profile.totals.samples)),
    };
    let mut unfreed =
        named.sites.iter().filter(|site| site.kind == Kind::Heap && site.counts.inuse_blocks > 0);
    if let Some(largest) = unfreed.next() {
        let part = share(largest.counts.inuse_bytes, counts.inuse_bytes);
        _ = match blamed(named, largest) {
            Some(frame) if unfreed.next().is_none() => write!(line, "; all from {}", frame_at(frame)),
            Some(frame) => write!(line, "; the largest site holds {part}: {}", frame_at(frame)),
            None => write!(line, "; the largest site, whose stack is not known, holds {part}"),
        };
    }
    line
}

fn nothing_in_use(allocated: u64, running: bool) -> String {
    match (allocated, running) {
        (0, _) => "No heap memory was allocated".to_owned(),
        (blocks, true) => format!("Nothing is in use: {} so far, all freed", allocations(blocks)),
        (blocks, false) => format!("Nothing was left unfreed: {}, all freed", allocations(blocks)),
    }
}

/// What was not sampled may still be there.
fn nothing_sampled_in_use(samples: u64, running: bool) -> String {
    match (samples, running) {
        (0, _) => "No allocation was sampled".to_owned(),
        (samples, true) => {
            format!("No sampled allocation is in use: {} so far, all freed", plural(samples, "sample"))
        }
        (samples, false) => {
            format!("No sampled allocation was left unfreed: {}, all freed", plural(samples, "sample"))
        }
    }
}

fn in_blocks(amount: u64, blocks: u64) -> String {
    format!("{} in {}", bytes(amount), plural(blocks, "block"))
}

/// What is in use, by a sample.
pub(super) fn estimated_in_use(counts: &Counts, samples: &Samples) -> String {
    let amount = estimated_bytes(counts.inuse_bytes, samples.inuse_bytes_error());
    format!("{amount} in {}", estimated_plural(counts.inuse_blocks, samples.inuse_blocks_error(), "block"))
}

fn allocations(blocks: u64) -> String {
    plural(blocks, "allocation")
}

/// Command, end, duration and totals, one per line.
pub(super) fn write(out: &mut String, profile: &Profile, paint: Paint) {
    let process = &profile.process;
    let counts = &profile.totals.counts;
    let mut line = |label: &str, value: String| {
        _ = writeln!(out, "  {} {value}", paint.dim(&format!("{label:<15}")));
    };
    if !process.command.is_empty() {
        line("command", printable(&command_line(&process.command), COMMAND_LIMIT).into_owned());
    } else if !process.executable.is_empty() {
        line("executable", printable(&process.executable, COMMAND_LIMIT).into_owned());
    }
    line("process", format!("pid {}, {}", process.pid, how_it_ended(profile)));
    if let Some(sampling) = &profile.sampling {
        let samples = plural(sampling.samples, "sample");
        let interval = bytes(sampling.interval_bytes);
        let meaning = "± is one standard error";
        line("sampled", format!("estimated from {samples}, one per {interval} on average; {meaning}"));
    }
    line("allocated", in_blocks(counts.allocated_bytes, counts.allocated_blocks));
    line("peak", in_blocks(counts.peak_bytes, counts.peak_blocks));
    let in_use = match process.end {
        End::Running => "in use now",
        End::Exited(_) => "in use at exit",
        _ => "in use at end",
    };
    line(
        in_use,
        match profile.sampling {
            None => in_blocks(counts.inuse_bytes, counts.inuse_blocks),
            Some(_) => estimated_in_use(counts, &profile.totals.samples),
        },
    );
    line("temporary", temporary(counts.temporary_blocks, counts.allocated_blocks));
    let mapped = &profile.mapped;
    if mapped.allocated_blocks > 0 || mapped.inuse_bytes > 0 {
        let still = format!("{} still mapped", bytes(mapped.inuse_bytes));
        let ever = plural(mapped.allocated_blocks, "anonymous mapping");
        line("mapped", format!("{still}, {} in {ever} by the program itself", bytes(mapped.allocated_bytes)));
    }
    let totals = &profile.totals;
    if totals.inherited_blocks > 0 {
        let inherited = in_blocks(totals.inherited_bytes, totals.inherited_blocks);
        line("inherited", format!("{inherited} from the parent process at fork"));
    }
    if totals.missed_events > 0 {
        let missed = plural(totals.missed_events, "event");
        let meaning =
            "allocator calls that were served but not recorded; the numbers may be off by as many blocks";
        line("missed", paint.warning(&format!("{missed}: {meaning}")));
    }
    if let Some(curve) = sparkline(&profile.timeline, SPARKLINE_WIDTH) {
        let highest = profile.timeline.iter().map(|point| point.inuse_bytes).max().unwrap_or(0);
        line("over time", format!("{curve}  up to {}", bytes(highest)));
    }
}

fn temporary(blocks: u64, allocated: u64) -> String {
    let mut text = plural(blocks, "block");
    if blocks > 0 {
        let part = share(blocks, allocated);
        _ = write!(text, " ({part} of all), freed by the same thread before it allocated again");
    }
    text
}

fn how_it_ended(profile: &Profile) -> String {
    let seconds = profile.timeline.last().map(|point| point.seconds).filter(|s| s.is_finite() && *s > 0.0);
    let after = seconds.map(|s| format!(" after {}", duration(s))).unwrap_or_default();
    match profile.process.end {
        End::Running => match seconds {
            Some(s) => format!("running for {}", duration(s)),
            None => "running".to_owned(),
        },
        End::Exited(status) => format!("exited with status {status}{after}"),
        End::Signaled(signal) => format!("killed by {}{after}", signal_name(signal)),
        End::Replaced => format!("replaced itself by another program (exec){after}"),
        End::Unknown => format!("ended{after}, how is not known"),
    }
}

/// A signal by its number on x86-64.
pub(super) fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = usize::try_from(signal).ok().and_then(|n| NAMES.get(n.checked_sub(1)?));
    match name {
        Some(name) => format!("SIG{name} (signal {signal})"),
        None => format!("signal {signal}"),
    }
}

/// `1,234 more sites`, with what they hold.
pub(super) fn rest(sites: usize, value: u64, is_bytes: bool) -> String {
    let amount = if is_bytes { bytes(value) } else { plural(value, "block") };
    format!("… and {} more site{} with {amount}", count(sites as u64), if sites == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::signal_name;

    #[test]
    fn signals_have_their_linux_names() {
        // From `kill -l` on x86-64 Linux.
        assert_eq!(signal_name(1), "SIGHUP (signal 1)");
        assert_eq!(signal_name(9), "SIGKILL (signal 9)");
        assert_eq!(signal_name(11), "SIGSEGV (signal 11)");
        assert_eq!(signal_name(15), "SIGTERM (signal 15)");
        assert_eq!(signal_name(31), "SIGSYS (signal 31)");
        assert_eq!(signal_name(64), "signal 64");
        assert_eq!(signal_name(i32::MIN), "signal -2147483648");
    }
}
