// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! All entries of a tree in order, while nothing changes it.

use super::arena::Arena;
use super::find;
use super::node::{DIGITS, Holds, Node, NodeRef, Table};
use super::value::Entry;

/// Where the iteration is in one table.
#[derive(Clone, Copy, Debug)]
struct Place {
    table: Table,
    prefix: u64,
    /// The digits that are yet to come.
    left: u64,
    /// How many have come.
    rank: u32,
}

/// The entries of a tree in order.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    arena: &'a Arena,
    /// The root, if it is still to come.
    next: NodeRef,
    /// From the root down.
    places: [Option<Place>; DIGITS],
    depth: usize,
}

impl<'a> Entries<'a> {
    pub(super) fn new(arena: &'a Arena) -> Entries<'a> {
        let next = find::root(arena).unwrap_or(NodeRef::NONE);
        Entries { arena, next, places: [None; DIGITS], depth: 0 }
    }

    fn enter(&mut self, node: NodeRef) -> Option<Entry> {
        match node.node() {
            Node::None => None,
            Node::Lone(at) => Entry::of_lone(self.arena, at).ok(),
            Node::Leaf(table) | Node::Inner(table) => {
                let prefix = table.head(self.arena).ok()?.prefix();
                let left = table.bitmap(self.arena).ok()?;
                *self.places.get_mut(self.depth)? = Some(Place { table, prefix, left, rank: 0 });
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
            let at = if place.table.is_full() { digit } else { place.rank };
            let item = place.table.item_at(place.table.words_in(self.arena).ok()?, at).ok()?;
            place.rank = place.rank.wrapping_add(1);
            if item == 0 {
                continue;
            }
            if place.table.holds() == Holds::Values {
                return Entry::of_item(self.arena, place.prefix | u64::from(digit), item).ok();
            }
            if let Some(entry) = self.enter(NodeRef(item as u32)) {
                return Some(entry);
            }
        }
        None
    }
}
