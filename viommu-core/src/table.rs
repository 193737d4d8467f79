// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stage-1 page tables of the guest, which hardware walks: what describes them, and what is said of their changes.
//!
//! Holds what all vendors have in common. Read beside it: [`manual::tables`](crate::manual::tables).

use bitflags::bitflags;

use crate::{EndpointId, Gpa, Pasid};

/// A stage-1 table that an endpoint, or one of its PASIDs, uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The first two 64-bit words of an Arm SMMUv3 stream table entry, which name a table of context descriptors.
    ArmSmmu3 {
        /// The words, as the CPU reads them.
        ste: [u64; 2],
    },
    /// A first-stage page table of Intel VT-d.
    IntelPt {
        /// `SRE`, `EAFE` and `WPE` of the PASID table entry, as `enum iommu_hwpt_vtd_s1_flags` numbers them.
        flags: u64,
        /// Its root.
        root: Gpa,
        /// Bits of an input address: 48 or 57.
        address_bits: u32,
    },
}

/// What the driver changed in its tables, and caches may still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// How much of the domain.
    pub scope: Scope,
    /// Of which caches.
    pub caches: Caches,
    /// Whether only entries that map something changed, and none that lead to a table.
    pub leaf: bool,
    /// The architecture's number of the address space (ASID), if only that is concerned.
    pub id: Option<u16>,
    /// Whether global entries are concerned too.
    pub global: bool,
}

/// How much of a domain an invalidation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of it.
    Domain,
    /// One PASID.
    Pasid(Pasid),
    /// Addresses, of one PASID or of all.
    Addresses {
        /// The PASID.
        pasid: Option<Pasid>,
        /// The first address, on a border of such pages.
        start: u64,
        /// How many pages, at least 1; the last of them ends within 64 bits.
        pages: u64,
        /// The size of a page in bytes, as its logarithm to base 2: 12 to 63.
        page_shift: u8,
    },
}

bitflags! {
    /// What caches of an IOMMU hold.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Caches: u8 {
        /// Entries of PASID tables (context descriptors).
        const PASID = 1 << 0;
        /// Translations, in the IOMMU and in endpoints (ATS).
        const TLB = 1 << 1;
    }
}

/// What the driver made of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// The page is there: the endpoint tries again.
    Success,
    /// There is no such page: the access fails.
    Invalid,
    /// The driver cannot help: as [`Invalid`](ResponseCode::Invalid) for an endpoint of today's kernels.
    Failure,
}

/// By what a driver names the page requests that it answers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestGroup {
    /// Who asks.
    pub endpoint: EndpointId,
    /// For which PASID, if any.
    pub pasid: Option<Pasid>,
    /// The endpoint's number of the group.
    pub group: u32,
}
