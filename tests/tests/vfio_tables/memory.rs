// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest memory that comes and goes while a table leads there: the second stage is the host's, and follows at once.

use anyhow::{Context, Result};
use vhost::VhostUserMemoryRegionInfo;
use vhost::vhost_user::VhostUserFrontend;
use viommu_core::Status;
use viommu_tests::driver::GuestMemory;
use viommu_tests::vfio_vmm::{TestDevice, VfioVmm};
use vm_memory::GuestMemoryBackend;

use crate::scene::{Bed, IOVA, OK, PAGE, PAGES};

/// Where memory is added.
const ADDED: u64 = 1 << 36;
const ADDED_BYTES: u64 = 8 << 20;

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
fn what_is_added_is_reached_through_a_table_and_what_is_removed_is_not() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    bed.map(&descriptor, IOVA + PAGE, ADDED + PAGE);
    for _ in 0..3 {
        assert_eq!(bed.written(0, IOVA + PAGE), None);
        let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
        tell(&mut bed.vmm, &added, true)?;
        bed.vmm.write(0, IOVA + PAGE)?;
        assert_eq!(added.read(ADDED + PAGE, 4), TestDevice::PATTERN);
        tell(&mut bed.vmm, &added, false)?;
        added.write(ADDED + PAGE, &[0; 4]);
        assert_eq!(bed.written(0, IOVA + PAGE), None);
        assert_eq!(added.read(ADDED + PAGE, 4), [0; 4]);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    }
    Ok(())
}

#[test]
fn a_table_is_where_memory_is() -> Result<()> {
    let (mut bed, descriptor) = Bed::attached(&[])?;
    let [ste0, ste1] = descriptor.entry();
    let moved = [ste0 & 0x3f | ADDED, ste1];
    let refused = Status::Fault as u8;
    assert_eq!(bed.vmm.attach_table(1, 0, moved)?, refused);
    let added = GuestMemory::new(&[(ADDED, ADDED_BYTES)])?;
    added.write(ADDED, &bed.vmm.memory.read(descriptor.at, 64));
    tell(&mut bed.vmm, &added, true)?;
    assert_eq!(bed.vmm.attach_table(1, 0, moved)?, OK);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
    tell(&mut bed.vmm, &added, false)?;
    assert_eq!(bed.vmm.attach_table(1, 0, moved)?, refused);
    assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
    Ok(())
}
