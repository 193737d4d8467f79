// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DETACH: A23 to A27.

use viommu_core::{FaultReason, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, NOBODY};

//= A23
#[test]
fn the_reserved_field_of_detach_is_not_looked_at() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    let detach = viommu_core::wire::ReqDetach { reserved: [0xff; 8], ..request::detach(1, EP) };
    assert_eq!(bed.send(detach), Status::Ok);
    assert_eq!(bed.domain_of(EP), None);
}

//= A24
#[test]
fn detach_of_an_unknown_endpoint_finds_none() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    assert_eq!(bed.detach(1, NOBODY), Status::NoEnt);
}

//= A25
#[test]
fn detach_from_a_domain_the_endpoint_is_not_in_is_invalid() {
    let mut bed = Bed::new();
    assert_eq!(bed.detach(1, EP), Status::Inval, "no domain, not attached");
    bed.attach(1, EP);
    bed.attach(2, EP2);
    assert_eq!(bed.detach(2, EP), Status::Inval, "another's domain");
    assert_eq!(bed.detach(3, EP), Status::Inval, "no domain");
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.detach(1, EP), Status::Inval, "detached already");
}

//= A26
#[test]
fn after_detach_the_endpoint_reaches_nothing_of_the_domain() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.attach(1, EP2);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1000), Err(FaultReason::Domain));
    assert_eq!(bed.reads(EP2, 0x1000), Ok(0x8000));
}

//= A26
#[test]
fn after_detach_the_endpoint_falls_back_to_bypass_where_that_is_set() {
    let mut bed = Bed::new();
    bed.write_config(36, &[1]);
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x1000));
}

//= A27
#[test]
fn a_domain_and_its_mappings_end_with_the_last_endpoint() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.attach(1, EP2);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.mapped(1), [(0x1000, 0x1fff)]);
    assert_eq!(bed.detach(1, EP2), Status::Ok);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::NoEnt);
    assert_eq!(bed.unmap(1, (0x1000, 0x1fff)), Status::NoEnt);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.mapped(1), []);
    assert_eq!(bed.reads(EP, 0x1000), Err(FaultReason::Mapping));
}

//= A27
#[test]
fn the_id_of_a_domain_that_ended_can_be_used_for_the_other_kind() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.detach(1, EP);
    assert_eq!(bed.send(request::attach_bypass(1, EP)), Status::Ok);
    assert_eq!(bed.detach(1, EP), Status::Ok);
    assert_eq!(bed.attach(1, EP), Status::Ok);
}
