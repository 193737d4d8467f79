// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the Linux driver really sends, and what it cannot bear.
//!
//! Reply lengths, empty PROBE properties and the hold on events have their tests in `framing`, `probe` and
//! `events`.

use viommu_core::wire::{MAP_F_MMIO, MAP_F_WRITE};
use viommu_core::{EndpointId, Features, ReservedKind, ReservedRegion, Status};
use viommu_tests::model::request;

use crate::bed::{Bed, EP, EP2, RW, config};

#[test]
fn detach_from_the_identity_domain_names_domain_0_and_succeeds() {
    let mut config = config();
    config.domain_ids = 5..=100;
    let mut bed = Bed::with(config);
    assert_eq!(bed.send(request::attach_bypass(5, EP)), Status::Ok);
    assert_eq!(bed.detach(0, EP), Status::Ok);
    assert_eq!(bed.domain_of(EP), None);
}

#[test]
fn without_bypass_domains_identity_comes_as_giant_mappings_around_the_reserved_regions() {
    let mut bed = Bed::without(Features::BYPASS_CONFIG);
    let msi = ReservedRegion { range: request::range(0xfee0_0000, 0xfeef_ffff), kind: ReservedKind::Msi };
    bed.device.set_reserved(EndpointId(EP), &[msi]).expect("a valid list");
    assert_eq!(bed.attach(1, EP), Status::Ok);
    for range in [(0, 0xfedf_ffff), (0xfef0_0000, u64::MAX)] {
        assert_eq!(bed.map(1, range, range.0), Status::Ok);
    }
    for iova in [0, 0xa_0000, 0xfedf_ffff, 0xfef0_0000, 1 << 52, u64::MAX] {
        assert_eq!(bed.reads(EP, iova), Ok(iova));
    }
    assert!(bed.writes(EP, 0xfee0_0000).is_err());
}

#[test]
fn all_mappings_are_replayed_into_a_domain_whose_last_endpoint_left() {
    let mut bed = Bed::new();
    let mappings: Vec<_> = (0..50u64).map(|i| (i << 13, i << 13 | 0xfff)).collect();
    bed.attach(1, EP);
    for _ in 0..3 {
        for range in &mappings {
            assert_eq!(bed.map(1, *range, 0x10_0000), Status::Ok);
        }
        assert_eq!(bed.mapped(1), mappings);
        // To the other domain and back, each time without a DETACH.
        assert_eq!(bed.attach(2, EP), Status::Ok);
        assert_eq!(bed.attach(1, EP), Status::Ok);
        assert_eq!(bed.mapped(1), []);
    }
}

#[test]
fn nothing_is_replayed_when_another_endpoint_stayed() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    bed.attach(1, EP2);
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    assert_eq!(bed.attach(2, EP), Status::Ok);
    assert_eq!(bed.attach(1, EP), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000));
}

#[test]
fn an_unmap_covers_several_contiguous_mappings() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    for range in [(0x20_0000, 0x3f_ffff), (0x40_0000, 0x40_0fff), (0x40_1000, 0x40_1fff)] {
        assert_eq!(bed.map(1, range, 0x8000_0000), Status::Ok);
    }
    assert_eq!(bed.unmap(1, (0x20_0000, 0x40_1fff)), Status::Ok);
    assert_eq!(bed.mapped(1), []);
}

#[test]
fn an_arm_guest_maps_the_doorbell_of_its_interrupt_controller_itself() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    let doorbell = request::map(1, (0x800_0000, 0x800_0fff), 0x802_0000, MAP_F_WRITE | MAP_F_MMIO);
    assert_eq!(bed.send(doorbell), Status::Ok);
    assert_eq!(bed.writes(EP, 0x800_0040), Ok(0x802_0040));
}

#[test]
fn a_map_that_is_sent_again_is_refused_and_the_first_one_stands() {
    let mut bed = Bed::new();
    bed.attach(1, EP);
    assert_eq!(bed.send(request::map(1, (0x1000, 0x1fff), 0x8000, RW)), Status::Ok);
    assert_eq!(bed.send(request::map(1, (0x1000, 0x1fff), 0x9000, RW)), Status::Inval);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x8000));
}
