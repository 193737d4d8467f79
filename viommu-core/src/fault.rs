// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Refused accesses on their way to the driver.
//!
//! Says what a fault is, and how an event tells of it; how they wait is the matter of `event`.

use core::fmt;

use zerocopy::IntoBytes;

use crate::{Access, EndpointId, Iova, wire};

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// The endpoint is in no domain and may not bypass.
    Domain,
    /// Nothing is mapped there, or the mapping forbids the access.
    Mapping,
    /// Anything else: the address is mapped, and nothing is behind it.
    Unknown,
}

/// A refused access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who tried.
    pub endpoint: EndpointId,
    /// Where.
    pub address: Iova,
    /// What.
    pub access: Access,
    /// Why not.
    pub reason: FaultReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = match self.reason {
            FaultReason::Domain => "it is attached to no domain",
            FaultReason::Mapping => "no mapping allows it",
            FaultReason::Unknown => "no memory is there",
        };
        let access = match (self.access.contains(Access::READ), self.access.contains(Access::WRITE)) {
            (true, true) => "read and write",
            (false, true) => "write",
            _ => "read",
        };
        write!(f, "{} may not {access} at {}: {reason}", self.endpoint, self.address)
    }
}

/// Bytes of a fault event.
pub const EVENT_SIZE: usize = size_of::<wire::Fault>();

impl Fault {
    /// The event as the driver reads it.
    pub fn event(&self) -> [u8; EVENT_SIZE] {
        //= virtio#devicenormative:IOMMU/Fault reporting A53a A53b A55
        // Every reserved field and undefined flag is zero; the address is always there.
        let mut flags = wire::FAULT_F_ADDRESS;
        if self.access.contains(Access::READ) {
            flags |= wire::FAULT_F_READ;
        }
        if self.access.contains(Access::WRITE) {
            flags |= wire::FAULT_F_WRITE;
        }
        let event = wire::Fault {
            reason: match self.reason {
                FaultReason::Unknown => wire::FAULT_R_UNKNOWN,
                FaultReason::Domain => wire::FAULT_R_DOMAIN,
                FaultReason::Mapping => wire::FAULT_R_MAPPING,
            },
            reserved: [0; 3],
            flags: flags.into(),
            endpoint: self.endpoint.0.into(),
            reserved1: [0; 4],
            address: self.address.0.into(),
        };
        let mut bytes = [0; EVENT_SIZE];
        bytes.copy_from_slice(event.as_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_fault_is_shown_with_who_tried_what_where_and_why_not() {
        let show = |access, reason| {
            Fault { endpoint: EndpointId(8), address: Iova(0x1000), access, reason }.to_string()
        };
        let expected = "endpoint 0x8 may not read and write at 0x1000: no mapping allows it";
        assert_eq!(show(Access::all(), FaultReason::Mapping), expected);
        let expected = "endpoint 0x8 may not write at 0x1000: it is attached to no domain";
        assert_eq!(show(Access::WRITE, FaultReason::Domain), expected);
        let expected = "endpoint 0x8 may not read at 0x1000: no memory is there";
        assert_eq!(show(Access::READ, FaultReason::Unknown), expected);
    }
}
