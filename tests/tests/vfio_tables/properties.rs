// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest is told before it makes a table: feature bits, the hardware, regions that are to be mapped to themselves.

use anyhow::Result;
use viommu_core::wire::{
    HwArmSmmu3, PROPERTY_T_HW_ARM_SMMU3, PROPERTY_T_RESV_MEM, RESV_MEM_T_IDENTITY, ResvMem, Tail,
};
use viommu_core::{DomainId, EndpointId, Features};
use viommu_nested::{Attach, HwInfo};
use viommu_tests::driver::attach_table;
use viommu_tests::vfio_vmm::Descriptor;
use zerocopy::{FromBytes, IntoBytes};

use crate::scene::{ASID, Bed, IOVA, OK, PAGES};

/// Where Linux takes the message-signalled interrupts of devices behind an SMMU.
const MSI: (u64, u64) = (0x800_0000, 0x80f_ffff);

/// Type and bytes of each, with the four before them.
fn properties(bed: &mut Bed, endpoint: EndpointId) -> Vec<(u16, Vec<u8>)> {
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

#[test]
fn the_guest_is_told_of_the_hardware_that_walks_its_tables() -> Result<()> {
    let mut bed = Bed::new(2, &["--endpoint", "00:1f.0"])?;
    for device in 0..2 {
        let number = bed.vmm.cdev(device).expect("it is plugged").number(bed.vmm.context())?;
        let info = HwInfo::of(bed.vmm.context(), number)?;
        let idr = |register: usize| u64::from(info.word(8 + 4 * register));
        let endpoint = bed.vmm.endpoint(device);
        let found = properties(&mut bed, endpoint);
        // Neither PASIDs nor page requests: the device has none.
        assert_eq!(
            found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [PROPERTY_T_RESV_MEM, PROPERTY_T_HW_ARM_SMMU3]
        );
        let region = ResvMem::read_from_bytes(&found[0].1).expect("its size");
        assert_eq!(
            (region.subtype, region.start.get(), region.last.get()),
            (RESV_MEM_T_IDENTITY, MSI.0, MSI.1)
        );
        let told = HwArmSmmu3::read_from_bytes(&found[1].1).expect("its size");
        let registers = [(0, told.idr0), (1, told.idr1), (3, told.idr3), (5, told.idr5)];
        println!("kernel: {:x?}\nguest: {registers:x?}", info.data);
        // Nothing that the hardware lacks, but that accesses which fail do not wait (STALL_MODEL, bit 24 of the first).
        for (register, told) in registers {
            let more = told.get() & !idr(register);
            assert_eq!(more & !(u64::from(register == 0) << 24), 0, "IDR{register}");
        }
        // S1P and COHACC, tables of AArch64, ASIDs of 16 bits; pages of 4 KiB; ranges as far as the hardware knows them;
        // as large addresses.
        assert_eq!(told.idr0.get() & 0x101a, 0x101a);
        assert_eq!(told.idr5.get() & (1 << 4 | 7), idr(5) & (1 << 4 | 7));
        assert_eq!(told.idr3.get() & 1 << 10, idr(3) & 1 << 10);
        assert_eq!(told.idr1.get() >> 6 & 0x1f, idr(1) >> 6 & 0x1f, "SSIDSIZE");
        assert_eq!((told.reserved, told.reserved1, told.reserved2), ([0; 4], [0; 8], [0; 8]));
    }
    // It has no device, so nothing walks tables for it.
    let found = properties(&mut bed, EndpointId(0x1f << 3));
    assert!(found.iter().all(|(kind, _)| *kind == PROPERTY_T_RESV_MEM), "{found:x?}");
    Ok(())
}

#[test]
fn the_feature_is_offered_under_the_bit_that_was_asked_for_and_without_mappings() -> Result<()> {
    for (arguments, bit) in
        [(&[][..], 7), (&["--table-feature-bit", "8"], 8), (&["--table-feature-bit", "23"], 23)]
    {
        let mut bed = Bed::new(1, arguments)?;
        let others =
            Features::INPUT_RANGE | Features::DOMAIN_RANGE | Features::PROBE | Features::BYPASS_CONFIG;
        let of_the_device = bed.vmm.guest().front_end.features() & 0xff_ffff;
        assert_eq!(of_the_device, others.bits() | 1 << bit);
        let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    }
    Ok(())
}

#[test]
fn a_driver_that_did_not_take_the_feature_has_no_such_requests() -> Result<()> {
    let mut bed = Bed::new(1, &[])?;
    let descriptor: Descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    let endpoint = bed.vmm.endpoint(0);
    bed.vmm.guest().front_end.reset_device()?;
    bed.vmm.restart_rings()?;
    let front_end = &mut bed.vmm.guest().front_end;
    let features = front_end.features() & !(1 << 7);
    front_end.step(|vhost| vhost::VhostBackend::set_features(vhost, features))?;
    let request = attach_table(DomainId(1), endpoint, descriptor.entry());
    let reply = bed.vmm.guest().driver.request(request.as_bytes(), size_of::<Tail>()).expect("a reply");
    assert_eq!(reply.written, 0);
    assert_eq!(bed.written(0, IOVA), None);
    assert_eq!(bed.written(0, PAGES[0]), Some(PAGES[0]));
    Ok(())
}
