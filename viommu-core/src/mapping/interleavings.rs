// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A reader and the writer in thousands of orders that Shuttle makes up, down to single loads and stores. Each
//! scenario is a few changes around one of the tree's turning points.
//!
//! Run by `scripts/test`. Shuttle takes every access as sequentially consistent: what orders of memory allow beyond that
//! is argued where the orders stand, in `arena` and `reader`.

use std::sync::Arc;
use std::vec::Vec;

use shuttle::sync::atomic::{AtomicU64, Ordering};

use super::{Mapping, Mappings};
use crate::{Access, Gpa, Granule, IovaRange, Target};

const ORDERS: usize = 4000;

/// One granule, or more; where it leads tells which it is.
fn mapping(granule: u64, granules: u64) -> Mapping {
    let range = IovaRange::new(granule << 12, ((granule + granules) << 12) - 1).expect("not empty");
    let target = Target { gpa: Gpa((granule + 0x1000) << 12), access: Access::READ, mmio: false };
    Mapping { range, target }
}

fn with(granules: impl IntoIterator<Item = u64>) -> Mappings {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    granules.into_iter().for_each(|granule| mappings.insert(mapping(granule, 1)));
    mappings
}

/// In every order: what `stays` is found as it is while `change` goes on, and what is found of the rest is true.
fn readers_see_what_stays(
    begin: impl Fn() -> Mappings + Send + Sync + 'static,
    stays: &'static [u64],
    others: &'static [u64],
    change: impl Fn(&mut Mappings) + Send + Sync + 'static,
) {
    let scenario = move || {
        let mut mappings = begin();
        let mut reader = mappings.reader();
        let reading = shuttle::thread::spawn(move || {
            for granule in stays.iter().chain(others).chain(stays) {
                let found = reader.find(granule << 12 | 0x123);
                let is_true = found.is_none_or(|found| found == mapping(*granule, 1));
                assert!(is_true, "{granule:#x} is found to be {found:?}");
                assert!(found.is_some() || others.contains(granule), "{granule:#x} is lost");
            }
        });
        change(&mut mappings);
        reading.join().expect("the reader saw what is true");
    };
    let scenario = Arc::new(scenario);
    let again = scenario.clone();
    shuttle::check_random(move || scenario(), ORDERS);
    shuttle::check_pct(move || again(), ORDERS, 3);
}

fn remove(mappings: &mut Mappings, granule: u64) {
    assert_eq!(mappings.remove_within(&mapping(granule, 1).range), 1);
}

#[test]
fn a_leaf_is_copied_again_and_again_into_words_that_were_its_own() {
    let change = |mappings: &mut Mappings| {
        for _ in 0..4 {
            mappings.insert(mapping(0, 1));
            mappings.insert(mapping(2, 1));
            remove(mappings, 0);
            remove(mappings, 2);
        }
    };
    readers_see_what_stays(|| with([1, 7]), &[1, 7], &[0, 2], change);
}

#[test]
fn a_leaf_becomes_full_and_packed_again() {
    let change = |mappings: &mut Mappings| {
        mappings.insert(mapping(40, 1));
        mappings.insert(mapping(41, 1));
        mappings.remove_within(&IovaRange::new(4 << 12, (39 << 12) | 0xfff).expect("not empty"));
    };
    readers_see_what_stays(|| with(0..23), &[1, 3], &[5, 40, 41], change);
}

/// An inner node just above the leaves becomes full, and so a shortcut, and packed again.
#[test]
fn a_shortcut_comes_and_goes() {
    let change = |mappings: &mut Mappings| {
        mappings.insert(mapping(30 * 64, 1));
        mappings.insert(mapping(31 * 64, 1));
        mappings
            .remove_within(&IovaRange::new((8 * 64) << 12, ((22 * 64) << 12) | 0xfff).expect("not empty"));
        mappings.insert(mapping(9 * 64, 1));
    };
    let begin = || with((0..23).map(|child| child * 64));
    readers_see_what_stays(begin, &[0, 3 * 64, 7 * 64], &[9 * 64, 30 * 64], change);
}

/// A shortcut's node is copied while the table of shortcuts grows, and words that were the node's are used again.
#[test]
fn a_shortcut_goes_while_the_table_of_shortcuts_is_replaced() {
    let change = |mappings: &mut Mappings| {
        for far in 1..4 {
            (0..4).for_each(|number| mappings.insert(mapping(far << 30 | number << 15, 1)));
            mappings.remove_within(
                &IovaRange::new((8 * 64) << 12, ((22 * 64) << 12) | 0xfff).expect("not empty"),
            );
            (8..24).for_each(|child| {
                mappings.insert(mapping(child * 64, 1));
            });
        }
    };
    let begin = || with((0..24).map(|child| child * 64));
    readers_see_what_stays(begin, &[0, 7 * 64], &[9 * 64, 23 * 64], change);
}

/// Leaves below a shortcut grow and shrink, each into words that were another's, and the inner node moves.
#[test]
fn leaves_below_a_shortcut_change_places() {
    let change = |mappings: &mut Mappings| {
        for _ in 0..2 {
            for child in [3, 4, 5, 6] {
                (2..8).for_each(|page| mappings.insert(mapping(child * 64 + page, 1)));
            }
            for child in [3, 4, 5, 6] {
                (2..8).for_each(|page| remove(mappings, child * 64 + page));
            }
        }
        mappings
            .remove_within(&IovaRange::new((8 * 64) << 12, ((22 * 64) << 12) | 0xfff).expect("not empty"));
        mappings.insert(mapping(9 * 64, 1));
    };
    let begin = || with((0..24).flat_map(|child| [child * 64, child * 64 + 1]));
    readers_see_what_stays(begin, &[3 * 64, 4 * 64 + 1], &[5 * 64 + 2, 9 * 64], change);
}

/// A leaf below a shortcut has a place for every page and loses it again, while others come and go beside it.
#[test]
fn a_leaf_below_a_shortcut_becomes_full_and_packed_again() {
    let change = |mappings: &mut Mappings| {
        (2..26).for_each(|page| mappings.insert(mapping(3 * 64 + page, 1)));
        (2..8).for_each(|page| mappings.insert(mapping(4 * 64 + page, 1)));
        mappings.remove_within(
            &IovaRange::new((3 * 64 + 2) << 12, ((3 * 64 + 63) << 12) | 0xfff).expect("not empty"),
        );
        (2..26).for_each(|page| mappings.insert(mapping(5 * 64 + page, 1)));
    };
    let begin = || with((0..24).flat_map(|child| [child * 64, child * 64 + 1]));
    readers_see_what_stays(begin, &[3 * 64, 3 * 64 + 1, 4 * 64], &[3 * 64 + 9, 5 * 64 + 9], change);
}

/// Places of a leaf are left vacant and taken again, and then the leaf is copied without them.
#[test]
fn places_are_vacant_and_taken_again() {
    let change = |mappings: &mut Mappings| {
        for _ in 0..2 {
            [2, 3, 5].into_iter().for_each(|granule| remove(mappings, granule));
            [2, 5].into_iter().for_each(|granule| mappings.insert(mapping(granule, 1)));
            remove(mappings, 2);
            mappings.insert(mapping(9, 1));
            [2, 3].into_iter().for_each(|granule| mappings.insert(mapping(granule, 1)));
            remove(mappings, 9);
        }
    };
    readers_see_what_stays(|| with([1, 2, 3, 4, 5, 7]), &[1, 4, 7], &[2, 3, 5, 9], change);
}

/// The only mapping of a far place comes and goes, and with it an inner node.
#[test]
fn a_branch_comes_and_goes() {
    let change = |mappings: &mut Mappings| {
        for _ in 0..3 {
            mappings.insert(mapping(1 << 40, 1));
            mappings.insert(mapping(1 << 20, 1));
            remove(mappings, 1 << 40);
            remove(mappings, 1 << 20);
        }
    };
    readers_see_what_stays(|| with([5, 1 << 30]), &[5, 1 << 30], &[1 << 20, 1 << 40], change);
}

#[test]
fn the_tree_grows_and_moves_to_memory_of_its_own_size() {
    let change = |mappings: &mut Mappings| {
        (0..30).for_each(|number| mappings.insert(mapping(number * 700, 1)));
        mappings.remove_within(&IovaRange::new(700 << 12, u64::MAX).expect("not empty"));
        mappings.insert(mapping(700, 1));
    };
    readers_see_what_stays(|| with([3]), &[3], &[700], change);
}

/// A place is one long mapping, then a short one, then none.
#[test]
fn long_mappings_are_seen_whole_or_not_at_all() {
    shuttle::check_random(
        || {
            let long = mapping(64, 5000);
            let mut mappings = with([1]);
            mappings.insert(long);
            let mut reader = mappings.reader();
            let reading = shuttle::thread::spawn(move || {
                for granule in [64, 65, 5063, 65] {
                    let found = reader.find(granule << 12);
                    assert!(found.is_none_or(|found| found == long || found == mapping(65, 1)), "{found:?}");
                }
            });
            for _ in 0..3 {
                assert_eq!(mappings.remove_within(&long.range), 1);
                mappings.insert(mapping(65, 1));
                remove(&mut mappings, 65);
                mappings.insert(long);
            }
            reading.join().expect("the reader saw what is true");
        },
        ORDERS,
    );
}

/// Once a range is closed, no lookup that begins finds anything in it, whatever happens to it then.
#[test]
fn what_was_unmapped_is_not_found_after_its_unmap_was_begun() {
    shuttle::check_random(
        || {
            let mut mappings = with([1, 2]);
            let closed = Arc::new(AtomicU64::new(0));
            let readings: Vec<_> = [1, 2]
                .map(|granule| {
                    let (mut reader, closed) = (mappings.reader(), closed.clone());
                    shuttle::thread::spawn(move || {
                        for _ in 0..4 {
                            let is_closed = closed.load(Ordering::SeqCst) >= granule;
                            assert!(
                                !is_closed || reader.find(granule << 12).is_none(),
                                "{granule} is closed"
                            );
                        }
                    })
                })
                .into();
            for granule in [1, 2] {
                mappings.close(Some(mapping(granule, 1).range));
                closed.store(granule, Ordering::SeqCst);
                remove(&mut mappings, granule);
                mappings.close(None);
            }
            readings.into_iter().for_each(|reading| reading.join().expect("nothing was found"));
        },
        ORDERS,
    );
}
