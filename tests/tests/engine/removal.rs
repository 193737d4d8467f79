// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Removals of every range that begins and ends at, before or behind a mapping, from trees of every form.

use viommu_core::mapping::{Mapping, Mappings};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

/// Granule numbers that differ in each of the three lowest digits of a key.
fn numbers() -> Vec<u64> {
    let digits = [0, 1, 5, 63];
    let below = |number: u64| digits.map(|digit| number << 6 | digit);
    digits.into_iter().flat_map(below).flat_map(below).collect()
}

fn with(numbers: &[u64]) -> Mappings {
    let mut mappings = Mappings::new(Granule::of_mask(0x1000).expect("not empty"));
    for number in numbers {
        let range = IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page");
        mappings.insert(Mapping { range, target: Target { gpa: Gpa(0), access: Access::READ, mmio: false } });
    }
    mappings
}

/// Removes each range from a copy; the copy then has what lies outside.
fn try_every_range(numbers: &[u64], edges: &[u64]) {
    let mappings = with(numbers);
    for first in edges {
        for last in edges.iter().filter(|last| first <= *last) {
            let mut copy = mappings.clone();
            let range = IovaRange::new(first << 12, last << 12 | 0xfff).expect("first <= last");
            let outside: Vec<u64> =
                numbers.iter().copied().filter(|number| !(first..=last).contains(&number)).collect();
            assert_eq!(copy.remove_within(&range), numbers.len() - outside.len(), "{range}");
            let left: Vec<u64> = copy.iter().map(|mapping| mapping.range.start() >> 12).collect();
            assert_eq!(left, outside, "{range}");
        }
    }
}

#[test]
fn any_range_can_be_removed_whatever_form_the_tree_has() {
    let numbers = numbers();
    let mut edges: Vec<u64> =
        numbers.iter().flat_map(|number| [number.saturating_sub(1), *number, number + 1]).collect();
    edges.sort_unstable();
    edges.dedup();
    let in_one_block =
        |shift: u32| numbers.iter().copied().filter(|number| *number >> shift == 5).collect::<Vec<_>>();
    for some in [numbers.clone(), in_one_block(12), in_one_block(6), vec![64], vec![]] {
        try_every_range(&some, &edges);
    }
    // Every place of a leaf and of the node above it.
    let places: Vec<u64> = (64..128).chain((128..4096).step_by(64)).collect();
    try_every_range(&places, &[0, 63, 64, 65, 100, 126, 127, 128, 192, 1000, 4032, 4095, 4096, 5000]);
}

#[test]
fn any_range_can_be_removed_from_a_large_tree() {
    let numbers: Vec<u64> = (0..1 << 14).collect();
    try_every_range(&numbers, &[0, 1, 63, 64, 4095, 4096, 4100, 4160, 8191, 8192, (1 << 14) - 1, 1 << 14]);
}

#[test]
fn a_large_tree_can_be_taken_down_mapping_by_mapping_from_either_end() {
    let numbers: Vec<u64> = (0..4096).map(|place| place * 64).collect();
    let (mut rising, mut falling) = (with(&numbers), with(&numbers));
    for (index, from_below) in numbers.iter().enumerate() {
        let from_above = numbers[numbers.len() - 1 - index];
        for (mappings, number) in [(&mut rising, *from_below), (&mut falling, from_above)] {
            let page = IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page");
            assert_eq!(mappings.remove_within(&page), 1, "{page}");
            assert_eq!(mappings.find(page.start()), None);
        }
        if index % 13 == 0 {
            let left = |mappings: &Mappings| -> Vec<u64> {
                mappings.iter().map(|mapping| mapping.range.start() >> 12).collect()
            };
            assert_eq!(left(&rising), numbers[index + 1..]);
            assert_eq!(left(&falling), numbers[..numbers.len() - 1 - index]);
        }
    }
}

/// A full leaf is made in the words of one that was left with many items in it.
#[test]
fn nothing_shows_in_a_hole_of_what_was_mapped_elsewhere_before() {
    let page = |number: u64| IovaRange::new(number << 12, number << 12 | 0xfff).expect("a page");
    let mut mappings = with(&[]);
    for leaf in (0..64).map(|leaf| leaf * 64) {
        let insert = |mappings: &mut Mappings, number: u64| {
            let target = Target { gpa: Gpa(0), access: Access::READ, mmio: false };
            mappings.insert(Mapping { range: page(number), target });
        };
        (leaf..leaf + 64).for_each(|number| insert(&mut mappings, number));
        let most = IovaRange::new(leaf << 12, (leaf + 60) << 12 | 0xfff).expect("pages");
        assert_eq!(mappings.remove_within(&most), 61);
        let elsewhere = (1 << 30) + leaf;
        (0..32).for_each(|place| insert(&mut mappings, elsewhere + place * 2));
        for hole in (0..32).map(|place| elsewhere + place * 2 + 1) {
            assert_eq!(mappings.find(hole << 12), None, "{hole:#x}");
        }
    }
}
