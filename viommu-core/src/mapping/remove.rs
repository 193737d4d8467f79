// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way of entries out of the tree: any number in one range.

use core::sync::atomic::Ordering;

use super::node::{
    ABOVE_LEAVES, Head, Node, NodeRef, Table, below, below_prefix, bit, digit, digits, next_higher,
    next_lower, prefix,
};
use super::tree::{Slot, Tree};
use super::value::is_long;

/// Keys `first..=last`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    pub first: u64,
    pub last: u64,
}

impl Tree {
    /// Removes the entries whose keys are among `keys`; says how many.
    #[inline]
    pub(super) fn remove(&mut self, keys: Keys) -> usize {
        if keys.first == keys.last && self.remove_short_at(keys.first) {
            return 1;
        }
        self.remove_anywhere(keys)
    }

    /// The same, from where all the keys are on the same way.
    #[inline(never)]
    fn remove_anywhere(&mut self, keys: Keys) -> usize {
        let mut slot = Slot::Root;
        // The inner node of `slot`, and where itself stands.
        let mut parent = None;
        let (mut at, mut shift) = match self.lasting_shortcut(keys) {
            Some(node) => (node, next_higher(ABOVE_LEAVES)),
            None => (self.root(), 0),
        };
        // Down as long as all the keys are on the same way.
        while let Node::Inner(table) = at.node() {
            shift = next_lower(shift);
            if at.skips() {
                let head = self.head(table);
                shift = head.shift();
                if prefix(keys.first, shift) != head.prefix() || prefix(keys.last, shift) != head.prefix() {
                    break;
                }
            }
            if digit(keys.first, shift) != digit(keys.last, shift) {
                break;
            }
            parent = Some((slot, at, table));
            slot = Slot::Item(table, digit(keys.first, shift), shift);
            at = self.child(table, digit(keys.first, shift));
        }
        let (left, removed) = self.without(at, keys);
        match (parent, slot) {
            _ if left == at => {}
            (Some((above, node, table)), Slot::Item(_, digit, _)) if left == NodeRef::NONE => {
                // The parent has other children, and so does not end.
                let smaller = self.shrink(node, table, bit(digit));
                if smaller != node {
                    self.put(above, smaller);
                }
            }
            _ => self.put(slot, left),
        }
        removed
    }

    /// Removes the short mapping that begins at `key`, if a shortcut leads to its leaf, which stays as it is; says
    /// whether it did.
    #[inline(always)]
    fn remove_short_at(&self, key: u64) -> bool {
        let digit = digit(key, 0);
        let Some((leaf, words)) = self.leaf_at_once(key) else { return false };
        let Ok(Some(place)) = leaf.place(words, digit) else { return false };
        let is_there = leaf.item_at(words, place).is_ok_and(|item| !is_long(item));
        let stays = is_there && leaf.try_count_out(words, bit(digit));
        if stays {
            leaf.set_item_at(words, place, 0, Ordering::Release);
        }
        stays
    }

    /// A shortcut to an inner node that has all of the keys under one child and stays in its place without it.
    fn lasting_shortcut(&self, keys: Keys) -> Option<NodeRef> {
        if prefix(keys.first, 0) != prefix(keys.last, 0) {
            return None;
        }
        let node = self.shortcut(keys.first)?;
        let Node::Inner(table) = node.node() else { return None };
        let left = self.bitmap(table).count_ones().wrapping_sub(1);
        (!table.is_too_empty(64, left)).then_some(node)
    }

    /// The node without the entries of `keys`, [`NodeRef::NONE`] when none is left, and how many went. The
    /// reference may be one for another place.
    fn without(&mut self, node: NodeRef, keys: Keys) -> (NodeRef, usize) {
        match node.node() {
            Node::None => (node, 0),
            Node::Lone(at) => {
                let key = self.lone_entry(at).key;
                if key < keys.first || keys.last < key {
                    return (node, 0);
                }
                self.retire_lone(node);
                (NodeRef::NONE, 1)
            }
            Node::Leaf(leaf) => {
                let mut gone = 0;
                for digit in digits(digits_among(self.head(leaf), keys) & self.bitmap(leaf)) {
                    let item = self.item(leaf, digit);
                    if item != 0 {
                        self.retire_item(item);
                        gone |= bit(digit);
                    }
                }
                (self.shrink(node, leaf, gone), gone.count_ones() as usize)
            }
            Node::Inner(table) => self.inner_without(node, table, keys),
        }
    }

    fn inner_without(&mut self, node: NodeRef, table: Table, keys: Keys) -> (NodeRef, usize) {
        let head = self.head(table);
        let mut gone = 0;
        let mut removed = 0usize;
        for digit in digits(digits_among(head, keys) & self.bitmap(table)) {
            let child = self.child(table, digit);
            let (smaller, count) = self.without(child, keys);
            removed = removed.saturating_add(count);
            if smaller == NodeRef::NONE && child != NodeRef::NONE {
                gone |= bit(digit);
            } else if smaller != child {
                self.put(Slot::Item(table, digit, head.shift()), smaller);
            }
        }
        (self.shrink(node, table, gone), removed)
    }
}

/// The digits under which a table can have any of `keys`.
fn digits_among(head: Head, keys: Keys) -> u64 {
    let (shift, lowest) = (head.shift(), head.prefix());
    let highest = lowest | below_prefix(shift);
    if keys.last < lowest || highest < keys.first {
        return 0;
    }
    let from = digit(keys.first.max(lowest), shift);
    let to = digit(keys.last.min(highest), shift);
    (below(to) | bit(to)) & !below(from)
}

#[cfg(test)]
mod tests {
    use crate::mapping::{Mapping, Mappings};
    use crate::{Access, Gpa, Granule, IovaRange, Target};

    #[test]
    fn in_a_dense_tree_a_short_mapping_is_removed_at_once_by_its_first_granule_and_nothing_else_is() {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        let mut insert = |first: u64, last: u64| {
            let range = IovaRange::new(first << 12, last << 12 | 0xfff).expect("first <= last");
            let target = Target { gpa: Gpa(0), access: Access::READ, mmio: false };
            mappings.insert(Mapping { range, target });
        };
        let is_mapped = |number: &u64| number % 4 < 2 && !(0x1102..0x1500).contains(number);
        (0..0x4000).filter(is_mapped).for_each(|number| insert(number, number));
        insert(0x1002, 0x1003);
        insert(0x1102, 0x14ff);
        let count = mappings.iter().count();
        let at_once = |key| mappings.tree.remove_short_at(key);
        assert_eq!([0x1001, 0x1002, 0x2000].map(at_once), [true; 3]);
        // What is gone, the second of two, a hole, a long mapping.
        assert_eq!([0x1001, 0x1003, 0x2002, 0x1102].map(at_once), [false; 4]);
        assert_eq!(mappings.iter().count(), count - 3);
    }
}
