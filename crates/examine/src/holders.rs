//! Who holds blocks, in words: the chain from a root over the blocks between to the block in question.

use crate::places::{Places, Step};
use crate::types::Types;
use leakscope_leaks::{Chain, KindSet, LeakRecord};
use leakscope_reach::{Blocks, Holders, Kind, Link, Origin, Path, Pointers};
use leakscope_target::Snapshot;
use std::collections::{BTreeSet, HashMap};

/// Records that holders are looked for, the largest ones.
const MOST_RECORDS: usize = 50;
/// Blocks of a long chain that are looked at: the first and the last.
const FIRST: usize = 8;
const LAST: usize = 8;
/// Blocks without names that are told one by one.
const MOST_NAMELESS: usize = 3;

/// What naming takes.
#[derive(Clone, Copy)]
pub(crate) struct Naming<'a> {
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) blocks: &'a Blocks,
    pub(crate) places: &'a Places,
    pub(crate) options: &'a leakscope_symbols::Options,
}

/// The blocks of the records whose holders are shown: of each record a few, by the record's place. The records in
/// `preferred` come first, then the largest.
pub(crate) fn wanted(
    records: &[LeakRecord],
    preferred: impl Iterator<Item = usize>,
    shown: KindSet,
    blocks: &Blocks,
) -> Vec<(usize, usize)> {
    let held = |place: &usize| {
        records.get(*place).is_some_and(|record| {
            matches!(record.kind, Kind::Reachable | Kind::Possible)
                && shown.contains(record.kind)
                && record.suppressed_by.is_none()
        })
    };
    let preferred: Vec<usize> = preferred.filter(held).take(MOST_RECORDS).collect();
    let largest = (0..records.len()).rev().filter(|place| held(place) && !preferred.contains(place));
    let places = preferred.iter().copied().chain(largest.take(MOST_RECORDS));
    let examples = places.filter_map(|place| Some((place, &records.get(place)?.examples)));
    let found = |(place, examples)| {
        let examples: &Vec<u64> = examples;
        examples.iter().filter_map(move |&address| Some((place, blocks.find(address)?)))
    };
    examples.flat_map(found).collect()
}

/// Says of the wanted blocks' records who holds them.
pub(crate) fn add(
    records: &mut [LeakRecord],
    wanted: &[(usize, usize)],
    holders: &Holders,
    pointers: &Pointers<'_>,
    naming: Naming<'_>,
) {
    let paths: Vec<(usize, Path)> =
        wanted.iter().filter_map(|&(place, block)| Some((place, holders.path(block)?))).collect();
    let links: BTreeSet<(usize, usize)> = paths
        .iter()
        .flat_map(|(_, path)| ends(&path.blocks).map(|(_, holder, held)| (holder, held)))
        .collect();
    let links: Vec<(usize, usize)> = links.into_iter().collect();
    let found = pointers.links(&links);
    let links: HashMap<(usize, usize), Link> =
        links.iter().copied().zip(found).filter_map(|(pair, link)| Some((pair, link?))).collect();
    let between: BTreeSet<usize> = links.keys().map(|&(holder, _)| holder).collect();
    let targets: BTreeSet<usize> = links.keys().flat_map(|&(holder, held)| [holder, held]).collect();
    let types = Types::find(
        naming.snapshot,
        naming.places,
        naming.blocks,
        between.into_iter(),
        |target| targets.contains(&target),
        naming.options,
    );
    // A loader's block of thread-local variables is no block to whoever reads of it.
    let rooted: Vec<(usize, Path)> =
        paths.into_iter().map(|(place, path)| (place, from_variable(path, &links, naming))).collect();
    let origins = naming.places.name(rooted.iter().map(|(_, path)| path.origin), naming.options);
    let mut by_record: HashMap<usize, Vec<Vec<Step>>> = HashMap::new();
    for (place, path) in rooted {
        let field = |holder, held| links.get(&(holder, held)).map(|link| link.field);
        let name = |block: usize| step(types.name(block), naming.blocks.size(block));
        let origin = origins.get(&path.origin).cloned().unwrap_or_default();
        by_record.entry(place).or_default().push(steps(origin, &path.blocks, name, field));
    }
    for (place, chains) in by_record {
        if let Some(record) = records.get_mut(place) {
            let all = record.blocks <= chains.len() as u64;
            record.holders = merged(chains, all);
        }
    }
}

/// Who held blocks at an earlier scan, by any number for each: where each pointer lay is no longer known, only from which
/// block it came.
pub(crate) fn remembered(
    paths: &[(usize, Path)],
    origins: &HashMap<Origin, Step>,
    name: impl Fn(usize) -> Step,
) -> HashMap<usize, Vec<String>> {
    let steps_of = |path: &Path| {
        let mut origin = origins.get(&path.origin).cloned().unwrap_or_default();
        if path.blocks.len() > 1 {
            // Which of a container's pointers led there tells nothing.
            origin.field = None;
        }
        steps(origin, &path.blocks, &name, |_, _| None)
    };
    let mut groups: HashMap<Names, Vec<(usize, Vec<Step>)>> = HashMap::new();
    for (key, path) in paths {
        let chain = steps_of(path);
        groups.entry(names(&chain)).or_default().push((*key, chain));
    }
    let mut held = HashMap::new();
    for group in groups.into_values() {
        let (keys, chains): (Vec<usize>, Vec<Vec<Step>>) = group.into_iter().unzip();
        let texts = texts(&chains);
        held.extend(keys.into_iter().map(|key| (key, texts.clone())));
    }
    held
}

/// A block as a step: `Session`, or `block of 24 bytes`.
pub(crate) fn step(type_name: Option<&str>, size: Option<u64>) -> Step {
    let name = match (type_name, size) {
        (Some(name), _) => name.to_owned(),
        (None, Some(1)) => "block of 1 byte".to_owned(),
        (None, Some(size)) => format!("block of {size} bytes"),
        (None, None) => "block".to_owned(),
    };
    let size = size.unwrap_or_default();
    Step { name, sizes: type_name.is_none().then_some((size, size)), ..Step::default() }
}

/// The pointers of a chain that are looked at, with their places: those of its first and last blocks.
fn ends(blocks: &[usize]) -> impl Iterator<Item = (usize, usize, usize)> + use<'_> {
    let pairs = blocks.len().saturating_sub(1);
    let shown = move |at: &usize| *at < FIRST || at + LAST >= pairs;
    (0..pairs).filter(shown).filter_map(|at| Some((at, *blocks.get(at)?, *blocks.get(at + 1)?)))
}

/// A chain that leads through a block of thread-local variables begins there.
fn from_variable(path: Path, links: &HashMap<(usize, usize), Link>, naming: Naming<'_>) -> Path {
    let variable = ends(&path.blocks).filter_map(|(at, holder, held)| {
        let field = links.get(&(holder, held))?.field;
        let address = naming.blocks.get(holder)?.address.checked_add(field)?;
        naming.places.is_thread_local(address).then_some((at, address))
    });
    match variable.last() {
        Some((at, address)) => Path {
            origin: Origin::Memory(address),
            blocks: path.blocks.get(at + 1..).unwrap_or_default().to_vec(),
        },
        None => path,
    }
}

/// A chain's steps: the root and the blocks before the last. Of a list the nodes are one step.
fn steps(
    origin: Step,
    blocks: &[usize],
    name: impl Fn(usize) -> Step,
    field: impl Fn(usize, usize) -> Option<u64>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut next = 0;
    for (at, holder, held) in ends(blocks) {
        let step = Step { field: field(holder, held), ..name(holder) };
        let left_out = at - next;
        next = at + 1;
        match steps.last_mut() {
            Some(last) if last.name == step.name => {
                // Nodes of a tree are reached now by one of their pointers, now by another.
                last.field = last.field.filter(|&field| Some(field) == step.field);
                last.more += 1 + left_out;
            }
            _ => {
                if left_out > 0 {
                    let (name, sizes) = ("blocks".to_owned(), Some((u64::MAX, 0)));
                    steps.push(Step { name, sizes, more: left_out - 1, ..Step::default() });
                }
                steps.push(step);
            }
        }
    }
    std::iter::once(origin).chain(without_crowds(steps)).collect()
}

/// Steps of which many follow each other that have no names are one: nodes of a list that are of different sizes.
fn without_crowds(steps: Vec<Step>) -> Vec<Step> {
    let mut merged = Vec::new();
    let mut crowd: Vec<Step> = Vec::new();
    let flush = |crowd: &mut Vec<Step>, merged: &mut Vec<Step>| {
        if crowd.len() <= MOST_NAMELESS {
            merged.append(crowd);
            return;
        }
        let sizes = crowd.iter().filter_map(|step| step.sizes);
        let (least, most) =
            sizes.fold((u64::MAX, 0), |(least, most), (low, high)| (least.min(low), most.max(high)));
        let more = crowd.iter().map(|step| step.more + 1).sum::<usize>().saturating_sub(1);
        crowd.clear();
        let name = format!("blocks of {least} to {most} bytes");
        merged.push(Step { name, more, sizes: Some((least, most)), ..Step::default() });
    };
    for step in steps {
        if step.sizes.is_some() {
            crowd.push(step);
        } else {
            flush(&mut crowd, &mut merged);
            merged.push(step);
        }
    }
    flush(&mut crowd, &mut merged);
    merged
}

/// Chains that differ in nothing but where in an array they lead through, or how far down a list, are one.
fn merged(chains: Vec<Vec<Step>>, all: bool) -> Vec<Chain> {
    let mut groups: Vec<(Names, Vec<Vec<Step>>)> = Vec::new();
    for chain in chains {
        let names = names(&chain);
        match groups.iter_mut().find(|(other, _)| *other == names) {
            Some((_, group)) => group.push(chain),
            None => groups.push((names, vec![chain])),
        }
    }
    let chain = |group: Vec<Vec<Step>>| Chain {
        steps: texts(&group),
        blocks: if all { group.len() as u64 } else { 0 },
    };
    groups.into_iter().map(|(_, group)| chain(group)).collect()
}

/// What makes two chains alike.
type Names = Vec<(String, String)>;

fn names(chain: &[Step]) -> Names {
    chain.iter().map(|step| (step.name.clone(), step.part_of.clone())).collect()
}

/// The steps of chains that are alike.
fn texts(alike: &[Vec<Step>]) -> Vec<String> {
    let length = alike.first().map_or(0, Vec::len);
    let at = |at: usize| alike.iter().filter_map(|chain| chain.get(at)).collect::<Vec<_>>();
    (0..length).map(|step| text(&at(step))).collect()
}

/// `Session+8`; of several steps that are alike, where they differ is left open: `table[…]`, `Node (×3–5)`.
fn text(alike: &[&Step]) -> String {
    let Some(step) = alike.first() else { return String::new() };
    let is_run = alike.iter().any(|other| other.more > 0);
    let field = match step.field {
        // Along a list or tree each node has another; that they differ tells nothing.
        _ if alike.iter().any(|other| other.field != step.field) => {
            if is_run { "" } else { "[…]" }.to_owned()
        }
        Some(field) if field > 0 => format!("+{field}"),
        _ => String::new(),
    };
    let counts = || alike.iter().map(|step| step.more + 1);
    let run = match (counts().min(), counts().max()) {
        (_, Some(1)) | (None, _) | (_, None) => String::new(),
        (Some(least), Some(most)) if least == most => format!(" (×{most})"),
        (Some(least), Some(most)) => format!(" (×{least}–{most})"),
    };
    format!("{}{field}{}{run}", step.name, step.part_of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, field: u64) -> Step {
        Step { name: name.to_owned(), field: Some(field), ..Step::default() }
    }

    #[test]
    fn chains_through_several_places_of_an_array_are_one() {
        let table = |field| vec![at("global table", 0), at("block of 800 bytes", field)];
        let chains = merged(vec![table(8), table(16), vec![at("global other", 4)]], true);
        let expected = [
            Chain { steps: vec!["global table".to_owned(), "block of 800 bytes[…]".to_owned()], blocks: 2 },
            Chain { steps: vec!["global other+4".to_owned()], blocks: 1 },
        ];
        assert_eq!(chains, expected);
    }

    #[test]
    fn the_nodes_of_a_list_are_one_step_however_many_they_are() {
        let name = |block: usize| step(Some(if block < 5 { "Head" } else { "Node" }), None);
        let blocks: Vec<usize> = (4..1000).collect();
        let chain = steps(at("global list", 0), &blocks, name, |_, _| Some(8));
        let texts: Vec<String> = chain.iter().map(|step| text(&[step])).collect();
        assert_eq!(texts, ["global list", "Head+8", "Node+8 (×994)"]);
    }

    #[test]
    fn many_blocks_without_names_are_one_step_and_few_are_told_one_by_one() {
        let chain = |blocks: std::ops::Range<usize>| {
            let blocks: Vec<usize> = blocks.collect();
            let name = |block: usize| step(None, Some(24 + block as u64 % 5));
            let chain = steps(at("global list", 0), &blocks, name, |_, _| Some(8));
            chain.iter().map(|step| text(&[step])).collect::<Vec<_>>()
        };
        assert_eq!(chain(0..1000), ["global list", "blocks of 24 to 28 bytes (×999)"]);
        assert_eq!(chain(0..3), ["global list", "block of 24 bytes+8", "block of 25 bytes+8"]);
    }

    #[test]
    fn blocks_at_different_depths_of_a_tree_are_held_in_one_way() {
        let node =
            |field: Option<u64>, more| Step { name: "Node".to_owned(), field, more, ..Step::default() };
        let chain = |field, more| vec![at("global tree", 8), node(field, more)];
        let chains = merged(vec![chain(Some(40), 0), chain(None, 2), chain(None, 4)], false);
        assert_eq!(chains.len(), 1);
        assert_eq!(chains[0].steps, ["global tree+8", "Node (×1–5)"]);
    }

    #[test]
    fn what_a_block_held_by_a_root_is_held_by_is_the_root_alone() {
        let chain = steps(at("global head", 0), &[7], |_| step(None, None), |_, _| None);
        assert_eq!(chain, [at("global head", 0)]);
    }
}
