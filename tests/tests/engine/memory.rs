// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much memory mappings take. The numbers of bytes follow from the mappings alone, on every machine.

use viommu_core::mapping::{Mapping, Mappings};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

/// Mappings of each arrangement.
const COUNT: u64 = 10_000;

fn page(number: u64) -> Mapping {
    let range = IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page");
    Mapping { range, target: Target { gpa: Gpa(number << 12), access: Access::READ, mmio: false } }
}

/// Tenths of a byte for each of so many mappings.
fn tenths(mappings: &Mappings) -> u64 {
    assert!(mappings.bytes() <= mappings.bytes_max());
    mappings.bytes() as u64 * 10 / mappings.count() as u64
}

#[test]
fn a_mapping_takes_few_bytes_near_others_far_from_them_and_when_most_others_are_gone_in_few_moves() {
    // The distance in granules, the most tenths of a byte for each mapping, and for each of the 16th that is left.
    let arrangements =
        [(1, 115, 260), (2, 200, 430), (3, 120, 410), (16, 170, 410), (512, 290, 500), (1 << 30, 270, 530)];
    for (stride, all_max, left_max) in arrangements {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        (0..COUNT).for_each(|place| mappings.insert(page(place * stride)));
        let all = tenths(&mappings);
        // A word for each is the least that can hold them.
        assert!((80..=all_max).contains(&all), "every {stride} granules: {all}");
        let (mut moves, mut last) = (0, mappings.bytes());
        for place in (0..COUNT).filter(|place| place % 16 != 0) {
            assert_eq!(mappings.remove_within(&page(place * stride).range), 1);
            moves += u32::from(mappings.bytes() < last);
            last = mappings.bytes();
        }
        assert!(moves <= 25, "every {stride} granules: {moves} copies");
        let left = tenths(&mappings);
        assert!(left <= left_max, "every {stride} granules, and most are gone: {left}");
    }
}

/// Nodes that all grow in turn leave their former words behind, of no use to those that come after: what is so wasted
/// stays within bounds, and does not have the tree copied at every turn.
#[test]
fn an_area_that_fills_up_in_rounds_takes_few_bytes_and_is_rarely_copied() {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    let (mut moves, mut last) = (0, 0);
    for round in 0..64 {
        for block in 0..COUNT / 10 {
            mappings.insert(page(block * 64 + round));
            moves += u32::from(mappings.bytes() < last);
            last = mappings.bytes();
        }
        assert!(round < 2 || tenths(&mappings) <= 290, "{} in round {round}", tenths(&mappings));
    }
    assert!(tenths(&mappings) <= 110);
    assert!(moves <= 20, "{moves} copies");
}

/// Full leaves that have become nearly empty are copied to packed ones, for which there is memory and no more.
#[test]
fn a_copy_of_leaves_with_many_vacant_places_takes_no_more_than_it_may() {
    for blocks in 20..80 {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        let pages = |of: std::ops::Range<u64>| {
            (0..blocks).flat_map(move |block| of.clone().map(move |page| block * 64 + page))
        };
        pages(0..24).for_each(|number| mappings.insert(page(number)));
        pages(14..24).for_each(|number| assert_eq!(mappings.remove_within(&page(number).range), 1));
        tenths(&mappings);
        tenths(&mappings.clone());
    }
}

/// What a large removal leaves to be remembered is not held for long.
#[test]
fn removals_of_many_nodes_leave_no_more_than_they_may() {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    (0..320).for_each(|number| mappings.insert(page(number)));
    for many in [128, 256, 1000, 128, 128] {
        (0..many).for_each(|far| mappings.insert(page((1 << 30) + far * 64)));
        tenths(&mappings);
        assert_eq!(
            mappings.remove_within(&IovaRange::new(1 << 42, u64::MAX).expect("not empty")),
            many as usize
        );
        tenths(&mappings);
    }
}

/// Whatever came and went elsewhere: side by side a mapping takes 16 bytes at most.
#[test]
fn mappings_side_by_side_take_little_after_others_have_gone() {
    for far in [10_000, 30_000, 60_000] {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        (0..10 * COUNT).for_each(|number| mappings.insert(page(number)));
        (0..far).for_each(|number| mappings.insert(page((1 << 30) + number * 512)));
        assert_eq!(
            mappings.remove_within(&IovaRange::new(1 << 42, u64::MAX).expect("not empty")),
            far as usize
        );
        assert!(tenths(&mappings) <= 165, "{} after {far}", tenths(&mappings));
    }
}

#[test]
fn no_mapping_and_a_few_take_little() {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    assert!((1..=512).contains(&mappings.bytes()));
    assert!((1..=1600).contains(&Mappings::GROWTH_MAX));
    (0..10).for_each(|place| mappings.insert(page(place * 1000)));
    assert!(mappings.bytes() <= 2048, "{}", mappings.bytes());
}
