// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH_TABLE: who may have a table, where, and in place of what.

use viommu_core::{Change, DeviceConfig, DomainId, EndpointId, Limits, Pasid, Status, wire};
use viommu_tests::model::request;

use super::bed::{ABORT, ARM, ARM_ATS, BYPASS, Bed, NOBODY, SOFT, STE, VTD, VTD2, config, ste};

//= T10
#[test]
fn endpoint_and_domain_have_to_be_possible() {
    let mut bed = Bed::with(DeviceConfig { domain_ids: 1..=3, ..config() });
    assert_eq!(bed.ste(1, NOBODY, STE), Status::NoEnt);
    assert_eq!(bed.send(request::attach_none(1, NOBODY, 1)), Status::NoEnt);
    assert_eq!(bed.ste(0, ARM, STE), Status::Range);
    assert_eq!(bed.ste(4, ARM, STE), Status::Range);
    assert_eq!(bed.ste(3, ARM, STE), Status::Ok);
}

//= T13a
#[test]
fn hardware_walks_one_format_only() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, VTD, STE), Status::Unsupp);
    assert_eq!(bed.pt(1, ARM, None, 0x1000), Status::Unsupp);
    assert_eq!(bed.ste(1, SOFT, STE), Status::Unsupp);
    assert_eq!(bed.send(request::attach_none(1, SOFT, 1)), Status::Unsupp);
    for format in 3..=u8::MAX {
        let request = request::attach_table(1, ARM, format, &[0u8; wire::DESCRIPTOR_SIZE]);
        assert_eq!(bed.send(request), Status::Unsupp, "{format}");
    }
    assert!(bed.host.asked.is_empty());
}

//= T14a
#[test]
fn an_endpoint_without_pasids_gets_none() {
    let mut bed = Bed::new();
    let without = viommu_core::TableSupport { pasids: None, ..super::bed::vtd() };
    bed.device.set_tables(EndpointId(VTD), Some(without));
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Unsupp);
    assert_eq!(bed.send(request::attach_none(1, VTD, 1)), Status::Unsupp);
    assert_eq!(bed.ste(2, ARM, STE), Status::Ok);
    assert_eq!(bed.send(request::attach_none(2, ARM, 1)), Status::Unsupp);
}

//= T14a
#[test]
fn endpoints_that_the_host_cannot_tell_apart_have_no_pasids() {
    let mut bed = Bed::new();
    bed.device.set_group(EndpointId(VTD), Some(5));
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Ok, "alone in its group");
    bed.device.set_group(EndpointId(VTD2), Some(5));
    assert_eq!(bed.pt(1, VTD, Some(2), 0x1000), Status::Unsupp);
}

//= T14b
#[test]
fn pasids_are_those_of_the_property() {
    let mut bed = Bed::new();
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    for pasid in [0, 256, 1 << 20, u32::MAX] {
        assert_eq!(bed.pt(1, VTD, Some(pasid), 0x1000), Status::Range, "{pasid}");
        assert_eq!(bed.send(request::attach_none(1, VTD, pasid)), Status::Range, "{pasid}");
    }
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(255), 0x1000), Status::Ok);
}

//= T14b
#[test]
fn there_are_never_more_than_20_bits_of_pasids() {
    let mut bed = Bed::new();
    let many = viommu_core::PasidSupport { bits: 255, exec: false, privileged: false };
    let support = viommu_core::TableSupport { pasids: Some(many), ..super::bed::vtd() };
    bed.device.set_tables(EndpointId(VTD), Some(support));
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(1 << 20), 0x1000), Status::Range);
    assert_eq!(bed.pt(1, VTD, Some((1 << 20) - 1), 0x1000), Status::Ok);
}

//= T14c
#[test]
fn a_pasid_comes_after_its_endpoint() {
    let mut bed = Bed::new();
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Inval);
    bed.done(request::attach_bypass(2, VTD));
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Ok);
    assert_eq!((bed.domain_of(VTD), bed.root(VTD, Some(1))), (Some(2), Some((1, 0x1000))));
}

//= T17a
#[test]
fn a_domain_has_tables_of_one_format_or_none() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Inval);
    assert_eq!(bed.send(request::attach_bypass(1, VTD)), Status::Inval);
    bed.done(request::attach_bypass(2, VTD));
    assert_eq!(bed.ste(2, ARM, STE), Status::Inval);
    assert_eq!(bed.pt(2, VTD, Some(1), 0x1000), Status::Inval);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Inval, "the bypass domain that it is in itself");
}

//= T17b
#[test]
fn endpoints_of_a_domain_need_not_share_their_table() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.ste(1, ARM_ATS, ste(0x5000_0000)), Status::Ok);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(2, VTD, Some(1), 0x2000), Status::Ok);
    assert_eq!(bed.pt(2, VTD2, None, 0x3000), Status::Ok);
    assert_eq!(bed.device.domain(DomainId(2)).map(|domain| domain.endpoints().count()), Some(2));
}

//= T18
#[test]
fn a_group_of_the_host_has_one_domain_and_one_table() {
    let mut bed = Bed::new();
    for endpoint in [ARM, ARM_ATS] {
        bed.device.set_group(EndpointId(endpoint), Some(3));
    }
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.ste(2, ARM_ATS, STE), Status::Unsupp);
    assert_eq!(bed.ste(1, ARM_ATS, BYPASS), Status::Unsupp);
    assert_eq!(bed.send(request::attach_bypass(2, ARM_ATS)), Status::Unsupp);
    assert_eq!(bed.ste(1, ARM_ATS, STE), Status::Ok);
    assert_eq!(bed.ste(1, ARM, BYPASS), Status::Unsupp);
    bed.done(request::detach(1, ARM_ATS));
    assert_eq!(bed.ste(1, ARM, BYPASS), Status::Ok);
}

//= T12 T19
#[test]
fn a_pasid_is_detached_from_the_domain_that_it_is_in() {
    let mut bed = Bed::new();
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.send(request::attach_none(1, VTD, 3)), Status::Inval);
    assert_eq!(bed.pt(2, VTD, Some(3), 0x2000), Status::Ok);
    assert_eq!(bed.send(request::attach_none(1, VTD, 3)), Status::Inval);
    bed.done(request::attach_none(2, VTD, 3));
    assert_eq!((bed.root(VTD, Some(3)), bed.exists(2)), (None, false));
    assert_eq!(bed.send(request::attach_none(2, VTD, 3)), Status::Inval);
    assert_eq!(bed.root(VTD, None), Some((1, 0x1000)));
}

//= T20
#[test]
fn a_table_is_replaced_in_one_step() {
    let mut bed = Bed::new();
    for (domain, entry) in [(1, STE), (1, STE), (1, BYPASS), (2, ABORT), (1, STE)] {
        let from = bed.device.domain_of(EndpointId(ARM));
        assert_eq!(bed.ste(domain, ARM, entry), Status::Ok);
        let table = viommu_core::Table::ArmSmmu3 { ste: entry };
        let to = DomainId(domain);
        let expected = Change::AttachTable { endpoint: EndpointId(ARM), pasid: None, from, to, table };
        assert_eq!(bed.last(), expected);
        assert!(!bed.exists(3 - domain));
    }
    assert_eq!(bed.host.asked.len(), 5);
}

//= T20 T21
#[test]
fn what_is_not_named_stays() {
    let mut bed = Bed::new();
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(1), 0x2000), Status::Ok);
    assert_eq!(bed.pt(1, VTD, Some(2), 0x3000), Status::Ok);
    assert_eq!(bed.pt(1, VTD2, None, 0x9000), Status::Ok);
    // A PASID, and then the endpoint.
    assert_eq!(bed.pt(4, VTD, Some(1), 0x4000), Status::Ok);
    let expected = [Some((1, 0x1000)), Some((4, 0x4000)), Some((1, 0x3000))];
    assert_eq!([None, Some(1), Some(2)].map(|pasid| bed.root(VTD, pasid)), expected);
    assert_eq!(bed.pt(5, VTD, None, 0x5000), Status::Ok);
    let expected = [Some((5, 0x5000)), Some((4, 0x4000)), Some((1, 0x3000))];
    assert_eq!([None, Some(1), Some(2)].map(|pasid| bed.root(VTD, pasid)), expected);
    assert_eq!(bed.root(VTD2, None), Some((1, 0x9000)));
    let pasids: Vec<Pasid> = bed.device.pasids(EndpointId(VTD)).collect();
    assert_eq!(pasids, [Pasid(1), Pasid(2)]);
}

//= T23
#[test]
fn domains_and_pasids_have_limits() {
    let mut bed = Bed::limited(Limits { domains_max: 2, pasids_max: 2, ..Limits::default() });
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(2, VTD, Some(1), 0x1000), Status::Ok);
    assert_eq!(bed.pt(3, VTD, Some(2), 0x1000), Status::NoMem, "a third domain");
    assert_eq!(bed.pt(3, VTD, Some(1), 0x1000), Status::Ok, "in place of one");
    assert_eq!(bed.pt(4, VTD, None, 0x1000), Status::Ok, "in place of one");
    assert_eq!(bed.pt(4, VTD2, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(5, VTD, None, 0x1000), Status::NoMem, "the other endpoint is still in it");
    assert_eq!(bed.pt(4, VTD2, Some(7), 0x1000), Status::Ok);
    assert_eq!(bed.pt(4, VTD2, Some(8), 0x1000), Status::NoMem, "a third PASID");
    assert_eq!(bed.pt(4, VTD2, Some(7), 0x2000), Status::Ok, "in place of one");
}

//= T23
#[test]
fn a_move_into_bypass_counts_a_domain_that_ends_with_a_pasid() {
    let mut bed = Bed::limited(Limits { domains_max: 2, ..Limits::default() });
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(1, VTD2, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(2, VTD, Some(1), 0x1000), Status::Ok);
    assert_eq!(bed.send(request::attach_bypass(3, VTD2)), Status::NoMem);
    bed.done(request::attach_bypass(3, VTD));
    assert!(bed.exists(1) && !bed.exists(2));
}
