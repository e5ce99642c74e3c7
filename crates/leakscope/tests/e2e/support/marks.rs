//! The marks in the target programs' sources (see targets/README.md), and the comparison of a report with them.

use super::build;
use std::collections::BTreeMap;
use std::path::Path;

/// What a marked line must show.
#[derive(Debug, Clone, PartialEq)]
pub enum Expected {
    /// An amount that is the C library's own business.
    Any,
    /// Exact numbers; those not given may be anything.
    Numbers {
        /// Of mappings instead of heap blocks.
        mapped: bool,
        /// Bytes in use.
        inuse_bytes: Option<u64>,
        /// Blocks in use.
        inuse_blocks: Option<u64>,
        /// Bytes ever allocated.
        allocated_bytes: Option<u64>,
        /// Blocks ever allocated.
        allocated_blocks: Option<u64>,
        /// Temporary blocks.
        temporary: Option<u64>,
        /// Bytes at the peak.
        peak: Option<u64>,
    },
}

/// A place in a source: file name and line.
pub type Place = (String, u32);

/// The marked lines of one process.
pub type Marks = BTreeMap<Place, Expected>;

/// What was found at one place.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Found {
    /// Heap bytes and blocks in use.
    pub heap: (u64, u64),
    /// Heap bytes and blocks ever allocated.
    pub heap_allocated: (u64, u64),
    /// Mapped bytes and blocks in use.
    pub mapped: (u64, u64),
    /// Mapped bytes and blocks ever allocated.
    pub mapped_allocated: (u64, u64),
    /// Temporary heap blocks.
    pub temporary: u64,
    /// Heap bytes at the peak.
    pub peak: u64,
    /// If sampled: heap blocks in use that were recorded.
    pub samples: u64,
}

/// The marks of `sources` that count in the process called `process` (`main` where a mark names none).
pub fn marks_of(sources: &[String], process: &str) -> Marks {
    let mut marks = Marks::new();
    for source in sources {
        for (index, line) in build::source(source).lines().enumerate() {
            if let Some((expected, of)) = parse(line)
                && (of == process || expected == Expected::Any)
            {
                marks.insert((source.clone(), index as u32 + 1), expected);
            }
        }
    }
    marks
}

/// The line of the only mark in `source` that contains `text`.
pub fn line_containing(source: &str, text: &str) -> u32 {
    let lines: Vec<u32> = build::source(source)
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(text))
        .map(|(index, _)| index as u32 + 1)
        .collect();
    assert_eq!(lines.len(), 1, "{text:?} must be in exactly one line of {source}");
    lines[0]
}

fn parse(line: &str) -> Option<(Expected, String)> {
    let (_, comment) = line.rsplit_once("// ")?;
    let mut words = comment.split_whitespace();
    let kind = words.next()?;
    if !["LEAK", "FREED", "MAPPED", "LIBC"].contains(&kind) {
        return None;
    }
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("bad mark: {line}"));
    let (mut bytes, mut blocks, mut allocated, mut temporary, mut peak) = (None, None, None, None, None);
    let (mut mapped, mut process) = (kind == "MAPPED", "main".to_owned());
    for word in words {
        match word.split_once('=') {
            Some(("bytes", value)) => bytes = Some(number(value)),
            Some(("blocks", "any")) => {}
            Some(("blocks", value)) => blocks = Some(number(value)),
            Some(("allocated", value)) => {
                let (bytes, blocks) = value.split_once('/').unwrap_or_else(|| panic!("bad mark: {line}"));
                allocated = Some((number(bytes), number(blocks)));
            }
            Some(("temporary", value)) => temporary = Some(number(value)),
            Some(("peak", value)) => peak = Some(number(value)),
            Some(("in", value)) => value.clone_into(&mut process),
            None if word == "mapped" => mapped = true,
            _ => panic!("bad mark: {line}"),
        }
    }
    let expected = match kind {
        "LIBC" => Expected::Any,
        "FREED" => Expected::Numbers {
            mapped,
            inuse_bytes: Some(0),
            inuse_blocks: Some(0),
            allocated_bytes: bytes,
            allocated_blocks: blocks,
            temporary,
            peak,
        },
        _ => Expected::Numbers {
            mapped,
            inuse_bytes: bytes,
            inuse_blocks: blocks,
            allocated_bytes: allocated.map(|pair| pair.0),
            allocated_blocks: allocated.map(|pair| pair.1),
            temporary,
            peak,
        },
    };
    Some((expected, process))
}

/// How what was found differs from the marks, one line per difference.
///
/// `only_inuse` leaves out what an observer cannot know that sees the end only.
pub fn differences(marks: &Marks, found: &BTreeMap<Place, Found>, only_inuse: bool) -> Vec<String> {
    let mut differences = Vec::new();
    for ((file, line), expected) in marks {
        let Expected::Numbers {
            mapped,
            inuse_bytes,
            inuse_blocks,
            allocated_bytes,
            allocated_blocks,
            temporary,
            peak,
        } = expected
        else {
            continue;
        };
        let here = found.get(&(file.clone(), *line)).copied().unwrap_or_default();
        let (inuse, allocated) =
            if *mapped { (here.mapped, here.mapped_allocated) } else { (here.heap, here.heap_allocated) };
        let other = if *mapped { here.heap } else { here.mapped };
        let mut compare = |what: &str, expected: Option<u64>, found: u64| {
            if expected.is_some_and(|expected| expected != found) {
                differences
                    .push(format!("{file}:{line}: {what}: expected {}, found {found}", expected.unwrap()));
            }
        };
        compare("in use of the other kind", Some(0), other.0);
        if only_inuse && *mapped {
            continue;
        }
        compare("bytes in use", *inuse_bytes, inuse.0);
        compare("blocks in use", *inuse_blocks, inuse.1);
        if !only_inuse {
            compare("bytes allocated", *allocated_bytes, allocated.0);
            compare("blocks allocated", *allocated_blocks, allocated.1);
            compare("temporary blocks", *temporary, here.temporary);
            if let Some(peak) = *peak {
                // The promise: within 1% + 64 KiB per thread.
                let tolerance = peak / 100 + 65536;
                if here.peak.abs_diff(peak) > tolerance {
                    differences.push(format!("{file}:{line}: peak: expected {peak}, found {}", here.peak));
                }
            }
        }
    }
    for ((file, line), here) in found {
        let inuse = here.heap.0 + here.heap.1 + here.mapped.0 + here.mapped.1;
        if inuse > 0 && !marks.contains_key(&(file.clone(), *line)) {
            differences.push(format!("{file}:{line}: nothing planted here, found {here:?}"));
        }
    }
    differences
}

/// How what was found by a sample contradicts the marks: more records than blocks, a block that was freed, a mapping (they
/// are all recorded) that is missing or too much.
pub fn contradictions(marks: &Marks, found: &BTreeMap<Place, Found>) -> Vec<String> {
    let mut contradictions = Vec::new();
    for (place, here) in found {
        let (blocks, mapped) = match marks.get(place) {
            Some(Expected::Any) => continue,
            Some(Expected::Numbers { mapped: true, inuse_bytes, .. }) => (Some(0), *inuse_bytes),
            Some(Expected::Numbers { inuse_blocks, .. }) => (*inuse_blocks, Some(0)),
            None => (Some(0), Some(0)),
        };
        let too_many = blocks.is_some_and(|blocks| here.samples > blocks);
        let none = here.samples == 0 && here.heap != (0, 0);
        if too_many || none || mapped.is_some_and(|mapped| here.mapped.0 != mapped) {
            contradictions.push(format!("{place:?}: marked {:?}, found {here:?}", marks.get(place)));
        }
    }
    contradictions
}

/// Whether `file`, as debug information gives it, is the source `name`.
pub fn is_source(file: &str, name: &str) -> bool {
    Path::new(file).file_name().is_some_and(|last| last == name)
}
