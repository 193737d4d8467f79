// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A way past the upper levels of a large tree: where many granules are mapped close together, nearly every way
//! down ends in one of not so many inner nodes, and a table tells which.
//!
//! The nodes are the full inner ones just above the leaves. The table is a hint: a node that is not in it is found from
//! the root. One that is in it is in the tree: it goes from here first. Small trees have no table.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::node::NodeRef;
use super::sync::{AtomicU64, size};

/// The bits of a key below what all keys of such a node share.
const BLOCK_BITS: u32 = 12;
/// The bits of an entry that say where the node is; the others say for which keys.
const AT_BITS: u32 = 28;
const AT_MAX: u64 = (1 << AT_BITS) - 1;
/// Words of a tree for each entry.
const WORDS_AN_ENTRY: usize = size(64, 8);
/// The smallest table. The rest of a key's 40 bits then fits beside the node.
const ENTRIES_MIN: usize = size(64, 1);
/// The bits of a block's number that every table has in the place of an entry, and none in the entry.
const INDEX_BITS: u32 = ENTRIES_MIN.trailing_zeros();

/// The table: a power of two of entries, by the lowest bits of what the keys share, or none.
#[derive(Clone, Debug, Default)]
pub(super) struct Shortcuts {
    entries: Arc<[AtomicU64]>,
}

impl Shortcuts {
    /// A table for a tree of `words` words, with what is in this one.
    pub(super) fn resized(&self, words: usize) -> Shortcuts {
        let count = (words / WORDS_AN_ENTRY).checked_next_power_of_two().unwrap_or(0);
        let count = if count < ENTRIES_MIN { 0 } else { count };
        let entries = (0..count).map(|_| AtomicU64::new(0)).collect();
        let resized = Shortcuts { entries };
        for (index, entry) in (0u64..).zip(self.entries.iter()) {
            let entry = entry.load(Ordering::Relaxed);
            let low = index & (ENTRIES_MIN as u64).wrapping_sub(1);
            let block = entry.wrapping_shr(AT_BITS).wrapping_shl(INDEX_BITS) | low;
            resized.set(block, NodeRef::plain(entry as u32));
        }
        resized
    }

    /// Whether a tree of `words` words should have a larger table.
    pub(super) fn is_small_for(&self, words: usize) -> bool {
        let count = words / WORDS_AN_ENTRY;
        count > ENTRIES_MIN && count > self.entries.len().saturating_mul(2)
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.len().saturating_mul(size_of::<AtomicU64>())
    }

    /// The node that the way to `key` leads through.
    #[inline]
    pub(super) fn to(&self, key: u64) -> Option<NodeRef> {
        let block = key.wrapping_shr(BLOCK_BITS);
        let at = self.place(block)?.load(Ordering::Acquire) ^ tag(block);
        // What is left is no node where nothing is entered, and no number of one where other keys are.
        (at.wrapping_sub(1) < AT_MAX).then(|| NodeRef::plain(at as u32))
    }

    /// Enters a node that has all keys with this prefix.
    pub(super) fn enter(&self, prefix: u64, node: NodeRef) {
        self.set(prefix.wrapping_shr(BLOCK_BITS), node);
    }

    /// Takes a node out.
    pub(super) fn leave(&self, prefix: u64, node: NodeRef) {
        if self.to(prefix) == Some(node)
            && let Some(place) = self.place(prefix.wrapping_shr(BLOCK_BITS))
        {
            place.store(0, Ordering::Release);
        }
    }

    fn set(&self, block: u64, node: NodeRef) {
        if let Some(place) = self.place(block).filter(|_| node.at() != 0) {
            place.store(tag(block) | u64::from(node.at()), Ordering::Release);
        }
    }

    /// Where the entry of a block of keys is.
    #[inline]
    fn place(&self, block: u64) -> Option<&AtomicU64> {
        self.entries.get(block as usize & self.entries.len().wrapping_sub(1))
    }
}

/// How an entry tells a block of keys from the others of its place.
#[inline]
fn tag(block: u64) -> u64 {
    block.wrapping_shr(INDEX_BITS).wrapping_shl(AT_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table for so many entries.
    fn table(entries: usize) -> Shortcuts {
        Shortcuts::default().resized(entries * WORDS_AN_ENTRY)
    }

    fn prefix(block: u64) -> u64 {
        block << BLOCK_BITS
    }

    #[test]
    fn a_small_tree_has_no_table_and_a_large_one_a_power_of_two_of_entries() {
        for (wanted, entries) in [(0, 0), (32, 0), (33, 64), (64, 64), (65, 128), (1000, 1024)] {
            assert_eq!(table(wanted).bytes(), entries * 8, "for {wanted}");
        }
    }

    #[test]
    fn a_table_is_small_for_a_tree_that_wants_more_than_twice_its_entries() {
        let is_small = |has: usize, wants: usize| table(has).is_small_for(wants * WORDS_AN_ENTRY);
        assert_eq!([is_small(0, 64), is_small(0, 65)], [false, true]);
        assert_eq!([is_small(64, 65), is_small(64, 128), is_small(64, 129)], [false, false, true]);
    }

    #[test]
    fn a_larger_table_has_what_the_smaller_one_had() {
        let small = table(64);
        let blocks = [0, 5, 64 + 7, (40 << 20) + 63, (1 << 40) - 2];
        for (at, block) in (100..).zip(blocks) {
            small.enter(prefix(block), NodeRef::plain(at));
        }
        let large = small.resized(1024 * WORDS_AN_ENTRY);
        for (at, block) in (100..).zip(blocks) {
            assert_eq!(large.to(prefix(block) | 0xabc), Some(NodeRef::plain(at)), "{block:#x}");
        }
    }

    #[test]
    fn only_a_node_that_has_the_key_is_found_until_it_leaves() {
        let table = table(64);
        let (node, other) = (NodeRef::plain(100), NodeRef::plain(200));
        table.enter(prefix(5), node);
        assert_eq!(table.to(prefix(6) - 1), Some(node));
        // The same entry of the table, for other keys.
        assert_eq!(table.to(prefix(64 + 5)), None);
        assert_eq!((table.to(prefix(4)), table.to(prefix(6))), (None, None));
        table.leave(prefix(64 + 5), node);
        table.leave(prefix(5), other);
        assert_eq!(table.to(prefix(5)), Some(node));
        table.leave(prefix(5), node);
        assert_eq!(table.to(prefix(5)), None);
    }
}
