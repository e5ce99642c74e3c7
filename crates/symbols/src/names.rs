//! The names of one module's addresses, by blazesym.

use crate::demangle::Demangler;
use crate::guard::without_panic;
use crate::locate::Located;
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
    let mut problem = None;
    let in_code: Vec<usize> = (0..addresses.len())
        .filter(|&at| addresses.get(at).is_some_and(|address| code_range(&located.code, *address).is_some()))
        .collect();
    if let Some(debug) = &located.debug {
        problem = name_from(debug, true, located, addresses, &in_code, debug_dirs, demangler, &mut of)
            .err()
            .map(|error| format!("the debug information in {} is unusable: {error}", debug.display()))
            .or_else(|| sparse(&of, &in_code));
    }
    for file in &located.symbols {
        let wanting: Vec<usize> = in_code.iter().copied().filter(|&at| is_wanting(&of, at)).collect();
        if wanting.is_empty() {
            break;
        }
        // A broken symbol table leaves the address with the name that it has.
        let _ = name_from(file, false, located, addresses, &wanting, debug_dirs, demangler, &mut of);
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

/// Whether the physical function at an address has no name yet.
fn is_unnamed(of: &[Vec<Name>], at: usize) -> bool {
    of.get(at).and_then(|names| names.last()).is_none_or(|name| name.function.is_none())
}

/// Whether a symbol table can know a better name for the physical function at an address.
fn is_wanting(of: &[Vec<Name>], at: usize) -> bool {
    of.get(at).and_then(|names| names.last()).is_none_or(|name| name.function.is_none() || name.plain)
}

/// Fills in what one file knows of the addresses at the positions `which`.
#[allow(clippy::too_many_arguments)]
fn name_from(
    file: &Path,
    debug_syms: bool,
    located: &Located,
    addresses: &[u64],
    which: &[usize],
    debug_dirs: &[PathBuf],
    demangler: &mut Demangler,
    of: &mut [Vec<Name>],
) -> Result<(), String> {
    let mut elf = Elf::new(file);
    elf.debug_syms = debug_syms;
    let source = Source::Elf(elf);
    let symbolizer = Symbolizer::builder()
        .enable_auto_reload(false)
        .enable_demangling(false)
        .set_debug_dirs(Some(debug_dirs))
        .build();
    let mut failures = 0;
    let mut first_error = None;
    // One broken entry fails a whole batch, so a failed batch is halved until the culprit stands alone.
    let mut pending: Vec<&[usize]> = vec![which];
    while let Some(batch) = pending.pop() {
        let inputs: Vec<u64> = batch.iter().filter_map(|&at| addresses.get(at).copied()).collect();
        let result = without_panic(|| {
            let found = symbolizer.symbolize(&source, Input::VirtOffset(&inputs)).map_err(describe)?;
            for (&at, symbolized) in batch.iter().zip(found) {
                if let (Some(&address), Some(slot), Symbolized::Sym(sym)) =
                    (addresses.get(at), of.get_mut(at), symbolized)
                {
                    accept(slot, &sym, address, &located.code, demangler);
                }
            }
            Ok(())
        });
        if let Err(error) = result {
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
    }
    // A few addresses that cannot be resolved do not make the file unusable.
    match first_error {
        Some(error) if failures > MAX_FAILURES || which.iter().all(|&at| is_unnamed(of, at)) => Err(error),
        _ => Ok(()),
    }
}

fn describe(error: blazesym::Error) -> String {
    // The alternate form is the whole chain of causes in one line.
    format!("{error:#}")
}

/// Takes over a symbol if it can be the right one.
fn accept(slot: &mut Vec<Name>, sym: &Sym<'_>, address: u64, code: &[Range<u64>], demangler: &mut Demangler) {
    if !is_plausible(sym, address, code) {
        return;
    }
    let physical = named(&sym.name, sym.code_info.as_deref(), false, demangler);
    // An earlier file knew the lines: add the name alone.
    if let Some(known) = slot.last_mut() {
        if known.function.is_none() || (known.plain && !physical.plain) {
            known.function = physical.function;
            known.plain = physical.plain;
        }
        return;
    }
    let inlined = sym.inlined.iter().rev();
    let inlined = inlined.map(|inner| named(&inner.name, inner.code_info.as_ref(), true, demangler));
    // All at once: a panic on the way must not leave half a stack.
    let functions = inlined.collect::<Vec<_>>().into_iter().chain([physical]).collect();
    *slot = functions;
}

/// Linkers that drop a function leave its debug information behind, moved to address 0, where it can cover real
/// code; and symbols without a size reach up to the next one, whatever lies between.
fn is_plausible(sym: &Sym<'_>, address: u64, code: &[Range<u64>]) -> bool {
    let function_in_code = code_range(code, sym.addr);
    match sym.size {
        Some(_) => function_in_code.is_some(),
        // A function in several pieces has neither address nor size here.
        None if sym.addr == 0 => true,
        None => function_in_code.is_some_and(|range| range.contains(&address)),
    }
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
