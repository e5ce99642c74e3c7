//! Renders a profile: text, JSON, pprof, folded stacks, flame graph; and the leaks that a scan found: text, JSON.
//!
//! Every renderer is a pure function of a [`Profile`](leakscope_profile::Profile), its
//! [`Symbols`](leakscope_profile::Symbols) and a few options. Names come from other processes and are hostile: each
//! renderer escapes them for its own format and bounds their length.

mod escape;
mod flamegraph;
mod folded;
mod json;
pub mod layout;
mod pprof;
mod sparkline;
mod text;
mod time;
mod units;

pub use flamegraph::flamegraph;
pub use folded::folded;
pub use json::{json, leaks_json, write_json, write_leaks_json, write_leaks_json_line};
pub use leakscope_profile::View;
pub use pprof::pprof;
pub use text::{LeaksTextOptions, TextOptions, leaks_text, text};
pub use time::rfc3339;
pub use units::{bytes, count};

use std::fmt;
use std::str::FromStr;

/// A form that a report can be given in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Format {
    /// For people, on a terminal: [`text()`].
    #[default]
    Text,
    /// `leakscope.report/1`: [`json()`].
    Json,
    /// Gzipped `profile.proto`: [`pprof()`].
    Pprof,
    /// One line per stack with its number, for other flame graph tools: [`folded()`].
    Folded,
    /// One self-contained interactive SVG: [`flamegraph()`].
    Flamegraph,
}

impl Format {
    /// Every format, in the order in which help lists them.
    pub const ALL: [Format; 5] =
        [Format::Text, Format::Json, Format::Pprof, Format::Folded, Format::Flamegraph];

    /// The format's name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Pprof => "pprof",
            Format::Folded => "folded",
            Format::Flamegraph => "flamegraph",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no format's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFormat(String);

impl fmt::Display for UnknownFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown format {:?}: use text, json, pprof, folded or flamegraph", self.0)
    }
}

impl std::error::Error for UnknownFormat {}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Format, UnknownFormat> {
        Format::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}
