// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way down the tree: for its writer, and for readers while it changes.
//!
//! A reader sees each step of the writer or does not; between steps the tree is whole. A mapping that is there
//! from the beginning of a lookup to its end is found: nodes that left the tree keep what they held, and no other
//! mapping can lie between it and the address. Changes nothing.

use core::cmp::Ordering;

use super::arena::{Arena, Torn, Words};
use super::node::{ABOVE_LEAVES, DIGITS, Node, NodeRef, Table, below, bit, digit, next_lower, prefix};
use super::value::{Entry, is_long};

/// The root of the tree.
#[inline]
pub(super) fn root(arena: &Arena) -> Result<NodeRef, Torn> {
    arena.load(0).map(|root| NodeRef(root as u32))
}

/// The leaf of `key` and its words, if a shortcut leads to it.
#[inline(always)]
pub(super) fn leaf_at_once(arena: &Arena, key: u64) -> Option<(Table, Words<'_>)> {
    let node = arena.shortcuts.to(key)?;
    let child = Table::plain_child(node, arena, digit(key, ABOVE_LEAVES)).ok()?;
    match child.node() {
        Node::Leaf(leaf) => Some((leaf, leaf.words_in(arena).ok()?)),
        _ => None,
    }
}

/// The short mapping that begins at `key`, if a shortcut leads to its leaf. Most lookups end here, after so few
/// steps that a processor is on several of them at a time.
#[inline(always)]
pub(super) fn short_at(arena: &Arena, key: u64) -> Option<Entry> {
    short_in(leaf_at_once(arena, key)?, key)
}

/// The short mapping that begins at `key` in its leaf.
#[inline(always)]
pub(super) fn short_in((leaf, words): (Table, Words<'_>), key: u64) -> Option<Entry> {
    let word = leaf.item(words, digit(key, 0)).ok()?;
    (!is_long(word)).then_some(Entry { key, word, more: 0 })
}

/// The short mapping of the highest key that is not above `key` in its leaf.
#[inline(always)]
pub(super) fn short_floor_in((leaf, words): (Table, Words<'_>), key: u64) -> Option<Entry> {
    let digit = digit(key, 0);
    let (digit, word) = leaf.highest_item(words, below(digit) | bit(digit)).ok()??;
    (!is_long(word)).then_some(Entry { key: prefix(key, 0) | u64::from(digit), word, more: 0 })
}

/// The mapping of the highest key that is not above `key`.
#[inline(never)]
pub(super) fn floor(arena: &Arena, key: u64) -> Result<Option<Entry>, Torn> {
    if let Some(node) = arena.shortcuts.to(key) {
        let child = Table::plain_child(node, arena, digit(key, ABOVE_LEAVES))?;
        let found = below_inner(arena, child, key)?;
        if found.is_some() {
            return Ok(found);
        }
        let found = back(arena, key, &[node.0])?;
        if found.is_some() {
            return Ok(found);
        }
    }
    from_root(arena, key)
}

/// The mapping of the highest key in a lone node or a leaf that is not above `key`.
#[inline]
fn below_inner(arena: &Arena, at: NodeRef, key: u64) -> Result<Option<Entry>, Torn> {
    match at.node() {
        Node::Lone(first) => Ok(Some(Entry::of_lone(arena, first)?).filter(|entry| entry.key <= key)),
        Node::Leaf(leaf) => in_leaf(arena, leaf, at.skips(), key),
        Node::None | Node::Inner(_) => Ok(None),
    }
}

/// The same, all the way.
fn from_root(arena: &Arena, key: u64) -> Result<Option<Entry>, Torn> {
    // The inner nodes passed, to go back to when there is nothing at or below the key further down.
    let mut passed = [0; DIGITS];
    let mut depth = 0usize;
    let mut shift = 0;
    let mut at = root(arena)?;
    loop {
        while at.is_plain() {
            *passed.get_mut(depth).ok_or(Torn)? = at.0;
            depth = depth.wrapping_add(1);
            shift = next_lower(shift);
            at = Table::plain_child(at, arena, digit(key, shift))?;
        }
        let Node::Inner(table) = at.node() else { break };
        shift = next_lower(shift);
        if at.skips() {
            let head = table.head(arena)?;
            shift = head.shift();
            match head.prefix().cmp(&prefix(key, shift)) {
                Ordering::Less => return last_of(arena, at).map(Some),
                Ordering::Greater => return back(arena, key, passed.get(..depth).ok_or(Torn)?),
                Ordering::Equal => {}
            }
        }
        *passed.get_mut(depth).ok_or(Torn)? = at.0;
        depth = depth.wrapping_add(1);
        at = NodeRef(table.item(table.words_in(arena)?, digit(key, shift))? as u32);
    }
    let found = below_inner(arena, at, key)?;
    if found.is_some() { Ok(found) } else { back(arena, key, passed.get(..depth).ok_or(Torn)?) }
}

/// The mapping of the highest key in a leaf that is not above `key`.
#[inline]
fn in_leaf(arena: &Arena, leaf: Table, skips: bool, key: u64) -> Result<Option<Entry>, Torn> {
    if skips {
        match leaf.head(arena)?.prefix().cmp(&prefix(key, 0)) {
            Ordering::Less => return last_of(arena, leaf.reference(true)).map(Some),
            Ordering::Greater => return Ok(None),
            Ordering::Equal => {}
        }
    }
    let digit = digit(key, 0);
    match leaf.highest_item(leaf.words_in(arena)?, below(digit) | bit(digit))? {
        Some((digit, item)) => Entry::of_item(arena, prefix(key, 0) | u64::from(digit), item).map(Some),
        None => Ok(None),
    }
}

/// The mapping of the highest key below `key`, in the children before the ones that were passed through.
fn back(arena: &Arena, key: u64, passed: &[u32]) -> Result<Option<Entry>, Torn> {
    for at in passed.iter().rev() {
        let Node::Inner(table) = NodeRef(*at).node() else { return Err(Torn) };
        let shift = table.head(arena)?.shift();
        if let Some((_, item)) = table.highest_item(table.words_in(arena)?, below(digit(key, shift)))? {
            return last_of(arena, NodeRef(item as u32)).map(Some);
        }
    }
    Ok(None)
}

/// The mapping of the highest key in and below a node.
fn last_of(arena: &Arena, mut at: NodeRef) -> Result<Entry, Torn> {
    for _ in 0..=DIGITS {
        match at.node() {
            Node::None => return Err(Torn),
            Node::Lone(first) => return Entry::of_lone(arena, first),
            Node::Leaf(leaf) => {
                let (digit, item) = leaf.highest_item(leaf.words_in(arena)?, u64::MAX)?.ok_or(Torn)?;
                return Entry::of_item(arena, leaf.head(arena)?.prefix() | u64::from(digit), item);
            }
            Node::Inner(table) => {
                let (_, item) = table.highest_item(table.words_in(arena)?, u64::MAX)?.ok_or(Torn)?;
                at = NodeRef(item as u32);
            }
        }
    }
    Err(Torn)
}
