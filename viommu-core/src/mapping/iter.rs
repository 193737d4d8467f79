// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All entries of a tree in order, while nothing changes it.

use super::arena::{Arena, Words};
use super::find::{self, Entry};
use super::node::{Head, Holds, LEVELS, Node, NodeRef, Table};

/// Where the iteration is in one table.
#[derive(Clone, Copy, Debug)]
struct Place<'a> {
    table: Table,
    words: Words<'a>,
    prefix: u64,
    bitmap: u64,
    /// The digits that are yet to come.
    left: u64,
}

/// The entries of a tree in order.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    arena: &'a Arena,
    /// The root, if it is still to come.
    next: NodeRef,
    /// From the root down.
    places: [Option<Place<'a>>; LEVELS],
    depth: usize,
}

impl<'a> Entries<'a> {
    pub(super) fn new(arena: &'a Arena) -> Entries<'a> {
        let next = find::root(arena).unwrap_or(NodeRef::NONE);
        Entries { arena, next, places: [None; LEVELS], depth: 0 }
    }

    fn enter(&mut self, node: NodeRef) -> Option<Entry> {
        match node.node() {
            Node::None => None,
            Node::Lone(at) => find::lone(self.arena.words(at).ok()?).ok(),
            Node::Table(table) => {
                let words = self.arena.words(table.at).ok()?;
                let bitmap = words.load(1).ok()?;
                let prefix = Head(words.load(0).ok()?).prefix();
                *self.places.get_mut(self.depth)? =
                    Some(Place { table, words, prefix, bitmap, left: bitmap });
                self.depth = self.depth.wrapping_add(1);
                None
            }
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        let root = core::mem::replace(&mut self.next, NodeRef::NONE);
        if let Some(entry) = self.enter(root) {
            return Some(entry);
        }
        while let Some(deepest) = self.depth.checked_sub(1) {
            let place = self.places.get_mut(deepest)?.as_mut()?;
            if place.left == 0 {
                self.depth = deepest;
                continue;
            }
            let digit = place.left.trailing_zeros();
            place.left &= place.left.wrapping_sub(1);
            let item = place.table.item(place.words, place.bitmap, digit).ok()?;
            if place.table.holds == Holds::Values {
                return Some(Entry { key: place.prefix | u64::from(digit), value: item });
            }
            if let Some(entry) = self.enter(NodeRef(item as u32)) {
                return Some(entry);
            }
        }
        None
    }
}
