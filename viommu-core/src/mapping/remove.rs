// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way of entries out of the tree: any number in one range.

use super::find::Entry;
use super::node::{Holds, LONE_WORDS, Node, NodeRef, Table, below, below_prefix, bit, digit, digits};
use super::tree::{Slot, Tree};
use super::value;

/// Keys `first..=last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub first: u64,
    pub last: u64,
}

impl Tree {
    /// Removes the entries whose keys are among `keys`; says how many.
    pub(super) fn remove(&mut self, keys: Keys) -> usize {
        let root = self.root();
        let (left, removed) = self.without(root, keys);
        if left != root {
            self.put(Slot::Root, left);
        }
        removed
    }

    /// The node without the entries of `keys`, [`NodeRef::NONE`] when none is left, and how many went. The
    /// reference may be one for another place.
    fn without(&mut self, node: NodeRef, keys: Keys) -> (NodeRef, usize) {
        match node.node() {
            Node::None => (node, 0),
            Node::Lone(at) => {
                let Entry { key, value } = self.lone_entry(at);
                if key < keys.first || keys.last < key {
                    return (node, 0);
                }
                self.retire_value(value);
                self.retire_lone(node);
                (NodeRef::NONE, 1)
            }
            Node::Table(table) => {
                let affected = self.digits_among(table, keys) & self.bitmap(table);
                match table.holds {
                    Holds::Values => self.leaf_without(node, table, affected),
                    Holds::Nodes => self.inner_without(node, table, affected, keys),
                }
            }
        }
    }

    fn leaf_without(&mut self, node: NodeRef, table: Table, affected: u64) -> (NodeRef, usize) {
        let bitmap = self.bitmap(table);
        for digit in digits(affected) {
            let value = self.value(table, bitmap, digit);
            self.retire_value(value);
        }
        (self.shrink(node, table, bitmap & !affected), affected.count_ones() as usize)
    }

    fn inner_without(&mut self, node: NodeRef, table: Table, affected: u64, keys: Keys) -> (NodeRef, usize) {
        let bitmap = self.bitmap(table);
        let level = self.head(table).level();
        let mut left = bitmap;
        let mut removed = 0usize;
        for digit in digits(affected) {
            let child = self.child(table, bitmap, digit);
            let (smaller, count) = self.without(child, keys);
            removed = removed.saturating_add(count);
            if smaller == NodeRef::NONE {
                left &= !bit(digit);
            } else if smaller != child {
                self.put(Slot::Item(table, level, digit), smaller);
            }
        }
        (self.shrink(node, table, left), removed)
    }

    /// The digits under which the table can have any of `keys`.
    fn digits_among(&self, table: Table, keys: Keys) -> u64 {
        let head = self.head(table);
        let (level, lowest) = (head.level(), head.prefix());
        let highest = lowest | below_prefix(level);
        if keys.last < lowest || highest < keys.first {
            return 0;
        }
        let from = digit(keys.first.max(lowest), level);
        let to = digit(keys.last.min(highest), level);
        (below(to) | bit(to)) & !below(from)
    }

    pub(super) fn retire_lone(&mut self, node: NodeRef) {
        if let Node::Lone(at) = node.node() {
            self.space.retire(at, LONE_WORDS);
        }
    }

    fn retire_value(&mut self, value: u64) {
        if let Some(at) = value::rest_of_long(value) {
            self.space.retire(at, value::REST_WORDS);
        }
    }
}
