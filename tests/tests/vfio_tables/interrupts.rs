// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Message-signalled interrupts: writes to where the host has its doorbell, which pass through stage 1 as all do.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread::sleep;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, eventfd};
use viommu_core::wire::FAULT_R_MAPPING;
use viommu_core::{Caches, Scope};
use viommu_tests::vfio_vmm::{BYPASS, Edu, Function};

use crate::scene::{ASID, Bed, IOVA, MOMENT, OK, PAGE, PAGES, eventually};

/// The window of the host, by the IDENTITY region.
const WINDOW: u64 = 0x800_0000;
const WINDOW_BYTES: u64 = 1 << 20;

/// Whether it was signalled since it was asked last.
fn arrived(event: BorrowedFd<'_>) -> bool {
    let mut count = [0; 8];
    rustix::io::read(event, &mut count).is_ok()
}

#[test]
fn an_interrupt_arrives_if_the_table_maps_the_window_to_itself() -> Result<()> {
    let edu = Function::all(Edu::ID.0, Edu::ID.1)?;
    let mut bed = Bed::of(edu.get(..1).context("no edu")?, &[])?;
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    bed.vmm.cdev(0).context("it is plugged")?.set_interrupt(event.as_fd())?;
    let registers = bed.vmm.duplicate_registers(0)?;
    let edu = Edu(&registers);
    edu.interrupt()?;
    eventually("an untranslated interrupt", || arrived(event.as_fd()));

    let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    bed.post(1);
    edu.interrupt()?;
    let fault = bed.event()?;
    assert_eq!(fault.reason, FAULT_R_MAPPING);
    assert!((WINDOW..WINDOW + WINDOW_BYTES).contains(&fault.address.get()), "{fault:x?}");
    sleep(MOMENT);
    assert!(!arrived(event.as_fd()), "though nothing is mapped");

    for offset in (0..WINDOW_BYTES).step_by(PAGE as usize) {
        bed.map(&descriptor, WINDOW + offset, WINDOW + offset);
    }
    for _ in 0..3 {
        edu.interrupt()?;
        eventually("an interrupt through the window", || arrived(event.as_fd()));
    }
    bed.stage1.unmap(descriptor.root, fault.address.get());
    bed.invalidate(1, Scope::Domain, Caches::TLB, Some(ASID));
    edu.interrupt()?;
    sleep(MOMENT);
    assert!(!arrived(event.as_fd()), "though it is not mapped any more");

    assert_eq!(bed.vmm.attach_table(1, 0, BYPASS)?, OK);
    edu.interrupt()?;
    eventually("an interrupt past stage 1", || arrived(event.as_fd()));
    Ok(())
}
