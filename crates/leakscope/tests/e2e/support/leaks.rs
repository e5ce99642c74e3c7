//! The JSON of `leakscope leaks`, read strictly: a field that is missing or of another type fails the test.

use super::marks::{Place, is_source};
use super::report::Frame;
use serde::Deserialize;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// `leakscope.leaks/1`.
#[derive(Debug, Deserialize)]
pub struct Leaks {
    pub schema: String,
    pub process: Process,
    pub outcome: String,
    pub source: Source,
    pub pause_ms: Option<f64>,
    pub summary: Summary,
    pub records: Vec<Record>,
    pub notes: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub command: Vec<String>,
}

/// How memory was held still, and who listed the blocks.
#[derive(Debug, Deserialize)]
pub struct Source {
    pub snapshot: String,
    pub blocks: String,
    pub allocator: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Summary {
    pub definite: Amount,
    pub indirect: Amount,
    pub possible: Amount,
    pub reachable: Amount,
    #[allow(dead_code)]
    pub suppressed: Amount,
}

#[derive(Debug, Deserialize, PartialEq)]
pub struct Record {
    pub kind: Kind,
    pub bytes: u64,
    pub direct_bytes: u64,
    pub indirect_bytes: u64,
    pub blocks: u64,
    pub smallest_bytes: u64,
    pub largest_bytes: u64,
    /// Of some of the blocks.
    pub addresses: Vec<u64>,
    pub stack: Vec<Frame>,
}

/// memcheck's four kinds.
#[derive(Debug, Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Definite,
    Indirect,
    Possible,
    Reachable,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::Definite, Kind::Indirect, Kind::Possible, Kind::Reachable];

    /// Those of blocks that are lost, or may be.
    pub const LOST: [Kind; 3] = [Kind::Definite, Kind::Indirect, Kind::Possible];

    /// Whether a block that was lost as `planted` may be found so: when a word somewhere looks like a pointer to it, or
    /// no longer to its holder, that is another matter than not to find it.
    pub fn may_be(self, planted: Kind) -> bool {
        self == planted || self == Kind::Possible
    }

    /// As in the JSON.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Definite => "definite",
            Kind::Indirect => "indirect",
            Kind::Possible => "possible",
            Kind::Reachable => "reachable",
        }
    }
}

/// So much memory.
#[derive(Debug, Deserialize, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub blocks: u64,
}

impl Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        Amount { bytes: self.bytes + other.bytes, blocks: self.blocks + other.blocks }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        *self = *self + other;
    }
}

impl Sum for Amount {
    fn sum<I: Iterator<Item = Amount>>(amounts: I) -> Amount {
        amounts.fold(Amount::default(), Add::add)
    }
}

impl Leaks {
    /// Reads the text of `--json`.
    pub fn parse(json: &[u8]) -> Leaks {
        let leaks: Leaks = serde_json::from_slice(json)
            .unwrap_or_else(|error| panic!("{error} in:\n{}", String::from_utf8_lossy(json)));
        assert_eq!(leaks.schema, "leakscope.leaks/1");
        for record in &leaks.records {
            assert_eq!(record.bytes, record.direct_bytes + record.indirect_bytes, "{record:?}");
        }
        leaks
    }
}

impl Leaks {
    /// The sum of one kind.
    pub fn total(&self, kind: Kind) -> Amount {
        match kind {
            Kind::Definite => self.summary.definite,
            Kind::Indirect => self.summary.indirect,
            Kind::Possible => self.summary.possible,
            Kind::Reachable => self.summary.reachable,
        }
    }

    /// Whether a note has these words in it.
    pub fn has_note(&self, words: &str) -> bool {
        self.notes.iter().any(|note| note.contains(words))
    }
}

impl Record {
    /// The record's own blocks, without what hangs off them.
    pub fn direct(&self) -> Amount {
        Amount { bytes: self.direct_bytes, blocks: self.blocks }
    }

    /// The innermost place in one of `sources`.
    pub fn place(&self, sources: &[String]) -> Option<Place> {
        self.stack.iter().find_map(|frame| {
            let (file, line) = (frame.file.as_ref()?, frame.line?);
            let source = sources.iter().find(|source| is_source(file, source))?;
            Some((source.clone(), line))
        })
    }
}
