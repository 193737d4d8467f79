// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The guest's memory: pinned once, by the VMM, and what becomes of it when the VMM adds and removes some.

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use std::os::unix::process::CommandExt;
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;
use viommu_core::IovaRange;
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::GuestMemory;
use viommu_tests::vfio_vmm::{Launch, VfioVmm};
use vm_memory::GuestMemoryBackend;

use crate::scene::{
    BOTH, Dma, IOVA, LOW, OK, PAGE, PATIENCE, alone, eventually, kib, running, settled_shared_kib, shared_kib,
};

/// The user of a daemon without rights.
const NOBODY: u32 = 65_534;
/// Where memory is added.
const ADDED: u64 = 1 << 36;
const ADDED_BYTES: u64 = 8 << 20;

fn pinned_kib(process: impl std::fmt::Display) -> Result<u64> {
    kib(&format!("/proc/{process}/status"), "VmPin")
}

/// A daemon of an ordinary user that may lock 64 KiB, and its VMM, which is none.
fn unprivileged() -> Result<(Daemon, VfioVmm)> {
    let launch = Launch::of(&alone(2)?)?;
    let socket = launch.socket();
    let daemon = launch.daemon_with(&["--log-level", "debug"], |command| {
        command.uid(NOBODY).gid(NOBODY);
    })?;
    let limit = Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    let process = Pid::from_raw(daemon.pid().try_into()?).context("a process")?;
    prlimit(Some(process), Resource::Memlock, limit)?;
    let mut vmm = VfioVmm::of(launch)?;
    vmm.plug_all()?;
    vmm.connect(&socket)?;
    Ok((daemon, vmm))
}

#[test]
fn memory_is_pinned_once_whatever_is_mapped_by_how_many_devices() -> Result<()> {
    let before = pinned_kib("self")?;
    let (daemon, mut vmm) = running(2, &[])?;
    let all = (2 * VfioVmm::REGION + VfioVmm::HIGH_BYTES) >> 10;
    for device in 0..2u32 {
        assert_eq!(vmm.attach(1 + device, device as usize, 0)?, OK);
        for page in 0..500 {
            assert_eq!(vmm.map(1 + device, IOVA + page * PAGE, LOW + page * PAGE, PAGE, BOTH)?, OK);
        }
        let bytes = VfioVmm::REGION;
        assert_eq!(vmm.map(1 + device, IOVA + (1 << 30), VfioVmm::MIDDLE, bytes, BOTH)?, OK);
        vmm.assert_lands(device as usize, IOVA + (1 << 30), VfioVmm::MIDDLE);
    }
    assert_eq!(pinned_kib("self")? - before, all);
    assert_eq!(pinned_kib(daemon.pid())?, 0);
    Ok(())
}

#[test]
fn an_ordinary_users_daemon_maps_what_the_vmm_has_pinned() -> Result<()> {
    let (daemon, mut vmm) = unprivileged()?;
    vmm.assert_lands(0, LOW, LOW);
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    let bytes = 16 << 20;
    assert_eq!(vmm.map(1, 0x40_0000_0000, LOW, bytes, BOTH)?, OK, "{:#?}", daemon.lines());
    vmm.assert_lands(0, 0x40_0000_0000 + bytes - 4, LOW + bytes - 4);
    for page in 0..100 {
        assert_eq!(vmm.map(1, IOVA + page * PAGE, VfioVmm::MIDDLE + page * PAGE, PAGE, BOTH)?, OK);
    }
    vmm.assert_lands(0, IOVA + 99 * PAGE, VfioVmm::MIDDLE + 99 * PAGE);
    vmm.assert_refused(0, LOW, LOW);
    assert_eq!(vmm.detach(1, 0)?, OK);
    vmm.assert_lands(0, LOW, LOW);
    Ok(())
}

/// The limit of such a daemon is one.
#[test]
fn what_the_vmm_has_not_pinned_counts_for_the_daemon() -> Result<()> {
    let (daemon, mut vmm) = unprivileged()?;
    let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
    tell(&mut vmm, &added, true)?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.map(1, IOVA, ADDED, 4 * PAGE, BOTH)?, OK);
    assert_ne!(vmm.map(1, IOVA + ADDED_BYTES, ADDED, ADDED_BYTES, BOTH)?, OK);
    daemon.wait_for("raise its limit (ulimit -l)", PATIENCE)?;
    assert_eq!(pinned_kib(daemon.pid())?, (4 * PAGE) >> 10);
    assert_eq!(vmm.map(1, IOVA + ADDED_BYTES, LOW, ADDED_BYTES, BOTH)?, OK);
    vmm.assert_lands(0, IOVA + ADDED_BYTES, LOW);
    Ok(())
}

/// Tells the daemon of memory, or that it is gone.
fn tell(vmm: &mut VfioVmm, memory: &GuestMemory, is_there: bool) -> Result<()> {
    let region = memory.mmap().iter().next().context("a region")?;
    let region = VhostUserMemoryRegionInfo::from_guest_region(region)?;
    let front_end = &mut vmm.guest().front_end;
    match is_there {
        true => front_end.step(|vhost| vhost.add_mem_region(&region).map(drop))?,
        false => front_end.step(|vhost| vhost.remove_mem_region(&region))?,
    }
    Ok(())
}

#[test]
fn memory_that_is_added_can_be_mapped() -> Result<()> {
    let (_daemon, mut vmm) = running(1, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_ne!(vmm.map(1, IOVA, ADDED, PAGE, BOTH)?, OK);
    for _ in 0..3 {
        let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
        vmm.pin(&added)?;
        tell(&mut vmm, &added, true)?;
        assert_eq!(vmm.map(1, IOVA, ADDED, ADDED_BYTES, BOTH)?, OK);
        vmm.write(0, IOVA + ADDED_BYTES - 4)?;
        assert_ne!(added.read(ADDED + ADDED_BYTES - 4, 4), [0; 4]);
        assert_eq!(vmm.unmap(1, IOVA, ADDED_BYTES)?, OK);
        tell(&mut vmm, &added, false)?;
        vmm.unpin(&IovaRange::from_length(ADDED, ADDED_BYTES).context("a range")?)?;
        assert_ne!(vmm.map(1, IOVA, ADDED, PAGE, BOTH)?, OK, "it is gone");
    }
    // The old memory is as it was.
    assert_eq!(vmm.map(1, IOVA, LOW, PAGE, BOTH)?, OK);
    vmm.assert_lands(0, IOVA, LOW);
    Ok(())
}

#[test]
fn added_memory_is_reached_in_bypass_mode_and_removed_memory_is_not() -> Result<()> {
    let (_daemon, mut vmm) = running(1, &[])?;
    // So that it is the daemon's address space that counts.
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    assert_eq!(vmm.detach(1, 0)?, OK);
    vmm.assert_refused(0, ADDED, LOW);
    let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
    vmm.pin(&added)?;
    tell(&mut vmm, &added, true)?;
    vmm.write(0, ADDED)?;
    assert_ne!(added.read(ADDED, 4), [0; 4]);
    tell(&mut vmm, &added, false)?;
    vmm.assert_refused(0, ADDED, LOW);
    vmm.assert_lands(0, LOW, LOW);
    Ok(())
}

#[test]
fn what_is_mapped_of_removed_memory_stays_pinned_until_it_is_unmapped() -> Result<()> {
    let (_daemon, mut vmm) = running(1, &[])?;
    assert_eq!(vmm.attach(1, 0, 0)?, OK);
    let before = settled_shared_kib();
    let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
    vmm.pin(&added)?;
    tell(&mut vmm, &added, true)?;
    assert_eq!(vmm.map(1, IOVA, ADDED, ADDED_BYTES, BOTH)?, OK);
    tell(&mut vmm, &added, false)?;
    vmm.unpin(&IovaRange::from_length(ADDED, ADDED_BYTES).context("a range")?)?;
    drop(added);
    // The device still writes there, and only there.
    vmm.memory.write(LOW, &[0; 4]);
    vmm.write(0, IOVA)?;
    // The kernel's count is off by a few pages for each processor.
    let is_held = shared_kib() + (1 << 10) > before + (ADDED_BYTES >> 10);
    assert!(is_held, "the memory is free, and a device reaches it");
    assert_eq!(vmm.unmap(1, IOVA, ADDED_BYTES)?, OK);
    vmm.assert_refused(0, IOVA, LOW);
    eventually("the memory is free", || shared_kib() < before + (1 << 10));
    Ok(())
}
