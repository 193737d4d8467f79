// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's mock driver: devices and an IOMMU that exist nowhere, for tests of what is real around them.
//!
//! Needs a kernel with `CONFIG_IOMMUFD_TEST`, Linux 7.2 or newer, and nothing else. Its IOMMU maps pages of 2 KiB from
//! 16 MiB up to 2 GiB.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use iommufd_bindings::iommu_destroy;
use rustix::io::Errno;
use viommu_core::Iova;
use vm_memory::VolatileSlice;

use crate::device::{Attach, DeviceId};
use crate::error::{Error, Result};
use crate::object::{Context, Hwpt, Ioas, PageTable};
use crate::uapi::ioctl::Buffer;
use crate::uapi::types::{IOMMU_TEST_OP_DIRTY, IOMMU_TEST_OP_MD_CHECK_MAP, iommu_test_cmd};

/// What hardware it claims to be (`IOMMU_HW_INFO_TYPE_SELFTEST`).
pub const HW_INFO: u32 = 0xfeed_beef;
/// The type of a nested page table's description (`IOMMU_HWPT_DATA_SELFTEST`): two words, the value of its cache and 0.
pub const HWPT_DATA: u32 = 0xdead;
/// The type of invalidations on nested page tables and vIOMMUs: flags, 1 for all; then which.
pub const INVALIDATE_DATA: u32 = 0xdead_beef;
/// The type of a vIOMMU; its data are six words, of which the second comes back as the first.
pub const VIOMMU: u32 = 0xdead_beef;
/// The type of a vIOMMU's events, of one word: the guest's number of the device.
pub const VEVENTQ: u32 = 0xbeef_beef;
/// The type of hardware queues.
pub const HW_QUEUE: u32 = 0xdead_beef;

const MOCK_DOMAIN_REPLACE: u32 = 10;
const MOCK_DOMAIN_FLAGS: u32 = 12;
const MD_CHECK_IOTLB: u32 = 14;
const TRIGGER_IOPF: u32 = 15;
const DEV_CHECK_CACHE: u32 = 16;
const TRIGGER_VEVENT: u32 = 17;
const PASID_ATTACH: u32 = 18;
const PASID_REPLACE: u32 = 19;
const PASID_DETACH: u32 = 20;
const PASID_CHECK_HWPT: u32 = 21;

/// The device has PASIDs, of 20 bits.
const DEVICE_PASID: u32 = 4;

/// A mock device. It is attached to something from the beginning.
#[derive(Debug)]
pub struct MockDevice {
    context: Arc<Context>,
    /// The number of the mock driver's own object, which goes with the context.
    mock: u32,
    device: DeviceId,
    /// What it is attached to.
    hwpt: AtomicU32,
    pasids: Mutex<BTreeSet<u32>>,
}

impl MockDevice {
    /// A new one with PASIDs, attached to `table`.
    ///
    /// # Errors
    /// ENOTTY when the kernel has no mock driver.
    pub fn new(context: &Arc<Context>, table: &PageTable) -> Result<MockDevice> {
        let words = [0, 0, 0, DEVICE_PASID];
        let [mock, hwpt, device, ..] = call(context, MOCK_DOMAIN_FLAGS, table.id(), &words, Buffer::NONE)?;
        let device = DeviceId(device);
        Ok(MockDevice { context: context.clone(), mock, device, hwpt: hwpt.into(), pasids: Mutex::default() })
    }

    /// Its number in the context.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The page table that it is attached to, of the kernel's choice where it was an address space.
    pub fn hwpt(&self) -> u32 {
        self.hwpt.load(Ordering::Relaxed)
    }

    /// Has it leave the context, as one does whose file is closed.
    ///
    /// # Errors
    /// Of `IOMMU_DESTROY`: ENOENT when it has left.
    pub fn leave(&self) -> Result<()> {
        let mut command = iommu_destroy { id: self.mock, ..Default::default() };
        self.context.call(&mut command, Buffer::NONE, format_args!("mock device {}", self.device))
    }

    /// Raises a page request.
    ///
    /// # Errors
    /// Of the mock driver.
    pub fn request_page(&self, pasid: u32, group: u32, permissions: u32, address: u64) -> Result<()> {
        let words = [self.device.0, pasid, group, permissions, address as u32, (address >> 32) as u32];
        call(&self.context, TRIGGER_IOPF, 0, &words, Buffer::NONE).map(drop)
    }

    /// Raises an event of the vIOMMU in which it has a number.
    ///
    /// # Errors
    /// Of the mock driver.
    pub fn raise_event(&self) -> Result<()> {
        call(&self.context, TRIGGER_VEVENT, 0, &[self.device.0], Buffer::NONE).map(drop)
    }

    /// Whether the device's own cache holds this in a slot.
    ///
    /// # Errors
    /// EINVAL when not.
    pub fn check_cache(&self, slot: u32, value: u32) -> Result<()> {
        call(&self.context, DEV_CHECK_CACHE, self.device.0, &[slot, value], Buffer::NONE).map(drop)
    }

    /// Whether a PASID is attached to this page table, or to none.
    ///
    /// # Errors
    /// EINVAL when not.
    pub fn check_pasid(&self, pasid: u32, hwpt: Option<&Hwpt>) -> Result<()> {
        let words = [pasid, hwpt.map_or(0, Hwpt::id)];
        call(&self.context, PASID_CHECK_HWPT, self.mock, &words, Buffer::NONE).map(drop)
    }
}

impl Attach for MockDevice {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        let Some(pasid) = pasid else {
            let replaced = call(&self.context, MOCK_DOMAIN_REPLACE, self.mock, &[table.id()], Buffer::NONE);
            return replaced.map(|[hwpt, ..]| self.hwpt.store(hwpt, Ordering::Relaxed));
        };
        let mut pasids = self.pasids.lock().unwrap_or_else(PoisonError::into_inner);
        let op = if pasids.contains(&pasid) { PASID_REPLACE } else { PASID_ATTACH };
        call(&self.context, op, self.mock, &[pasid, table.id()], Buffer::NONE)?;
        pasids.insert(pasid);
        Ok(())
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let Some(pasid) = pasid else {
            let about = format_args!("a mock device is always attached");
            return Err(Error::of::<iommu_test_cmd>(Errno::OPNOTSUPP, about));
        };
        call(&self.context, PASID_DETACH, self.mock, &[pasid], Buffer::NONE)?;
        self.pasids.lock().unwrap_or_else(PoisonError::into_inner).remove(&pasid);
        Ok(())
    }

    fn number(&self, _: &Arc<Context>) -> Result<DeviceId> {
        Ok(self.device)
    }
}

/// Whether a page table leads from `iova` on to the very pages of `memory`.
///
/// # Errors
/// EINVAL when not.
pub fn check_map(ioas: &Ioas, hwpt: u32, iova: Iova, memory: &VolatileSlice<'_>) -> Result<()> {
    let words = [iova.0 as u32, (iova.0 >> 32) as u32];
    call(ioas.context(), IOMMU_TEST_OP_MD_CHECK_MAP, hwpt, &words, Buffer::of_shared(memory)).map(drop)
}

/// Marks as written what the page table has at `iova`, a page of so many bytes.
///
/// # Errors
/// EINVAL for a page table without [`HwptFlags::DIRTY_TRACKING`](crate::object::HwptFlags::DIRTY_TRACKING).
pub fn mark_written(hwpt: &Hwpt, iova: Iova, page_size: u32) -> Result<()> {
    let words = [0, 0, iova.0 as u32, (iova.0 >> 32) as u32, 0, 0, page_size];
    call(hwpt.context(), IOMMU_TEST_OP_DIRTY, hwpt.id(), &words, Buffer::of(&mut [1])).map(drop)
}

/// Whether a nested page table's cache holds this in a slot.
///
/// # Errors
/// EINVAL when not.
pub fn check_iotlb(hwpt: &Hwpt, slot: u32, value: u32) -> Result<()> {
    call(hwpt.context(), MD_CHECK_IOTLB, hwpt.id(), &[slot, value], Buffer::NONE).map(drop)
}

/// One operation of the mock driver: what its part of the union is before and after.
fn call(context: &Context, op: u32, id: u32, words: &[u32], buffer: Buffer<'_>) -> Result<[u32; 12]> {
    let mut command = iommu_test_cmd { op, id, ..Default::default() };
    for (to, from) in command.words.iter_mut().zip(words) {
        *to = *from;
    }
    context.call(&mut command, buffer, format_args!("operation {op}, id {id}, {words:x?}"))?;
    Ok(command.words)
}
