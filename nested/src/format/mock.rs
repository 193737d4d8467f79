// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's mock driver, which walks no table: it remembers one word of its description, and has four slots in
//! each of its caches. So two formats come out as one each of its own: SMMUv3's in a vIOMMU, and VT-d's on a parent.
//!
//! A page is in the slot of the lowest two bits of its number. That of a nested page table's cache is filled with the
//! description's word, which is the beginning of the guest's.

use rustix::io::Errno;
use viommu_core::{
    EndpointId, Invalidation, Pasid, Scope, Table, TableAccess, TableFault, TableFaultReason, TableHardware,
};

use super::arm_smmu3::ArmSmmu3;
use super::vtd::{Vtd, check_pasid};
use super::{Description, Format, Member, Nesting};
use crate::device::HwInfo;
use crate::mock::{HW_INFO, HWPT_DATA, INVALIDATE_DATA, VEVENTQ, VIOMMU};
use crate::object::Batches;

/// Tables as SMMUv3 has them.
#[derive(Debug)]
pub struct InViommu;

/// Tables as VT-d has them.
#[derive(Debug)]
pub struct OnParent;

/// Slots of each cache.
const SLOTS: u64 = 4;

/// Flags and slot of what is invalidated: 1 for all slots.
fn slots(invalidation: &Invalidation) -> Vec<[u32; 2]> {
    match invalidation.scope {
        Scope::Addresses { start, pages, page_shift, .. } if pages < SLOTS => {
            let page = |number: u64| (start >> page_shift).wrapping_add(number);
            (0..pages).map(|number| [0, (page(number) % SLOTS) as u32]).collect()
        }
        _ => vec![[1, 0]],
    }
}

/// What the kernel's driver gets to know: the word, and the type of a page table that it makes no difference of.
fn described(word: u64, of_vendor: Description) -> Description {
    let data = [word as u32, 0].map(u32::to_ne_bytes).as_flattened().to_vec();
    Description { data_type: HWPT_DATA, data, root: of_vendor.root }
}

impl Format for InViommu {
    fn hardware(&self) -> u32 {
        HW_INFO
    }

    fn nesting(&self) -> Nesting {
        Nesting::Viommu { viommu_type: VIOMMU, data_bytes: 24, event_type: VEVENTQ, event_bytes: 4 }
    }

    fn description(&self, table: &Table) -> Option<Description> {
        let Table::ArmSmmu3 { ste } = table else { return None };
        Some(described(ste[0], ArmSmmu3.description(table)?))
    }

    fn check(&self, info: &HwInfo, table: &Table, pasid: Option<Pasid>) -> Result<(), Errno> {
        ArmSmmu3.check(info, table, pasid)
    }

    fn add_entries(&self, _: &HwInfo, invalidation: &Invalidation, members: &[Member], to: &mut Batches) {
        let of_all = members.iter().flat_map(|member| {
            slots(invalidation).into_iter().map(|[flags, slot]| [flags, member.number as u32, slot])
        });
        let [all, ..] = to;
        all.extend(INVALIDATE_DATA, of_all);
    }

    fn event(&self, record: &[u8]) -> Option<TableFault> {
        let endpoint = EndpointId(u32::from_ne_bytes(*record.first_chunk()?));
        let (reason, access) = (TableFaultReason::Unknown, TableAccess::empty());
        Some(TableFault { endpoint, pasid: None, address: None, access, reason })
    }

    fn told(&self, _: &HwInfo, _: bool) -> TableHardware {
        // Two granules, ranges, 20 bits of a SubstreamID.
        TableHardware::ArmSmmu3 { idr: [0x0000_001e, 20 << 6 | 32, 0, 1 << 10, 0, 5 << 4 | 5] }
    }
}

impl Format for OnParent {
    fn hardware(&self) -> u32 {
        HW_INFO
    }

    fn nesting(&self) -> Nesting {
        Nesting::Parent
    }

    fn description(&self, table: &Table) -> Option<Description> {
        let Table::IntelPt { root, .. } = *table else { return None };
        Some(described(root.0, Vtd.description(table)?))
    }

    fn check(&self, info: &HwInfo, _: &Table, pasid: Option<Pasid>) -> Result<(), Errno> {
        check_pasid(info, pasid)
    }

    fn add_entries(&self, _: &HwInfo, invalidation: &Invalidation, _: &[Member], to: &mut Batches) {
        let [all, ..] = to;
        all.extend(INVALIDATE_DATA, slots(invalidation));
    }

    fn told(&self, _: &HwInfo, _: bool) -> TableHardware {
        // Pages of 1 GiB and five levels; PASIDs.
        TableHardware::IntelVtd { flags: 0, cap: 1 << 56 | 1 << 60, ecap: 1 << 40 }
    }
}
