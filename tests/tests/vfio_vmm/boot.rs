// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Before any ATTACH.

use anyhow::Result;
use viommu_core::wire::BYPASS_OFFSET;
use viommu_tests::vfio_vmm::{Launch, VfioVmm};

use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, PATIENCE, alone, eventually, running};

#[test]
fn a_device_reaches_memory_untranslated_by_what_the_vmm_attached() -> Result<()> {
    let (_daemon, vmm) = running(2, &[])?;
    for device in 0..2 {
        vmm.assert_lands(device, LOW + 0x3000, LOW + 0x3000);
        vmm.assert_lands(device, VfioVmm::HIGH + 0x3f_0000, VfioVmm::HIGH + 0x3f_0000);
        vmm.assert_refused(device, IOVA, LOW);
    }
    Ok(())
}

#[test]
fn without_boot_bypass_a_device_reaches_nothing_once_the_vmm_has_connected() -> Result<()> {
    let (daemon, vmm) = running(1, &["--boot-bypass", "off"])?;
    daemon.wait_for("VMM connected", PATIENCE)?;
    eventually("the device is blocked", || !vmm.lands(0, LOW, LOW));
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn without_boot_bypass_a_device_that_is_bound_later_reaches_nothing_either() -> Result<()> {
    let launch = Launch::of(&alone(1)?)?;
    let socket = launch.socket();
    let _daemon = launch.daemon(&["--boot-bypass", "off"])?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.connect(&socket)?;
    vmm.plug(0)?;
    eventually("the device is blocked", || !vmm.lands(0, LOW, LOW));
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn a_device_that_is_bound_after_the_guest_has_ended_bypass_reaches_nothing() -> Result<()> {
    let launch = Launch::of(&alone(2)?)?;
    let socket = launch.socket();
    let _daemon = launch.daemon(&[])?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.plug(0)?;
    vmm.connect(&socket)?;
    vmm.assert_lands(0, LOW, LOW);
    vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[0])?;
    assert_eq!(vmm.guest().front_end.config()?.bypass, 0);
    vmm.assert_refused(0, LOW, LOW);
    vmm.plug(1)?;
    eventually("the device is blocked", || !vmm.lands(1, LOW, LOW));
    vmm.assert_refused(1, LOW, LOW);
    vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[1])?;
    for device in 0..2 {
        vmm.assert_lands(device, LOW, LOW);
    }
    Ok(())
}

#[test]
fn a_device_that_is_bound_when_bypass_is_off_reaches_nothing() -> Result<()> {
    let launch = Launch::of(&alone(2)?)?;
    let socket = launch.socket();
    let _daemon = launch.daemon(&[])?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.plug(0)?;
    vmm.connect(&socket)?;
    vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[0])?;
    assert_eq!(vmm.guest().front_end.config()?.bypass, 0);
    vmm.assert_refused(0, LOW, LOW);
    vmm.plug(1)?;
    eventually("the device is blocked", || !vmm.lands(1, LOW, LOW));
    vmm.assert_refused(1, LOW, LOW);
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(1, IOVA, LOW);
    Ok(())
}

#[test]
fn a_device_that_is_attached_before_it_is_bound_is_in_its_domain_afterwards() -> Result<()> {
    let launch = Launch::of(&alone(2)?)?;
    let socket = launch.socket();
    let _daemon = launch.daemon(&[])?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.plug(0)?;
    vmm.connect(&socket)?;
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    vmm.plug(1)?;
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    eventually("the device is in its domain", || !vmm.lands(1, LOW, LOW));
    vmm.assert_lands(1, IOVA, LOW);
    vmm.assert_refused(1, LOW, LOW);
    Ok(())
}
