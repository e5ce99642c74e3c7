//! The sealed form: one process, one compact file.
//!
//! ```text
//! "LKSSEALD"  version u32  checksum u32 (CRC-32 of the payload)  payload length u64  payload
//! ```
//! All integers in the payload are unsigned LEB128; sequences are preceded by their length. Blocks are sorted by
//! address and hold the difference to the previous one.

use crate::{Block, BlockKind, End, Error, Module, Node, Process, Snapshot, Stack, Thread, TimelinePoint};
use std::io::Write;
use std::path::Path;

/// First eight bytes.
pub const MAGIC: &[u8; 8] = b"LKSSEALD";
/// Version of this form.
pub const VERSION: u32 = 2;
const HEADER: usize = 24;

/// Encodes a snapshot.
pub fn encode(snapshot: &Snapshot) -> Vec<u8> {
    let mut out = Writer(vec![0; HEADER]);
    out.snapshot(snapshot);
    let mut bytes = out.0;
    let (header, payload) = bytes.split_at_mut(HEADER);
    let mut fields = header;
    let parts: [&[u8]; 4] = [
        MAGIC,
        &VERSION.to_le_bytes(),
        &crc32fast::hash(payload).to_le_bytes(),
        &(payload.len() as u64).to_le_bytes(),
    ];
    for part in parts {
        // The header is exactly as long as its parts.
        let _ = fields.write_all(part);
    }
    bytes
}

/// Decodes a sealed file's bytes; `path` is for the errors.
///
/// # Errors
/// If it is of another kind or version, cut or damaged. Memory use is bounded by the length of `bytes`.
pub fn decode(bytes: &[u8], path: &Path) -> Result<Snapshot, Error> {
    let damaged = |what: String| Error::Damaged { path: path.into(), what };
    if bytes.get(..8) != Some(MAGIC) {
        return Err(Error::NotAHeapFile { path: path.into(), found: "unknown first bytes".into() });
    }
    let field = |at: usize, length: usize| bytes.get(at..at + length);
    let (Some(version), Some(checksum), Some(length)) = (
        field(8, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes),
        field(12, 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes),
        field(16, 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes),
    ) else {
        return Err(damaged(format!("it ends after {} bytes, inside its header", bytes.len())));
    };
    if version != VERSION {
        return Err(Error::Version { path: path.into(), found: version, expected: VERSION });
    }
    let payload = bytes.get(HEADER..).unwrap_or(&[]);
    if payload.len() as u64 != length {
        return Err(damaged(format!("it should hold {length} bytes and holds {}", payload.len())));
    }
    if crc32fast::hash(payload) != checksum {
        return Err(damaged("its checksum does not match its content".into()));
    }
    let mut reader = Reader { bytes: payload, at: 0 };
    reader
        .snapshot()
        .ok_or_else(|| damaged(format!("an impossible value stands at byte {}", HEADER + reader.at)))
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: impl Into<u64>) {
        let mut value = value.into();
        loop {
            let byte = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(byte);
                return;
            }
            self.0.push(byte | 0x80);
        }
    }
    fn text(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
    fn list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Writer, &T)) {
        self.number(items.len() as u64);
        for item in items {
            write(self, item);
        }
    }

    fn snapshot(&mut self, s: &Snapshot) {
        let p = &s.process;
        let (end, status) = match p.end {
            End::Running => (0u32, 0),
            End::Exited(status) => (1, status),
            End::Signaled(signal) => (2, signal),
            End::Replaced => (3, 0),
            End::Unknown => (4, 0),
        };
        for value in [p.pid, p.host_pid, p.ppid, p.started, p.stop_reason, end, status] {
            self.number(value);
        }
        self.number(p.start_ticks);
        self.number(u32::from(p.forked) | u32::from(p.own_malloc) << 1);
        self.text(&p.exe);
        self.text(&p.command);
        for value in [
            s.realtime_ns,
            u64::from(s.tick),
            s.sampling_interval,
            s.missed_nested,
            s.missed_full,
            s.unknown_frees,
            s.inherited_blocks,
            s.inherited_bytes,
            s.inherited_freed_blocks,
            s.inherited_freed_bytes,
            s.bad_references,
        ] {
            self.number(value);
        }
        self.list(&s.modules, |w, module| {
            w.number(module.id);
            w.number(module.start);
            w.number(module.end);
            w.number(module.bias);
            w.number(module.unloaded);
            w.text(&module.build_id);
            w.text(&module.path);
        });
        self.list(&s.nodes, |w, node| {
            w.number(node.parent);
            w.number(node.key);
        });
        self.list(&s.stacks, |w, stack| {
            w.number(stack.node);
            for value in stack_numbers(stack) {
                w.number(value);
            }
        });
        let mut blocks: Vec<&Block> = s.blocks.iter().collect();
        blocks.sort_by_key(|block| block.address);
        let mut previous = 0;
        self.list(&blocks, |w, block| {
            w.number(block.address.wrapping_sub(previous));
            previous = block.address;
            w.number(block.size);
            w.number(block.stack);
            w.number(block.birth);
            w.number(block.thread);
            w.number(match block.kind {
                BlockKind::Heap => 0u32,
                BlockKind::InFlight => 1,
                BlockKind::Mapped => 2,
            });
        });
        self.list(&s.threads, |w, thread| {
            w.number(thread.sequence);
            w.number(thread.tid);
            w.number(thread.started);
            w.text(&thread.name);
        });
        self.list(&s.timeline, |w, point| {
            w.number(point.tick);
            w.number(point.inuse);
            w.number(point.rss);
            w.number(point.allocated);
        });
    }
}

fn stack_numbers(stack: &Stack) -> [u64; 8] {
    [
        stack.allocated_blocks,
        stack.allocated_bytes,
        stack.freed_blocks,
        stack.freed_bytes,
        stack.peak_blocks,
        stack.peak_bytes,
        stack.temporary,
        stack.samples,
    ]
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    fn small(&mut self) -> Option<u32> {
        u32::try_from(self.number()?).ok()
    }
    fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok()?;
        let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes.to_vec())
    }
    fn list<T>(&mut self, mut read: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let length = usize::try_from(self.number()?).ok()?;
        // Each item takes at least a byte, so a length beyond that is a lie.
        if length > self.bytes.len().checked_sub(self.at)? {
            return None;
        }
        (0..length).map(|_| read(self)).collect()
    }

    fn snapshot(&mut self) -> Option<Snapshot> {
        let [pid, host_pid, ppid, started, stop_reason, end, status] = self.smalls()?;
        let start_ticks = self.number()?;
        let flags = self.number()?;
        let process = Process {
            pid,
            host_pid,
            ppid,
            start_ticks,
            started,
            forked: flags & 1 != 0,
            own_malloc: flags & 2 != 0,
            stop_reason,
            serial: 0,
            exe: self.text()?,
            command: self.text()?,
            end: match end {
                0 => End::Running,
                1 => End::Exited(status),
                2 => End::Signaled(status),
                3 => End::Replaced,
                4 => End::Unknown,
                _ => return None,
            },
        };
        let mut snapshot = Snapshot {
            process,
            realtime_ns: self.number()?,
            tick: self.small()?,
            sampling_interval: self.number()?,
            missed_nested: self.number()?,
            missed_full: self.number()?,
            unknown_frees: self.number()?,
            inherited_blocks: self.number()?,
            inherited_bytes: self.number()?,
            inherited_freed_blocks: self.number()?,
            inherited_freed_bytes: self.number()?,
            bad_references: self.number()?,
            ..Snapshot::default()
        };
        snapshot.modules = self.list(|r| {
            Some(Module {
                id: r.small()?,
                start: r.number()?,
                end: r.number()?,
                bias: r.number()?,
                unloaded: r.small()?,
                build_id: r.text()?,
                path: r.text()?,
            })
        })?;
        snapshot.nodes = self.list(|r| Some(Node { parent: r.small()?, key: r.number()? }))?;
        snapshot.stacks = self.list(Self::stack)?;
        let mut previous = 0u64;
        snapshot.blocks = self.list(|r| {
            previous = previous.wrapping_add(r.number()?);
            Some(Block {
                address: previous,
                size: r.number()?,
                stack: r.small()?,
                birth: r.small()?,
                thread: r.small()?,
                kind: match r.number()? {
                    0 => BlockKind::Heap,
                    1 => BlockKind::InFlight,
                    2 => BlockKind::Mapped,
                    _ => return None,
                },
            })
        })?;
        snapshot.threads = self.list(|r| {
            Some(Thread { sequence: r.small()?, tid: r.small()?, started: r.small()?, name: r.text()? })
        })?;
        snapshot.timeline = self.list(|r| {
            Some(TimelinePoint {
                tick: r.small()?,
                inuse: r.number()?,
                rss: r.number()?,
                allocated: r.number()?,
            })
        })?;
        (self.at == self.bytes.len()).then_some(snapshot)
    }

    fn smalls<const N: usize>(&mut self) -> Option<[u32; N]> {
        let mut values = [0; N];
        for value in &mut values {
            *value = self.small()?;
        }
        Some(values)
    }

    fn stack(&mut self) -> Option<Stack> {
        Some(Stack {
            node: self.small()?,
            allocated_blocks: self.number()?,
            allocated_bytes: self.number()?,
            freed_blocks: self.number()?,
            freed_bytes: self.number()?,
            peak_blocks: self.number()?,
            peak_bytes: self.number()?,
            temporary: self.number()?,
            samples: self.number()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Snapshot {
        Snapshot {
            process: Process {
                pid: 42,
                exe: b"/usr/bin/x".to_vec(),
                end: End::Exited(3),
                own_malloc: true,
                ..Process::default()
            },
            realtime_ns: u64::MAX,
            modules: vec![Module { id: 1, path: b"/lib/y".to_vec(), ..Module::default() }],
            nodes: vec![Node::default(), Node { parent: 0, key: u64::MAX }],
            stacks: vec![Stack::default(), Stack { node: 1, allocated_bytes: 1 << 40, ..Stack::default() }],
            blocks: (0..100)
                .map(|n| Block { address: 0x7000_0000 + n * 32, size: n, stack: 1, ..Block::default() })
                .collect(),
            threads: vec![Thread { sequence: 1, tid: 42, started: 7, name: b"main".to_vec() }],
            timeline: vec![TimelinePoint { tick: 1, inuse: 2, rss: 3, allocated: 4 }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn what_is_sealed_is_read_back() {
        let bytes = encode(&example());
        assert_eq!(decode(&bytes, Path::new("x")).unwrap(), example());
    }

    #[test]
    fn a_cut_file_is_an_error_at_every_length() {
        let bytes = encode(&example());
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], Path::new("x")).is_err(), "length {length}");
        }
    }

    #[test]
    fn a_changed_byte_is_an_error_everywhere() {
        let bytes = encode(&example());
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 0x55;
            assert!(decode(&changed, Path::new("x")).is_err(), "byte {index}");
        }
    }

    #[test]
    fn hostile_payloads_behind_a_right_checksum_do_no_harm() {
        let bytes = encode(&example());
        let mut seed = 1u64;
        for _ in 0..20_000 {
            let mut payload = bytes[HEADER..].to_vec();
            for _ in 0..3 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let index = (seed >> 33) as usize % payload.len();
                payload[index] = (seed >> 20) as u8;
            }
            let mut file = bytes[..HEADER].to_vec();
            file[12..16].copy_from_slice(&crc32fast::hash(&payload).to_le_bytes());
            file.extend_from_slice(&payload);
            let _ = decode(&file, Path::new("x"));
        }
    }
}
