// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page tables in hardware: those that the kernel fills from an IOAS, and those of the guest.

use std::sync::Arc;

use iommufd_bindings::*;
use rustix::io::Errno;
use viommu_core::IovaRange;
use zerocopy::{Immutable, IntoBytes};

use super::context::Context;
use super::invalidate::{Entries, Invalidated, invalidate};
use super::ioas::Ioas;
use super::queues::FaultQueue;
use super::viommu::Viommu;
use super::{Object, same_context, too_long};
use crate::device::DeviceId;
use crate::error::{Error, Result};
use crate::uapi::ioctl::{Buffer, bitmap_bytes};

/// A page table (`IOMMU_HWPT_ALLOC`).
#[derive(Debug)]
pub struct Hwpt {
    // First: a field is dropped before those that follow it.
    object: Object,
    kind: HwptKind,
    _faults: Option<Arc<FaultQueue>>,
}

/// Who fills a page table, and what it needs for as long as it exists.
#[derive(Clone, Debug)]
pub enum HwptKind {
    /// The kernel, from an address space.
    Paging(Arc<Ioas>),
    /// The guest: stage-1 tables over a parent.
    Nested(NestedParent),
}

/// What holds the stage-2 tables under a nested page table.
#[derive(Clone, Debug)]
pub enum NestedParent {
    /// A paging HWPT made with [`HwptFlags::NEST_PARENT`] (Intel VT-d).
    Hwpt(Arc<Hwpt>),
    /// A vIOMMU (Arm SMMUv3).
    Viommu(Arc<Viommu>),
}

bitflags::bitflags! {
    /// What a page table is to be good for (`enum iommufd_hwpt_alloc_flags`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct HwptFlags: u32 {
        /// To lie under nested page tables.
        const NEST_PARENT = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT;
        /// To record what devices write.
        const DIRTY_TRACKING = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
        /// To be attached to PASIDs, or to a device some of whose PASIDs have others.
        const PASID = iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;
    }
}

/// What a device can be attached to.
#[derive(Clone, Debug)]
pub enum PageTable {
    /// A page table of the kernel's choice for this address space.
    Auto(Arc<Ioas>),
    /// This one.
    Hwpt(Arc<Hwpt>),
}

impl PageTable {
    /// The id to attach to.
    pub fn id(&self) -> u32 {
        match self {
            PageTable::Auto(ioas) => ioas.id(),
            PageTable::Hwpt(hwpt) => hwpt.id(),
        }
    }
}

impl Hwpt {
    /// One that follows the mappings of an address space, for `device` and others behind the same IOMMU.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_ALLOC`: EOPNOTSUPP for what the IOMMU cannot.
    pub fn paging(device: DeviceId, ioas: &Arc<Ioas>, flags: HwptFlags) -> Result<Arc<Hwpt>> {
        let command = iommu_hwpt_alloc {
            flags: flags.bits(),
            dev_id: device.0,
            pt_id: ioas.id(),
            ..Default::default()
        };
        Hwpt::alloc(ioas.context(), command, &mut [], HwptKind::Paging(ioas.clone()), None)
    }

    /// The guest's stage-1 tables, which `data` of the vendor's `data_type` (`enum iommu_hwpt_data_type`) describes.
    /// Page requests of devices attached to it go to `faults`. [`HwptFlags::PASID`] is the only flag it can have.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_ALLOC`: EOPNOTSUPP for what the IOMMU cannot, EINVAL or EIO for data that it refuses; EXDEV when the
    /// queue is not of the parent's very [`Context`].
    pub fn nested(
        device: DeviceId,
        parent: NestedParent,
        flags: HwptFlags,
        data_type: u32,
        data: &[u8],
        faults: Option<Arc<FaultQueue>>,
    ) -> Result<Arc<Hwpt>> {
        let (context, pt_id) = match &parent {
            NestedParent::Hwpt(hwpt) => (hwpt.context().clone(), hwpt.id()),
            NestedParent::Viommu(viommu) => (viommu.context().clone(), viommu.id()),
        };
        if let Some(faults) = &faults {
            let about = format_args!("on id {pt_id}, fault queue {}", faults.id());
            same_context::<iommu_hwpt_alloc>(&context, faults.context(), about)?;
        }
        let fault_flag = iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
        let command = iommu_hwpt_alloc {
            flags: flags.bits() | if faults.is_some() { fault_flag } else { 0 },
            dev_id: device.0,
            pt_id,
            data_type,
            fault_id: faults.as_ref().map_or(0, |faults| faults.id()),
            ..Default::default()
        };
        Hwpt::alloc(&context, command, &mut data.to_vec(), HwptKind::Nested(parent), faults)
    }

    fn alloc(
        context: &Arc<Context>,
        mut command: iommu_hwpt_alloc,
        data: &mut [u8],
        kind: HwptKind,
        faults: Option<Arc<FaultQueue>>,
    ) -> Result<Arc<Hwpt>> {
        let (device, parent, flags) = (command.dev_id, command.pt_id, command.flags);
        let about = format_args!("device {device}, on id {parent}, flags {flags:#x}");
        context.call(&mut command, Buffer::of(data), about)?;
        let object = Object::new(context, command.out_hwpt_id);
        Ok(Arc::new(Hwpt { object, kind, _faults: faults }))
    }

    /// Its id in the context.
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        self.object.context()
    }

    /// Who fills it.
    pub fn kind(&self) -> &HwptKind {
        &self.kind
    }

    /// Begins or ends recording what devices write, of a paging one.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_SET_DIRTY_TRACKING`: EOPNOTSUPP without [`HwptFlags::DIRTY_TRACKING`].
    pub fn set_dirty_tracking(&self, tracking: DirtyTracking) -> Result<()> {
        let flags = match tracking {
            DirtyTracking::On => iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
            DirtyTracking::Off => 0,
        };
        let mut command = iommu_hwpt_set_dirty_tracking { flags, hwpt_id: self.id(), ..Default::default() };
        self.context().call(&mut command, Buffer::NONE, format_args!("HWPT {}, {tracking:?}", self.id()))
    }

    /// What devices wrote in `range`: a bit for each `page_size` bytes from its beginning, the lowest first. Where the
    /// IOMMU has large pages, all of one counts as written, and is forgotten with [`Clearing::Clear`], even if it goes
    /// beyond the range.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_GET_DIRTY_BITMAP`; EINVAL for a page size that is no power of two, ENOMEM when there is no memory
    /// for that many bits.
    pub fn dirty_bitmap(&self, range: &IovaRange, page_size: u64, clearing: Clearing) -> Result<Vec<u64>> {
        const CALL: &str = "IOMMU_HWPT_GET_DIRTY_BITMAP";
        let about = format_args!("HWPT {}, IOVA {range}, pages of {page_size:#x} bytes", self.id());
        let length = range.span().checked_add(1).ok_or_else(|| too_long(CALL, range))?;
        let bytes =
            bitmap_bytes(length, page_size).ok_or_else(|| Error::of_call(CALL, Errno::INVAL, about))?;
        let mut bitmap = zeroed(bytes / 8).ok_or_else(|| Error::of_call(CALL, Errno::NOMEM, about))?;
        let flags = match clearing {
            Clearing::Clear => 0,
            Clearing::Keep => iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
        };
        let mut command = iommu_hwpt_get_dirty_bitmap {
            hwpt_id: self.id(),
            flags,
            iova: range.start(),
            length,
            page_size,
            ..Default::default()
        };
        self.context().call(&mut command, Buffer::of(bitmap.as_mut_bytes()), about)?;
        end_at(&mut bitmap, length.div_ceil(page_size));
        Ok(bitmap)
    }

    /// Takes what the guest changed in its tables out of the hardware's caches: entries of the vendor's `data_type`
    /// (`enum iommu_hwpt_invalidate_data_type`), in order.
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

/// Whether writes are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyTracking {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// Whether what is read of a record is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clearing {
    /// It is.
    Clear,
    /// It is not; the range is going to be unmapped, say.
    Keep,
}

/// So many words, if there is memory for them.
fn zeroed(words: u64) -> Option<Vec<u64>> {
    let words = usize::try_from(words).ok()?;
    let mut bitmap = Vec::new();
    bitmap.try_reserve_exact(words).ok()?;
    bitmap.resize(words, 0);
    Some(bitmap)
}

/// Forgets all bits from that number on.
fn end_at(bitmap: &mut Vec<u64>, bits: u64) {
    bitmap.truncate(bits.div_ceil(64) as usize);
    if let (Some(last), beyond @ 1..) = (bitmap.last_mut(), bits % 64) {
        *last &= !(u64::MAX << beyond);
    }
}
