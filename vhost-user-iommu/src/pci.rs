// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The address of a PCI function, as `lspci` writes it.
//!
//! Looks at no bus: an address may name a function that does not exist. How an endpoint id is made
//! from an address: virtio, IOMMU device; ACPI, Virtual I/O Translation Table.

use std::{fmt, str::FromStr};

use viommu_core::EndpointId;

use crate::usage_error::UsageError;

/// The address of a PCI function, in the order of (segment, bus, device, function).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    segment: u16,
    bdf: u16,
}

impl PciAddress {
    /// The PCI segment group.
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// `bus << 8 | device << 3 | function`.
    pub fn bdf(self) -> u16 {
        self.bdf
    }

    /// The id under which a guest knows this function: `segment << 16 | bdf`.
    pub fn endpoint_id(self) -> EndpointId {
        EndpointId(u32::from(self.segment) << 16 | u32::from(self.bdf))
    }

    /// With its segment, as sysfs names it.
    pub fn in_full(self) -> String {
        let segment = if self.segment == 0 { "0000:" } else { "" };
        format!("{segment}{self}")
    }

    /// The function whose [`endpoint_id`](Self::endpoint_id) is `id`.
    pub fn of_endpoint_id(id: EndpointId) -> PciAddress {
        PciAddress { segment: (id.0 >> 16) as u16, bdf: (id.0 & 0xffff) as u16 }
    }
}

impl FromStr for PciAddress {
    type Err = UsageError;

    /// Parses `[SEGMENT:]BUS:DEVICE.FUNCTION`, all hexadecimal.
    fn from_str(text: &str) -> Result<PciAddress, UsageError> {
        parse(text).ok_or_else(|| {
            UsageError::new(
                format!("`{text}` is not the address of a PCI function"),
                "write [SEGMENT:]BUS:DEVICE.FUNCTION in hexadecimal, device up to 1f and function up to 7, \
                 such as 00:02.0",
            )
        })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, device, function) = (self.bdf >> 8, self.bdf >> 3 & MAX_DEVICE, self.bdf & MAX_FUNCTION);
        if self.segment != 0 {
            write!(f, "{:04x}:", self.segment)?;
        }
        write!(f, "{bus:02x}:{device:02x}.{function:x}")
    }
}

fn parse(text: &str) -> Option<PciAddress> {
    let (rest, function) = text.split_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    Some(PciAddress {
        segment: hex(segment, u16::MAX)?,
        bdf: hex(bus, MAX_BUS)? << 8 | hex(device, MAX_DEVICE)? << 3 | hex(function, MAX_FUNCTION)?,
    })
}

fn hex(digits: &str, max: u16) -> Option<u16> {
    let value = u16::from_str_radix(digits, 16).ok()?;
    (value <= max && !digits.starts_with('+')).then_some(value)
}

const MAX_BUS: u16 = 0xff;
const MAX_DEVICE: u16 = 0x1f;
const MAX_FUNCTION: u16 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_becomes_the_endpoint_id_and_back() {
        for (text, id, shown) in [
            ("00:00.0", 0, "00:00.0"),
            ("0:2.0", 0x10, "00:02.0"),
            ("0000:00:02.0", 0x10, "00:02.0"),
            ("65:1f.7", 0x65ff, "65:1f.7"),
            ("FFFF:ff:1f.7", u32::MAX, "ffff:ff:1f.7"),
            ("1:00:01.0", 0x1_0008, "0001:00:01.0"),
        ] {
            let address: PciAddress = text.parse().expect(text);
            assert_eq!(address.endpoint_id(), EndpointId(id), "{text}");
            assert_eq!(PciAddress::of_endpoint_id(EndpointId(id)), address);
            assert_eq!(address.to_string(), shown);
            assert!(address.in_full().len() == 12 && address.in_full().ends_with(shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "02.0",
            "00:02",
            "00:20.0",
            "00:02.8",
            "100:02.0",
            "00:02.0.0",
            "0:0:0:02.0",
            "g0:02.0",
            "+1:02.0",
            "10000:00:02.0",
            "00:.0",
            " 00:02.0",
        ] {
            let error = text.parse::<PciAddress>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("`{text}` is not the address")), "{error}");
        }
    }
}
