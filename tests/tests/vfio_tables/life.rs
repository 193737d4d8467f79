// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where a device is without a table: before, after, and when one of all who have to do with it goes.

use std::thread::sleep;

use anyhow::Result;
use rustix::process::Signal;
use viommu_core::wire::{ATTACH_F_BYPASS, BYPASS_OFFSET};
use viommu_core::{Caches, Scope, Status};
use viommu_tests::vfio_vmm::{Descriptor, Written};

use crate::scene::{ASID, Bed, IOVA, MOMENT, OK, PAGES, PATIENCE, eventually, pages};

const UNTRANSLATED: Option<u64> = Some(PAGES[1]);

fn set_bypass(bed: &mut Bed, value: u8) -> Result<()> {
    Ok(bed.vmm.guest().front_end.write_config(BYPASS_OFFSET as u32, &[value])?)
}

/// What the device reaches as if there were no IOMMU, and by the table.
fn reached(bed: &Bed) -> (Option<u64>, Option<u64>) {
    (bed.written(0, PAGES[1]), bed.written(0, IOVA))
}

const BY_TABLE: (Option<u64>, Option<u64>) = (None, Some(PAGES[0]));
const IN_BYPASS: (Option<u64>, Option<u64>) = (UNTRANSLATED, None);
const BLOCKED: (Option<u64>, Option<u64>) = (None, None);

/// For long enough to tell that it stays there.
fn stays_with_its_table(bed: &Bed) {
    assert_eq!(reached(bed), BY_TABLE);
    sleep(MOMENT);
    assert_eq!(reached(bed), BY_TABLE);
}

#[test]
fn a_detached_device_is_where_bypass_says() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for bypass in [1, 0, 1] {
        set_bypass(&mut bed, bypass)?;
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(reached(&bed), BY_TABLE);
        // It is of no concern to a device with a table.
        set_bypass(&mut bed, 1 - bypass)?;
        assert_eq!(reached(&bed), BY_TABLE);
        set_bypass(&mut bed, bypass)?;
        assert_eq!(bed.vmm.detach(1, 0)?, OK);
        assert_eq!(reached(&bed), if bypass == 1 { IN_BYPASS } else { BLOCKED });
        // The domain went with its only device.
        let what = viommu_core::Invalidation {
            scope: Scope::Domain,
            caches: Caches::TLB,
            leaf: false,
            id: None,
            global: false,
        };
        assert_eq!(bed.vmm.invalidate(1, &what)?, Status::NoEnt as u8);
    }
    set_bypass(&mut bed, 0)?;
    assert_eq!(reached(&bed), BLOCKED);
    Ok(())
}

#[test]
fn without_boot_bypass_nothing_is_reached_before_there_is_a_table() -> Result<()> {
    let mut bed = Bed::new(1, &["--boot-bypass", "off"])?;
    eventually("the device is blocked", || reached(&bed) == BLOCKED);
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    stays_with_its_table(&bed);
    Ok(())
}

#[test]
fn a_bypass_domain_takes_the_place_of_a_table_and_the_other_way_round() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&["--boot-bypass", "off"])?;
    for _ in 0..2 {
        assert_eq!(bed.vmm.attach(2, 0, ATTACH_F_BYPASS)?, OK);
        assert_eq!(reached(&bed), IN_BYPASS);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(reached(&bed), BY_TABLE);
    }
    assert_eq!(bed.vmm.attach(2, 0, ATTACH_F_BYPASS)?, OK);
    assert_eq!(bed.vmm.detach(2, 0)?, OK);
    assert_eq!(reached(&bed), BLOCKED);
    Ok(())
}

#[test]
fn after_a_reset_a_device_keeps_its_table_until_it_does_no_dma_any_more() -> Result<()> {
    let (mut bed, _) = Bed::attached(&[])?;
    bed.vmm.guest().front_end.reset_device()?;
    stays_with_its_table(&bed);
    bed.vmm.registers(0).set_bus_master(false)?;
    eventually("the device is in bypass mode", || reached(&bed) == IN_BYPASS);
    bed.vmm.registers(0).set_bus_master(true)?;
    sleep(MOMENT);
    assert_eq!(reached(&bed), IN_BYPASS);
    Ok(())
}

/// Two devices, the first attached as in [`Bed::attached`]. The kernel may empty caches with the last one that leaves.
fn in_company() -> Result<(Bed, Descriptor)> {
    let mut bed = Bed::new(2, &[])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    let of_other = bed.descriptor(ASID + 1, &[(IOVA, PAGES[1])]);
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    assert_eq!(bed.vmm.attach_table(5, 1, of_other.entry())?, OK);
    assert_eq!((reached(&bed), bed.written(1, IOVA)), (BY_TABLE, Some(PAGES[1])));
    Ok((bed, descriptor))
}

/// With no invalidation: there is no domain for it.
//= T9
#[test]
fn a_device_that_is_attached_anew_finds_nothing_of_before_in_a_cache() -> Result<()> {
    let (mut bed, descriptor) = in_company()?;
    for page in [PAGES[2], PAGES[0]] {
        assert!(reached(&bed).1.is_some());
        assert_eq!(bed.vmm.detach(1, 0)?, OK);
        bed.map(&descriptor, IOVA, page);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(reached(&bed), (None, Some(page)));
    }
    for page in [PAGES[2], PAGES[0]] {
        assert_eq!(bed.vmm.attach(2, 0, ATTACH_F_BYPASS)?, OK);
        bed.map(&descriptor, IOVA, page);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(reached(&bed), (None, Some(page)));
    }
    Ok(())
}

//= T9
#[test]
fn a_device_that_lingers_with_its_table_is_attached_by_the_next_driver() -> Result<()> {
    let (mut bed, descriptor) = in_company()?;
    bed.vmm.guest().front_end.reset_device()?;
    bed.vmm.restart_rings()?;
    assert_eq!(reached(&bed), BY_TABLE);
    let other = bed.descriptor(ASID, &[(IOVA, PAGES[2])]);
    assert_eq!(bed.vmm.attach_table(1, 0, other.entry())?, OK);
    assert_eq!(reached(&bed), (None, Some(PAGES[2])));
    // The same once more: what the first driver had is nothing to the second.
    bed.vmm.guest().front_end.reset_device()?;
    bed.vmm.restart_rings()?;
    bed.map(&descriptor, IOVA, PAGES[0]);
    assert_eq!(bed.vmm.attach_table(3, 0, descriptor.entry())?, OK);
    assert_eq!(reached(&bed), BY_TABLE);
    bed.map(&descriptor, IOVA, PAGES[2]);
    bed.invalidate(3, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(reached(&bed), (None, Some(PAGES[2])));
    Ok(())
}

#[test]
fn a_pause_leaves_a_device_with_its_table() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for page in [PAGES[2], PAGES[0]] {
        let stopped = bed.vmm.stop_rings()?;
        assert!(reached(&bed).1.is_some());
        bed.vmm.start_rings(stopped)?;
        bed.map(&descriptor, IOVA, page);
        bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
        assert_eq!(reached(&bed), (None, Some(page)));
    }
    Ok(())
}

/// Nobody sends a request after that: the guest knows nothing of the pause.
#[test]
fn after_a_pause_a_device_without_dma_has_its_table_before_it_does_any() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    for _ in 0..3 {
        bed.vmm.registers(0).set_bus_master(false)?;
        let stopped = bed.vmm.stop_rings()?;
        eventually("the device is in bypass mode", || reached(&bed) == IN_BYPASS);
        bed.vmm.start_rings(stopped)?;
        bed.vmm.registers(0).set_bus_master(true)?;
        stays_with_its_table(&bed);
    }
    bed.map(&descriptor, IOVA, PAGES[2]);
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!(reached(&bed), (None, Some(PAGES[2])));
    Ok(())
}

#[test]
fn when_the_vmm_is_gone_nothing_is_reached() -> Result<()> {
    let (mut bed, _) = Bed::attached(&[])?;
    bed.vmm.disconnect();
    bed.daemon.wait_for("VMM disconnected, endpoints are blocked", PATIENCE)?;
    assert_eq!(reached(&bed), BLOCKED);
    let Bed { vmm, daemon, .. } = bed;
    let (status, log) = daemon.wait_for_end()?;
    assert!(status.success(), "{log:#?}");
    drop(vmm);
    // What there was of the host's objects is no obstacle to the next.
    let (bed, _) = Bed::attached(&[])?;
    assert_eq!(reached(&bed), BY_TABLE);
    Ok(())
}

#[test]
fn what_a_killed_daemon_has_attached_stays() -> Result<()> {
    let (bed, _) = Bed::attached(&[])?;
    let Bed { vmm, daemon, stage1 } = bed;
    daemon.end_by(Signal::KILL)?;
    let (one, two) = (vmm.write(0, IOVA)?, vmm.write(0, PAGES[1])?);
    assert_eq!((one, two), (Written::All, Written::Refused));
    drop((vmm, stage1));
    Bed::attached(&[]).map(drop)
}

#[test]
fn a_device_that_is_attached_before_it_is_bound_has_its_table_afterwards() -> Result<()> {
    let mut bed = Bed::unplugged(2)?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    for device in [1, 0] {
        assert_eq!(bed.vmm.attach_table(1, device, descriptor.entry())?, OK);
        bed.vmm.plug(device)?;
        eventually("the device has its table", || bed.written(device, PAGES[1]).is_none());
        assert_eq!(bed.written(device, IOVA), Some(PAGES[0]));
    }
    bed.map(&descriptor, IOVA, PAGES[2]);
    bed.invalidate(1, pages(IOVA, 1), Caches::TLB, Some(ASID));
    assert_eq!((bed.written(0, IOVA), bed.written(1, IOVA)), (Some(PAGES[2]), Some(PAGES[2])));
    Ok(())
}

/// As for a hot-unplug; the daemon has its duplicate still.
#[test]
fn a_vmm_that_takes_a_device_away_does_not_disturb_the_others() -> Result<()> {
    let mut bed = Bed::new(2, &[])?;
    let descriptors = [0, 1].map(|device| bed.descriptor(ASID + device, &[(IOVA, PAGES[0])]));
    for (device, descriptor) in descriptors.iter().enumerate() {
        assert_eq!(bed.vmm.attach_table(1, device, descriptor.entry())?, OK);
    }
    bed.vmm.unplug(0)?;
    assert_eq!(bed.written(0, IOVA), None);
    bed.map(&descriptors[1], IOVA, PAGES[2]);
    bed.invalidate(1, Scope::Domain, Caches::all(), None);
    assert_eq!(bed.written(1, IOVA), Some(PAGES[2]));
    assert_eq!(bed.vmm.detach(1, 1)?, OK);
    assert_eq!(bed.written(1, PAGES[0]), Some(PAGES[0]));
    Ok(())
}
