// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tables of PASIDs, which have entries of their own.

use anyhow::Result;
use viommu_core::wire::ReqInvalidate;
use viommu_tests::model::request::{attach_bypass, attach_none, detach, invalidate};

use crate::descriptor::{Block, Descriptor};
use crate::entry::Translation;
use crate::scene::{Bed, PAGE, ROOTS, of_leaves, of_pasid, pages, plain, with_ats};

/// The highest that the kernel has room for.
const LAST: u32 = 0x7fff;

/// With tables for the endpoint, and for the PASIDs 5 and [`LAST`].
fn bed(functions: &[viommu_tests::vfio_vmm::Function]) -> Result<Bed> {
    let mut bed = Bed::attached(&functions[..1])?;
    for (pasid, root) in [(5, ROOTS[1]), (LAST, ROOTS[2])] {
        assert_eq!(bed.attach(1, 0, Some(pasid), root), [], "nothing is cached of what was not there");
    }
    Ok(bed)
}

#[test]
fn each_has_an_entry_that_says_what_the_request_did() -> Result<()> {
    let bed = bed(&plain()?)?;
    let mut domains = Vec::new();
    for (pasid, root) in [(0, ROOTS[0]), (5, ROOTS[1]), (LAST, ROOTS[2])] {
        let entry = bed.entry(0, pasid).expect("it is attached");
        assert_eq!((entry.translation, entry.first_stage), (Translation::Nested, root));
        domains.push(entry.domain);
    }
    domains.dedup();
    assert_eq!(domains.len(), 3, "{domains:?}");
    assert_eq!(bed.entry(0, 6), None);
    Ok(())
}

#[test]
fn an_invalidation_concerns_those_that_it_names() -> Result<()> {
    let mut bed = bed(&plain()?)?;
    let (start, count) = (0x12_3456_7000 - 3 * PAGE, 7);
    let block = Block::around(start, count);
    let range = pages(start, count);
    for leaf in [false, true] {
        let range = if leaf { of_leaves(range) } else { range };
        let [own, five, last] = [0, 5, LAST].map(|pasid| bed.pages(0, pasid, block, leaf));
        assert_eq!(bed.done(&range), [own, five, last]);
        assert_eq!(bed.done(&of_pasid(5, range)), [five]);
        assert_eq!(bed.done(&of_pasid(LAST, range)), [last]);
    }
    let [own, five, last] = [0, 5, LAST].map(|pasid| bed.all(0, pasid));
    let scope = |pasid| ReqInvalidate { scope: 2, ..of_pasid(pasid, invalidate(1)) };
    assert_eq!(bed.done(&invalidate(1)), [own, five, last]);
    assert_eq!(bed.done(&scope(5)), [five]);
    assert_eq!(bed.done(&of_pasid(5, invalidate(1))), [five]);
    Ok(())
}

#[test]
fn a_device_is_told_of_which_pasid_it_is() -> Result<()> {
    let mut bed = bed(&with_ats()?)?;
    let source = bed.source(0);
    for (start, count) in [(0x5000, 1), (0x40_0000, 64), (0x12_3456_7000 - 3 * PAGE, 7)] {
        let block = Block::around(start, count);
        let of_device = Descriptor::DevicePasid { source, pasid: 5, block };
        let expected = [bed.pages(0, 5, block, false), of_device];
        assert_eq!(bed.done(&of_pasid(5, pages(start, count))), expected, "{start:#x}, {count}");
    }
    let of_device = |pasid| Descriptor::DevicePasid { source, pasid, block: Block::ALL };
    let own = Descriptor::Device { source, block: Block::ALL };
    let expected = [bed.all(0, 0), own, bed.all(0, 5), of_device(5), bed.all(0, LAST), of_device(LAST)];
    assert_eq!(bed.done(&invalidate(1)), expected);
    Ok(())
}

#[test]
fn what_a_pasid_reached_before_is_forgotten() -> Result<()> {
    for has_ats in [false, true] {
        let mut bed = bed(&if has_ats { with_ats()? } else { plain()? })?;
        let (endpoint, source) = (bed.endpoint(0), bed.source(0));
        let forgotten = |bed: &Bed, pasid| {
            let domain = bed.domain(0, pasid);
            let device = Descriptor::DevicePasid { source, pasid, block: Block::ALL };
            let mut all = vec![Descriptor::PasidCache { domain, pasid }, Descriptor::Domain { domain }];
            all.extend(has_ats.then_some(device));
            all
        };
        let expected = forgotten(&bed, 5);
        assert_eq!(bed.attach(1, 0, Some(5), ROOTS[3]), expected);
        assert_eq!(bed.entry(0, 5).map(|entry| entry.first_stage), Some(ROOTS[3]));
        let expected = forgotten(&bed, 5);
        assert_eq!(bed.done(&attach_none(1, endpoint, 5)), expected);
        assert_eq!(bed.entry(0, 5), None);
        // The endpoint's own table can go elsewhere beside them, but not away.
        let last = bed.entry(0, LAST);
        bed.attach(1, 0, None, ROOTS[1]);
        assert_eq!(bed.entry(0, LAST), last);
        let expected = forgotten(&bed, LAST);
        let told = bed.done(&detach(1, endpoint));
        assert_eq!(told[..expected.len()], expected);
        assert_eq!(bed.entry(0, LAST), None);
    }
    Ok(())
}

#[test]
fn a_pasid_has_a_table_beside_all_of_the_guests_memory() -> Result<()> {
    let mut bed = Bed::new(&plain()?[..1])?;
    let endpoint = bed.endpoint(0);
    bed.done(&attach_bypass(9, endpoint));
    bed.attach(1, 0, Some(5), ROOTS[0]);
    let (own, five) = (bed.entry(0, 0).expect("memory"), bed.entry(0, 5).expect("a table"));
    assert_eq!((own.translation, five.translation), (Translation::SecondStage, Translation::Nested));
    assert_eq!(own.second_stage, five.second_stage, "the same memory");
    assert_eq!(five.first_stage, ROOTS[0]);
    let expected = [bed.all(0, 5)];
    assert_eq!(bed.done(&invalidate(1)), expected);
    Ok(())
}
