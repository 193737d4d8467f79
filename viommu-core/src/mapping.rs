// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mappings of one domain: disjoint inclusive ranges that keep their boundaries.
//!
//! A mapping is what one MAP created; nothing here splits or merges. Knows no rule about granules,
//! limits or reserved regions.

use alloc::collections::BTreeMap;

use crate::{IovaRange, Target};

/// One mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The IOVAs.
    pub range: IovaRange,
    /// Where they lead.
    pub target: Target,
}

/// A removal would cut through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WouldSplit;

/// Mappings by their first IOVA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mappings {
    by_start: BTreeMap<u64, (u64, Target)>,
}

impl Mappings {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.by_start.len()
    }

    /// The mapping that holds `iova`.
    pub fn find(&self, iova: u64) -> Option<Mapping> {
        self.last_from(iova).filter(|mapping| mapping.range.contains(iova))
    }

    /// Whether any mapping shares a byte with `range`.
    pub fn overlaps(&self, range: &IovaRange) -> bool {
        self.last_from(range.last()).is_some_and(|mapping| mapping.range.overlaps(range))
    }

    /// Adds a mapping, which must overlap no other.
    pub fn insert(&mut self, mapping: Mapping) {
        debug_assert!(!self.overlaps(&mapping.range));
        self.by_start.insert(mapping.range.start(), (mapping.range.last(), mapping.target));
    }

    /// How many mappings lie within `range`.
    ///
    /// # Errors
    /// [`WouldSplit`] when a mapping lies only partly within it.
    pub fn count_within(&self, range: &IovaRange) -> Result<usize, WouldSplit> {
        let cut_at = |iova: u64, edge: fn(&IovaRange) -> u64| {
            self.find(iova).is_some_and(|mapping| edge(&mapping.range) != iova)
        };
        if cut_at(range.start(), IovaRange::start) || cut_at(range.last(), IovaRange::last) {
            return Err(WouldSplit);
        }
        Ok(self.by_start.range(range.start()..=range.last()).count())
    }

    /// Removes the mappings that begin in `range`; says how many.
    pub fn remove_within(&mut self, range: &IovaRange) -> usize {
        self.by_start.extract_if(range.start()..=range.last(), |_, _| true).count()
    }

    /// All mappings in order of IOVA.
    pub fn iter(&self) -> impl Iterator<Item = Mapping> {
        self.by_start.iter().filter_map(|(start, (last, target))| mapping(*start, *last, *target))
    }

    /// The last mapping that begins at or before `iova`.
    fn last_from(&self, iova: u64) -> Option<Mapping> {
        let (start, (last, target)) = self.by_start.range(..=iova).next_back()?;
        mapping(*start, *last, *target)
    }
}

fn mapping(start: u64, last: u64, target: Target) -> Option<Mapping> {
    IovaRange::new(start, last).map(|range| Mapping { range, target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Gpa};

    fn range(start: u64, last: u64) -> IovaRange {
        IovaRange::new(start, last).expect("start <= last")
    }

    fn with(ranges: &[(u64, u64)]) -> Mappings {
        let mut mappings = Mappings::default();
        for (start, last) in ranges {
            let target =
                Target { gpa: Gpa(start.wrapping_add(0x1000_0000)), access: Access::READ, mmio: false };
            mappings.insert(Mapping { range: range(*start, *last), target });
        }
        mappings
    }

    #[test]
    fn the_examples_of_the_specification_for_unmap_hold() {
        // What is mapped, what is unmapped, how many go (None: it would split).
        type Example<'a> = (&'a [(u64, u64)], (u64, u64), Option<usize>);
        let examples: [Example; 7] = [
            (&[], (0, 4), Some(0)),
            (&[(0, 9)], (0, 9), Some(1)),
            (&[(0, 4), (5, 9)], (0, 9), Some(2)),
            (&[(0, 9)], (0, 4), None),
            (&[(0, 4), (5, 9)], (0, 4), Some(1)),
            (&[(0, 4)], (0, 9), Some(1)),
            (&[(0, 4), (10, 14)], (0, 14), Some(2)),
        ];
        for (mapped, (start, last), removed) in examples {
            let mut mappings = with(mapped);
            let within = mappings.count_within(&range(start, last));
            assert_eq!(within.ok(), removed, "{mapped:?} less {start}-{last}");
            if let Some(removed) = removed {
                assert_eq!(mappings.remove_within(&range(start, last)), removed);
                assert_eq!(mappings.count(), mapped.len() - removed);
            }
        }
    }

    #[test]
    fn the_last_byte_of_the_space_can_be_mapped_and_removed() {
        let mut mappings = with(&[(u64::MAX - 0xfff, u64::MAX)]);
        assert!(mappings.overlaps(&range(u64::MAX, u64::MAX)));
        assert_eq!(mappings.count_within(&range(0, u64::MAX - 1)), Err(WouldSplit));
        assert_eq!(mappings.count_within(&IovaRange::ALL), Ok(1));
        assert_eq!(mappings.remove_within(&IovaRange::ALL), 1);
        assert_eq!(mappings.count(), 0);
    }

    #[test]
    fn a_lookup_finds_the_mapping_around_an_address_and_nothing_in_a_hole() {
        let mappings = with(&[(0x1000, 0x1fff), (0x4000, 0x7fff)]);
        assert_eq!(
            mappings.find(0x5123).map(|m| (m.range, m.target.gpa)),
            Some((range(0x4000, 0x7fff), Gpa(0x1000_4000)))
        );
        assert_eq!(mappings.find(0x2000), None);
        assert_eq!(mappings.find(0xfff), None);
        assert_eq!(mappings.iter().count(), 2);
    }
}
