// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A new entry's way into the tree.

use super::node::{
    ABOVE_LEAVES, Head, Holds, Node, NodeRef, Table, bit, digit, next_higher, next_lower, prefix,
    shift_of_difference,
};
use super::tree::{Slot, Tree};
use super::value::{Entry, is_long};

impl Tree {
    /// Adds an entry, of whose key there is none.
    #[inline]
    pub(super) fn insert(&mut self, entry: Entry) {
        if !is_long(entry.word)
            && let Some((leaf, words)) = self.leaf_at_once(entry.key)
            && leaf.try_add_in_place(words, digit(entry.key, 0), entry.word)
        {
            return;
        }
        self.insert_anywhere(entry);
    }

    /// The same, on the way from a shortcut or the root.
    #[inline(never)]
    fn insert_anywhere(&mut self, entry: Entry) {
        // A shortcut leads to a node that takes children in place: where itself stands does not matter.
        let mut slot = Slot::Root;
        let (mut at, mut shift) = match self.shortcut(entry.key) {
            Some(node) => (node, next_higher(ABOVE_LEAVES)),
            None => (self.root(), 0),
        };
        while let Node::Inner(table) = at.node() {
            shift = next_lower(shift);
            if at.skips() {
                let head = self.head(table);
                shift = head.shift();
                if head.prefix() != prefix(entry.key, shift) {
                    let both = self.branch(at, head.prefix(), entry);
                    return self.put(slot, both);
                }
            }
            let digit = digit(entry.key, shift);
            let child = self.child(table, digit);
            if child == NodeRef::NONE {
                let lone = self.new_lone(entry);
                return self.add(slot, at, table, digit, lone.0.into());
            }
            slot = Slot::Item(table, digit, shift);
            at = child;
        }
        let both = match at.node() {
            Node::None | Node::Inner(_) => self.new_lone(entry),
            Node::Lone(first) => self.beside(at, first, entry),
            Node::Leaf(leaf) => {
                let head = self.head(leaf);
                if head.prefix() == prefix(entry.key, 0) {
                    let item = self.new_item(entry);
                    return self.add(slot, at, leaf, digit(entry.key, 0), item);
                }
                self.branch(at, head.prefix(), entry)
            }
        };
        self.put(slot, both);
    }

    /// One more item for a table.
    fn add(&mut self, slot: Slot, at: NodeRef, table: Table, digit: u32, item: u64) {
        let grown = self.grown(at, table, digit, item);
        if grown != at {
            self.put(slot, grown);
        }
    }

    /// Two entries in the place of one that was alone.
    fn beside(&mut self, at: NodeRef, first: u32, entry: Entry) -> NodeRef {
        let other = self.lone_entry(first);
        if shift_of_difference(other.key, entry.key) > 0 {
            return self.branch(at, other.key, entry);
        }
        let head = Head::new(prefix(entry.key, 0), 0);
        let one = (digit(other.key, 0), self.new_item(other));
        let two = (digit(entry.key, 0), self.new_item(entry));
        let leaf = self.new_pair(Holds::Values, head, one, two);
        self.retire_lone(at);
        leaf
    }

    /// An inner node above `at`, where `key` lies, with the entry as its other child.
    fn branch(&mut self, at: NodeRef, key: u64, entry: Entry) -> NodeRef {
        let shift = shift_of_difference(key, entry.key);
        let head = Head::new(prefix(entry.key, shift), shift);
        let old = self.fitted(at, Some(shift));
        let new = self.new_lone(entry);
        let (old, new) = ((digit(key, shift), old.0.into()), (digit(entry.key, shift), new.0.into()));
        self.new_pair(Holds::Nodes, head, old, new)
    }

    /// A table of two items, each with its digit.
    fn new_pair(&mut self, holds: Holds, head: Head, one: (u32, u64), two: (u32, u64)) -> NodeRef {
        let pair = self.new_table(holds, head, bit(one.0) | bit(two.0));
        for (digit, item) in [one, two] {
            pair.set_item(self.words(pair), digit, item);
        }
        self.finished(pair)
    }
}
