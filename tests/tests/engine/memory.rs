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
fn a_mapping_takes_few_bytes_near_others_far_from_them_and_when_most_others_are_gone() {
    // The distance in granules, the most tenths of a byte for each mapping, and for each of the 16th that is left.
    let arrangements =
        [(1, 100, 260), (2, 200, 280), (3, 110, 280), (16, 170, 320), (512, 290, 330), (1 << 30, 260, 360)];
    for (stride, all_max, left_max) in arrangements {
        let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
        (0..COUNT).for_each(|place| mappings.insert(page(place * stride)));
        let all = tenths(&mappings);
        // A word for each is the least that can hold them.
        assert!((80..=all_max).contains(&all), "every {stride} granules: {all}");
        for place in (0..COUNT).filter(|place| place % 16 != 0) {
            assert_eq!(mappings.remove_within(&page(place * stride).range), 1);
        }
        let left = tenths(&mappings);
        assert!(left <= left_max, "every {stride} granules, and most are gone: {left}");
    }
}

#[test]
fn no_mapping_and_a_few_take_little() {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    assert!((1..=512).contains(&mappings.bytes()));
    (0..10).for_each(|place| mappings.insert(page(place * 1000)));
    assert!(mappings.bytes() <= 2048, "{}", mappings.bytes());
}
