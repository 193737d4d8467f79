// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tree as its writer holds it, and the steps that every change is made of.
//!
//! A change is one store that readers see: a new node is written first and then put in the place of the old one,
//! which is retired. Knows keys and values, not what they mean.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::arena::{Shared, Words};
use super::find::{self, Entry};
use super::node::{Head, Holds, LONE_WORDS, Node, NodeRef, Table, bit, digits};
use super::space::Space;

/// A tree of entries.
#[derive(Debug)]
pub(super) struct Tree {
    pub space: Space,
    pub shared: Arc<Shared>,
}

/// Where the reference of a node stands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Slot {
    /// At the root.
    Root,
    /// In the table, whose level is this, at the digit.
    Item(Table, u32, u32),
}

impl Tree {
    /// An empty tree in a space for `words` words.
    pub(super) fn new(words: usize) -> Tree {
        let space = Space::new(words);
        let shared = Arc::new(Shared::new(space.arena().clone()));
        Tree { space, shared }
    }

    pub(super) fn root(&self) -> NodeRef {
        // The writer reads what it wrote: nothing is ever torn for it.
        find::root(self.space.arena()).unwrap_or(NodeRef::NONE)
    }

    /// Ends a change: what waits may become free, and a tree in a space too large for it is copied.
    pub(super) fn settle(&mut self) {
        self.space.settle(&self.shared);
        if self.space.is_wasteful() {
            self.copy_to_own_size();
        }
    }

    /// Lets readers find nothing from now on.
    pub(super) fn hide(&self) {
        self.space.words(0).store(0, 0, Ordering::Release);
    }

    pub(super) fn words(&self, table: Table) -> Words<'_> {
        self.space.words(table.at)
    }

    pub(super) fn head(&self, table: Table) -> Head {
        Head(self.words(table).load(0).unwrap_or(0))
    }

    pub(super) fn bitmap(&self, table: Table) -> u64 {
        self.words(table).load(1).unwrap_or(0)
    }

    pub(super) fn child(&self, table: Table, bitmap: u64, digit: u32) -> NodeRef {
        table.child(self.words(table), bitmap, digit).unwrap_or(NodeRef::NONE)
    }

    pub(super) fn value(&self, table: Table, bitmap: u64, digit: u32) -> u64 {
        table.item(self.words(table), bitmap, digit).unwrap_or(0)
    }

    pub(super) fn lone_entry(&self, at: u32) -> Entry {
        find::lone(self.space.words(at)).unwrap_or(Entry { key: 0, value: 0 })
    }

    /// Puts a node in a place in which there is one already, or at the root.
    pub(super) fn put(&mut self, slot: Slot, node: NodeRef) {
        match slot {
            Slot::Root => {
                let root = self.fitted(node, None);
                self.space.words(0).store(0, root.0.into(), Ordering::Release);
            }
            Slot::Item(table, level, digit) => {
                let item = self.fitted(node, Some(level)).0;
                table.set_item(self.words(table), self.bitmap(table), digit, item.into());
            }
        }
    }

    /// The reference of a node as a parent of this level holds it.
    pub(super) fn fitted(&self, node: NodeRef, parent: Option<u32>) -> NodeRef {
        match node.node() {
            Node::Table(table) => {
                let next = self.head(table).level().checked_add(1);
                NodeRef::table(table, parent.is_none() || next != parent)
            }
            Node::None | Node::Lone(_) => node,
        }
    }

    pub(super) fn new_lone(&mut self, entry: Entry) -> NodeRef {
        let at = self.space.take(LONE_WORDS, &self.shared);
        let words = self.space.words(at);
        words.store(0, entry.key, Ordering::Relaxed);
        words.store(1, entry.value, Ordering::Relaxed);
        NodeRef::lone(at)
    }

    /// A table with the items that `item` gives for the digits of `bitmap`. Its reference fits no place yet.
    pub(super) fn new_table(
        &mut self,
        holds: Holds,
        head: Head,
        bitmap: u64,
        item: impl Fn(&Tree, u32) -> u64,
    ) -> NodeRef {
        let count = bitmap.count_ones();
        let shape = Table::shape(holds, count);
        let size = shape.words(count);
        let table = Table { at: self.space.take(size, &self.shared), ..shape };
        let words = self.words(table);
        words.store(0, head.0, Ordering::Relaxed);
        words.store(1, bitmap, Ordering::Relaxed);
        for index in 2..size {
            words.store(index, 0, Ordering::Relaxed);
        }
        for digit in digits(bitmap) {
            table.set_item(words, bitmap, digit, item(self, digit));
        }
        NodeRef::table(table, true)
    }

    /// The table with only the items of `left`, or what does without a table; the old one is retired.
    pub(super) fn shrink(&mut self, node: NodeRef, table: Table, left: u64) -> NodeRef {
        let bitmap = self.bitmap(table);
        if left == bitmap {
            return node;
        }
        let count = left.count_ones();
        if table.full && !table.is_too_empty(count) {
            self.words(table).store(1, left, Ordering::Release);
            for digit in digits(bitmap & !left) {
                table.set_item(self.words(table), bitmap, digit, 0);
            }
            return node;
        }
        let head = self.head(table);
        let smaller = match (left.checked_ilog2(), count) {
            (None, _) => NodeRef::NONE,
            (Some(digit), 1) if table.holds == Holds::Nodes => self.child(table, bitmap, digit),
            (Some(digit), 1) => {
                let value = self.value(table, bitmap, digit);
                self.new_lone(Entry { key: head.prefix() | u64::from(digit), value })
            }
            _ => self.new_table(table.holds, head, left, |tree, digit| tree.value(table, bitmap, digit)),
        };
        self.retire(table, bitmap);
        smaller
    }

    /// The table with one more item, which is a value or a fitted reference.
    pub(super) fn grown(&mut self, node: NodeRef, table: Table, digit: u32, item: u64) -> NodeRef {
        let bitmap = self.bitmap(table);
        let more = bitmap | bit(digit);
        if table.full {
            // A reader that sees the bit finds the item.
            table.set_item(self.words(table), more, digit, item);
            self.words(table).store(1, more, Ordering::Release);
            return node;
        }
        let head = self.head(table);
        let larger = self.new_table(table.holds, head, more, |tree, each| {
            if each == digit { item } else { tree.value(table, bitmap, each) }
        });
        self.retire(table, bitmap);
        larger
    }

    pub(super) fn retire(&mut self, table: Table, bitmap: u64) {
        self.space.retire(table.at, table.words(bitmap.count_ones()));
    }
}
