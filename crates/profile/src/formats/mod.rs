//! File formats that a profile can be read from, one file each.

mod heap_file;

pub use heap_file::{Error, from_snapshot, read_heap_file, stacks};
