// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the tree lies in words: references, nodes, keys.
//!
//! A key is an IOVA in granules, of at most 52 bits, and the tree is a radix tree over its 6-bit digits;
//! digit 0 is the lowest. A **lone** node is one mapping. A **leaf** holds mappings whose keys differ in
//! digit 0 only, an **inner** node holds nodes whose keys differ in the digit of its level and below.
//!
//! | node  | words                                                                          |
//! |-------|--------------------------------------------------------------------------------|
//! | lone  | key, value                                                                     |
//! | leaf  | head, bitmap, one value an item                                                |
//! | inner | head, bitmap, half a word an item: the reference of a node                     |
//!
//! The head is the part of the key that all items share, with the level above it. The bitmap says which of the
//! 64 digits have an item. A **full** leaf or inner node has a place for every digit, zero where there is no item;
//! a **packed** one has only the items, in order. Only full nodes take or lose an item in place. An inner node's
//! items may be replaced in place; everything else of a node never changes while the node is in the tree.

use core::sync::atomic::Ordering;

use super::arena::{Torn, Words};

/// Bits of a digit.
const DIGIT_BITS: u32 = 6;
/// Bits of a key.
pub(super) const KEY_BITS: u32 = 52;
/// More levels than a tree can have.
pub(super) const LEVELS: usize = 9;
/// Words before the items.
const ITEMS: u32 = 2;
/// Words of the largest node.
pub(super) const NODE_WORDS_MAX: u32 = ITEMS + 64;
/// Words of a lone node.
pub(super) const LONE_WORDS: u32 = 2;

/// The digit of `key` at `level`.
pub(super) fn digit(key: u64, level: u32) -> u32 {
    (key.wrapping_shr(level.wrapping_mul(DIGIT_BITS)) & 63) as u32
}

/// The part of `key` above the digit at `level`.
pub(super) fn prefix(key: u64, level: u32) -> u64 {
    key & !below_prefix(level)
}

/// The bits of a key up to the digit at `level`.
pub(super) fn below_prefix(level: u32) -> u64 {
    1u64.wrapping_shl(level.wrapping_add(1).wrapping_mul(DIGIT_BITS)).wrapping_sub(1)
}

/// The level at which two keys begin to differ. They are not equal.
pub(super) fn level_of_difference(one: u64, other: u64) -> u32 {
    (one ^ other).checked_ilog2().unwrap_or(0).wrapping_div(DIGIT_BITS)
}

/// The bit of a digit in a bitmap.
pub(super) fn bit(digit: u32) -> u64 {
    1u64.wrapping_shl(digit)
}

/// The bits of all lower digits.
pub(super) fn below(digit: u32) -> u64 {
    bit(digit).wrapping_sub(1)
}

/// The digits of a bitmap, in order.
pub(super) fn digits(mut bitmap: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let lowest = (bitmap != 0).then(|| bitmap.trailing_zeros())?;
        bitmap &= bitmap.wrapping_sub(1);
        Some(lowest)
    })
}

/// Whether a table holds values or nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A leaf: mappings.
    Values,
    /// An inner node: nodes.
    Nodes,
}

/// A leaf or an inner node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its first word.
    pub at: u32,
    /// Leaf or inner.
    pub holds: Holds,
    /// Full or packed.
    pub full: bool,
}

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Nothing.
    None,
    /// One mapping, from this word.
    Lone(u32),
    /// More than one.
    Table(Table),
}

/// A node as its parent, or the root, holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef(pub u32);

const AT_MASK: u32 = (1 << 28) - 1;
const LONE: u32 = 1 << 28;
const TABLE: u32 = 1 << 29;
const INNER: u32 = 1 << 28;
const FULL: u32 = 1 << 30;
const SKIPS: u32 = 1 << 31;

impl NodeRef {
    pub(super) const NONE: NodeRef = NodeRef(0);

    pub(super) fn lone(at: u32) -> NodeRef {
        NodeRef(LONE | at)
    }

    /// `skips`: the level of the table is not the one next below its parent's, or it has no parent.
    pub(super) fn table(table: Table, skips: bool) -> NodeRef {
        let inner = if table.holds == Holds::Nodes { INNER } else { 0 };
        let full = if table.full { FULL } else { 0 };
        let skips = if skips { SKIPS } else { 0 };
        NodeRef(TABLE | inner | full | skips | table.at)
    }

    pub(super) fn node(self) -> Node {
        let at = self.0 & AT_MASK;
        if self.0 & TABLE != 0 {
            let holds = if self.0 & INNER != 0 { Holds::Nodes } else { Holds::Values };
            return Node::Table(Table { at, holds, full: self.0 & FULL != 0 });
        }
        if self.0 & LONE != 0 { Node::Lone(at) } else { Node::None }
    }

    /// Whether its head has to be compared with the key.
    pub(super) fn skips(self) -> bool {
        self.0 & SKIPS != 0
    }
}

/// The first word of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head(pub u64);

impl Head {
    pub(super) fn new(prefix: u64, level: u32) -> Head {
        Head(prefix | u64::from(level).wrapping_shl(KEY_BITS))
    }

    pub(super) fn prefix(self) -> u64 {
        self.0 & 1u64.wrapping_shl(KEY_BITS).wrapping_sub(1)
    }

    pub(super) fn level(self) -> u32 {
        self.0.wrapping_shr(KEY_BITS) as u32
    }
}

impl Table {
    /// The shape in which a table of `count` items is made.
    pub(super) fn shape(holds: Holds, count: u32) -> Table {
        // From here on a full one is not much larger, and takes an item in place.
        let full_from = match holds {
            Holds::Values => 44,
            Holds::Nodes => 32,
        };
        Table { at: 0, holds, full: count >= full_from }
    }

    /// Whether a full table of so few items is to be packed. Well below where it was made full, lest one
    /// item that comes and goes have it copied each time.
    pub(super) fn is_too_empty(self, count: u32) -> bool {
        match self.holds {
            Holds::Values => count < 28,
            Holds::Nodes => count < 20,
        }
    }

    /// Words of the table with `count` items.
    pub(super) fn words(self, count: u32) -> u32 {
        let places = if self.full { 64 } else { count };
        ITEMS.wrapping_add(match self.holds {
            Holds::Values => places,
            Holds::Nodes => places.div_ceil(2),
        })
    }

    /// The item of `digit`, which the bitmap has; 0 when it went meanwhile.
    pub(super) fn item(self, words: Words<'_>, bitmap: u64, digit: u32) -> Result<u64, Torn> {
        let place = self.place(bitmap, digit);
        match self.holds {
            Holds::Values => words.load(ITEMS.wrapping_add(place)),
            Holds::Nodes => {
                let pair = words.load(ITEMS.wrapping_add(place / 2))?;
                Ok(pair.wrapping_shr((place & 1).wrapping_mul(32)) & u64::from(u32::MAX))
            }
        }
    }

    /// The node of `digit`, which the bitmap has.
    pub(super) fn child(self, words: Words<'_>, bitmap: u64, digit: u32) -> Result<NodeRef, Torn> {
        self.item(words, bitmap, digit).map(|item| NodeRef(item as u32))
    }

    /// Replaces the item of `digit`. For the one writer: the other half of the word is read and written back.
    pub(super) fn set_item(self, words: Words<'_>, bitmap: u64, digit: u32, item: u64) {
        let place = self.place(bitmap, digit);
        match self.holds {
            Holds::Values => words.store(ITEMS.wrapping_add(place), item, Ordering::Release),
            Holds::Nodes => {
                let at = ITEMS.wrapping_add(place / 2);
                let shift = (place & 1).wrapping_mul(32);
                let others = words.load(at).unwrap_or(0) & !u64::from(u32::MAX).wrapping_shl(shift);
                words.store(at, others | item.wrapping_shl(shift), Ordering::Release);
            }
        }
    }

    fn place(self, bitmap: u64, digit: u32) -> u32 {
        if self.full { digit } else { (bitmap & below(digit)).count_ones() }
    }
}
