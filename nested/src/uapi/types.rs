// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Structures of the kernel's headers that the bindings lack, or have with unions that only `unsafe` code can read.
//!
//! Types only; `tests/uapi_layout.rs` holds them against the headers.

#![expect(missing_docs, reason = "names of the kernel's headers, which explain them")]

use std::fmt;

/// `struct iommu_hw_info` of `linux/iommufd.h`; the type of the data goes in and comes out in one field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_hw_info {
    pub size: u32,
    pub flags: u32,
    pub dev_id: u32,
    pub data_len: u32,
    pub data_uptr: u64,
    pub data_type: u32,
    pub out_max_pasid_log2: u8,
    pub __reserved: [u8; 3],
    pub out_capabilities: u64,
}

/// `struct iommu_ioas_noiommu_get_pa` of `linux/iommufd.h`, since Linux 7.3.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_ioas_noiommu_get_pa {
    pub size: u32,
    pub flags: u32,
    pub ioas_id: u32,
    pub __reserved: u32,
    pub iova: u64,
    pub length: u64,
    pub out_phys: u64,
}

/// `struct vfio_pci_dependent_device` of `linux/vfio.h`, of a device that was opened as a cdev.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct vfio_pci_dependent_device {
    pub devid: u32,
    pub segment: u16,
    pub bus: u8,
    pub devfn: u8,
}

/// `struct vfio_irq_set` of `linux/vfio.h`, with one eventfd for data.
#[cfg(feature = "cdev-tests")]
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct IrqSetEventfd {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub start: u32,
    pub count: u32,
    pub eventfd: i32,
}

#[cfg(feature = "cdev-tests")]
const _: () = assert!(
    std::mem::offset_of!(IrqSetEventfd, eventfd)
        == std::mem::offset_of!(vfio_bindings::bindings::vfio::vfio_irq_set, data)
);

/// The devices that a reset can reach together, at most, of those that we can be told: four full buses.
pub const HOT_RESET_DEVICES_MAX: usize = 1024;

/// `struct vfio_pci_hot_reset_info` of `linux/vfio.h`, with room for the devices.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct HotResetInfo {
    pub argsz: u32,
    pub flags: u32,
    pub count: u32,
    pub devices: [vfio_pci_dependent_device; HOT_RESET_DEVICES_MAX],
}

impl Default for HotResetInfo {
    fn default() -> HotResetInfo {
        let devices = [vfio_pci_dependent_device::default(); HOT_RESET_DEVICES_MAX];
        HotResetInfo { argsz: 0, flags: 0, count: 0, devices }
    }
}

impl HotResetInfo {
    /// The devices that the kernel wrote.
    pub fn devices(&self) -> &[vfio_pci_dependent_device] {
        self.devices.get(..self.count as usize).unwrap_or(&self.devices)
    }
}

impl fmt::Debug for HotResetInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HotResetInfo")
            .field("flags", &self.flags)
            .field("devices", &self.devices())
            .finish_non_exhaustive()
    }
}

/// `struct iommu_test_cmd` of the kernel's `drivers/iommu/iommufd/iommufd_test.h`, Linux 7.2: a command of the mock
/// driver. Its union is `words`.
#[cfg(feature = "mock")]
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_test_cmd {
    pub size: u32,
    pub op: u32,
    pub id: u32,
    pub __reserved: u32,
    pub words: [u32; 12],
    pub last: u32,
}

/// Operations of the mock driver whose part of the union has an address.
#[cfg(feature = "mock")]
mod test_ops {
    /// Compares what a mock device reaches with memory: an IOVA, a length and an address.
    pub const IOMMU_TEST_OP_MD_CHECK_MAP: u32 = 3;
    pub const IOMMU_TEST_OP_MD_CHECK_REFS: u32 = 4;
    pub const IOMMU_TEST_OP_ACCESS_PAGES: u32 = 7;
    pub const IOMMU_TEST_OP_ACCESS_RW: u32 = 8;
    /// Marks pages as written: flags in a word of 64 bits, an IOVA, a length, a page size and the address of a bitmap.
    pub const IOMMU_TEST_OP_DIRTY: u32 = 13;
}

#[cfg(feature = "mock")]
pub use test_ops::*;
