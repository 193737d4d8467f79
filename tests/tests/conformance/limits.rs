// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much a guest can make the device hold, and that it gets room back.

use viommu_core::mapping::Mappings;
use viommu_core::{DomainId, Limits, Status};
use viommu_tests::model::request;

use crate::bed::{ALL, Bed, EP, EP2, EP3, config};

fn limited(domains_max: usize, mappings_max: usize) -> Bed {
    let mut config = config();
    config.limits = Limits { domains_max, mappings_max, faults_max: 1, ..Limits::default() };
    Bed::with(config)
}

#[test]
fn a_domain_too_many_is_out_of_memory() {
    let mut bed = limited(2, 1);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.send(request::attach_bypass(2, EP2)), Status::Ok);
    assert_eq!(bed.attach(3, EP3), Status::NoMem);
    assert_eq!(bed.send(request::attach_bypass(3, EP3)), Status::NoMem);
    assert_eq!(bed.attach(1, EP3), Status::Ok, "an existing domain takes no room");
    assert_eq!(bed.detach(2, EP2), Status::Ok);
    assert_eq!(bed.attach(3, EP3), Status::Ok);
}

#[test]
fn the_only_endpoint_of_a_domain_can_move_to_a_new_one_although_the_table_is_full() {
    let mut bed = limited(2, 1);
    bed.attach(1, EP);
    bed.attach(2, EP2);
    assert_eq!(bed.attach(3, EP), Status::Ok);
    assert_eq!(bed.attach(2, EP), Status::Ok);
    assert_eq!(bed.attach(4, EP3), Status::Ok);
    assert_eq!(bed.attach(5, EP), Status::NoMem, "its old domain goes on without it");
}

//= A20b
#[test]
fn the_only_endpoint_of_a_domain_can_move_to_a_new_one_although_memory_is_full() {
    let mut bed = limited_in_bytes(Mappings::EMPTY_BYTES_MAX);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.attach(2, EP2), Status::NoMem);
    assert_eq!(bed.attach(2, EP), Status::Ok);
    assert_eq!(bed.attach(1, EP2), Status::NoMem);
}

#[test]
fn a_mapping_too_many_in_all_domains_together_is_out_of_memory() {
    let mut bed = limited(4, 3);
    bed.attach(1, EP);
    bed.attach(2, EP2);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Ok);
    assert_eq!(bed.map(2, (0x1000, 0x1fff), 0), Status::Ok);
    assert_eq!(bed.map(2, (0x2000, 0x2fff), 0), Status::Ok);
    assert_eq!(bed.map(1, (0x2000, 0x2fff), 0), Status::NoMem);
    assert_eq!(bed.map(2, (0x3000, 0x3fff), 0), Status::NoMem);
    assert_eq!(bed.unmap(2, (0x1000, 0x1fff)), Status::Ok);
    assert_eq!(bed.map(1, (0x2000, 0x2fff), 0), Status::Ok);
}

#[test]
fn mappings_give_their_room_back_when_their_domain_ends() {
    let fill = |bed: &mut Bed, domain| {
        for page in 0..3u64 {
            assert_eq!(bed.map(domain, (page << 12, page << 12 | 0xfff), 0), Status::Ok);
        }
        assert_eq!(bed.map(domain, (0x9000, 0x9fff), 0), Status::NoMem);
    };
    let mut bed = limited(4, 3);
    bed.attach(1, EP);
    fill(&mut bed, 1);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    bed.attach(2, EP);
    fill(&mut bed, 2);
    assert_eq!(bed.attach(3, EP), Status::Ok, "a move ends a domain as well");
    fill(&mut bed, 3);
    assert_eq!(bed.unmap(3, ALL), Status::Ok);
    fill(&mut bed, 3);
    bed.device.reset();
    bed.host.reset(false);
    bed.attach(4, EP);
    fill(&mut bed, 4);
}

#[test]
fn what_would_be_refused_anyway_is_not_told_that_memory_is_out() {
    let mut bed = limited(1, 1);
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Inval);
    assert_eq!(bed.map(1, (0x2000, 0x2ffe), 0), Status::Range);
    assert_eq!(bed.map(2, (0x2000, 0x2fff), 0), Status::NoEnt);
}

/// A device whose mappings may take so many bytes.
fn limited_in_bytes(mapping_bytes_max: usize) -> Bed {
    let mut config = config();
    config.limits = Limits { mapping_bytes_max, ..Limits::default() };
    Bed::with(config)
}

/// Page `number` of domain 1, far from the others, to a page of its own.
fn map_far(bed: &mut Bed, number: u64) -> Status {
    let start = number << 30;
    bed.map(1, (start, start | 0xfff), number << 12)
}

#[test]
fn mappings_beyond_the_memory_for_them_are_out_of_memory_until_others_go() {
    let bytes_max = 16 << 10;
    let mut bed = limited_in_bytes(bytes_max);
    bed.attach(1, EP);
    let mapped = (0..).take_while(|number| map_far(&mut bed, *number) == Status::Ok).count() as u64;
    let bytes = bed.device.domain(DomainId(1)).expect("it exists").memory();
    assert!(bytes <= bytes_max && bytes > bytes_max / 2, "{mapped} mappings took {bytes} bytes");
    assert_eq!(map_far(&mut bed, mapped), Status::NoMem);
    assert_eq!(bed.mapped(1).len() as u64, mapped);

    assert_eq!(bed.unmap(1, (0, (8 << 30) - 1)), Status::Ok);
    assert_eq!(map_far(&mut bed, mapped), Status::Ok);
    assert_eq!(bed.unmap(1, ALL), Status::Ok);
    let mapped_again = (0..).take_while(|number| map_far(&mut bed, *number) == Status::Ok).count() as u64;
    assert_eq!(mapped_again, mapped);
}

#[test]
fn a_domain_without_memory_for_its_mappings_is_out_of_memory_and_one_that_needs_none_is_not() {
    let mut bed = limited_in_bytes(2 * Mappings::EMPTY_BYTES_MAX);
    bed.attach(1, EP);
    bed.attach(2, EP2);
    assert_eq!(bed.attach(3, EP3), Status::NoMem);
    assert_eq!(bed.send(request::attach_bypass(3, EP3)), Status::Ok);
    assert_eq!(bed.attach(4, EP2), Status::Ok, "its old domain ends");
    assert_eq!(bed.map(4, (0, 0xfff), 0), Status::NoMem);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.map(4, (0, 0xfff), 0), Status::Ok);
}
