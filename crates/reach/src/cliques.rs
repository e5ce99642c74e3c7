//! Sorts out what nothing leads to: leaders, and what hangs off them.

use crate::findings::Group;
use crate::graph::{Edges, Graph, Hand, Scan};
use crate::mark::{INDIRECT, POSSIBLE, REACHABLE};

/// Blocks on the stack; more are noted to be found by a sweep.
const MAX_STACK: usize = 1 << 20;

/// Marks as indirect what an earlier or later lost block leads to; the rest stays unmarked: these are the leaders. In
/// the order of addresses, a block not yet marked becomes a leader, and all it reaches that is not marked joins its
/// group, earlier leaders with all of theirs.
pub(crate) fn sort_out(scan: &Scan<'_>, graph: &Graph, states: &mut [u8]) -> Vec<Group> {
    let mut lost = Lost { states, groups: Vec::new(), stack: Vec::new(), swept: Vec::new() };
    let mut hand = Hand::default();
    for leader in 0..lost.states.len() {
        if lost.is_marked(leader) {
            continue;
        }
        let mut group = Group { leader: leader as u32, blocks: 0, bytes: 0 };
        lost.stack.push(leader as u32);
        loop {
            while let Some(index) = lost.stack.pop() {
                lost.scan(scan, graph, index as usize, &mut group, &mut hand);
            }
            if lost.swept.is_empty() {
                break;
            }
            lost.sweep();
        }
        if group.blocks > 0 {
            lost.groups.push(group);
        }
    }
    let Lost { mut groups, states, .. } = lost;
    groups.retain(|group| states.get(group.leader as usize).is_some_and(|state| state & INDIRECT == 0));
    groups.shrink_to_fit();
    groups
}

struct Lost<'a> {
    states: &'a mut [u8],
    groups: Vec<Group>,
    stack: Vec<u32>,
    /// A bitmap of blocks to be scanned that did not fit the stack; empty if all did.
    swept: Vec<u64>,
}

impl Lost<'_> {
    fn is_marked(&self, index: usize) -> bool {
        self.states.get(index).is_none_or(|state| state & (REACHABLE | POSSIBLE | INDIRECT) != 0)
    }

    fn scan(&mut self, scan: &Scan<'_>, graph: &Graph, index: usize, group: &mut Group, hand: &mut Hand) {
        match graph.edges(index) {
            Edges::Kept(kept) => {
                for &edge in kept {
                    self.visit(scan, crate::graph::Edge::from(edge).target(), group);
                }
            }
            Edges::Unknown => {
                let Some(block) = scan.blocks.get(index) else { return };
                let range = block.address..block.address.saturating_add(block.size);
                scan.edges_in(&range, hand, |edge| self.visit(scan, edge.target(), group));
            }
        }
    }

    fn visit(&mut self, scan: &Scan<'_>, target: usize, group: &mut Group) {
        if target == group.leader as usize || self.is_marked(target) {
            return;
        }
        if let Some(state) = self.states.get_mut(target) {
            *state |= INDIRECT;
        }
        group.blocks += 1;
        group.bytes = group.bytes.saturating_add(scan.blocks.size(target).unwrap_or(0));
        if target < group.leader as usize {
            // An earlier leader: it brings its group, which is scanned already.
            if let Ok(at) = self.groups.binary_search_by_key(&(target as u32), |earlier| earlier.leader)
                && let Some(earlier) = self.groups.get(at)
            {
                group.blocks += earlier.blocks;
                group.bytes = group.bytes.saturating_add(earlier.bytes);
            }
        } else if self.stack.len() < MAX_STACK {
            self.stack.push(target as u32);
        } else {
            self.swept.resize(self.states.len().div_ceil(64), 0);
            if let Some(word) = self.swept.get_mut(target / 64) {
                *word |= 1 << (target % 64);
            }
        }
    }

    /// Moves what did not fit back to the stack, as much as fits.
    fn sweep(&mut self) {
        for (at, word) in self.swept.iter_mut().enumerate() {
            while *word != 0 {
                if self.stack.len() >= MAX_STACK {
                    return;
                }
                self.stack.push((at * 64) as u32 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
        self.swept.clear();
    }
}
