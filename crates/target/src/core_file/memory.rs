//! Memory out of a core file and the files that were mapped.

use super::Missing;
use super::elf::Segment;
use crate::Memory;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// A run of memory and where its bytes are.
#[derive(Debug, Clone)]
pub struct Piece {
    pub start: u64,
    pub length: u64,
    pub file: Arc<File>,
    pub offset: u64,
}

/// Sorted, not overlapping.
#[derive(Debug)]
pub struct CoreMemory {
    pieces: Vec<Piece>,
}

impl CoreMemory {
    /// What was dumped, and what stands in other files.
    pub fn new(core: Arc<File>, loads: &[Segment], backing: Vec<Piece>) -> CoreMemory {
        let dumped = loads.iter().filter(|load| load.file_size > 0).map(|load| Piece {
            start: load.start,
            length: load.file_size,
            file: core.clone(),
            offset: load.offset,
        });
        let mut pieces: Vec<Piece> = dumped.chain(backing).collect();
        pieces.sort_by_key(|piece| piece.start);
        CoreMemory { pieces }
    }

    fn piece(&self, address: u64) -> Option<&Piece> {
        let behind = self.pieces.partition_point(|piece| piece.start <= address);
        let piece = self.pieces.get(behind.checked_sub(1)?)?;
        (address - piece.start < piece.length).then_some(piece)
    }
}

impl Memory for CoreMemory {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let Some(piece) = self.piece(at) else { break };
            let Some(rest) = buffer.get_mut(done..) else { break };
            let inside = at - piece.start;
            let length = usize::try_from(piece.length - inside).unwrap_or(usize::MAX).min(rest.len());
            let Some(part) = rest.get_mut(..length) else { break };
            match piece.file.read_at(part, piece.offset + inside) {
                Ok(got) if got > 0 => done += got.min(length),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        done
    }
}

impl Missing for CoreMemory {
    fn missing(&self, start: u64, length: u64) -> u64 {
        let end = start.saturating_add(length);
        let from = self.pieces.partition_point(|piece| piece.start.saturating_add(piece.length) <= start);
        let inside = self.pieces.iter().skip(from).take_while(|piece| piece.start < end);
        let there: u64 = inside
            .map(|piece| piece.start.saturating_add(piece.length).min(end) - piece.start.max(start))
            .fold(0, u64::saturating_add);
        length.saturating_sub(there)
    }
}
