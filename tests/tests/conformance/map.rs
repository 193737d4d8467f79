// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MAP: A28 to A34 and A51.

use viommu_core::wire::{MAP_F_MMIO, MAP_F_READ, MAP_F_WRITE};
use viommu_core::{
    Change, DomainId, EndpointId, FaultReason, Features, Gpa, ReservedKind, ReservedRegion, Status,
};
use viommu_tests::model::request;

use crate::bed::{ALL, Bed, EP, EP2, RW, config};

fn attached() -> Bed {
    let mut bed = Bed::new();
    assert_eq!(bed.attach(1, EP), Status::Ok);
    bed
}

//= A28
#[test]
fn a_range_or_target_off_the_granule_is_out_of_range() {
    let mut bed = attached();
    for off in [1, 0x800, 0xfff] {
        assert_eq!(bed.map(1, (0x1000 + off, 0x1fff), 0x8000), Status::Range);
        assert_eq!(bed.map(1, (0x1000, 0x1fff - off), 0x8000), Status::Range);
        assert_eq!(bed.map(1, (0x1000, 0x1fff + off), 0x8000), Status::Range);
        assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000 + off), Status::Range);
    }
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0x8000), Status::Ok);
}

//= A28
#[test]
fn only_the_lowest_bit_of_the_page_size_mask_counts() {
    let mut config = config();
    config.page_size_mask = 0x4001_0000;
    let mut bed = Bed::with(config);
    bed.attach(1, EP);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Range);
    assert_eq!(bed.map(1, (0x1_0000, 0x1_ffff), 0x1000), Status::Range);
    assert_eq!(bed.map(1, (0x1_0000, 0x1_ffff), 0x1_0000), Status::Ok);
}

#[test]
fn a_granule_below_four_kib_is_refused_with_the_mend() {
    let mut config = config();
    config.page_size_mask = 0x1800;
    let refused = viommu_core::Device::new(config).expect_err("no such granule").to_string();
    assert!(refused.contains("2048 bytes") && refused.contains("0x1000 or higher"), "{refused}");
}

#[test]
fn a_reversed_range_is_out_of_range() {
    let mut bed = attached();
    assert_eq!(bed.map(1, (0x2000, 0x1fff), 0), Status::Range);
    assert_eq!(bed.map(1, (u64::MAX, 0), 0), Status::Range);
    assert_eq!(bed.map(1, (0x1000, 0), 0), Status::Range);
}

#[test]
fn a_target_that_passes_the_end_of_the_address_space_is_out_of_range() {
    let mut bed = attached();
    let last_page = u64::MAX - 0xfff;
    assert_eq!(bed.map(1, (0x1000, 0x2fff), last_page), Status::Range);
    assert_eq!(bed.map(1, ALL, 0x1000), Status::Range);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), last_page), Status::Ok);
    assert_eq!(bed.reads(EP, 0x1fff), Ok(u64::MAX));
}

#[test]
fn the_last_granule_of_the_space_can_be_mapped() {
    let mut bed = attached();
    assert_eq!(bed.map(1, (u64::MAX - 0xfff, u64::MAX), 0x8000), Status::Ok);
    assert_eq!(bed.reads(EP, u64::MAX), Ok(0x8fff));
    assert_eq!(bed.map(1, (u64::MAX - 0x1fff, u64::MAX), 0), Status::Inval);
    assert_eq!(bed.unmap(1, (u64::MAX - 0xfff, u64::MAX)), Status::Ok);
    assert_eq!(bed.reads(EP, u64::MAX), Err(FaultReason::Mapping));
}

#[test]
fn one_mapping_can_hold_the_whole_space() {
    let mut bed = attached();
    assert_eq!(bed.map(1, ALL, 0), Status::Ok);
    assert_eq!((bed.reads(EP, 0), bed.writes(EP, u64::MAX)), (Ok(0), Ok(u64::MAX)));
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Inval);
    assert_eq!(bed.unmap(1, ALL), Status::Ok);
}

#[test]
fn a_range_outside_the_input_range_is_out_of_range() {
    let mut config = config();
    config.aperture = request::range(0x10_0000, 0x1f_ffff);
    let mut bed = Bed::with(config);
    bed.attach(1, EP);
    for range in [(0xf_f000, 0xf_ffff), (0xf_f000, 0x10_0fff), (0x1f_f000, 0x20_0fff), ALL] {
        assert_eq!(bed.map(1, range, 0), Status::Range, "{range:x?}");
    }
    assert_eq!(bed.map(1, (0x10_0000, 0x1f_ffff), 0), Status::Ok);
}

//= A29
#[test]
fn a_range_that_touches_a_mapping_is_invalid() {
    let mut bed = attached();
    assert_eq!(bed.map(1, (0x3000, 0x5fff), 0x8000), Status::Ok);
    let touching =
        [(0x3000, 0x5fff), (0x4000, 0x4fff), (0x2000, 0x3fff), (0x5000, 0x6fff), (0x2000, 0x6fff), ALL];
    for range in touching {
        assert_eq!(bed.map(1, range, 0), Status::Inval, "{range:x?}");
    }
    assert_eq!(bed.map(1, (0x2000, 0x2fff), 0), Status::Ok);
    assert_eq!(bed.map(1, (0x6000, 0x6fff), 0), Status::Ok);
}

//= A30
#[test]
fn map_with_an_unknown_flag_is_invalid() {
    let mut bed = attached();
    for bit in 3..32 {
        let map = request::map(1, (0x1000, 0x1fff), 0, RW | 1 << bit);
        assert_eq!(bed.send(map), Status::Inval);
    }
}

//= A30
#[test]
fn the_mmio_flag_is_unknown_without_its_feature() {
    let mut bed = Bed::without(Features::MMIO);
    bed.attach(1, EP);
    assert_eq!(bed.send(request::map(1, (0x1000, 0x1fff), 0, RW | MAP_F_MMIO)), Status::Inval);
    assert_eq!(bed.send(request::map(1, (0x1000, 0x1fff), 0, RW)), Status::Ok);
}

#[test]
fn the_host_learns_what_a_mapping_allows_and_whether_it_is_device_memory() {
    let mut bed = attached();
    assert_eq!(bed.send(request::map(1, (0x1000, 0x1fff), 0x8000, MAP_F_WRITE | MAP_F_MMIO)), Status::Ok);
    let Some(Change::Map { domain, range, target }) = bed.host.asked.last() else {
        panic!("{:?}", bed.host.asked);
    };
    assert_eq!((*domain, *range), (DomainId(1), request::range(0x1000, 0x1fff)));
    assert_eq!((target.gpa, target.access.bits(), target.mmio), (Gpa(0x8000), MAP_F_WRITE, true));
}

//= A31
#[test]
fn map_in_a_domain_that_does_not_exist_finds_none() {
    let mut bed = attached();
    assert_eq!(bed.map(2, (0x1000, 0x1fff), 0), Status::NoEnt);
}

//= A32
#[test]
fn map_in_a_bypass_domain_is_invalid() {
    let mut bed = Bed::new();
    bed.send(request::attach_bypass(1, EP));
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Inval);
    assert_eq!(bed.reads(EP, 0x1000), Ok(0x1000));
}

//= A33a A33b
#[test]
fn an_access_needs_the_right_it_uses() {
    let mut bed = attached();
    for (page, flags) in [(1, MAP_F_READ), (2, MAP_F_WRITE), (3, RW), (4, 0)] {
        let range = (page << 12, (page << 12) | 0xfff);
        assert_eq!(bed.send(request::map(1, range, range.0, flags)), Status::Ok);
        let allowed = |right: u32| if flags & right != 0 { Ok(range.0) } else { Err(FaultReason::Mapping) };
        assert_eq!(bed.reads(EP, range.0), allowed(MAP_F_READ));
        assert_eq!(bed.writes(EP, range.0), allowed(MAP_F_WRITE));
    }
}

//= A51
#[test]
fn a_range_that_touches_a_reserved_region_of_any_endpoint_in_the_domain_is_invalid() {
    let mut bed = attached();
    let msi = ReservedRegion { range: request::range(0xfee0_0000, 0xfeef_ffff), kind: ReservedKind::Msi };
    bed.device.set_reserved(EndpointId(EP2), &[msi]).expect("a valid list");
    assert_eq!(bed.map(1, (0xfee0_0000, 0xfee0_0fff), 0), Status::Ok, "nobody here reserves it yet");
    assert_eq!(bed.unmap(1, ALL), Status::Ok);
    assert_eq!(bed.attach(1, EP2), Status::Ok);
    for range in [(0xfee0_0000, 0xfee0_0fff), (0xfedf_f000, 0xfee0_0fff), (0xfeef_f000, 0xfef0_0fff), ALL] {
        assert_eq!(bed.map(1, range, 0), Status::Inval, "{range:x?}");
    }
    assert_eq!(bed.map(1, (0xfedf_f000, 0xfedf_ffff), 0), Status::Ok);
    assert_eq!(bed.map(1, (0xfef0_0000, 0xfef0_0fff), 0), Status::Ok);
    assert_eq!(bed.detach(1, EP2), Status::Ok);
    assert_eq!(bed.map(1, (0xfee0_0000, 0xfeef_ffff), 0), Status::Ok);
}

#[test]
fn several_faults_in_one_map_are_answered_by_the_first_in_our_order() {
    let mut bed = attached();
    bed.map(1, (0x1000, 0x1fff), 0x8000);
    // Flags, then the order of the range, then the domain, then alignment, then what is there.
    assert_eq!(bed.send(request::map(9, (0x2001, 0x1000), 1, 1 << 9)), Status::Inval);
    assert_eq!(bed.map(9, (0x2001, 0x1000), 1), Status::Range);
    assert_eq!(bed.map(9, (0x1001, 0x1fff), 1), Status::NoEnt);
    assert_eq!(bed.map(1, (0x1001, 0x1fff), 1), Status::Range);
    assert_eq!(bed.map(1, (0x1000, 0x1fff), 0), Status::Inval);
}
