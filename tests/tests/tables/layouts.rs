// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The layouts, byte by byte, against the manual's offsets rather than our structures.

use viommu_core::{
    Caches, Change, DomainId, EndpointId, Gpa, Invalidation, Pasid, ResponseCode, Scope, Status, Table,
};

use super::bed::{ARM, Bed, VTD, group};

/// A request of so many bytes with these fields.
fn bytes(size: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

fn attach_arm() -> Vec<u8> {
    let (ste0, ste1) = (0x4000_000bu64, 0x10u64);
    let fields: &[(usize, &[u8])] = &[
        (0, &[6]),
        (4, &1u32.to_le_bytes()),
        (8, &ARM.to_le_bytes()),
        (12, &[1]),
        (16, &ste0.to_le_bytes()),
        (24, &ste1.to_le_bytes()),
    ];
    bytes(124, fields)
}

fn attach_intel(pasid: u32, attach_flags: u32) -> Vec<u8> {
    let fields: &[(usize, &[u8])] = &[
        (0, &[6]),
        (4, &2u32.to_le_bytes()),
        (8, &VTD.to_le_bytes()),
        (12, &[2]),
        (16, &4u64.to_le_bytes()),
        (24, &0x5000u64.to_le_bytes()),
        (32, &48u32.to_le_bytes()),
        (36, &pasid.to_le_bytes()),
        (40, &attach_flags.to_le_bytes()),
    ];
    bytes(124, fields)
}

#[test]
fn an_arm_table_is_two_words_at_16() {
    let mut bed = Bed::new();
    assert_eq!(bed.raw(&attach_arm()), Status::Ok);
    let expected = Change::AttachTable {
        endpoint: EndpointId(ARM),
        pasid: None,
        from: None,
        to: DomainId(1),
        table: Table::ArmSmmu3 { ste: [0x4000_000b, 0x10] },
    };
    assert_eq!(bed.last(), expected);
}

#[test]
fn an_intel_table_is_flags_root_width_and_pasid() {
    let mut bed = Bed::new();
    assert_eq!(bed.raw(&attach_intel(0, 0)), Status::Ok);
    assert_eq!(bed.raw(&attach_intel(9, 1)), Status::Ok);
    let expected = Change::AttachTable {
        endpoint: EndpointId(VTD),
        pasid: Some(Pasid(9)),
        from: None,
        to: DomainId(2),
        table: Table::IntelPt { flags: 4, root: Gpa(0x5000), address_bits: 48 },
    };
    assert_eq!(bed.last(), expected);
    let none: &[(usize, &[u8])] = &[
        (0, &[6]),
        (4, &2u32.to_le_bytes()),
        (8, &VTD.to_le_bytes()),
        (36, &9u32.to_le_bytes()),
        (40, &1u32.to_le_bytes()),
    ];
    assert_eq!(bed.raw(&bytes(124, none)), Status::Ok);
    let expected = Change::DetachPasid { endpoint: EndpointId(VTD), pasid: Pasid(9), from: DomainId(2) };
    assert_eq!(bed.last(), expected);
}

#[test]
fn an_invalidation_has_its_range_at_24() {
    let mut bed = Bed::new();
    assert_eq!(bed.raw(&attach_arm()), Status::Ok);
    let fields: &[(usize, &[u8])] = &[
        (0, &[7]),
        (4, &[3, 3]),
        (6, &0xfu16.to_le_bytes()),
        (8, &1u32.to_le_bytes()),
        (12, &5u32.to_le_bytes()),
        (16, &0x1234u64.to_le_bytes()),
        (24, &0x20_0000u64.to_le_bytes()),
        (32, &7u64.to_le_bytes()),
        (40, &[21]),
    ];
    assert_eq!(bed.raw(&bytes(60, fields)), Status::Ok);
    let scope = Scope::Addresses { pasid: Some(Pasid(5)), start: 0x20_0000, pages: 7, page_shift: 21 };
    let invalidation =
        Invalidation { scope, caches: Caches::all(), leaf: true, id: Some(0x1234), global: true };
    assert_eq!(bed.last(), Change::Invalidate { domain: DomainId(1), invalidation });
}

#[test]
fn a_response_has_its_code_at_20() {
    let mut bed = Bed::new();
    assert_eq!(bed.raw(&attach_intel(0, 0)), Status::Ok);
    assert_eq!(bed.raw(&attach_intel(9, 1)), Status::Ok);
    let to = group(VTD, Some(9), 0x0102_0304);
    assert!(bed.ask_by(to, 77, 1, 0));
    let fields: &[(usize, &[u8])] = &[
        (0, &[8]),
        (4, &VTD.to_le_bytes()),
        (8, &1u32.to_le_bytes()),
        (12, &9u32.to_le_bytes()),
        (16, &0x0102_0304u32.to_le_bytes()),
        (20, &2u16.to_le_bytes()),
    ];
    assert_eq!(bed.raw(&bytes(32, fields)), Status::Ok);
    assert_eq!(bed.last(), Change::Respond { to, cookie: 77, code: ResponseCode::Failure });
}

#[test]
fn a_request_that_ends_too_early_is_refused_and_one_with_more_is_not() {
    let mut bed = Bed::new();
    let requests = [attach_arm(), bytes(60, &[(0, &[7])]), bytes(32, &[(0, &[8])])];
    for request in requests {
        for length in 1..request.len() {
            assert_eq!(bed.raw(&request[..length]), Status::Inval);
        }
    }
    let mut longer = attach_arm();
    longer.extend([0xff; 9]);
    assert_eq!(bed.raw(&longer), Status::Ok);
}
