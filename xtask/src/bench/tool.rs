//! The tools that are compared, and how each traces a command.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One way to run a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// Untraced.
    Native,
    /// `leakscope run`.
    Leakscope,
    /// `heaptrack --raw`: its interpreter would compete for the cores, and it runs out of memory on many (size, stack) pairs.
    Heaptrack,
    /// `valgrind --tool=massif`.
    Massif,
    /// `valgrind --tool=memcheck --leak-check=full`.
    Memcheck,
    /// gperftools' heap profiler, in tcmalloc.
    Gperftools,
    /// jemalloc's heap profiler with every allocation sampled.
    Jemalloc,
}

impl Tool {
    /// All, in the order of the columns.
    pub const ALL: [Self; 7] = [
        Self::Native,
        Self::Leakscope,
        Self::Heaptrack,
        Self::Massif,
        Self::Memcheck,
        Self::Gperftools,
        Self::Jemalloc,
    ];

    /// Column heading.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Leakscope => "leakscope",
            Self::Heaptrack => "heaptrack",
            Self::Massif => "massif",
            Self::Memcheck => "memcheck",
            Self::Gperftools => "gperftools",
            Self::Jemalloc => "jemalloc",
        }
    }

    /// Whether it costs so much that it gets fewer rounds and less work.
    pub fn is_slow(self) -> bool {
        !matches!(self, Self::Native | Self::Leakscope | Self::Heaptrack)
    }
}

/// Where the tools are on this machine.
#[derive(Debug, Clone)]
pub struct Tools {
    leakscope: PathBuf,
    tcmalloc: Option<PathBuf>,
    jemalloc: Option<PathBuf>,
    available: Vec<Tool>,
    /// Why a tool is not in the tables.
    pub absent: Vec<String>,
}

impl Tools {
    /// Finds those of `wanted` that work here.
    pub fn find(leakscope: PathBuf, wanted: &[Tool]) -> Self {
        let mut tools = Self {
            leakscope,
            tcmalloc: library("libtcmalloc.so.4"),
            jemalloc: library("libjemalloc.so.2"),
            available: Vec::new(),
            absent: Vec::new(),
        };
        for tool in Tool::ALL.into_iter().filter(|tool| *tool == Tool::Native || wanted.contains(tool)) {
            match tools.why_absent(tool) {
                None => tools.available.push(tool),
                Some(why) => tools.absent.push(format!("{}: {why}", tool.name())),
            }
        }
        tools
    }

    /// The tools that work, native first.
    pub fn available(&self) -> &[Tool] {
        &self.available
    }

    fn why_absent(&self, tool: Tool) -> Option<String> {
        let missing = |program: &str| (!runs(program)).then(|| format!("{program} does not run here"));
        match tool {
            Tool::Native | Tool::Leakscope => None,
            Tool::Heaptrack => missing("heaptrack"),
            Tool::Massif | Tool::Memcheck => missing("valgrind"),
            Tool::Gperftools => self.tcmalloc.is_none().then(|| "libtcmalloc.so.4 not found".to_owned()),
            Tool::Jemalloc => match &self.jemalloc {
                None => Some("libjemalloc.so.2 not found".to_owned()),
                // Built without --enable-prof it warns of the option and goes on unprofiled.
                Some(path) => {
                    let output = Command::new("true")
                        .env("LD_PRELOAD", path)
                        .env("MALLOC_CONF", "prof:true,prof_active:false")
                        .output();
                    let quiet =
                        output.is_ok_and(|output| output.status.success() && output.stderr.is_empty());
                    (!quiet).then(|| "this build of jemalloc has no profiling".to_owned())
                }
            },
        }
    }

    /// The command that runs `program` with `arguments` under `tool`, whose own files go to `scratch`.
    pub fn command(&self, tool: Tool, program: &Path, arguments: &[OsString], scratch: &Path) -> Command {
        let mut command = match tool {
            Tool::Native | Tool::Gperftools | Tool::Jemalloc => Command::new(program),
            Tool::Leakscope => {
                let mut command = Command::new(&self.leakscope);
                command.arg("run").arg("-o").arg(scratch.join("leakscope.heap")).arg("--").arg(program);
                command
            }
            Tool::Heaptrack => {
                let mut command = Command::new("heaptrack");
                command.args(["--raw", "-o"]).arg(scratch.join("heaptrack")).arg(program);
                command
            }
            Tool::Massif => {
                let mut command = Command::new("valgrind");
                let file = joined("--massif-out-file=", &scratch.join("massif"));
                command.args(["--tool=massif", "--quiet"]).arg(file).arg(program);
                command
            }
            Tool::Memcheck => {
                let mut command = Command::new("valgrind");
                let file = joined("--log-file=", &scratch.join("memcheck"));
                command.args(["--tool=memcheck", "--leak-check=full"]).arg(file).arg(program);
                command
            }
        };
        match tool {
            Tool::Gperftools => {
                command.env("LD_PRELOAD", self.tcmalloc.as_deref().unwrap_or(Path::new("libtcmalloc.so.4")));
                command.env("HEAPPROFILE", scratch.join("gperftools"));
            }
            Tool::Jemalloc => {
                command.env("LD_PRELOAD", self.jemalloc.as_deref().unwrap_or(Path::new("libjemalloc.so.2")));
                let prefix = joined("prof:true,lg_prof_sample:0,prof_prefix:", &scratch.join("jemalloc"));
                command.env("MALLOC_CONF", prefix);
            }
            _ => {}
        }
        command.args(arguments);
        command
    }
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut text = OsString::from(prefix);
    text.push(path);
    text
}

/// Whether `program --version` can be run.
pub fn runs(program: &str) -> bool {
    let status = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// The path of a shared library as the loader's cache has it.
fn library(name: &str) -> Option<PathBuf> {
    let output =
        ["/sbin/ldconfig", "ldconfig"].iter().find_map(|p| Command::new(p).arg("-p").output().ok())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.trim_start().starts_with(name) && line.contains("x86-64"))?;
    Some(PathBuf::from(line.rsplit_once("=> ")?.1.trim()))
}
