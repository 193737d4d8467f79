// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! UNMAP: A35 to A39 and the specification's seven examples.

use viommu_core::{Change, DomainId, FaultReason, Status};
use viommu_tests::model::request;

use crate::bed::{ALL, Bed, EP};

/// Domain 1 with these mappings, in granules: the specification's examples are in bytes.
fn mapping(ranges: &[(u64, u64)]) -> Bed {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    for range in ranges {
        assert_eq!(bed.map(1, granules(*range), 0x8000), Status::Ok);
    }
    bed
}

/// Granules `first..=last` in bytes.
fn granules((first, last): (u64, u64)) -> (u64, u64) {
    (first << 12, last << 12 | 0xfff)
}

/// What domain 1 maps, in granules.
fn what_is_left(bed: &Bed) -> Vec<(u64, u64)> {
    bed.mapped(1).into_iter().map(|(start, last)| (start >> 12, last >> 12)).collect()
}

/// The last granule there is.
const TOP: u64 = u64::MAX >> 12;

//= A35a A35b
#[test]
fn unmap_with_a_set_reserved_field_is_invalid_and_removes_nothing() {
    let mut bed = mapping(&[(0, 9)]);
    for at in 0..4 {
        let mut unmap = request::unmap(1, granules((0, 9)));
        unmap.reserved[at] = 1;
        assert_eq!(bed.send(unmap), Status::Inval);
    }
    assert_eq!(what_is_left(&bed), [(0, 9)]);
}

//= A36
#[test]
fn unmap_in_a_domain_that_does_not_exist_finds_none() {
    let mut bed = mapping(&[(0, 9)]);
    assert_eq!(bed.unmap(2, granules((0, 9))), Status::NoEnt);
}

//= A37
#[test]
fn unmap_in_a_bypass_domain_is_invalid() {
    let mut bed = Bed::new();
    bed.send(request::attach_bypass(1, EP));
    assert_eq!(bed.unmap(1, ALL), Status::Inval);
}

//= A38a A38b A39
#[test]
fn the_examples_of_the_specification_hold() {
    type Example = (&'static [(u64, u64)], (u64, u64), Status, &'static [(u64, u64)]);
    let examples: [Example; 7] = [
        (&[], (0, 4), Status::Ok, &[]),
        (&[(0, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (5, 9)], (0, 9), Status::Ok, &[]),
        (&[(0, 9)], (0, 4), Status::Range, &[(0, 9)]),
        (&[(0, 4), (5, 9)], (0, 4), Status::Ok, &[(5, 9)]),
        (&[(0, 4)], (0, 9), Status::Ok, &[]),
        (&[(0, 4), (10, 14)], (0, 14), Status::Ok, &[]),
    ];
    for (mapped, range, status, left) in examples {
        let mut bed = mapping(mapped);
        assert_eq!(bed.unmap(1, granules(range)), status, "{mapped:?} less {range:?}");
        assert_eq!(what_is_left(&bed), left, "{mapped:?} less {range:?}");
    }
}

//= A38a A38b
#[test]
fn a_range_that_cuts_one_mapping_of_several_removes_none_of_them() {
    let mapped = [(0, 4), (5, 9), (20, 29)];
    for range in [(0, 20), (0, 28), (1, 29), (4, 9), (2, 3), (25, 25), (0, 8)] {
        let mut bed = mapping(&mapped);
        assert_eq!(bed.unmap(1, granules(range)), Status::Range, "{range:?}");
        assert_eq!(what_is_left(&bed), mapped);
    }
    // A byte too few is enough.
    for range in [(1, 0x9fff), (0, 0x9ffe), (0x4fff, 0x9fff), (0x5fff, 0x2_0000), (0, 0x1_4000)] {
        let mut bed = mapping(&mapped);
        assert_eq!(bed.unmap(1, range), Status::Range, "{range:x?}");
        assert_eq!(what_is_left(&bed), mapped);
    }
}

//= A39
#[test]
fn a_range_with_nothing_in_it_is_ok_and_asks_nobody() {
    let mut bed = mapping(&[(10, 14)]);
    let asked = bed.host.asked.len();
    for range in [(0, 9), (15, 20), (15, TOP), (3, 3)] {
        assert_eq!(bed.unmap(1, granules(range)), Status::Ok);
    }
    assert_eq!(bed.host.asked.len(), asked);
    assert_eq!(what_is_left(&bed), [(10, 14)]);
}

#[test]
fn unmap_need_not_be_aligned() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.unmap(1, (0x0fff, 0x2003)), Status::Ok);
    assert_eq!(what_is_left(&bed), []);
}

#[test]
fn the_host_gets_the_range_of_the_request_whole() {
    let mut bed = mapping(&[(0, 4), (10, 14)]);
    assert_eq!(bed.unmap(1, granules((0, 99))), Status::Ok);
    let unmap = Change::Unmap { domain: DomainId(1), range: request::range(0, 99 << 12 | 0xfff) };
    assert_eq!(bed.host.asked.last(), Some(&unmap));
}

#[test]
fn a_reversed_range_is_out_of_range() {
    let mut bed = mapping(&[(0, 9)]);
    assert_eq!(bed.unmap(1, (0x9fff, 0)), Status::Range);
    assert_eq!(bed.unmap(1, (u64::MAX, 0)), Status::Range);
}

#[test]
fn the_whole_space_can_be_unmapped_at_once() {
    let mut bed = mapping(&[(0, 0), (7, 9), (TOP, TOP)]);
    assert_eq!(bed.unmap(1, granules((0, TOP - 1))), Status::Ok);
    assert_eq!(what_is_left(&bed), [(TOP, TOP)]);
    assert_eq!(bed.unmap(1, ALL), Status::Ok);
    assert_eq!(what_is_left(&bed), []);
    assert_eq!(bed.reads(EP, u64::MAX), Err(FaultReason::Mapping));
}

#[test]
fn a_range_that_reaches_one_end_of_the_space_leaves_what_is_outside_it() {
    let mut bed = mapping(&[(0, 4), (10, 14), (20, 24)]);
    assert_eq!(bed.unmap(1, granules((15, TOP))), Status::Ok);
    assert_eq!(what_is_left(&bed), [(0, 4), (10, 14)]);
    assert_eq!(bed.unmap(1, granules((0, 9))), Status::Ok);
    assert_eq!(what_is_left(&bed), [(10, 14)]);
}

#[test]
fn what_was_unmapped_can_be_mapped_to_something_else() {
    let mut bed = mapping(&[(0, 9)]);
    assert_eq!(bed.unmap(1, granules((0, 9))), Status::Ok);
    assert_eq!(bed.map(1, granules((5, 14)), 0x9000), Status::Ok);
    assert_eq!((bed.reads(EP, 0x4fff), bed.reads(EP, 0x5000)), (Err(FaultReason::Mapping), Ok(0x9000)));
}
