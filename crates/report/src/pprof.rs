//! The profile as gzipped `profile.proto`, for pprof and everything that reads its format.

mod proto {
    include!("pprof/perftools.profiles.rs");
}

use crate::escape::{command_line, printable};
use flate2::Compression;
use flate2::write::GzEncoder;
use leakscope_profile::{
    CodeAddress, Counts, Frame, Kind, Module, Profile, Site, Symbols, View, allocator_function_pattern,
    is_allocator_function,
};
use prost::Message;
use std::collections::HashMap;
use std::io::Write;
use std::time::UNIX_EPOCH;

/// Longest name or remark, in characters.
const STRING_LIMIT: usize = 4096;

/// Name and unit of the values of a sample. The first four are pprof's own for heaps, in its order; readers that know
/// no others ignore those.
const SAMPLE_TYPES: [(&str, &str); 7] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
    ("peak_objects", "count"),
    ("peak_space", "bytes"),
    ("temporary_objects", "count"),
];

/// A gzipped `profile.proto` with every site of the profile; `view` is what a reader shows first.
///
/// A sample's label `bytes` is the mean size of its blocks. Mapped memory has a label `kind` = `mapped`, a stack whose
/// outer end is missing a label `truncated` = `yes`.
pub fn pprof(profile: &Profile, symbols: &Symbols, view: View) -> Vec<u8> {
    let message = Builder::new(profile, symbols).build(view).encode_to_vec();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    // Writing into memory cannot fail.
    _ = gzip.write_all(&message);
    gzip.finish().unwrap_or_default()
}

/// Collects the strings, functions and locations that samples refer to by number.
struct Builder<'a> {
    profile: &'a Profile,
    symbols: &'a Symbols,
    message: proto::Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    /// None for an address where there are only allocator functions.
    locations: HashMap<CodeAddress, Option<u64>>,
    /// Such addresses where they are not at a stack's inner end.
    allocator_locations: HashMap<CodeAddress, u64>,
}

impl<'a> Builder<'a> {
    fn new(profile: &'a Profile, symbols: &'a Symbols) -> Builder<'a> {
        Builder {
            profile,
            symbols,
            message: proto::Profile { string_table: vec![String::new()], ..Default::default() },
            strings: HashMap::from([(String::new(), 0)]),
            functions: HashMap::new(),
            locations: HashMap::new(),
            allocator_locations: HashMap::new(),
        }
    }

    fn build(mut self, view: View) -> proto::Profile {
        for (name, unit) in SAMPLE_TYPES {
            let value_type = self.value_type(name, unit);
            self.message.sample_type.push(value_type);
        }
        self.message.mapping = self.profile.modules.iter().map(|module| self.mapping(module)).collect();
        for site in &self.profile.sites {
            let sample = self.sample(site);
            self.message.sample.push(sample);
        }
        self.put_main_module_first();
        self.message.drop_frames = self.string(&allocator_function_pattern());
        self.message.period_type = Some(self.value_type("space", "bytes"));
        let interval = self.profile.sampling.map_or(1, |sampling| sampling.interval_bytes);
        self.message.period = clamped(interval);
        self.message.default_sample_type = self.string(match view {
            View::InUse => "inuse_space",
            View::Peak => "peak_space",
            View::Allocated => "alloc_space",
            View::Temporary => "temporary_objects",
        });
        let process = &self.profile.process;
        let since_epoch = process.start_time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        self.message.time_nanos =
            since_epoch.and_then(|time| i64::try_from(time.as_nanos()).ok()).unwrap_or_default();
        let seconds = self.profile.timeline.last().map_or(0.0, |point| point.seconds);
        self.message.duration_nanos = (seconds * 1e9) as i64; // a cast of NaN is 0, of too much the largest
        self.message.comment = self.comments();
        self.message
    }

    fn comments(&mut self) -> Vec<i64> {
        let process = &self.profile.process;
        let mut comments =
            vec![format!("leakscope: pid {}: {}", process.pid, command_line(&process.command))];
        if let Some(sampling) = &self.profile.sampling {
            comments.push(format!(
                "estimated from {} samples, one per {} bytes on average; the values are scaled already",
                sampling.samples, sampling.interval_bytes
            ));
        }
        if self.profile.totals.missed_events > 0 {
            comments.push(format!("{} allocator calls were not recorded", self.profile.totals.missed_events));
        }
        comments.extend(self.profile.notes.iter().cloned());
        comments.iter().map(|comment| self.string(comment)).collect()
    }

    fn sample(&mut self, site: &Site) -> proto::Sample {
        let locations: Vec<_> = site.stack.iter().map(|&pc| self.location(pc)).collect();
        // Further out, an address within an allocator's function still belongs to the stack.
        let own = locations.iter().position(Option::is_some).unwrap_or(0);
        let location_id = site.stack.iter().zip(locations).skip(own);
        let location_id =
            location_id.map(|(&pc, known)| known.unwrap_or_else(|| self.allocator_location(pc))).collect();
        let Counts { allocated_bytes, allocated_blocks, .. } = site.counts;
        let mut label = Vec::new();
        if let Some(mean) = allocated_bytes.checked_div(allocated_blocks) {
            label.push(proto::Label {
                key: self.string("bytes"),
                num: clamped(mean),
                num_unit: self.string("bytes"),
                ..Default::default()
            });
        }
        for (key, value, holds) in
            [("kind", "mapped", site.kind == Kind::Mapped), ("truncated", "yes", site.truncated)]
        {
            if holds {
                let (key, str) = (self.string(key), self.string(value));
                label.push(proto::Label { key, str, ..Default::default() });
            }
        }
        proto::Sample { location_id, value: values(&site.counts), label }
    }

    /// The number of an address without the allocator's functions at its inner end; none if nothing else is there.
    fn location(&mut self, pc: CodeAddress) -> Option<u64> {
        if let Some(&known) = self.locations.get(&pc) {
            return known;
        }
        let frames = self.profile.frames_of(self.symbols, pc);
        let is_allocator = |frame: &Frame| frame.function.as_deref().is_some_and(is_allocator_function);
        let own = frames.iter().position(|frame| !is_allocator(frame));
        let location = own.and_then(|own| frames.get(own..)).map(|frames| self.add_location(pc, frames));
        self.locations.insert(pc, location);
        location
    }

    /// The number of an address where there are only allocator functions, which are kept.
    fn allocator_location(&mut self, pc: CodeAddress) -> u64 {
        if let Some(&known) = self.allocator_locations.get(&pc) {
            return known;
        }
        let frames = self.profile.frames_of(self.symbols, pc);
        let location = self.add_location(pc, &frames);
        self.allocator_locations.insert(pc, location);
        location
    }

    fn add_location(&mut self, pc: CodeAddress, frames: &[Frame]) -> u64 {
        let mapping_id =
            pc.module.map(|index| index as usize).filter(|&index| index < self.message.mapping.len());
        let line: Vec<_> = frames.iter().filter_map(|frame| self.line(frame)).collect();
        if let Some(mapping) = mapping_id.and_then(|index| self.message.mapping.get_mut(index)) {
            let any = |holds: fn(&Frame) -> bool| frames.iter().any(holds);
            mapping.has_functions |= any(|frame| frame.function.is_some());
            mapping.has_filenames |= any(|frame| frame.file.is_some());
            mapping.has_line_numbers |= any(|frame| frame.line.is_some());
            mapping.has_inline_frames |= any(|frame| frame.inlined);
        }
        let id = self.message.location.len() as u64 + 1;
        self.message.location.push(proto::Location {
            id,
            mapping_id: mapping_id.map_or(0, |index| index as u64 + 1),
            // Return addresses point past the call.
            address: pc.address.saturating_sub(1),
            line,
            is_folded: false,
        });
        id
    }

    fn line(&mut self, frame: &Frame) -> Option<proto::Line> {
        let name = self.string(frame.function.as_deref()?);
        let filename = self.string(frame.file.as_deref().unwrap_or(""));
        let next = self.message.function.len() as u64 + 1;
        let function_id = *self.functions.entry((name, filename)).or_insert(next);
        if function_id == next {
            self.message.function.push(proto::Function {
                id: next,
                name,
                system_name: name,
                filename,
                start_line: 0,
            });
        }
        Some(proto::Line { function_id, line: frame.line.unwrap_or(0).into(), column: 0 })
    }

    fn mapping(&mut self, module: &Module) -> proto::Mapping {
        let build_id: String = module.build_id.iter().map(|byte| format!("{byte:02x}")).collect();
        proto::Mapping {
            id: 0,
            memory_start: module.start,
            memory_limit: module.end,
            filename: self.string(&module.path),
            build_id: self.string(&build_id),
            ..Default::default()
        }
    }

    /// Readers take the first mapping for the main executable.
    fn put_main_module_first(&mut self) {
        let executable = self.string(&self.profile.process.executable);
        for (id, mapping) in (1..).zip(&mut self.message.mapping) {
            mapping.id = id;
        }
        if let Some(main) = self.message.mapping.iter().position(|mapping| mapping.filename == executable)
            && let Some(mappings) = self.message.mapping.get_mut(..=main)
        {
            mappings.rotate_right(1);
        }
    }

    fn value_type(&mut self, name: &str, unit: &str) -> proto::ValueType {
        proto::ValueType { r#type: self.string(name), unit: self.string(unit) }
    }

    fn string(&mut self, text: &str) -> i64 {
        let text = printable(text, STRING_LIMIT);
        if let Some(&index) = self.strings.get(text.as_ref()) {
            return index;
        }
        let index = self.message.string_table.len() as i64;
        self.message.string_table.push(text.clone().into_owned());
        self.strings.insert(text.into_owned(), index);
        index
    }
}

/// In the order of [`SAMPLE_TYPES`].
fn values(counts: &Counts) -> Vec<i64> {
    [
        counts.allocated_blocks,
        counts.allocated_bytes,
        counts.inuse_blocks,
        counts.inuse_bytes,
        counts.peak_blocks,
        counts.peak_bytes,
        counts.temporary_blocks,
    ]
    .map(clamped)
    .to_vec()
}

/// The format's numbers are signed; only a corrupt file has larger ones.
fn clamped(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
