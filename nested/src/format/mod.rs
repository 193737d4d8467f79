// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Vendors' stage-1 tables: what iommufd wants to know of them, and what it says of them.
//!
//! One file for each vendor and a row in [`FORMATS`]. Pure translation: nothing here calls the kernel.

pub mod arm_smmu3;
mod facts;
#[cfg(feature = "mock")]
pub mod mock;
pub mod vtd;

use std::fmt;

use rustix::io::Errno;
use viommu_core::{Invalidation, IovaRange, Pasid, Scope, Table, TableFault, TableHardware};

use crate::device::HwInfo;
use crate::object::Batches;

pub use facts::{HostFacts, TableFacts};

/// A vendor's tables.
pub trait Format: fmt::Debug + Send + Sync {
    /// The hardware that walks them (`enum iommu_hw_info_type`).
    fn hardware(&self) -> u32;

    /// What the nested page tables are made on.
    fn nesting(&self) -> Nesting;

    /// What iommufd gets to know of a table; nothing if it is in another format.
    fn description(&self, table: &Table) -> Option<Description>;

    /// Whether the hardware can use a table for this PASID, as far as that is known before the kernel is asked.
    ///
    /// # Errors
    /// EINVAL for a table that it cannot walk, ERANGE for a PASID that the device cannot have.
    fn check(&self, info: &HwInfo, table: &Table, pasid: Option<Pasid>) -> Result<(), Errno>;

    /// Adds the entries that invalidate what is said, for the vIOMMU of these devices or, without one, for one nested
    /// page table. They mean the same whatever is in their batch before and after them, and are no more than some thousands
    /// and a few for each device.
    fn add_entries(&self, info: &HwInfo, invalidation: &Invalidation, members: &[Member], to: &mut Batches);

    /// How often the hardware has to be told.
    fn repetitions(&self, _: &HwInfo) -> usize {
        1
    }

    /// What a record from the event queue says; the endpoint is the device's number in its vIOMMU.
    fn event(&self, _: &[u8]) -> Option<TableFault> {
        None
    }

    /// Bits of a PASID that the guest can use for a device.
    fn pasid_bits(&self, info: &HwInfo) -> u8 {
        info.pasid_bits
    }

    /// Whether the kernel hands page requests of PCI devices on.
    fn has_page_requests(&self, _: &HwInfo) -> bool {
        false
    }

    /// Whether the guest's tables translate where devices write interrupts.
    fn translates_interrupts(&self) -> bool {
        false
    }

    /// The hardware as a guest may know it, for a device that has ATS or not.
    fn told(&self, info: &HwInfo, ats: bool) -> TableHardware;
}

/// What nested page tables are made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nesting {
    /// The parent itself: a page table for each PASID, which are invalidated one by one.
    Parent,
    /// A vIOMMU, which is what invalidations go to. Tables of PASIDs are the guest's own matter.
    Viommu {
        /// `enum iommu_viommu_type`.
        viommu_type: u32,
        /// Bytes of what the kernel is told with it, all 0.
        data_bytes: usize,
        /// `enum iommu_veventq_type`.
        event_type: u32,
        /// Bytes of an event.
        event_bytes: usize,
    },
}

/// What iommufd gets to know of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// `enum iommu_hwpt_data_type`.
    pub data_type: u32,
    /// What the type says.
    pub data: Vec<u8>,
    /// The GPAs where hardware begins to walk, if it walks anything. Nothing stands for those that do not exist.
    pub root: Option<Root>,
}

/// Where a table begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// At these GPAs.
    At(IovaRange),
    /// Beyond the last GPA there is.
    Beyond,
}

impl Root {
    /// That many bytes.
    fn of(start: u64, bytes: u64) -> Root {
        IovaRange::from_length(start, bytes).map_or(Root::Beyond, Root::At)
    }
}

/// A device that is concerned by an invalidation of its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number in its vIOMMU.
    pub number: u64,
    /// What it uses.
    pub table: Table,
}

/// All formats.
pub const FORMATS: &[&dyn Format] = &[
    &arm_smmu3::ArmSmmu3,
    &vtd::Vtd,
    #[cfg(feature = "mock")]
    &mock::InViommu,
    #[cfg(feature = "mock")]
    &mock::OnParent,
];

/// The format of a table, if hardware of this kind has it.
pub fn of(info: &HwInfo, table: &Table) -> Option<&'static dyn Format> {
    let mut found = FORMATS.iter().filter(|format| format.hardware() == info.data_type);
    found.find(|format| format.description(table).is_some()).copied()
}

/// Whether an invalidation is about a table of this PASID. To VT-d accesses without a PASID have number 0.
pub fn concerns(invalidation: &Invalidation, pasid: Option<Pasid>) -> bool {
    let of = match invalidation.scope {
        Scope::Domain | Scope::Addresses { pasid: None, .. } => return true,
        Scope::Pasid(of) | Scope::Addresses { pasid: Some(of), .. } => of,
    };
    pasid.unwrap_or(Pasid(0)) == of
}
