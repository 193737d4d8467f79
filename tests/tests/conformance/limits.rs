// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much a guest can make the device hold, and that it gets room back.

use viommu_core::{Limits, Status};
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
