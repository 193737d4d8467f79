// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! UNMAP: A35 to A39 and the specification's seven examples.
//!
//! The numbers of a range are its first and last page, as the examples have them.

use viommu_core::{Change, DomainId, FaultReason, Status};
use viommu_tests::model::request;

use crate::bed::{ALL, Bed, EP};

/// The last page of the space.
const LAST: u64 = u64::MAX >> 12;

/// A range of pages in bytes.
fn pages((first, last): (u64, u64)) -> (u64, u64) {
    (first << 12, last << 12 | 0xfff)
}

/// Domain 1 with these mappings.
fn mapping(ranges: &[(u64, u64)]) -> Bed {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    for range in ranges {
        assert_eq!(bed.map(1, pages(*range), 0x8000), Status::Ok);
    }
    bed
}

/// What an UNMAP of pages of domain 1 ends with, and the pages that are mapped after it.
fn unmap(bed: &mut Bed, range: (u64, u64)) -> (Status, Vec<(u64, u64)>) {
    (bed.unmap(1, pages(range)), left_in(bed))
}

fn left_in(bed: &Bed) -> Vec<(u64, u64)> {
    bed.mapped(1).iter().map(|(start, last)| (start >> 12, last >> 12)).collect()
}

//= A35a A35b
#[test]
fn unmap_with_a_set_reserved_field_is_invalid_and_removes_nothing() {
    let mut bed = mapping(&[(0, 9)]);
    for at in 0..4 {
        let mut unmap = request::unmap(1, pages((0, 9)));
        unmap.reserved[at] = 1;
        assert_eq!(bed.send(unmap), Status::Inval);
    }
    assert_eq!(left_in(&bed), [(0, 9)]);
}

//= A36
#[test]
fn unmap_in_a_domain_that_does_not_exist_finds_none() {
    let mut bed = mapping(&[(0, 9)]);
    assert_eq!(bed.unmap(2, pages((0, 9))), Status::NoEnt);
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
        let ended = unmap(&mut mapping(mapped), range);
        assert_eq!(ended, (status, left.to_vec()), "{mapped:?} less {range:?}");
    }
}

//= A38a A38b
#[test]
fn a_range_that_cuts_one_mapping_of_several_removes_none_of_them() {
    let mapped = [(0, 4), (5, 9), (20, 29)];
    for range in [(0, 20), (0, 28), (1, 29), (4, 9), (2, 3), (25, 25), (0, 8)] {
        let ended = unmap(&mut mapping(&mapped), range);
        assert_eq!(ended, (Status::Range, mapped.to_vec()), "{range:?}");
    }
    // A byte is enough.
    for range in [(1, 0x9fff), (0, 0x9ffe), (0x4fff, 0x9fff), (0x5fff, 0x2_0000), (ALL.0, 0x1_4000)] {
        let mut bed = mapping(&mapped);
        assert_eq!((bed.unmap(1, range), left_in(&bed)), (Status::Range, mapped.to_vec()), "{range:x?}");
    }
}

//= A39
#[test]
fn a_range_with_nothing_in_it_is_ok_and_asks_nobody() {
    let mut bed = mapping(&[(10, 14)]);
    let asked = bed.host.asked.len();
    for range in [(0, 9), (15, 20), (15, LAST), (3, 3)] {
        assert_eq!(unmap(&mut bed, range), (Status::Ok, vec![(10, 14)]));
    }
    assert_eq!(bed.host.asked.len(), asked);
}

#[test]
fn unmap_need_not_be_aligned() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.unmap(1, (0x0fff, 0x2003)), Status::Ok);
    assert_eq!(bed.mapped(1), []);
}

#[test]
fn the_host_gets_the_range_of_the_request_whole() {
    let mut bed = mapping(&[(0, 4), (10, 14)]);
    assert_eq!(bed.unmap(1, (1 << 12, 0x6_3abc)), Status::Range);
    assert_eq!(bed.unmap(1, (0, 0x6_3abc)), Status::Ok);
    let unmap = Change::Unmap { domain: DomainId(1), range: request::range(0, 0x6_3abc) };
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
    let mut bed = mapping(&[(0, 0), (7, 9), (LAST, LAST)]);
    assert_eq!(unmap(&mut bed, (0, LAST - 1)), (Status::Ok, vec![(LAST, LAST)]));
    assert_eq!(bed.unmap(1, ALL), Status::Ok);
    assert_eq!(bed.mapped(1), []);
    assert_eq!(bed.reads(EP, u64::MAX), Err(FaultReason::Mapping));
}

#[test]
fn a_range_that_reaches_one_end_of_the_space_leaves_what_is_outside_it() {
    let mut bed = mapping(&[(0, 4), (10, 14), (20, 24)]);
    assert_eq!(unmap(&mut bed, (15, LAST)), (Status::Ok, vec![(0, 4), (10, 14)]));
    assert_eq!(unmap(&mut bed, (0, 9)), (Status::Ok, vec![(10, 14)]));
}

#[test]
fn what_was_unmapped_can_be_mapped_to_something_else() {
    let mut bed = mapping(&[(0, 9)]);
    assert_eq!(unmap(&mut bed, (0, 9)), (Status::Ok, vec![]));
    assert_eq!(bed.map(1, pages((5, 14)), 0x9000), Status::Ok);
    assert_eq!((bed.reads(EP, 0x4fff), bed.reads(EP, 0x5000)), (Err(FaultReason::Mapping), Ok(0x9000)));
}
