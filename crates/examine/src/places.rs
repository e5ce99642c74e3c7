//! What a root is called: a global or thread-local variable, a function's frame on a thread's stack, a register, a mapping.
//!
//! What is needed for that is taken from the snapshot once and outlives it, so that a root can be named at a later scan.

use crate::roots;
use crate::stacks::{StackFrame, Stacks};
use crate::tls::{TlsBlock, TlsModules};
use crate::{modules, roots::mapping_at};
use leakscope_profile::{CodeAddress, Module, Process, Profile, Site};
use leakscope_reach::Origin;
use leakscope_symbols::{data_objects, symbolize, thread_local_objects};
use leakscope_target::{Mapping, Snapshot};
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Bytes below the stack pointer that the innermost function may use (System V ABI, x86-64).
const RED_ZONE: u64 = 128;
/// Of glibc's control block of a thread (`struct pthread`), which begins at the thread pointer; larger in no version.
const CONTROL_BLOCK: u64 = 4096;
/// Threads whose stacks are unwound; those of others are told apart, but their functions are not named.
const MOST_THREADS: usize = 1000;

/// A step of a chain: what it is, where in it, and of what it is a part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Step {
    /// `global sessions`, `Session`.
    pub(crate) name: String,
    /// Where in it the pointer to the next step lies, if that tells anything.
    pub(crate) field: Option<u64>,
    /// ` in server`.
    pub(crate) part_of: String,
    /// How many such blocks follow each other, less one.
    pub(crate) more: usize,
    /// Of blocks of which nothing else is known: the smallest and the largest.
    pub(crate) sizes: Option<(u64, u64)>,
}

impl Step {
    fn of(name: String) -> Step {
        Step { name, ..Step::default() }
    }
}

/// A thread of the snapshot.
#[derive(Debug, Clone)]
struct ThreadPlaces {
    /// `thread "NAME" (TID)`.
    label: String,
    sp: u64,
    pointer: u64,
    /// How many of the roots' words are its registers.
    words: usize,
    frames: Vec<StackFrame>,
    variables: Vec<TlsBlock>,
}

/// What roots are called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    pub(crate) process: Process,
    pub(crate) modules: Vec<Module>,
    mappings: Vec<Mapping>,
    /// By stack pointer.
    threads: Vec<ThreadPlaces>,
    /// The same by the order of their words among the roots: index into `threads`.
    by_words: Vec<usize>,
}

/// Where a root lies, before it has a name.
enum Place {
    Variable { thread: usize, module: usize, offset: u64 },
    Frame { thread: usize, pc: Option<u64> },
    Control { thread: usize },
    Register { thread: usize },
    Data { module: usize },
    Mapped { mapping: usize },
    Library,
    Unknown,
}

impl Places {
    pub(crate) fn of(snapshot: &Snapshot) -> Places {
        let modules = modules::modules(snapshot);
        let local = TlsModules::find(snapshot, &modules);
        let mut stacks = Stacks::new(&*snapshot.memory, &modules);
        let mut threads: Vec<(usize, ThreadPlaces)> = Vec::new();
        for (number, thread) in snapshot.threads.iter().enumerate() {
            let name = String::from_utf8_lossy(&thread.name).into_owned();
            let label = match (name.is_empty(), thread.tid) {
                (true, 0) => format!("thread {}", number + 1),
                (true, tid) => format!("thread {tid}"),
                (false, 0) => format!("thread \"{name}\""),
                (false, tid) => format!("thread \"{name}\" ({tid})"),
            };
            let frames = if number < MOST_THREADS { stacks.frames(&thread.registers) } else { Vec::new() };
            let places = ThreadPlaces {
                label,
                sp: thread.registers.sp,
                pointer: thread.registers.thread_pointer,
                words: roots::registers(thread).count(),
                frames,
                variables: local.of(&*snapshot.memory, thread),
            };
            threads.push((number, places));
        }
        threads.sort_by_key(|(_, thread)| thread.sp);
        let mut by_words: Vec<(usize, usize)> =
            threads.iter().enumerate().map(|(index, &(number, _))| (number, index)).collect();
        by_words.sort_unstable();
        let process = modules::process(snapshot);
        Places {
            process,
            modules,
            mappings: snapshot.mappings.clone(),
            threads: threads.into_iter().map(|(_, thread)| thread).collect(),
            by_words: by_words.into_iter().map(|(_, index)| index).collect(),
        }
    }

    /// Where threads' stacks are, without the thread-local variables above them, by address: what lies there comes and goes.
    pub(crate) fn stacks(&self) -> Vec<Range<u64>> {
        let stack = |thread: &ThreadPlaces| {
            let mapping = mapping_at(&self.mappings, thread.sp)?;
            let start = thread.sp.saturating_sub(RED_ZONE);
            let variables = thread.variables.iter().map(|block| block.range.start).chain([thread.pointer]);
            let end = variables.filter(|at| (start..mapping.end).contains(at)).min();
            Some(start..end.unwrap_or(mapping.end))
        };
        let mut stacks: Vec<Range<u64>> = self.threads.iter().filter_map(stack).collect();
        stacks.sort_unstable_by_key(|stack| stack.start);
        stacks
    }

    /// Whether `address` is memory of a thread-local variable, which can be in a block.
    pub(crate) fn is_thread_local(&self, address: u64) -> bool {
        matches!(self.variable(address), Some(Place::Variable { .. }))
    }

    /// Steps for origins. Names are looked up in the modules' files, each once.
    pub(crate) fn name(
        &self,
        origins: impl IntoIterator<Item = Origin>,
        options: &leakscope_symbols::Options,
    ) -> HashMap<Origin, Step> {
        let places: Vec<(Origin, Place)> =
            origins.into_iter().map(|origin| (origin, self.place(origin))).collect();
        let addresses: Vec<u64> = places
            .iter()
            .filter(|(_, place)| matches!(place, Place::Data { .. }))
            .filter_map(|(origin, _)| address_of(*origin))
            .collect();
        let globals = data_objects(&self.process, &self.modules, &addresses, options);
        let offsets: Vec<(usize, u64)> = places
            .iter()
            .filter_map(|(_, place)| match *place {
                Place::Variable { module, offset, .. } => Some((module, offset)),
                _ => None,
            })
            .collect();
        let variables = thread_local_objects(&self.process, &self.modules, &offsets, options);
        let counters: BTreeSet<u64> = places
            .iter()
            .filter_map(|(_, place)| match place {
                Place::Frame { pc, .. } => *pc,
                _ => None,
            })
            .collect();
        let functions = functions(&self.process, &self.modules, counters, options);
        let steps = places.into_iter().map(|(origin, place)| {
            let step = match place {
                Place::Variable { thread, module, offset } => {
                    let thread = self.label(thread);
                    match variables.get(&(module, offset)) {
                        Some(found) => Step {
                            name: format!("thread-local {}", found.name),
                            field: Some(found.offset),
                            part_of: format!(" of {thread}"),
                            ..Step::default()
                        },
                        None => Step::of(format!(
                            "thread-local storage of {} of {thread}",
                            self.module_name(module)
                        )),
                    }
                }
                Place::Frame { thread, pc } => {
                    let function = pc.and_then(|pc| functions.get(&pc));
                    let function =
                        function.map(|function| format!(", in function {function}")).unwrap_or_default();
                    Step::of(format!("stack of {}{function}", self.label(thread)))
                }
                Place::Control { thread } => {
                    Step::of(format!("control block (pthread keys) of {}", self.label(thread)))
                }
                Place::Register { thread } => Step::of(format!("register of {}", self.label(thread))),
                Place::Data { module } => {
                    let part_of = format!(" in {}", self.module_name(module));
                    match address_of(origin).map(|address| (address, globals.get(&address))) {
                        Some((_, Some(found))) => Step {
                            name: format!("global {}", found.name),
                            field: Some(found.offset),
                            part_of,
                            ..Step::default()
                        },
                        Some((address, None)) => {
                            let start = self.modules.get(module).map_or(0, |module| module.start);
                            let at = address.wrapping_sub(start);
                            Step { name: format!("unnamed data at {at:#x}"), part_of, ..Step::default() }
                        }
                        None => Step::of("data".to_owned()),
                    }
                }
                Place::Mapped { mapping } => self.mapped(mapping, origin),
                Place::Library => Step::of("a block that the C library or the loader keeps".to_owned()),
                Place::Unknown => Step::of("memory".to_owned()),
            };
            (origin, step)
        });
        steps.collect()
    }

    fn label(&self, thread: usize) -> &str {
        self.threads.get(thread).map_or("a thread", |thread| &thread.label)
    }

    fn module_name(&self, module: usize) -> &str {
        let path = self.modules.get(module).map_or("", |module| &module.path);
        path.rsplit('/').next().unwrap_or(path)
    }

    fn mapped(&self, mapping: usize, origin: Origin) -> Step {
        let Some(mapping) = self.mappings.get(mapping) else { return Step::of("memory".to_owned()) };
        let field = address_of(origin).map(|address| address.wrapping_sub(mapping.start));
        let path = String::from_utf8_lossy(&mapping.path);
        let name = if path.is_empty() {
            format!("memory mapped anonymously at {:#x}", mapping.start)
        } else {
            format!("memory mapped at {path}")
        };
        Step { name, field, ..Step::default() }
    }

    fn place(&self, origin: Origin) -> Place {
        let address = match origin {
            Origin::Memory(address) => address,
            Origin::Block => return Place::Library,
            Origin::Word(mut number) => {
                for &index in &self.by_words {
                    let words = self.threads.get(index).map_or(0, |thread| thread.words);
                    match number.checked_sub(words) {
                        Some(rest) => number = rest,
                        None => return Place::Register { thread: index },
                    }
                }
                return Place::Unknown;
            }
        };
        self.variable(address)
            .or_else(|| self.frame(address))
            .or_else(|| self.data(address))
            .or_else(|| {
                let mapping = mapping_at(&self.mappings, address)?;
                let index = self.mappings.iter().position(|other| other.start == mapping.start)?;
                Some(Place::Mapped { mapping: index })
            })
            .unwrap_or(Place::Unknown)
    }

    fn variable(&self, address: u64) -> Option<Place> {
        self.threads.iter().enumerate().find_map(|(thread, places)| {
            let found = places.variables.iter().find(|block| block.range.contains(&address));
            let found = found.map(|block| Place::Variable {
                thread,
                module: block.module,
                offset: address.wrapping_sub(block.range.start),
            });
            let in_control = || {
                let distance = address.checked_sub(places.pointer).filter(|_| places.pointer != 0)?;
                (distance < CONTROL_BLOCK && self.same_mapping(address, places.pointer))
                    .then_some(Place::Control { thread })
            };
            found.or_else(in_control)
        })
    }

    fn same_mapping(&self, one: u64, other: u64) -> bool {
        let mapping = mapping_at(&self.mappings, one);
        mapping.is_some_and(|mapping| (mapping.start..mapping.end).contains(&other))
    }

    fn frame(&self, address: u64) -> Option<Place> {
        // The thread whose stack pointer is the nearest below.
        let behind = self.threads.partition_point(|thread| thread.sp.saturating_sub(RED_ZONE) <= address);
        let thread = behind.checked_sub(1)?;
        let places = self.threads.get(thread).filter(|places| self.same_mapping(address, places.sp))?;
        if mapping_at(&self.mappings, address).is_some_and(|mapping| mapping.path.starts_with(b"/")) {
            return None;
        }
        let address = address.max(places.sp);
        let pc = places.frames.iter().find(|frame| frame.range.contains(&address)).map(|frame| frame.pc);
        Some(Place::Frame { thread, pc })
    }

    fn data(&self, address: u64) -> Option<Place> {
        let behind = self.modules.partition_point(|module| module.start <= address);
        let index = behind.checked_sub(1)?;
        let module = self.modules.get(index)?;
        // Zeroed data lies in anonymous memory right behind the file's.
        let mut end = module.end;
        let next = self.mappings.partition_point(|mapping| mapping.start < end);
        if let Some(mapping) = self.mappings.get(next)
            && mapping.start == end
            && mapping.path.is_empty()
        {
            end = mapping.end;
        }
        (address < end).then_some(Place::Data { module: index })
    }
}

fn address_of(origin: Origin) -> Option<u64> {
    match origin {
        Origin::Memory(address) => Some(address),
        Origin::Word(_) | Origin::Block => None,
    }
}

/// The functions that hold these addresses. An address that follows a call can be the next function's first, so the
/// byte before is what is looked up; so callers add 1 to a function's own address.
pub(crate) fn functions(
    process: &Process,
    modules: &[Module],
    addresses: impl IntoIterator<Item = u64>,
    options: &leakscope_symbols::Options,
) -> HashMap<u64, String> {
    let code = |address: u64| {
        let module = modules.iter().position(|module| (module.start..module.end).contains(&address));
        CodeAddress { module: module.and_then(|index| u32::try_from(index).ok()), address }
    };
    let stack: Vec<CodeAddress> = addresses.into_iter().map(code).collect();
    if stack.is_empty() {
        return HashMap::new();
    }
    let profile = Profile {
        process: process.clone(),
        modules: modules.to_vec(),
        sites: vec![Site { stack: stack.clone(), ..Site::default() }],
        ..Profile::default()
    };
    // What cannot be named has no name here; the stacks of records tell the user why.
    let Ok(symbols) = symbolize(&profile, options) else { return HashMap::new() };
    let named = stack.into_iter().filter_map(|code| {
        // The outermost of inlined functions is the one that has the frame.
        let frame = profile.frames_of(&symbols, code).pop()?;
        Some((code.address, frame.function?))
    });
    named.collect()
}
