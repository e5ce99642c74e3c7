//! The argument vector from the stack's end, since the notes have its first 80 bytes only.

use super::elf::Segment;
use crate::Memory;

/// How much of the stack's end is looked through, and how much is taken from it.
const LOOKED_THROUGH: u64 = 2 << 20;
const MOST_BYTES: usize = 128 << 10;

/// The arguments as they are on the stack: a count, that many addresses, 0, the addresses of the environment, 0, the
/// auxiliary vector (System V ABI, "Initial Stack and Register State").
pub fn find(memory: &dyn Memory, stack: &Segment, auxv: &[(u64, u64)]) -> Option<Vec<Vec<u8>>> {
    let end = stack.start + stack.memory_size;
    let start = end.saturating_sub(LOOKED_THROUGH).max(stack.start).next_multiple_of(8);
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    let length = memory.read(start, &mut bytes);
    bytes.truncate(length);
    let words: Vec<u64> = bytes.as_chunks().0.iter().map(|&word| u64::from_le_bytes(word)).collect();
    let pattern: Vec<u64> = auxv.iter().take(4).flat_map(|&(kind, value)| [kind, value]).collect();
    if pattern.len() < 8 {
        return None;
    }
    let vector = words.windows(pattern.len()).rposition(|window| window == pattern)?;
    let environment_end = vector.checked_sub(1)?;
    let arguments_end = words.get(..environment_end)?.iter().rposition(|&word| word == 0)?;
    let before = words.get(..arguments_end)?;
    // The count is the first word, backwards, that says how many lie between.
    let count =
        (0..before.len()).find(|&count| before.get(before.len() - 1 - count) == Some(&(count as u64)))?;
    let mut left = MOST_BYTES;
    before.get(before.len() - count..)?.iter().map(|&address| string(memory, address, &mut left)).collect()
}

/// The text at an address, up to its 0.
fn string(memory: &dyn Memory, address: u64, left: &mut usize) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let mut chunk = [0; 256];
    loop {
        let got = memory.read(address.checked_add(text.len() as u64)?, &mut chunk);
        let part = chunk.get(..got)?;
        let end = part.iter().position(|&byte| byte == 0);
        text.extend(part.get(..end.unwrap_or(got))?);
        *left = left.checked_sub(got)?;
        match end {
            Some(_) => return Some(text),
            None if got == 0 => return None,
            None => {}
        }
    }
}
