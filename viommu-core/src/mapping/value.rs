// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mapping as the tree has it: the key of its first granule, one word for a short mapping, two for a long one.
//!
//! | bits of the word | hold                                             |
//! |------------------|--------------------------------------------------|
//! | 63..55           | granules, 1 to 511; 0 for a mapping of more      |
//! | 54..52           | MMIO, WRITE, READ                                |
//! | 51..0            | GPA in granules                                  |
//!
//! The second word of a long mapping is its granules less one. Where a single word stands for a long mapping, it is
//! the number of the first of the two, below any word of a short one.

use crate::{Access, Gpa, Granule, IovaRange, Mapping, Target};

use super::arena::{Arena, Torn};
use super::node::KEY_BITS;

/// Words of a long mapping besides its key.
pub(super) const LONG_WORDS: u32 = 2;

const GRANULES_SHIFT: u32 = 55;
const SHORT_MAX: u64 = 511;
const MMIO: u64 = 4 << KEY_BITS;
// READ and WRITE stand in the bits below, as they are on the wire.
const _: () = assert!(Access::all().bits() == 3);
const GPA_MASK: u64 = (1 << KEY_BITS) - 1;

/// A mapping in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The number of the first granule.
    pub key: u64,
    /// The first word.
    pub word: u64,
    /// The second, or 0.
    pub more: u64,
}

/// Whether this is the first word of a long mapping, or stands for one.
#[inline]
pub(super) fn is_long(word: u64) -> bool {
    word.wrapping_shr(GRANULES_SHIFT) == 0
}

impl Entry {
    /// The entry of a mapping that begins and ends on the granule.
    #[inline]
    pub(super) fn packed(granule: Granule, mapping: &Mapping) -> Entry {
        let key = granule.number_of(mapping.range.start());
        let Target { gpa, access, mmio } = mapping.target;
        let flags = u64::from(access.bits()).wrapping_shl(KEY_BITS) | if mmio { MMIO } else { 0 };
        let target = granule.number_of(gpa.0) | flags;
        let more = granule.number_of(mapping.range.span());
        if more < SHORT_MAX {
            Entry { key, word: more.wrapping_add(1).wrapping_shl(GRANULES_SHIFT) | target, more: 0 }
        } else {
            Entry { key, word: target, more }
        }
    }

    /// The entry of an item of a leaf.
    #[inline]
    pub(super) fn of_item(arena: &Arena, key: u64, item: u64) -> Result<Entry, Torn> {
        if !is_long(item) {
            return Ok(Entry { key, word: item, more: 0 });
        }
        let at = item as u32;
        Ok(Entry { key, word: arena.load(at)?, more: arena.load(at.wrapping_add(1))? })
    }

    /// The entry of a lone node.
    #[inline]
    pub(super) fn of_lone(arena: &Arena, at: u32) -> Result<Entry, Torn> {
        let (key, word) = (arena.load(at)?, arena.load(at.wrapping_add(1))?);
        let more = if is_long(word) { arena.load(at.wrapping_add(2))? } else { 0 };
        Ok(Entry { key, word, more })
    }

    /// Words of a lone node for it.
    pub(super) fn lone_words(&self) -> u32 {
        if is_long(self.word) { 3 } else { 2 }
    }

    /// The number of the last granule.
    #[inline]
    pub(super) fn last_key(&self) -> u64 {
        let granules = self.word.wrapping_shr(GRANULES_SHIFT);
        let more = if granules == 0 { self.more } else { granules.wrapping_sub(1) };
        self.key.wrapping_add(more)
    }

    /// The mapping of the entry.
    #[inline]
    pub(super) fn unpacked(&self, granule: Granule) -> Result<Mapping, Torn> {
        let start = granule.start_of(self.key);
        let last = granule.last_of(self.last_key());
        let access = Access::from_bits_truncate(self.word.wrapping_shr(KEY_BITS) as u32);
        let gpa = Gpa(granule.start_of(self.word & GPA_MASK));
        let target = Target { gpa, access, mmio: self.word & MMIO != 0 };
        Ok(Mapping { range: IovaRange::new(start, last).ok_or(Torn)?, target })
    }
}
