// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH_TABLE and DETACH of endpoints: the entry that the hardware begins with, and that it forgets the one before.

use anyhow::Result;
use viommu_core::wire::DescriptorIntelPt;
use viommu_tests::model::request::{attach_bypass, attach_pt, detach};
use viommu_tests::vfio_vmm::{TestDevice, VfioVmm, Written};

use crate::descriptor::{Block, Descriptor};
use crate::entry::{SRE, Translation, WPE};
use crate::scene::{Bed, OK, ROOTS, attach_with, plain, with_ats};

#[test]
fn the_entry_says_what_the_request_did() -> Result<()> {
    let mut bed = Bed::new(&plain()?)?;
    let endpoint = bed.endpoint(0);
    type Change = fn(&mut DescriptorIntelPt);
    let cases: [(Change, u64); 5] = [
        (|_| (), ROOTS[1]),
        (|descriptor| descriptor.pgd = ROOTS[2].into(), ROOTS[2]),
        (|descriptor| descriptor.flags = 1.into(), ROOTS[1] | SRE),
        (|descriptor| descriptor.flags = 5.into(), ROOTS[1] | SRE | WPE),
        // Without supervisor requests there is nothing to protect from them.
        (|descriptor| descriptor.flags = 4.into(), ROOTS[1]),
    ];
    let mut second_stages = Vec::new();
    for (change, first_stage) in cases {
        bed.done(&attach_with(1, endpoint, change));
        let entry = bed.entry(0, 0).expect("it is attached");
        assert_eq!((entry.translation, entry.first_stage), (Translation::Nested, first_stage));
        second_stages.push(entry.second_stage);
    }
    // All over the same memory of the guest, another device's too.
    bed.attach(2, 1, None, ROOTS[0]);
    second_stages.push(bed.entry(1, 0).expect("it is attached").second_stage);
    assert_ne!(second_stages[0], 0);
    second_stages.dedup();
    assert_eq!(second_stages.len(), 1, "{second_stages:x?}");
    Ok(())
}

#[test]
fn what_a_device_reached_before_is_forgotten() -> Result<()> {
    let mut bed = Bed::new(&plain()?)?;
    let before = bed.entry(0, 0).expect("it reaches the guest's memory");
    assert_eq!(before.translation, Translation::SecondStage);
    for root in [ROOTS[0], ROOTS[1], ROOTS[0]] {
        let domain = bed.domain(0, 0);
        let expected = [Descriptor::PasidCache { domain, pasid: 0 }, Descriptor::Domain { domain }];
        assert_eq!(bed.attach(1, 0, None, root), expected);
    }
    let domain = bed.domain(0, 0);
    let expected = [Descriptor::PasidCache { domain, pasid: 0 }, Descriptor::Domain { domain }];
    let endpoint = bed.endpoint(0);
    assert_eq!(bed.done(&detach(1, endpoint)), expected);
    assert_ne!(bed.entry(0, 0).map(|entry| entry.translation), Some(Translation::Nested));
    Ok(())
}

#[test]
fn a_device_forgets_what_it_holds_itself() -> Result<()> {
    let mut bed = Bed::new(&with_ats()?)?;
    for device in 0..2 {
        for root in [ROOTS[0], ROOTS[1]] {
            let (domain, source) = (bed.domain(device, 0), bed.source(device));
            let cache = Descriptor::PasidCache { domain, pasid: 0 };
            let of_device = Descriptor::Device { source, block: Block::ALL };
            let expected = [cache, Descriptor::Domain { domain }, of_device];
            assert_eq!(bed.attach(1, device, None, root), expected);
        }
    }
    Ok(())
}

#[test]
fn the_same_table_again_tells_the_hardware_nothing() -> Result<()> {
    let mut bed = Bed::attached(&plain()?)?;
    let request = attach_pt(1, bed.endpoint(0), None, ROOTS[0]);
    let before = bed.entry(0, 0);
    assert_eq!(bed.done(&request), []);
    assert_eq!(bed.entry(0, 0), before);
    Ok(())
}

/// Mappings of the kernel's own are walked: so what surrounds tables is seen here.
#[test]
fn a_device_reaches_memory_untranslated_before_its_table_and_after() -> Result<()> {
    let mut bed = Bed::new(&plain()?)?;
    let reaches = |bed: &Bed| {
        bed.vmm.memory.write(VfioVmm::LOW, &[0; 4]);
        let written = bed.vmm.write(0, VfioVmm::LOW).expect("the device answers");
        let is_there = bed.vmm.memory.read(VfioVmm::LOW, 4) == TestDevice::PATTERN;
        assert_eq!(is_there, written == Written::All);
        is_there
    };
    assert!(reaches(&bed));
    bed.attach(1, 0, None, ROOTS[0]);
    assert!(!reaches(&bed), "through an empty table, which no hardware here walks");
    let endpoint = bed.endpoint(0);
    assert_eq!(bed.vmm.send(&attach_bypass(9, endpoint))?, OK);
    assert!(reaches(&bed));
    Ok(())
}
