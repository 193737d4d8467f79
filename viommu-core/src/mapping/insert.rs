// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A new entry's way into the tree.

use super::find::Entry;
use super::node::{Head, Holds, Node, NodeRef, bit, digit, level_of_difference, prefix};
use super::tree::{Slot, Tree};

impl Tree {
    /// Adds an entry, of whose key there is none.
    pub(super) fn insert(&mut self, entry: Entry) {
        let mut slot = Slot::Root;
        let mut at = self.root();
        let mut level = 0u32;
        loop {
            match at.node() {
                Node::None => {
                    let lone = self.new_lone(entry);
                    return self.put(slot, lone);
                }
                Node::Lone(first) => {
                    let other = self.lone_entry(first);
                    let both = self.beside(at, other, entry);
                    return self.put(slot, both);
                }
                Node::Table(table) => {
                    level = level.wrapping_sub(1);
                    if at.skips() {
                        let head = self.head(table);
                        level = head.level();
                        if head.prefix() != prefix(entry.key, level) {
                            let both = self.branch(at, head.prefix(), entry);
                            return self.put(slot, both);
                        }
                    }
                    let digit = digit(entry.key, level);
                    let bitmap = self.bitmap(table);
                    if table.holds == Holds::Nodes && bitmap & bit(digit) != 0 {
                        slot = Slot::Item(table, level, digit);
                        at = self.child(table, bitmap, digit);
                        continue;
                    }
                    let item = match table.holds {
                        Holds::Values => entry.value,
                        Holds::Nodes => self.new_lone(entry).0.into(),
                    };
                    let grown = self.grown(at, table, digit, item);
                    if grown != at {
                        self.put(slot, grown);
                    }
                    return;
                }
            }
        }
    }

    /// Two entries in the place of one that was alone.
    fn beside(&mut self, at: NodeRef, other: Entry, entry: Entry) -> NodeRef {
        if level_of_difference(other.key, entry.key) > 0 {
            return self.branch(at, other.key, entry);
        }
        let bits = bit(digit(other.key, 0)) | bit(digit(entry.key, 0));
        let leaf = self.new_table(Holds::Values, Head::new(prefix(entry.key, 0), 0), bits, |_, each| {
            if each == digit(entry.key, 0) { entry.value } else { other.value }
        });
        self.retire_lone(at);
        leaf
    }

    /// An inner node above `at`, where `key` lies, with the entry as its other child.
    fn branch(&mut self, at: NodeRef, key: u64, entry: Entry) -> NodeRef {
        let level = level_of_difference(key, entry.key);
        let (old, new) = (digit(key, level), digit(entry.key, level));
        let head = Head::new(prefix(entry.key, level), level);
        let lone = self.new_lone(entry);
        let at = self.fitted(at, Some(level));
        self.new_table(Holds::Nodes, head, bit(old) | bit(new), |_, each| {
            u64::from(if each == new { lone.0 } else { at.0 })
        })
    }
}
