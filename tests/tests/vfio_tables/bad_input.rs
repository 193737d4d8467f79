// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest should not send: refused with the status that the manual names, and nothing is changed.

use anyhow::Result;
use viommu_core::wire::{
    self, ATTACH_F_BYPASS, Head, ReqAttachTable, ReqInvalidate, ReqPageResp, RequestType,
};
use viommu_core::{Caches, DomainId, EndpointId, Invalidation, Pasid, Scope, Status};
use viommu_tests::driver::{attach_table, invalidate};
use viommu_tests::vfio_vmm::{ABORT, BYPASS, Descriptor, VfioVmm};
use zerocopy::{Immutable, IntoBytes};

use crate::scene::{ASID, BLOCK, Bed, IOVA, OK, PAGE, PAGES, pages};

/// No endpoint is behind it, and one without a device.
const ABSENT: EndpointId = EndpointId(0x1e << 3);
const WITHOUT_DEVICE: EndpointId = EndpointId(0x1f << 3);

/// A device in domain 1 with a table, and requests for it.
struct Scene {
    bed: Bed,
    descriptor: Descriptor,
}

impl Scene {
    fn new() -> Result<Scene> {
        let (bed, descriptor) = Bed::attached(&["--endpoint", "00:1f.0"])?;
        Ok(Scene { bed, descriptor })
    }

    fn status(&mut self, request: &(impl IntoBytes + Immutable)) -> u8 {
        self.bed.vmm.guest().driver.request_of(request).expect("a reply").status()
    }

    /// A request is refused like that, and the device has its table still.
    #[track_caller]
    fn refuses(&mut self, status: Status, request: &(impl IntoBytes + Immutable + std::fmt::Debug)) {
        assert_eq!(self.status(request), status as u8, "{request:x?}");
        assert_eq!(self.bed.written(0, IOVA), Some(PAGES[0]), "after {request:x?}");
    }

    /// The good one that others are made from.
    fn attach(&self) -> ReqAttachTable {
        attach_table(DomainId(1), self.bed.vmm.endpoint(0), self.descriptor.entry())
    }

    fn attach_entry(&self, ste0: u64, ste1: u64) -> ReqAttachTable {
        attach_table(DomainId(1), self.bed.vmm.endpoint(0), [ste0, ste1])
    }

    fn invalidate(&self, scope: Scope) -> ReqInvalidate {
        let id = Some(ASID);
        let what = Invalidation { scope, caches: Caches::TLB, leaf: false, id, global: false };
        invalidate(DomainId(1), &what)
    }
}

#[test]
fn an_attach_that_names_what_is_not_there_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    scene.refuses(Status::NoEnt, &ReqAttachTable { endpoint: ABSENT.0.into(), ..good });
    scene.refuses(Status::Unsupp, &ReqAttachTable { endpoint: WITHOUT_DEVICE.0.into(), ..good });
    let last = scene.bed.vmm.guest().front_end.config()?.domain_last.get();
    if let Some(beyond) = last.checked_add(1) {
        scene.refuses(Status::Range, &ReqAttachTable { domain: beyond.into(), ..good });
    }
    assert_eq!(scene.status(&good), OK);
    Ok(())
}

#[test]
fn a_format_that_the_hardware_lacks_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    for format in [3, 4, 0x80, 0xff] {
        scene.refuses(Status::Unsupp, &ReqAttachTable { format, ..good });
    }
    let mut intel = wire::DescriptorIntelPt {
        reserved: [0; 3],
        flags: 0.into(),
        pgd: scene.descriptor.root.into(),
        addr_width: 48.into(),
        pasid: 0.into(),
        attach_flags: 0.into(),
        reserved1: [0; 80],
    };
    let of = |format, descriptor: &wire::DescriptorIntelPt| {
        let bytes = descriptor.as_bytes().try_into().expect("its size");
        ReqAttachTable { format, descriptor: bytes, ..good }
    };
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_INTEL_PT, &intel));
    (intel.pasid, intel.attach_flags) = (1.into(), wire::ATTACH_TABLE_F_PASID.into());
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_INTEL_PT, &intel));
    // A PASID is left without a table only where it can have one.
    scene.refuses(Status::Inval, &of(wire::FORMAT_NONE, &intel));
    (intel.pgd, intel.addr_width) = (0.into(), 0.into());
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_NONE, &intel));
    (intel.pasid, intel.attach_flags) = (0.into(), 0.into());
    scene.refuses(Status::Inval, &of(wire::FORMAT_NONE, &intel));
    Ok(())
}

#[test]
fn reserved_bits_and_fields_of_an_attach_are_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    let [ste0, ste1] = scene.descriptor.entry();
    // All bits that are no field's.
    let fields: [u64; 2] = [1 | 0xe | 0x30 | 0x000f_ffff_ffff_ffc0 | 0x1f << 59, 0xff | 1 << 27 | 3 << 28];
    for bit in 0..64 {
        if fields[0] >> bit & 1 == 0 {
            let request = scene.attach_entry(ste0 | 1 << bit, ste1);
            scene.refuses(Status::Inval, &request);
        }
        if fields[1] >> bit & 1 == 0 {
            let request = scene.attach_entry(ste0, ste1 | 1 << bit);
            scene.refuses(Status::Inval, &request);
        }
    }
    // Of the descriptor, but for the words.
    for byte in (0..wire::DESCRIPTOR_SIZE).filter(|byte| !(3..19).contains(byte)) {
        let mut request = good;
        request.descriptor[byte] = 1;
        scene.refuses(Status::Inval, &request);
    }
    // No V; other Configs; S1Fmt, S1DSS and EATS that there are not.
    let config = |config: u64| ste0 & !0xe | config << 1;
    for (ste0, ste1) in [
        (ste0 & !1, ste1),
        (config(1), ste1),
        (config(2), ste1),
        (config(3), ste1),
        (config(6), ste1),
        (config(7), ste1),
        (ste0 | 3 << 4, ste1),
        (ste0, ste1 | 3),
        (ste0, ste1 | 2 << 28),
        (ste0, ste1 | 3 << 28),
        (0, 0),
        (u64::MAX, u64::MAX),
    ] {
        let request = scene.attach_entry(ste0, ste1);
        scene.refuses(Status::Inval, &request);
    }
    assert_eq!(scene.status(&good), OK);
    Ok(())
}

#[test]
fn an_entry_for_what_the_hardware_lacks_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let [ste0, ste1] = scene.descriptor.entry();
    let with_ats = scene.attach_entry(ste0, ste1 | 1 << 28);
    scene.refuses(Status::Unsupp, &with_ats);
    let [bypass0, bypass1] = BYPASS;
    let with_ats = scene.attach_entry(bypass0, bypass1 | 1 << 28);
    scene.refuses(Status::Unsupp, &with_ats);
    // QEMU's SMMUv3 has no SubstreamIDs.
    for bits in [1, 2, 20, 31] {
        let request = scene.attach_entry(ste0 | bits << 59, ste1);
        scene.refuses(Status::Range, &request);
    }
    Ok(())
}

#[test]
fn a_table_outside_of_guest_memory_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let [ste0, ste1] = scene.descriptor.entry();
    let end = VfioVmm::MIDDLE + VfioVmm::REGION;
    for at in [
        // The last that there is a field for: of 2^64 - 1 the other bits are reserved.
        0x000f_ffff_ffff_ffc0,
        end,
        VfioVmm::LOW - 64,
        VfioVmm::HIGH - 64,
        VfioVmm::HIGH + VfioVmm::HIGH_BYTES,
        0,
        // The host's window and its interrupt controller.
        0x800_0000,
        0x809_0000,
    ] {
        let request = scene.attach_entry(ste0 & 0x3f | at, ste1);
        scene.refuses(Status::Fault, &request);
    }
    // That with the whole of the word set, too.
    let request = scene.attach_entry(u64::MAX, ste1);
    scene.refuses(Status::Inval, &request);
    // The last descriptor that there is memory for.
    let request = scene.attach_entry(ste0 & 0x3f | (end - 64), ste1);
    assert_eq!(scene.status(&request), OK);
    Ok(())
}

#[test]
fn a_domain_holds_tables_or_none() -> Result<()> {
    let mut scene = Scene::new()?;
    assert_eq!(scene.bed.vmm.attach(2, 0, 0)?, Status::Unsupp as u8);
    assert_eq!(scene.bed.vmm.attach(1, 0, 0)?, Status::Unsupp as u8);
    assert_eq!(scene.bed.vmm.attach(1, 0, ATTACH_F_BYPASS)?, Status::Inval as u8);
    assert_eq!(scene.bed.vmm.attach(1, 0, 2)?, Status::Inval as u8);
    assert_eq!(scene.bed.written(0, IOVA), Some(PAGES[0]));
    // Another endpoint makes a bypass domain.
    let reply = scene.bed.vmm.guest().driver.attach(DomainId(2), WITHOUT_DEVICE, ATTACH_F_BYPASS);
    assert_eq!(reply.expect("a reply").status(), OK);
    let request = ReqAttachTable { domain: 2.into(), ..scene.attach() };
    scene.refuses(Status::Inval, &request);
    let request = ReqInvalidate { domain: 2.into(), ..scene.invalidate(Scope::Domain) };
    scene.refuses(Status::Inval, &request);
    // In mappings it deals no more.
    for status in [scene.bed.vmm.map(1, IOVA, PAGES[1], PAGE, 3)?, scene.bed.vmm.unmap(1, IOVA, PAGE)?] {
        assert_ne!(status, OK);
    }
    assert_eq!(scene.bed.written(0, IOVA), Some(PAGES[0]));
    assert_eq!(scene.bed.vmm.detach(2, 0)?, Status::Inval as u8, "it is in another");
    assert_eq!(scene.bed.written(0, IOVA), Some(PAGES[0]));
    Ok(())
}

#[test]
fn an_attach_that_is_refused_makes_no_domain() -> Result<()> {
    let mut bed = Bed::new(1, &["--endpoint", "00:1f.0"])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    let [ste0, ste1] = descriptor.entry();
    for (entry, status) in [
        ([ste0, ste1 | 1 << 28], Status::Unsupp),
        ([ste0 & 0x3f | (VfioVmm::LOW - 64), ste1], Status::Fault),
        ([ste0 | 1 << 59, ste1], Status::Range),
        ([ste0 | 1 << 55, ste1], Status::Inval),
    ] {
        assert_eq!(bed.vmm.attach_table(1, 0, entry)?, status as u8);
        assert_eq!(bed.written(0, PAGES[1]), Some(PAGES[1]), "untranslated as it was");
        let all =
            Invalidation { scope: Scope::Domain, caches: Caches::TLB, leaf: false, id: None, global: false };
        assert_eq!(bed.vmm.invalidate(1, &all)?, Status::NoEnt as u8);
        assert_ne!(bed.vmm.detach(1, 0)?, OK);
    }
    Ok(())
}

#[test]
fn an_invalidation_of_what_is_not_attached_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    for scope in [Scope::Domain, pages(IOVA, 1)] {
        let request = ReqInvalidate { domain: 9.into(), ..scene.invalidate(scope) };
        scene.refuses(Status::NoEnt, &request);
    }
    // The hardware has no PASID but 0, which accesses without one are.
    for pasid in [1, 5, 0xf_ffff, 0x10_0000, u32::MAX] {
        let request = scene.invalidate(Scope::Pasid(Pasid(pasid)));
        scene.refuses(Status::Range, &request);
        let start = Scope::Addresses { pasid: Some(Pasid(pasid)), start: IOVA, pages: 1, page_shift: 12 };
        let request = scene.invalidate(start);
        scene.refuses(Status::Range, &request);
    }
    Ok(())
}

#[test]
fn a_senseless_invalidation_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.invalidate(pages(IOVA, 1));
    let flags = |flags: u16| ReqInvalidate { flags: flags.into(), ..good };
    for request in [
        ReqInvalidate { scope: 0, ..good },
        ReqInvalidate { scope: 4, ..good },
        ReqInvalidate { caches: 0, ..good },
        ReqInvalidate { caches: 4, ..good },
        ReqInvalidate { caches: 0xff, ..good },
        // An address is none of a descriptor.
        ReqInvalidate { caches: 1, ..good },
        flags(0x10),
        flags(0x8000),
        ReqInvalidate { scope: 2, ..flags(4) },
    ] {
        scene.refuses(Status::Inval, &request);
    }
    for byte in 0..19 {
        let mut request = good;
        request.reserved[byte] = 0x80;
        scene.refuses(Status::Inval, &request);
    }
    for request in [
        ReqInvalidate { page_size: 0, ..good },
        ReqInvalidate { page_size: 11, ..good },
        ReqInvalidate { page_size: 13, ..good },
        ReqInvalidate { page_size: 63, ..good },
        ReqInvalidate { page_size: 64, ..good },
        ReqInvalidate { page_size: 255, ..good },
        ReqInvalidate { address: (IOVA + 1).into(), ..good },
        ReqInvalidate { page_size: 21, address: (IOVA & !(BLOCK - 1) | PAGE).into(), ..good },
        ReqInvalidate { nr_pages: 0.into(), ..good },
        ReqInvalidate { nr_pages: (1 << 52).into(), ..good },
        ReqInvalidate { nr_pages: u64::MAX.into(), ..good },
        ReqInvalidate { id: 0x1_0000.into(), ..good },
        ReqInvalidate { id: u64::MAX.into(), ..good },
    ] {
        scene.refuses(Status::Range, &request);
    }
    assert_eq!(scene.status(&good), OK);
    Ok(())
}

/// A field that nobody looks at can hold anything.
#[test]
fn what_an_invalidation_does_not_use_is_not_looked_at() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.invalidate(Scope::Domain);
    let request = ReqInvalidate {
        flags: 0.into(),
        pasid: u32::MAX.into(),
        id: u64::MAX.into(),
        address: u64::MAX.into(),
        nr_pages: 0.into(),
        page_size: 99,
        ..good
    };
    assert_eq!(scene.status(&request), OK);
    Ok(())
}

#[test]
fn a_response_to_nothing_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let response = ReqPageResp {
        head: Head { kind: RequestType(8), reserved: [0; 3] },
        endpoint: scene.bed.vmm.endpoint(0).0.into(),
        flags: 0.into(),
        pasid: 0.into(),
        group_id: 3.into(),
        code: wire::PAGE_RESP_SUCCESS.into(),
        reserved: [0; 10],
    };
    scene.refuses(Status::NoEnt, &response);
    scene.refuses(Status::NoEnt, &ReqPageResp { endpoint: ABSENT.0.into(), ..response });
    scene.refuses(Status::NoEnt, &ReqPageResp { flags: 1.into(), pasid: 4.into(), ..response });
    scene.refuses(Status::Inval, &ReqPageResp { pasid: 4.into(), ..response });
    scene.refuses(Status::Inval, &ReqPageResp { flags: 2.into(), ..response });
    scene.refuses(Status::Inval, &ReqPageResp { code: 3.into(), ..response });
    scene.refuses(Status::Inval, &ReqPageResp { reserved: [1; 10], ..response });
    Ok(())
}

/// More bad requests than good ones at any time, and the good ones are done.
#[test]
fn a_good_request_amid_bad_ones_is_done() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    for round in 0..20u8 {
        let mut bad = good;
        bad.descriptor[usize::from(round)] ^= 0xff;
        let refused = scene.status(&bad) != OK;
        let entry = if round % 2 == 0 { ABORT } else { scene.descriptor.entry() };
        assert_eq!(scene.bed.vmm.attach_table(1, 0, entry)?, OK, "{refused}");
        assert_eq!(scene.bed.written(0, IOVA).is_some(), round % 2 == 1);
    }
    Ok(())
}
