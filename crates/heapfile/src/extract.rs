//! From the live form to plain vectors. The chunks are copied first; then only the copies are looked at, so
//! nothing changes between a check and its use.

use crate::layout::{
    BUCKET_SLOTS, CHUNK, COUNTER_DIR, COUNTER_PAGE, Counters, FLAG_OWN_MALLOC, MAPPED_SPACE, ModuleRecord,
    NODE_BLOCK, NodeRecord, ORIGIN_FORK, REGION_SHIFT, SPAN_REGIONS, SPAN_SHIFT, STACK_BLOCK, Segment, Shard,
    TIMELINE, UNIT, Window, slot,
};
use crate::sampling::Scale;
use crate::{Arena, Block, BlockKind, End, Module, Node, Process, Snapshot, Stack, Thread, TimelinePoint};
use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::{AtomicU8, AtomicU32};

/// Unit of mapped sizes.
const PAGE: u64 = 4096;
const MAX_CHAIN: usize = 4096;

/// A private copy of a window's chunks.
struct Copy {
    chunks: HashMap<u64, Box<[u64]>>,
    /// References that led outside.
    bad: u64,
}

impl Copy {
    fn u64(&self, offset: u64) -> Option<u64> {
        if !offset.is_multiple_of(8) {
            return None;
        }
        self.chunks.get(&(offset / CHUNK))?.get((offset % CHUNK / 8) as usize).copied()
    }
    fn u32(&self, offset: u64) -> Option<u32> {
        let word = self.u64(offset & !7)?;
        Some(if offset & 4 == 0 { word as u32 } else { (word >> 32) as u32 })
    }
    fn byte(&self, offset: u64) -> Option<u8> {
        self.u64(offset & !7).map(|word| (word >> (offset % 8 * 8)) as u8)
    }
    fn bytes(&self, offset: u64, length: u64) -> Vec<u8> {
        (0..length.min(CHUNK)).map_while(|index| self.byte(offset + index)).collect()
    }
    /// Counts a reference that did not lead anywhere.
    fn checked<T>(&mut self, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.bad += 1;
        }
        value
    }
}

pub(crate) fn snapshot(arena: &Arena, offset: u64) -> Option<Snapshot> {
    let window = arena.window(offset)?;
    let mut copy = Copy { chunks: HashMap::new(), bad: 0 };
    for (start, count) in arena.chunks_of(offset) {
        for number in start / CHUNK..start / CHUNK + count {
            if let Some(chunk) = arena.copy_chunk(number * CHUNK) {
                copy.chunks.insert(number, chunk);
            }
        }
    }
    let superblock = arena.superblock();
    let scale = Scale::of(superblock.sampling_interval);
    let mut snapshot = Snapshot {
        process: process(window),
        realtime_ns: superblock.realtime_ns,
        tick: arena.tick(),
        sampling_interval: superblock.sampling_interval,
        missed_nested: window.missed_nested.load(Acquire),
        missed_full: window.missed_full.load(Acquire),
        unknown_frees: window.unknown_frees.load(Acquire),
        inherited_blocks: scale.blocks(window.inherited_blocks.load(Acquire)),
        inherited_bytes: scale.bytes(window.inherited_bytes.load(Acquire)),
        inherited_freed_blocks: scale.blocks(window.inherited_freed_blocks.load(Acquire)),
        inherited_freed_bytes: scale.bytes(window.inherited_freed_bytes.load(Acquire)),
        ..Snapshot::default()
    };
    let base = offset;
    snapshot.blocks = blocks(&mut copy, window, base);
    snapshot.stacks = stacks(&mut copy, window, base);
    counters(&mut copy, window, base, &mut snapshot.stacks);
    for stack in &mut snapshot.stacks {
        unscale(stack, scale);
    }
    snapshot.nodes = nodes(&mut copy, window, base);
    snapshot.modules = modules(&mut copy, base);
    snapshot.threads = threads(window);
    snapshot.timeline = timeline(window, scale);
    snapshot.bad_references = copy.bad;
    settle_peak(&mut snapshot);
    Some(snapshot)
}

fn text(bytes: &[AtomicU8], length: &AtomicU32) -> Vec<u8> {
    bytes.iter().take(length.load(Acquire) as usize).map(|byte| byte.load(Acquire)).collect()
}

fn process(window: &Window) -> Process {
    let status = window.end_status.load(Acquire);
    Process {
        pid: window.pid.load(Acquire),
        host_pid: window.host_pid.load(Acquire),
        ppid: window.ppid.load(Acquire),
        start_ticks: window.start_ticks.load(Acquire),
        started: window.started.load(Acquire),
        serial: window.serial.load(Acquire),
        forked: window.origin.load(Acquire) == ORIGIN_FORK,
        own_malloc: window.flags.load(Acquire) & FLAG_OWN_MALLOC != 0,
        stop_reason: window.stop_reason.load(Acquire),
        exe: text(&window.exe, &window.exe_len),
        command: text(&window.command, &window.command_len),
        end: match window.end.load(Acquire) {
            0 => End::Running,
            1 => End::Exited(status),
            2 => End::Signaled(status),
            3 => End::Replaced,
            _ => End::Unknown,
        },
    }
}

fn blocks(copy: &mut Copy, window: &Window, base: u64) -> Vec<Block> {
    let huge: HashMap<u64, u64> = window
        .huge
        .iter()
        .map(|entry| (entry.address.load(Acquire), entry.size.load(Acquire)))
        .filter(|&(address, _)| address != 0)
        .collect();
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for index in 0..window.spans.len() as u64 {
        let entry = copy.u64(base + offset_of!(Window, spans) as u64 + index * 8).unwrap_or(0);
        if entry == 0 {
            continue;
        }
        // The bit that tells mappings' regions apart is not part of their address.
        let span = (entry >> 32 << SPAN_SHIFT) & !MAPPED_SPACE;
        let page = (entry & 0xffff_ffff) * UNIT;
        for region in 0..SPAN_REGIONS as u64 {
            let word = copy.u64(page + region * 8);
            let Some(word) = copy.checked(word) else { break };
            let region = span + (region << REGION_SHIFT);
            let mut segment = (word & 0xffff_ffff) * UNIT;
            for _ in 0..MAX_CHAIN {
                // A segment belongs to one region; one met twice is a loop or damage.
                if segment == 0 || !seen.insert(segment) {
                    break;
                }
                let Some(next) = segment_blocks(copy, segment, region, &huge, &mut found) else { break };
                segment = u64::from(next) * UNIT;
            }
        }
    }
    // A block that was freed and handed out again between two chunks' copies is there twice; the newer one counts.
    found.sort_by_key(|block| {
        (block.address, block.kind == BlockKind::Mapped, std::cmp::Reverse(block.birth))
    });
    found.dedup_by_key(|block| (block.address, block.kind == BlockKind::Mapped));
    found
}

/// Collects a segment's blocks; returns the next segment.
fn segment_blocks(
    copy: &mut Copy,
    segment: u64,
    region: u64,
    huge: &HashMap<u64, u64>,
    found: &mut Vec<Block>,
) -> Option<u32> {
    let next = copy.u32(segment + offset_of!(Segment, next) as u64);
    let next = copy.checked(next)?;
    let buckets = copy.u32(segment + offset_of!(Segment, buckets) as u64).unwrap_or(0);
    let slots = u64::from(buckets).saturating_mul(BUCKET_SLOTS as u64).min(CHUNK / 16);
    let first = segment + size_of::<Segment>() as u64;
    for index in 0..slots {
        let at = first + index * 16;
        let (Some(word0), Some(word1)) = (copy.u64(at), copy.u64(at + 8)) else { break };
        let kind = match slot::state(word0) {
            slot::HEAP => BlockKind::Heap,
            slot::IN_FLIGHT => BlockKind::InFlight,
            slot::MAPPED => BlockKind::Mapped,
            _ => continue,
        };
        let address = region + slot::offset(word0);
        let size = match (kind, slot::size(word1)) {
            (BlockKind::Mapped, pages) => u64::from(pages) * PAGE,
            (_, slot::HUGE_SIZE) => huge.get(&address).copied().unwrap_or(u64::from(slot::HUGE_SIZE)),
            (_, size) => u64::from(size),
        };
        found.push(Block {
            address,
            size,
            stack: slot::stack(word0),
            birth: slot::birth(word1),
            thread: slot::thread(word0),
            kind,
        });
    }
    Some(next)
}

fn stacks(copy: &mut Copy, window: &Window, base: u64) -> Vec<Stack> {
    let count = (window.stacks.load(Acquire) as usize).min(window.stack_blocks.len() * STACK_BLOCK);
    let mut stacks = Vec::new();
    for index in 0..count as u64 {
        let entry = base + offset_of!(Window, stack_blocks) as u64 + index / STACK_BLOCK as u64 * 4;
        let block = copy.u32(entry).unwrap_or(0);
        if block == 0 && index % STACK_BLOCK as u64 != 0 && index >= STACK_BLOCK as u64 {
            // A count without blocks behind it: damage, or a thread that is about to make one.
            break;
        }
        let node = copy.u32(u64::from(block) * UNIT + index % STACK_BLOCK as u64 * 4).unwrap_or(0);
        stacks.push(Stack { node: if block == 0 { 0 } else { node }, ..Stack::default() });
    }
    if stacks.is_empty() {
        stacks.push(Stack::default());
    }
    stacks
}

fn counters(copy: &mut Copy, window: &Window, base: u64, stacks: &mut [Stack]) {
    let epoch = window.epoch.load(Acquire);
    let shards = (window.shard_count.load(Acquire) as usize).min(window.shards.len()) as u64;
    let mut peaks = vec![(0i64, 0i64); stacks.len()];
    let mut seen = HashSet::new();
    for index in 0..shards {
        let shard =
            u64::from(copy.u32(base + offset_of!(Window, shards) as u64 + index * 4).unwrap_or(0)) * UNIT;
        if shard == 0 || !seen.insert(shard) {
            continue;
        }
        for upper in 0..COUNTER_DIR as u64 {
            let entry = copy.u32(shard + offset_of!(Shard, counters) as u64 + upper * 4);
            let directory = u64::from(copy.checked(entry).unwrap_or(0)) * UNIT;
            if directory == 0 || !seen.insert(directory) {
                continue;
            }
            for lower in 0..COUNTER_DIR as u64 {
                let entry = copy.u32(directory + lower * 4);
                let page = u64::from(copy.checked(entry).unwrap_or(0)) * UNIT;
                if page == 0 || !seen.insert(page) {
                    continue;
                }
                let first = (upper * COUNTER_DIR as u64 + lower) * COUNTER_PAGE as u64;
                for place in 0..COUNTER_PAGE as u64 {
                    let number = (first + place) as usize;
                    let (Some(stack), Some(peak)) = (stacks.get_mut(number), peaks.get_mut(number)) else {
                        break;
                    };
                    let at = page + place * size_of::<Counters>() as u64;
                    let word = |field: usize| copy.u64(at + field as u64).unwrap_or(0);
                    let allocated_blocks = word(offset_of!(Counters, allocated_blocks));
                    let allocated_bytes = word(offset_of!(Counters, allocated_bytes));
                    let freed_blocks = word(offset_of!(Counters, freed_blocks));
                    let freed_bytes = word(offset_of!(Counters, freed_bytes));
                    stack.allocated_blocks = stack.allocated_blocks.wrapping_add(allocated_blocks);
                    stack.allocated_bytes = stack.allocated_bytes.wrapping_add(allocated_bytes);
                    stack.freed_blocks = stack.freed_blocks.wrapping_add(freed_blocks);
                    stack.freed_bytes = stack.freed_bytes.wrapping_add(freed_bytes);
                    stack.temporary = stack.temporary.wrapping_add(word(offset_of!(Counters, temporary)));
                    let samples = copy.u32(at + offset_of!(Counters, samples) as u64).unwrap_or(0);
                    stack.samples = stack.samples.wrapping_add(u64::from(samples));
                    let own_epoch = copy.u32(at + offset_of!(Counters, epoch) as u64).unwrap_or(0);
                    let (blocks, bytes) = if own_epoch == epoch {
                        (
                            word(offset_of!(Counters, peak_blocks)) as i64,
                            word(offset_of!(Counters, peak_bytes)) as i64,
                        )
                    } else {
                        (
                            allocated_blocks.wrapping_sub(freed_blocks) as i64,
                            allocated_bytes.wrapping_sub(freed_bytes) as i64,
                        )
                    };
                    *peak = (peak.0.wrapping_add(blocks), peak.1.wrapping_add(bytes));
                }
            }
        }
    }
    for (stack, (blocks, bytes)) in stacks.iter_mut().zip(peaks) {
        stack.peak_blocks = u64::try_from(blocks).unwrap_or(0);
        stack.peak_bytes = u64::try_from(bytes).unwrap_or(0);
    }
}

/// From sums of weights to blocks and bytes.
fn unscale(stack: &mut Stack, scale: Scale) {
    for blocks in
        [&mut stack.allocated_blocks, &mut stack.freed_blocks, &mut stack.peak_blocks, &mut stack.temporary]
    {
        *blocks = scale.blocks(*blocks);
    }
    for bytes in [&mut stack.allocated_bytes, &mut stack.freed_bytes, &mut stack.peak_bytes] {
        *bytes = scale.bytes(*bytes);
    }
}

/// The last stamping may be up to 1% below what was reached since; what is in use now may even be the peak.
fn settle_peak(snapshot: &mut Snapshot) {
    let scale = Scale::of(snapshot.sampling_interval);
    let mut now = vec![(0u64, 0u64); snapshot.stacks.len()];
    for block in snapshot.blocks.iter().filter(|block| block.kind != BlockKind::Mapped) {
        if let Some(sums) = now.get_mut(block.stack as usize) {
            let weight = snapshot.weight(block);
            *sums = (sums.0.saturating_add(weight.blocks), sums.1.saturating_add(weight.bytes));
        }
    }
    for (blocks, bytes) in &mut now {
        (*blocks, *bytes) = (scale.blocks(*blocks), scale.bytes(*bytes));
    }
    let heap_now = now.iter().fold(0u64, |sum, &(_, bytes)| sum.saturating_add(bytes));
    let stamped = snapshot.stacks.iter().zip(&now).fold(0u64, |sum, (stack, _)| {
        sum.saturating_add(if is_mapped(&snapshot.nodes, stack.node) { 0 } else { stack.peak_bytes })
    });
    if heap_now > stamped {
        for (stack, (blocks, bytes)) in snapshot.stacks.iter_mut().zip(now) {
            if !is_mapped(&snapshot.nodes, stack.node) {
                stack.peak_blocks = blocks;
                stack.peak_bytes = bytes;
            }
        }
    }
}

fn is_mapped(nodes: &[Node], node: u32) -> bool {
    use crate::layout::{MODULE_PSEUDO, PC_BITS, PSEUDO_MAPPED};
    nodes
        .get(node as usize)
        .is_some_and(|node| node.key == u64::from(MODULE_PSEUDO) << PC_BITS | PSEUDO_MAPPED)
}

fn nodes(copy: &mut Copy, window: &Window, base: u64) -> Vec<Node> {
    let count = (window.nodes.load(Acquire) as usize).min(window.node_blocks.len() * NODE_BLOCK);
    let mut nodes = Vec::new();
    for index in 0..count as u64 {
        let entry = base + offset_of!(Window, node_blocks) as u64 + index / NODE_BLOCK as u64 * 4;
        let block = u64::from(copy.u32(entry).unwrap_or(0)) * UNIT;
        if block == 0 {
            if index < NODE_BLOCK as u64 {
                nodes.push(Node::default());
            }
            break;
        }
        let at = block + index % NODE_BLOCK as u64 * size_of::<NodeRecord>() as u64;
        let key = copy.u64(at + offset_of!(NodeRecord, key) as u64);
        let Some(key) = copy.checked(key) else { break };
        let parent = copy.u32(at + offset_of!(NodeRecord, parent) as u64).unwrap_or(0);
        nodes.push(Node { parent, key });
    }
    nodes
}

fn modules(copy: &mut Copy, base: u64) -> Vec<Module> {
    let mut modules = Vec::new();
    let mut at = u64::from(copy.u32(base + offset_of!(Window, modules) as u64).unwrap_or(0)) * UNIT;
    while at != 0 && modules.len() < 4096 {
        let field32 = |copy: &Copy, field: usize| copy.u32(at + field as u64);
        let field64 = |copy: &Copy, field: usize| copy.u64(at + field as u64).unwrap_or(0);
        let id = field32(copy, offset_of!(ModuleRecord, id));
        let Some(id) = copy.checked(id) else { break };
        let build_id_len = field32(copy, offset_of!(ModuleRecord, build_id_len)).unwrap_or(0).min(32);
        let path_len = field32(copy, offset_of!(ModuleRecord, path_len)).unwrap_or(0).min(4096);
        modules.push(Module {
            id,
            start: field64(copy, offset_of!(ModuleRecord, start)),
            end: field64(copy, offset_of!(ModuleRecord, end)),
            bias: field64(copy, offset_of!(ModuleRecord, bias)),
            unloaded: field32(copy, offset_of!(ModuleRecord, unloaded)).unwrap_or(0),
            build_id: copy.bytes(at + offset_of!(ModuleRecord, build_id) as u64, build_id_len.into()),
            path: copy.bytes(at + size_of::<ModuleRecord>() as u64, path_len.into()),
        });
        at = u64::from(field32(copy, offset_of!(ModuleRecord, next)).unwrap_or(0)) * UNIT;
    }
    modules.sort_by_key(|module| module.id);
    modules
}

fn threads(window: &Window) -> Vec<Thread> {
    let mut threads: Vec<Thread> = window
        .threads
        .iter()
        .filter(|record| record.tid.load(Acquire) != 0)
        .map(|record| Thread {
            sequence: record.sequence.load(Acquire),
            tid: record.tid.load(Acquire),
            started: record.started.load(Acquire),
            name: record.name.iter().map(|byte| byte.load(Acquire)).take_while(|&byte| byte != 0).collect(),
        })
        .collect();
    threads.sort_by_key(|thread| thread.sequence);
    threads
}

fn timeline(window: &Window, scale: Scale) -> Vec<TimelinePoint> {
    let count = (window.timeline_len.load(Acquire) as usize).min(TIMELINE);
    let points = window.timeline.iter().take(count);
    points
        .map(|point| TimelinePoint {
            tick: point.tick.load(Acquire),
            inuse: scale.bytes(point.inuse.load(Acquire)),
            rss: point.rss.load(Acquire),
            allocated: scale.bytes(point.allocated.load(Acquire)),
        })
        .collect()
}
