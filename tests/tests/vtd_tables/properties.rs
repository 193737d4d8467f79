// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest is told of the hardware before it makes a table.

use anyhow::{Context, Result};
use viommu_core::EndpointId;
use viommu_core::wire::{
    HwIntelVtd, PROPERTY_T_HW_INTEL_VTD, PROPERTY_T_PASID, PROPERTY_T_RESV_MEM, RESV_MEM_T_MSI, ResvMem,
};
use viommu_nested::{Attach, HwInfo};
use viommu_tests::vfio_vmm::{Function, Launch};
use zerocopy::FromBytes;

use crate::scene::{Bed, OK, plain, with_ats};

/// Bits of the extended capability register: device TLBs, nesting, page requests, how many PASIDs, PASIDs.
const DT: u64 = 1 << 2;
const NEST: u64 = 1 << 26;
const PRS: u64 = 1 << 29;
const PSS: u64 = 0x1f << 35;
const PASID: u64 = 1 << 40;

/// Type and bytes of each, with the four before them.
fn properties(bed: &mut Bed) -> Vec<(u16, Vec<u8>)> {
    let endpoint = EndpointId(bed.endpoint(0));
    let reply = bed.vmm.guest().driver.probe(endpoint).expect("a reply");
    assert_eq!(reply.status(), OK);
    let mut found = Vec::new();
    let mut rest = reply.properties();
    while let [kind0, kind1, length0, length1, ..] = *rest {
        let (kind, length) = (u16::from_le_bytes([kind0, kind1]), u16::from_le_bytes([length0, length1]));
        let (property, more) = rest.split_at(4 + usize::from(length));
        if kind == 0 {
            break;
        }
        found.push((kind, property.to_vec()));
        rest = more;
    }
    found
}

/// The registers that the kernel has, and those that the guest is told of; and whether it is told of PASIDs.
fn registers(bed: &mut Bed) -> Result<([u64; 2], [u64; 2], bool)> {
    let number = bed.vmm.cdev(0).context("it is plugged")?.number(bed.vmm.context())?;
    let info = HwInfo::of(bed.vmm.context(), number)?;
    let word = |at| u64::from(info.word(at)) | u64::from(info.word(at + 4)) << 32;
    let found = properties(bed);
    let of_kind = |wanted| found.iter().find(|(kind, _)| *kind == wanted).map(|(_, bytes)| bytes);
    let told = of_kind(PROPERTY_T_HW_INTEL_VTD).context("the hardware")?;
    let told = HwIntelVtd::read_from_bytes(told).ok().context("its size")?;
    let msi = of_kind(PROPERTY_T_RESV_MEM).context("a region")?;
    let msi = ResvMem::read_from_bytes(msi).ok().context("its size")?;
    let region = (msi.subtype, msi.start.get(), msi.last.get());
    assert_eq!(region, (RESV_MEM_T_MSI, 0xfee0_0000, 0xfeef_ffff));
    println!("kernel: cap {:#x}, ecap {:#x}; guest: {:#x}", word(8), word(16), told.ecap.get());
    Ok(([word(8), word(16)], [told.cap.get(), told.ecap.get()], of_kind(PROPERTY_T_PASID).is_some()))
}

#[test]
fn the_registers_are_told_as_they_are_for_the_device() -> Result<()> {
    for (functions, has_ats) in [(plain()?, false), (with_ats()?, true)] {
        let launch = |functions: &[Function]| Launch::of(functions);
        let mut bed = Bed::of(&functions[..1], launch(&functions[..1])?.with_pasids())?;
        let ([cap, ecap], told, has_pasids) = registers(&mut bed)?;
        assert_eq!(ecap & (DT | NEST | PASID), DT | NEST | PASID, "what the host is made of");
        let hidden = if has_ats { NEST } else { NEST | DT | PRS };
        assert_eq!((told, has_pasids), ([cap, ecap & !hidden], true));
        drop(bed);
        // A guest that sees no capability of the device.
        let mut bed = Bed::of(&functions[..1], launch(&functions[..1])?)?;
        let ([_, ecap], told, has_pasids) = registers(&mut bed)?;
        let hidden = hidden | PRS | PSS | PASID;
        assert_eq!((told, has_pasids), ([cap, ecap & !hidden], false));
    }
    Ok(())
}
