//! The flame graph as an SVG document, read back by an XML parser.

mod common;

use common::{add_up, counts, frame, in_service, service};
use leakscope_profile::*;
use leakscope_report::flamegraph;
use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};

/// What an XML parser finds in a document.
#[derive(Default)]
struct Document {
    /// Element names in order.
    elements: Vec<String>,
    /// Character data outside of style and script, one string per element that has some.
    texts: Vec<String>,
    /// Content of the script.
    script: String,
}

fn parse(svg: &str) -> Document {
    let mut reader = Reader::from_str(svg);
    reader.config_mut().check_end_names = true;
    let mut document = Document::default();
    let mut open: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        match reader.read_event().expect("the document is well-formed") {
            Event::Start(start) => {
                text.clear();
                let name = start.name().as_ref().to_owned();
                for attribute in start.attributes() {
                    let attribute = attribute.expect("attributes are well-formed");
                    attribute.normalized_value(XmlVersion::Explicit1_0).expect("values are well-formed");
                }
                document.elements.push(name.clone());
                open.push(name);
            }
            Event::Empty(empty) => {
                document.elements.push(empty.name().as_ref().to_owned());
            }
            Event::Text(part) => text.push_str(&part),
            Event::GeneralRef(reference) => {
                text.push_str(
                    quick_xml::escape::resolve_predefined_entity(&reference).expect("a predefined entity"),
                );
            }
            Event::CData(data) => {
                let data = data.to_string();
                if open.last().is_some_and(|name| name == "script") {
                    document.script = data;
                }
            }
            Event::End(_) => {
                open.pop();
                if !text.trim().is_empty() {
                    document.texts.push(std::mem::take(&mut text));
                }
                text.clear();
            }
            Event::Eof => return document,
            Event::Decl(_) => {}
            other => panic!("unexpected {other:?}"),
        }
    }
}

/// The data that the script draws from.
fn data(document: &Document) -> serde_json::Value {
    let line = document.script.lines().find_map(|line| line.strip_prefix("const data = "));
    let json = line.and_then(|line| line.strip_suffix(';')).expect("the data is one line");
    serde_json::from_str(json).expect("the data is JSON")
}

/// Writes pictures to look at, if asked to by `LEAKSCOPE_PICTURES=DIRECTORY`.
fn keep(name: &str, svg: &str) {
    if let Some(directory) = std::env::var_os("LEAKSCOPE_PICTURES") {
        std::fs::write(std::path::Path::new(&directory).join(name), svg).expect("the directory is writable");
    }
}

fn site(frames: &[CodeAddress], bytes: u64) -> Site {
    Site { stack: frames.to_vec(), counts: counts((bytes, 1), (bytes, 1), (bytes, 1), 1), ..Site::default() }
}

#[test]
fn every_view_is_well_formed_and_names_its_frames_and_numbers() {
    let (profile, symbols) = service();
    for (view, total) in [
        (View::InUse, (14 << 20) + 24 + (1 << 20)),
        (View::Peak, (17 << 20) + 24 + (2 << 20)),
        (View::Allocated, (61 << 20) + 24 + (3 << 20)),
        (View::Temporary, 8_009),
    ] {
        let svg = flamegraph(&profile, &symbols, view, "service <4711>");
        keep(&format!("{view}.svg"), &svg);
        let document = parse(&svg);
        assert_eq!(data(&document)["total"], total, "{view}");
        assert!(document.texts.iter().any(|text| text == "service <4711>"), "{view}");
        let tip = document.texts.iter().find(|text| text.starts_with("cache_insert — src/cache.c:42\n"));
        assert!(tip.is_some(), "{view}: {:?}", document.texts);
    }
    let svg = flamegraph(&profile, &symbols, View::InUse, "");
    let texts = parse(&svg).texts;
    let expected = "cache_insert — src/cache.c:42\n13.0 MiB (13,631,488 bytes), 87% of all";
    assert!(texts.iter().any(|text| text == expected), "{texts:?}");
    assert!(texts.iter().any(|text| text == "[mmap]\n1.0 MiB (1,048,576 bytes), 6.7% of all"), "{texts:?}");
}

#[test]
fn boxes_lie_within_their_parents_and_the_outermost_fill_the_width() {
    let (profile, symbols) = service();
    let document = parse(&flamegraph(&profile, &symbols, View::InUse, ""));
    let data = data(&document);
    let numbers: Vec<u64> =
        data["boxes"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_u64).collect();
    let mut open: Vec<u64> = Vec::new(); // what is left of each enclosing box
    let mut outermost = 0;
    for flame in numbers.chunks(4) {
        let &[depth, _, value, own] = flame else { panic!("four numbers each") };
        open.truncate(depth as usize);
        match open.last_mut() {
            Some(room) => *room = room.checked_sub(value).expect("children fit into their parent"),
            None => outermost += value,
        }
        open.push(value.checked_sub(own).expect("own is a part"));
    }
    assert_eq!(outermost, data["total"]);
}

#[test]
fn hostile_names_stay_text() {
    let hostile = [
        "<script>alert(1)</script>",
        "]]><script>alert(2)</script><![CDATA[",
        "\"><img src=x onerror=alert(3)>",
        "' onload='alert(4)",
        "&lt;&amp;&#0;",
        "\x1b[31mred\x07\0\u{fffe}\u{ffff}\u{202e}",
        "</style></title></svg>",
        "${alert(5)}\\u003c`",
        "\u{2028}line\u{2029}",
        "x;y z",
    ];
    let mut symbols = Symbols::default();
    let mut profile = Profile::default();
    for (index, name) in hostile.iter().enumerate() {
        let pc = in_service(index as u64);
        symbols.frames.insert(pc, vec![frame(name, name, 1)]);
        profile.sites.push(site(&[pc], 1000));
    }
    let long = "n".repeat(1 << 20);
    symbols.frames.insert(in_service(99), vec![frame(&long, &long, 1)]);
    profile.sites.push(site(&[in_service(99)], 1000));
    add_up(&mut profile);
    let svg = flamegraph(&profile, &symbols, View::InUse, hostile[1]);
    keep("hostile.svg", &svg);
    assert!(svg.len() < 100_000, "{}", svg.len());
    let document = parse(&svg);
    let strange: Vec<_> = document
        .elements
        .iter()
        .filter(|name| {
            !["svg", "title", "style", "g", "rect", "text", "foreignObject", "div", "script"]
                .contains(&name.as_str())
        })
        .collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(document.elements.iter().filter(|name| *name == "script").count(), 1);
    let (clean, names) = (parse(&svg).texts, data(&document)["names"].to_string());
    assert!(clean.iter().any(|text| text.starts_with(hostile[0])), "{clean:?}");
    assert!(names.contains("<script>alert(1)</script>"));
    assert!(svg.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn a_profile_without_memory_draws_a_sentence() {
    let document = parse(&flamegraph(&Profile::default(), &Symbols::default(), View::InUse, "empty"));
    assert!(document.texts.iter().any(|text| text.contains("Nothing to show")), "{:?}", document.texts);
}

#[test]
fn fifty_thousand_stacks_make_a_file_of_a_few_megabytes() {
    let (profile, symbols) = many_stacks(50_000);
    let svg = flamegraph(&profile, &symbols, View::InUse, "50,000 stacks");
    keep("many.svg", &svg);
    assert!(svg.len() < 3_000_000, "{}", svg.len());
    let document = parse(&svg);
    assert_eq!(data(&document)["total"], profile.totals.counts.inuse_bytes);
    let boxes = data(&document)["boxes"].as_array().map_or(0, Vec::len) / 4;
    assert!((1_000..=20_000).contains(&boxes), "{boxes}");
    assert!(document.texts.iter().any(|text| text.contains("Too small to show")));
}

/// Stacks of 10 to 60 frames that fan out, with sizes of all magnitudes; the same at every call.
fn many_stacks(stacks: u64) -> (Profile, Symbols) {
    let mut state = 1u64;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut symbols = Symbols::default();
    for function in 0..5_000u64 {
        let name = format!("service::module_{}::Handler<Request{function}>::handle", function % 97);
        let file = format!("src/module_{}.rs", function % 97);
        symbols.frames.insert(in_service(function), vec![frame(&name, &file, function as u32 % 900 + 1)]);
    }
    let mut profile = Profile::default();
    for _ in 0..stacks {
        let depth = 10 + random(50);
        let mut stack = vec![in_service(0)];
        let mut function = 0;
        for _ in 0..depth {
            function = (function * 3 + 1 + random(3)) % 5_000;
            stack.push(in_service(function));
        }
        stack.reverse();
        let magnitude = random(24);
        profile.sites.push(site(&stack, 16 + random(1 << magnitude)));
    }
    add_up(&mut profile);
    (profile, symbols)
}
