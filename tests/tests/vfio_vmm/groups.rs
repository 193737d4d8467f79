// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Functions that the host cannot isolate from each other: what one of them reaches, the others may reach as well.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET};
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::{Function, Launch, TestDevice, VfioVmm};

use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, PATIENCE, eventually};

const UNSUPPORTED: u8 = 2;

/// Two functions that share a group.
pub fn pair() -> Result<Vec<Function>> {
    let mut groups: BTreeMap<u32, Vec<Function>> = BTreeMap::new();
    for function in Function::all(TestDevice::ID.0, TestDevice::ID.1)? {
        groups.entry(function.group).or_default().push(function);
    }
    groups.into_values().find(|group| group.len() == 2).context("no functions share a group")
}

/// A daemon and a VMM with these two.
fn running(arguments: &[&str]) -> Result<(Daemon, VfioVmm)> {
    let launch = Launch::of(&pair()?)?;
    let daemon = launch.daemon(arguments)?;
    Ok((daemon, VfioVmm::running(launch)?))
}

#[test]
fn functions_of_one_group_share_a_domain_or_are_refused() -> Result<()> {
    let (_daemon, mut vmm) = running(&[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    assert_eq!(vmm.attach(2, 1, 0)?, UNSUPPORTED);
    assert_eq!(vmm.attach(1, 1, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA + PAGE, LOW + PAGE, PAGE, BOTH)?, OK);
    for device in 0..2 {
        vmm.assert_lands(device, IOVA, LOW);
        vmm.assert_lands(device, IOVA + PAGE, LOW + PAGE);
        vmm.assert_refused(device, LOW, LOW);
    }
    Ok(())
}

/// While one is attached, none of them may go around its domain.
#[test]
fn what_leaves_a_domain_takes_no_other_with_it() -> Result<()> {
    let (_daemon, mut vmm) = running(&[])?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    for first in 0..2 {
        assert_eq!(vmm.detach(1, first)?, OK);
        vmm.assert_lands(1 - first, IOVA, LOW);
        vmm.assert_refused(1 - first, LOW, LOW);
        assert_eq!(vmm.attach(1, first, 0)?, OK);
        vmm.assert_lands(first, IOVA, LOW);
        vmm.assert_refused(first, LOW, LOW);
    }
    // The last one does go where unattached ones are, and so do all.
    for device in 0..2 {
        assert_eq!(vmm.detach(1, device)?, OK);
    }
    for device in 0..2 {
        vmm.assert_lands(device, LOW, LOW);
        vmm.assert_refused(device, IOVA, LOW);
    }
    Ok(())
}

#[test]
fn a_write_to_bypass_moves_none_whose_group_is_in_a_domain() -> Result<()> {
    let (_daemon, mut vmm) = running(&[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    for bypass in [0, 1, 0, 1] {
        vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[bypass])?;
        assert_eq!(vmm.guest().front_end.config()?.bypass, bypass);
        vmm.assert_lands(0, IOVA, LOW);
        for device in 0..2 {
            vmm.assert_refused(device, LOW, LOW);
        }
    }
    Ok(())
}

#[test]
fn without_bypass_all_of_a_group_are_blocked_when_none_is_attached() -> Result<()> {
    let (_daemon, mut vmm) = running(&["--boot-bypass", "off"])?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    assert_eq!(vmm.detach(1, 0)?, OK);
    vmm.assert_lands(1, IOVA, LOW);
    assert_eq!(vmm.detach(1, 1)?, OK);
    for device in 0..2 {
        vmm.assert_refused(device, IOVA, LOW);
        vmm.assert_refused(device, LOW, LOW);
    }
    assert_eq!(vmm.attach(2, 1, 0)?, OK);
    assert_eq!(vmm.map(2, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
    vmm.assert_lands(1, IOVA, LOW + PAGE);
    Ok(())
}

#[test]
fn one_in_a_bypass_domain_stays_there_when_unattached_ones_are_blocked() -> Result<()> {
    let (_daemon, mut vmm) = running(&[])?;
    assert_eq!(vmm.attach(4, 0, ATTACH_F_BYPASS)?, OK);
    vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[0])?;
    assert_eq!(vmm.guest().front_end.config()?.bypass, 0);
    vmm.assert_lands(0, LOW, LOW);
    assert_eq!(vmm.detach(4, 0)?, OK);
    for device in 0..2 {
        vmm.assert_refused(device, LOW, LOW);
    }
    Ok(())
}

#[test]
fn after_a_pause_each_is_in_the_domain_by_itself() -> Result<()> {
    let (_daemon, mut vmm) = running(&[])?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
        vmm.registers(device).set_bus_master(false)?;
    }
    assert_eq!(vmm.map(1, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
    let stopped = vmm.stop_rings()?;
    eventually("they are in bypass mode", || vmm.lands(0, LOW, LOW));
    vmm.start_rings(stopped)?;
    eventually("they are back in their domain", || vmm.lands(0, IOVA, LOW + PAGE));
    assert_eq!(vmm.detach(1, 0)?, OK);
    for device in 0..2 {
        vmm.assert_lands(device, IOVA, LOW + PAGE);
        vmm.assert_refused(device, LOW, LOW);
    }
    Ok(())
}

#[test]
fn none_reaches_anything_when_the_daemon_has_let_go_of_them() -> Result<()> {
    let (daemon, mut vmm) = running(&[])?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.disconnect();
    daemon.wait_for("VMM disconnected, endpoints are blocked", PATIENCE)?;
    for device in 0..2 {
        vmm.assert_refused(device, IOVA, LOW);
        vmm.assert_refused(device, LOW, LOW);
    }
    Ok(())
}
