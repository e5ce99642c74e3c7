//! Bytes of a process, wherever they are.

/// Bytes of a process: of a live one, of a frozen copy, in a core file, or made up by a test.
///
/// Nothing read through it may be trusted: it is another process's memory.
pub trait Memory: Sync {
    /// Copies bytes from `address` on into `buffer`, up to the first byte that cannot be read, and returns how many
    /// were copied (0 if the first cannot be read). Never blocks for long, never panics, whatever the address.
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize;

    /// Fills all of `buffer`, or says that this cannot be done.
    fn read_exact(&self, address: u64, buffer: &mut [u8]) -> bool {
        self.read(address, buffer) == buffer.len()
    }

    /// The 64-bit word at `address` (any alignment).
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read_exact(address, &mut bytes).then(|| u64::from_ne_bytes(bytes))
    }
}

/// Memory made of pieces, for tests and for what was read already: sorted by address, not overlapping.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Pieces {
    /// Memory of these pieces. Of overlapping ones, what lies behind the start of the next is cut off.
    pub fn new(mut pieces: Vec<(u64, Vec<u8>)>) -> Pieces {
        pieces.sort_by_key(|&(start, _)| start);
        for index in 1..pieces.len() {
            let next = pieces.get(index).map_or(u64::MAX, |&(start, _)| start);
            if let Some((start, bytes)) = pieces.get_mut(index - 1) {
                bytes.truncate(usize::try_from(next - *start).unwrap_or(usize::MAX));
            }
        }
        Pieces { pieces }
    }
}

impl Memory for Pieces {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buffer.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let behind = self.pieces.partition_point(|&(start, _)| start <= at);
            let Some((start, bytes)) = behind.checked_sub(1).and_then(|index| self.pieces.get(index)) else {
                break;
            };
            let from = usize::try_from(at - start).unwrap_or(usize::MAX);
            let Some(available) = bytes.get(from..).filter(|rest| !rest.is_empty()) else { break };
            let Some(wanted) = buffer.get_mut(done..) else { break };
            let length = available.len().min(wanted.len());
            for (to, from) in wanted.iter_mut().zip(available) {
                *to = *from;
            }
            done += length;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_stops_at_the_first_gap() {
        let memory = Pieces::new(vec![(0x1008, vec![2; 8]), (0x1000, vec![1; 8]), (0x2000, vec![3; 4])]);
        let mut buffer = [0; 32];
        assert_eq!(memory.read(0x1004, &mut buffer), 12);
        assert_eq!(buffer[..12], [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
        assert_eq!(memory.word(0x1000), Some(0x0101_0101_0101_0101));
        assert_eq!(memory.word(0x2000), None);
        assert_eq!(memory.read(u64::MAX, &mut buffer), 0);
    }
}
