// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two devices, and where ATTACH, DETACH and `bypass` put them.

use anyhow::Result;
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET};
use viommu_core::{DomainId, EndpointId};
use viommu_tests::vfio_vmm::VfioVmm;

use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, running};

fn set_bypass(vmm: &mut VfioVmm, value: u8) -> Result<()> {
    vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[value])?;
    assert_eq!(vmm.guest().front_end.config()?.bypass, value);
    Ok(())
}

#[test]
fn two_devices_in_one_domain_reach_the_same() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_lands(1, LOW, LOW);
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    for device in 0..2 {
        vmm.assert_lands(device, IOVA, LOW);
        vmm.assert_refused(device, LOW, LOW);
    }
    assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    for device in 0..2 {
        vmm.assert_refused(device, IOVA, LOW);
    }
    Ok(())
}

#[test]
fn two_devices_in_two_domains_reach_each_its_own() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    for (domain, device, gpa) in [(1, 0, LOW), (2, 1, LOW + PAGE)] {
        assert_eq!(vmm.attach(domain, device, 0)?, OK);
        assert_eq!(vmm.map(domain, IOVA, gpa, PAGE, BOTH)?, OK);
    }
    assert_eq!(vmm.map(2, IOVA + PAGE, LOW + 2 * PAGE, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_lands(1, IOVA, LOW + PAGE);
    vmm.assert_lands(1, IOVA + PAGE, LOW + 2 * PAGE);
    vmm.assert_refused(0, IOVA + PAGE, LOW + 2 * PAGE);
    assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    vmm.assert_refused(0, IOVA, LOW);
    vmm.assert_lands(1, IOVA, LOW + PAGE);
    Ok(())
}

#[test]
fn a_device_that_comes_later_reaches_what_is_mapped_already() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    for page in 0..20 {
        assert_eq!(vmm.map(1, IOVA + 3 * page * PAGE, LOW + page * PAGE, PAGE, BOTH)?, OK);
    }
    assert_eq!(vmm.unmap(1, IOVA + 3 * PAGE, PAGE)?, OK);
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    for page in [0, 2, 19] {
        vmm.assert_lands(1, IOVA + 3 * page * PAGE, LOW + page * PAGE);
    }
    vmm.assert_refused(1, IOVA + 3 * PAGE, LOW + PAGE);
    vmm.assert_refused(1, LOW, LOW);
    Ok(())
}

/// An endpoint without a device, which a domain can do with while no device is in it.
const LISTED: EndpointId = EndpointId(0x1f << 3);

/// Attaches that endpoint.
fn attach_listed(vmm: &mut VfioVmm, domain: u32) {
    let reply = vmm.guest().driver.attach(DomainId(domain), LISTED, 0).expect("a reply");
    assert_eq!(reply.status(), OK);
}

#[test]
fn the_first_device_of_a_domain_reaches_what_was_mapped_without_it() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &["--endpoint", "00:1f.0"])?;
    attach_listed(&mut vmm, 1);
    for page in 0..20 {
        assert_eq!(vmm.map(1, IOVA + 3 * page * PAGE, LOW + page * PAGE, PAGE, BOTH)?, OK);
    }
    assert_eq!(vmm.unmap(1, IOVA + 3 * PAGE, PAGE)?, OK);
    for round in 0..2 {
        assert_eq!(vmm.attach(1, 0, 0)?, OK);
        for page in [0, 2, 19] {
            vmm.assert_lands(0, IOVA + 3 * page * PAGE, LOW + page * PAGE);
        }
        vmm.assert_refused(0, IOVA + 3 * PAGE, LOW + PAGE);
        assert_eq!(vmm.detach(1, 0)?, OK, "{round}");
        vmm.assert_lands(0, LOW, LOW);
    }
    Ok(())
}

#[test]
fn a_device_that_cannot_have_what_a_domain_maps_stays_where_it_is() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &["--endpoint", "00:1f.0"])?;
    attach_listed(&mut vmm, 1);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    assert_eq!(vmm.map(1, IOVA + PAGE, 0x9000_0000, PAGE, BOTH)?, OK, "nobody can use it yet");
    assert_ne!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_lands(0, LOW, LOW);
    vmm.assert_refused(0, IOVA, LOW);
    assert_eq!(vmm.attach(2, 0, 0)?, OK);
    assert_eq!(vmm.map(2, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
    assert_ne!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_lands(0, IOVA, LOW + PAGE);
    assert_eq!(vmm.unmap(1, IOVA + PAGE, PAGE)?, OK);
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    Ok(())
}

#[test]
fn a_device_that_moves_leaves_its_old_domain_behind() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    for (domain, device, gpa) in [(1, 0, LOW), (2, 1, LOW + PAGE)] {
        assert_eq!(vmm.attach(domain, device, 0)?, OK);
        assert_eq!(vmm.map(domain, IOVA + u64::from(domain) * PAGE, gpa, PAGE, BOTH)?, OK);
    }
    assert_eq!(vmm.attach(2, 0, 0)?, OK);
    vmm.assert_lands(0, IOVA + 2 * PAGE, LOW + PAGE);
    vmm.assert_refused(0, IOVA + PAGE, LOW);
    vmm.assert_lands(1, IOVA + 2 * PAGE, LOW + PAGE);
    // Its old domain went with its last endpoint: a new one of that number is empty.
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    vmm.assert_refused(1, IOVA + PAGE, LOW);
    vmm.assert_refused(1, IOVA + 2 * PAGE, LOW + PAGE);
    vmm.assert_lands(0, IOVA + 2 * PAGE, LOW + PAGE);
    Ok(())
}

#[test]
fn a_detached_device_is_where_bypass_says() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    for bypass in [1, 0, 1] {
        set_bypass(&mut vmm, bypass)?;
        assert_eq!(vmm.attach(1, 0, 0)?, OK);
        assert_eq!(vmm.map(1, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
        vmm.assert_lands(0, IOVA, LOW + PAGE);
        assert_eq!(vmm.detach(1, 0)?, OK);
        vmm.assert_refused(0, IOVA, LOW + PAGE);
        match bypass {
            1 => vmm.assert_lands(0, LOW, LOW),
            _ => vmm.assert_refused(0, LOW, LOW),
        }
    }
    Ok(())
}

#[test]
fn a_write_to_bypass_moves_unattached_devices_and_no_others() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    for bypass in [0, 1, 0] {
        set_bypass(&mut vmm, bypass)?;
        match bypass {
            1 => vmm.assert_lands(1, LOW, LOW),
            _ => vmm.assert_refused(1, LOW, LOW),
        }
        vmm.assert_lands(0, IOVA, LOW);
        vmm.assert_refused(0, LOW, LOW);
    }
    // With more than one device to move, too.
    assert_eq!(vmm.detach(1, 0)?, OK);
    set_bypass(&mut vmm, 1)?;
    vmm.assert_lands(0, LOW, LOW);
    vmm.assert_lands(1, LOW, LOW);
    set_bypass(&mut vmm, 0)?;
    vmm.assert_refused(0, LOW, LOW);
    vmm.assert_refused(1, LOW, LOW);
    Ok(())
}

#[test]
fn a_bypass_domain_is_untranslated_whatever_bypass_says() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &["--boot-bypass", "off"])?;
    assert_eq!(vmm.attach(1, 0, ATTACH_F_BYPASS)?, OK);
    vmm.assert_lands(0, LOW, LOW);
    vmm.assert_lands(0, VfioVmm::HIGH + (3 << 20), VfioVmm::HIGH + (3 << 20));
    vmm.assert_refused(0, IOVA, LOW);
    assert_eq!(vmm.attach(2, 0, 0)?, OK);
    vmm.assert_refused(0, LOW, LOW);
    assert_eq!(vmm.attach(1, 0, ATTACH_F_BYPASS)?, OK);
    vmm.assert_lands(0, LOW, LOW);
    assert_eq!(vmm.detach(1, 0)?, OK);
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}
