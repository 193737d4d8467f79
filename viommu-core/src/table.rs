// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Stage-1 page tables of the guest, which hardware walks: what describes them, and what is said of their changes.
//!
//! Holds what all vendors have in common; `format` holds the rest. Read beside it:
//! [`manual::tables`](crate::manual::tables).

use core::time::Duration;

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

/// Whose tables: all tables of a domain are of one format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// [`Table::ArmSmmu3`].
    ArmSmmu3,
    /// [`Table::IntelPt`].
    IntelPt,
}

impl Table {
    /// Whose.
    pub const fn format(&self) -> TableFormat {
        match self {
            Table::ArmSmmu3 { .. } => TableFormat::ArmSmmu3,
            Table::IntelPt { .. } => TableFormat::IntelPt,
        }
    }
}

/// The unit that walks the tables of an endpoint, as it describes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableHardware {
    /// An Arm SMMUv3.
    ArmSmmu3 {
        /// `SMMU_IDR0` to `SMMU_IDR5`; `struct iommu_hw_info_arm_smmuv3` has them so.
        idr: [u32; 6],
    },
    /// A VT-d unit.
    IntelVtd {
        /// `flags` of `struct iommu_hw_info_vtd`.
        flags: u32,
        /// The capability register.
        cap: u64,
        /// The extended capability register.
        ecap: u64,
    },
}

impl TableHardware {
    /// What it walks.
    pub const fn format(&self) -> TableFormat {
        match self {
            TableHardware::ArmSmmu3 { .. } => TableFormat::ArmSmmu3,
            TableHardware::IntelVtd { .. } => TableFormat::IntelPt,
        }
    }
}

/// What an endpoint can do with tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSupport {
    /// Who walks them.
    pub hardware: TableHardware,
    /// Whether the endpoint may ask for translations and keep them (ATS).
    pub ats: bool,
    /// What PASIDs it can use, if any.
    pub pasids: Option<PasidSupport>,
    /// How it asks for pages, if it does.
    pub page_requests: Option<PageRequestSupport>,
}

/// What PASIDs an endpoint can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidSupport {
    /// They are below 2 to this power; more than 20 count as 20.
    pub bits: u8,
    /// Whether accesses with one can be executions.
    pub exec: bool,
    /// Whether they can be privileged.
    pub privileged: bool,
}

impl PasidSupport {
    /// The first number that is none.
    pub(crate) const fn end(self) -> u32 {
        1u32.wrapping_shl(self.bits_offered() as u32)
    }

    /// At most 20.
    pub(crate) const fn bits_offered(self) -> u8 {
        if self.bits > 20 { 20 } else { self.bits }
    }
}

/// How an endpoint asks for pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequestSupport {
    /// Groups of requests that can wait for their response at once.
    pub requests_max: u32,
    /// For how long each does, in whole milliseconds; it is answered INVALID then.
    pub timeout: Duration,
}

/// What the driver changed in its tables, and caches may still hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// How much of the domain.
    pub scope: Scope,
    /// Of which caches; at least one.
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
        /// The size of a page in bytes, as its logarithm to base 2: one that all hardware of the domain has.
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

/// What the driver made of a group of page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// The pages are there: the endpoint tries again.
    Success,
    /// One of them is not there: the accesses fail.
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
