// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tree copied to a space of its own size: what fragmentation and shrinking cost is paid back here.

use super::node::{Holds, Node, NodeRef};
use super::tree::{Slot, Tree};

impl Tree {
    /// Moves the tree. Readers that are in the old space end there; it is whole, and changes no more.
    pub(super) fn copy_to_own_size(&mut self) {
        let copy = self.duplicate();
        self.shared.publish(copy.space.arena().clone());
        self.space = copy.space;
    }

    /// The same entries in a tree with readers of its own.
    pub(super) fn duplicate(&self) -> Tree {
        let mut copy = Tree::new(self.space.live());
        copy.take_over(self);
        copy
    }

    fn take_over(&mut self, from: &Tree) {
        let root = self.copied(from, from.root());
        self.put(Slot::Root, root);
    }

    fn copied(&mut self, from: &Tree, node: NodeRef) -> NodeRef {
        match node.node() {
            Node::None => node,
            Node::Lone(at) => self.new_lone(from.lone_entry(at)),
            Node::Leaf(table) => {
                let bitmap = from.bitmap(table);
                let mut copy = self.new_table(Holds::Values, from.head(table), bitmap);
                for (digit, item) in from.items(table, bitmap) {
                    let item = self.new_item(from.item_entry(0, item));
                    self.fill(&mut copy, [(digit, item)]);
                }
                copy.finished()
            }
            Node::Inner(table) => {
                let (head, bitmap) = (from.head(table), from.bitmap(table));
                let mut copy = self.new_table(Holds::Nodes, head, bitmap);
                for (digit, item) in from.items(table, bitmap) {
                    let child = self.copied(from, NodeRef(item as u32));
                    let child = self.fitted(child, Some(head.shift()));
                    self.fill(&mut copy, [(digit, child.0.into())]);
                }
                copy.finished()
            }
        }
    }
}
