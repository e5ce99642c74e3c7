//! The names of one module's addresses, by blazesym.

use crate::demangle::Demangler;
use crate::guard::without_panic;
use crate::locate::Located;
use crate::symtab::{Kind, look_up};
use blazesym::symbolize::source::{Elf, Source};
use blazesym::symbolize::{CodeInfo, Input, Sym, Symbolized, Symbolizer};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Longest source path kept, in bytes.
const MAX_PATH: usize = 4096;
/// How many sub-batches may fail before a file is given up.
const MAX_FAILURES: usize = 64;

/// One function at an address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Name {
    pub(crate) function: Option<String>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) inlined: bool,
    /// Whether the name tells neither namespace nor type: line-table-only debug information and functions local to
    /// a C++ file have such names, and C has no others.
    plain: bool,
}

/// The names found, and what stood in the way of more.
pub(crate) struct Names {
    /// For each address its functions, innermost first; empty if nothing is known.
    pub(crate) of: Vec<Vec<Name>>,
    /// Set if the file with debug information turned out to be unusable.
    pub(crate) problem: Option<String>,
}

/// Names `addresses` (of instructions, in the file) of a module.
pub(crate) fn names(
    located: &Located,
    addresses: &[u64],
    debug_dirs: &[PathBuf],
    demangler: &mut Demangler,
) -> Names {
    let mut of = vec![Vec::new(); addresses.len()];
    let code = located.code.as_slice();
    let in_code: Vec<usize> = (0..addresses.len())
        .filter(|&at| addresses.get(at).is_some_and(|address| code_range(code, *address).is_some()))
        .collect();
    let mut problem = None;
    if let Some(debug) = &located.debug {
        let accept = |at: usize, sym: &Sym<'_>| {
            if let (Some(slot), true) = (of.get_mut(at), is_plausible(sym, code)) {
                *slot = functions(sym, demangler);
            }
        };
        problem = from_dwarf(debug, addresses, &in_code, debug_dirs, accept)
            .err()
            .map(|error| format!("the debug information in {} is unusable: {error}", debug.display()))
            .or_else(|| sparse(&of, &in_code));
    }
    for file in &located.symbols {
        let wanting: Vec<usize> = in_code.iter().copied().filter(|&at| is_wanting(&of, at)).collect();
        if wanting.is_empty() {
            break;
        }
        let inputs: Vec<u64> = wanting.iter().filter_map(|&at| addresses.get(at).copied()).collect();
        // A broken symbol table leaves the addresses with the names that they have.
        let found =
            without_panic(|| look_up(file, &inputs, Kind::Function).map_err(|error| error.to_string()));
        for ((at, address), symbol) in wanting.into_iter().zip(inputs).zip(found.unwrap_or_default()) {
            if let (Some(slot), Some(symbol)) = (of.get_mut(at), symbol)
                && (symbol.size > 0 || is_same_range(code, symbol.start, address))
            {
                add_name(slot, named(&symbol.name, None, false, demangler));
            }
        }
    }
    Names { of, problem }
}

/// What to say of debug information that is there but tells little: that of a runtime's or a library's few files
/// linked into a program compiled without.
fn sparse(of: &[Vec<Name>], in_code: &[usize]) -> Option<String> {
    let has_line =
        |at: &&usize| of.get(**at).is_some_and(|names| names.iter().any(|name| name.line.is_some()));
    let (lines, all) = (in_code.iter().filter(has_line).count(), in_code.len());
    (lines < all / 2).then(|| format!("debug information for only {lines} of {all} addresses"))
}

/// Whether a symbol table can know a better name for the physical function at an address.
fn is_wanting(of: &[Vec<Name>], at: usize) -> bool {
    of.get(at).and_then(|names| names.last()).is_none_or(|name| name.function.is_none() || name.plain)
}

/// Gives `accept` what a file with debug information knows of the addresses at the positions `which`.
fn from_dwarf(
    file: &Path,
    addresses: &[u64],
    which: &[usize],
    debug_dirs: &[PathBuf],
    mut accept: impl FnMut(usize, &Sym<'_>),
) -> Result<(), String> {
    let source = Source::Elf(Elf::new(file));
    let symbolizer = Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_demangling(false)
        .set_debug_dirs(Some(debug_dirs))
        .build();
    let (mut successes, mut failures) = (0, 0);
    let mut first_error = None;
    // One broken entry fails a whole batch, so a failed batch is halved until the culprit stands alone.
    let mut pending: Vec<&[usize]> = vec![which];
    while let Some(batch) = pending.pop() {
        let inputs: Vec<u64> = batch.iter().filter_map(|&at| addresses.get(at).copied()).collect();
        let result = without_panic(|| {
            // The alternate form of an error is the whole chain of causes in one line.
            let found = symbolizer
                .symbolize(&source, Input::VirtOffset(&inputs))
                .map_err(|error| format!("{error:#}"))?;
            for (&at, symbolized) in batch.iter().zip(found) {
                if let Symbolized::Sym(sym) = symbolized {
                    accept(at, &sym);
                }
            }
            Ok(())
        });
        let Err(error) = result else {
            successes += 1;
            continue;
        };
        first_error.get_or_insert(error);
        failures += 1;
        if failures > MAX_FAILURES {
            break;
        }
        if batch.len() > 1 {
            let (left, right) = batch.split_at(batch.len() / 2);
            pending.extend([right, left]);
        }
    }
    // A few addresses that cannot be resolved do not make the file unusable.
    match first_error {
        Some(error) if failures > MAX_FAILURES || successes == 0 => Err(error),
        _ => Ok(()),
    }
}

/// The functions at an address, innermost first.
fn functions(sym: &Sym<'_>, demangler: &mut Demangler) -> Vec<Name> {
    let mut functions = Vec::with_capacity(sym.inlined.len() + 1);
    for inner in sym.inlined.iter().rev() {
        functions.push(named(&inner.name, inner.code_info.as_ref(), true, demangler));
    }
    functions.push(named(&sym.name, sym.code_info.as_deref(), false, demangler));
    functions
}

/// Takes a symbol table's name for the physical function if it is better than what is known.
fn add_name(slot: &mut Vec<Name>, name: Name) {
    match slot.last_mut() {
        None => slot.push(name),
        Some(known) if known.function.is_none() || (known.plain && !name.plain) => {
            known.function = name.function;
            known.plain = name.plain;
        }
        Some(_) => {}
    }
}

/// Linkers that drop a function leave its debug information behind, moved to address 0, where it can cover real
/// code. Symbols without a size are left to the symbol table. A function in several pieces has neither address nor
/// size here.
fn is_plausible(sym: &Sym<'_>, code: &[Range<u64>]) -> bool {
    match sym.size {
        Some(_) => code_range(code, sym.addr).is_some(),
        None => sym.addr == 0 || sym.code_info.is_some(),
    }
}

/// A symbol without a size can reach up to the end of its section and no farther.
fn is_same_range(code: &[Range<u64>], start: u64, address: u64) -> bool {
    code_range(code, start).is_some_and(|range| range.contains(&address))
}

fn code_range(code: &[Range<u64>], address: u64) -> Option<&Range<u64>> {
    code.iter().find(|range| range.contains(&address))
}

fn named(name: &str, location: Option<&CodeInfo<'_>>, inlined: bool, demangler: &mut Demangler) -> Name {
    let file = location.map(|location| location.to_path().to_string_lossy().into_owned());
    Name {
        function: (!name.is_empty()).then(|| demangler.demangle(name)),
        file: file.filter(|file| !file.is_empty() && file.len() <= MAX_PATH),
        // Line 0 is DWARF for "no line".
        line: location.and_then(|location| location.line).filter(|&line| line > 0),
        inlined,
        plain: !name.starts_with("_Z") && !name.starts_with("_R"),
    }
}
