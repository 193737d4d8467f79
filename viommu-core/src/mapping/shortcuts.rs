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
/// Words of a tree for each entry.
const WORDS_AN_ENTRY: usize = size(64, 8);
/// The smallest table. The rest of a key's 40 bits then fits beside the node.
const ENTRIES_MIN: usize = size(64, 1);

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
        let index_bits = self.entries.len().checked_ilog2().unwrap_or(0);
        for (index, entry) in (0u64..).zip(self.entries.iter()) {
            let entry = entry.load(Ordering::Relaxed);
            let block = entry.wrapping_shr(AT_BITS).wrapping_shl(index_bits) | index;
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
        let (place, tag) = self.place(key.wrapping_shr(BLOCK_BITS))?;
        let entry = place.load(Ordering::Acquire);
        (entry != 0 && entry.wrapping_shr(AT_BITS) == tag).then(|| NodeRef::plain(entry as u32))
    }

    /// Enters a node that has all keys with this prefix.
    pub(super) fn enter(&self, prefix: u64, node: NodeRef) {
        self.set(prefix.wrapping_shr(BLOCK_BITS), node);
    }

    /// Takes a node out.
    pub(super) fn leave(&self, prefix: u64, node: NodeRef) {
        if self.to(prefix) == Some(node)
            && let Some((place, _)) = self.place(prefix.wrapping_shr(BLOCK_BITS))
        {
            place.store(0, Ordering::Release);
        }
    }

    fn set(&self, block: u64, node: NodeRef) {
        if let Some((place, tag)) = self.place(block).filter(|_| node.at() != 0) {
            place.store(tag.wrapping_shl(AT_BITS) | u64::from(node.at()), Ordering::Release);
        }
    }

    /// Where the entry of a block of keys is, and how it tells them from others.
    #[inline]
    fn place(&self, block: u64) -> Option<(&AtomicU64, u64)> {
        let mask = self.entries.len().wrapping_sub(1);
        let place = self.entries.get(block as usize & mask)?;
        Some((place, block.wrapping_shr(self.entries.len().trailing_zeros())))
    }
}
