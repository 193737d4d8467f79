// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The mappings of one domain: disjoint inclusive ranges that keep their boundaries.
//!
//! A mapping is what one MAP created; nothing here splits or merges. Knows no limit and no reserved region.
//!
//! # How they are kept
//!
//! In a radix tree with 64 branches a node, by the number of their first granule, one entry each whatever their
//! size. The mapping of an address is the last that begins at or before it, if it reaches that far. A node exists where
//! keys differ and nowhere else, and has room for the items it has, or for all 64 when they are many:
//!
//! | pattern of mappings                   | bytes each, about |
//! |---------------------------------------|-------------------|
//! | one granule each, without gaps        | 9                 |
//! | one granule in 16                     | 14                |
//! | one granule in 64                     | 22                |
//! | of up to 511 granules, the worst      | 53                |
//! | longer, the worst                     | 61                |
//!
//! What takes less may come to 18, and a small domain to twice this, with words that are not used again yet.
//!
//! Finding, adding or removing one takes a few steps down, and in a dense tree a shortcut takes most of them at once:
//! what is short is found with one look at the shortcuts, one at an inner node and one at its own word. A change goes
//! straight to the leaf in which it was checked, and most often stores two words there.
//! Removing many takes time by the nodes that go. When an eighth of the memory is wasted, and a mapping takes more
//! than 16 bytes with it, the tree moves to memory of its own size, in time proportional to it, and the change waits:
//! mostly a removal, but also an addition, where many small nodes grow in turn. Spread over the changes that lead there,
//! that is at most eight times the words of the nodes they replaced, and less in a domain of some thousands, which may
//! waste more.
//!
//! # Who may look
//!
//! One thread changes a [`Mappings`]; any number find in it through a [`Reader`] each, which explains how they
//! synchronise. It is the one place of this crate where threads meet.
//!
//! ```
//! use viommu_core::mapping::{Mapping, Mappings};
//! use viommu_core::{Access, Gpa, Granule, IovaRange, Target};
//!
//! let range = |start, last| IovaRange::new(start, last).expect("start <= last");
//! let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
//! let target = Target { gpa: Gpa(0x8000_0000), access: Access::READ, mmio: false };
//! mappings.insert(Mapping { range: range(0x4000, 0x7fff), target });
//!
//! let mut reader = mappings.reader();
//! let found = std::thread::spawn(move || reader.find(0x5123)).join().expect("it finds");
//! assert_eq!(found.map(|mapping| mapping.range), Some(range(0x4000, 0x7fff)));
//!
//! assert!(mappings.any_within(&range(0x4000, 0x4fff)).is_err(), "it would be split");
//! assert_eq!(mappings.remove_within(&range(0, 0xffff)), 1);
//! ```

mod arena;
mod copy;
mod find;
mod insert;
#[cfg(all(test, shuttle))]
mod interleavings;
mod iter;
mod node;
mod reader;
mod remove;
mod shortcuts;
mod space;
mod sync;
mod tree;
mod value;

use core::fmt;

use crate::{Granule, IovaRange, Target};

use arena::Shared;
use remove::Keys;
use space::Space;
use tree::Tree;
use value::Entry;

pub use reader::Reader;

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

/// Disjoint mappings in order.
pub struct Mappings {
    granule: Granule,
    tree: Tree,
    count: usize,
}

/// Bytes besides the tree.
const FIXED_BYTES: usize = size_of::<Mappings>() + size_of::<Shared>() + 2 * size_of::<usize>();

impl Mappings {
    /// The most bytes by which one insertion makes [`bytes_max`](Mappings::bytes_max) grow.
    pub const GROWTH_MAX: usize = space::INSERTION_BYTES_MAX;
    /// [`bytes_max`](Mappings::bytes_max) of no mappings.
    pub const EMPTY_BYTES_MAX: usize = FIXED_BYTES + Space::bytes_max(1, 0);
    /// The most bytes that the mappings of one domain may take: there are no more numbers for words.
    pub const BYTES_LIMIT: usize = 1 << 30;

    /// No mappings yet. All will begin and end on the granule, of [`Granule::SMALLEST`] bytes or more.
    pub fn new(granule: Granule) -> Mappings {
        debug_assert!(granule.bytes() >= Granule::SMALLEST);
        Mappings { granule, tree: Tree::new(0), count: 0 }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        FIXED_BYTES.saturating_add(self.tree.space.bytes())
    }

    /// The most bytes that such mappings take, whatever was mapped and removed before. Only
    /// [`insert`](Mappings::insert) makes it grow, by [`GROWTH_MAX`](Mappings::GROWTH_MAX) at most.
    pub fn bytes_max(&self) -> usize {
        FIXED_BYTES.saturating_add(Space::bytes_max(self.tree.space.live(), self.count))
    }

    /// The mapping that holds `iova`.
    #[inline]
    pub fn find(&self, iova: u64) -> Option<Mapping> {
        if let Some(mapping) = self.found_at_once(iova) {
            return Some(mapping);
        }
        self.last_from(iova).filter(|mapping| mapping.range.contains(iova))
    }

    /// Whether any mapping shares a byte with `range`.
    #[inline]
    pub fn overlaps(&self, range: &IovaRange) -> bool {
        let (first, last) = (self.granule.number_of(range.start()), self.granule.number_of(range.last()));
        let near = self.tree.leaf_at_once(last).and_then(|leaf| find::short_floor_in(leaf, last));
        let highest = near.or_else(|| self.floor(last));
        highest.is_some_and(|entry| first <= entry.last_key())
    }

    /// Adds a mapping, which must overlap no other.
    #[inline]
    pub fn insert(&mut self, mapping: Mapping) {
        debug_assert!(!self.overlaps(&mapping.range));
        self.tree.insert(Entry::packed(self.granule, &mapping));
        self.count = self.count.saturating_add(1);
        self.tree.settle(self.count);
    }

    /// Whether any mapping lies within `range`.
    ///
    /// # Errors
    /// [`WouldSplit`] when a mapping lies only partly within it.
    #[inline]
    pub fn any_within(&self, range: &IovaRange) -> Result<bool, WouldSplit> {
        // Most often one mapping is to go, of the smallest size.
        let key = self.granule.number_of(range.last());
        let near = self.tree.leaf_at_once(key).and_then(|leaf| find::short_in(leaf, key));
        match near.and_then(|entry| entry.unpacked(self.granule).ok()) {
            Some(mapping) if mapping.range == *range => Ok(true),
            _ => self.any_anywhere_within(range),
        }
    }

    #[inline(never)]
    fn any_anywhere_within(&self, range: &IovaRange) -> Result<bool, WouldSplit> {
        let Some(highest) = self.last_from(range.last()).filter(|mapping| mapping.range.overlaps(range))
        else {
            return Ok(false);
        };
        let lowest =
            if highest.range.start() <= range.start() { Some(highest) } else { self.find(range.start()) };
        let is_cut = |mapping: Mapping| !range.covers(&mapping.range);
        if is_cut(highest) || lowest.is_some_and(is_cut) {
            return Err(WouldSplit);
        }
        Ok(true)
    }

    /// Removes the mappings that begin in `range`; says how many.
    #[inline]
    pub fn remove_within(&mut self, range: &IovaRange) -> usize {
        let first = self.granule.number_of(range.start());
        // A range may begin within a granule, where no mapping begins.
        let first = if self.granule.is_start(range.start()) { first } else { first.saturating_add(1) };
        let last = self.granule.number_of(range.last());
        let removed = self.tree.remove(Keys { first, last });
        self.count = self.count.saturating_sub(removed);
        self.tree.settle(self.count);
        removed
    }

    /// All mappings in order of IOVA.
    pub fn iter(&self) -> impl Iterator<Item = Mapping> {
        let arena = self.tree.space.arena();
        iter::Entries::new(arena).filter_map(|entry| entry.unpacked(self.granule).ok())
    }

    /// A handle that finds mappings from other threads.
    pub fn reader(&self) -> Reader {
        Reader::new(self)
    }

    /// Says at which IOVAs readers find nothing although they are mapped, until the next call.
    pub(crate) fn close(&self, range: Option<IovaRange>) {
        self.tree.shared.closed().set(range);
    }

    /// The mapping whose first granule has `iova`, if a shortcut leads to it: what is looked up or unmapped often is,
    /// what is to be mapped is not there yet.
    #[inline(always)]
    fn found_at_once(&self, iova: u64) -> Option<Mapping> {
        let entry = find::short_at(self.tree.space.arena(), self.granule.number_of(iova))?;
        entry.unpacked(self.granule).ok()
    }

    /// The last mapping that begins at or before `iova`.
    #[inline(never)]
    fn last_from(&self, iova: u64) -> Option<Mapping> {
        self.floor(self.granule.number_of(iova))?.unpacked(self.granule).ok()
    }

    /// The entry of the highest key that is not above `key`.
    fn floor(&self, key: u64) -> Option<Entry> {
        find::floor(self.tree.space.arena(), key).ok()?
    }
}

impl Drop for Mappings {
    fn drop(&mut self) {
        self.tree.hide();
    }
}

/// A snapshot, with readers of its own.
impl Clone for Mappings {
    fn clone(&self) -> Mappings {
        Mappings { granule: self.granule, tree: self.tree.duplicate(), count: self.count }
    }
}

impl PartialEq for Mappings {
    fn eq(&self, other: &Mappings) -> bool {
        self.granule == other.granule && self.iter().eq(other.iter())
    }
}

impl Eq for Mappings {}

impl fmt::Debug for Mappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;

    use super::*;
    use crate::{Access, Gpa};

    const GRANULE: Granule = Granule::of_mask(0x1000).expect("not empty");

    /// Granules `first..=last`.
    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(GRANULE.start_of(first), GRANULE.last_of(last)).expect("first <= last")
    }

    fn mapping(first: u64, last: u64) -> Mapping {
        let target = Target { gpa: Gpa(0x10_0000), access: Access::READ, mmio: false };
        Mapping { range: range(first, last), target }
    }

    fn with(ranges: &[(u64, u64)]) -> Mappings {
        let mut mappings = Mappings::new(GRANULE);
        ranges.iter().for_each(|(first, last)| mappings.insert(mapping(*first, *last)));
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
        for (mapped, (first, last), removed) in examples {
            let mut mappings = with(mapped);
            let any = mappings.any_within(&range(first, last));
            assert_eq!(any.ok(), removed.map(|count| count > 0), "{mapped:?} less {first}-{last}");
            if let Some(removed) = removed {
                assert_eq!(mappings.remove_within(&range(first, last)), removed);
                assert_eq!(mappings.count(), mapped.len() - removed);
            }
        }
    }

    #[test]
    fn a_range_that_ends_within_a_granule_cuts_the_mapping_there() {
        let mut mappings = with(&[(4, 4), (6, 6)]);
        let within = |start, last| IovaRange::new(start, last).expect("start <= last");
        assert_eq!(mappings.any_within(&within(0x4001, 0x4fff)), Err(WouldSplit));
        assert_eq!(mappings.any_within(&within(0x4000, 0x6ffe)), Err(WouldSplit));
        assert_eq!(mappings.any_within(&within(0x3fff, 0x5001)), Ok(true));
        assert_eq!(mappings.remove_within(&within(0x5001, 0x6fff)), 1);
        assert_eq!(mappings, with(&[(4, 4)]));
    }

    #[test]
    fn the_last_byte_of_the_space_can_be_mapped_and_removed() {
        let top = u64::MAX >> 12;
        let mut mappings = with(&[(top, top)]);
        assert!(mappings.overlaps(&IovaRange::new(u64::MAX, u64::MAX).expect("a byte")));
        assert_eq!(mappings.any_within(&IovaRange::new(0, u64::MAX - 1).expect("most")), Err(WouldSplit));
        assert_eq!(mappings.any_within(&IovaRange::ALL), Ok(true));
        assert_eq!(mappings.remove_within(&IovaRange::ALL), 1);
        assert_eq!((mappings.count(), mappings.iter().count()), (0, 0));
    }

    #[test]
    fn all_of_the_space_can_be_one_mapping() {
        let mut mappings = with(&[(0, u64::MAX >> 12)]);
        let all = mappings.find(u64::MAX).map(|mapping| mapping.range);
        assert_eq!(all, Some(IovaRange::ALL));
        assert_eq!(mappings.remove_within(&IovaRange::ALL), 1);
    }

    #[test]
    fn a_lookup_finds_the_mapping_around_an_address_and_nothing_in_a_hole() {
        let mappings = with(&[(1, 1), (4, 7)]);
        let found = mappings.find(0x5123).map(|mapping| (mapping.range, mapping.target.gpa));
        assert_eq!(found, Some((range(4, 7), Gpa(0x10_0000))));
        assert_eq!(mappings.find(0x2000), None);
        assert_eq!(mappings.find(0xfff), None);
        assert_eq!(mappings.iter().count(), 2);
    }

    #[test]
    fn a_mapping_of_any_size_takes_the_same_memory() {
        let empty = with(&[]).bytes();
        for granules in [512, 1 << 18, 1 << 28, 1 << 51] {
            assert!(with(&[(5, 4 + granules)]).bytes() <= empty + 64, "{granules}");
        }
    }

    #[test]
    fn a_reader_finds_nothing_in_a_closed_range_and_nothing_when_the_mappings_are_gone() {
        let mappings = with(&[(0, 0), (1, 1)]);
        let mut reader = mappings.reader();
        mappings.close(Some(range(0, 0)));
        assert_eq!(reader.find(0xfff), None);
        assert_eq!(reader.find(0x1000).map(|mapping| mapping.range), Some(range(1, 1)));
        mappings.close(None);
        assert_eq!(reader.find(0).map(|mapping| mapping.range), Some(range(0, 0)));
        drop(mappings);
        assert_eq!(reader.find(0x1000), None);
    }

    #[test]
    fn a_reader_that_rests_holds_nothing_and_finds_what_is_mapped_then() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        let mut reader = mappings.reader();
        let old = Arc::downgrade(mappings.tree.space.arena());
        mappings.remove_within(&range(1, 20_000));
        assert!(old.upgrade().is_some(), "the reader has not looked since");
        reader.rest();
        assert!(old.upgrade().is_none());
        assert_eq!(reader.find(0x1000), None);
        assert_eq!(reader.find(0).map(|mapping| mapping.range), Some(range(0, 0)));
    }

    #[test]
    fn a_reader_of_a_large_domain_finds_nothing_when_it_is_gone() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        let mut reader = mappings.reader();
        assert_eq!(reader.find(0x432_1123).map(|mapping| mapping.range), Some(range(0x4321, 0x4321)));
        drop(mappings);
        assert_eq!(reader.find(0x432_1123), None);
    }

    #[test]
    fn in_a_dense_tree_what_is_short_is_found_at_once_by_its_first_granule_and_nothing_else_is() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        assert_eq!(mappings.remove_within(&range(0x1010, 0x1012)), 3);
        assert_eq!(mappings.remove_within(&range(0x1020, 0x1500)), 0x4e1);
        mappings.insert(mapping(0x1010, 0x1011));
        mappings.insert(mapping(0x1020, 0x1500));
        let at_once =
            |granule| mappings.found_at_once(GRANULE.start_of(granule)).map(|mapping| mapping.range);
        assert_eq!(
            [0x1000, 0x1fff, 0x2000].map(at_once),
            [0x1000, 0x1fff, 0x2000].map(|one| Some(range(one, one)))
        );
        assert_eq!(at_once(0x1010), Some(range(0x1010, 0x1011)));
        // The second of two, a hole, a long mapping.
        assert_eq!([0x1011, 0x1012, 0x1020, 0x1100].map(at_once), [None; 4]);
    }

    #[test]
    fn a_leaf_that_was_checked_is_not_changed_any_more_when_another_has_taken_its_place() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        assert!(mappings.overlaps(&range(0x1000, 0x1000)));
        assert!(mappings.tree.space.last_leaf().is_some());
        // So few are left of the leaf that a smaller one does.
        assert_eq!(mappings.remove_within(&range(0x1008, 0x103f)), 56);
        assert!(mappings.tree.space.last_leaf().is_none(), "it has left the tree");
        assert_eq!(mappings.remove_within(&range(0x1007, 0x1007)), 1);
        mappings.insert(mapping(0x1007, 0x1007));
        assert_eq!(mappings.find(0x100_7000), Some(mapping(0x1007, 0x1007)));
        assert_eq!(mappings.iter().count(), 20_000 - 56);
    }

    #[test]
    fn a_change_that_follows_no_check_of_its_own_leaf_is_made_in_its_own() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        assert_eq!(mappings.any_within(&range(0x2001, 0x2001)), Ok(true));
        assert_eq!(mappings.remove_within(&range(0x1001, 0x1001)), 1);
        assert_eq!((mappings.find(0x100_1000), mappings.count()), (None, 19_999));
        assert!(mappings.overlaps(&range(0x2001, 0x2001)));
        mappings.insert(mapping(0x1001, 0x1001));
        let found = [0x100_1000, 0x200_1000].map(|iova| mappings.find(iova));
        assert_eq!(found, [0x1001, 0x2001].map(|granule| Some(mapping(granule, granule))));
    }

    #[test]
    fn a_mapping_shares_a_byte_with_the_ranges_that_reach_into_it_and_with_no_other() {
        for few_or_many in [0, 20_000] {
            let mut mappings = Mappings::new(GRANULE);
            (0x2000..0x2000 + few_or_many).for_each(|granule| mappings.insert(mapping(granule, granule)));
            mappings.remove_within(&range(0x3000, 0x3010));
            mappings.insert(mapping(0x3002, 0x3005));
            let overlaps =
                |start, last| mappings.overlaps(&IovaRange::new(start, last).expect("start <= last"));
            let into_it = [(0x300_2000, 0x300_2000), (0x300_5fff, 0x300_6fff), (0x300_0000, 0x300_f000)];
            let beside_it = [(0x300_1000, 0x300_1fff), (0x300_6000, 0x300_6000), (0x300_6fff, 0x301_0fff)];
            assert!(into_it.into_iter().all(|(start, last)| overlaps(start, last)), "{few_or_many}");
            assert!(!beside_it.into_iter().any(|(start, last)| overlaps(start, last)), "{few_or_many}");
        }
    }

    #[test]
    fn a_long_mapping_among_short_ones_of_a_dense_tree_is_found_whole_and_removed() {
        let mut mappings = Mappings::new(GRANULE);
        (0..20_000).for_each(|granule| mappings.insert(mapping(granule, granule)));
        let long = mapping(0x1020, 0x1500);
        assert_eq!(mappings.remove_within(&long.range), 0x4e1);
        mappings.insert(long);
        let found = |mappings: &Mappings| {
            [0x1020, 0x1021, 0x1500].map(|granule| mappings.find(GRANULE.start_of(granule)))
        };
        assert_eq!(found(&mappings), [Some(long); 3]);
        assert!(mappings.overlaps(&range(0x1030, 0x1031)), "with the middle of it");
        assert_eq!(mappings.remove_within(&long.range), 1);
        assert_eq!(found(&mappings), [None; 3]);
    }

    #[test]
    fn what_is_held_besides_the_tree_is_counted() {
        let mappings = with(&[]);
        let shared = size_of_val(&*mappings.tree.shared) + size_of::<[usize; 2]>();
        let tree = mappings.tree.space.bytes();
        assert_eq!(mappings.bytes(), size_of_val(&mappings) + shared + tree);
        assert_eq!(mappings.bytes_max(), Mappings::EMPTY_BYTES_MAX);
    }

    #[test]
    fn words_of_nodes_that_come_and_go_are_used_again() {
        let mut mappings = with(&[(0, 0), (1000, 1000)]);
        let mut come_and_go = |times| {
            for _ in 0..times {
                mappings.insert(mapping(5000, 5000));
                assert_eq!(mappings.remove_within(&range(5000, 5000)), 1);
            }
            (mappings.tree.shared.generation(), mappings.tree.shared.epoch())
        };
        let (spaces, steps) = come_and_go(100);
        let (spaces_after, steps_after) = come_and_go(10_000);
        assert_eq!(spaces_after, spaces, "more words, or a copy of the tree");
        // Each step may have a reader look again.
        assert!((1..=2000).contains(&(steps_after - steps)), "{steps} and {steps_after}");
    }

    #[test]
    fn a_long_mapping_among_short_ones_gives_all_its_memory_back() {
        let mut mappings = with(&[(0, 0), (1, 1), (2, 2), (3, 3)]);
        assert_eq!(mappings.remove_within(&range(3, 3)), 1);
        let bytes_max = mappings.bytes_max();
        mappings.insert(mapping(3, 5000));
        assert_eq!(mappings.remove_within(&range(3, 5000)), 1);
        assert_eq!(mappings.bytes_max(), bytes_max);
    }
}
