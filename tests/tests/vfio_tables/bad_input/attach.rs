// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH_TABLE.

use anyhow::Result;
use viommu_core::wire::{self, ReqAttachTable};
use viommu_core::{Caches, Invalidation, Scope, Status};
use viommu_tests::vfio_vmm::{BYPASS, VfioVmm};
use zerocopy::IntoBytes;

use super::{ABSENT, Scene, WITHOUT_DEVICE};
use crate::scene::{ASID, Bed, IOVA, OK, PAGES};

#[test]
fn an_attach_that_names_what_is_not_there_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    scene.refuses(Status::NoEnt, &ReqAttachTable { endpoint: ABSENT.0.into(), ..good });
    scene.refuses(Status::Unsupp, &ReqAttachTable { endpoint: WITHOUT_DEVICE.0.into(), ..good });
    let last = scene.bed.vmm.guest().front_end.config()?.domain_last.get();
    if let Some(beyond) = last.checked_add(1) {
        scene.refuses(Status::Range, &ReqAttachTable { domain: beyond.into(), ..good });
    }
    assert_eq!(scene.status(&good), OK);
    Ok(())
}

#[test]
fn a_format_that_the_hardware_lacks_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    for format in [3, 4, 0x80, 0xff] {
        scene.refuses(Status::Unsupp, &ReqAttachTable { format, ..good });
    }
    let mut intel = wire::DescriptorIntelPt {
        reserved: [0; 3],
        flags: 0.into(),
        pgd: scene.descriptor.root.into(),
        addr_width: 48.into(),
        pasid: 0.into(),
        attach_flags: 0.into(),
        reserved1: [0; 80],
    };
    let of = |format, descriptor: &wire::DescriptorIntelPt| {
        let bytes = descriptor.as_bytes().try_into().expect("its size");
        ReqAttachTable { format, descriptor: bytes, ..good }
    };
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_INTEL_PT, &intel));
    (intel.pasid, intel.attach_flags) = (1.into(), wire::ATTACH_TABLE_F_PASID.into());
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_INTEL_PT, &intel));
    // A PASID is left without a table only where it can have one.
    scene.refuses(Status::Inval, &of(wire::FORMAT_NONE, &intel));
    (intel.pgd, intel.addr_width) = (0.into(), 0.into());
    scene.refuses(Status::Unsupp, &of(wire::FORMAT_NONE, &intel));
    (intel.pasid, intel.attach_flags) = (0.into(), 0.into());
    scene.refuses(Status::Inval, &of(wire::FORMAT_NONE, &intel));
    Ok(())
}

#[test]
fn reserved_bits_and_fields_of_an_attach_are_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let good = scene.attach();
    let [ste0, ste1] = scene.descriptor.entry();
    // All bits that are no field's.
    let fields: [u64; 2] = [1 | 0xe | 0x30 | 0x000f_ffff_ffff_ffc0 | 0x1f << 59, 0xff | 1 << 27 | 3 << 28];
    for bit in 0..64 {
        if fields[0] >> bit & 1 == 0 {
            let request = scene.attach_entry(ste0 | 1 << bit, ste1);
            scene.refuses(Status::Inval, &request);
        }
        if fields[1] >> bit & 1 == 0 {
            let request = scene.attach_entry(ste0, ste1 | 1 << bit);
            scene.refuses(Status::Inval, &request);
        }
    }
    // Of the descriptor, but for the words.
    for byte in (0..wire::DESCRIPTOR_SIZE).filter(|byte| !(3..19).contains(byte)) {
        let mut request = good;
        request.descriptor[byte] = 1;
        scene.refuses(Status::Inval, &request);
    }
    // No V; other Configs; S1Fmt, S1DSS and EATS that there are not.
    let config = |config: u64| ste0 & !0xe | config << 1;
    for (ste0, ste1) in [
        (ste0 & !1, ste1),
        (config(1), ste1),
        (config(2), ste1),
        (config(3), ste1),
        (config(6), ste1),
        (config(7), ste1),
        (ste0 | 3 << 4, ste1),
        (ste0, ste1 | 3),
        (ste0, ste1 | 2 << 28),
        (ste0, ste1 | 3 << 28),
        (0, 0),
        (u64::MAX, u64::MAX),
    ] {
        let request = scene.attach_entry(ste0, ste1);
        scene.refuses(Status::Inval, &request);
    }
    assert_eq!(scene.status(&good), OK);
    Ok(())
}

#[test]
fn an_entry_for_what_the_hardware_lacks_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let [ste0, ste1] = scene.descriptor.entry();
    let with_ats = scene.attach_entry(ste0, ste1 | 1 << 28);
    scene.refuses(Status::Unsupp, &with_ats);
    let [bypass0, bypass1] = BYPASS;
    let with_ats = scene.attach_entry(bypass0, bypass1 | 1 << 28);
    scene.refuses(Status::Unsupp, &with_ats);
    // QEMU's SMMUv3 has no SubstreamIDs.
    for bits in [1, 2, 20, 31] {
        let request = scene.attach_entry(ste0 | bits << 59, ste1);
        scene.refuses(Status::Range, &request);
    }
    Ok(())
}

#[test]
fn a_table_outside_of_guest_memory_is_refused() -> Result<()> {
    let mut scene = Scene::new()?;
    let [ste0, ste1] = scene.descriptor.entry();
    let end = VfioVmm::MIDDLE + VfioVmm::REGION;
    for at in [
        // The last that there is a field for: of 2^64 - 1 the other bits are reserved.
        0x000f_ffff_ffff_ffc0,
        end,
        VfioVmm::LOW - 64,
        VfioVmm::HIGH - 64,
        VfioVmm::HIGH + VfioVmm::HIGH_BYTES,
        0,
        // The host's window and its interrupt controller.
        0x800_0000,
        0x809_0000,
    ] {
        let request = scene.attach_entry(ste0 & 0x3f | at, ste1);
        scene.refuses(Status::Fault, &request);
    }
    // That with the whole of the word set, too.
    let request = scene.attach_entry(u64::MAX, ste1);
    scene.refuses(Status::Inval, &request);
    // The last descriptor that there is memory for.
    let request = scene.attach_entry(ste0 & 0x3f | (end - 64), ste1);
    assert_eq!(scene.status(&request), OK);
    Ok(())
}

#[test]
fn an_attach_that_is_refused_makes_no_domain() -> Result<()> {
    let mut bed = Bed::new(1, &["--endpoint", "00:1f.0"])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    let [ste0, ste1] = descriptor.entry();
    for (entry, status) in [
        ([ste0, ste1 | 1 << 28], Status::Unsupp),
        ([ste0 & 0x3f | (VfioVmm::LOW - 64), ste1], Status::Fault),
        ([ste0 | 1 << 59, ste1], Status::Range),
        ([ste0 | 1 << 55, ste1], Status::Inval),
    ] {
        assert_eq!(bed.vmm.attach_table(1, 0, entry)?, status as u8);
        assert_eq!(bed.written(0, PAGES[1]), Some(PAGES[1]), "untranslated as it was");
        let all =
            Invalidation { scope: Scope::Domain, caches: Caches::TLB, leaf: false, id: None, global: false };
        assert_eq!(bed.vmm.invalidate(1, &all)?, Status::NoEnt as u8);
        assert_ne!(bed.vmm.detach(1, 0)?, OK);
    }
    Ok(())
}
