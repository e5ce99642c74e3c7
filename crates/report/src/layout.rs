//! Where the boxes of a flame graph lie: stacks merged into a tree by their outer ends, each frame as wide as what was
//! allocated beneath it. No drawing; SVG and HTML share it.
//!
//! Invariants of a [`Layout`]:
//! - boxes are in preorder: a box is followed by everything beneath it;
//! - a box lies within its parent, and siblings do not overlap: the first child starts where its parent does, each
//!   next one where the last ended;
//! - siblings are sorted by value, the largest first, then by name, so that the same stacks give the same picture in
//!   whatever order they came;
//! - boxes too small to draw are left out together with everything beneath them, so what is left out of a parent lies
//!   at its end.

use std::collections::HashMap;

/// Stacks merged by their common outer frames. Frames are numbers into a list of names that the caller keeps.
#[derive(Debug, Clone)]
pub struct StackTree {
    nodes: Vec<Node>,
    children: HashMap<(usize, u32), usize>,
    max_depth: usize,
}

#[derive(Debug, Clone, Default)]
struct Node {
    name: u32,
    parent: usize,
    value: u64,
    own: u64,
}

/// One frame to be drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlameBox {
    /// The name that was given to [`StackTree::add`].
    pub name: u32,
    /// 0 for an outermost frame.
    pub depth: usize,
    /// Left edge, in units of the value.
    pub start: u64,
    /// Width: what was allocated by this frame and all it called.
    pub value: u64,
    /// The part that this frame allocated itself.
    pub own: u64,
}

/// The boxes of a flame graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// The boxes in preorder.
    pub boxes: Vec<FlameBox>,
    /// The width of the whole picture: the sum over all stacks.
    pub total: u64,
    /// Number of rows.
    pub rows: usize,
    /// How many boxes were left out since they are too small or too deep.
    pub hidden: usize,
}

impl StackTree {
    /// An empty tree, which will be cut at `max_depth` frames: deeper ones count as their ancestor's own.
    pub fn new(max_depth: usize) -> StackTree {
        StackTree { nodes: vec![Node::default()], children: HashMap::new(), max_depth }
    }

    /// Adds a stack, outermost frame first.
    pub fn add(&mut self, stack: impl IntoIterator<Item = u32>, value: u64) {
        let mut current = 0;
        self.count(current, value);
        for name in stack.into_iter().take(self.max_depth) {
            let next = self.nodes.len();
            let node = *self.children.entry((current, name)).or_insert(next);
            if node == next {
                self.nodes.push(Node { name, parent: current, ..Node::default() });
            }
            current = node;
            self.count(current, value);
        }
        if let Some(node) = self.nodes.get_mut(current) {
            node.own = node.own.saturating_add(value);
        }
    }

    fn count(&mut self, node: usize, value: u64) {
        if let Some(node) = self.nodes.get_mut(node) {
            node.value = node.value.saturating_add(value);
        }
    }

    /// Places the largest boxes, at most `max_boxes` of them. `names` gives the order of siblings of equal value.
    pub fn layout<N: Ord>(&self, names: &[N], max_boxes: usize) -> Layout {
        let smallest = self.smallest_drawn(max_boxes);
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            if node.value >= smallest
                && let Some(siblings) = children.get_mut(node.parent)
            {
                siblings.push(index);
            }
        }
        let key = |&index: &usize| {
            let node = self.nodes.get(index);
            let name = node.map_or(0, |node| node.name);
            (std::cmp::Reverse(node.map_or(0, |node| node.value)), names.get(name as usize), name)
        };
        for siblings in &mut children {
            siblings.sort_by(|a, b| key(a).cmp(&key(b)));
        }
        let mut layout =
            Layout { total: self.nodes.first().map_or(0, |root| root.value), ..Layout::default() };
        let mut pending: Vec<(usize, usize, u64)> = Vec::new();
        push_children(&mut pending, &children, &self.nodes, 0, 0, 0);
        while let Some((index, depth, start)) = pending.pop() {
            let Some(node) = self.nodes.get(index) else { continue };
            layout.boxes.push(FlameBox { name: node.name, depth, start, value: node.value, own: node.own });
            layout.rows = layout.rows.max(depth + 1);
            push_children(&mut pending, &children, &self.nodes, index, depth + 1, start);
        }
        layout.hidden = (self.nodes.len() - 1).saturating_sub(layout.boxes.len());
        layout
    }

    /// The smallest value at which no more than `max_boxes` boxes are drawn. Equal boxes are all drawn or all not, so
    /// that no choice among them depends on the order in which they came. A parent is at least as large as its
    /// children, so whatever is drawn has its ancestors drawn.
    fn smallest_drawn(&self, max_boxes: usize) -> u64 {
        let mut values: Vec<u64> = self.nodes.iter().skip(1).map(|node| node.value).collect();
        values.sort_unstable_by(|a, b| b.cmp(a));
        values.get(max_boxes).map_or(1, |first_hidden| first_hidden.saturating_add(1))
    }
}

/// Pushes the children of a node so that the first is popped first.
fn push_children(
    pending: &mut Vec<(usize, usize, u64)>,
    children: &[Vec<usize>],
    nodes: &[Node],
    parent: usize,
    depth: usize,
    start: u64,
) {
    let first = pending.len();
    let mut position = start;
    for &child in children.get(parent).into_iter().flatten() {
        pending.push((child, depth, position));
        position = position.saturating_add(nodes.get(child).map_or(0, |node| node.value));
    }
    if let Some(pushed) = pending.get_mut(first..) {
        pushed.reverse();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = ["main", "b", "a", "leaf", "x", "y"];

    fn tree(stacks: &[(&[u32], u64)]) -> StackTree {
        let mut tree = StackTree::new(100);
        for (stack, value) in stacks {
            tree.add(stack.iter().copied(), *value);
        }
        tree
    }

    fn drawn(layout: &Layout) -> Vec<(&'static str, usize, u64, u64, u64)> {
        let row = |b: &FlameBox| (NAMES[b.name as usize], b.depth, b.start, b.value, b.own);
        layout.boxes.iter().map(row).collect()
    }

    #[test]
    fn stacks_share_their_outer_frames_and_the_larger_sibling_comes_first() {
        let layout = tree(&[(&[0, 1], 10), (&[0, 2, 3], 25), (&[0, 2], 5), (&[4], 7)]).layout(&NAMES, 100);
        assert_eq!(
            drawn(&layout),
            [
                ("main", 0, 0, 40, 0),
                ("a", 1, 0, 30, 5),
                ("leaf", 2, 0, 25, 25),
                ("b", 1, 30, 10, 10),
                ("x", 0, 40, 7, 7)
            ]
        );
        assert_eq!((layout.total, layout.rows, layout.hidden), (47, 3, 0));
    }

    #[test]
    fn the_order_in_which_stacks_come_does_not_show() {
        let stacks: [(&[u32], u64); 4] = [(&[0, 1], 10), (&[0, 2], 10), (&[5], 10), (&[4, 3], 10)];
        let mut reversed = stacks;
        reversed.reverse();
        let layout = tree(&stacks).layout(&NAMES, 100);
        assert_eq!(layout, tree(&reversed).layout(&NAMES, 100));
        let order: Vec<_> = drawn(&layout).into_iter().map(|b| b.0).collect();
        assert_eq!(order, ["main", "a", "b", "x", "leaf", "y"]);
    }

    #[test]
    fn small_boxes_are_left_out_with_all_beneath_them_and_equal_ones_together() {
        let stacks: [(&[u32], u64); 4] = [(&[0, 1, 3], 50), (&[0, 2], 5), (&[4, 3], 3), (&[5], 3)];
        let layout = tree(&stacks).layout(&NAMES, 5);
        assert_eq!(
            drawn(&layout),
            [("main", 0, 0, 55, 0), ("b", 1, 0, 50, 0), ("leaf", 2, 0, 50, 50), ("a", 1, 50, 5, 5)]
        );
        assert_eq!((layout.total, layout.hidden), (61, 3));
    }

    #[test]
    fn frames_beyond_the_depth_limit_count_as_their_ancestors_own() {
        let mut tree = StackTree::new(2);
        tree.add(std::iter::repeat_n(0, 1_000_000), 9);
        let layout = tree.layout(&NAMES, 100);
        assert_eq!(drawn(&layout), [("main", 0, 0, 9, 0), ("main", 1, 0, 9, 9)]);
    }

    #[test]
    fn an_empty_tree_and_values_of_nothing_draw_nothing() {
        assert_eq!(tree(&[]).layout(&NAMES, 10), Layout::default());
        assert_eq!(tree(&[(&[0], 0)]).layout(&NAMES, 10).boxes, []);
    }

    #[test]
    fn values_of_a_corrupt_file_saturate() {
        let layout = tree(&[(&[0, 1], u64::MAX), (&[0, 2], u64::MAX)]).layout(&NAMES, 10);
        assert_eq!(layout.total, u64::MAX);
        assert_eq!(layout.boxes.len(), 3);
    }
}
