// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest should not send: refused with the status that the manual names, and nothing is changed.

mod attach;
mod invalidate;

use anyhow::Result;
use viommu_core::wire::{
    self, ATTACH_F_BYPASS, Head, ReqAttachTable, ReqInvalidate, ReqPageResp, RequestType,
};
use viommu_core::{Caches, DomainId, EndpointId, Invalidation, Scope, Status};
use viommu_tests::driver::{attach_table, invalidate as invalidate_request};
use viommu_tests::vfio_vmm::{ABORT, Descriptor};
use zerocopy::{Immutable, IntoBytes};

use crate::scene::{ASID, Bed, IOVA, OK, PAGE, PAGES};

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
        invalidate_request(DomainId(1), &what)
    }
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
