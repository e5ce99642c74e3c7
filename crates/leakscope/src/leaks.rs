//! `leakscope leaks`.

mod at_exit;
mod options;
mod over_time;

use crate::cli::{DEBUGINFOD, NO_COLOR, STATE_HOME, Section};
use crate::{exit, report};
use anyhow::{Context, Result, bail};
use clap::ValueHint;
use leakscope_examine::{Options, Staleness};
use leakscope_leaks::{Kind, KindSet, LeakReport};
use leakscope_reach::{Progress, Step};
use leakscope_report::LeaksTextOptions;
use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What help and man page end with.
pub const SECTIONS: &[Section] = &[
    Section {
        heading: "Exit status",
        items: &[
            ("0", "No block is left of a kind that counts as an error (--errors-for-leak-kinds)."),
            ("1", "Such blocks are left."),
            ("2", "Wrong usage."),
            ("125", "The process could not be examined; standard error says why. It runs on unharmed."),
            ("with a COMMAND", "Its own, 128 + N if signal N ended it; 126, 127 if it could not be run."),
        ],
    },
    Section {
        heading: "Kinds",
        items: &[
            ("definite", "Nothing points to the block any more."),
            ("indirect", "Only blocks that are lost themselves lead to it."),
            ("possible", "Pointers lead only to the middle of it, or of a block that leads to it."),
            ("reachable", "Pointers lead to it. It was not freed, but it is not lost."),
        ],
    },
    Section { heading: "Environment", items: &[STATE_HOME, DEBUGINFOD, NO_COLOR] },
];

/// Arguments of `leakscope leaks`.
#[derive(clap::Args)]
#[command(
    override_usage = "leakscope leaks [OPTIONS] <PID>\n       leakscope leaks [OPTIONS] <CORE> [--exe FILE]\n       \
                            leakscope leaks [OPTIONS] -- <COMMAND>..."
)]
pub struct Args {
    /// A process (its pid), or a core file
    ///
    /// The process need not be prepared: its blocks are listed from glibc's own structures. If it runs under
    /// leakscope, records have stacks.
    #[arg(value_name = "PID|CORE", value_hint = ValueHint::FilePath, required_unless_present = "command")]
    target: Option<OsString>,
    /// A command to run under the tracer and to examine at its exit
    #[arg(last = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    #[arg(conflicts_with = "target")]
    command: Vec<OsString>,
    /// Kinds whose records are shown: definite, indirect, possible, reachable (separated by commas), all or none
    #[arg(long, value_name = "KINDS", default_value_t = KindSet::DEFAULT_SHOWN)]
    show_leak_kinds: KindSet,
    /// Kinds that make the exit status 1
    #[arg(long, value_name = "KINDS", default_value_t = KindSet::DEFAULT_ERRORS)]
    errors_for_leak_kinds: KindSet,
    /// Pointers into the middle of a block that count as to its start: stdstring, length64, newarray,
    /// multipleinheritance, all or none
    #[arg(long, value_name = "HEURISTICS", default_value = "all", value_parser = options::heuristics)]
    leak_check_heuristics: leakscope_reach::Heuristics,
    /// Bits of a word that are a pointer, for programs that keep tags in the others, such as 0x0000fffffffffff8
    #[arg(long, value_name = "MASK", value_parser = options::mask, default_value = "0xffffffffffffffff")]
    #[arg(hide_default_value = true)]
    pointer_mask: u64,
    /// Suppress what this file names, in memcheck's or LeakSanitizer's format; may be repeated
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    suppressions: Vec<PathBuf>,
    /// Do not use the built-in suppressions of what the C, C++ and Rust runtimes keep on purpose
    #[arg(long)]
    no_default_suppressions: bool,
    /// After each record, print a suppression for it
    #[arg(long)]
    gen_suppressions: bool,
    /// Scan again every TIME (500ms, 60s, 5m, 1h), and say what was lost in between and what held it last
    ///
    /// Goes on until the process ends, SIGINT or SIGTERM comes, or --count is reached. JSON is one document a line, one
    /// for each scan. Between scans, leakscope keeps about nine bytes for each block of the process.
    #[arg(long, value_name = "TIME", value_parser = options::time, conflicts_with = "command")]
    every: Option<Duration>,
    /// With --every: end after N scans
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Records to show, the largest ones
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    /// Also say which reachable memory keeps growing, and who holds it
    ///
    /// Of a traced process by the ages of blocks: which call sites' blocks survive from all parts of its life. Of others
    /// with --every: which records are larger at scan after scan. Reachable records are shown, too.
    #[arg(long, conflicts_with = "command")]
    retained: bool,
    /// With --retained: how much of that memory nobody touches in TIME, by the kernel's marks on pages
    ///
    /// Before each scan, leakscope makes the kernel forget which pages were in use (/proc/PID/clear_refs), and waits. This
    /// disturbs the kernel's reclaim: under memory pressure, the process's pages are swapped out first.
    #[arg(long, value_name = "TIME", value_parser = options::time, requires = "retained")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "10s")]
    staleness: Option<Duration>,
    /// JSON (schema leakscope.leaks/1), to standard output or to FILE; with a COMMAND, FILE must be named
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, value_hint = ValueHint::FilePath)]
    json: Option<Option<PathBuf>>,
    /// Also show the first bytes of a block of each record
    ///
    /// They can be secrets: keys, passwords, people's data.
    #[arg(long)]
    contents: bool,
    /// Let the process stand still while it is read, instead of copying its memory
    ///
    /// This takes longer, but no memory of the process's. It is done by itself where little memory is left.
    #[arg(long)]
    no_fork: bool,
    /// Refuse if the process would stand still for longer than this many milliseconds, by prediction
    #[arg(long, value_name = "MS", default_value_t = 100)]
    max_pause: u64,
    /// With a COMMAND: its heap file, as leakscope run -o FILE
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "target")]
    output: Option<PathBuf>,
    /// The executable of a core file; else an unstripped copy of it, for names
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    exe: Option<PathBuf>,
    /// A directory with debug information (searched by build id and by debug link); may be repeated
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    debug_dir: Vec<PathBuf>,
}

/// Finds leaks and reports them.
pub fn leaks(args: &Args) -> Result<ExitCode> {
    let mut options = args.options()?;
    if !args.command.is_empty() {
        return at_exit::run(args, options);
    }
    let Some(target) = &args.target else { bail!("name a process or a core file") };
    let pid = target.to_str().and_then(|text| text.parse::<u32>().ok());
    if let Some(every) = args.every {
        let Some(pid) = pid else {
            bail!("--every needs a process: {} is none's number", Path::new(target).display());
        };
        return over_time::run(args, pid, every, options);
    }
    if let Some(time) = args.staleness {
        let Some(pid) = pid else {
            bail!("--staleness needs a process: {} is none's number", Path::new(target).display());
        };
        let staleness = Staleness::begin(pid)?;
        std::thread::sleep(time);
        options.referenced = Some(staleness.end()?);
    }
    let progress = ProgressLine::default();
    let tell = |progress_made: Progress| progress.tell(progress_made);
    let report = match pid {
        Some(pid) => leakscope_examine::process(pid, &options, Some(&tell)),
        None => {
            let core = Path::new(target);
            if !core.exists() {
                bail!(
                    "{} is neither a process's number nor a file; name a pid, or a core file",
                    core.display()
                );
            }
            if let Some(exe) = &args.exe {
                // That the program is missing is otherwise only a note.
                std::fs::File::open(exe).with_context(|| format!("cannot read {}", exe.display()))?;
            }
            leakscope_examine::core(core, args.exe.as_deref(), Path::new("/"), &options, Some(&tell))
        }
    };
    progress.clear();
    let report = report?;
    let written = match &args.json {
        Some(Some(path)) => args.write_json(&report, &mut BufWriter::new(report::create(path)?), path),
        Some(None) => args.write_json(&report, &mut std::io::stdout().lock(), Path::new("standard output")),
        None => {
            let text = args.text(&report, report::has_color(&std::io::stdout()));
            let mut out = std::io::stdout().lock();
            let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
            written.context("cannot write the report to standard output")
        }
    };
    // Who reads no further than to the first lines (`| head`) misses nothing; the status is as ever.
    match written {
        Err(error) if !exit::is_broken_pipe(&error) => return Err(error),
        _ => {}
    }
    Ok(ExitCode::from(report.outcome.exit_status()))
}

impl Args {
    /// The kinds whose records are shown.
    fn shown(&self) -> KindSet {
        let shown =
            |kind: &Kind| self.show_leak_kinds.contains(*kind) || (self.retained && *kind == Kind::Reachable);
        KindSet::of(&KindSet::KINDS.into_iter().filter(shown).collect::<Vec<_>>())
    }

    fn text(&self, report: &LeakReport, color: bool) -> String {
        let options = LeaksTextOptions {
            shown: self.shown(),
            top: self.top,
            suppressions: self.gen_suppressions,
            color,
        };
        leakscope_report::leaks_text(report, &options)
    }

    fn write_json(&self, report: &LeakReport, mut out: impl Write, path: &Path) -> Result<()> {
        leakscope_report::write_leaks_json(report, self.shown(), &mut out)
            .and_then(|()| out.flush())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_json_line(&self, report: &LeakReport, out: impl Write, path: &Path) -> Result<()> {
        let mut out = BufWriter::new(out);
        leakscope_report::write_leaks_json_line(report, self.shown(), &mut out)
            .and_then(|()| out.flush())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn options(&self) -> Result<Options> {
        let mut options = Options {
            shown: self.shown(),
            retained: self.retained,
            errors: self.errors_for_leak_kinds,
            contents: self.contents,
            symbols: leakscope_symbols::Options::from_env(),
            ..Options::default()
        };
        options.snapshot.max_pause = Some(Duration::from_millis(self.max_pause));
        if self.no_fork {
            options.snapshot.mode = leakscope_target::Mode::Stop;
        }
        options.scan.pointer_mask = self.pointer_mask;
        options.scan.heuristics = self.leak_check_heuristics;
        if self.no_default_suppressions {
            options.suppressions = leakscope_leaks::Suppressions::none();
        }
        for path in &self.suppressions {
            options.suppressions.add_file(path)?;
        }
        let is_core = self
            .target
            .as_ref()
            .is_some_and(|target| target.to_str().is_none_or(|text| text.parse::<u32>().is_err()));
        if !is_core {
            options.symbols.exe = self.exe.clone();
        }
        options.symbols.debug_dirs.extend(self.debug_dir.iter().cloned());
        Ok(options)
    }
}

/// A line on a terminal that says how far a scan is, once it has taken a second.
struct ProgressLine {
    began: Instant,
    shown: Mutex<Option<Instant>>,
    is_terminal: bool,
}

impl Default for ProgressLine {
    fn default() -> ProgressLine {
        ProgressLine {
            began: Instant::now(),
            shown: Mutex::new(None),
            is_terminal: std::io::stderr().is_terminal(),
        }
    }
}

impl ProgressLine {
    fn tell(&self, progress: Progress) {
        const PATIENCE: Duration = Duration::from_secs(1);
        const INTERVAL: Duration = Duration::from_millis(100);
        if !self.is_terminal || self.began.elapsed() < PATIENCE {
            return;
        }
        let Ok(mut shown) = self.shown.try_lock() else { return };
        if shown.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        *shown = Some(Instant::now());
        let what = match progress.step {
            Step::Roots => "reading roots",
            Step::Blocks => "reading blocks",
            Step::Marks => "following pointers",
            Step::Lost => "grouping lost blocks",
        };
        let part = match progress.total {
            0 => String::new(),
            total => format!(" {}%", u128::from(progress.done) * 100 / u128::from(total)),
        };
        let _ = write!(std::io::stderr(), "\r\x1b[Kleakscope: {what}{part}");
    }

    fn clear(&self) {
        if self.shown.lock().is_ok_and(|shown| shown.is_some()) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
