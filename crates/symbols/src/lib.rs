//! Addresses to functions, files, lines and inlined frames.
//!
//! [`symbolize`] names every address of a profile, as far as files can be found that are certainly the ones that
//! were mapped (by build id). A module without them keeps its addresses, and [`Symbols::missing`] says why and
//! what would help. Files are hostile input: a broken one costs its names, nothing else.
//!
//! [`data_objects`] and [`thread_local_objects`] name data the same way: the global variable that holds a block, the
//! class whose table of virtual functions an object points to ([`class_of`]).

mod debian;
mod debuginfod;
mod demangle;
mod elf;
mod guard;
mod locate;
mod names;
mod objects;
mod running;
mod symtab;
mod work;

pub use debuginfod::Debuginfod;
pub use objects::{DataObject, class_of, data_objects, thread_local_objects};

use elf::{ElfFile, hex};
use leakscope_profile::{CodeAddress, Frame, MissingDebugInfo, Module, Process, Profile, Symbols};
use locate::{Finder, Located, StandIn};
use names::{Name, Names, names};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use work::for_each;

/// Where names come from.
#[derive(Debug, Clone)]
pub struct Options {
    /// A copy of the program: stands in for the module whose build id it has, or for the main executable if that
    /// has none recorded.
    pub exe: Option<PathBuf>,
    /// Directories of debug files besides `/usr/lib/debug`: trees of that form (`.build-id/xx/yyy.debug`, debug
    /// links), and any directory, which is searched for files by build id.
    pub debug_dirs: Vec<PathBuf>,
    /// Servers to ask for what no directory has.
    pub debuginfod: Debuginfod,
    /// Where the modules' paths are looked up.
    pub root: PathBuf,
    /// Where a process that still runs is looked up, for its files that were deleted or replaced.
    pub proc: PathBuf,
}

impl Default for Options {
    /// This machine's files, no network.
    fn default() -> Self {
        Options {
            exe: None,
            debug_dirs: Vec::new(),
            debuginfod: Debuginfod::default(),
            root: PathBuf::from("/"),
            proc: PathBuf::from("/proc"),
        }
    }
}

impl Options {
    /// This machine's files, and debuginfod as the environment says (`DEBUGINFOD_URLS`).
    pub fn from_env() -> Self {
        Options { debuginfod: Debuginfod::from_env(), ..Options::default() }
    }
}

/// What the user asked for cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file given as the program is of no use.
    #[error("cannot use {path} as the program: {reason}")]
    Exe {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file given as the program is another program.
    #[error(
        "{path} (build id {found}) is none of the profiled files; the program was {program} (build id {wanted})"
    )]
    OtherExe {
        /// The file.
        path: PathBuf,
        /// Its build id.
        found: String,
        /// Path of the profiled program.
        program: String,
        /// The build id of that.
        wanted: String,
    },
    /// A directory of debug files cannot be read.
    #[error("cannot read the debug directory {path}: {source}")]
    DebugDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Names every address of `profile`.
///
/// Only a wish that cannot be met (a program file or directory that is not what it should be) is an error;
/// everything else that is wanting is told in [`Symbols::missing`].
pub fn symbolize(profile: &Profile, options: &Options) -> Result<Symbols, Error> {
    for path in &options.debug_dirs {
        std::fs::read_dir(path).map_err(|source| Error::DebugDir { path: path.clone(), source })?;
    }
    let stand_in = StandInFor::find(&profile.process, &profile.modules, options)?;
    let mut symbols = Symbols::default();
    let mut finder = Finder::new(options, &profile.process);
    let mut groups = Vec::new();
    for (module, addresses) in group(profile, &mut symbols) {
        let stand_in = stand_in.as_ref().and_then(|stand_in| stand_in.file_for(module));
        let mut located = finder.locate(module, stand_in);
        if module.build_id.is_empty() && stand_in.is_none() && !fits(&located, &addresses) {
            located = Located::nothing("replaced on disk (the addresses do not fit)".to_owned());
        }
        groups.push(Group { module, addresses, located });
    }
    let named = name_all(&groups, finder.debug_dirs());
    for (group, names) in groups.iter().zip(named) {
        if let Some(reason) = names.problem.as_ref().or(group.located.reason.as_ref()) {
            symbols.missing.push(MissingDebugInfo {
                path: group.module.path.clone(),
                build_id: hex(&group.module.build_id),
                package: None,
                reason: reason.clone(),
            });
        }
        for (wanted, names) in group.addresses.iter().zip(names.of) {
            symbols.frames.insert(wanted.code, frames(group.module, wanted, names));
        }
    }
    symbols.missing.sort_by(|a, b| a.path.cmp(&b.path).then_with(|| a.build_id.cmp(&b.build_id)));
    add_packages(&mut symbols.missing, options);
    Ok(symbols)
}

/// One address to name.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    code: CodeAddress,
    /// The return address within the ELF file.
    in_file: u64,
}

impl Wanted {
    /// An address in the call instruction: the return address can belong to the next line or function.
    fn call(&self) -> u64 {
        self.in_file.wrapping_sub(1)
    }
}

/// A file and the addresses in it, ascending.
struct Group<'a> {
    module: &'a Module,
    addresses: Vec<Wanted>,
    located: Located,
}

/// Sorts the profile's addresses by file; a library loaded twice is one file. Those without a file get their
/// nameless frames right away.
fn group<'a>(profile: &'a Profile, symbols: &mut Symbols) -> Vec<(&'a Module, Vec<Wanted>)> {
    let distinct: HashSet<CodeAddress> =
        profile.sites.iter().flat_map(|site| site.stack.iter().copied()).collect();
    type ByFile<'a> = BTreeMap<(&'a str, &'a [u8]), (&'a Module, Vec<Wanted>)>;
    let mut files = ByFile::new();
    for code in distinct {
        let module = code.module.and_then(|index| profile.modules.get(usize::try_from(index).ok()?));
        match module {
            Some(module) if is_file(module) => {
                let wanted = Wanted { code, in_file: code.address.wrapping_sub(module.bias) };
                let key = (module.path.as_str(), module.build_id.as_slice());
                files.entry(key).or_insert_with(|| (module, Vec::new())).1.push(wanted);
            }
            other => {
                let address = code.address.wrapping_sub(other.map_or(0, |module| module.bias));
                let module = other.map(|module| module.path.clone());
                symbols.frames.insert(code, vec![Frame { module, address, ..Frame::default() }]);
            }
        }
    }
    files
        .into_values()
        .map(|(module, mut addresses)| {
            // Neighbours share debug information.
            addresses.sort_by_key(|wanted| (wanted.in_file, wanted.code));
            (module, addresses)
        })
        .collect()
}

/// Whether the module is a file at all and not `[vdso]` or the like.
fn is_file(module: &Module) -> bool {
    module.path.starts_with('/')
}

/// Whether all addresses lie in the code of the file that was found.
fn fits(located: &Located, addresses: &[Wanted]) -> bool {
    located.code.is_empty()
        || addresses.iter().all(|wanted| located.code.iter().any(|range| range.contains(&wanted.call())))
}

/// The user's copy of the program and the module it is a copy of.
struct StandInFor {
    file: StandIn,
    module: Module,
}

impl StandInFor {
    fn find(process: &Process, modules: &[Module], options: &Options) -> Result<Option<StandInFor>, Error> {
        let Some(path) = &options.exe else { return Ok(None) };
        let elf = ElfFile::read(path)
            .map_err(|error| Error::Exe { path: path.clone(), reason: error.to_string() })?;
        let program = main_module(process, modules);
        let module = match modules.iter().find(|module| module.build_id == elf.build_id) {
            Some(module) if !elf.build_id.is_empty() => module,
            _ => program.filter(|module| module.build_id.is_empty()).ok_or_else(|| Error::OtherExe {
                path: path.clone(),
                found: id_or_none(&elf.build_id),
                program: program.map_or(process.executable.clone(), |module| module.path.clone()),
                wanted: program.map_or("unknown".to_owned(), |module| id_or_none(&module.build_id)),
            })?,
        };
        let file = StandIn { path: path.clone(), elf };
        Ok(Some(StandInFor { file, module: module.clone() }))
    }

    /// The file, if it stands in for `module`.
    fn file_for(&self, module: &Module) -> Option<&StandIn> {
        let is_for = self.module.path == module.path && self.module.build_id == module.build_id;
        is_for.then_some(&self.file)
    }
}

fn id_or_none(build_id: &[u8]) -> String {
    if build_id.is_empty() { "none".to_owned() } else { hex(build_id) }
}

fn main_module<'a>(process: &Process, modules: &'a [Module]) -> Option<&'a Module> {
    let plain = |path: &str| path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
    let executable = plain(&process.executable);
    modules.iter().find(|module| plain(&module.path) == executable)
}

/// Names all groups, several at a time. The answers are in the order of the groups.
fn name_all(groups: &[Group<'_>], debug_dirs: &[PathBuf]) -> Vec<Names> {
    let named = for_each(
        groups,
        |group| group.addresses.len(),
        |group, demangler| {
            let calls: Vec<u64> = group.addresses.iter().map(Wanted::call).collect();
            names(&group.located, &calls, debug_dirs, demangler)
        },
    );
    named
        .into_iter()
        .zip(groups)
        .map(|(names, group)| {
            names.unwrap_or_else(|| Names { of: vec![Vec::new(); group.addresses.len()], problem: None })
        })
        .collect()
}

fn frames(module: &Module, wanted: &Wanted, names: Vec<Name>) -> Vec<Frame> {
    let nameless = names.is_empty().then(Name::default);
    names
        .into_iter()
        .chain(nameless)
        .map(|name| Frame {
            function: name.function,
            file: name.file,
            line: name.line,
            module: Some(module.path.clone()),
            address: wanted.in_file,
            inlined: name.inlined,
        })
        .collect()
}

/// Says for each module which Debian package would have its debug information.
fn add_packages(missing: &mut [MissingDebugInfo], options: &Options) {
    let plain = |path: &str| path.strip_suffix(" (deleted)").unwrap_or(path).to_owned();
    let paths: Vec<String> = missing.iter().map(|entry| plain(&entry.path)).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let packages = debian::debug_packages(&options.root, &paths);
    for (entry, path) in missing.iter_mut().zip(paths) {
        entry.package = packages.get(path).cloned();
    }
}
