// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATE.

use anyhow::Result;
use viommu_core::wire::ReqInvalidate;
use viommu_core::{Pasid, Scope, Status};

use super::Scene;
use crate::scene::{BLOCK, IOVA, OK, PAGE, pages};

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
