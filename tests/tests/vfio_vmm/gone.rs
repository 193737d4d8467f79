// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One of the two goes: the VMM, or the daemon.

use anyhow::Result;
use rustix::process::Signal;
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::{Launch, VfioVmm};

use crate::scene::{
    BOTH, Dma, IOVA, LOW, OK, PAGE, PATIENCE, alone, eventually, running, settled_shared_kib, shared_kib,
};

/// Two devices, of which the first is attached to domain 1, which maps `IOVA` to the second page.
fn attached() -> Result<(Daemon, VfioVmm)> {
    let (daemon, mut vmm) = running(2, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
    Ok((daemon, vmm))
}

/// A new VMM with new files of the same devices, and its daemon.
fn assert_devices_are_free() -> Result<()> {
    let (_daemon, mut vmm) = running(2, &[])?;
    vmm.assert_lands(0, LOW, LOW);
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    vmm.assert_refused(0, IOVA, LOW + PAGE);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    Ok(())
}

#[test]
fn when_the_daemon_says_that_the_vmm_is_gone_no_device_reaches_anything() -> Result<()> {
    let (daemon, mut vmm) = attached()?;
    vmm.assert_lands(1, LOW, LOW);
    vmm.disconnect();
    daemon.wait_for("VMM disconnected, endpoints are blocked", PATIENCE)?;
    for device in 0..2 {
        vmm.assert_refused(device, IOVA, LOW + PAGE);
        vmm.assert_refused(device, LOW, LOW);
    }
    let (status, log) = daemon.wait_for_end()?;
    assert!(status.success(), "{log:#?}");
    // The VMM still has its files, and only they are left.
    vmm.assert_refused(0, LOW, LOW);
    drop(vmm);
    assert_devices_are_free()
}

#[test]
fn no_memory_of_the_guest_is_held_when_both_are_gone() -> Result<()> {
    let before = settled_shared_kib();
    let (daemon, mut vmm) = attached()?;
    assert!(shared_kib() > before + (64 << 10));
    vmm.disconnect();
    daemon.wait_for_end()?;
    drop(vmm);
    eventually("the guest's memory is free", || shared_kib() < before + (1 << 10));
    Ok(())
}

#[test]
fn what_a_killed_daemon_has_attached_stays_and_nothing_is_taken_for_a_gpa() -> Result<()> {
    let (daemon, mut vmm) = attached()?;
    daemon.end_by(Signal::KILL)?;
    for _ in 0..2 {
        vmm.assert_lands(0, IOVA, LOW + PAGE);
        vmm.assert_refused(0, LOW, LOW);
        vmm.disconnect();
    }
    drop(vmm);
    assert_devices_are_free()
}

#[test]
fn a_daemon_that_is_told_to_end_leaves_devices_without_access() -> Result<()> {
    let (daemon, vmm) = attached()?;
    assert!(daemon.end()?.0.success());
    for device in 0..2 {
        vmm.assert_refused(device, IOVA, LOW + PAGE);
        vmm.assert_refused(device, LOW, LOW);
    }
    drop(vmm);
    assert_devices_are_free()
}

#[test]
fn a_vmm_that_takes_a_device_away_does_not_disturb_the_daemon() -> Result<()> {
    let (_daemon, mut vmm) = attached()?;
    // As for a hot-unplug; the daemon still has its duplicate.
    vmm.unplug(0)?;
    vmm.assert_refused(0, IOVA, LOW + PAGE);
    assert_eq!(vmm.map(1, IOVA + PAGE, LOW, PAGE, BOTH)?, OK);
    assert_eq!(vmm.unmap(1, IOVA, 2 * PAGE)?, OK);
    let _ = vmm.detach(1, 0)?;
    vmm.assert_lands(1, LOW, LOW);
    assert_eq!(vmm.attach(2, 1, 0)?, OK);
    vmm.assert_refused(1, LOW, LOW);
    Ok(())
}

#[test]
fn a_daemon_for_devices_that_are_bound_already_serves_them() -> Result<()> {
    let launch = Launch::of(&alone(1)?)?;
    let socket = launch.socket();
    let shared = launch.duplicate()?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.plug(0)?;
    let _daemon = shared.daemon(&[])?;
    vmm.connect(&shared.socket())?;
    assert_ne!(shared.socket(), socket);
    vmm.assert_lands(0, LOW, LOW);
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}
