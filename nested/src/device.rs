// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of an iommufd context: bound to it, attached to what it has.

mod config_space;
#[cfg(feature = "cdev-tests")]
mod interrupt;
mod number;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vfio_bindings::bindings::vfio::*;

use crate::error::{Error, Result};
use crate::object::{Context, PageTable};
use crate::uapi::ioctl::{self, Buffer, Command};
use crate::uapi::types::{HotResetInfo, iommu_hw_info};

pub use config_space::ConfigSpace;
use config_space::Region;
pub use number::PciAddress;

/// The number of a device in a context (`dev_id`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(pub u32);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A device that is bound to a context: one behind a VFIO cdev, or the kernel's mock.
pub trait Attach: fmt::Debug + Send {
    /// Lets the device, or one of its PASIDs, reach what `table` maps, in place of what it reached before: in one step,
    /// nothing lies between them. The table has to be of the context that the device is bound to: only its number is
    /// handed over.
    ///
    /// # Errors
    /// EINVAL when the device shares a group with one that is attached elsewhere, EADDRINUSE when what it reserves is
    /// mapped, EBUSY during its reset. It reaches what it did before then.
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()>;

    /// Lets it reach nothing.
    ///
    /// # Errors
    /// Of the call; what it reached it reaches still.
    fn detach(&self, pasid: Option<u32>) -> Result<()>;

    /// Its number in the context that it is bound to, for what concerns more than its attachment.
    ///
    /// # Errors
    /// ENODEV when there is no telling which it is.
    fn number(&self, context: &Arc<Context>) -> Result<DeviceId>;

    /// Whether it is in a context. One that is not reaches nothing, and can be neither attached nor detached.
    fn is_bound(&self) -> bool {
        true
    }
}

/// A physical device by its file `/dev/vfio/devices/vfioN`, Linux 6.6 and later. It leaves its context when the last
/// duplicate of the file is closed.
#[derive(Debug)]
pub struct Cdev {
    file: OwnedFd,
    /// For messages.
    name: String,
    /// Its place on the PCI bus, if it has one and sysfs tells.
    address: Option<PciAddress>,
    number: OnceLock<DeviceId>,
    config_region: OnceLock<Region>,
}

/// A device that shares a reset with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetPeer {
    /// Its number in the context, if it is bound to it.
    pub device: Option<DeviceId>,
    /// The PCI segment.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
}

impl Cdev {
    /// Opens `path`.
    ///
    /// # Errors
    /// Of `open`: EBUSY when it is in use through VFIO's group files.
    pub fn open(path: &Path) -> Result<Cdev> {
        let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let about = format_args!("{}", path.display());
        let file = opened.map_err(|errno| Error::of_call("open", errno, about))?;
        Ok(Cdev::named(file, path.display().to_string()))
    }

    /// Takes over a descriptor of one that another process opened.
    pub fn adopt(file: OwnedFd) -> Cdev {
        let number = file.as_raw_fd();
        let path = fs::read_link(format!("/proc/self/fd/{number}"));
        let name = path.map_or(format!("descriptor {number}"), |path| path.display().to_string());
        Cdev::named(file, name)
    }

    fn named(file: OwnedFd, name: String) -> Cdev {
        let address = PciAddress::of_device(file.as_fd());
        Cdev { file, name, address, number: OnceLock::new(), config_region: OnceLock::new() }
    }

    /// Brings the device into a context, where it can reach nothing at first.
    ///
    /// # Errors
    /// Of `VFIO_DEVICE_BIND_IOMMUFD`: EINVAL when it is bound already, EPERM for an IOMMU that does not isolate
    /// interrupts, EBUSY when a driver of the host or another context has a device of its group.
    pub fn bind(&self, context: &Context) -> Result<DeviceId> {
        let iommufd = context.as_fd().as_raw_fd();
        let mut command = vfio_device_bind_iommufd { iommufd, ..Default::default() };
        self.call(&mut command, format_args!("to a context"))?;
        Ok(*self.number.get_or_init(|| DeviceId(command.out_devid)))
    }

    /// The devices that a reset of the bus or slot would reach, this one among them. It is how a process that did not
    /// bind the device learns its number.
    ///
    /// # Errors
    /// Of `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: ENODEV when neither bus nor slot can be reset, EINVAL before it is
    /// bound, ENOSPC when there are more than 1024.
    pub fn reset_peers(&self) -> Result<Vec<ResetPeer>> {
        let mut command = HotResetInfo::default();
        self.call(&mut command, format_args!("bus or slot"))?;
        // Else they are groups, of a device that was opened through VFIO's group files.
        let are_numbers = command.flags & VFIO_PCI_HOT_RESET_FLAG_DEV_ID != 0;
        // The kernel's VFIO_PCI_DEVID_OWNED and VFIO_PCI_DEVID_NOT_OWNED are 0 and -1.
        let number = |devid| (are_numbers && devid as i32 > 0).then_some(DeviceId(devid));
        let peers = command.devices().iter().map(|peer| ResetPeer {
            device: number(peer.devid),
            segment: peer.segment,
            bus: peer.bus,
            devfn: peer.devfn,
        });
        Ok(peers.collect())
    }

    fn call<C: Command>(&self, command: &mut C, about: fmt::Arguments<'_>) -> Result<()> {
        let done = ioctl::call(self.file.as_fd(), command, Buffer::NONE);
        done.map_err(|errno| Error::of::<C>(errno, format_args!("{}: {about}", self.name)))
    }
}

impl Attach for Cdev {
    fn attach(&self, table: &PageTable, pasid: Option<u32>) -> Result<()> {
        let mut command = vfio_device_attach_iommufd_pt {
            flags: if pasid.is_some() { VFIO_DEVICE_ATTACH_PASID } else { 0 },
            pt_id: table.id(),
            pasid: pasid.unwrap_or(0),
            ..Default::default()
        };
        self.call(&mut command, format_args!("to id {}, PASID {pasid:?}", table.id()))
    }

    fn detach(&self, pasid: Option<u32>) -> Result<()> {
        let mut command = vfio_device_detach_iommufd_pt {
            flags: if pasid.is_some() { VFIO_DEVICE_DETACH_PASID } else { 0 },
            pasid: pasid.unwrap_or(0),
            ..Default::default()
        };
        self.call(&mut command, format_args!("PASID {pasid:?}"))
    }

    fn number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        self.find_number(context)
    }

    fn is_bound(&self) -> bool {
        // What makes other calls fail for a moment, a reset for example, says nothing.
        let told = self.call(&mut vfio_device_info::default(), format_args!("of a cdev"));
        !told.is_err_and(|error| error.errno() == Errno::INVAL)
    }
}

/// A device and what it is attached to, which lasts as long: the kernel destroys no page table that is in use.
///
/// One that is cut off is attached to nothing as far as the kernel is concerned. What it is attached to here is then what it
/// gets when it is restored.
#[derive(Debug)]
pub struct Attached<D> {
    // First: a field is dropped before those that follow it.
    device: D,
    tables: BTreeMap<Option<u32>, PageTable>,
    is_cut_off: bool,
}

impl<D: Attach> Attached<D> {
    /// A device that is attached to nothing, or to what others look after.
    pub fn new(device: D) -> Attached<D> {
        Attached { device, tables: BTreeMap::new(), is_cut_off: false }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device, without what it is attached to: to be detached before.
    pub fn into_device(self) -> D {
        self.device
    }

    /// What it, or one of its PASIDs, is attached to.
    pub fn table(&self, pasid: Option<u32>) -> Option<&PageTable> {
        self.tables.get(&pasid)
    }

    /// The PASIDs that are attached to something.
    pub fn pasids(&self) -> impl Iterator<Item = u32> {
        self.tables.keys().copied().flatten()
    }

    /// Attaches it to `table`, in place of what it was attached to.
    ///
    /// # Errors
    /// Of [`Attach::attach`]; it is attached to what it was then.
    pub fn attach(&mut self, table: PageTable, pasid: Option<u32>) -> Result<()> {
        if !self.is_cut_off {
            self.device.attach(&table, pasid)?;
        }
        self.tables.insert(pasid, table);
        Ok(())
    }

    /// Whether it is cut off.
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Cuts it off, its PASIDs included. One that is cut off already is detached once more: others may have attached it.
    ///
    /// # Errors
    /// Of [`Attach::detach`]. It counts as cut off then, and is to be restored.
    pub fn cut_off(&mut self) -> Result<()> {
        self.is_cut_off = true;
        if !self.device.is_bound() {
            return Ok(());
        }
        self.pasids().map(Some).chain([None]).try_for_each(|pasid| self.device.detach(pasid))
    }

    /// Lets it reach again what it is attached to.
    ///
    /// # Errors
    /// Of [`Attach::attach`]. It counts as cut off then, and is to be cut off once more.
    pub fn restore(&mut self) -> Result<()> {
        if self.is_cut_off && self.device.is_bound() {
            self.tables.iter().try_for_each(|(pasid, table)| self.device.attach(table, *pasid))?;
        }
        self.is_cut_off = false;
        Ok(())
    }

    /// Takes note that it is attached to `table`, or to nothing, since all of its group are.
    pub fn followed(&mut self, table: Option<PageTable>) {
        match table {
            Some(table) => drop(self.tables.insert(None, table)),
            None => drop(self.tables.remove(&None)),
        }
    }

    /// Lets it reach nothing. One that has left its context does not reach anything.
    ///
    /// # Errors
    /// Of [`Attach::detach`]; it is attached to what it was then.
    pub fn detach_if_bound(&mut self, pasid: Option<u32>) -> Result<()> {
        if self.device.is_bound() {
            return self.detach(pasid);
        }
        self.tables.remove(&pasid);
        Ok(())
    }

    /// Lets it reach nothing.
    ///
    /// # Errors
    /// Of [`Attach::detach`]; it is attached to what it was then.
    pub fn detach(&mut self, pasid: Option<u32>) -> Result<()> {
        // Of one that is cut off no PASID is attached, and nobody else attaches any.
        if pasid.is_none() || !self.is_cut_off {
            self.device.detach(pasid)?;
        }
        self.tables.remove(&pasid);
        Ok(())
    }
}

/// What the kernel tells of a device's IOMMU (`IOMMU_GET_HW_INFO`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// The vendor (`enum iommu_hw_info_type`), 0 when it tells nothing more.
    pub data_type: u32,
    /// What the vendor's type says.
    pub data: Vec<u8>,
    /// Bits of a PASID; 0 for a device without.
    pub pasid_bits: u8,
    /// What it can do (`enum iommufd_hw_capabilities`).
    pub capabilities: u64,
}

/// More bytes than any vendor's type has today.
const HW_INFO_BYTES: usize = 256;

impl HwInfo {
    /// Of the IOMMU that `device` is behind.
    ///
    /// # Errors
    /// Of `IOMMU_GET_HW_INFO`: ENOENT when the number is no device's.
    pub fn of(context: &Arc<Context>, device: DeviceId) -> Result<HwInfo> {
        let mut data = vec![0; HW_INFO_BYTES];
        loop {
            let mut command = iommu_hw_info { dev_id: device.0, ..Default::default() };
            context.call(&mut command, Buffer::of(&mut data), format_args!("device {device}"))?;
            let is_whole = command.data_len as usize <= data.len();
            data.resize(command.data_len as usize, 0);
            if is_whole {
                return Ok(HwInfo {
                    data_type: command.data_type,
                    data,
                    pasid_bits: command.out_max_pasid_log2,
                    capabilities: command.out_capabilities,
                });
            }
        }
    }

    /// Four bytes of what the vendor's type says; 0 beyond it.
    pub fn word(&self, offset: usize) -> u32 {
        let bytes = self.data.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Whether `number` is that of a device in the context: the numbers of all objects are of one kind.
    ///
    /// # Errors
    /// Of `IOMMU_GET_HW_INFO`, other than that it is not.
    pub fn is_device(context: &Arc<Context>, number: u32) -> Result<bool> {
        match HwInfo::of(context, DeviceId(number)) {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Errno::NOENT => Ok(false),
            Err(error) => Err(error),
        }
    }
}
