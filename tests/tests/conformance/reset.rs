// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Resets of the device and of the machine: A6.

use viommu_core::{Access, EndpointId, FaultReason, Gpa, Iova, Status, Step};
use viommu_tests::model::request::{self, Wire};

use crate::bed::{Bed, EP, EP2, EP3, config};

#[test]
fn after_a_reset_there_are_no_domains_and_no_mappings() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    bed.device.reset();
    bed.host.reset(false);
    assert_eq!(bed.reads(EP, 0x1000), Err(FaultReason::Domain));
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::NoEnt);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.mapped(1), []);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::Ok);
}

//= A6a A6b
#[test]
fn bypass_outlives_a_reset_of_the_device_and_not_one_of_the_machine() {
    for boot_bypass in [false, true] {
        let mut config = config();
        config.boot_bypass = boot_bypass;
        let mut bed = Bed::with(config);
        bed.write_config(36, &[u8::from(!boot_bypass)]);
        bed.device.reset();
        assert_eq!(bed.bypass_byte(), u8::from(!boot_bypass));
        assert_eq!(bed.reads(EP, 0).is_ok(), !boot_bypass);
        bed.device.restore_boot_bypass();
        assert_eq!(bed.bypass_byte(), u8::from(boot_bypass));
    }
}

#[test]
fn a_reset_gives_back_what_each_endpoint_was_attached_to() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.attach(1, EP2);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    let lingering = bed.device.reset();
    assert_eq!(lingering.iter().map(|old| old.endpoint.0).collect::<Vec<_>>(), [EP, EP2]);
    for old in &lingering {
        let extent = old.domain.lookup(Iova(0x1008), Access::READ).expect("it was mapped");
        assert_eq!((extent.range, extent.gpa), (request::range(0x1000, 0x1fff), Gpa(0x8000)));
        assert!(old.domain.lookup(Iova(0x2000), Access::READ).is_none());
    }
    assert!(bed.device.reset().is_empty(), "it is given once");
}

#[test]
fn a_lingering_bypass_domain_lets_everything_through_and_the_unattached_do_not_linger() {
    let mut bed = Bed::new();
    bed.send(request::attach_bypass(1, EP3));
    let lingering = bed.device.reset();
    assert_eq!(lingering.len(), 1);
    assert_eq!(lingering[0].endpoint, EndpointId(EP3));
    assert!(lingering[0].domain.is_bypass());
    assert!(lingering[0].domain.lookup(Iova(u64::MAX), Access::WRITE).is_some());
}

#[test]
fn reserved_regions_and_the_count_of_dropped_faults_outlive_a_reset() {
    let mut bed = Bed::new();
    let region = viommu_core::ReservedRegion {
        range: request::range(0x1000, 0x1fff),
        kind: viommu_core::ReservedKind::Reserved,
    };
    bed.device.set_reserved(EndpointId(EP), &[region]).expect("a valid list");
    let fault = bed.device.lookup(EndpointId(EP), Iova(0), Access::READ).expect_err("not attached");
    bed.device.report(viommu_core::Fault { endpoint: EndpointId(0xdead), ..fault });
    bed.device.reset();
    assert_eq!(bed.device.faults_dropped(), 1);
    bed.attach(1, EP);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Inval);
}

#[test]
fn a_change_under_way_at_a_reset_is_never_committed() {
    let mut bed = Bed::new();
    let step = bed.device.begin(&request::attach(1, EP).readable(), 4);
    assert!(matches!(step, Step::Apply(_)));
    assert!(bed.device.reset().is_empty());
    assert!(bed.device.finish(Ok(())).bytes.is_empty());
    assert_eq!(bed.domain_of(EP), None);
    assert_eq!(bed.device.check_invariants(), Ok(()));
}
