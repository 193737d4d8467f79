// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the formats refuse before any host is asked.

use viommu_core::wire::{DescriptorIntelPt, FORMAT_INTEL_PT, FORMAT_NONE};
use viommu_core::{EndpointId, Status, TableHardware, TableSupport};
use viommu_tests::model::request::{self, Wire};
use zerocopy::FromZeros;

use super::bed::{ABORT, ARM, ARM_ATS, BYPASS, Bed, STE, VTD, arm};

/// The bits of a stream table entry that mean something here.
const FIELDS: [u64; 2] = [0xf80f_ffff_ffff_fff1 | 0xf, 0x3800_00ff];

fn intel(change: impl FnOnce(&mut DescriptorIntelPt)) -> impl Wire {
    let mut descriptor =
        DescriptorIntelPt { pgd: 0x1000.into(), addr_width: 48.into(), ..DescriptorIntelPt::new_zeroed() };
    change(&mut descriptor);
    request::attach_table(1, VTD, FORMAT_INTEL_PT, &descriptor)
}

//= T11
#[test]
fn no_bit_of_an_entry_but_those_of_stage_1_is_taken() {
    let mut bed = Bed::new();
    for word in 0..2 {
        for bit in 0..64 {
            let mut entry = STE;
            entry[word] |= 1 << bit;
            let is_field = FIELDS[word] & 1 << bit != 0;
            let status = bed.ste(1, ARM_ATS, entry);
            assert_eq!(status == Status::Inval, !is_field || entry[0] & 0xe != 0b1010 || entry[1] == 1 << 29);
        }
    }
}

//= T11
#[test]
fn no_other_byte_of_a_descriptor_is_taken() {
    let arm = request::attach_ste(1, ARM, STE).readable();
    let intel = request::attach_pt(1, VTD, None, 0x1000).readable();
    let none = request::attach_none(1, VTD, 1).readable();
    let mut bed = Bed::new();
    for (request, fields) in [(arm, 16..32), (intel, 16..44), (none, 36..44)] {
        for at in (13..124).filter(|at| !fields.contains(at)) {
            let mut bent = request.clone();
            bent[at] = 0x10;
            assert_eq!(bed.raw(&bent), Status::Inval, "byte {at}");
        }
    }
    assert!(bed.host.asked.is_empty());
}

//= T11
#[test]
fn the_table_at_the_end_of_the_address_space_is_no_table() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, [u64::MAX, u64::MAX]), Status::Inval);
    assert_eq!(bed.ste(1, ARM, [STE[0] | 0x00ff_ffff_ffff_ffc0, 0]), Status::Inval);
    assert_eq!(bed.send(request::attach_pt(1, VTD, None, u64::MAX)), Status::Inval);
    assert!(bed.host.asked.is_empty());
}

//= T12
#[test]
fn format_none_is_for_pasids() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(request::attach_pt(1, VTD, None, 0x1000)), Status::Ok);
    assert_eq!(bed.send(request::attach_pt(1, VTD, Some(1), 0x1000)), Status::Ok);
    let good =
        DescriptorIntelPt { pasid: 1.into(), attach_flags: 1.into(), ..DescriptorIntelPt::new_zeroed() };
    let changes: [fn(&mut DescriptorIntelPt); 5] = [
        |none| none.attach_flags = 0.into(),
        |none| none.attach_flags = 3.into(),
        |none| none.flags = 1.into(),
        |none| none.pgd = 0x1000.into(),
        |none| none.addr_width = 48.into(),
    ];
    for change in changes {
        let mut bent = good;
        change(&mut bent);
        assert_eq!(bed.send(request::attach_table(1, VTD, FORMAT_NONE, &bent)), Status::Inval);
    }
    assert_eq!(bed.send(request::attach_table(1, VTD, FORMAT_NONE, &good)), Status::Ok);
}

//= T15a
#[test]
fn an_entry_is_valid_and_says_something() {
    let mut bed = Bed::new();
    for good in [ABORT, BYPASS, STE] {
        assert_eq!(bed.ste(1, ARM, good), Status::Ok);
        assert_eq!(bed.ste(1, ARM, [good[0] & !1, 0]), Status::Inval, "V");
    }
    for config in [0b001, 0b010, 0b011, 0b110, 0b111] {
        assert_eq!(bed.ste(1, ARM, [1 | config << 1, 0]), Status::Inval, "Config {config:#b}");
    }
    assert_eq!(bed.ste(1, ARM, [STE[0] | 3 << 4, 0]), Status::Inval, "S1Fmt");
    assert_eq!(bed.ste(1, ARM, [STE[0], 3]), Status::Inval, "S1DSS");
    for eats in [2, 3] {
        assert_eq!(bed.ste(1, ARM_ATS, [STE[0], eats << 28]), Status::Inval, "EATS {eats}");
    }
}

//= T15b
#[test]
fn only_an_endpoint_with_ats_is_trusted_with_it() {
    let mut bed = Bed::new();
    for entry in [STE, BYPASS] {
        assert_eq!(bed.ste(1, ARM, [entry[0], 1 << 28]), Status::Unsupp);
        assert_eq!(bed.ste(1, ARM_ATS, [entry[0], 1 << 28]), Status::Ok);
    }
}

//= T15c
#[test]
fn a_table_of_contexts_is_not_larger_than_hardware_can_have_it() {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, [STE[0] | 10 << 59, 0]), Status::Ok);
    assert_eq!(bed.ste(1, ARM, [STE[0] | 11 << 59, 0]), Status::Range);
    assert_eq!(bed.ste(1, ARM, [STE[0] | 31 << 59, 0]), Status::Range);
    assert_eq!(bed.ste(1, ARM, [BYPASS[0] | 31 << 59, 0]), Status::Ok, "nobody reads it");
}

//= T15d
#[test]
fn two_levels_of_contexts_are_a_capability() {
    let mut bed = Bed::new();
    let two_levels = [STE[0] | 1 << 4 | 4 << 59, 0];
    assert_eq!(bed.ste(1, ARM, two_levels), Status::Ok);
    let hardware = TableHardware::ArmSmmu3 { idr: [0, 10 << 6, 0, 0, 0, 1 << 4] };
    bed.device.set_tables(EndpointId(ARM), Some(TableSupport { hardware, ..arm(false) }));
    assert_eq!(bed.ste(1, ARM, two_levels), Status::Unsupp);
    assert_eq!(bed.ste(1, ARM, [STE[0] | 1 << 4, 0]), Status::Ok, "of one context there is one level");
}

//= T16a
#[test]
fn an_intel_table_is_on_a_page_and_of_a_width_that_there_is() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(intel(|_| {})), Status::Ok);
    let changes: [fn(&mut DescriptorIntelPt); 8] = [
        |table| table.pgd = 0x1001.into(),
        |table| table.pgd = 0x1800.into(),
        |table| table.addr_width = 0.into(),
        |table| table.addr_width = 39.into(),
        |table| table.addr_width = 64.into(),
        |table| table.flags = 8.into(),
        |table| table.attach_flags = 2.into(),
        |table| table.pasid = 1.into(),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        assert_eq!(bed.send(intel(change)), Status::Inval, "{number}");
    }
}

//= T16b
#[test]
fn what_an_intel_table_asks_for_is_in_the_capability_registers() {
    let mut bed = Bed::new();
    assert_eq!(bed.send(intel(|table| table.flags = (1 | 4).into())), Status::Ok);
    assert_eq!(bed.send(intel(|table| table.flags = 2.into())), Status::Unsupp, "EAFE");
    assert_eq!(bed.send(intel(|table| table.addr_width = 57.into())), Status::Ok);
    let hardware = TableHardware::IntelVtd { flags: 0, cap: 0, ecap: 1 << 34 };
    let support = TableSupport { hardware, ..super::bed::vtd() };
    bed.device.set_tables(EndpointId(VTD), Some(support));
    assert_eq!(bed.send(intel(|table| table.flags = 2.into())), Status::Ok);
    assert_eq!(bed.send(intel(|table| table.flags = 1.into())), Status::Unsupp, "SRE");
    assert_eq!(bed.send(intel(|table| table.addr_width = 57.into())), Status::Unsupp);
}
