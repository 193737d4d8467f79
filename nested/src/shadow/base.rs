// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What nested page tables lie over: the guest's memory, once for each IOMMU of the host that its devices are behind.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::device::{DeviceId, HwInfo};
use crate::error::Result;
use crate::format::{Description, FORMATS, Format, Nesting};
use crate::object::{Context, FaultQueue, Hwpt, HwptFlags, Ioas, NestedParent, Vdevice, Veventq, Viommu};

/// What the kernel tells of a device's IOMMU, if tables of a guest can be nested there. Takes as long as page tables for
/// nothing at all.
///
/// # Errors
/// Of `IOMMU_GET_HW_INFO`, `IOMMU_HWPT_ALLOC` and `IOMMU_VIOMMU_ALLOC`; not for want of nesting.
pub fn nesting_of(context: &Arc<Context>, device: DeviceId) -> Result<Option<HwInfo>> {
    let info = HwInfo::of(context, device)?;
    let Some(format) = FORMATS.iter().find(|format| format.hardware() == info.data_type) else {
        return Ok(None);
    };
    match Base::new(device, &Ioas::new(context)?, *format, &info) {
        Err(error) if error.errno() == Errno::OPNOTSUPP => Ok(None),
        tried => tried.map(|_| Some(info)),
    }
}

/// The guest's share of one IOMMU.
#[derive(Debug)]
pub(super) struct Base {
    // Fields are dropped in this order: what was made last goes first.
    events: Option<Veventq>,
    viommu: Option<Arc<Viommu>>,
    parent: Arc<Hwpt>,
    format: &'static dyn Format,
    info: HwInfo,
}

/// A device in a base. The base lasts as long as a device has a seat in it: to make it again would cost the time that
/// the memory's page tables take.
#[derive(Debug)]
pub(super) struct Seat {
    _vdevice: Option<Vdevice>,
    pub(super) base: Arc<Base>,
}

/// Failed accesses that wait to be read; more are lost, and the loss is told.
const EVENTS_WAITING: u32 = 256;

impl Base {
    /// Of the IOMMU that a device is behind.
    pub(super) fn new(
        device: DeviceId,
        memory: &Arc<Ioas>,
        format: &'static dyn Format,
        info: &HwInfo,
    ) -> Result<Arc<Base>> {
        let flags = HwptFlags::NEST_PARENT | pasid_flag(format, info);
        let parent = Hwpt::paging(device, memory, flags)?;
        let (mut viommu, mut events) = (None, None);
        if let Nesting::Viommu { viommu_type, data_bytes, event_type, event_bytes } = format.nesting() {
            let made = Viommu::new(device, &parent, viommu_type, &mut vec![0; data_bytes])?;
            events = match Veventq::new(&made, event_type, event_bytes, EVENTS_WAITING) {
                // Linux 6.14 and older.
                Err(error) if [Errno::NOTTY, Errno::OPNOTSUPP].contains(&error.errno()) => {
                    log::info!("the guest is not told of accesses that its tables forbid: {error}");
                    None
                }
                events => Some(events?),
            };
            viommu = Some(made);
        }
        Ok(Arc::new(Base { events, viommu, parent, format, info: info.clone() }))
    }

    pub(super) fn format(&self) -> &'static dyn Format {
        self.format
    }

    pub(super) fn info(&self) -> &HwInfo {
        &self.info
    }

    pub(super) fn viommu(&self) -> Option<&Arc<Viommu>> {
        self.viommu.as_ref()
    }

    /// All of the guest's memory, for a device whose PASIDs have tables.
    pub(super) fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    pub(super) fn events(&self) -> Option<&Veventq> {
        self.events.as_ref()
    }

    /// Whether devices with this hardware and such tables may have a seat: what else there is to it, the kernel says.
    pub(super) fn suits(&self, format: &dyn Format, info: &HwInfo) -> bool {
        let is_one_kind = self.info.data_type == info.data_type && self.info.data == info.data;
        let is_made_alike = pasid_flag(self.format, &self.info) == pasid_flag(format, info);
        is_one_kind && is_made_alike && self.format.nesting() == format.nesting()
    }

    /// Takes a device in, under the guest's number.
    ///
    /// # Errors
    /// EINVAL when it is behind another IOMMU.
    pub(super) fn seat(self: &Arc<Base>, device: DeviceId, number: u64) -> Result<Seat> {
        let vdevice = self.viommu.as_ref().map(|viommu| Vdevice::new(viommu, device, number)).transpose()?;
        Ok(Seat { _vdevice: vdevice, base: self.clone() })
    }

    /// A table of the guest for a device that has a seat.
    pub(super) fn nested(
        &self,
        device: DeviceId,
        description: &Description,
        faults: Option<Arc<FaultQueue>>,
    ) -> Result<Arc<Hwpt>> {
        let parent = match &self.viommu {
            Some(viommu) => NestedParent::Viommu(viommu.clone()),
            None => NestedParent::Hwpt(self.parent.clone()),
        };
        let flags = pasid_flag(self.format, &self.info);
        Hwpt::nested(device, parent, flags, description.data_type, &description.data, faults)
    }

    /// What is readable when there is something to tell.
    pub(super) fn source(&self) -> Option<impl AsFd> {
        self.events.as_ref().map(AsFd::as_fd)
    }
}

/// A PASID can have a table only if the device's own can have one beside it.
fn pasid_flag(format: &dyn Format, info: &HwInfo) -> HwptFlags {
    let is_needed = format.nesting() == Nesting::Parent && info.pasid_bits > 0;
    if is_needed { HwptFlags::PASID } else { HwptFlags::empty() }
}
