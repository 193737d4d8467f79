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
            Node::Table(table) => {
                let (head, bitmap) = (from.head(table), from.bitmap(table));
                let mut items = [0u64; 64];
                for (digit, item) in items.iter_mut().enumerate() {
                    let digit = digit as u32;
                    if bitmap & super::node::bit(digit) == 0 {
                        continue;
                    }
                    *item = match table.holds {
                        Holds::Values => self.copied_value(from, from.value(table, bitmap, digit)),
                        Holds::Nodes => {
                            let child = self.copied(from, from.child(table, bitmap, digit));
                            self.fitted(child, Some(head.level())).0.into()
                        }
                    };
                }
                self.new_table(table.holds, head, bitmap, |_, digit| {
                    items.get(digit as usize).copied().unwrap_or(0)
                })
            }
        }
    }

    fn copied_value(&mut self, from: &Tree, value: u64) -> u64 {
        let Some(at) = value::rest_of_long(value) else { return value };
        let copy = self.space.take(value::REST_WORDS, &self.shared);
        for index in 0..value::REST_WORDS {
            let word = from.space.words(at).load(index).unwrap_or(0);
            self.space.words(copy).store(index, word, Ordering::Relaxed);
        }
        copy.into()
    }
}
