// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The IOMMU is reset or stopped while a device does DMA, as when a guest shuts down or is paused.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use viommu_core::wire::ATTACH_F_BYPASS;
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::VfioVmm;

use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, eventually, running};

/// How long a thing that must not happen is waited for: many times what the daemon takes to look at devices.
const MOMENT: Duration = Duration::from_millis(200);
const TARGET: u64 = LOW + PAGE;

/// A device that is attached to domain 1, which maps `IOVA` to `TARGET`.
fn attached(arguments: &[&str]) -> Result<(Daemon, VfioVmm)> {
    let (daemon, mut vmm) = running(1, arguments)?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, TARGET, PAGE, BOTH)?, OK);
    in_its_domain(&vmm);
    Ok((daemon, vmm))
}

/// For long enough to tell that it stays there.
fn stays_in_its_domain(vmm: &VfioVmm) {
    in_its_domain(vmm);
    sleep(MOMENT);
    in_its_domain(vmm);
}

#[track_caller]
fn in_its_domain(vmm: &VfioVmm) {
    vmm.assert_lands(0, IOVA, TARGET);
    vmm.assert_refused(0, LOW, LOW);
}

#[track_caller]
fn gets_to_bypass(vmm: &VfioVmm) {
    eventually("the device is in bypass mode", || vmm.lands(0, LOW, LOW));
    vmm.assert_refused(0, IOVA, TARGET);
}

#[test]
fn after_a_reset_a_device_lingers_until_it_does_no_dma_any_more() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    vmm.guest().front_end.reset_device()?;
    stays_in_its_domain(&vmm);
    vmm.registers(0).set_bus_master(false)?;
    gets_to_bypass(&vmm);
    vmm.registers(0).set_bus_master(true)?;
    gets_to_bypass(&vmm);
    Ok(())
}

#[test]
fn without_boot_bypass_a_device_that_lingers_ends_up_blocked() -> Result<()> {
    let (_daemon, mut vmm) = attached(&["--boot-bypass", "off"])?;
    vmm.guest().front_end.reset_device()?;
    stays_in_its_domain(&vmm);
    vmm.registers(0).set_bus_master(false)?;
    eventually("the device is blocked", || !vmm.lands(0, IOVA, TARGET));
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn a_device_that_lingers_is_attached_again_by_the_next_driver() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    vmm.guest().front_end.reset_device()?;
    vmm.restart_rings()?;
    in_its_domain(&vmm);
    // Its old domain does not exist any more, and a new one of that number is empty.
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_refused(0, IOVA, TARGET);
    assert_eq!(vmm.map(1, IOVA, LOW + 2 * PAGE, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW + 2 * PAGE);
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn a_driver_that_starts_the_rings_anew_has_reset_the_device() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    vmm.stop_rings()?;
    stays_in_its_domain(&vmm);
    vmm.restart_rings()?;
    assert_ne!(vmm.unmap(1, IOVA, PAGE)?, OK, "the domain is gone");
    stays_in_its_domain(&vmm);
    vmm.registers(0).set_bus_master(false)?;
    gets_to_bypass(&vmm);
    Ok(())
}

#[test]
fn a_device_that_does_no_dma_any_more_is_in_bypass_mode_while_the_rings_are_stopped() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    vmm.stop_rings()?;
    vmm.registers(0).set_bus_master(false)?;
    // Firmware finds its disk.
    gets_to_bypass(&vmm);
    Ok(())
}

#[test]
fn a_pause_leaves_a_device_in_its_domain() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    for _ in 0..5 {
        let stopped = vmm.stop_rings()?;
        in_its_domain(&vmm);
        vmm.start_rings(stopped)?;
        in_its_domain(&vmm);
    }
    assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    vmm.assert_refused(0, IOVA, TARGET);
    Ok(())
}

/// Nobody sends a request after that: the guest knows nothing of the pause.
#[test]
fn after_a_pause_a_device_without_dma_is_back_in_its_domain_before_it_does_any() -> Result<()> {
    let (_daemon, mut vmm) = attached(&[])?;
    assert_eq!(vmm.map(1, IOVA + 2 * PAGE, LOW + 2 * PAGE, PAGE, BOTH)?, OK);
    for _ in 0..5 {
        vmm.registers(0).set_bus_master(false)?;
        let stopped = vmm.stop_rings()?;
        gets_to_bypass(&vmm);
        vmm.start_rings(stopped)?;
        vmm.registers(0).set_bus_master(true)?;
        in_its_domain(&vmm);
        vmm.assert_lands(0, IOVA + 2 * PAGE, LOW + 2 * PAGE);
    }
    stays_in_its_domain(&vmm);
    assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    vmm.assert_refused(0, IOVA, TARGET);
    Ok(())
}

#[test]
fn a_bypass_domain_lingers_no_longer_than_another() -> Result<()> {
    let (_daemon, mut vmm) = running(1, &["--boot-bypass", "off"])?;
    assert_eq!(vmm.attach(4, 0, ATTACH_F_BYPASS)?, OK);
    vmm.guest().front_end.reset_device()?;
    vmm.assert_lands(0, LOW, LOW);
    sleep(MOMENT);
    vmm.assert_lands(0, LOW, LOW);
    vmm.registers(0).set_bus_master(false)?;
    eventually("the device is blocked", || !vmm.lands(0, LOW, LOW));
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}
