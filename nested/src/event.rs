// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What devices under a guest's tables do that the guest is told: page requests, and accesses that failed.

use bitflags::bitflags;
use viommu_core::{EndpointId, Iova, Pasid};

bitflags! {
    /// What was tried, or is asked for (`enum iommu_hwpt_pgfault_perm`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EventAccess: u32 {
        /// Reading.
        const READ = 1 << 0;
        /// Writing.
        const WRITE = 1 << 1;
        /// Fetching instructions.
        const EXECUTE = 1 << 2;
        /// With privileges.
        const PRIVILEGED = 1 << 3;
    }
}

/// Why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// Nothing that the hardware tells.
    Unknown,
    /// Nothing is mapped there.
    Mapping,
    /// An entry of a page table could not be read.
    PteFetch,
    /// What is mapped there forbids it.
    Permission,
    /// What is mapped there was never accessed, and the hardware does not note that by itself.
    Access,
    /// An address is too large: the one that was tried, or one in a table.
    OutOfRange,
    /// What describes the table is wrong, or there is no table for the PASID.
    Table,
}

/// An access that failed, or was refused before it had an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEvent {
    /// Why.
    pub reason: EventReason,
    /// With which PASID, if with one.
    pub pasid: Option<Pasid>,
    /// Where.
    pub address: Option<Iova>,
    /// What; nothing if there is no address.
    pub access: EventAccess,
}

/// A device's request for a page, which waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequested {
    /// Who asks.
    pub endpoint: EndpointId,
    /// With which PASID, if with one.
    pub pasid: Option<Pasid>,
    /// The device's number of the group. All requests of a group are answered together.
    pub group: u32,
    /// Whether it is the last of its group.
    pub is_last: bool,
    /// What for.
    pub access: EventAccess,
    /// The page.
    pub address: Iova,
    /// What the answer refers to; the same for all of a group, and never the same again.
    pub cookie: u64,
}

/// What the kernel had to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A device asks for a page.
    PageRequested(PageRequested),
    /// An access of a device failed.
    Failed(EndpointId, TableEvent),
    /// Failed accesses were not told: there were too many. They may be of any endpoint.
    Lost,
}
