//! Names of data: which variable holds an address, and of which class an object is.
//!
//! Only symbol tables are asked, never DWARF: they have every variable with static storage, and the debug file of a
//! stripped module has the table that was stripped. An address has a name only if it lies within the size that the
//! symbol claims, and only if the symbol lies within a section of its file.

use crate::demangle::Demangler;
use crate::guard::without_panic;
use crate::locate::{Finder, Located};
use crate::symtab::{Kind, look_up};
use crate::work::for_each;
use crate::{Options, StandInFor, is_file};
use leakscope_profile::{Module, Process};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

/// Where pointers into a table of virtual functions may point at the earliest: behind the offset to the top of the
/// object and the type information, a word each.
const FIRST_ADDRESS_POINT: u64 = 16;
/// Virtual functions, and so the pointers to them, are a word apart.
const WORD: u64 = 8;

/// A data object of a module: a global variable, a table of virtual functions, a thread-local variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataObject {
    /// Its name, demangled and of bounded length: `cache::entries`, `f()::count`, `vtable for Session`.
    pub name: String,
    /// Path of its module, as [`Module::path`].
    pub module: String,
    /// Where in the object the address is, in bytes from its start; less than the size.
    pub offset: u64,
    /// Its size in bytes, never 0.
    pub size: u64,
}

/// Names data addresses of a process. What has no symbol is left out, and so is memory of modules since unloaded.
///
/// Files are looked for and believed as in [`symbolize`](crate::symbolize), and each is read once however many
/// addresses there are. An [`Options::exe`] that is not the program is passed over here.
pub fn data_objects(
    process: &Process,
    modules: &[Module],
    addresses: &[u64],
    options: &Options,
) -> HashMap<u64, DataObject> {
    let map = ByAddress::new(modules);
    let distinct: HashSet<u64> = addresses.iter().copied().collect();
    let wanted = distinct.into_iter().filter_map(|address| {
        let module = map.module_at(address)?;
        Some((module, address, address.wrapping_sub(module.bias)))
    });
    name_all(process, modules, wanted, Kind::Data, options)
}

/// Names thread-local variables: each asked for as an index into `modules` and an offset in that module's block of
/// thread-local storage, whose start is at the module's `dlpi_tls_data` of the thread. What has no symbol is left out.
pub fn thread_local_objects(
    process: &Process,
    modules: &[Module],
    offsets: &[(usize, u64)],
    options: &Options,
) -> HashMap<(usize, u64), DataObject> {
    let distinct: HashSet<(usize, u64)> = offsets.iter().copied().collect();
    let wanted = distinct.into_iter().filter_map(|(index, offset)| {
        let module = modules.get(index).filter(|module| is_file(module))?;
        Some((module, (index, offset), offset))
    });
    name_all(process, modules, wanted, Kind::ThreadLocal, options)
}

/// The class of the objects whose first word points where `object` was asked for: `Session` for an address in
/// `vtable for Session`.
///
/// Any place in such a table counts where virtual functions can start (Itanium C++ ABI, 2.5.2): behind the first
/// two words, on a word. A table that is used while an object is constructed (`construction vtable for
/// Base-in-Session`) tells the class that is constructed, `Session`. Rust's tables have no names by rule, and then
/// no class; one called `<Session as Service>::{vtable}` is `Session`'s.
///
/// A class without any virtual function but with virtual bases has a table whose only such place is at its end, an
/// address that is no part of it: its objects have no class.
pub fn class_of(object: &DataObject) -> Option<&str> {
    if let Some(table) = object.name.strip_suffix("::{vtable}") {
        let implementer = table.strip_prefix('<').and_then(implementing_type);
        return implementer.filter(|_| object.offset == 0);
    }
    if object.offset < FIRST_ADDRESS_POINT || !object.offset.is_multiple_of(WORD) {
        return None;
    }
    let class = match object.name.strip_prefix("construction vtable for ") {
        Some(pair) => pair.rsplit_once("-in-")?.1,
        None => object.name.strip_prefix("vtable for ")?,
    };
    (!class.is_empty()).then_some(class)
}

/// `T` of `T as Trait>`, where `T` and `Trait` can have such pairs inside.
fn implementing_type(pair: &str) -> Option<&str> {
    let mut depth = 0u32;
    let mut previous = ' ';
    for (at, c) in pair.char_indices() {
        match c {
            '<' => depth = depth.saturating_add(1),
            // `->` of a function's type closes nothing.
            '>' if previous != '-' => depth = depth.checked_sub(1)?,
            ' ' if depth == 0 && pair.get(at..).is_some_and(|rest| rest.starts_with(" as ")) => {
                return pair.get(..at).filter(|name| !name.is_empty());
            }
            _ => {}
        }
        previous = c;
    }
    None
}

/// The modules that are loaded, ascending.
struct ByAddress<'a> {
    modules: Vec<&'a Module>,
}

impl<'a> ByAddress<'a> {
    fn new(modules: &'a [Module]) -> Self {
        let mut modules: Vec<&Module> = modules.iter().filter(|module| !module.unloaded).collect();
        modules.sort_by_key(|module| module.start);
        ByAddress { modules }
    }

    /// The module that can have a variable at `address`. Memory behind its end can still be its own: zeroed data is
    /// no part of the file, so a module's extent taken from mappings of files ends before it. Whether it is its own,
    /// the symbols tell.
    fn module_at(&self, address: u64) -> Option<&'a Module> {
        let behind = self.modules.partition_point(|module| module.start <= address);
        self.modules.get(..behind)?.last().copied().filter(|module| is_file(module))
    }
}

/// One file and what to look up in it: who asks, and where in the file's terms.
struct Group<'a, K> {
    module: &'a Module,
    wanted: Vec<(K, u64)>,
    located: Located,
}

fn name_all<'a, K: Copy + Eq + Hash + Send + Sync>(
    process: &Process,
    modules: &[Module],
    wanted: impl Iterator<Item = (&'a Module, K, u64)>,
    kind: Kind,
    options: &Options,
) -> HashMap<K, DataObject> {
    // A library loaded twice is one file.
    type ByFile<'a, K> = BTreeMap<(&'a str, &'a [u8]), Group<'a, K>>;
    let mut files: ByFile<'a, K> = ByFile::new();
    for (module, key, in_file) in wanted {
        let group = files
            .entry((module.path.as_str(), module.build_id.as_slice()))
            .or_insert_with(|| Group { module, wanted: Vec::new(), located: Located::default() });
        group.wanted.push((key, in_file));
    }
    // Symbolizing tells the user what is wrong with the stand-in; here it is one file less.
    let stand_in = StandInFor::find(process, modules, options).ok().flatten();
    let mut finder = Finder::new(options, process);
    let mut groups: Vec<Group<'a, K>> = files.into_values().collect();
    for group in &mut groups {
        let stand_in = stand_in.as_ref().and_then(|stand_in| stand_in.file_for(group.module));
        group.located = finder.locate(group.module, stand_in);
    }
    let named =
        for_each(&groups, |group| group.wanted.len(), |group, demangler| name_group(group, kind, demangler));
    named.into_iter().flatten().flatten().collect()
}

/// Asks the files of a module, the fuller first.
fn name_group<K: Copy>(group: &Group<'_, K>, kind: Kind, demangler: &mut Demangler) -> Vec<(K, DataObject)> {
    let mut named = Vec::new();
    let mut wanting: Vec<(K, u64)> = group.wanted.clone();
    for file in &group.located.symbols {
        if wanting.is_empty() {
            break;
        }
        let places: Vec<u64> = wanting.iter().map(|&(_, place)| place).collect();
        // A broken symbol table has no names.
        let found = without_panic(|| look_up(file, &places, kind).map_err(|error| error.to_string()));
        let Ok(found) = found else { continue };
        let mut rest = Vec::new();
        for ((key, place), symbol) in wanting.into_iter().zip(found) {
            let object = symbol.and_then(|symbol| {
                let name = without_panic(|| Ok(readable(demangler.demangle(&symbol.name)))).ok()?;
                let module = group.module.path.clone();
                Some(DataObject { name, module, offset: place.wrapping_sub(symbol.start), size: symbol.size })
            });
            match object {
                Some(object) => named.push((key, object)),
                None => rest.push((key, place)),
            }
        }
        wanting = rest;
    }
    named
}

/// A demangled name as people know it from `c++filt`, where the demangler has notations of its own.
fn readable(name: String) -> String {
    let own = [("{vtable(", "vtable for "), ("{vtt(", "VTT for ")];
    for (prefix, known) in own {
        if let Some(class) = name.strip_prefix(prefix) {
            // A name that was cut has lost its end.
            return format!("{known}{}", class.strip_suffix(")}").unwrap_or(class));
        }
    }
    // The demangler writes the classes in the order of the mangled name, which is the other way round.
    let pair = name.strip_prefix("construction vtable for ").and_then(|pair| pair.split_once("-in-"));
    match pair {
        Some((whole, part)) => format!("construction vtable for {part}-in-{whole}"),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(mangled: &str, offset: u64) -> Option<String> {
        let name = readable(Demangler::default().demangle(mangled));
        let object = DataObject { name, module: "/bin/a".to_owned(), offset, size: 4096 };
        class_of(&object).map(str::to_owned)
    }

    #[test]
    fn a_place_where_virtual_functions_start_tells_the_class_and_others_do_not() {
        let session = Some("net::Session".to_owned());
        assert_eq!(class("_ZTVN3net7SessionE", 16), session);
        assert_eq!(class("_ZTVN3net7SessionE", 48), session, "a base's part of the table");
        assert_eq!(class("_ZTVN3net7SessionE", 0), None);
        assert_eq!(class("_ZTVN3net7SessionE", 8), None);
        assert_eq!(class("_ZTVN3net7SessionE", 17), None);
        assert_eq!(class("_ZTCN3net7SessionE0_NS_4BaseE", 24), session, "under construction");
    }

    #[test]
    fn what_is_no_table_of_virtual_functions_has_no_class() {
        for name in ["_ZTTN3net7SessionE", "_ZTIN3net7SessionE", "_ZTSN3net7SessionE", "table", "_ZL5table"] {
            assert_eq!(class(name, 16), None, "{name}");
        }
        for name in ["vtable.3", "vtable.3.llvm.123", "anon.0123456789abcdef0123456789abcdef.4", ""] {
            assert_eq!(class(name, 0), None, "{name}");
            assert_eq!(class(name, 24), None, "{name}");
        }
    }

    #[test]
    fn a_rust_table_that_names_its_type_tells_it() {
        let named = |name: &str| class(name, 0);
        assert_eq!(named("<net::Session as net::Service>::{vtable}").as_deref(), Some("net::Session"));
        let nested = "<Box<<A as B>::C, fn() -> u8> as core::ops::Fn<(u8,)>>::{vtable}";
        assert_eq!(named(nested).as_deref(), Some("Box<<A as B>::C, fn() -> u8>"));
        assert_eq!(named("<net::Session>::{vtable}"), None);
        assert_eq!(named("< as net::Service>::{vtable}"), None);
        assert_eq!(class("<net::Session as net::Service>::{vtable}", 24), None);
    }

    #[test]
    fn an_address_is_its_modules_even_behind_the_mapped_end_but_not_before_the_start() {
        let module = |path: &str, start, unloaded| Module {
            path: path.to_owned(),
            start,
            end: start + 0x1000,
            unloaded,
            ..Module::default()
        };
        let modules =
            [module("/b", 0x9000, false), module("/a", 0x2000, false), module("/gone", 0x4000, true)];
        let map = ByAddress::new(&modules);
        let at = |address| map.module_at(address).map(|module| module.path.as_str());
        assert_eq!(at(0x1fff), None);
        assert_eq!(at(0x2000), Some("/a"));
        assert_eq!(at(0x4010), Some("/a"), "an unloaded module has no memory");
        assert_eq!(at(0x9000), Some("/b"));
        let modules = [module("/b", 0x2000, false), module("[vdso]", 0x3000, false)];
        assert!(ByAddress::new(&modules).module_at(0x3008).is_none());
    }
}
