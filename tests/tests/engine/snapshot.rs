// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mappings as values: when they are equal, what a copy is, how they are shown.

use viommu_core::mapping::{Mapping, Mappings};
use viommu_core::{Access, Gpa, Granule, IovaRange, Target};

fn with(page_size_mask: u64, pages: &[u64]) -> Mappings {
    let granule = Granule::of_mask(page_size_mask).expect("not empty");
    let mut mappings = Mappings::new(granule);
    for page in pages {
        let range = IovaRange::from_length(page * granule.bytes(), granule.bytes()).expect("a page");
        mappings.insert(Mapping { range, target: Target { gpa: Gpa(0), access: Access::READ, mmio: false } });
    }
    mappings
}

#[test]
fn mappings_are_equal_when_they_and_their_granule_are() {
    assert_eq!(with(0x1000, &[1, 9]), with(0x1000, &[9, 1]));
    assert_ne!(with(0x1000, &[1, 9]), with(0x1000, &[1]));
    assert_ne!(with(0x1000, &[]), with(0x2000, &[]));
}

#[test]
fn a_copy_goes_its_own_way() {
    let mut mappings = with(0x1000, &[1, 9]);
    let copy = mappings.clone();
    let mut reader = copy.reader();
    assert_eq!(mappings.remove_within(&IovaRange::ALL), 2);
    assert_eq!((copy.count(), copy.iter().count()), (2, 2));
    assert!(reader.find(0x1000).is_some() && mappings.reader().find(0x1000).is_none());
}

#[test]
fn mappings_are_shown_as_a_list() {
    assert_eq!(format!("{:?}", with(0x1000, &[])), "[]");
    let shown = format!("{:?}", with(0x1000, &[1]));
    assert!(shown.starts_with("[Mapping { range: IovaRange { start: 4096, last: 8191 }"), "{shown}");
}
