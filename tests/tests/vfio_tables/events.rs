// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest is told of accesses that its tables refuse.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use viommu_core::wire::{
    FAULT_F_ADDRESS, FAULT_F_LOST, FAULT_F_READ, FAULT_F_WRITE, FAULT_R_ACCESS, FAULT_R_MAPPING,
    FAULT_R_OOR_ADDRESS, FAULT_R_PERMISSION, FAULT_R_TABLE, TableEvent,
};
use viommu_core::{Caches, Scope};
use viommu_tests::vfio_vmm::{ABORT, Allows, Edu, Function};
use zerocopy::IntoBytes;

use crate::scene::{ASID, Bed, HIGH_IOVA, IOVA, OK, PAGE, PAGES};

#[track_caller]
fn assert_same(event: &TableEvent, expected: &TableEvent) {
    assert_eq!(event.as_bytes(), expected.as_bytes(), "{event:x?}\ninstead of {expected:x?}");
}

#[test]
fn an_access_that_a_table_refuses_is_told_with_its_reason() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let (root, beyond_48_bits) = (descriptor.root, 1 << 48);
    bed.stage1.map(root, IOVA + 2 * PAGE, PAGES[1], Allows::Reading);
    bed.stage1.map(root, IOVA + 3 * PAGE, PAGES[1], Allows::NotYet);
    // More than the 44 bits of the descriptor.
    bed.stage1.map(root, IOVA + 4 * PAGE, 1 << 44, Allows::All);
    for (reason, iova) in [
        (FAULT_R_MAPPING, IOVA + PAGE + 0x34),
        (FAULT_R_MAPPING, HIGH_IOVA),
        (FAULT_R_MAPPING, PAGES[0]),
        (FAULT_R_MAPPING, beyond_48_bits),
        (FAULT_R_PERMISSION, IOVA + 2 * PAGE),
        (FAULT_R_ACCESS, IOVA + 3 * PAGE + 0xffc),
        (FAULT_R_OOR_ADDRESS, IOVA + 4 * PAGE),
    ] {
        let event = bed.event_of(0, iova);
        assert_same(&event, &bed.failed_write(0, reason, iova));
    }
    // A good access is told nobody.
    bed.post(1);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    bed.assert_silent();
    Ok(())
}

#[test]
fn a_refused_read_is_told_as_such() -> Result<()> {
    let edu = Function::all(Edu::ID.0, Edu::ID.1)?;
    let mut bed = Bed::of(&edu[..1], &[])?;
    let descriptor = bed.descriptor(ASID, &[]);
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    bed.post(1);
    Edu(bed.vmm.registers(0)).read(IOVA, 4)?;
    let flags = (FAULT_F_READ | FAULT_F_ADDRESS).into();
    let event = bed.event()?;
    assert_same(&event, &TableEvent { flags, ..bed.failed_write(0, FAULT_R_MAPPING, IOVA) });
    Ok(())
}

#[test]
fn a_bad_descriptor_is_told_when_it_is_needed() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    // Not valid any more.
    bed.stage1.write(descriptor.at, 0);
    bed.invalidate(1, Scope::Domain, Caches::PASID, None);
    let event = bed.event_of(0, IOVA);
    assert_same(&event, &bed.fault(0, FAULT_R_TABLE));
    bed.stage1.describe(&descriptor);
    bed.invalidate(1, Scope::Domain, Caches::PASID, None);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    // Nobody checks before whether there is a descriptor where the entry says.
    let mut nothing = descriptor;
    nothing.at = bed.stage1.table();
    assert_eq!(bed.vmm.attach_table(1, 0, nothing.entry())?, OK);
    let event = bed.event_of(0, IOVA);
    assert_same(&event, &bed.fault(0, FAULT_R_TABLE));
    Ok(())
}

/// An entry that aborts does so in silence.
#[test]
fn an_abort_is_no_event() -> Result<()> {
    let (mut bed, _) = Bed::attached(&[])?;
    assert_eq!(bed.vmm.attach_table(1, 0, ABORT)?, OK);
    bed.post(1);
    assert_eq!(bed.written(0, IOVA), None);
    bed.assert_silent();
    Ok(())
}

#[test]
fn each_device_is_named_by_its_own_endpoint() -> Result<()> {
    let mut bed = Bed::new(2, &[])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    for device in 0..2 {
        assert_eq!(bed.vmm.attach_table(1, device, descriptor.entry())?, OK);
    }
    for device in [1, 0, 1] {
        let event = bed.event_of(device, IOVA + PAGE);
        assert_same(&event, &bed.failed_write(device, FAULT_R_MAPPING, IOVA + PAGE));
    }
    // In another domain, and after another life.
    assert_eq!(bed.vmm.detach(1, 1)?, OK);
    assert_eq!(bed.vmm.attach_table(2, 1, descriptor.entry())?, OK);
    let event = bed.event_of(1, IOVA + PAGE);
    assert_same(&event, &bed.failed_write(1, FAULT_R_MAPPING, IOVA + PAGE));
    Ok(())
}

#[test]
fn what_has_no_buffer_waits_for_one() -> Result<()> {
    let (mut bed, _) = Bed::attached(&[])?;
    let iovas: Vec<u64> = (1..=5).map(|page| IOVA + page * PAGE).collect();
    for iova in &iovas {
        assert_eq!(bed.written(0, *iova), None);
        // The same again is told once, while it waits.
        assert_eq!(bed.written(0, *iova), None);
    }
    bed.wait_for_faults(10);
    bed.post(8);
    for iova in iovas {
        let event = bed.event()?;
        assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, iova));
    }
    bed.assert_silent();
    Ok(())
}

/// Fewer than the device keeps, and more than the guest has buffers for.
#[test]
fn lost_events_are_told() -> Result<()> {
    const KEPT: usize = 4;
    let (mut bed, _) = Bed::attached(&["--max-faults", &KEPT.to_string()])?;
    let iovas: Vec<u64> = (1..=10).map(|page| IOVA + page * PAGE).collect();
    iovas.iter().for_each(|iova| assert_eq!(bed.written(0, *iova), None));
    bed.wait_for_faults(10);
    bed.post(8);
    for iova in &iovas[..KEPT] {
        let event = bed.event()?;
        assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, *iova));
    }
    let event = bed.event()?;
    assert_same(&event, &TableEvent { flags: FAULT_F_LOST.into(), ..bed.fault(0, 0) });
    // Told once.
    let event = bed.event_of(0, HIGH_IOVA);
    assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, HIGH_IOVA));
    Ok(())
}

/// More than the host keeps for a daemon that does not read them: one that is stopped.
#[test]
fn events_that_the_host_loses_are_told() -> Result<()> {
    const COUNT: u64 = 400;
    let (mut bed, _) = Bed::attached(&["--max-faults", "1000"])?;
    let daemon = Pid::from_raw(bed.daemon.pid().try_into()?).context("a process")?;
    kill_process(daemon, Signal::STOP)?;
    for page in 0..COUNT {
        assert_eq!(bed.written(0, HIGH_IOVA + page * PAGE), None);
    }
    kill_process(daemon, Signal::CONT)?;
    let mut told = 0;
    loop {
        bed.post(1);
        let event = bed.event()?;
        if event.flags.get() & FAULT_F_LOST != 0 {
            assert_same(&event, &TableEvent { flags: FAULT_F_LOST.into(), ..bed.fault(0, 0) });
            break;
        }
        assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, HIGH_IOVA + told * PAGE));
        told += 1;
    }
    assert!((100..COUNT).contains(&told), "{told}");
    let event = bed.event_of(0, HIGH_IOVA);
    assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, HIGH_IOVA));
    Ok(())
}

/// Many at once, faster than anybody reads them: what is told is true, and that it is not all is told, too.
#[test]
fn a_storm_of_faults_costs_others_nothing() -> Result<()> {
    const COUNT: u64 = 3000;
    let mut bed = Bed::new(2, &[])?;
    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    for device in 0..2 {
        assert_eq!(bed.vmm.attach_table(1, device, descriptor.entry())?, OK);
    }
    for page in 0..COUNT {
        assert_eq!(bed.written(0, HIGH_IOVA + page * PAGE), None);
        if page % 100 == 0 {
            bed.invalidate(1, Scope::Domain, Caches::TLB, None);
            assert_eq!(bed.written(1, IOVA), Some(PAGES[0]));
        }
    }
    let (mut told, mut is_lost, mut last) = (0, false, None);
    loop {
        bed.post(1);
        // What was lost may have been told with the last of them.
        let Ok(event) = bed.event() else { break };
        is_lost |= event.flags.get() & FAULT_F_LOST != 0;
        if event.flags.get() & FAULT_F_ADDRESS == 0 {
            assert_eq!(event.reason, 0, "{event:?}");
            break;
        }
        assert_eq!(event.endpoint.get(), bed.vmm.endpoint(0).0);
        assert_eq!((event.reason, event.flags.get() & FAULT_F_WRITE), (FAULT_R_MAPPING, FAULT_F_WRITE));
        let address = event.address.get();
        assert!(address >= HIGH_IOVA && last.is_none_or(|last| address > last), "{address:x}");
        last = Some(address);
        told += 1;
    }
    assert!(told > 0 && told < COUNT && is_lost, "{told}, {is_lost}");
    Ok(())
}

#[test]
fn a_short_buffer_gets_the_older_form() -> Result<()> {
    let (mut bed, _) = Bed::attached(&[])?;
    bed.vmm.guest().driver.post_event_buffers(1);
    assert_eq!(bed.written(0, IOVA + PAGE), None);
    let event = bed.vmm.guest().driver.wait_event().expect("an event");
    assert_eq!(event.written, 24);
    let expected = bed.failed_write(0, FAULT_R_MAPPING, IOVA + PAGE);
    assert_eq!(event.fault.as_bytes(), &expected.as_bytes()[..24]);
    // The next one has room for all of it.
    let event = bed.event_of(0, IOVA + 2 * PAGE);
    assert_same(&event, &bed.failed_write(0, FAULT_R_MAPPING, IOVA + 2 * PAGE));
    Ok(())
}
