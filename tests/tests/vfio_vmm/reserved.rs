// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest is told of the IOVAs that the host's IOMMU cannot translate.

use anyhow::Result;
use viommu_core::wire::{PROPERTY_T_RESV_MEM, RESV_MEM_T_MSI, ResvMem};
use viommu_tests::vfio_vmm::VfioVmm;
use zerocopy::FromBytes;

use crate::scene::{BOTH, Dma, LOW, OK, PAGE, running};

/// Where Linux takes the message-signalled interrupts of devices behind an SMMU.
const MSI: (u64, u64) = (0x800_0000, 0x80f_ffff);

/// The reserved regions of a device: kind, first and last IOVA.
fn reserved(vmm: &mut VfioVmm, device: usize) -> Vec<(u8, u64, u64)> {
    let endpoint = vmm.endpoint(device);
    let reply = vmm.guest().driver.probe(endpoint).expect("a reply");
    assert_eq!(reply.status(), OK);
    let mut found = Vec::new();
    let mut rest = reply.properties();
    while let Ok((region, more)) = ResvMem::read_from_prefix(rest) {
        if region.kind.get() != PROPERTY_T_RESV_MEM {
            break;
        }
        found.push((region.subtype, region.start.get(), region.last.get()));
        rest = more;
    }
    found
}

#[test]
fn the_hosts_msi_window_is_reserved_and_the_aperture_is_what_the_iommu_translates() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    let translated = vmm.space().iova_ranges()?.allowed;
    assert_eq!(translated.len(), 2, "{translated:?}");
    let config = vmm.guest().front_end.config()?;
    let aperture = (config.input_start.get(), config.input_last.get());
    assert_eq!(aperture, (translated[0].start(), translated[1].last()));
    for device in 0..2 {
        assert_eq!(reserved(&mut vmm, device), [(RESV_MEM_T_MSI, MSI.0, MSI.1)]);
    }
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    for iova in [MSI.0, MSI.0 + PAGE, MSI.1 + 1 - PAGE] {
        assert_ne!(vmm.map(1, iova, LOW, PAGE, BOTH)?, OK, "{iova:#x}");
    }
    // A mapping that only touches it, and one beyond the last IOVA.
    assert_ne!(vmm.map(1, MSI.0 - PAGE, LOW, 2 * PAGE, BOTH)?, OK);
    assert_ne!(vmm.map(1, aperture.1 + 1, LOW, PAGE, BOTH)?, OK);
    for iova in [0, MSI.0 - PAGE, MSI.1 + 1, aperture.1 + 1 - PAGE] {
        assert_eq!(vmm.map(1, iova, LOW, PAGE, BOTH)?, OK, "{iova:#x}");
        vmm.assert_lands(0, iova, LOW);
    }
    Ok(())
}

#[test]
fn a_doorbell_that_the_user_names_is_what_the_guest_sees() -> Result<()> {
    let (_daemon, mut vmm) = running(1, &["--msi-region", "0x8090000-0x809ffff"])?;
    let found = reserved(&mut vmm, 0);
    assert!(found.contains(&(RESV_MEM_T_MSI, 0x809_0000, 0x809_ffff)), "{found:x?}");
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    // The host's window cannot be mapped for that.
    for iova in [MSI.0, 0x809_0000, 0x80a_0000, MSI.1 + 1 - PAGE] {
        assert_ne!(vmm.map(1, iova, LOW, PAGE, BOTH)?, OK, "{iova:#x}");
    }
    assert_eq!(vmm.map(1, MSI.1 + 1, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, MSI.1 + 1, LOW);
    Ok(())
}
