// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which device of a context a cdev is that another process bound: the kernel told its number to that process alone.

use std::fmt;
use std::fs;
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::{fstat, major, minor};
use rustix::io::Errno;

use super::{Cdev, DeviceId, HwInfo, ResetPeer};
use crate::error::{Error, Result};
use crate::object::Context;

/// Where a device is on the PCI bus, such as `0000:65:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciAddress {
    /// The PCI segment.
    pub segment: u16,
    /// The bus.
    pub bus: u8,
    /// Device and function.
    pub devfn: u8,
}

/// The highest number that a device is looked for at: the VMM binds its devices before the guest runs.
const NUMBERS_MAX: u32 = 256;

impl Cdev {
    /// Its number in the context that it is bound to. Looked for once.
    ///
    /// # Errors
    /// ENODEV when it cannot be told: it has no bus or slot that can be reset, and is not the only device in the context.
    /// Of `IOMMU_GET_HW_INFO`.
    pub fn find_number(&self, context: &Arc<Context>) -> Result<DeviceId> {
        if let Some(number) = self.number.get() {
            return Ok(*number);
        }
        let found = match self.reset_peers() {
            Ok(peers) => among(&peers, self.address),
            // It cannot be reset like that.
            Err(_) => None,
        };
        let number = match found {
            Some(number) => number,
            None => self.only_device(context)?,
        };
        Ok(*self.number.get_or_init(|| number))
    }

    /// The only device of the context.
    fn only_device(&self, context: &Arc<Context>) -> Result<DeviceId> {
        let mut devices = Vec::new();
        for number in 1..=NUMBERS_MAX {
            if HwInfo::is_device(context, number)? {
                devices.push(DeviceId(number));
            }
        }
        match devices[..] {
            [number] => Ok(number),
            _ => {
                let about = format_args!("{}: which of {} devices it is", self.name, devices.len());
                Err(Error::of_call("VFIO_DEVICE_GET_PCI_HOT_RESET_INFO", Errno::NODEV, about))
            }
        }
    }
}

/// The number of the one at this address, or of the only one.
fn among(peers: &[ResetPeer], address: Option<PciAddress>) -> Option<DeviceId> {
    match (peers, address) {
        (_, Some(address)) => peers.iter().find(|peer| peer.address() == address)?.device,
        ([peer], None) => peer.device,
        _ => None,
    }
}

impl ResetPeer {
    fn address(&self) -> PciAddress {
        PciAddress { segment: self.segment, bus: self.bus, devfn: self.devfn }
    }
}

impl PciAddress {
    /// Of a VFIO device, by its cdev.
    pub(super) fn of_device(cdev: BorrowedFd<'_>) -> Option<PciAddress> {
        let number = fstat(cdev).ok()?.st_rdev;
        let folder = format!("/sys/dev/char/{}:{}/device", major(number), minor(number));
        fs::read_link(folder).ok()?.file_name()?.to_str()?.parse().ok()
    }
}

/// A text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address is written as 0000:65:00.0")]
pub struct NoPciAddress;

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    fn from_str(text: &str) -> std::result::Result<PciAddress, NoPciAddress> {
        let parts = || {
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let device = u8::from_str_radix(device, 16).ok().filter(|device| *device < 32)?;
            let function = u8::from_str_radix(function, 8).ok().filter(|function| *function < 8)?;
            Some(PciAddress {
                segment: u16::from_str_radix(segment, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                devfn: device << 3 | function,
            })
        };
        parts().ok_or(NoPciAddress)
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress { segment, bus, devfn } = self;
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: PciAddress = PciAddress { segment: 0, bus: 0x65, devfn: 0x1f << 3 | 7 };

    fn peer(devfn: u8, device: Option<u32>) -> ResetPeer {
        ResetPeer { device: device.map(DeviceId), segment: 0, bus: 0x65, devfn }
    }

    #[test]
    fn an_address_is_read_as_it_is_written() {
        assert_eq!(HERE.to_string(), "0000:65:1f.7");
        assert_eq!("0000:65:1f.7".parse(), Ok(HERE));
        for wrong in ["", "65:00.0", "0000:65:20.0", "0000:65:00.8", "0000:165:00.0", "vfio0"] {
            assert_eq!(wrong.parse::<PciAddress>(), Err(NoPciAddress), "{wrong}");
        }
    }

    #[test]
    fn of_several_that_are_reset_together_only_an_address_tells_which_it_is() {
        let both = [peer(0, Some(3)), peer(HERE.devfn, Some(4))];
        assert_eq!(among(&both, Some(HERE)), Some(DeviceId(4)));
        assert_eq!(among(&both, None), None);
        assert_eq!(among(&both[..1], None), Some(DeviceId(3)));
        assert_eq!(among(&both[..1], Some(HERE)), None);
        assert_eq!(among(&[peer(HERE.devfn, None)], Some(HERE)), None, "it is not in the context");
    }
}
