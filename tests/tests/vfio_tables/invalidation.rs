// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Entries that were valid and are changed: what they led to counts until INVALIDATE says otherwise, since QEMU's SMMUv3
//! has a cache, too.

use anyhow::Result;
use viommu_core::wire::{ReqInvalidate, Tail};
use viommu_core::{Caches, DomainId, Invalidation, Pasid, Scope};
use viommu_tests::driver::invalidate;
use viommu_tests::vfio_vmm::Descriptor;
use zerocopy::IntoBytes;

use crate::scene::{ASID, Bed, IOVA, OK, PAGE, PAGES, pages};

/// Changes where [`IOVA`] leads, from the first page to the second, and checks that this has not come through.
fn changed(bed: &mut Bed, descriptor: &Descriptor) {
    bed.map(descriptor, IOVA, PAGES[0]);
    bed.invalidate(1, Scope::Domain, Caches::TLB, None);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    bed.map(descriptor, IOVA, PAGES[1]);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]), "no cache: nothing can be told by this test");
}

#[test]
fn a_changed_entry_counts_from_its_invalidation_on() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for (scope, id) in [
        (pages(IOVA, 1), Some(ASID)),
        (pages(IOVA, 1), None),
        (pages(IOVA - 3 * PAGE, 7), Some(ASID)),
        (pages(IOVA - 3 * PAGE, 7), None),
        (pages(0, 1 << 52), Some(ASID)),
        (pages(0, 1 << 52), None),
        (Scope::Domain, Some(ASID)),
        (Scope::Domain, None),
        (Scope::Pasid(Pasid(0)), Some(ASID)),
        (Scope::Pasid(Pasid(0)), None),
    ] {
        changed(&mut bed, &descriptor);
        bed.invalidate(1, scope, Caches::TLB, id);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[1]), "{scope:x?}, {id:?}");
    }
    Ok(())
}

#[test]
fn an_invalidation_of_others_is_none_of_this() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    changed(&mut bed, &descriptor);
    for (scope, id) in [
        (pages(IOVA + PAGE, 1), Some(ASID)),
        (pages(IOVA + PAGE, 1), None),
        (pages(IOVA - 7 * PAGE, 7), Some(ASID)),
        (pages(IOVA, 1), Some(ASID + 1)),
        (Scope::Domain, Some(ASID + 1)),
    ] {
        bed.invalidate(1, scope, Caches::TLB, id);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]), "{scope:x?}, {id:?}");
    }
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(bed.written(0, IOVA), Some(PAGES[1]));
    Ok(())
}

#[test]
fn an_entry_that_is_taken_away_is_gone_when_that_is_answered() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for round in 0..50 {
        bed.stage1.unmap(descriptor.root, IOVA);
        bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
        assert_eq!(bed.written(0, IOVA), None);
        let page = PAGES[round % 3];
        bed.map(&descriptor, IOVA, page);
        assert_eq!(bed.written(0, IOVA), Some(page));
    }
    Ok(())
}

/// No more than the emulated cache holds, which forgets all when it is full.
#[test]
fn all_pages_of_a_range_are_gone_at_once() -> Result<()> {
    const COUNT: u64 = 100;
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for page in 0..COUNT {
        bed.map(&descriptor, IOVA + page * PAGE, PAGES[0]);
        bed.vmm.write(0, IOVA + page * PAGE)?;
    }
    (0..COUNT).for_each(|page| bed.map(&descriptor, IOVA + page * PAGE, PAGES[2]));
    bed.invalidate(1, pages(IOVA, COUNT), Caches::TLB, Some(ASID));
    for page in 0..COUNT {
        assert_eq!(bed.written(0, IOVA + page * PAGE), Some(PAGES[2]), "page {page}");
    }
    Ok(())
}

/// What the driver frees after the last answer must not be in a cache, whatever came before it in the queue.
#[test]
fn many_requests_in_the_queue_are_all_done_when_they_are_answered() -> Result<()> {
    const COUNT: u64 = 32;
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let iova = |page: u64| IOVA + 3 * page * PAGE;
    let (mut from, mut to) = (PAGES[0], PAGES[1]);
    (0..COUNT).for_each(|page| bed.map(&descriptor, iova(page), from));
    bed.invalidate(1, Scope::Domain, Caches::TLB, None);
    for _ in 0..5 {
        for page in 0..COUNT {
            assert_eq!(bed.written(0, iova(page)), Some(from));
            bed.map(&descriptor, iova(page), to);
        }
        let requests = (0..COUNT).map(|page| request(pages(iova(page), 1)));
        let driver = &mut bed.vmm.guest().driver;
        for request in requests {
            driver.submit(request.as_bytes(), size_of::<Tail>()).expect("there is room");
        }
        driver.requests().kick_if_wanted();
        for _ in 0..COUNT {
            let (_, reply) = driver.complete().expect("a reply");
            assert_eq!(reply.status(), OK);
        }
        for page in 0..COUNT {
            assert_eq!(bed.written(0, iova(page)), Some(to));
        }
        (from, to) = (to, from);
    }
    Ok(())
}

fn request(scope: Scope) -> ReqInvalidate {
    let id = Some(ASID);
    let what = Invalidation { scope, caches: Caches::TLB, leaf: true, id, global: false };
    invalidate(DomainId(1), &what)
}
