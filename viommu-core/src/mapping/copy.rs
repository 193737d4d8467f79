// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A tree copied to a space of its own size: what fragmentation and shrinking cost is paid back here.

use core::sync::atomic::Ordering;

use super::find::Entry;
use super::node::{Holds, Node, NodeRef};
use super::tree::{Slot, Tree};
use super::value;

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
            Node::Lone(at) => {
                let Entry { key, value } = from.lone_entry(at);
                let value = self.copied_value(from, value);
                self.new_lone(Entry { key, value })
            }
            Node::Leaf(table) => {
                let bitmap = from.bitmap(table);
                let mut copy = self.new_table(Holds::Values, from.head(table), bitmap);
                for (digit, value) in from.items(table, bitmap) {
                    let value = self.copied_value(from, value);
                    self.fill(&mut copy, [(digit, value)]);
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

    fn copied_value(&mut self, from: &Tree, value: u64) -> u64 {
        let Some(at) = value::rest_of_long(value) else { return value };
        let copy = self.space.take(value::REST_WORDS, &self.shared);
        for index in 0..value::REST_WORDS {
            let word = from.space.arena().load(at.wrapping_add(index)).unwrap_or(0);
            self.space.words(copy).store(index, word, Ordering::Relaxed);
        }
        copy.into()
    }
}
