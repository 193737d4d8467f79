// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The way down the tree: for its writer, and for readers while it changes.
//!
//! A reader sees each step of the writer or does not; between steps the tree is whole. A mapping that is there
//! from the beginning of a lookup to its end is found: nodes that left the tree keep what they held, and no other
//! mapping can lie between it and the address. Changes nothing.

use super::arena::{Arena, Torn, Words};
use super::node::{Head, LEVELS, Node, NodeRef, Table, below, bit, digit, prefix};

/// A mapping as the tree has it: the key of its first granule, and the packed rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub key: u64,
    pub value: u64,
}

/// The root of the tree.
pub(super) fn root(arena: &Arena) -> Result<NodeRef, Torn> {
    arena.words(0)?.load(0).map(|root| NodeRef(root as u32))
}

/// The mapping of the highest key that is not above `key`.
pub(super) fn floor(arena: &Arena, key: u64) -> Result<Option<Entry>, Torn> {
    // The inner nodes passed, to go back to when there is nothing at or below the key further down.
    let mut passed = [(0u32, 0u32); LEVELS];
    let mut depth = 0;
    let mut at = root(arena)?;
    let mut level = 0u32;
    loop {
        match at.node() {
            Node::None => break,
            Node::Lone(first) => {
                let entry = lone(arena.words(first)?)?;
                if entry.key <= key {
                    return Ok(Some(entry));
                }
                break;
            }
            Node::Table(table) => {
                let words = arena.words(table.at)?;
                level = level.wrapping_sub(1);
                if at.skips() {
                    let head = Head(words.load(0)?);
                    level = head.level();
                    match head.prefix().cmp(&prefix(key, level)) {
                        core::cmp::Ordering::Less => return last_of(arena, at).map(Some),
                        core::cmp::Ordering::Greater => break,
                        core::cmp::Ordering::Equal => {}
                    }
                }
                if level == 0 {
                    match in_leaf(table, words, key)? {
                        Some(entry) => return Ok(Some(entry)),
                        None => break,
                    }
                }
                *passed.get_mut(depth).ok_or(Torn)? = (at.0, level);
                depth = depth.wrapping_add(1);
                at = child(table, words, digit(key, level))?;
            }
        }
    }
    for (node, level) in passed.get(..depth).ok_or(Torn)?.iter().rev() {
        if let Some(lower) = lower_sibling(arena, NodeRef(*node), digit(key, *level))? {
            return last_of(arena, lower).map(Some);
        }
    }
    Ok(None)
}

/// The mapping of the highest key in and below a node.
pub(super) fn last_of(arena: &Arena, mut at: NodeRef) -> Result<Entry, Torn> {
    for _ in 0..=LEVELS {
        match at.node() {
            Node::None => return Err(Torn),
            Node::Lone(first) => return lone(arena.words(first)?),
            Node::Table(table) => {
                let words = arena.words(table.at)?;
                let head = Head(words.load(0)?);
                let bitmap = words.load(1)?;
                let highest = bitmap.checked_ilog2().ok_or(Torn)?;
                if head.level() == 0 {
                    return leaf_entry(table, words, bitmap, highest, head.prefix());
                }
                at = table.child(words, bitmap, highest)?;
            }
        }
    }
    Err(Torn)
}

/// The mapping of a lone node.
pub(super) fn lone(words: Words<'_>) -> Result<Entry, Torn> {
    Ok(Entry { key: words.load(0)?, value: words.load(1)? })
}

fn in_leaf(table: Table, words: Words<'_>, key: u64) -> Result<Option<Entry>, Torn> {
    let wanted = digit(key, 0);
    if table.full {
        let value = table.item(words, 0, wanted)?;
        if value != 0 {
            return Ok(Some(Entry { key, value }));
        }
    }
    let bitmap = words.load(1)?;
    match (bitmap & (below(wanted) | bit(wanted))).checked_ilog2() {
        Some(nearest) => leaf_entry(table, words, bitmap, nearest, prefix(key, 0)).map(Some),
        None => Ok(None),
    }
}

fn leaf_entry(table: Table, words: Words<'_>, bitmap: u64, digit: u32, prefix: u64) -> Result<Entry, Torn> {
    match table.item(words, bitmap, digit)? {
        0 => Err(Torn),
        value => Ok(Entry { key: prefix | u64::from(digit), value }),
    }
}

/// The child of `digit`, if there is one.
fn child(table: Table, words: Words<'_>, digit: u32) -> Result<NodeRef, Torn> {
    if table.full {
        return table.child(words, 0, digit);
    }
    let bitmap = words.load(1)?;
    if bitmap & bit(digit) == 0 { Ok(NodeRef::NONE) } else { table.child(words, bitmap, digit) }
}

/// The child of the highest digit below `digit`.
fn lower_sibling(arena: &Arena, at: NodeRef, digit: u32) -> Result<Option<NodeRef>, Torn> {
    let Node::Table(table) = at.node() else { return Err(Torn) };
    let words = arena.words(table.at)?;
    let bitmap = words.load(1)?;
    match (bitmap & below(digit)).checked_ilog2() {
        Some(lower) => table.child(words, bitmap, lower).map(Some),
        None => Ok(None),
    }
}
