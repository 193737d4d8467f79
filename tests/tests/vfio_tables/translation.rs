// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where DMA ends up that goes through a table: pages, blocks, read-only pages, nothing.

use anyhow::{Context, Result};
use viommu_core::{Caches, Scope};
use viommu_tests::vfio_vmm::{Allows, Edu, Function, VfioVmm};

use crate::scene::{ASID, BLOCK, BLOCKS, Bed, HIGH_IOVA, IOVA, OK, PAGE, PAGES, pages};

#[test]
fn a_write_ends_up_where_the_table_leads_and_nowhere_else() -> Result<()> {
    let mut bed = Bed::new(1, &[])?;
    let descriptor =
        bed.descriptor(ASID, &[(IOVA, PAGES[0]), (IOVA + PAGE, PAGES[2]), (HIGH_IOVA, PAGES[1])]);
    assert_eq!(bed.written(0, PAGES[0]), Some(PAGES[0]), "untranslated before");
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    assert_eq!(bed.written(0, IOVA + 0x123 * 4), Some(PAGES[0] + 0x123 * 4));
    assert_eq!(bed.written(0, IOVA + PAGE), Some(PAGES[2]));
    assert_eq!(bed.written(0, HIGH_IOVA), Some(PAGES[1]));
    for nowhere in [IOVA - PAGE, IOVA + 2 * PAGE, HIGH_IOVA + PAGE, PAGES[0], 0] {
        assert_eq!(bed.written(0, nowhere), None, "{nowhere:#x}");
    }
    Ok(())
}

#[test]
fn an_entry_that_was_not_valid_counts_at_once() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for page in 1..100 {
        assert_eq!(bed.written(0, IOVA + page * PAGE), None);
        bed.map(&descriptor, IOVA + page * PAGE, PAGES[(page % 3) as usize]);
        assert_eq!(bed.written(0, IOVA + page * PAGE), Some(PAGES[(page % 3) as usize]));
    }
    Ok(())
}

#[test]
fn a_block_is_one_page() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let inside = [0, PAGE, BLOCK - 4];
    bed.stage1.map_block(descriptor.root, HIGH_IOVA, BLOCKS[0]);
    for offset in inside {
        assert_eq!(bed.written(0, HIGH_IOVA + offset), Some(BLOCKS[0] + offset));
    }
    assert_eq!(bed.written(0, HIGH_IOVA + BLOCK), None);
    bed.stage1.map_block(descriptor.root, HIGH_IOVA, BLOCKS[1]);
    assert_eq!(bed.written(0, HIGH_IOVA), Some(BLOCKS[0]), "not before it is invalidated");
    let block = Scope::Addresses { pasid: None, start: HIGH_IOVA, pages: 1, page_shift: 21 };
    bed.invalidate(1, block, Caches::TLB, Some(ASID));
    for offset in inside {
        assert_eq!(bed.written(0, HIGH_IOVA + offset), Some(BLOCKS[1] + offset));
    }
    Ok(())
}

/// The device reads a page into itself and writes it elsewhere.
#[test]
fn a_page_that_allows_reading_is_read_and_never_written() -> Result<()> {
    let edu = Function::all(Edu::ID.0, Edu::ID.1)?;
    let mut bed = Bed::of(edu.get(..1).context("no edu")?, &[])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[1])]);
    bed.stage1.map(descriptor.root, IOVA + PAGE, PAGES[0], Allows::Reading);
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    let content: Vec<u8> = (0..64).map(|byte| byte * 3 + 1).collect();
    let edu = Edu(bed.vmm.registers(0));
    bed.vmm.memory.write(PAGES[0], &content);
    bed.vmm.memory.write(PAGES[1], &[0; 64]);
    edu.read(IOVA + PAGE, 64)?;
    edu.write(IOVA, 64)?;
    assert_eq!(bed.vmm.memory.read(PAGES[1], 64), content);
    bed.vmm.memory.write(PAGES[0], &[0; 64]);
    edu.write(IOVA + PAGE, 64)?;
    assert_eq!(bed.vmm.memory.read(PAGES[0], 64), [0; 64]);
    Ok(())
}

#[test]
fn a_page_that_is_made_read_only_is_written_until_that_is_told() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    bed.stage1.map(descriptor.root, IOVA, PAGES[0], Allows::Reading);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]), "not before it is invalidated");
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(bed.written(0, IOVA), None);
    bed.map(&descriptor, IOVA, PAGES[1]);
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(bed.written(0, IOVA), Some(PAGES[1]));
    Ok(())
}

/// Stage 2 is the guest's memory, all of it and nothing else.
#[test]
fn a_table_leads_to_guest_memory_only() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let last = VfioVmm::MIDDLE + VfioVmm::REGION - PAGE;
    bed.vmm.memory.write(last, &[0; 4]);
    bed.map(&descriptor, IOVA + PAGE, last);
    bed.vmm.write(0, IOVA + PAGE)?;
    assert_ne!(bed.vmm.memory.read(last, 4), [0; 4]);
    for beyond in [last + PAGE, 0, VfioVmm::HIGH + VfioVmm::HIGH_BYTES, 0x900_0000] {
        let iova = HIGH_IOVA + beyond;
        bed.map(&descriptor, iova, beyond);
        assert_eq!(bed.written(0, iova), None, "{beyond:#x}");
    }
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    Ok(())
}
