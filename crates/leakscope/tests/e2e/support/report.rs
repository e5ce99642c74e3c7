//! The JSON of a report, read strictly: a field that is missing or of another type fails the test.

use super::marks::{Found, Place, is_source};
use serde::Deserialize;
use std::collections::BTreeMap;

/// `leakscope.report/1`.
#[derive(Debug, Deserialize)]
pub struct Report {
    pub schema: String,
    pub process: Process,
    pub sampling: Option<Sampling>,
    pub totals: Totals,
    pub timeline: Vec<Point>,
    pub sites: Vec<Site>,
    pub notes: Vec<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
pub struct Sampling {
    pub interval_bytes: u64,
    pub samples: u64,
}

#[derive(Debug, Deserialize, PartialEq)]
pub struct Samples {
    pub allocated: u64,
    pub inuse: u64,
}

#[derive(Debug, Deserialize)]
pub struct StandardError {
    pub inuse_bytes: f64,
    pub inuse_blocks: f64,
}

#[derive(Debug, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub command: Vec<String>,
    pub start_time: Option<String>,
    pub end: End,
}

#[derive(Debug, Deserialize)]
pub struct End {
    pub reason: String,
    pub status: Option<i64>,
}

#[derive(Debug, Deserialize)]
pub struct Totals {
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub inuse_bytes: u64,
    pub inuse_blocks: u64,
    pub peak_bytes: u64,
    pub temporary_blocks: u64,
    pub samples: Option<Samples>,
    pub standard_error: Option<StandardError>,
    pub missed_events: u64,
    pub inherited_blocks: u64,
    pub inherited_bytes: u64,
}

#[derive(Debug, Deserialize)]
pub struct Point {
    pub seconds: f64,
    pub inuse_bytes: u64,
    #[allow(dead_code)]
    pub rss_bytes: u64,
}

#[derive(Debug, Deserialize)]
pub struct Site {
    pub kind: Kind,
    pub inuse_bytes: u64,
    pub inuse_blocks: u64,
    pub allocated_bytes: u64,
    pub allocated_blocks: u64,
    pub peak_bytes: u64,
    pub temporary_blocks: u64,
    pub samples: Option<Samples>,
    pub standard_error: Option<StandardError>,
    pub stack: Vec<Frame>,
}

#[derive(Debug, Deserialize, PartialEq, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Heap,
    Mapped,
}

#[derive(Debug, Deserialize, PartialEq)]
pub struct Frame {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    #[allow(dead_code)]
    pub module: Option<String>,
    #[allow(dead_code)]
    pub address: u64,
    pub inlined: bool,
}

impl Report {
    /// Reads a report and checks what must hold for every one.
    pub fn parse(json: &[u8]) -> Report {
        let report: Report = serde_json::from_slice(json)
            .unwrap_or_else(|error| panic!("not a report: {error}\n{}", String::from_utf8_lossy(json)));
        report.check();
        report
    }

    /// What must hold for every report.
    fn check(&self) {
        assert_eq!(self.schema, "leakscope.report/1");
        let heap = || self.sites.iter().filter(|site| site.kind == Kind::Heap);
        let totals = &self.totals;
        assert_eq!(heap().map(|site| site.inuse_bytes).sum::<u64>(), totals.inuse_bytes, "bytes in use");
        assert_eq!(heap().map(|site| site.inuse_blocks).sum::<u64>(), totals.inuse_blocks, "blocks in use");
        assert_eq!(heap().map(|site| site.allocated_bytes).sum::<u64>(), totals.allocated_bytes, "bytes");
        assert_eq!(heap().map(|site| site.allocated_blocks).sum::<u64>(), totals.allocated_blocks, "blocks");
        assert_eq!(
            heap().map(|site| site.temporary_blocks).sum::<u64>(),
            totals.temporary_blocks,
            "temporary"
        );
        for site in &self.sites {
            let estimated = self.sampling.is_some() && site.kind == Kind::Heap;
            assert_eq!(
                (site.samples.is_some(), site.standard_error.is_some()),
                (estimated, estimated),
                "{site:?}"
            );
            assert!(site.inuse_bytes <= site.allocated_bytes, "more in use than allocated: {site:?}");
            // Unmapping the middle of a mapping leaves two.
            assert!(
                site.inuse_blocks <= site.allocated_blocks || site.kind == Kind::Mapped,
                "more in use than allocated: {site:?}"
            );
            assert!(
                site.temporary_blocks <= site.allocated_blocks,
                "more temporary than allocated: {site:?}"
            );
            assert!(site.peak_bytes <= site.allocated_bytes, "higher than all that was allocated: {site:?}");
        }
        assert!(
            self.timeline.windows(2).all(|pair| pair[0].seconds <= pair[1].seconds),
            "the timeline goes forward"
        );
        // A sampled site's bytes are rounded.
        let rounding = if self.sampling.is_some() { self.sites.len() as u64 } else { 0 };
        assert!(
            self.timeline.iter().all(|point| point.inuse_bytes <= totals.allocated_bytes + rounding),
            "the timeline shows more than was ever allocated"
        );
        // The tracer's own frames, and the allocator's, are not the program's.
        for frame in self.sites.iter().filter_map(|site| site.stack.first()) {
            let name = frame.function.as_deref().unwrap_or_default();
            assert!(!name.starts_with("leakscope"), "a frame of the tracer: {name}");
            assert!(
                !["malloc", "calloc", "realloc", "free"].contains(&name),
                "a frame of the allocator: {name}"
            );
        }
    }

    /// What is booked to each line of `sources`: a site belongs to its innermost frame in one of them.
    pub fn found(&self, sources: &[String]) -> BTreeMap<Place, Found> {
        let mut places = BTreeMap::<Place, Found>::new();
        for site in &self.sites {
            let Some(place) = site.place(sources) else { continue };
            let found = places.entry(place).or_default();
            let (inuse, allocated) = match site.kind {
                Kind::Heap => (&mut found.heap, &mut found.heap_allocated),
                Kind::Mapped => (&mut found.mapped, &mut found.mapped_allocated),
            };
            inuse.0 += site.inuse_bytes;
            inuse.1 += site.inuse_blocks;
            allocated.0 += site.allocated_bytes;
            allocated.1 += site.allocated_blocks;
            if site.kind == Kind::Heap {
                found.temporary += site.temporary_blocks;
                found.peak += site.peak_bytes;
                found.samples += site.samples.as_ref().map_or(0, |samples| samples.inuse);
            }
        }
        places
    }

    /// The sites booked to one line.
    pub fn sites_at<'a>(&'a self, source: &'a str, line: u32) -> impl Iterator<Item = &'a Site> + 'a {
        let sources = [source.to_owned()];
        self.sites.iter().filter(move |site| site.place(&sources) == Some((source.to_owned(), line)))
    }
}

impl Site {
    fn place(&self, sources: &[String]) -> Option<Place> {
        self.stack.iter().find_map(|frame| {
            let (file, line) = (frame.file.as_deref()?, frame.line?);
            let source = sources.iter().find(|source| is_source(file, source))?;
            Some((source.clone(), line))
        })
    }

    /// The names of the functions on the stack, innermost first; empty for nameless ones.
    pub fn functions(&self) -> Vec<&str> {
        self.stack.iter().map(|frame| frame.function.as_deref().unwrap_or_default()).collect()
    }

    /// Whether functions whose names begin so are on the stack in this order, innermost first, others between them allowed.
    pub fn passes_through(&self, names: &[&str]) -> bool {
        let mut functions = self.functions().into_iter();
        names.iter().all(|name| functions.any(|function| function.starts_with(name)))
    }
}
