//! A profile's sites with their names, merged the way a reader tells them apart.

use crate::{CodeAddress, Counts, Frame, Kind, Profile, Samples, Symbols, View, is_allocator_function};
use std::cmp::Ordering;
use std::collections::HashMap;

/// Index into [`NamedSites::frames`].
pub type FrameId = u32;

/// All sites of a profile by the names of their stacks: two sites that print the same are one.
#[derive(Debug, Clone, Default)]
pub struct NamedSites {
    /// Every distinct frame once. A named frame stands for all addresses of that function, file and line, and
    /// `address` is one of them.
    pub frames: Vec<Frame>,
    /// The merged sites, the largest by the asked view first.
    pub sites: Vec<NamedSite>,
}

/// All allocations of one kind made with one named stack.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedSite {
    /// Where the memory came from.
    pub kind: Kind,
    /// Set if the stack's outer end is missing.
    pub truncated: bool,
    /// Frames, innermost first, without the allocator's own at the inner end.
    pub stack: Vec<FrameId>,
    /// The numbers of all merged sites.
    pub counts: Counts,
    /// What they rest on.
    pub samples: Samples,
}

impl NamedSites {
    /// The frames of a site, innermost first.
    pub fn stack<'a>(&'a self, site: &'a NamedSite) -> impl DoubleEndedIterator<Item = &'a Frame> {
        site.stack.iter().filter_map(|&id| self.frames.get(id as usize))
    }
}

impl Profile {
    /// The frames of one address. What `symbols` does not know is given as module and address.
    pub fn frames_of(&self, symbols: &Symbols, pc: CodeAddress) -> Vec<Frame> {
        match symbols.frames.get(&pc) {
            Some(frames) if !frames.is_empty() => frames.clone(),
            _ => {
                let module = pc.module.and_then(|index| self.modules.get(index as usize));
                vec![Frame {
                    address: module.map_or(pc.address, |module| pc.address.wrapping_sub(module.bias)),
                    module: module.map(|module| module.path.clone()),
                    ..Frame::default()
                }]
            }
        }
    }

    /// Names all sites, drops the allocator's frames from their inner ends, merges those that then have the same
    /// functions, files and lines, and sorts them by `view` (ties by the other numbers, then by name, so that the
    /// order does not depend on the run).
    pub fn named_sites(&self, symbols: &Symbols, view: View) -> NamedSites {
        let mut interner = Interner::default();
        let mut merged: HashMap<(Kind, bool, Vec<FrameId>), (Counts, Samples)> = HashMap::new();
        for site in &self.sites {
            let mut stack = Vec::with_capacity(site.stack.len() + 4);
            for &pc in &site.stack {
                stack.extend_from_slice(interner.address(self, symbols, pc));
            }
            let own = stack.iter().position(|&id| !interner.allocator[id as usize]);
            // A stack of nothing but allocator frames is better shown than hidden.
            stack.drain(..own.unwrap_or(0));
            let (counts, samples) = merged.entry((site.kind, site.truncated, stack)).or_default();
            *counts += site.counts;
            *samples += site.samples;
        }
        let frames = interner.frames;
        let mut sites: Vec<NamedSite> = merged
            .into_iter()
            .map(|((kind, truncated, stack), (counts, samples))| NamedSite {
                kind,
                truncated,
                stack,
                counts,
                samples,
            })
            .collect();
        let rank = |site: &NamedSite| {
            let counts = &site.counts;
            (view.value(counts), counts.inuse_bytes, counts.allocated_bytes, counts.allocated_blocks)
        };
        let order = order_by_name(&frames);
        let names = |site: &NamedSite, index: usize| -> Option<u32> {
            site.stack.get(index).and_then(|&id| order.get(id as usize)).copied()
        };
        sites.sort_by(|a, b| {
            let by_names = || {
                let depths = 0..a.stack.len().max(b.stack.len());
                let mut differences = depths.map(|index| names(a, index).cmp(&names(b, index)));
                differences.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
            };
            rank(b)
                .cmp(&rank(a))
                .then(a.kind.cmp(&b.kind))
                .then(a.truncated.cmp(&b.truncated))
                .then_with(by_names)
        });
        NamedSites { frames, sites }
    }
}

/// Where each frame stands among all when sorted by name: frame numbers follow the order of the sites, which differs
/// from run to run; names do not.
fn order_by_name(frames: &[Frame]) -> Vec<u32> {
    let mut sorted: Vec<_> = (0usize..).zip(frames).collect();
    sorted.sort_unstable_by(|(_, a), (_, b)| {
        let texts = a.function.cmp(&b.function).then_with(|| a.file.cmp(&b.file)).then(a.line.cmp(&b.line));
        texts
            .then_with(|| a.module.cmp(&b.module))
            .then(a.address.cmp(&b.address))
            .then(a.inlined.cmp(&b.inlined))
    });
    let mut order = vec![0; frames.len()];
    for (position, (id, _)) in (0..).zip(sorted) {
        if let Some(slot) = order.get_mut(id) {
            *slot = position;
        }
    }
    order
}

/// Gives every distinct frame a number, so that stacks are compared by numbers and strings are kept once.
#[derive(Default)]
struct Interner {
    frames: Vec<Frame>,
    /// For each frame, whether it is the allocator's.
    allocator: Vec<bool>,
    ids: HashMap<Frame, FrameId>,
    addresses: HashMap<CodeAddress, Vec<FrameId>>,
}

impl Interner {
    fn address(&mut self, profile: &Profile, symbols: &Symbols, pc: CodeAddress) -> &[FrameId] {
        if !self.addresses.contains_key(&pc) {
            let ids = profile.frames_of(symbols, pc).into_iter().map(|frame| self.frame(frame)).collect();
            self.addresses.insert(pc, ids);
        }
        self.addresses.get(&pc).map_or(&[], Vec::as_slice)
    }

    fn frame(&mut self, frame: Frame) -> FrameId {
        let mut key = frame.clone();
        if key.function.is_some() {
            key.address = 0;
        }
        if let Some(&id) = self.ids.get(&key) {
            return id;
        }
        // A profile has at most one frame per byte of its file or so; 2^32 frames cannot be held in memory.
        let id = self.frames.len() as FrameId;
        self.allocator.push(frame.function.as_deref().is_some_and(is_allocator_function));
        self.frames.push(frame);
        self.ids.insert(key, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Module, Site};

    fn pc(address: u64) -> CodeAddress {
        CodeAddress { module: Some(0), address }
    }

    fn named(function: &str, line: u32) -> Frame {
        Frame {
            function: Some(function.to_owned()),
            file: Some("a.c".to_owned()),
            line: Some(line),
            ..Frame::default()
        }
    }

    fn site(stack: &[u64], bytes: u64) -> Site {
        Site {
            stack: stack.iter().map(|&address| pc(address)).collect(),
            counts: Counts { inuse_bytes: bytes, inuse_blocks: 1, ..Counts::default() },
            ..Site::default()
        }
    }

    #[test]
    fn sites_that_print_the_same_are_one_and_others_stay_apart() {
        let mut symbols = Symbols::default();
        symbols.frames.insert(pc(1), vec![named("f", 7)]);
        symbols.frames.insert(pc(2), vec![named("f", 7)]);
        symbols.frames.insert(pc(3), vec![named("f", 8)]);
        let mapped = Site { kind: Kind::Mapped, ..site(&[1], 100) };
        let profile = Profile {
            sites: vec![site(&[1], 10), site(&[2], 20), site(&[3], 25), mapped],
            ..Profile::default()
        };
        let sites = profile.named_sites(&symbols, View::InUse).sites;
        let seen: Vec<_> = sites.iter().map(|site| (site.kind, site.counts.inuse_bytes)).collect();
        assert_eq!(seen, [(Kind::Mapped, 100), (Kind::Heap, 30), (Kind::Heap, 25)]);
    }

    #[test]
    fn allocator_frames_go_from_the_inner_end_only() {
        let mut symbols = Symbols::default();
        symbols.frames.insert(pc(1), vec![named("operator new(unsigned long)", 1), named("make", 2)]);
        symbols.frames.insert(pc(2), vec![named("std::allocator<int>::allocate", 3)]);
        symbols.frames.insert(pc(3), vec![named("main", 4)]);
        let profile = Profile { sites: vec![site(&[1, 2, 3], 1), site(&[2], 1)], ..Profile::default() };
        let named = profile.named_sites(&symbols, View::InUse);
        let functions = |site| -> Vec<_> {
            named.stack(site).map(|frame| frame.function.clone().unwrap_or_default()).collect()
        };
        assert!(
            named
                .sites
                .iter()
                .any(|site| functions(site) == ["make", "std::allocator<int>::allocate", "main"])
        );
        assert!(named.sites.iter().any(|site| functions(site) == ["std::allocator<int>::allocate"]));
    }

    #[test]
    fn nameless_frames_are_told_apart_by_their_address_in_the_module() {
        let modules = vec![Module { path: "/lib/a.so".to_owned(), bias: 0x1000, ..Module::default() }];
        let profile =
            Profile { modules, sites: vec![site(&[0x1010], 1), site(&[0x1020], 2)], ..Profile::default() };
        let named = profile.named_sites(&Symbols::default(), View::InUse);
        let addresses: Vec<_> =
            named.sites.iter().flat_map(|site| named.stack(site)).map(|frame| frame.address).collect();
        assert_eq!(addresses, [0x20, 0x10]);
        assert_eq!(named.frames[0].module.as_deref(), Some("/lib/a.so"));
    }

    #[test]
    fn a_module_index_out_of_range_is_an_unknown_module() {
        let stray = CodeAddress { module: Some(9), address: 5 };
        let frames = Profile::default().frames_of(&Symbols::default(), stray);
        assert_eq!(frames, [Frame { address: 5, ..Frame::default() }]);
    }
}
