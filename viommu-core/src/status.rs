// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why a request is refused, and the status the driver reads for it.
//!
//! This file alone chooses statuses: handlers return a [`Reject`], the outside a [`HostError`].
//! Read beside it: virtio 1.4, "IOMMU device / Device operations", `VIRTIO_IOMMU_S_*`.

use core::fmt;

use thiserror::Error;

use crate::{DomainId, EndpointId, IovaRange, Pasid, RequestGroup};

/// The status byte of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The virtio transport failed; never sent by this device.
    IoErr = 1,
    /// The device cannot do this.
    Unsupp = 2,
    /// The device or the host behind it failed.
    DevErr = 3,
    /// A parameter is wrong.
    Inval = 4,
    /// A number is out of range.
    Range = 5,
    /// There is no such endpoint or domain.
    NoEnt = 6,
    /// The address of a table leads to no memory.
    Fault = 7,
    /// A limit is reached.
    NoMem = 8,
}

/// Why a request was refused. A refused request changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reject {
    /// The readable part ends before the request does.
    #[error("request has {got} readable bytes, needs {needed}")]
    TooShort {
        /// Bytes found.
        got: usize,
        /// Bytes the request type has.
        needed: usize,
    },
    /// The writable part of a PROBE has no room for `probe_size` bytes of properties.
    #[error("reply buffer has {got} bytes, needs {needed}")]
    ReplyTooShort {
        /// Bytes found.
        got: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// A reserved field that must be zero is not.
    #[error("reserved field is not zero")]
    Reserved,
    /// A flag that does not exist, or whose feature was not negotiated.
    #[error("unknown flags {0:#x}")]
    UnknownFlags(u32),
    /// No endpoint of that id is behind this device.
    #[error("{0} does not exist")]
    NoEndpoint(EndpointId),
    /// No endpoint is attached to a domain of that id, so it does not exist.
    #[error("{0} does not exist")]
    NoDomain(DomainId),
    /// The domain id lies outside `domain_range`.
    #[error("{0} is outside the domain range")]
    DomainRange(DomainId),
    /// The domain exists and is of the other kind.
    #[error("{0} exists with the other bypass setting")]
    BypassMismatch(DomainId),
    /// The endpoint is not in the domain that a DETACH names.
    #[error("{0} is not attached to {1}")]
    NotAttached(EndpointId, DomainId),
    /// A bypass domain has no mappings.
    #[error("{0} is a bypass domain")]
    BypassDomain(DomainId),
    /// The last address lies before the first.
    #[error("range {start:#x}-{last:#x} is reversed")]
    Reversed {
        /// First address.
        start: u64,
        /// Last address.
        last: u64,
    },
    /// A range does not begin and end on the granule, or its target does not.
    #[error("range {0} is not aligned to the granule")]
    Unaligned(IovaRange),
    /// A mapping's target would run past the end of the 64-bit space.
    #[error("target of range {0} passes the end of the address space")]
    TargetWraps(IovaRange),
    /// A range lies outside `input_range`.
    #[error("range {0} is outside the input range")]
    InputRange(IovaRange),
    /// A range touches a mapping that exists.
    #[error("range {0} overlaps a mapping")]
    Overlap(IovaRange),
    /// A range touches a reserved region of an endpoint in the domain.
    #[error("range {0} overlaps a reserved region")]
    ReservedRegion(IovaRange),
    /// The domain maps something that the endpoint reserves.
    #[error("{1} has mappings in a reserved region of {0}")]
    Incompatible(EndpointId, DomainId),
    /// Hardware cannot tell the endpoint from another, which is in another domain.
    #[error("{0} shares a group of the host with {1}, which is in {2}: both must be in one domain")]
    GroupElsewhere(EndpointId, EndpointId, DomainId),
    /// An UNMAP covers only a part of a mapping.
    #[error("range {0} would split a mapping")]
    Split(IovaRange),
    /// No more domains.
    #[error("limit of {0} domains reached")]
    DomainLimit(usize),
    /// No more memory for mappings.
    #[error("limit of {0} bytes for mappings reached")]
    MappingMemory(usize),
    /// No more mappings.
    #[error("limit of {0} mappings reached")]
    MappingLimit(usize),
    /// There is no format of tables with this number.
    #[error("unknown table format {0}")]
    UnknownFormat(u8),
    /// The endpoint, or what walks its tables, cannot do this.
    #[error("the hardware behind the endpoint lacks {0}")]
    HardwareLacks(&'static str),
    /// The device is one of tables, so there are no domains of mappings.
    #[error("ATTACH without a table to a device that has no mappings")]
    NoMappings,
    /// The domain exists and its tables are of another format.
    #[error("{0} exists with tables of another format")]
    FormatMismatch(DomainId),
    /// No number of a PASID that the endpoint can use.
    #[error("{0} is outside the range of the endpoint's")]
    PasidRange(Pasid),
    /// A table for more PASIDs than the hardware has.
    #[error("a table for PASIDs of {0} bits is too large for the hardware")]
    PasidBits(u64),
    /// PASIDs are only of use for an endpoint that is attached.
    #[error("{0} is in no domain, so its PASIDs cannot be")]
    Unattached(EndpointId),
    /// The PASID is not in the domain that a request names.
    #[error("{1} of {0} is not attached to {2}")]
    PasidNotAttached(EndpointId, Pasid, DomainId),
    /// Hardware cannot tell the endpoint from another, which uses another table.
    #[error("{0} shares a group of the host with {1}, which uses another table")]
    GroupTable(EndpointId, EndpointId),
    /// No more PASIDs with a table.
    #[error("limit of {0} PASIDs with a table reached")]
    PasidLimit(usize),
    /// The table, or what it names, lies where no guest memory is.
    #[error("the table lies outside of the guest's memory: {0}")]
    TableAddress(HostError),
    /// An invalidation of what no scope is, or of nothing.
    #[error("an invalidation of scope {scope}, caches {caches:#x} and flags {flags:#x} makes no sense")]
    Invalidation {
        /// The scope.
        scope: u8,
        /// The caches.
        caches: u8,
        /// The flags.
        flags: u16,
    },
    /// The tables of this format know no numbers of address spaces, or no such number.
    #[error("there is no address space of number {0:#x}")]
    AddressSpaceId(u64),
    /// No PASID of that number is in the domain.
    #[error("{1} is not in {0}")]
    NoPasid(DomainId, Pasid),
    /// A page size that hardware of the domain does not have.
    #[error("no pages of 2^{0} bytes")]
    PageSize(u8),
    /// Pages that do not begin on their own border, are none, or pass the end of the 64-bit space.
    #[error("{pages:#x} pages of 2^{page_shift} bytes from {start:#x} are no range")]
    Pages {
        /// The first address.
        start: u64,
        /// How many.
        pages: u64,
        /// Of which size, as its logarithm to base 2.
        page_shift: u8,
    },
    /// An answer that does not exist.
    #[error("unknown response code {0}")]
    ResponseCode(u16),
    /// Nobody waits for this answer, or not any more.
    #[error("{} waits for no response to group {}", _0.endpoint, _0.group)]
    NoRequest(RequestGroup),
    /// The host refused the change.
    #[error("{0}")]
    Host(HostError),
}

/// The host side failed to apply a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostError {
    /// What was attempted, for the log.
    pub operation: &'static str,
    /// The error number, as the host's `errno.h` has it.
    pub errno: i32,
}

impl HostError {
    /// These have one number on every Linux.
    const ENOMEM: i32 = 12;
    const ENOSPC: i32 = 28;
    pub(crate) const EFAULT: i32 = 14;
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed on the host (errno {})", self.operation, self.errno)
    }
}

impl core::error::Error for HostError {}

impl From<&Reject> for Status {
    fn from(reject: &Reject) -> Status {
        match reject {
            Reject::NoEndpoint(_) | Reject::NoDomain(_) | Reject::NoPasid(..) | Reject::NoRequest(_) => {
                Status::NoEnt
            }
            Reject::DomainRange(_)
            | Reject::Reversed { .. }
            | Reject::Unaligned(_)
            | Reject::TargetWraps(_)
            | Reject::InputRange(_)
            | Reject::Split(_)
            | Reject::PasidRange(_)
            | Reject::PasidBits(_)
            | Reject::AddressSpaceId(_)
            | Reject::PageSize(_)
            | Reject::Pages { .. } => Status::Range,
            Reject::TooShort { .. }
            | Reject::ReplyTooShort { .. }
            | Reject::Reserved
            | Reject::UnknownFlags(_)
            | Reject::BypassMismatch(_)
            | Reject::NotAttached(..)
            | Reject::BypassDomain(_)
            | Reject::Overlap(_)
            | Reject::ReservedRegion(_)
            | Reject::FormatMismatch(_)
            | Reject::Unattached(_)
            | Reject::PasidNotAttached(..)
            | Reject::Invalidation { .. }
            | Reject::ResponseCode(_) => Status::Inval,
            Reject::Incompatible(..)
            | Reject::GroupElsewhere(..)
            | Reject::UnknownFormat(_)
            | Reject::HardwareLacks(_)
            | Reject::NoMappings
            | Reject::GroupTable(..) => Status::Unsupp,
            Reject::DomainLimit(_)
            | Reject::MappingLimit(_)
            | Reject::MappingMemory(_)
            | Reject::PasidLimit(_) => Status::NoMem,
            Reject::TableAddress(_) => Status::Fault,
            Reject::Host(HostError { errno: HostError::ENOMEM | HostError::ENOSPC, .. }) => Status::NoMem,
            Reject::Host(_) => Status::DevErr,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_failure_of_the_host_is_shown_with_its_operation_and_errno() {
        let error = HostError { operation: "unmapping", errno: 5 };
        assert_eq!(Reject::Host(error).to_string(), "unmapping failed on the host (errno 5)");
    }
}
