//! The pprof export, read back by a decoder written from the wire format's description alone.

mod common;

use common::{SERVICE_BIAS, sampled, service};
use flate2::read::GzDecoder;
use leakscope_profile::*;
use leakscope_report::pprof;
use std::collections::BTreeMap;
use std::io::Read;

/// A decoded field: a number, or bytes.
#[derive(Debug, Clone)]
enum Field {
    Number(u64),
    Bytes(Vec<u8>),
}

/// The fields of a message by number.
type Fields = BTreeMap<u64, Vec<Field>>;

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().expect("a varint ends");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint is at most ten bytes long")
}

fn message(mut bytes: &[u8]) -> Fields {
    let mut fields = Fields::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = match key & 7 {
            0 => Field::Number(varint(&mut bytes)),
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                Field::Bytes(value.to_vec())
            }
            wire => panic!("wire type {wire} is not in this format"),
        };
        fields.entry(key >> 3).or_default().push(value);
    }
    fields
}

fn messages(fields: &Fields, number: u64) -> Vec<Fields> {
    let bytes = |field: &Field| match field {
        Field::Bytes(bytes) => message(bytes),
        Field::Number(_) => panic!("field {number} is a message"),
    };
    fields.get(&number).into_iter().flatten().map(bytes).collect()
}

/// All numbers of a repeated field, packed or not.
fn numbers(fields: &Fields, number: u64) -> Vec<u64> {
    let mut all = Vec::new();
    for field in fields.get(&number).into_iter().flatten() {
        match field {
            Field::Number(value) => all.push(*value),
            Field::Bytes(bytes) => {
                let mut bytes = bytes.as_slice();
                while !bytes.is_empty() {
                    all.push(varint(&mut bytes));
                }
            }
        }
    }
    all
}

/// A field that is 0 if absent.
fn number(fields: &Fields, field: u64) -> u64 {
    numbers(fields, field).first().copied().unwrap_or(0)
}

/// A decoded profile with its string table.
struct Decoded {
    fields: Fields,
    strings: Vec<String>,
}

impl Decoded {
    fn new(profile: &Profile, symbols: &Symbols, view: View) -> Decoded {
        let gzipped = pprof(profile, symbols, view);
        let mut bytes = Vec::new();
        GzDecoder::new(gzipped.as_slice()).read_to_end(&mut bytes).expect("it is gzip");
        let fields = message(&bytes);
        let text = |field: &Field| match field {
            Field::Bytes(bytes) => String::from_utf8(bytes.clone()).expect("strings are UTF-8"),
            Field::Number(_) => panic!("strings are bytes"),
        };
        let strings = fields.get(&6).into_iter().flatten().map(text).collect();
        Decoded { fields, strings }
    }

    fn text(&self, fields: &Fields, field: u64) -> &str {
        &self.strings[number(fields, field) as usize]
    }

    fn by_id(&self, field: u64) -> BTreeMap<u64, Fields> {
        messages(&self.fields, field).into_iter().map(|item| (number(&item, 1), item)).collect()
    }

    /// Each sample as its lines, innermost first, and its values.
    fn samples(&self) -> Vec<(Vec<String>, Vec<u64>)> {
        let (locations, functions) = (self.by_id(4), self.by_id(5));
        let lines = |id: &u64| -> Vec<String> {
            let location = &locations[id];
            let lines = messages(location, 4);
            if lines.is_empty() {
                return vec![format!("{:#x}", number(location, 3))];
            }
            let line = |line: &Fields| {
                let function = &functions[&number(line, 1)];
                format!("{} {}:{}", self.text(function, 2), self.text(function, 4), number(line, 2))
            };
            lines.iter().map(line).collect()
        };
        let sample = |sample: &Fields| {
            (numbers(sample, 1).iter().flat_map(lines).collect::<Vec<_>>(), numbers(sample, 2))
        };
        messages(&self.fields, 2).iter().map(sample).collect()
    }
}

#[test]
fn the_string_table_and_the_sample_types_are_as_pprof_wants_them() {
    let (profile, symbols) = service();
    let decoded = Decoded::new(&profile, &symbols, View::InUse);
    assert_eq!(decoded.strings[0], "");
    let types: Vec<_> = messages(&decoded.fields, 1)
        .iter()
        .map(|value_type| format!("{}/{}", decoded.text(value_type, 1), decoded.text(value_type, 2)))
        .collect();
    let first = ["alloc_objects/count", "alloc_space/bytes", "inuse_objects/count", "inuse_space/bytes"];
    assert_eq!(types[..4], first);
    assert_eq!(types[4..], ["peak_objects/count", "peak_space/bytes", "temporary_objects/count"]);
    let period = messages(&decoded.fields, 11);
    assert_eq!((decoded.text(&period[0], 1), decoded.text(&period[0], 2)), ("space", "bytes"));
    assert_eq!(number(&decoded.fields, 12), 1);
    assert_eq!(number(&Decoded::new(&sampled(profile.clone()), &symbols, View::InUse).fields, 12), 524_288);
    assert_eq!(number(&decoded.fields, 9), 1_790_000_000_250_000_000);
    assert_eq!(number(&decoded.fields, 10), 19_500_000_000);
    assert!(decoded.text(&decoded.fields, 7).contains("|operator new.*|"));
    assert!(decoded.text(&decoded.fields, 13).starts_with("leakscope: pid 4711: /srv/service"));
    for (view, shown) in [
        (View::InUse, "inuse_space"),
        (View::Peak, "peak_space"),
        (View::Allocated, "alloc_space"),
        (View::Temporary, "temporary_objects"),
    ] {
        let decoded = Decoded::new(&profile, &symbols, view);
        assert_eq!(decoded.text(&decoded.fields, 14), shown);
    }
}

#[test]
fn samples_have_the_sites_stacks_and_numbers() {
    let (profile, symbols) = service();
    let decoded = Decoded::new(&profile, &symbols, View::InUse);
    let samples = decoded.samples();
    let mib = 1 << 20;
    assert_eq!(samples[0].1, [800, 10 * mib, 700, 9 * mib, 700, 9 * mib, 0]);
    assert_eq!(
        samples[0].0,
        [
            "cache_insert src/cache.c:42",
            "parse_header src/http.c:17",
            "handle_request(Request const&) src/server.c:120",
            "main src/main.c:9",
            "__libc_start_call_main :0",
            "__libc_start_main :0",
            "_start :0",
        ]
    );
    // `operator new`, inlined, is left out.
    assert_eq!(
        samples[2].0[..2],
        [
            "std::vector<char, std::allocator<char> >::reserve(unsigned long) /usr/include/c++/12/bits/vector.tcc:79",
            "Worker::fill() src/worker.cc:33",
        ]
    );
    assert_eq!(samples[3].0, ["0x700000001233"]);
    let totals: Vec<u64> = (0..7).map(|i| samples.iter().map(|(_, values)| values[i]).sum()).collect();
    let mut all = profile.totals.counts;
    all += profile.mapped;
    assert_eq!(
        totals,
        [
            all.allocated_blocks,
            all.allocated_bytes,
            all.inuse_blocks,
            all.inuse_bytes,
            all.peak_blocks,
            all.peak_bytes,
            all.temporary_blocks,
        ]
    );
}

#[test]
fn labels_tell_the_mean_block_size_and_mapped_and_truncated_stacks() {
    let (profile, symbols) = service();
    let decoded = Decoded::new(&profile, &symbols, View::InUse);
    let labels: Vec<Vec<String>> = messages(&decoded.fields, 2)
        .iter()
        .map(|sample| {
            let label = |label: &Fields| match number(label, 2) {
                0 => format!("{}={} {}", decoded.text(label, 1), number(label, 3), decoded.text(label, 4)),
                _ => format!("{}={}", decoded.text(label, 1), decoded.text(label, 2)),
            };
            messages(sample, 3).iter().map(label).collect()
        })
        .collect();
    assert_eq!(labels[0], ["bytes=13107 bytes"]);
    assert_eq!(labels[3], ["bytes=24 bytes", "truncated=yes"]);
    assert_eq!(labels[5], ["bytes=1048576 bytes", "kind=mapped"]);
}

#[test]
fn the_executable_is_the_first_mapping_and_addresses_lie_in_their_own() {
    let (mut profile, symbols) = service();
    profile.process.executable = profile.modules[2].path.clone();
    let decoded = Decoded::new(&profile, &symbols, View::InUse);
    let mappings = messages(&decoded.fields, 3);
    assert_eq!(decoded.text(&mappings[0], 5), "/opt/lib/libstripped.so.1");
    let service = mappings.iter().find(|mapping| decoded.text(mapping, 5) == "/srv/service");
    let service = service.expect("every module is there");
    assert_eq!(number(service, 2), SERVICE_BIAS);
    assert_eq!(decoded.text(service, 6), "ab".repeat(20));
    assert_eq!([7, 8, 9, 10].map(|flag| number(service, flag)), [1, 1, 1, 1]);
    assert_eq!([7, 8, 9, 10].map(|flag| number(&mappings[0], flag)), [0, 0, 0, 0]);
    let by_id = decoded.by_id(3);
    for location in messages(&decoded.fields, 4) {
        let (mapping, address) = (&by_id[&number(&location, 2)], number(&location, 3));
        assert!((number(mapping, 2)..number(mapping, 3)).contains(&address), "{address:#x}");
    }
}

#[test]
fn an_empty_profile_is_a_valid_one() {
    let decoded = Decoded::new(&Profile::default(), &Symbols::default(), View::InUse);
    assert_eq!(decoded.samples(), []);
    assert_eq!(messages(&decoded.fields, 1).len(), 7);
}

/// Writes a profile for other readers, such as `go tool pprof`, if asked to by `LEAKSCOPE_PICTURES=DIRECTORY`.
#[test]
fn a_file_for_other_readers_can_be_kept() {
    let (profile, symbols) = service();
    let bytes = pprof(&profile, &symbols, View::InUse);
    assert_eq!(bytes[..2], [0x1f, 0x8b]);
    if let Some(directory) = std::env::var_os("LEAKSCOPE_PICTURES") {
        std::fs::write(std::path::Path::new(&directory).join("service.pb.gz"), bytes)
            .expect("it is writable");
    }
}
