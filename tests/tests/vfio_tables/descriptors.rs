// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which table a device has: descriptors that change in place, tables that are replaced, devices that share a domain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use viommu_core::{Caches, Pasid, Scope};
use viommu_tests::vfio_vmm::{ABORT, BYPASS, Descriptor, TestDevice, Written};

use crate::scene::{ASID, Bed, IOVA, OK, PAGE, PAGES, pages};

#[test]
fn a_descriptor_that_changes_in_place_counts_from_its_invalidation_on() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let other = bed.descriptor(ASID + 1, &[(IOVA, PAGES[1])]);
    for scope in [Scope::Domain, Scope::Pasid(Pasid(0))] {
        bed.stage1.describe(&descriptor);
        bed.invalidate(1, Scope::Domain, Caches::all(), None);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
        bed.stage1.describe(&Descriptor { at: descriptor.at, ..other });
        bed.invalidate(1, Scope::Domain, Caches::TLB, None);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]), "not by an invalidation of translations");
        bed.invalidate(1, scope, Caches::PASID, None);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[1]), "{scope:?}");
    }
    // No ATTACH_TABLE was needed, and the old table is out of use.
    bed.map(&descriptor, IOVA, PAGES[2]);
    bed.invalidate(1, Scope::Domain, Caches::all(), None);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[1]));
    Ok(())
}

#[test]
fn another_table_takes_the_place_of_the_first() -> Result<()> {
    let (mut bed, first) = Bed::attached(&[])?;
    let second = bed.descriptor(ASID + 1, &[(IOVA, PAGES[1]), (IOVA + PAGE, PAGES[2])]);
    for (domain, descriptor, page) in [(1, second, 1), (1, first, 0), (2, second, 1), (1, first, 0)] {
        assert_eq!(bed.vmm.attach_table(domain, 0, descriptor.entry())?, OK);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[page]), "{domain}");
    }
    assert_eq!(bed.written(0, IOVA + PAGE), None);
    Ok(())
}

/// What one table and the other lead to the same page is reached at any time.
#[test]
fn no_access_is_refused_while_a_table_replaces_another() -> Result<()> {
    let (mut bed, first) = Bed::attached(&[])?;
    let second = bed.descriptor(ASID + 1, &[(IOVA, PAGES[0])]);
    let registers = bed.vmm.duplicate_registers(0)?;
    let is_over = AtomicBool::new(false);
    let (writes, refused) = thread::scope(|scope| {
        let device = scope.spawn(|| {
            let (mut writes, mut refused) = (0, 0);
            while !is_over.load(Ordering::Relaxed) {
                let written = TestDevice(&registers).write(IOVA, 4).expect("the device answers");
                writes += 1;
                refused += usize::from(written == Written::Refused);
            }
            (writes, refused)
        });
        for round in 0..200 {
            let descriptor = if round % 2 == 0 { second } else { first };
            assert_eq!(bed.vmm.attach_table(1 + round / 100, 0, descriptor.entry()).expect("a reply"), OK);
        }
        is_over.store(true, Ordering::Relaxed);
        device.join().expect("it ends")
    });
    println!("{writes} writes, {refused} refused");
    assert!(writes > 100, "too few to say anything: {writes}");
    assert_eq!(refused, 0, "of {writes}");
    Ok(())
}

#[test]
fn entries_of_bypass_and_abort_take_the_place_of_stage_1_and_the_other_way_round() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for _ in 0..2 {
        assert_eq!(bed.vmm.attach_table(1, 0, BYPASS)?, OK);
        assert_eq!(bed.written(0, PAGES[1]), Some(PAGES[1]), "as it is");
        assert_eq!(bed.written(0, IOVA), None, "no memory is there");
        assert_eq!(bed.vmm.attach_table(1, 0, ABORT)?, OK);
        assert_eq!(bed.written(0, PAGES[1]), None);
        assert_eq!(bed.written(0, IOVA), None);
        // It is nobody's fault, and no invalidation of a domain without stage 1 fails.
        bed.invalidate(1, Scope::Domain, Caches::all(), None);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
        assert_eq!(bed.written(0, PAGES[1]), None);
    }
    Ok(())
}

#[test]
fn devices_of_a_domain_have_each_their_own_descriptor() -> Result<()> {
    let mut bed = Bed::new(2, &[])?;
    let first = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    let second = bed.descriptor(ASID + 1, &[(IOVA, PAGES[1])]);
    assert_eq!(bed.vmm.attach_table(1, 0, first.entry())?, OK);
    assert_eq!(bed.written(1, PAGES[2]), Some(PAGES[2]), "the other is still untranslated");
    assert_eq!(bed.vmm.attach_table(1, 1, second.entry())?, OK);
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (Some(PAGES[0]), Some(PAGES[1])));
    // By its number, one address space; by none, both.
    bed.map(&first, IOVA, PAGES[2]);
    bed.map(&second, IOVA, PAGES[2]);
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID + 1));
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (Some(PAGES[0]), Some(PAGES[2])));
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, None);
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (Some(PAGES[2]), Some(PAGES[2])));
    // Both descriptors are the domain's.
    let third = bed.descriptor(ASID + 2, &[(IOVA, PAGES[1])]);
    for descriptor in [first, second] {
        bed.stage1.describe(&Descriptor { at: descriptor.at, ..third });
    }
    bed.invalidate(1, Scope::Domain, Caches::PASID, None);
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (Some(PAGES[1]), Some(PAGES[1])));
    // One goes, the other stays.
    assert_eq!(bed.vmm.detach(1, 0)?, OK);
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (None, Some(PAGES[1])));
    Ok(())
}

#[test]
fn devices_of_two_domains_can_have_one_table() -> Result<()> {
    let mut bed = Bed::new(2, &[])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    for device in 0..2 {
        assert_eq!(bed.vmm.attach_table(1 + device as u32, device, descriptor.entry())?, OK);
        assert_eq!(bed.written(device, IOVA), Some(PAGES[0]));
    }
    // A vIOMMU has one space of numbers, whatever the domain.
    bed.map(&descriptor, IOVA, PAGES[1]);
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(bed.written(0, IOVA), Some(PAGES[1]));
    assert_eq!(bed.vmm.detach(1, 0)?, OK);
    bed.invalidate(2, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(bed.written(1, IOVA), Some(PAGES[1]));
    Ok(())
}
