// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Accesses of endpoints: rights, pieces, edges.

use viommu_core::wire::{MAP_F_READ, MAP_F_WRITE};
use viommu_core::{Access, EndpointId, Extent, FaultReason, Gpa, Iova, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, NOBODY, config};

const READ: Access = Access::READ;
const MAPPING: FaultReason = FaultReason::Mapping;

/// 1 to 3 read and write in two mappings, 4 read-only, 5 a hole, 6 write-only.
fn bed() -> Bed {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    for (range, phys, flags) in [
        ((0x1000, 0x2fff), 0x8000, MAP_F_READ | MAP_F_WRITE),
        ((0x3000, 0x3fff), 0x5000, MAP_F_READ | MAP_F_WRITE),
        ((0x4000, 0x4fff), 0x6000, MAP_F_READ),
        ((0x6000, 0x6fff), 0x7000, MAP_F_WRITE),
    ] {
        assert_eq!(bed.send(request::map(1, range, phys, flags)), Status::Ok);
    }
    bed
}

#[test]
fn an_access_within_a_mapping_is_one_piece() {
    assert_eq!(bed().pieces(EP, 0x1ff0, 0x20, READ), [Ok((0x8ff0, 0x20))]);
    assert_eq!(bed().pieces(EP, 0x1000, 0x2000, READ), [Ok((0x8000, 0x2000))]);
}

#[test]
fn an_access_across_adjacent_mappings_has_a_piece_in_each() {
    let pieces = bed().pieces(EP, 0x2ff0, 0x1020, READ);
    assert_eq!(pieces, [Ok((0x9ff0, 0x10)), Ok((0x5000, 0x1000)), Ok((0x6000, 0x10))]);
}

#[test]
fn an_access_ends_at_the_first_byte_it_may_not_touch() {
    let bed = bed();
    assert_eq!(bed.pieces(EP, 0x4ff0, 0x20, READ), [Ok((0x6ff0, 0x10)), Err(MAPPING)]);
    let faults: Vec<_> = bed
        .device
        .translate(EndpointId(EP), Iova(0x3ff0), 0x20, Access::WRITE)
        .filter_map(Result::err)
        .collect();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].address, faults[0].reason), (Iova(0x4000), MAPPING));
    assert_eq!(bed.pieces(EP, 0x5ff0, 0x20, READ), [Err(MAPPING)]);
}

#[test]
fn an_access_that_reads_and_writes_needs_both_rights() {
    let bed = bed();
    let both = READ | Access::WRITE;
    assert_eq!(bed.pieces(EP, 0x3000, 4, both), [Ok((0x5000, 4))]);
    assert_eq!(bed.pieces(EP, 0x4000, 4, both), [Err(MAPPING)]);
    assert_eq!(bed.pieces(EP, 0x6000, 4, both), [Err(MAPPING)]);
    assert_eq!(bed.pieces(EP, 0x6000, 4, Access::WRITE), [Ok((0x7000, 4))]);
    assert_eq!(bed.pieces(EP, 0x6000, 4, READ), [Err(MAPPING)], "write-only is not readable");
}

#[test]
fn an_empty_access_has_no_pieces_wherever_it_is() {
    let bed = bed();
    for iova in [0, 0x1000, 0x5000, u64::MAX] {
        assert_eq!(bed.pieces(EP, iova, 0, READ), []);
        assert_eq!(bed.pieces(NOBODY, iova, 0, READ), []);
    }
}

#[test]
fn an_access_past_the_end_of_the_space_is_refused_as_a_whole() {
    let mut config = config();
    config.boot_bypass = true;
    let mut bed = Bed::with(config);
    assert_eq!(bed.pieces(EP, u64::MAX, 1, READ), [Ok((u64::MAX, 1))]);
    assert_eq!(bed.pieces(EP, 0, u64::MAX, READ), [Ok((0, u64::MAX))]);
    assert_eq!(bed.pieces(EP, 1, u64::MAX, READ), [Ok((1, u64::MAX))]);
    for (iova, length) in [(u64::MAX, 2), (2, u64::MAX), (u64::MAX - 3, 5)] {
        assert_eq!(bed.pieces(EP, iova, length, READ), [Err(MAPPING)]);
    }
    bed.attach(1, EP);
    bed.map(1, (u64::MAX - 0xfff, u64::MAX), 0x8000);
    bed.map(1, (0, 0xfff), 0x9000);
    assert_eq!(bed.pieces(EP, u64::MAX - 1, 2, READ), [Ok((0x8ffe, 2))]);
    assert_eq!(bed.pieces(EP, u64::MAX - 1, 3, READ), [Err(MAPPING)], "it does not wrap to the start");
}

#[test]
fn an_endpoint_that_does_not_exist_is_in_no_domain() {
    assert_eq!(bed().pieces(NOBODY, 0x1000, 1, READ), [Err(FaultReason::Domain)]);
}

#[test]
fn a_lookup_gives_the_whole_extent_and_all_it_allows() {
    let bed = bed();
    let extent = bed.device.lookup(EndpointId(EP), Iova(0x1234), READ).expect("it is mapped");
    assert_eq!(
        extent,
        Extent { range: request::range(0x1000, 0x2fff), gpa: Gpa(0x8000), access: READ | Access::WRITE }
    );
    let fault = bed.device.lookup(EndpointId(EP), Iova(0x5fff), READ).expect_err("it is a hole");
    assert_eq!((fault.address, fault.reason), (Iova(0x5fff), MAPPING));
}

#[test]
fn a_lookup_in_bypass_gives_the_identity_of_the_whole_space() {
    let mut bed = Bed::new();
    bed.send(request::attach_bypass(1, EP));
    let extent = bed.device.lookup(EndpointId(EP), Iova(0x1234), READ).expect("it is bypassed");
    assert_eq!(extent, Extent::IDENTITY);
}
