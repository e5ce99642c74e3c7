//! A flame graph as one self-contained SVG: outermost frames on top, each as wide as what was allocated beneath it.
//!
//! The file holds the graph twice. A picture of the larger boxes, for viewers that run no scripts; and the data of
//! all boxes, from which the script redraws it at the window's width, zooms (click, arrow keys and Enter) and
//! searches (Ctrl-F). Boxes below the limits are left out, so that any profile gives a file that opens at once.

use crate::escape::{frame_name, location, printable};
use crate::folded::{MAPPED, NO_STACK, TRUNCATED};
use crate::layout::{FlameBox, Layout, StackTree};
use crate::units::{bytes, count, plural, share};
use leakscope_profile::{Frame, Kind, NamedSites, Profile, Symbols, View, is_library_frame, is_start_frame};
use serde_json::json;
use std::collections::HashMap;
use std::fmt::Write;

const STYLE: &str = include_str!("flamegraph/style.css");
const SCRIPT: &str = include_str!("flamegraph/viewer.js");

/// Most boxes in the data, and thus reachable by zooming.
const MAX_BOXES: usize = 20_000;
/// Most boxes in the picture for viewers without scripts.
const MAX_DRAWN: usize = 2_000;
/// Rows; no machine-made stack that is deeper can be read.
const MAX_DEPTH: usize = 512;
/// Longest name and longest location, in characters.
const NAME_LIMIT: usize = 240;

// The picture's measures in pixels; the script has the same.
const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const TOP: usize = 96;
const ROW: usize = 18;
const FOOT: usize = 30;
const CHARACTER: f64 = 7.25;

/// The flame graph of `view`, as an SVG document. `title` is shown on top; it may be anything.
pub fn flamegraph(profile: &Profile, symbols: &Symbols, view: View, title: &str) -> String {
    let named = profile.named_sites(symbols, view);
    let labels = Labels::new(&named);
    let mut tree = StackTree::new(MAX_DEPTH);
    for site in &named.sites {
        let value = view.value(&site.counts);
        if value == 0 {
            continue;
        }
        let frames = site.stack.iter().rev().filter_map(|&id| labels.of_frame.get(id as usize)).copied();
        let outer = site.truncated.then_some(labels.truncated);
        let missing = (site.stack.is_empty() && !site.truncated).then_some(labels.no_stack);
        let inner = (site.kind == Kind::Mapped).then_some(labels.mapped);
        tree.add(outer.into_iter().chain(missing).chain(frames).chain(inner), value);
    }
    let layout = tree.layout(&labels.labels, MAX_BOXES);
    let mut svg = String::new();
    write_open(&mut svg, &layout, title);
    write_boxes(&mut svg, &layout, &labels.labels, view);
    write_head(&mut svg, &layout, view, title);
    write_script(&mut svg, &layout, &labels.labels, view);
    svg.push_str("</svg>\n");
    svg
}

/// What a box says and how it is coloured. Ordered as siblings of equal size are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Label {
    name: String,
    place: String,
    class: &'static str,
}

/// All labels, and which one each frame of the profile has.
struct Labels {
    labels: Vec<Label>,
    of_frame: Vec<u32>,
    truncated: u32,
    no_stack: u32,
    mapped: u32,
}

impl Labels {
    fn new(named: &NamedSites) -> Labels {
        let mut labels = Vec::new();
        let mut ids = HashMap::new();
        let mut add = |label: Label| -> u32 {
            *ids.entry(label).or_insert_with_key(|label| {
                labels.push(label.clone());
                labels.len() as u32 - 1
            })
        };
        let marker = |name: &str, class| Label { name: name.to_owned(), place: String::new(), class };
        let truncated = add(marker(TRUNCATED, "unknown"));
        let no_stack = add(marker(NO_STACK, "unknown"));
        let mapped = add(marker(MAPPED, "mapped"));
        let of_frame = named.frames.iter().map(|frame| add(label(frame))).collect();
        Labels { labels, of_frame, truncated, no_stack, mapped }
    }
}

fn label(frame: &Frame) -> Label {
    let name = printable(&frame_name(frame), NAME_LIMIT).into_owned();
    let place = location(frame).or_else(|| frame.module.clone()).unwrap_or_default();
    let place = printable(&place, NAME_LIMIT).into_owned();
    // The same function has the same colour in every picture.
    let hash = name.bytes().fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let class = if frame.function.is_none() {
        "unknown"
    } else if is_library_frame(frame) || is_start_frame(frame, None) {
        ["l0", "l1", "l2"][hash as usize % 3]
    } else {
        ["p0", "p1", "p2", "p3", "p4", "p5"][hash as usize % 6]
    };
    Label { name, place, class }
}

fn write_open(svg: &mut String, layout: &Layout, title: &str) {
    let height = TOP + layout.rows * ROW + FOOT;
    let title = xml(&printable(title, NAME_LIMIT));
    _ = write!(
        svg,
        r##"<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="application" aria-label="Flame graph: {title}">
<title>{title}</title>
<style><![CDATA[
{STYLE}]]></style>
"##
    );
}

/// Title, tools and the lines that describe a frame. Written after the boxes, so that it covers those that are
/// scrolled beneath it.
fn write_head(svg: &mut String, layout: &Layout, view: View, title: &str) {
    let what = match view {
        View::InUse => "not freed",
        View::Peak => "in use at the peak",
        View::Allocated => "allocated in all",
        View::Temporary => "freed by the same thread before it allocated again",
    };
    let hint = match (layout.total, layout.hidden) {
        (0, _) => format!("Nothing to show in the view “{view}”."),
        (_, 0) => String::new(),
        (_, hidden) => format!("Too small to show: {}.", plural(hidden as u64, "frame")),
    };
    _ = write!(
        svg,
        r##"<g id="head">
<rect id="back" width="{WIDTH}" height="{back}"/>
<text id="title" x="{MARGIN}" y="22">{title}</text>
<foreignObject x="{MARGIN}" y="30" width="360" height="26"><div xmlns="http://www.w3.org/1999/xhtml" id="tools"></div></foreignObject>
<text id="total" class="hint" x="{total_x}" y="46">{total} {what}</text>
<text id="name" x="{MARGIN}" y="70" aria-live="polite">{hint}</text>
<text id="numbers" class="hint" x="{MARGIN}" y="86"> </text>
</g>
"##,
        back = TOP - 4,
        title = xml(&printable(title, NAME_LIMIT)),
        total = amount(layout.total, view),
        total_x = MARGIN + 370.0,
    );
}

/// The larger boxes as a picture.
fn write_boxes(svg: &mut String, layout: &Layout, labels: &[Label], view: View) {
    svg.push_str("<g id=\"graph\">\n");
    let scale = if layout.total == 0 { 0.0 } else { (WIDTH - 2.0 * MARGIN) / layout.total as f64 };
    for flame in largest(&layout.boxes, MAX_DRAWN) {
        let width = flame.value as f64 * scale;
        let Some(label) = labels.get(flame.name as usize).filter(|_| width >= 0.4) else { continue };
        let (x, y) = (MARGIN + flame.start as f64 * scale, TOP + flame.depth * ROW);
        let gap = if label.place.is_empty() { "" } else { " — " };
        let tip = format!(
            "{}{gap}{}\n{}, {} of all",
            label.name,
            label.place,
            amount(flame.value, view),
            share(flame.value, layout.total)
        );
        _ = write!(
            svg,
            r#"<g class="box {}"><title>{}</title><rect x="{x:.2}" y="{y}" width="{width:.2}" height="{}" rx="1.5"/>"#,
            label.class,
            xml(&tip),
            ROW - 1,
        );
        let room = ((width - 6.0) / CHARACTER) as usize;
        if room >= 3 {
            let mut short: String = label.name.chars().take(room).collect();
            if short.len() < label.name.len() {
                short.pop();
                short.push('…');
            }
            _ = write!(svg, "<text x=\"{:.2}\" y=\"{:.1}\">{}</text>", x + 3.0, y as f64 + 12.5, xml(&short));
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</g>\n");
}

/// The boxes whose value is among the `most` largest, in their order.
fn largest(boxes: &[FlameBox], most: usize) -> impl Iterator<Item = &FlameBox> {
    let mut values: Vec<u64> = boxes.iter().map(|flame| flame.value).collect();
    values.sort_unstable_by(|a, b| b.cmp(a));
    let limit = values.get(most).copied().unwrap_or(0);
    boxes.iter().filter(move |flame| flame.value > limit)
}

/// The data of all boxes and the script that draws them. Only labels that are used are written.
fn write_script(svg: &mut String, layout: &Layout, labels: &[Label], view: View) {
    let mut numbers: HashMap<u32, usize> = HashMap::new();
    let mut names = Vec::new();
    let mut boxes = Vec::with_capacity(layout.boxes.len() * 4);
    for flame in &layout.boxes {
        let Some(label) = labels.get(flame.name as usize) else { continue };
        let number = *numbers.entry(flame.name).or_insert_with(|| {
            names.push(json!([label.name, label.place, label.class]));
            names.len() - 1
        });
        boxes.extend([flame.depth as u64, number as u64, flame.value, flame.own]);
    }
    let data = json!({
        "names": names, "boxes": boxes, "total": layout.total, "bytes": view.is_bytes(),
    });
    // Within strings, which is where a name's are, these mean the same; `]]>` and `</script` cannot come about.
    let data = data.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    _ = write!(svg, "<script><![CDATA[\nconst data = {data};\n{SCRIPT}]]></script>\n");
}

fn amount(value: u64, view: View) -> String {
    match (view.is_bytes(), value) {
        (false, _) => plural(value, "block"),
        (true, 1024..) => format!("{} ({} bytes)", bytes(value), count(value)),
        (true, _) => bytes(value),
    }
}

/// Text as XML character data or attribute value. What XML cannot hold at all, `printable` has written out.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            c => out.push(c),
        }
    }
    out
}
