// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Domains of tables: how they come and go, and what nobody can reach through them.

use viommu_core::{Access, DeviceConfig, DomainId, EndpointId, FaultReason, Iova, Status};
use viommu_tests::model::request;

use super::bed::{ARM, Bed, STE, VTD, VTD2, config};

//= T5
#[test]
fn a_domain_lasts_as_long_as_something_is_in_it() {
    let mut bed = Bed::new();
    assert!(!bed.exists(1));
    assert_eq!(bed.pt(1, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(2, VTD, Some(1), 0x1000), Status::Ok);
    assert_eq!(bed.pt(2, VTD2, None, 0x1000), Status::Ok);
    bed.done(request::attach_none(2, VTD, 1));
    assert!(bed.exists(2));
    bed.done(request::detach(2, VTD2));
    assert!(!bed.exists(2) && bed.exists(1));
}

//= T6
#[test]
fn a_detach_takes_the_pasids_along() {
    let mut bed = Bed::new();
    for pasid in [None, Some(1), Some(2)] {
        assert_eq!(bed.pt(1 + pasid.unwrap_or(0), VTD, pasid, 0x1000), Status::Ok);
    }
    assert_eq!(bed.send(request::detach(2, VTD)), Status::Inval, "only a PASID is in it");
    bed.done(request::detach(1, VTD));
    assert!(bed.device.pasids(EndpointId(VTD)).next().is_none());
    assert!((1..=3).all(|domain| !bed.exists(domain)));
}

//= T6
#[test]
fn a_move_into_bypass_takes_the_pasids_along() {
    let mut bed = Bed::new();
    bed.done(request::attach_bypass(9, VTD));
    assert_eq!(bed.pt(1, VTD, Some(1), 0x1000), Status::Ok);
    bed.done(request::attach_bypass(9, VTD));
    assert_eq!(bed.root(VTD, Some(1)), Some((1, 0x1000)), "it was there already");
    bed.done(request::attach_bypass(8, VTD));
    assert!(bed.root(VTD, Some(1)).is_none() && !bed.exists(1));
}

//= T7
#[test]
fn nothing_but_hardware_walks_a_table() {
    let mut bed = Bed::with(DeviceConfig { boot_bypass: true, ..config() });
    let reads = |bed: &Bed| bed.device.lookup(EndpointId(ARM), Iova(0x1000), Access::READ);
    assert!(reads(&bed).is_ok(), "bypass");
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(reads(&bed).map_err(|fault| fault.reason), Err(FaultReason::Unknown));
    let mut translated = bed.device.translate(EndpointId(ARM), Iova(0x1000), 1, Access::WRITE);
    assert!(translated.next().is_some_and(|piece| piece.is_err()));
    bed.done(request::attach_bypass(2, ARM));
    assert!(reads(&bed).is_ok());
}

//= T7
#[test]
fn an_endpoint_that_is_about_to_get_a_table_reaches_nothing() {
    use viommu_core::Step;
    use viommu_tests::model::request::{TAIL_SIZE, Wire};
    let mut bed = Bed::with(DeviceConfig { boot_bypass: true, ..config() });
    let step = bed.device.begin(&request::attach_ste(1, ARM, STE).readable(), TAIL_SIZE);
    assert!(matches!(step, Step::Apply(_)));
    assert!(bed.device.lookup(EndpointId(ARM), Iova(0), Access::READ).is_err());
    let reply = bed.device.finish(Err(viommu_core::HostError { operation: "test", errno: 5 }));
    assert!(reply.rejected.is_some());
    assert!(bed.device.lookup(EndpointId(ARM), Iova(0), Access::READ).is_ok());
}

//= T8
#[test]
fn a_reset_leaves_no_table() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(3, VTD, Some(1), 0x1000), Status::Ok);
    let lingering = bed.device.reset();
    let endpoints: Vec<EndpointId> = lingering.iter().map(|old| old.endpoint).collect();
    assert_eq!(endpoints, [EndpointId(ARM), EndpointId(VTD)]);
    assert!(lingering.iter().all(|old| old.domain.table_format().is_some()));
    assert!([ARM, VTD].iter().all(|id| bed.device.table_of(EndpointId(*id), None).is_none()));
    assert!(bed.device.pasids(EndpointId(VTD)).next().is_none());
    assert!((1..=3).all(|domain| bed.device.domain(DomainId(domain)).is_none()));
    assert_eq!(bed.device.check_invariants(), Ok(()));
}
