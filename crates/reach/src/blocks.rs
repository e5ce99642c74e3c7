//! The blocks of a heap, eight bytes each.

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// First address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Blocks by address, not overlapping, in little more than eight bytes each.
#[derive(Debug, Clone, Default)]
pub struct Blocks {}

/// Collects blocks in any order.
#[derive(Debug, Clone, Default)]
pub struct BlocksBuilder {}

impl BlocksBuilder {
    /// Adds a block.
    pub fn push(&mut self, _block: Block) {
        todo!()
    }

    /// All blocks pushed, sorted. Of overlapping ones the later is cut or dropped.
    pub fn finish(self) -> Blocks {
        todo!()
    }
}

impl Blocks {
    /// How many there are.
    pub fn len(&self) -> usize {
        todo!()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The block at `index`, in the order of addresses.
    pub fn get(&self, _index: usize) -> Option<Block> {
        todo!()
    }

    /// The index of the block that holds `address`, or, for one of no bytes, starts there.
    pub fn find(&self, _address: u64) -> Option<usize> {
        todo!()
    }
}
