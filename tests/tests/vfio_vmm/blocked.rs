// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that whoever runs the machine cuts off from its memory.

use anyhow::Result;
use tempfile::TempDir;
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::{Function, Launch, VfioVmm};

use crate::groups::pair;
use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, alone, eventually};

/// Whoever runs the machine.
struct Operator(TempDir);

impl Operator {
    /// Starts a daemon for these devices.
    fn launch(functions: &[Function]) -> Result<(Operator, Daemon, Launch)> {
        let operator = Operator(tempfile::tempdir()?);
        let launch = Launch::of(functions)?;
        let daemon =
            launch.daemon(&["--control", &operator.0.path().join("control.sock").display().to_string()])?;
        Ok((operator, daemon, launch))
    }

    /// The same, and a VMM that has the devices.
    fn running(functions: &[Function]) -> Result<(Operator, Daemon, VfioVmm)> {
        let (operator, daemon, launch) = Operator::launch(functions)?;
        Ok((operator, daemon, VfioVmm::running(launch)?))
    }

    fn ctl(&self, words: &[&str]) -> Result<String> {
        Daemon::ctl(&self.0.path().join("control.sock"), words)
    }
}

/// Nothing is reached at the IOVA that tests map, nor at the GPA.
#[track_caller]
fn assert_blocked(vmm: &VfioVmm, device: usize) {
    vmm.assert_refused(device, IOVA, LOW);
    vmm.assert_refused(device, LOW, LOW);
}

#[test]
fn a_blocked_device_reaches_nothing_whatever_the_guest_does_and_then_what_it_has_said() -> Result<()> {
    let (operator, _daemon, mut vmm) = Operator::running(&alone(2)?)?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    operator.ctl(&["block", "00:03.0"])?;
    assert!(operator.ctl(&["list"])?.contains(", blocked (domain 1): by the operator\n00:04.0: "));
    assert_blocked(&vmm, 0);
    vmm.assert_lands(1, IOVA, LOW);

    assert_eq!(vmm.map(1, IOVA + PAGE, LOW + PAGE, PAGE, BOTH)?, OK);
    assert_eq!(vmm.detach(1, 0)?, OK);
    assert_blocked(&vmm, 0);
    assert_eq!(vmm.attach(2, 0, 0)?, OK);
    assert_eq!(vmm.map(2, IOVA, LOW + PAGE, PAGE, BOTH)?, OK);
    assert_blocked(&vmm, 0);
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.unmap(1, IOVA, PAGE)?, OK);
    assert_blocked(&vmm, 0);

    operator.ctl(&["unblock", "00:03.0"])?;
    for device in 0..2 {
        vmm.assert_lands(device, IOVA + PAGE, LOW + PAGE);
        assert_blocked(&vmm, device);
    }
    Ok(())
}

#[test]
fn a_device_that_bypasses_is_blocked_and_bypasses_again() -> Result<()> {
    let (operator, _daemon, vmm) = Operator::running(&alone(1)?)?;
    vmm.assert_lands(0, LOW, LOW);
    for _ in 0..2 {
        operator.ctl(&["block", "00:03.0"])?;
        assert_blocked(&vmm, 0);
        operator.ctl(&["unblock", "00:03.0"])?;
        vmm.assert_lands(0, LOW, LOW);
    }
    Ok(())
}

#[test]
fn a_device_that_is_blocked_before_the_vmm_has_it_is_taken_out_of_its_address_space() -> Result<()> {
    let (operator, _daemon, launch) = Operator::launch(&alone(1)?)?;
    operator.ctl(&["block", "00:03.0"])?;
    let mut vmm = VfioVmm::running(launch)?;
    eventually("it is taken out", || !vmm.lands(0, LOW, LOW));
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    assert_blocked(&vmm, 0);
    operator.ctl(&["unblock", "00:03.0"])?;
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn a_reset_ends_no_block_and_what_lingers_does_so_after_it() -> Result<()> {
    let (operator, _daemon, mut vmm) = Operator::running(&alone(1)?)?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    operator.ctl(&["block", "00:03.0"])?;
    vmm.stop_rings()?;
    vmm.restart_rings()?;
    // The first request tells of the reset.
    assert_ne!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    assert_blocked(&vmm, 0);
    operator.ctl(&["unblock", "00:03.0"])?;
    vmm.assert_lands(0, IOVA, LOW);
    vmm.assert_refused(0, LOW, LOW);
    Ok(())
}

#[test]
fn functions_that_share_a_group_are_blocked_together() -> Result<()> {
    let (operator, _daemon, mut vmm) = Operator::running(&pair()?)?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    operator.ctl(&["block", "00:04.0"])?;
    assert!(
        operator
            .ctl(&["list"])?
            .contains("(domain 1): by the operator, with another of its IOMMU group\n00:04.0")
    );
    (0..2).for_each(|device| assert_blocked(&vmm, device));
    operator.ctl(&["block", "00:03.0"])?;
    operator.ctl(&["unblock", "00:04.0"])?;
    (0..2).for_each(|device| assert_blocked(&vmm, device));
    operator.ctl(&["unblock", "00:03.0"])?;
    (0..2).for_each(|device| vmm.assert_lands(device, IOVA, LOW));
    Ok(())
}
