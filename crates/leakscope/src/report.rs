//! `leakscope report`.

use crate::cli::{DEBUGINFOD, NO_COLOR, STATE_HOME, Section};
use crate::exit;
use anyhow::{Context, Result, anyhow, bail};
use clap::ValueHint;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use leakscope_profile::{Profile, View, formats};
use leakscope_report::{Format, TextOptions};
use leakscope_symbols::symbolize;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, ErrorKind, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What help and man page end with.
pub const SECTIONS: &[Section] = &[
    Section {
        heading: "Exit status",
        items: &[
            ("0", "The report was written, or its reader wanted no more of it."),
            ("2", "Wrong usage."),
            ("125", "The heap file could not be read or the report not written; standard error says why."),
        ],
    },
    Section {
        heading: "Environment",
        items: &[
            (
                STATE_HOME.0,
                "Without FILE, the last run is looked up in $XDG_STATE_HOME/leakscope. Unset: /var/lib/leakscope for \
                 root, else ~/.local/state/leakscope.",
            ),
            DEBUGINFOD,
            NO_COLOR,
        ],
    },
];

/// Arguments of `leakscope report`.
#[derive(clap::Args)]
#[command(override_usage = "leakscope report [OPTIONS] [FILE]")]
pub struct Args {
    /// A heap file [default: the last run's that named none]
    ///
    /// As written by leakscope run -o FILE, or FILE.<pid> of one of its child processes. Without it, the last run
    /// without -o is shown.
    #[arg(value_hint = ValueHint::FilePath)]
    file: Option<PathBuf>,
    /// What to write
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = format_parser())]
    format: Format,
    /// The number that call sites are sorted by and drawn with
    #[arg(long, value_name = "VIEW", default_value = "inuse", value_parser = view_parser())]
    view: View,
    /// JSON (schema leakscope.report/1), to standard output or to FILE
    ///
    /// The same as --format json, and -o FILE if a file is named. Bytes, blocks and seconds are plain numbers,
    /// times are RFC 3339 in UTC.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, conflicts_with = "format")]
    #[arg(value_hint = ValueHint::FilePath)]
    json: Option<Option<PathBuf>>,
    /// Write to this file instead of standard output
    ///
    /// A file that exists is overwritten, unless it is the heap file itself. A new one is readable by its owner
    /// only.
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
    /// Call sites to show in text
    ///
    /// The other formats hold all call sites.
    #[arg(long, value_name = "N", default_value_t = 10)]
    top: usize,
    /// The process to show, in a heap file that is still being written and holds several
    ///
    /// Without it, the command that leakscope run was given. A heap file that is complete holds one process.
    #[arg(long, value_name = "PID")]
    pid: Option<u32>,
    /// An unstripped copy of the executable, for names on another machine
    ///
    /// It must have the build id of the executable, or of one of the libraries, that the heap file names.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    exe: Option<PathBuf>,
    /// A directory with debug information (searched by build id and by debug link); may be repeated
    ///
    /// Either laid out as /usr/lib/debug is, which is always searched too, or any directory with debug files in it.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    debug_dir: Vec<PathBuf>,
}

fn format_parser() -> impl TypedValueParser<Value = Format> {
    let values = Format::ALL.map(|format| {
        PossibleValue::new(format.name()).help(match format {
            Format::Text => "For people: totals, and the largest call sites",
            Format::Json => "Everything, schema leakscope.report/1",
            Format::Pprof => "Gzipped profile.proto, for pprof and the tools that read it",
            Format::Folded => "One line per stack with its number, for flame graph tools",
            Format::Flamegraph => "One SVG file for a browser, to zoom and search; it loads nothing",
        })
    });
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Format>())
}

fn view_parser() -> impl TypedValueParser<Value = View> {
    let values = View::ALL.map(|view| {
        PossibleValue::new(view.name()).help(match view {
            View::InUse => "Bytes that were not freed: the leaks",
            View::Peak => "Bytes in use when the process had most in use",
            View::Allocated => "Bytes allocated over the whole life, freed or not",
            View::Temporary => "Blocks that were freed by their thread before it allocated anything else",
        })
    });
    PossibleValuesParser::new(values).try_map(|name| name.parse::<View>())
}

/// Renders a heap file.
pub fn report(args: &Args) -> Result<ExitCode> {
    let Some(file) = args.file.clone().or_else(leakscope_holder::last_run) else {
        bail!(
            "there is no last run under {}; name a heap file, or make one with: leakscope run -- COMMAND",
            leakscope_holder::state_directory().display()
        );
    };
    let (format, output) = match &args.json {
        Some(path) => (Format::Json, path.clone().or_else(|| args.output.clone())),
        None => (args.format, args.output.clone()),
    };
    if format == Format::Pprof && output.is_none() && std::io::stdout().is_terminal() {
        exit::say(
            "pprof's format is binary and would garble the terminal; name a file with -o FILE, or pipe it on",
        );
        return Ok(ExitCode::from(exit::USAGE));
    }
    let profile = read(&file, args.pid)?;
    let mut options = leakscope_symbols::Options::from_env();
    options.exe = args.exe.clone();
    options.debug_dirs.extend(args.debug_dir.iter().cloned());
    let symbols = symbolize(&profile, &options).context("cannot name the addresses of the profile")?;
    let color = output.is_none() && has_color(&std::io::stdout());
    let write = |out: &mut dyn Write| -> std::io::Result<()> {
        let bytes = match format {
            Format::Text => {
                let options = TextOptions { view: args.view, top: args.top, color };
                leakscope_report::text(&profile, &symbols, &options).into_bytes()
            }
            Format::Json => return leakscope_report::write_json(&profile, &symbols, args.view, out),
            Format::Pprof => leakscope_report::pprof(&profile, &symbols, args.view),
            Format::Folded => leakscope_report::folded(&profile, &symbols, args.view).into_bytes(),
            Format::Flamegraph => {
                let title = format!("{} (pid {})", profile.process.command.join(" "), profile.process.pid);
                leakscope_report::flamegraph(&profile, &symbols, args.view, &title).into_bytes()
            }
        };
        out.write_all(&bytes)
    };
    match output {
        Some(path) => {
            if is_same_file(&path, &file) {
                bail!("{} is the heap file itself; name another file with -o", path.display());
            }
            write_file(&path, write)?;
        }
        None => {
            let mut out = BufWriter::new(std::io::stdout().lock());
            write(&mut out)
                .and_then(|()| out.flush())
                .context("cannot write the report to standard output")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path, pid: Option<u32>) -> Result<Profile> {
    formats::read_heap_file(file, pid).map_err(|error| match &error {
        formats::Error::Io { source, .. } if source.kind() == ErrorKind::PermissionDenied => anyhow!(
            "{error}; only the user whose process it is, and root, may read a heap file: report as one of them"
        ),
        formats::Error::Io { source, .. } if source.kind() == ErrorKind::NotFound && file.is_symlink() => anyhow!(
            "{error}: what it leads to is gone; leakscope was killed during that run, and the memory with the \
             profile has been removed since or did not outlive a restart of the machine"
        ),
        _ => error.into(),
    })
}

/// Whether to write with colour: on a terminal, unless `NO_COLOR` says not to (<https://no-color.org>).
pub fn has_color(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Creates or overwrites a file for a report, which tells paths and command lines: a new one is its owner's alone.
pub fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).with_context(|| format!("cannot write {}", path.display()))
}

fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let mut out = BufWriter::new(create(path)?);
    write(&mut out).and_then(|()| out.flush()).with_context(|| format!("cannot write {}", path.display()))
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}
