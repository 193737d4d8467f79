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
        [(1, 110, 270), (2, 190, 220), (3, 120, 280), (16, 170, 290), (512, 260, 340), (1 << 30, 270, 320)];
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

#[test]
fn no_mapping_and_a_few_take_little() {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    assert!((1..=512).contains(&mappings.bytes()));
    assert!((1..=1024).contains(&Mappings::GROWTH_MAX));
    (0..10).for_each(|place| mappings.insert(page(place * 1000)));
    assert!(mappings.bytes() <= 2048, "{}", mappings.bytes());
}
