// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What makes no sense, or is too much for the hardware: refused before the hardware is told anything, and all is as it was.

use anyhow::Result;
use viommu_core::wire::ReqInvalidate;
use viommu_tests::model::request::{attach_none, attach_pt, invalidate, invalidate_pages};

use crate::descriptor::Block;
use crate::scene::{
    Bed, FAULT, INVAL, NOENT, PAGE, RANGE, ROOTS, UNSUPP, attach_with, of_pasid, pages, plain,
};

#[test]
fn a_table_that_the_hardware_does_not_walk_is_refused() -> Result<()> {
    let mut bed = Bed::attached(&plain()?)?;
    let endpoint = bed.endpoint(0);
    // Widths: four levels are all that there is.
    bed.refused(&attach_with(1, endpoint, |table| table.addr_width = 57.into()), UNSUPP);
    for width in [0, 39, 49, 64] {
        bed.refused(&attach_with(1, endpoint, |table| table.addr_width = width.into()), INVAL);
    }
    // Extended accessed flags, which it lacks, and flags that nobody knows.
    bed.refused(&attach_with(1, endpoint, |table| table.flags = 2.into()), UNSUPP);
    bed.refused(&attach_with(1, endpoint, |table| table.flags = 8.into()), INVAL);
    for root in [ROOTS[1] + 1, ROOTS[1] + PAGE / 2] {
        bed.refused(&attach_with(1, endpoint, |table| table.pgd = root.into()), INVAL);
    }
    // Where the guest has no memory.
    for root in [0, ROOTS[3] + (64 << 20), u64::MAX - 0xfff] {
        bed.refused(&attach_with(1, endpoint, |table| table.pgd = root.into()), FAULT);
    }
    still_there(&mut bed);
    Ok(())
}

#[test]
fn a_pasid_that_the_device_cannot_have_is_refused() -> Result<()> {
    let mut bed = Bed::attached(&plain()?)?;
    let endpoint = bed.endpoint(0);
    for pasid in [0, 0x8000, 0xf_ffff, u32::MAX] {
        bed.refused(&attach_pt(1, endpoint, Some(pasid), ROOTS[2]), RANGE);
    }
    bed.refused(&attach_none(1, endpoint, 5), INVAL);
    still_there(&mut bed);
    Ok(())
}

#[test]
fn an_invalidation_that_makes_no_sense_is_refused() -> Result<()> {
    let mut bed = Bed::attached(&plain()?)?;
    for (request, status) in [
        (invalidate(7), NOENT),
        (of_pasid(5, invalidate(1)), NOENT),
        // Accesses without a PASID are no PASID's.
        (of_pasid(0, invalidate(1)), NOENT),
        (ReqInvalidate { scope: 2, ..of_pasid(0, invalidate(1)) }, NOENT),
        (pages(0, 0), RANGE),
        (pages(8, 1), RANGE),
        (pages(PAGE, 1 << 52), RANGE),
        (invalidate_pages(1, 0, 1, 13), RANGE),
        (invalidate_pages(1, PAGE, 1, 21), RANGE),
        // Tables have no pages of 1 GiB here.
        (invalidate_pages(1, 0x4000_0000, 1, 30), RANGE),
        // It has no numbers of address spaces that a guest gives.
        (ReqInvalidate { flags: 4.into(), id: 7.into(), ..invalidate(1) }, RANGE),
    ] {
        bed.refused(&request, status);
    }
    still_there(&mut bed);
    Ok(())
}

/// Both devices have the tables that they had.
#[track_caller]
fn still_there(bed: &mut Bed) {
    let block = Block::around(0x5000, 1);
    let expected = [0, 1].map(|device| bed.pages(device, 0, block, false));
    assert_eq!(bed.done(&pages(0x5000, 1)), expected);
    assert_eq!(bed.entry(0, 0).map(|entry| entry.first_stage), Some(ROOTS[0]));
}
