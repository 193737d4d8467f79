// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The numbers by which a guest names endpoints and domains, each a type of its own.
//!
//! Holds no rule about which ids are valid: that is the device's matter.

use core::fmt;

/// The id of an endpoint: one source of DMA, as the topology description (VIOT or device tree)
/// numbers it. Any 32-bit value; for PCI functions `segment << 16 | bus << 8 | device << 3 | function`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// The id of a domain: one address space, chosen by the guest's driver within `domain_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u32);

/// A process address space ID: one of an endpoint's address spaces besides the one without a number. Twenty bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoint {:#x}", self.0)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}", self.0)
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PASID {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn ids_are_shown_with_what_they_name() {
        assert_eq!(EndpointId(0x1_0018).to_string(), "endpoint 0x10018");
        assert_eq!(DomainId(18).to_string(), "domain 18");
    }
}
