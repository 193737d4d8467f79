// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mapping in words: the key of its first granule and one word for the rest.
//!
//! | bits   | of a short mapping      | of a long one                                            |
//! |--------|-------------------------|----------------------------------------------------------|
//! | 63..55 | granules, 1 to 511      | 0                                                        |
//! | 54..52 | MMIO, WRITE, READ       | 0                                                        |
//! | 51..0  | GPA in granules         | where two more words are: bits 54..0 as of a short one, granules less one |
//!
//! The word is never 0.

use core::sync::atomic::Ordering;

use crate::{Access, Gpa, Granule, IovaRange, Mapping, Target};

use super::arena::{Arena, Torn};
use super::find::Entry;
use super::node::KEY_BITS;
use super::tree::Tree;

/// Further words of a long mapping.
pub(super) const REST_WORDS: u32 = 2;

const GRANULES_SHIFT: u32 = 55;
const SHORT_MAX: u64 = 511;
const MMIO: u64 = 4 << KEY_BITS;
// READ and WRITE stand in the bits below, as they are on the wire.
const _: () = assert!(Access::all().bits() == 3);
const GPA_MASK: u64 = (1 << KEY_BITS) - 1;
const TARGET_MASK: u64 = (1 << GRANULES_SHIFT) - 1;

/// Where the further words of a long mapping are.
#[inline]
pub(super) fn rest_of_long(value: u64) -> Option<u32> {
    (value.wrapping_shr(GRANULES_SHIFT) == 0).then_some(value as u32)
}

/// The entry of a mapping that begins and ends on the granule.
pub(super) fn packed(tree: &mut Tree, granule: Granule, mapping: &Mapping) -> Entry {
    let key = granule.number_of(mapping.range.start());
    let more = granule.number_of(mapping.range.span());
    let target = packed_target(granule, &mapping.target);
    let granules = more.saturating_add(1);
    if granules <= SHORT_MAX {
        return Entry { key, value: granules.wrapping_shl(GRANULES_SHIFT) | target };
    }
    let at = tree.space.take(REST_WORDS, &tree.shared);
    let words = tree.space.words(at);
    words.store(0, target, Ordering::Relaxed);
    words.store(1, more, Ordering::Relaxed);
    Entry { key, value: at.into() }
}

/// The mapping of an entry.
#[inline]
pub(super) fn unpacked(arena: &Arena, granule: Granule, entry: Entry) -> Result<Mapping, Torn> {
    let (target, more) = match rest_of_long(entry.value) {
        None => (entry.value & TARGET_MASK, entry.value.wrapping_shr(GRANULES_SHIFT).wrapping_sub(1)),
        Some(at) => (arena.load(at)?, arena.load(at.wrapping_add(1))?),
    };
    let start = granule.start_of(entry.key);
    let last = granule.last_of(entry.key.wrapping_add(more));
    let range = IovaRange::new(start, last).ok_or(Torn)?;
    Ok(Mapping { range, target: unpacked_target(granule, target) })
}

fn packed_target(granule: Granule, target: &Target) -> u64 {
    let mmio = if target.mmio { MMIO } else { 0 };
    granule.number_of(target.gpa.0) | u64::from(target.access.bits()).wrapping_shl(KEY_BITS) | mmio
}

#[inline]
fn unpacked_target(granule: Granule, target: u64) -> Target {
    let access = Access::from_bits_truncate(target.wrapping_shr(KEY_BITS) as u32);
    Target { gpa: Gpa(granule.start_of(target & GPA_MASK)), access, mmio: target & MMIO != 0 }
}
