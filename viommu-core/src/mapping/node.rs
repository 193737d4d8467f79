// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the tree lies in words: references, nodes, keys.
//!
//! A key is an IOVA in granules, of at most 52 bits, and the tree is a radix tree over its 6-bit digits. A **lone**
//! node is one mapping. A **leaf** holds mappings whose keys differ in the lowest digit only, an **inner** node holds
//! nodes whose keys differ in one digit, which all share what is above, and in those below it.
//!
//! | node  | words                                                                          |
//! |-------|--------------------------------------------------------------------------------|
//! | lone  | the key and the words of a mapping                                             |
//! | leaf  | head, bitmap, one word an item: a short mapping, or where the words of a long one are |
//! | inner | head, bitmap, half a word an item: the reference of a node                     |
//!
//! The head is the part of the key that all items share, and where the digit is in which they differ. A **full** leaf
//! or inner node has a place for each of the 64 digits, and its bitmap says which of them have an item. A **packed** one
//! has places only for the digits in its bitmap, in order, and its head counts those that have an item. A place without
//! an item is zero. Items come, go and are replaced in place where there is a place, and with them the bitmap of a full
//! node or the count of a packed one; everything else of a node never changes while the node is in the tree.

use core::sync::atomic::Ordering;

use super::arena::{Arena, Torn, Words};

/// Bits of a digit.
const DIGIT_BITS: u32 = 6;
/// Bits of a key.
pub(super) const KEY_BITS: u32 = 52;
/// Where the count of items begins in a head.
const COUNT_SHIFT: u32 = KEY_BITS + 6;
/// Digits of a key: a way down passes no more nodes.
pub(super) const DIGITS: usize = 9;
/// Where the digit of an inner node just above leaves begins.
pub(super) const ABOVE_LEAVES: u32 = DIGIT_BITS;
/// The bitmap's place in a table.
pub(super) const BITMAP: u32 = 1;
/// Words before the items.
const ITEMS: u32 = 2;
/// Words of the largest node.
pub(super) const NODE_WORDS_MAX: u32 = ITEMS + 64;
/// The bits of half a word.
const HALF: u64 = u32::MAX as u64;

/// The digit of `key` that begins at bit `shift`.
#[inline]
pub(super) fn digit(key: u64, shift: u32) -> u32 {
    (key.wrapping_shr(shift) & 63) as u32
}

/// The part of `key` above the digit at `shift`.
#[inline]
pub(super) fn prefix(key: u64, shift: u32) -> u64 {
    key & !below_prefix(shift)
}

/// The bits of a key up to the digit at `shift`.
#[inline]
pub(super) fn below_prefix(shift: u32) -> u64 {
    1u64.wrapping_shl(shift.wrapping_add(DIGIT_BITS)).wrapping_sub(1)
}

/// The bit at which the highest digit begins in which two keys differ. They are not equal.
pub(super) fn shift_of_difference(one: u64, other: u64) -> u32 {
    let bit = (one ^ other).checked_ilog2().unwrap_or(0);
    bit.wrapping_sub(bit.wrapping_rem(DIGIT_BITS))
}

/// The bit at which the next lower digit begins.
#[inline]
pub(super) fn next_lower(shift: u32) -> u32 {
    shift.wrapping_sub(DIGIT_BITS)
}

/// The bit at which the next higher digit begins.
#[inline]
pub(super) fn next_higher(shift: u32) -> u32 {
    shift.wrapping_add(DIGIT_BITS)
}

/// The bit of a digit in a bitmap.
#[inline]
pub(super) fn bit(digit: u32) -> u64 {
    1u64.wrapping_shl(digit)
}

/// The bits of all lower digits.
#[inline]
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

/// A node as its parent, or the root, refers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef(pub u32);

/// What a reference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// Nothing.
    None,
    /// One mapping, from this word.
    Lone(u32),
    /// A leaf.
    Leaf(Table),
    /// An inner node.
    Inner(Table),
}

const AT_MASK: u32 = (1 << 28) - 1;
const FULL: u32 = 1 << 28;
const LONE: u32 = 1 << 28;
const LEAF: u32 = 1 << 29;
const INNER: u32 = 1 << 30;
const SKIPS: u32 = 1 << 31;

impl NodeRef {
    pub(super) const NONE: NodeRef = NodeRef(0);

    pub(super) fn lone(at: u32) -> NodeRef {
        NodeRef(LONE | at)
    }

    /// A full inner node next below its parent.
    #[inline]
    pub(super) fn plain(at: u32) -> NodeRef {
        NodeRef(INNER | FULL | at & AT_MASK)
    }

    /// The first word of a node.
    #[inline]
    pub(super) fn at(self) -> u32 {
        self.0 & AT_MASK
    }

    /// What it leads to.
    #[inline]
    pub(super) fn node(self) -> Node {
        match self.0 & (INNER | LEAF) {
            0 if self.0 & LONE != 0 => Node::Lone(self.0 & AT_MASK),
            0 => Node::None,
            LEAF => Node::Leaf(Table(self.0)),
            _ => Node::Inner(Table(self.0)),
        }
    }

    /// Whether it is an inner node with a place for every digit, next below its parent: where many are mapped,
    /// most nodes on the way down are.
    #[inline]
    pub(super) fn is_plain(self) -> bool {
        self.0 & !AT_MASK == INNER | FULL
    }

    /// Whether its head has to be compared with the key: digits are left out between it and its parent.
    #[inline]
    pub(super) fn skips(self) -> bool {
        self.0 & SKIPS != 0
    }
}

/// The first word of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head(pub u64);

impl Head {
    pub(super) fn new(prefix: u64, shift: u32) -> Head {
        Head(prefix | u64::from(shift).wrapping_shl(KEY_BITS))
    }

    /// The same for a packed table of so many items; what it says of a full one means nothing.
    pub(super) fn counting(self, count: u32) -> Head {
        let others = self.0 & 1u64.wrapping_shl(COUNT_SHIFT).wrapping_sub(1);
        Head(others | u64::from(count).wrapping_shl(COUNT_SHIFT))
    }

    /// How many items a packed table has.
    pub(super) fn count(self) -> u32 {
        self.0.wrapping_shr(COUNT_SHIFT) as u32
    }

    /// What the keys of all items begin with.
    #[inline]
    pub(super) fn prefix(self) -> u64 {
        self.0 & 1u64.wrapping_shl(KEY_BITS).wrapping_sub(1)
    }

    /// Where the digit begins in which the keys of the items differ.
    #[inline]
    pub(super) fn shift(self) -> u32 {
        self.0.wrapping_shr(KEY_BITS) as u32 & 63
    }
}

/// A leaf or an inner node, by its reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table(u32);

/// Whether a table holds values or nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// A leaf: values.
    Values,
    /// An inner node: references.
    Nodes,
}

impl Table {
    /// The shape in which a table of `count` items is made; it has no place yet.
    pub(super) fn shape(holds: Holds, count: u32) -> Table {
        let kind = match holds {
            Holds::Values => LEAF,
            Holds::Nodes => INNER,
        };
        // From here on a full one is not much larger, and takes an item in place.
        Table(if count >= 24 { kind | FULL } else { kind })
    }

    /// A leaf by a part of its reference, or `None` for 0.
    #[inline]
    pub(super) fn leaf(part: u32) -> Option<Table> {
        (part != 0).then_some(Table(LEAF | part & (FULL | AT_MASK)))
    }

    /// What [`Table::leaf`] takes.
    #[inline]
    pub(super) fn part(self) -> u32 {
        self.0 & (FULL | AT_MASK)
    }

    /// The same table from word `at` on.
    pub(super) fn placed(self, at: u32) -> Table {
        Table(self.0 & !AT_MASK | at)
    }

    pub(super) fn reference(self, skips: bool) -> NodeRef {
        NodeRef(self.0 & !SKIPS | if skips { SKIPS } else { 0 })
    }

    /// Its first word.
    #[inline]
    pub(super) fn at(self) -> u32 {
        self.0 & AT_MASK
    }

    #[inline]
    pub(super) fn holds(self) -> Holds {
        if self.0 & INNER != 0 { Holds::Nodes } else { Holds::Values }
    }

    #[inline]
    pub(super) fn is_full(self) -> bool {
        self.0 & FULL != 0
    }

    /// Whether so few items are to have a table of their size. For a full one that is well below where it was made
    /// full, lest one item that comes and goes have it copied each time; a packed one has less than half its `places`
    /// vacant.
    pub(super) fn is_too_empty(self, places: u32, count: u32) -> bool {
        match self.holds() {
            _ if !self.is_full() => count <= places / 2,
            Holds::Values => count < 14,
            Holds::Nodes => count < 16,
        }
    }

    /// Words of the table with `count` items. Leaves have sizes in common, so that one that grows finds room where
    /// others have grown before.
    pub(super) fn words(self, count: u32) -> u32 {
        match (self.holds(), self.is_full()) {
            (Holds::Nodes, true) => ITEMS.wrapping_add(32),
            (Holds::Nodes, false) => ITEMS.wrapping_add(count.div_ceil(2)),
            (Holds::Values, true) => NODE_WORDS_MAX,
            (Holds::Values, false) => match ITEMS.wrapping_add(count) {
                words if words < 16 => words.next_multiple_of(2),
                words => words.next_multiple_of(4),
            },
        }
    }

    #[inline]
    pub(super) fn head(self, arena: &Arena) -> Result<Head, Torn> {
        arena.load(self.at()).map(Head)
    }

    #[inline]
    pub(super) fn bitmap(self, arena: &Arena) -> Result<u64, Torn> {
        arena.load(self.at().wrapping_add(1))
    }

    /// Its words, and those after them.
    #[inline]
    pub(super) fn words_in(self, arena: &Arena) -> Result<Words<'_>, Torn> {
        arena.words(self.at())
    }

    /// The item of `digit`, or 0.
    #[inline]
    pub(super) fn item(self, words: Words<'_>, digit: u32) -> Result<u64, Torn> {
        self.place(words, digit)?.map_or(Ok(0), |place| self.item_at(words, place))
    }

    /// The node of `digit` below a plain one.
    #[inline]
    pub(super) fn plain_child(node: NodeRef, arena: &Arena, digit: u32) -> Result<NodeRef, Torn> {
        let at = (node.0 & AT_MASK).wrapping_add(ITEMS).wrapping_add(digit / 2);
        let pair = arena.load(at)?;
        Ok(NodeRef(pair.wrapping_shr((digit & 1).wrapping_mul(32)) as u32))
    }

    /// The item of the highest digit in `wanted` that there is: the digit and the item.
    #[inline]
    pub(super) fn highest_item(self, words: Words<'_>, wanted: u64) -> Result<Option<(u32, u64)>, Torn> {
        let bitmap = words.load(BITMAP)?;
        let mut left = bitmap & wanted;
        while let Some(digit) = left.checked_ilog2() {
            let item = self.item_at(words, self.place_among(bitmap, digit))?;
            if item != 0 {
                return Ok(Some((digit, item)));
            }
            left &= below(digit);
        }
        Ok(None)
    }

    /// The item at a place, which is its digit in a full table and its rank in a packed one.
    #[inline]
    pub(super) fn item_at(self, words: Words<'_>, place: u32) -> Result<u64, Torn> {
        match self.holds() {
            Holds::Values => words.load(ITEMS.wrapping_add(place)),
            Holds::Nodes => {
                let pair = words.load(ITEMS.wrapping_add(place / 2))?;
                Ok(pair.wrapping_shr((place & 1).wrapping_mul(32)) & HALF)
            }
        }
    }

    /// Replaces the item of `digit`, for which there is a place, of a table at the beginning of `words`.
    pub(super) fn set_item(self, words: Words<'_>, digit: u32, item: u64) {
        if let Ok(Some(place)) = self.place(words, digit) {
            self.set_item_at(words, place, item, Ordering::Release);
        }
    }

    /// Replaces the item at a place. For the one writer: the other half of the word is read and written back.
    #[inline]
    pub(super) fn set_item_at(self, words: Words<'_>, place: u32, item: u64, order: Ordering) {
        match self.holds() {
            Holds::Values => words.store(ITEMS.wrapping_add(place), item, order),
            Holds::Nodes => {
                let at = ITEMS.wrapping_add(place / 2);
                let shift = (place & 1).wrapping_mul(32);
                let other = words.load(at).unwrap_or(0) & !HALF.wrapping_shl(shift);
                words.store(at, other | item.wrapping_shl(shift), order);
            }
        }
    }

    /// Takes note that the items of the digits in `gone`, which the table has, are about to go, if it stays as it is
    /// without them; says whether it does.
    #[inline]
    pub(super) fn try_count_out(self, words: Words<'_>, gone: u64) -> bool {
        let bitmap = words.load(BITMAP).unwrap_or(0);
        if self.is_full() {
            let left = bitmap & !gone;
            let stays = !self.is_too_empty(64, left.count_ones());
            if stays {
                words.store(BITMAP, left, Ordering::Release);
            }
            return stays;
        }
        let head = words.load(0).map_or(Head(0), Head);
        let count = head.count().wrapping_sub(gone.count_ones());
        let stays = !self.is_too_empty(bitmap.count_ones(), count);
        if stays {
            words.store(0, head.counting(count).0, Ordering::Release);
        }
        stays
    }

    /// Adds an item where there is a place for it; says whether there is.
    #[inline]
    pub(super) fn try_add_in_place(self, words: Words<'_>, added: u32, item: u64) -> bool {
        let Ok(Some(place)) = self.place(words, added) else { return false };
        self.set_item_at(words, place, item, Ordering::Release);
        if self.is_full() {
            // A reader that sees the bit finds the item.
            let bitmap = words.load(BITMAP).unwrap_or(0) | bit(added);
            words.store(BITMAP, bitmap, Ordering::Release);
        } else {
            let head = words.load(0).map_or(Head(0), Head);
            words.store(0, head.counting(head.count().wrapping_add(1)).0, Ordering::Release);
        }
        true
    }

    /// The digits of the bitmap in order, each after its place.
    #[inline]
    pub(super) fn places(self, bitmap: u64) -> impl Iterator<Item = (u32, u32)> {
        (0u32..)
            .zip(digits(bitmap))
            .map(move |(rank, digit)| (if self.is_full() { digit } else { rank }, digit))
    }

    /// Where the item of `digit` is, if there is a place for it.
    #[inline]
    pub(super) fn place(self, words: Words<'_>, digit: u32) -> Result<Option<u32>, Torn> {
        if self.is_full() {
            return Ok(Some(digit));
        }
        let bitmap = words.load(BITMAP)?;
        Ok((bitmap & bit(digit) != 0).then(|| self.place_among(bitmap, digit)))
    }

    /// Where the item of `digit` is, which the bitmap has.
    #[inline]
    fn place_among(self, bitmap: u64, digit: u32) -> u32 {
        if self.is_full() { digit } else { (bitmap & below(digit)).count_ones() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_made_full_at_one_count_and_packed_again_well_below_it() {
        for holds in [Holds::Values, Holds::Nodes] {
            let full = Table::shape(holds, 64);
            let full_from = (1..=64).find(|count| Table::shape(holds, *count).is_full());
            let packed_below = (1..=64).find(|count| !full.is_too_empty(64, *count));
            let (full_from, packed_below) =
                (full_from.expect("it is full"), packed_below.expect("it is kept"));
            assert!(packed_below + 8 <= full_from && packed_below > 8, "{packed_below} and {full_from}");
            assert!((full_from..=64).all(|count| Table::shape(holds, count).is_full()));
            assert!((packed_below..=64).all(|count| !full.is_too_empty(64, count)));
        }
    }

    #[test]
    fn a_packed_table_keeps_its_places_as_long_as_more_than_half_have_an_item() {
        for holds in [Holds::Values, Holds::Nodes] {
            for places in 2..=20 {
                let packed = Table::shape(holds, places);
                for count in 0..=places {
                    assert_eq!(
                        packed.is_too_empty(places, count),
                        count * 2 <= places,
                        "{count} in {places}"
                    );
                }
            }
        }
    }
}
