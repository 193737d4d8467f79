// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tree copied to a space of its own size: what fragmentation and shrinking cost is paid back here.

use core::sync::atomic::Ordering;

use super::node::{Head, Holds, Node, NodeRef, Table};
use super::tree::{Slot, Tree};
use super::value::{LONG_WORDS, is_long};

impl Tree {
    /// Moves the tree. Readers that are in the old space end there; it is whole, and changes no more.
    pub(super) fn copy_to_own_size(&mut self) {
        let copy = self.duplicate();
        self.shared.publish(copy.space.arena().clone());
        self.space = copy.space;
    }

    /// The same entries in a tree with readers of its own.
    pub(super) fn duplicate(&self) -> Tree {
        let mut copy = Tree::new(self.words_of_copy(self.root()));
        copy.take_over(self);
        copy
    }

    /// Words of the copies of a node and of all below it: nodes with vacant places are copied without them.
    fn words_of_copy(&self, node: NodeRef) -> usize {
        match node.node() {
            Node::None => 0,
            Node::Lone(at) => self.lone_entry(at).lone_words() as usize,
            Node::Leaf(table) | Node::Inner(table) => {
                let count = self.present(table).count_ones();
                let own = Table::shape(table.holds(), count).words(count) as usize;
                self.items(table).fold(own, |words, (_, item)| {
                    words.saturating_add(match table.holds() {
                        Holds::Values if is_long(item) => LONG_WORDS as usize,
                        Holds::Values => 0,
                        Holds::Nodes => self.words_of_copy(NodeRef(item as u32)),
                    })
                })
            }
        }
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
                self.copied_table(from, table, |tree, item, _| tree.new_item(from.item_entry(0, item)))
            }
            Node::Inner(table) => self.copied_table(from, table, |tree, item, head| {
                let child = tree.copied(from, NodeRef(item as u32));
                tree.fitted(child, Some(head.shift())).0.into()
            }),
        }
    }

    /// A table with the copies of its items, which `copied` makes.
    fn copied_table(
        &mut self,
        from: &Tree,
        table: Table,
        copied: impl Fn(&mut Tree, u64, Head) -> u64,
    ) -> NodeRef {
        let (head, bitmap) = (from.head(table), from.present(table));
        let copy = self.new_table(table.holds(), head, bitmap);
        for ((place, _), (_, item)) in copy.places(bitmap).zip(from.items(table)) {
            let item = copied(self, item, head);
            copy.set_item_at(self.words(copy), place, item, Ordering::Relaxed);
        }
        self.finished(copy)
    }
}
