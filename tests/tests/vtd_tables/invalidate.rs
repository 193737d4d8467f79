// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! INVALIDATE of endpoints' tables: no less than what was asked for is forgotten, and no more than the hardware's sizes
//! make it.

use anyhow::Result;
use viommu_core::wire::ReqInvalidate;
use viommu_tests::model::request::{attach_pt, invalidate, invalidate_pages};

use crate::descriptor::{Block, Descriptor};
use crate::scene::{Bed, PAGE, ROOTS, of_leaves, pages, plain, with_ats};

/// First addresses, and pages of 4 KiB: no more than a block of 1 GiB has.
const RANGES: [(u64, u64); 13] = [
    (0x12_3456_7000, 1),
    (0, 1),
    (0x40_0000, 64),
    // They have no size of the hardware's, or do not begin where it does.
    (0x40_0000, 65),
    (0x41_0000, 64),
    (0x12_3456_7000 - 3 * PAGE, 7),
    (0x1fff_f000, 2),
    (0x10_2000_0000 - 512 * PAGE, 1024),
    (0x7fff_ffff_f000, 1),
    (0x7fff_ffe0_0000, 512),
    (0xffff_8000_0000_0000, 3),
    (0xffff_ffff_ffff_f000, 1),
    (0x40_4000_0000, 1 << 18),
];

/// Those that span more. The hardware has no limit in VT-d's specification of page-selective invalidations in a PASID;
/// QEMU's takes none beyond `CAP_REG.MAMV`, and complains.
const LARGE: [(u64, u64); 6] = [
    (0x7fff_f000, 2),
    (0x1_0000_0000 - 512 * PAGE, 1024),
    (0x40_0000_0000, (1 << 18) + 1),
    (0x7fff_ffff_f000, 2),
    (0, 1 << 36),
    (0, 1 << 51),
];

#[test]
fn qemu_refuses_the_largest_blocks() -> Result<()> {
    let mut bed = Bed::attached(&with_ats()?[..1])?;
    assert_told(&mut bed, &LARGE);
    Ok(())
}

/// The hardware and the device are told of these ranges.
#[track_caller]
fn assert_told(bed: &mut Bed, ranges: &[(u64, u64)]) {
    let source = bed.source(0);
    for (start, count) in ranges {
        let block = Block::around(*start, *count);
        let expected = [bed.pages(0, 0, block, false), Descriptor::Device { source, block }];
        assert_eq!(bed.done(&pages(*start, *count)), expected, "{start:#x}, {count}");
    }
}

#[test]
fn pages_are_forgotten_in_the_smallest_block_that_has_them() -> Result<()> {
    let mut bed = Bed::attached(&plain()?[..1])?;
    for (start, count) in RANGES {
        let block = Block::around(start, count);
        let expected = |leaf| vec![bed.pages(0, 0, block, leaf)];
        let (all, leaves) = (expected(false), expected(true));
        assert_eq!(bed.done(&pages(start, count)), all, "{start:#x}, {count}");
        assert_eq!(bed.done(&of_leaves(pages(start, count))), leaves, "{start:#x}, {count}");
    }
    Ok(())
}

#[test]
fn large_pages_are_counted_in_their_size() -> Result<()> {
    let mut bed = Bed::attached(&plain()?[..1])?;
    for (start, count) in [(0x20_0000, 1), (0x20_0000, 3), (0x7f_ffe0_0000, 1)] {
        let expected = [bed.pages(0, 0, Block::around(start, count << 9), false)];
        assert_eq!(bed.done(&invalidate_pages(1, start, count, 21)), expected, "{start:#x}, {count}");
    }
    Ok(())
}

#[test]
fn all_of_a_domain_is_forgotten_at_once() -> Result<()> {
    let mut bed = Bed::attached(&plain()?[..1])?;
    let expected = [bed.all(0, 0)];
    let of_caches = |caches| ReqInvalidate { caches, ..invalidate(1) };
    // What is kept of PASID tables is the kernel's own matter, so that is translations, too.
    for request in [of_caches(1), of_caches(2), of_caches(3), of_leaves(invalidate(1)), pages(0, 1 << 52)] {
        assert_eq!(bed.done(&request), expected, "{request:x?}");
    }
    Ok(())
}

#[test]
fn devices_that_hold_translations_are_told_the_same() -> Result<()> {
    let mut bed = Bed::attached(&with_ats()?[..1])?;
    assert_told(&mut bed, &RANGES);
    let expected = [bed.all(0, 0), Descriptor::Device { source: bed.source(0), block: Block::ALL }];
    assert_eq!(bed.done(&invalidate(1)), expected);
    Ok(())
}

#[test]
fn a_domain_with_two_tables_has_both_told() -> Result<()> {
    let mut bed = Bed::attached(&plain()?)?;
    let block = Block::around(0x5000, 3);
    let expected = [0, 1].map(|device| bed.pages(device, 0, block, false));
    assert_ne!(expected[0], expected[1]);
    assert_eq!(bed.done(&pages(0x5000, 3)), expected);
    // Another domain is not concerned.
    let request = attach_pt(2, bed.endpoint(1), None, ROOTS[2]);
    bed.done(&request);
    let expected = [bed.pages(0, 0, block, false)];
    assert_eq!(bed.done(&pages(0x5000, 3)), expected);
    let expected = [bed.pages(1, 0, block, false)];
    assert_eq!(bed.done(&ReqInvalidate { domain: 2.into(), ..pages(0x5000, 3) }), expected);
    Ok(())
}

#[test]
fn devices_that_share_a_table_are_told_each_for_itself() -> Result<()> {
    let mut bed = Bed::new(&with_ats()?)?;
    for device in 0..2 {
        bed.attach(1, device, None, ROOTS[0]);
    }
    assert_eq!(bed.domain(0, 0), bed.domain(1, 0));
    let block = Block::around(0x5000, 3);
    let told = bed.done(&pages(0x5000, 3));
    // In the kernel's order.
    assert_eq!(told.len(), 3, "{told:?}");
    for expected in [
        bed.pages(0, 0, block, false),
        Descriptor::Device { source: bed.source(0), block },
        Descriptor::Device { source: bed.source(1), block },
    ] {
        assert!(told.contains(&expected), "{expected:?} in {told:?}");
    }
    Ok(())
}
