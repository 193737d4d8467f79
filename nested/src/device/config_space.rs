// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The configuration space of a PCI device, as VFIO lets it be read.
//!
//! Reads only; whoever drives the device writes there. To read first: `VFIO_DEVICE_GET_REGION_INFO` in `linux/vfio.h`.

use rustix::io::{Errno, pread, retry_on_intr};
use vfio_bindings::bindings::vfio::*;

use super::Cdev;
use crate::error::{Error, Result};

/// The configuration space of a device.
#[derive(Clone, Copy, Debug)]
pub struct ConfigSpace<'a> {
    device: &'a Cdev,
    region: Region,
}

/// A part of a device's file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Region {
    offset: u64,
    bytes: u64,
}

/// The register that says what a device may do.
const COMMAND: u16 = 4;
/// Its bit for requests of the device's own: DMA and message-signalled interrupts.
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// Where extended capabilities begin.
const EXTENDED_CAPABILITIES: u16 = 0x100;
/// Each has eight bytes at least.
const EXTENDED_CAPABILITIES_MAX: usize = (4096 - 256) / 8;

impl Cdev {
    /// Its configuration space, which is looked for once.
    ///
    /// # Errors
    /// Of `VFIO_DEVICE_GET_INFO` and `VFIO_DEVICE_GET_REGION_INFO`: EINVAL before it is bound; ENODEV when it is no PCI
    /// device.
    pub fn config_space(&self) -> Result<ConfigSpace<'_>> {
        let region = match self.config_region.get() {
            Some(region) => *region,
            None => {
                let found = self.find_config_region()?;
                *self.config_region.get_or_init(|| found)
            }
        };
        Ok(ConfigSpace { device: self, region })
    }

    /// Whether it can do DMA at all, and raise message-signalled interrupts: its driver has allowed it.
    ///
    /// # Errors
    /// As [`config_space`](Cdev::config_space) and [`ConfigSpace::read_u16`]; ENODEV when there is no device any more.
    pub fn is_bus_master(&self) -> Result<bool> {
        match self.config_space()?.read_u16(COMMAND)? {
            // What is read where no device is. No device has all of these bits.
            u16::MAX => Err(self.config_error(Errno::NODEV, COMMAND)),
            command => Ok(command & COMMAND_BUS_MASTER != 0),
        }
    }

    fn find_config_region(&self) -> Result<Region> {
        let mut device = vfio_device_info::default();
        self.call(&mut device, format_args!("what it is"))?;
        let index = VFIO_PCI_CONFIG_REGION_INDEX;
        if device.flags & VFIO_DEVICE_FLAGS_PCI == 0 || device.num_regions <= index {
            let about = format_args!("{}: it is no PCI device", self.name);
            return Err(Error::of::<vfio_device_info>(Errno::NODEV, about));
        }
        let mut region = vfio_region_info { index, ..Default::default() };
        self.call(&mut region, format_args!("the configuration space"))?;
        Ok(Region { offset: region.offset, bytes: region.size })
    }

    fn config_error(&self, errno: Errno, offset: u16) -> Error {
        Error::of_call("pread", errno, format_args!("{}: configuration space, byte {offset:#x}", self.name))
    }
}

impl ConfigSpace<'_> {
    /// The register of 16 bits at `offset`.
    ///
    /// # Errors
    /// Of `pread`: EIO when the device cannot be woken; EINVAL when there is no such register.
    pub fn read_u16(&self, offset: u16) -> Result<u16> {
        let error = |errno| self.device.config_error(errno, offset);
        let mut register = [0; 2];
        if u64::from(offset) + register.len() as u64 > self.region.bytes {
            return Err(error(Errno::INVAL));
        }
        let at = self.region.offset.checked_add(offset.into()).ok_or_else(|| error(Errno::OVERFLOW))?;
        match retry_on_intr(|| pread(&self.device.file, &mut register, at)) {
            Ok(2) => Ok(u16::from_le_bytes(register)),
            Ok(_) => Err(error(Errno::IO)),
            Err(errno) => Err(error(errno)),
        }
    }

    /// Where the extended capability of this number begins (PCI Express), if the device has it and VFIO shows it.
    ///
    /// # Errors
    /// As for [`read_u16`](ConfigSpace::read_u16).
    pub fn extended_capability(&self, number: u16) -> Result<Option<u16>> {
        let mut at = EXTENDED_CAPABILITIES;
        // As many as there is room for: a device may have a circle of them.
        for _ in 0..EXTENDED_CAPABILITIES_MAX {
            if at < EXTENDED_CAPABILITIES || u64::from(at) + 4 > self.region.bytes {
                return Ok(None);
            }
            let (found, next) = (self.read_u16(at)?, self.read_u16(at + 2)? >> 4 & !3);
            match found {
                0 | u16::MAX => return Ok(None),
                found if found == number => return Ok(Some(at)),
                _ => at = next,
            }
        }
        Ok(None)
    }
}
