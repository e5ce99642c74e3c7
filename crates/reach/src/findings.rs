//! What a scan found.

use crate::heuristics::Heuristic;
use crate::mark::{HEURISTIC, INDIRECT, POSSIBLE, REACHABLE, START};
use crate::{Blocks, Kind};

/// Blocks and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Blocks.
    pub blocks: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, size: u64) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(size);
    }
}

/// What hangs off a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub leader: u32,
    pub blocks: u32,
    pub bytes: u64,
}

/// The kind of every block, a byte each, and what hangs off those definitely lost.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    states: Vec<u8>,
    groups: Vec<Group>,
    kinds: [Count; 4],
    heuristics: [Count; 4],
}

impl Findings {
    pub(crate) fn new(blocks: &Blocks, states: Vec<u8>, groups: Vec<Group>) -> Findings {
        let mut findings = Findings { states, groups, ..Findings::default() };
        for index in 0..findings.states.len() {
            let size = blocks.size(index).unwrap_or(0);
            let kind = findings.kind(index).map(|kind| kind as usize);
            if let Some(count) = kind.and_then(|kind| findings.kinds.get_mut(kind)) {
                count.add(size);
            }
            let heuristic = findings.heuristic(index).map(|heuristic| heuristic as usize);
            if let Some(count) = heuristic.and_then(|heuristic| findings.heuristics.get_mut(heuristic)) {
                count.add(size);
            }
        }
        findings
    }

    /// How many blocks were judged.
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// The kind of a block.
    pub fn kind(&self, index: usize) -> Option<Kind> {
        let state = *self.states.get(index)?;
        Some(match state {
            _ if state & REACHABLE != 0 => Kind::Reachable,
            _ if state & POSSIBLE != 0 => Kind::Possible,
            _ if state & INDIRECT != 0 => Kind::Indirect,
            _ => Kind::Definite,
        })
    }

    /// The heuristic without which a reachable block would not be: no root and no reachable block points to its start.
    /// If several apply, the first in the order of [`Heuristic::ALL`].
    pub fn heuristic(&self, index: usize) -> Option<Heuristic> {
        let state = *self.states.get(index)?;
        let counts = state & REACHABLE != 0 && state & START == 0;
        Heuristic::ALL.into_iter().find(|&heuristic| counts && state & HEURISTIC << heuristic as u8 != 0)
    }

    /// All blocks of a kind.
    pub fn count(&self, kind: Kind) -> Count {
        self.kinds.get(kind as usize).copied().unwrap_or_default()
    }

    /// All blocks that are reachable through a heuristic alone.
    pub fn heuristic_count(&self, heuristic: Heuristic) -> Count {
        self.heuristics.get(heuristic as usize).copied().unwrap_or_default()
    }

    /// What is lost indirectly with a block that is definitely lost.
    pub fn indirect(&self, leader: usize) -> Count {
        let group = self.groups.binary_search_by_key(&leader, |group| group.leader as usize);
        let group = group.ok().and_then(|at| self.groups.get(at));
        group.map_or(Count::default(), |group| Count { blocks: u64::from(group.blocks), bytes: group.bytes })
    }

    /// Blocks that are not reachable, by address.
    pub fn unreachable(&self) -> impl Iterator<Item = (usize, Kind)> + use<'_> {
        (0..self.len())
            .filter_map(|index| Some((index, self.kind(index)?)))
            .filter(|&(_, kind)| kind != Kind::Reachable)
    }
}
