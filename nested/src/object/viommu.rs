// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! iommufd's vIOMMU: the guest's share of one physical IOMMU, and the devices that the guest knows in it by its
//! own numbers.

use std::sync::Arc;

use iommufd_bindings::*;
use viommu_core::IovaRange;
use zerocopy::{Immutable, IntoBytes};

use super::context::Context;
use super::hwpt::Hwpt;
use super::invalidate::{Entries, Invalidated, invalidate};
use super::{Object, too_long};
use crate::device::DeviceId;
use crate::error::Result;
use crate::uapi::ioctl::Buffer;

/// A share of the IOMMU of a device (`IOMMU_VIOMMU_ALLOC`).
#[derive(Debug)]
pub struct Viommu {
    // First: a field is dropped before those that follow it.
    object: Object,
    parent: Arc<Hwpt>,
}

/// A device under the number that the guest's IOMMU driver gives it (`IOMMU_VDEVICE_ALLOC`).
#[derive(Debug)]
pub struct Vdevice {
    object: Object,
    _viommu: Arc<Viommu>,
}

/// A command queue of the guest that hardware reads itself (`IOMMU_HW_QUEUE_ALLOC`).
#[derive(Debug)]
pub struct HwQueue {
    object: Object,
    _viommu: Arc<Viommu>,
}

impl Viommu {
    /// Of the IOMMU that `device` is behind; `parent` holds the stage-2 tables for all in it. `data` is what the
    /// vendor's `viommu_type` (`enum iommu_viommu_type`) wants, and what the kernel answers is written there.
    ///
    /// # Errors
    /// Of `IOMMU_VIOMMU_ALLOC`: EOPNOTSUPP for a type that the IOMMU is not of, or what it lacks for it.
    pub fn new(
        device: DeviceId,
        parent: &Arc<Hwpt>,
        viommu_type: u32,
        data: &mut [u8],
    ) -> Result<Arc<Viommu>> {
        let mut command = iommu_viommu_alloc {
            type_: viommu_type,
            dev_id: device.0,
            hwpt_id: parent.id(),
            ..Default::default()
        };
        let about = format_args!("type {viommu_type}, device {device}, on HWPT {}", parent.id());
        parent.context().call(&mut command, Buffer::of(data), about)?;
        let object = Object::new(parent.context(), command.out_viommu_id);
        Ok(Arc::new(Viommu { object, parent: parent.clone() }))
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        self.object.context()
    }

    /// What holds the stage-2 tables.
    pub fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    /// Takes what the guest changed out of the hardware's caches, as [`Hwpt::invalidate`] does; the entries name
    /// devices by the guest's numbers.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_INVALIDATE`, with the number of entries that were done.
    pub fn invalidate<E: IntoBytes + Immutable>(
        &self,
        data_type: u32,
        entries: &[E],
    ) -> std::result::Result<(), Invalidated> {
        self.invalidate_entries(&mut Entries::of(data_type, entries))
    }

    /// The same, of entries of any vendor, which stay as they are.
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub fn invalidate_entries(&self, entries: &mut Entries) -> std::result::Result<(), Invalidated> {
        invalidate(self.context(), self.id(), entries)
    }
}

impl Vdevice {
    /// Gives `device` the guest's number `virt_id` in a vIOMMU: a StreamID for SMMUv3.
    ///
    /// # Errors
    /// Of `IOMMU_VDEVICE_ALLOC`: EEXIST when the device has one or the number is taken.
    pub fn new(viommu: &Arc<Viommu>, device: DeviceId, virt_id: u64) -> Result<Vdevice> {
        let mut command =
            iommu_vdevice_alloc { viommu_id: viommu.id(), dev_id: device.0, virt_id, ..Default::default() };
        let about = format_args!("vIOMMU {}, device {device}, guest's number {virt_id:#x}", viommu.id());
        viommu.context().call(&mut command, Buffer::NONE, about)?;
        let object = Object::new(viommu.context(), command.out_vdevice_id);
        Ok(Vdevice { object, _viommu: viommu.clone() })
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }
}

impl HwQueue {
    /// The queue `index` of the vendor's `queue_type` (`enum iommu_hw_queue_type`), which lies at `range` of the guest's
    /// memory.
    ///
    /// # Errors
    /// Of `IOMMU_HW_QUEUE_ALLOC`: EOPNOTSUPP for an IOMMU without such queues.
    pub fn new(viommu: &Arc<Viommu>, queue_type: u32, index: u32, range: &IovaRange) -> Result<HwQueue> {
        let length = range.span().checked_add(1).ok_or_else(|| too_long("IOMMU_HW_QUEUE_ALLOC", range))?;
        let mut command = iommu_hw_queue_alloc {
            viommu_id: viommu.id(),
            type_: queue_type,
            index,
            nesting_parent_iova: range.start(),
            length,
            ..Default::default()
        };
        let about = format_args!("vIOMMU {}, queue {index}, GPA {range}", viommu.id());
        viommu.context().call(&mut command, Buffer::NONE, about)?;
        let object = Object::new(viommu.context(), command.out_hw_queue_id);
        Ok(HwQueue { object, _viommu: viommu.clone() })
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }
}
