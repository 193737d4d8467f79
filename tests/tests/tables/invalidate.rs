// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATE.

use viommu_core::wire::ReqInvalidate;
use viommu_core::{Change, EndpointId, Invalidation, Pasid, Scope, Status, TableHardware, TableSupport};
use viommu_tests::model::request::{self, invalidate, invalidate_pages};

use super::bed::{ARM, ARM_ATS, Bed, STE, VTD, VTD2, arm};

/// ARM in domain 1, VTD in 2 with PASID 3 in 4.
fn bed() -> Bed {
    let mut bed = Bed::new();
    assert_eq!(bed.ste(1, ARM, STE), Status::Ok);
    assert_eq!(bed.pt(2, VTD, None, 0x1000), Status::Ok);
    assert_eq!(bed.pt(4, VTD, Some(3), 0x1000), Status::Ok);
    bed
}

fn with_pasid(request: ReqInvalidate, pasid: u32) -> ReqInvalidate {
    ReqInvalidate { flags: (request.flags.get() | 2).into(), pasid: pasid.into(), ..request }
}

fn with_id(request: ReqInvalidate, id: u64) -> ReqInvalidate {
    ReqInvalidate { flags: (request.flags.get() | 4).into(), id: id.into(), ..request }
}

impl Bed {
    /// What the host was told by a request that succeeds.
    fn told(&mut self, request: ReqInvalidate) -> Invalidation {
        self.done(request);
        match self.last() {
            Change::Invalidate { invalidation, .. } => invalidation,
            other => panic!("{other:?}"),
        }
    }
}

//= T30
#[test]
fn only_domains_of_tables_have_something_to_invalidate() {
    let mut bed = bed();
    bed.done(request::attach_bypass(7, VTD2));
    assert_eq!(bed.send(invalidate(7)), Status::Inval);
    assert_eq!(bed.send(invalidate(8)), Status::NoEnt);
    bed.done(invalidate(1));
    bed.done(request::detach(1, ARM));
    assert_eq!(bed.send(invalidate(1)), Status::NoEnt);
}

//= T31
#[test]
fn what_is_not_understood_is_refused() {
    let mut bed = bed();
    for scope in [0, 4, 255] {
        assert_eq!(bed.send(ReqInvalidate { scope, ..invalidate(1) }), Status::Inval);
    }
    for caches in [0, 4, 7, 0x80] {
        assert_eq!(bed.send(ReqInvalidate { caches, ..invalidate(1) }), Status::Inval);
    }
    for bit in 4..16 {
        assert_eq!(bed.send(ReqInvalidate { flags: (1 << bit).into(), ..invalidate(1) }), Status::Inval);
    }
    for at in 0..19 {
        let mut request = invalidate(1);
        request.reserved[at] = 1;
        assert_eq!(bed.send(request), Status::Inval);
    }
}

#[test]
fn fields_that_are_not_said_to_be_valid_are_not_looked_at() {
    let mut bed = bed();
    let noise = ReqInvalidate {
        pasid: u32::MAX.into(),
        id: u64::MAX.into(),
        address: 1.into(),
        nr_pages: 0.into(),
        page_size: 200,
        ..invalidate(1)
    };
    let told = bed.told(noise);
    assert_eq!((told.scope, told.id, told.leaf, told.global), (Scope::Domain, None, false, false));
}

//= T32a
#[test]
fn a_domain_with_a_pasid_is_the_pasid() {
    let mut bed = bed();
    assert_eq!(bed.told(with_pasid(invalidate(1), 5)).scope, Scope::Pasid(Pasid(5)));
    let scope = ReqInvalidate { scope: 2, ..with_pasid(invalidate(1), 6) };
    assert_eq!(bed.told(scope).scope, Scope::Pasid(Pasid(6)));
}

//= T32b
#[test]
fn a_scope_needs_what_it_is_about() {
    let mut bed = bed();
    assert_eq!(bed.send(ReqInvalidate { scope: 2, ..invalidate(1) }), Status::Inval);
    let pages = invalidate_pages(1, 0x1000, 1, 12);
    assert_eq!(bed.send(ReqInvalidate { caches: 1, ..pages }), Status::Inval);
    bed.done(ReqInvalidate { caches: 3, ..pages });
    bed.done(pages);
}

//= T33a
#[test]
fn a_pasid_that_is_attached_elsewhere_or_nowhere_is_not_there() {
    let mut bed = bed();
    bed.done(with_pasid(invalidate(4), 3));
    bed.done(with_pasid(invalidate_pages(4, 0, 1, 12), 3));
    assert_eq!(bed.send(with_pasid(invalidate(2), 3)), Status::NoEnt);
    assert_eq!(bed.send(with_pasid(invalidate(4), 2)), Status::NoEnt);
    assert_eq!(bed.send(with_pasid(invalidate_pages(4, 0, 1, 12), u32::MAX)), Status::NoEnt);
}

//= T33b
#[test]
fn a_pasid_of_the_guests_own_table_only_has_to_be_possible() {
    let mut bed = bed();
    bed.done(with_pasid(invalidate(1), 0));
    bed.done(with_pasid(invalidate(1), 1023));
    assert_eq!(bed.send(with_pasid(invalidate(1), 1024)), Status::Range);
    assert_eq!(bed.send(with_pasid(invalidate_pages(1, 0, 1, 12), u32::MAX)), Status::Range);
    let hardware = TableHardware::ArmSmmu3 { idr: [1 << 19, 20 << 6, 0, 0, 0, 1 << 4] };
    bed.device.set_tables(EndpointId(ARM_ATS), Some(TableSupport { hardware, ..arm(true) }));
    assert_eq!(bed.ste(1, ARM_ATS, STE), Status::Ok);
    bed.done(with_pasid(invalidate(1), 1024));
}

//= T34
#[test]
fn a_page_size_is_one_of_the_hardware() {
    let mut bed = bed();
    for page_size in 0..=255 {
        let arm = bed.send(invalidate_pages(1, 0, 1, page_size));
        assert_eq!(arm == Status::Ok, [12, 21, 30, 16, 29].contains(&page_size), "{page_size}");
        let vtd = bed.send(invalidate_pages(2, 0, 1, page_size));
        assert_eq!(vtd == Status::Ok, [12, 21].contains(&page_size), "{page_size}");
        assert!([arm, vtd].iter().all(|status| matches!(status, Status::Ok | Status::Range)));
    }
    // Endpoints that share a domain share the page sizes that all have.
    let hardware = TableHardware::ArmSmmu3 { idr: [0, 0, 0, 0, 0, 1 << 4 | 1 << 5] };
    bed.device.set_tables(EndpointId(ARM_ATS), Some(TableSupport { hardware, ..arm(true) }));
    assert_eq!(bed.ste(1, ARM_ATS, STE), Status::Ok);
    bed.done(invalidate_pages(1, 0, 1, 12));
    for page_size in [16, 14] {
        assert_eq!(bed.send(invalidate_pages(1, 0, 1, page_size)), Status::Range);
    }
}

//= T35
#[test]
fn a_range_is_of_whole_pages_within_64_bits() {
    let mut bed = bed();
    for (address, pages, page_size) in [
        (0x1001, 1, 12),
        (0x800, 1, 12),
        (0x1000, 1, 21),
        (0, 0, 12),
        (0x1000, 1 << 52, 12),
        (0, (1 << 52) + 1, 12),
        (0, u64::MAX, 12),
        (0xffff_ffff_ffff_f000, 2, 12),
        (0, 1 << 43 | 1, 21),
    ] {
        let request = invalidate_pages(1, address, pages, page_size);
        assert_eq!(bed.send(request), Status::Range, "{pages} of 2^{page_size} at {address:#x}");
    }
}

//= T36
#[test]
fn an_id_is_of_16_bits_where_there_are_ids() {
    let mut bed = bed();
    assert_eq!(bed.told(with_id(invalidate(1), 0xffff)).id, Some(0xffff));
    assert_eq!(bed.send(with_id(invalidate(1), 0x1_0000)), Status::Range);
    assert_eq!(bed.send(with_id(invalidate(1), u64::MAX)), Status::Range);
    assert_eq!(bed.send(with_id(invalidate(2), 0)), Status::Range);
}

//= T37
#[test]
fn no_range_is_too_large() {
    let mut bed = bed();
    for (address, pages, page_size) in [
        (0, 1 << 52, 12),
        (0x1000, (1 << 52) - 1, 12),
        (0xffff_ffff_ffff_f000, 1, 12),
        (0, 1 << 34, 30),
        (1 << 63, 1 << 42, 21),
    ] {
        let told = bed.told(invalidate_pages(1, address, pages, page_size));
        let whole = Scope::Addresses { pasid: None, start: address, pages, page_shift: page_size };
        assert_eq!(told.scope, whole);
    }
}
