//! Of which type blocks are: by the table of virtual functions to which their first word points (C++), or that stands
//! beside a pointer to them (Rust's `dyn`).

use crate::places::{Places, functions};
use leakscope_reach::Blocks;
use leakscope_symbols::{DataObject, class_of, data_objects};
use leakscope_target::{Memory, Snapshot};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

/// Bytes read at once, and unused ones between blocks that are read all the same.
const SPAN: u64 = 256 << 10;
const GAP: u64 = 16 << 10;
/// How far into a block pairs of pointers are looked for.
const DEPTH: u64 = 64 << 10;
/// Tables that are looked up; more has no real program, only a hostile one.
const MOST_TABLES: usize = 100_000;
/// What `Rc` and `Arc` keep before a value.
const COUNTERS: u64 = 16;
/// How much larger than asked for a block can be.
const ROUNDING: u64 = 32;

/// The types of some blocks; eight bytes for each that has one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Types {
    pub(crate) names: Vec<String>,
    /// Blocks and their types, by block.
    of: Vec<(u32, u32)>,
}

/// A block and the table that it or a pointer to it comes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Hint {
    block: u32,
    table: u64,
    /// Whether the block itself points there.
    own: bool,
}

impl Types {
    /// The types of the blocks with these indices, which ascend, and of blocks to which these point, if `also` says so.
    pub(crate) fn find(
        snapshot: &Snapshot,
        places: &Places,
        blocks: &Blocks,
        indices: impl Iterator<Item = usize>,
        also: impl Fn(usize) -> bool,
        options: &leakscope_symbols::Options,
    ) -> Types {
        let mut search = Search {
            memory: &*snapshot.memory,
            blocks,
            tables: table_areas(snapshot, places),
            also: &also,
            hints: Vec::new(),
        };
        search.read(indices);
        let mut hints = search.hints;
        // The block's own word tells more than who points to it.
        hints.sort_unstable_by_key(|hint| (hint.block, !hint.own, hint.table));
        hints.dedup_by_key(|hint| (hint.block, hint.own, hint.table));
        let tables: HashSet<u64> = hints.iter().map(|hint| hint.table).take(MOST_TABLES).collect();
        let names = name_tables(snapshot, places, &tables, options);
        let mut types = Types::default();
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for hint in hints {
            if types.of.last().is_some_and(|&(block, _)| block == hint.block) {
                continue;
            }
            let Some(table) = names.get(&hint.table) else { continue };
            let size = blocks.size(hint.block as usize).unwrap_or(0);
            if !table.fits(hint.own, size) {
                continue;
            }
            let number = *numbers.entry(table.name.clone()).or_insert_with(|| {
                types.names.push(table.name.clone());
                (types.names.len() - 1) as u32
            });
            types.of.push((hint.block, number));
        }
        types
    }

    /// Index into [`Types::names`].
    pub(crate) fn of(&self, block: usize) -> Option<u32> {
        let block = u32::try_from(block).ok()?;
        let at = self.of.binary_search_by_key(&block, |&(block, _)| block).ok()?;
        self.of.get(at).map(|&(_, number)| number)
    }

    /// The name of a block's type.
    pub(crate) fn name(&self, block: usize) -> Option<&str> {
        self.names.get(self.of(block)? as usize).map(String::as_str)
    }
}

struct Search<'a> {
    memory: &'a dyn Memory,
    blocks: &'a Blocks,
    /// Where tables can be, by address.
    tables: Vec<Range<u64>>,
    also: &'a dyn Fn(usize) -> bool,
    hints: Vec<Hint>,
}

impl Search<'_> {
    /// Reads blocks that lie near each other at once.
    fn read(&mut self, indices: impl Iterator<Item = usize>) {
        let mut batch: Vec<(usize, Range<u64>)> = Vec::new();
        let mut buffer = Vec::new();
        for index in indices {
            let Some(block) = self.blocks.get(index) else { continue };
            let end = block.address.saturating_add(block.size.min(DEPTH));
            let (first, last) = (batch.first(), batch.last());
            let span = first.map_or(0, |(_, first)| end.saturating_sub(first.start));
            let gap = last.map_or(0, |(_, last)| block.address.saturating_sub(last.end));
            if span > SPAN || gap > GAP {
                self.take(&batch, &mut buffer);
                batch.clear();
            }
            batch.push((index, block.address..end));
        }
        self.take(&batch, &mut buffer);
    }

    fn take(&mut self, batch: &[(usize, Range<u64>)], buffer: &mut Vec<u8>) {
        let (Some((_, first)), Some((_, last))) = (batch.first(), batch.last()) else { return };
        let start = first.start;
        let length = last.end.saturating_sub(start).min(SPAN + DEPTH);
        buffer.resize(usize::try_from(length).unwrap_or(0), 0);
        let read = self.memory.read(start, buffer);
        buffer.truncate(read);
        for (index, range) in batch {
            let from = (range.start - start) as usize;
            let to = ((range.end - start) as usize).min(buffer.len());
            self.look(*index, buffer.get(from..to).unwrap_or_default());
        }
    }

    fn look(&mut self, index: usize, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        let mut before = None;
        for (at, word) in words.iter().enumerate() {
            let word = u64::from_ne_bytes(*word);
            if self.may_be_table(word) {
                if at == 0 {
                    self.hints.push(Hint { block: index as u32, table: word, own: true });
                }
                let target = before.and_then(|pointer| {
                    let target = self.blocks.find(pointer)?;
                    let start = self.blocks.get(target)?.address;
                    (start == pointer && (self.also)(target)).then_some(target)
                });
                if let Some(target) = target {
                    self.hints.push(Hint { block: target as u32, table: word, own: false });
                }
            }
            before = Some(word);
        }
    }

    fn may_be_table(&self, word: u64) -> bool {
        let (Some(first), Some(last)) = (self.tables.first(), self.tables.last()) else { return false };
        if word < first.start || word >= last.end || !word.is_multiple_of(8) {
            return false;
        }
        let behind = self.tables.partition_point(|range| range.start <= word);
        let found = behind.checked_sub(1).and_then(|at| self.tables.get(at));
        found.is_some_and(|range| word < range.end)
    }
}

/// Where modules have constant data: mappings of their files that cannot be written, as relocated data cannot either once
/// the loader is done. Without that protection it is in what can be written, so that counts too.
fn table_areas(snapshot: &Snapshot, places: &Places) -> Vec<Range<u64>> {
    let of_module = |address: u64| {
        let behind = places.modules.partition_point(|module| module.start <= address);
        let module = behind.checked_sub(1).and_then(|index| places.modules.get(index));
        module.is_some_and(|module| address < module.end)
    };
    let data = snapshot
        .mappings
        .iter()
        .filter(|mapping| mapping.readable && mapping.path.starts_with(b"/") && of_module(mapping.start));
    data.map(|mapping| mapping.start..mapping.end).collect()
}

/// A table with its type's name.
struct Table {
    name: String,
    /// Of Rust's: the size of a value. Of C++'s none, and the objects themselves point to it.
    size: Option<u64>,
}

impl Table {
    fn fits(&self, own: bool, block: u64) -> bool {
        match self.size {
            None => own,
            Some(size) => !own && size <= block && block <= size.saturating_add(COUNTERS + ROUNDING),
        }
    }
}

/// What a table of Rust's for `dyn` begins with: how to drop a value (or 0), its size and alignment.
struct RustTable {
    address: u64,
    drop: u64,
    size: u64,
    first: u64,
}

fn name_tables(
    snapshot: &Snapshot,
    places: &Places,
    tables: &HashSet<u64>,
    options: &leakscope_symbols::Options,
) -> HashMap<u64, Table> {
    let addresses: Vec<u64> = tables.iter().copied().collect();
    let objects = data_objects(&places.process, &places.modules, &addresses, options);
    let mut named: HashMap<u64, Table> = HashMap::new();
    for (&address, object) in &objects {
        if let Some(class) = class_of(object).filter(|_| object.name.contains("vtable for ")) {
            named.insert(address, Table { name: class.to_owned(), size: None });
        }
    }
    let rust: Vec<RustTable> = addresses
        .iter()
        .filter(|address| !named.contains_key(address))
        .filter_map(|&address| rust_table(snapshot, places, address))
        .collect();
    let code = rust.iter().flat_map(|table| [table.drop, table.first]).filter(|&code| code != 0);
    // The function's own address, so that the byte before the one asked for is its first.
    let functions =
        functions(&places.process, &places.modules, code.map(|code| code.saturating_add(1)), options);
    let name_of = |code: u64| functions.get(&code.checked_add(1)?).map(String::as_str);
    for table in rust {
        let dropped = name_of(table.drop).and_then(|name| {
            let inner = name.strip_prefix("core::ptr::drop_in_place::<");
            inner.or_else(|| name.strip_prefix("core::ptr::drop_in_place<"))?.strip_suffix('>')
        });
        let name = match dropped {
            Some(name) => Some(name.to_owned()),
            None => name_of(table.first).and_then(implementer),
        };
        if let Some(name) = name {
            named.insert(table.address, Table { name, size: Some(table.size) });
        }
    }
    named
}

/// What may be a table of Rust's.
fn rust_table(snapshot: &Snapshot, places: &Places, address: u64) -> Option<RustTable> {
    let mut bytes = [0; 32];
    if !snapshot.memory.read_exact(address, &mut bytes) {
        return None;
    }
    let (words, _) = bytes.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_ne_bytes(*word));
    let (drop, size, alignment, first) = (words.next()?, words.next()?, words.next()?, words.next()?);
    let is_code =
        |address: u64| places.modules.iter().any(|module| (module.start..module.end).contains(&address));
    let fits = alignment.is_power_of_two() && alignment <= 1 << 29 && size.is_multiple_of(alignment);
    let calls = drop == 0 || is_code(drop);
    (fits && calls).then_some(RustTable {
        address,
        drop,
        size,
        first: if is_code(first) { first } else { 0 },
    })
}

/// The type of a method's name: `net::Session` of `<net::Session as net::Service>::serve`.
fn implementer(method: &str) -> Option<String> {
    let (implementation, _) = method.rsplit_once("::")?;
    // Named as if it were the table itself.
    let name = format!("{implementation}::{{vtable}}");
    let table = DataObject { name, module: String::new(), offset: 0, size: 1 };
    class_of(&table).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_of_a_method_is_the_one_that_implements_the_trait() {
        assert_eq!(implementer("<net::Session as net::Service>::serve").as_deref(), Some("net::Session"));
        let nested = "<Vec<<A as B>::C> as core::fmt::Debug>::fmt";
        assert_eq!(implementer(nested).as_deref(), Some("Vec<<A as B>::C>"));
        assert_eq!(implementer("net::Session::serve"), None);
        assert_eq!(implementer("main"), None);
    }

    #[test]
    fn a_block_much_larger_than_the_value_is_none_of_its_type() {
        let rust = Table { name: String::new(), size: Some(40) };
        assert!(rust.fits(false, 40) && rust.fits(false, 56) && rust.fits(false, 72));
        assert!(!rust.fits(false, 39) && !rust.fits(false, 1000) && !rust.fits(true, 40));
        let cpp = Table { name: String::new(), size: None };
        assert!(cpp.fits(true, 8) && !cpp.fits(false, 8));
    }
}
