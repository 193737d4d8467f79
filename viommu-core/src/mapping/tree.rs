// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tree as its writer holds it, and the steps that every change is made of.
//!
//! A change is one store that readers see: a new node is written first and then put in the place of the old one,
//! which is retired. Knows keys and values, not what they mean.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use super::arena::{Arena, Shared, Words};
use super::find;
use super::node::{ABOVE_LEAVES, Head, Holds, Node, NodeRef, Table, bit, digits, next_lower, prefix};
use super::space::Space;
use super::value::{Entry, LONG_WORDS, is_long};

/// For what the writer never meets.
const NO_ENTRY: Entry = Entry { key: 0, word: 0, more: 0 };

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
    /// In an inner node, as the item of a digit, which begins at this bit.
    Item(Table, u32, u32),
}

impl Tree {
    /// An empty tree in a space for `words` words.
    pub(super) fn new(words: usize) -> Tree {
        let space = Space::new(words);
        let shared = Arc::new(Shared::new(space.arena().clone()));
        Tree { space, shared }
    }

    /// Ends a change after which there are `count` entries: what waits may become free, and a tree in a space too
    /// large for it is copied.
    #[inline]
    pub(super) fn settle(&mut self, count: usize) {
        if self.space.settle(count, &self.shared) {
            self.copy_to_own_size();
        }
    }

    /// Lets readers find nothing from now on.
    pub(super) fn hide(&self) {
        self.shared.publish(Space::new(0).arena().clone());
    }

    // The writer reads what it wrote: nothing is ever torn for it.

    pub(super) fn root(&self) -> NodeRef {
        find::root(self.arena()).unwrap_or(NodeRef::NONE)
    }

    pub(super) fn head(&self, table: Table) -> Head {
        table.head(self.arena()).unwrap_or(Head(0))
    }

    pub(super) fn bitmap(&self, table: Table) -> u64 {
        table.bitmap(self.arena()).unwrap_or(0)
    }

    /// The digits that have an item, each with the item, in order.
    pub(super) fn items(&self, table: Table) -> impl Iterator<Item = (u32, u64)> {
        let (words, bitmap) = (self.words(table), self.bitmap(table));
        let items =
            table.places(bitmap).map(move |(place, digit)| (digit, table.item_at(words, place).unwrap_or(0)));
        items.filter(|(_, item)| *item != 0)
    }

    /// The digits that have an item.
    pub(super) fn present(&self, table: Table) -> u64 {
        if table.is_full() {
            return self.bitmap(table);
        }
        self.items(table).fold(0, |bits, (digit, _)| bits | bit(digit))
    }

    /// The item of `digit`, or 0.
    pub(super) fn item(&self, table: Table, digit: u32) -> u64 {
        table.item(self.words(table), digit).unwrap_or(0)
    }

    pub(super) fn child(&self, table: Table, digit: u32) -> NodeRef {
        NodeRef(self.item(table, digit) as u32)
    }

    pub(super) fn lone_entry(&self, at: u32) -> Entry {
        Entry::of_lone(self.arena(), at).unwrap_or(NO_ENTRY)
    }

    pub(super) fn item_entry(&self, key: u64, item: u64) -> Entry {
        Entry::of_item(self.arena(), key, item).unwrap_or(NO_ENTRY)
    }

    /// The inner node just above the leaves that the way to `key` leads through, if it is full and known.
    pub(super) fn shortcut(&self, key: u64) -> Option<NodeRef> {
        self.arena().shortcuts.to(key)
    }

    /// The leaf of `key` and its words, if it was asked for last or a shortcut leads to it: what is checked is changed
    /// next, and what comes after it is often near.
    #[inline(always)]
    pub(super) fn leaf_at_once(&self, key: u64) -> Option<(Table, Words<'_>)> {
        if let Some((leaf, words)) = self.space.last_leaf()
            && words.load(0).is_ok_and(|head| Head(head).prefix() == prefix(key, 0))
        {
            return Some((leaf, words));
        }
        let (leaf, words) = find::leaf_at_once(self.arena(), key)?;
        self.space.set_last_leaf(leaf);
        Some((leaf, words))
    }

    /// Puts a node in a place in which there is one already, or at the root.
    pub(super) fn put(&mut self, slot: Slot, node: NodeRef) {
        match slot {
            Slot::Root => {
                let root = self.fitted(node, None);
                self.space.words(0).store(0, root.0.into(), Ordering::Release);
            }
            Slot::Item(table, digit, shift) => {
                let item = self.fitted(node, Some(shift)).0;
                table.set_item(self.words(table), digit, item.into());
            }
        }
    }

    /// The reference of a node as a parent whose digit begins at `parent` holds it, or the root.
    pub(super) fn fitted(&self, node: NodeRef, parent: Option<u32>) -> NodeRef {
        match node.node() {
            Node::Leaf(table) => table.reference(parent != Some(ABOVE_LEAVES)),
            Node::Inner(table) => table.reference(parent.map(next_lower) != Some(self.head(table).shift())),
            Node::None | Node::Lone(_) => node,
        }
    }

    pub(super) fn new_lone(&mut self, entry: Entry) -> NodeRef {
        let at = self.space.take(entry.lone_words(), &self.shared);
        let words = self.space.words(at);
        words.store(0, entry.key, Ordering::Relaxed);
        words.store(1, entry.word, Ordering::Relaxed);
        if is_long(entry.word) {
            words.store(2, entry.more, Ordering::Relaxed);
        }
        NodeRef::lone(at)
    }

    /// The item of a leaf for an entry.
    pub(super) fn new_item(&mut self, entry: Entry) -> u64 {
        if !is_long(entry.word) {
            return entry.word;
        }
        let at = self.space.take(LONG_WORDS, &self.shared);
        let words = self.space.words(at);
        words.store(0, entry.word, Ordering::Relaxed);
        words.store(1, entry.more, Ordering::Relaxed);
        at.into()
    }

    /// A table for the digits of `bitmap`, which readers do not know yet and which has no items yet.
    pub(super) fn new_table(&mut self, holds: Holds, head: Head, bitmap: u64) -> Table {
        let count = bitmap.count_ones();
        let shape = Table::shape(holds, count);
        let size = shape.words(count);
        let table = shape.placed(self.space.take(size, &self.shared));
        let words = self.words(table);
        words.store(0, head.counting(count).0, Ordering::Relaxed);
        words.store(1, bitmap, Ordering::Relaxed);
        // Values are stored whole, and each place of a packed table gets one.
        if table.is_full() || holds == Holds::Nodes {
            (2..size).for_each(|index| words.store(index, 0, Ordering::Relaxed));
        }
        table
    }

    /// The reference of a new table that has its items, which fits no place yet.
    pub(super) fn finished(&self, table: Table) -> NodeRef {
        if self.is_of_shortcuts(table) {
            self.arena().shortcuts.enter(self.head(table).prefix(), table.reference(false));
        }
        table.reference(true)
    }

    /// Gives a new table those of an old one's items that it has digits for.
    fn fill(&self, table: Table, old: Table) {
        let (words, bitmap) = (self.words(table), self.bitmap(table));
        let mut places = table.places(bitmap);
        for (digit, item) in self.items(old).filter(|(digit, _)| bitmap & bit(*digit) != 0) {
            if let Some((place, _)) = places.find(|(_, of)| *of == digit) {
                table.set_item_at(words, place, item, Ordering::Relaxed);
            }
        }
    }

    /// The table without the items of the digits in `gone`, which it has, or what does without a table; then the old one
    /// is retired.
    pub(super) fn shrink(&mut self, node: NodeRef, table: Table, gone: u64) -> NodeRef {
        if gone == 0 {
            return node;
        }
        let words = self.words(table);
        if table.try_count_out(words, gone) {
            digits(gone).for_each(|digit| table.set_item(words, digit, 0));
            return node;
        }
        let (head, bitmap) = (self.head(table), self.bitmap(table));
        let left = self.present(table) & !gone;
        let smaller = match left.checked_ilog2() {
            None => NodeRef::NONE,
            Some(digit) if left == bit(digit) => self.alone(table, digit),
            Some(_) => {
                let smaller = self.new_table(table.holds(), head, left);
                self.fill(smaller, table);
                self.finished(smaller)
            }
        };
        self.retire(table, bitmap);
        smaller
    }

    /// What does for a table whose only item is that of `digit`.
    fn alone(&mut self, table: Table, digit: u32) -> NodeRef {
        let item = self.item(table, digit);
        if table.holds() == Holds::Nodes {
            return NodeRef(item as u32);
        }
        let key = self.head(table).prefix() | u64::from(digit);
        let lone = self.new_lone(self.item_entry(key, item));
        self.retire_item(item);
        lone
    }

    /// The table with one more item, which is a value or a fitted reference.
    pub(super) fn grown(&mut self, node: NodeRef, table: Table, added: u32, item: u64) -> NodeRef {
        if table.try_add_in_place(self.words(table), added, item) {
            return node;
        }
        let (head, bitmap) = (self.head(table), self.bitmap(table));
        let more = self.present(table) | bit(added);
        let larger = self.new_table(table.holds(), head, more);
        self.fill(larger, table);
        larger.set_item(self.words(larger), added, item);
        self.retire(table, bitmap);
        self.finished(larger)
    }

    pub(super) fn retire_lone(&mut self, node: NodeRef) {
        if let Node::Lone(at) = node.node() {
            self.space.retire(at, self.lone_entry(at).lone_words());
        }
    }

    /// Retires what an item of a leaf has elsewhere.
    pub(super) fn retire_item(&mut self, item: u64) {
        if is_long(item) {
            self.space.retire(item as u32, LONG_WORDS);
        }
    }

    pub(super) fn retire(&mut self, table: Table, bitmap: u64) {
        if self.is_of_shortcuts(table) {
            self.arena().shortcuts.leave(self.head(table).prefix(), table.reference(false));
        }
        self.space.retire(table.at(), table.words(bitmap.count_ones()));
    }

    fn is_of_shortcuts(&self, table: Table) -> bool {
        table.is_full() && table.holds() == Holds::Nodes && self.head(table).shift() == ABOVE_LEAVES
    }

    fn arena(&self) -> &Arena {
        self.space.arena()
    }

    pub(super) fn words(&self, table: Table) -> Words<'_> {
        self.space.words(table.at())
    }
}
