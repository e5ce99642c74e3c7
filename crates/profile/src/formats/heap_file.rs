//! leakscope's own heap file, live or sealed.

use crate::{
    CodeAddress, Counts, End, Kind, Module, Process, Profile, Samples, Sampling, Site, TimelinePoint, Totals,
};
use leakscope_heapfile::layout::{
    self, MODULE_PSEUDO, PC_BITS, PSEUDO_MAPPED, PSEUDO_TRUNCATED, STOP_ADDRESS_SPACE, TICK_MS,
};
use leakscope_heapfile::sampling::{Scale, Weight};
use leakscope_heapfile::{self as heapfile, Arena, BlockKind, Snapshot, sealed};
use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Why a heap file could not be read.
pub type Error = heapfile::Error;

/// Reads the profile of one process from a heap file in either form. In a live file, which holds all processes
/// of a run, `pid` chooses one; none means the command itself. A sealed file holds one process.
///
/// # Errors
/// If the file cannot be read, is not a heap file, is of another version, is damaged or has not that process.
pub fn read_heap_file(path: &Path, pid: Option<u32>) -> Result<Profile, Error> {
    let io = |source| Error::Io { action: "open", path: path.into(), source };
    // To open a named pipe is to wait for somebody to write to it, which may be never. A pipe that this process was
    // given (`/dev/stdin`) has its writer.
    let was_given = path.starts_with("/dev") || path.starts_with("/proc");
    if !was_given && path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        return Err(Error::NotAHeapFile { path: path.into(), found: "it is a named pipe".into() });
    }
    let mut file = File::open(path).map_err(io)?;
    let mut magic = [0u8; 8];
    let io = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => {
            Error::NotAHeapFile { path: path.into(), found: "it is shorter than eight bytes".into() }
        }
        _ => Error::Io { action: "read", path: path.into(), source },
    };
    file.read_exact(&mut magic).map_err(io)?;
    if u64::from_le_bytes(magic) == layout::MAGIC {
        return read_live(path, pid);
    }
    if &magic != sealed::MAGIC {
        let found = format!("it begins with {}", magic.escape_ascii());
        return Err(Error::NotAHeapFile { path: path.into(), found });
    }
    let mut bytes = magic.to_vec();
    file.read_to_end(&mut bytes).map_err(|source| Error::Io { action: "read", path: path.into(), source })?;
    let profile = from_snapshot(&sealed::decode(&bytes, path)?);
    match pid.filter(|&wanted| wanted != profile.process.pid) {
        Some(wanted) => Err(Error::NoProcess { path: path.into(), wanted, known: vec![profile.process.pid] }),
        None => Ok(profile),
    }
}

fn read_live(path: &Path, pid: Option<u32>) -> Result<Profile, Error> {
    let arena = Arena::open(path)?;
    let root = arena.superblock().root_pid.load(std::sync::atomic::Ordering::Acquire);
    let wanted = pid.unwrap_or(root);
    let mut best: Option<(u32, u64)> = None;
    let mut known = Vec::new();
    for offset in arena.windows() {
        let Some(window) = arena.window(offset) else { continue };
        let serial = window.serial.load(std::sync::atomic::Ordering::Acquire);
        // In a pid namespace of its own, the process knows itself by another one.
        let own = match window.host_pid.load(std::sync::atomic::Ordering::Acquire) {
            0 => window.pid.load(std::sync::atomic::Ordering::Acquire),
            pid => pid,
        };
        known.push(own);
        if (own == wanted || wanted == 0) && best.is_none_or(|(other, _)| other < serial) {
            best = Some((serial, offset));
        }
    }
    let Some((_, offset)) = best else {
        return Err(Error::NoProcess { path: path.into(), wanted, known });
    };
    let mut snapshot = arena.snapshot(offset)?;
    if snapshot.process.end == heapfile::End::Running && !is_alive(&snapshot.process) {
        snapshot.process.end = heapfile::End::Unknown;
    }
    Ok(from_snapshot(&snapshot))
}

/// Whether the process of a window still runs, by its pid and start time.
fn is_alive(process: &heapfile::Process) -> bool {
    let pid = if process.host_pid != 0 { process.host_pid } else { process.pid };
    leakscope_proc::stat(Path::new("/proc"), pid)
        .is_ok_and(|stat| !stat.has_ended() && stat.start_ticks == process.start_ticks)
}

/// The profile that a snapshot describes.
pub fn from_snapshot(snapshot: &Snapshot) -> Profile {
    let modules: Vec<Module> = snapshot.modules.iter().map(module).collect();
    let module_index: HashMap<u32, u32> =
        snapshot.modules.iter().enumerate().map(|(index, module)| (module.id, index as u32)).collect();
    let scale = Scale::of(snapshot.sampling_interval);
    let in_use = in_use_by_stack(snapshot);
    let mut sites = Vec::new();
    let mut totals = Totals::default();
    let mut mapped = Counts::default();
    for (number, stack) in snapshot.stacks.iter().enumerate() {
        let (weight, mut samples) = in_use.get(number).copied().unwrap_or_default();
        samples.allocated = stack.samples;
        let counts = Counts {
            inuse_bytes: scale.bytes(weight.bytes),
            inuse_blocks: scale.blocks(weight.blocks),
            allocated_bytes: stack.allocated_bytes,
            allocated_blocks: stack.allocated_blocks,
            peak_bytes: stack.peak_bytes,
            peak_blocks: stack.peak_blocks,
            temporary_blocks: stack.temporary,
        };
        if counts == Counts::default() {
            continue;
        }
        let mut site = walk(snapshot, stack.node, &module_index);
        (site.counts, site.samples) = (counts, samples);
        match site.kind {
            Kind::Mapped => mapped += counts,
            Kind::Heap => {
                totals.counts += counts;
                totals.samples += samples;
            }
        }
        sites.push(site);
    }
    totals.missed_events = snapshot.missed_nested.saturating_add(snapshot.missed_full);
    totals.inherited_blocks = snapshot.inherited_blocks;
    totals.inherited_bytes = snapshot.inherited_bytes;
    Profile {
        process: process(snapshot),
        sampling: (snapshot.sampling_interval != 0).then_some(Sampling {
            interval_bytes: snapshot.sampling_interval,
            samples: totals.samples.allocated,
        }),
        totals,
        mapped,
        timeline: timeline(snapshot),
        modules,
        sites,
        notes: notes(snapshot),
    }
}

/// A profile of nothing but the stacks with these numbers: one site for each, in their order, without counts. For
/// naming the stacks of single blocks.
pub fn stacks(snapshot: &Snapshot, numbers: &[u32]) -> Profile {
    let module_index: HashMap<u32, u32> =
        snapshot.modules.iter().enumerate().map(|(index, module)| (module.id, index as u32)).collect();
    let node = |&number: &u32| snapshot.stacks.get(number as usize).map_or(0, |stack| stack.node);
    Profile {
        process: process(snapshot),
        modules: snapshot.modules.iter().map(module).collect(),
        sites: numbers.iter().map(|number| walk(snapshot, node(number), &module_index)).collect(),
        ..Profile::default()
    }
}

/// What is in use by stack number, from the blocks themselves.
fn in_use_by_stack(snapshot: &Snapshot) -> Vec<(Weight, Samples)> {
    let mut in_use = vec![<(Weight, Samples)>::default(); snapshot.stacks.len().max(1)];
    for block in &snapshot.blocks {
        // A stack that is not known is summed with those that did not fit.
        let number = if (block.stack as usize) < in_use.len() { block.stack as usize } else { 0 };
        if let Some((sum, samples)) = in_use.get_mut(number) {
            let weight = snapshot.weight(block);
            sum.blocks = sum.blocks.saturating_add(weight.blocks);
            sum.bytes = sum.bytes.saturating_add(weight.bytes);
            if block.kind != BlockKind::Mapped {
                *samples += Samples::of_block(block.size, snapshot.sampling_interval);
            }
        }
    }
    in_use
}

/// Follows a node to the root.
fn walk(snapshot: &Snapshot, node: u32, modules: &HashMap<u32, u32>) -> Site {
    let mut site = Site::default();
    let mut number = node;
    // The trie is at most as deep as the tracer records; more is a cycle in a damaged file.
    for _ in 0..layout::NODE_BLOCK {
        let Some(node) = snapshot.nodes.get(number as usize).filter(|_| number != 0) else { break };
        let (address, module) = (node.key & ((1 << PC_BITS) - 1), (node.key >> PC_BITS) as u16);
        match (module, address) {
            (MODULE_PSEUDO, PSEUDO_MAPPED) => site.kind = Kind::Mapped,
            (MODULE_PSEUDO, PSEUDO_TRUNCATED) => site.truncated = true,
            (MODULE_PSEUDO, _) => {}
            _ => {
                let module = modules.get(&u32::from(module)).copied();
                site.stack.push(CodeAddress { module, address });
            }
        }
        number = node.parent;
    }
    if node == 0 {
        site.truncated = true;
    }
    site
}

fn module(module: &heapfile::Module) -> Module {
    Module {
        path: String::from_utf8_lossy(&module.path).into_owned(),
        build_id: module.build_id.clone(),
        start: module.start,
        end: module.end,
        bias: module.bias,
        unloaded: module.unloaded != 0,
    }
}

fn process(snapshot: &Snapshot) -> Process {
    let process = &snapshot.process;
    let mut command: Vec<String> = process
        .command
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    if command.last().is_some_and(String::is_empty) {
        command.pop();
    }
    let since_epoch = Duration::from_nanos(snapshot.realtime_ns)
        + Duration::from_millis(u64::from(process.started) * TICK_MS);
    Process {
        pid: if process.host_pid != 0 { process.host_pid } else { process.pid },
        start_time: (snapshot.realtime_ns != 0)
            .then(|| SystemTime::UNIX_EPOCH.checked_add(since_epoch))
            .flatten(),
        command,
        executable: String::from_utf8_lossy(&process.exe).into_owned(),
        end: match process.end {
            heapfile::End::Running => End::Running,
            heapfile::End::Exited(status) => End::Exited(status as i32),
            heapfile::End::Signaled(signal) => End::Signaled(signal as i32),
            heapfile::End::Replaced => End::Replaced,
            heapfile::End::Unknown => End::Unknown,
        },
    }
}

fn timeline(snapshot: &Snapshot) -> Vec<TimelinePoint> {
    let started = snapshot.process.started;
    let points = snapshot.timeline.iter();
    points
        .map(|point| TimelinePoint {
            seconds: f64::from(point.tick.saturating_sub(started)) * TICK_MS as f64 / 1000.0,
            inuse_bytes: point.inuse,
            rss_bytes: point.rss,
            allocated_bytes: point.allocated,
        })
        .collect()
}

fn notes(snapshot: &Snapshot) -> Vec<String> {
    let mut notes = Vec::new();
    let process = &snapshot.process;
    if process.own_malloc {
        notes.push(
            "the executable brings its own malloc, so most of its allocations were not seen; \
             only what other libraries allocate through the C library is listed"
                .into(),
        );
    }
    if process.stop_reason == STOP_ADDRESS_SPACE {
        notes.push("tracing stopped early: the process limited its own address space".into());
    } else if process.stop_reason != 0 {
        notes.push("tracing stopped early: no memory for the heap file".into());
    }
    if snapshot.missed_full > 0 {
        notes.push(format!(
            "{} allocations were not recorded: the heap file had no space",
            snapshot.missed_full
        ));
    }
    if process.forked && snapshot.inherited_blocks > 0 {
        notes.push(format!(
            "a forked child: it inherited {} blocks ({} bytes) from its parent, freed {} of them \
             ({} bytes), and its own allocations are counted from the fork on",
            snapshot.inherited_blocks,
            snapshot.inherited_bytes,
            snapshot.inherited_freed_blocks,
            snapshot.inherited_freed_bytes
        ));
    }
    if snapshot.bad_references > 0 {
        notes.push(format!(
            "{} references in the heap file led nowhere; some blocks or stacks may be missing",
            snapshot.bad_references
        ));
    }
    notes
}
