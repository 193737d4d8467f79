// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Intel VT-d: first-stage page tables, one for each PASID of a device, and their invalidation.
//!
//! The host's kernel owns the PASID table and does what has to be done to it, and to the caches of devices. To read first:
//! "PASID Table Entry" in Intel's specification of VT-d, and `struct iommu_hwpt_vtd_s1` in `linux/iommufd.h`.

use std::mem::offset_of;

use iommufd_bindings::{
    iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD, iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1,
    iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1, iommu_hwpt_vtd_s1,
    iommu_hwpt_vtd_s1_invalidate, iommu_hwpt_vtd_s1_invalidate_flags_IOMMU_VTD_INV_FLAGS_LEAF,
};
use rustix::io::Errno;
use viommu_core::{Invalidation, Pasid, Scope, Table, TableHardware};
use zerocopy::{Immutable, IntoBytes};

use super::{Description, Format, Member, Nesting, Root};
use crate::device::HwInfo;
use crate::object::Batches;

/// The row.
#[derive(Debug)]
pub struct Vtd;

/// What the kernel gets to know of an invalidation (`struct iommu_hwpt_vtd_s1_invalidate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, Immutable)]
#[repr(C)]
pub struct VtdEntry {
    /// The first address, on a border of 4 KiB.
    pub address: u64,
    /// How many pages of 4 KiB; `u64::MAX` from address 0 on for all.
    pub pages: u64,
    /// 1 if only entries that map pages changed.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct iommu_hwpt_vtd_s1`.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Data {
    flags: u64,
    root: u64,
    address_bits: u32,
    reserved: u32,
}

// The kernel's own structures, whose bytes safe code cannot have.
const _: () = {
    assert!(size_of::<VtdEntry>() == size_of::<iommu_hwpt_vtd_s1_invalidate>());
    assert!(offset_of!(VtdEntry, pages) == offset_of!(iommu_hwpt_vtd_s1_invalidate, npages));
    assert!(offset_of!(VtdEntry, flags) == offset_of!(iommu_hwpt_vtd_s1_invalidate, flags));
    assert!(size_of::<Data>() == size_of::<iommu_hwpt_vtd_s1>());
    assert!(offset_of!(Data, root) == offset_of!(iommu_hwpt_vtd_s1, pgtbl_addr));
    assert!(offset_of!(Data, address_bits) == offset_of!(iommu_hwpt_vtd_s1, addr_width));
};

const PAGE_SHIFT: u8 = 12;

/// `CAP_REG.FL5LP`: tables of five levels.
pub const CAP_FIVE_LEVELS: u64 = 1 << 60;

impl VtdEntry {
    /// All of a page table.
    pub const ALL: VtdEntry = VtdEntry { address: 0, pages: u64::MAX, flags: 0, reserved: 0 };

    /// Of a page table that the invalidation concerns.
    pub fn of(invalidation: &Invalidation) -> VtdEntry {
        let Scope::Addresses { start, pages, page_shift, .. } = invalidation.scope else {
            return VtdEntry::ALL;
        };
        let pages = pages << (page_shift - PAGE_SHIFT);
        // The kernel counts bytes, and cannot count all of them.
        if pages >= 1 << (u64::BITS - u32::from(PAGE_SHIFT)) {
            return VtdEntry::ALL;
        }
        let flags =
            if invalidation.leaf { iommu_hwpt_vtd_s1_invalidate_flags_IOMMU_VTD_INV_FLAGS_LEAF } else { 0 };
        VtdEntry { address: start, pages, flags, reserved: 0 }
    }
}

impl Format for Vtd {
    fn hardware(&self) -> u32 {
        iommu_hw_info_type_IOMMU_HW_INFO_TYPE_INTEL_VTD
    }

    fn nesting(&self) -> Nesting {
        Nesting::Parent
    }

    fn description(&self, table: &Table) -> Option<Description> {
        let Table::IntelPt { flags, root, address_bits } = *table else { return None };
        let data = Data { flags, root: root.0, address_bits, reserved: 0 };
        Some(Description {
            data_type: iommu_hwpt_data_type_IOMMU_HWPT_DATA_VTD_S1,
            data: data.as_bytes().to_vec(),
            root: Some(Root::of(root.0, 1 << PAGE_SHIFT)),
        })
    }

    fn check(&self, info: &HwInfo, table: &Table, pasid: Option<Pasid>) -> Result<(), Errno> {
        let Table::IntelPt { root, address_bits, .. } = *table else { return Err(Errno::INVAL) };
        let (capabilities, _) = told(info, false);
        let has_width = match address_bits {
            48 => true,
            57 => capabilities & CAP_FIVE_LEVELS != 0,
            _ => false,
        };
        if !has_width || root.0 % (1 << PAGE_SHIFT) != 0 {
            return Err(Errno::INVAL);
        }
        check_pasid(info, pasid)
    }

    fn add_entries(&self, _: &HwInfo, invalidation: &Invalidation, _: &[Member], to: &mut Batches) {
        let data_type = iommu_hwpt_invalidate_data_type_IOMMU_HWPT_INVALIDATE_DATA_VTD_S1;
        let [all, ..] = to;
        if !invalidation.caches.is_empty() {
            all.extend(data_type, [VtdEntry::of(invalidation)]);
        }
    }

    fn has_page_requests(&self, info: &HwInfo) -> bool {
        u64::from(info.word(16)) & ECAP_PAGE_REQUESTS != 0
    }

    fn told(&self, info: &HwInfo, ats: bool) -> TableHardware {
        let (cap, ecap) = told(info, ats);
        TableHardware::IntelVtd { flags: info.word(0), cap, ecap }
    }
}

/// `ECAP_REG.DT`, `NEST`, `PRS` and `PASID`: what is a matter of the device too, or of the host's alone.
const ECAP_DEVICE_TLB: u64 = 1 << 2;
const ECAP_NESTING: u64 = 1 << 26;
const ECAP_PAGE_REQUESTS: u64 = 1 << 29;
const ECAP_PASID: u64 = 1 << 40;
/// `ECAP_REG.PSS`: how many.
const ECAP_PASID_BITS: u64 = 0x1f << 35;

/// The registers as they are for a device, and as a guest may know them.
fn told(info: &HwInfo, ats: bool) -> (u64, u64) {
    let word = |offset| u64::from(info.word(offset)) | u64::from(info.word(offset + 4)) << 32;
    let mut hidden = ECAP_NESTING;
    if !ats {
        hidden |= ECAP_DEVICE_TLB | ECAP_PAGE_REQUESTS;
    }
    if info.pasid_bits == 0 {
        hidden |= ECAP_PASID;
    }
    (word(8), word(16) & !hidden)
}

/// The registers for a guest that can use no PASIDs.
pub(super) fn without_pasids(hardware: TableHardware) -> TableHardware {
    match hardware {
        TableHardware::IntelVtd { flags, cap, ecap } => {
            let hidden = ECAP_PAGE_REQUESTS | ECAP_PASID_BITS | ECAP_PASID;
            TableHardware::IntelVtd { flags, cap, ecap: ecap & !hidden }
        }
        other => other,
    }
}

/// Whether the device can have a PASID. The kernel does not say if it cannot have any.
pub(super) fn check_pasid(info: &HwInfo, pasid: Option<Pasid>) -> Result<(), Errno> {
    let pasids = 1u32.checked_shl(info.pasid_bits.into()).unwrap_or(u32::MAX);
    match pasid {
        // The kernel has the device itself there.
        Some(Pasid(0)) => Err(Errno::RANGE),
        Some(Pasid(number)) if info.pasid_bits == 0 || number >= pasids => Err(Errno::RANGE),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use viommu_core::{Caches, Gpa};

    use super::*;
    use crate::object::Entries;

    fn info(pasid_bits: u8, capabilities: u64) -> HwInfo {
        let mut data = vec![0; 24];
        data[8..16].copy_from_slice(&capabilities.to_ne_bytes());
        HwInfo { data_type: 1, data, pasid_bits, capabilities: 0 }
    }

    fn table(root: u64, address_bits: u32) -> Table {
        Table::IntelPt { flags: 5, root: Gpa(root), address_bits }
    }

    fn invalidation(scope: Scope, leaf: bool) -> Invalidation {
        Invalidation { scope, caches: Caches::TLB, leaf, id: None, global: false }
    }

    #[test]
    fn a_table_is_handed_over_as_the_kernel_takes_it() {
        let description = Vtd.description(&table(0x1234_5678_9000, 57)).expect("it is one");
        let root = 0x1234_5678_9000u64.to_ne_bytes();
        let expected = [5u64.to_ne_bytes(), root, 57u64.to_ne_bytes()].as_flattened().to_vec();
        assert_eq!((description.data_type, description.data), (1, expected));
        assert_eq!(description.root, Some(Root::of(0x1234_5678_9000, 4096)));
        let last = Vtd.description(&table(u64::MAX - 0xfff, 57)).expect("it is one");
        assert_eq!(last.root, Some(Root::of(u64::MAX - 0xfff, 4096)));
        assert_eq!(Vtd.description(&Table::ArmSmmu3 { ste: [0; 2] }), None);
    }

    #[test]
    fn a_root_beyond_the_last_address_is_nowhere() {
        let description = Vtd.description(&table(u64::MAX - 7, 48)).expect("it is one");
        assert_eq!(description.root, Some(Root::Beyond));
    }

    #[test]
    fn what_the_kernel_would_not_notice_is_refused_before() {
        let (few, many) = (info(0, 0), info(16, CAP_FIVE_LEVELS));
        for (info, table, pasid, expected) in [
            (&few, table(0x1000, 48), None, Ok(())),
            (&few, table(0x1000, 57), None, Err(Errno::INVAL)),
            (&many, table(0x1000, 57), None, Ok(())),
            (&many, table(0x1000, 39), None, Err(Errno::INVAL)),
            (&many, table(0x1001, 48), None, Err(Errno::INVAL)),
            (&few, table(0x1000, 48), Some(1), Err(Errno::RANGE)),
            (&many, table(0x1000, 48), Some(0), Err(Errno::RANGE)),
            (&many, table(0x1000, 48), Some(0xffff), Ok(())),
            (&many, table(0x1000, 48), Some(0x1_0000), Err(Errno::RANGE)),
        ] {
            assert_eq!(Vtd.check(info, &table, pasid.map(Pasid)), expected, "{table:?} {pasid:?}");
        }
    }

    #[test]
    fn a_guest_knows_of_the_registers_what_it_may() {
        let words = [0x11, 0x22, 0x3333, 0x4444];
        let info = |pasid_bits, words: [u32; 4]| {
            let [flags, reserved, low, high] = words;
            let data = [flags, reserved, low, high, u32::MAX, u32::MAX]
                .map(u32::to_ne_bytes)
                .as_flattened()
                .to_vec();
            HwInfo { data_type: 1, data, pasid_bits, capabilities: 0 }
        };
        let of = |pasid_bits, ats| Vtd.told(&info(pasid_bits, words), ats);
        let told = |ecap| TableHardware::IntelVtd { flags: 0x11, cap: 0x4444_0000_3333, ecap };
        assert_eq!(of(20, true), told(!(1 << 26)));
        assert_eq!(of(0, true), told(!(1 << 26 | 1 << 40)));
        assert_eq!(of(20, false), told(!(1 << 26 | 1 << 29 | 1 << 2)));
        assert!(Vtd.has_page_requests(&info(0, words)));
        assert!(!Vtd.has_page_requests(&super::tests::info(0, 0)));
    }

    #[test]
    fn addresses_are_counted_in_pages_of_4_kib() {
        let of = |start, pages, page_shift, leaf| {
            VtdEntry::of(&invalidation(Scope::Addresses { pasid: None, start, pages, page_shift }, leaf))
        };
        let entry = |address, pages, flags| VtdEntry { address, pages, flags, reserved: 0 };
        assert_eq!(of(0x1000, 3, 12, true), entry(0x1000, 3, 1));
        assert_eq!(of(0x20_0000, 3, 21, false), entry(0x20_0000, 3 << 9, 0));
        assert_eq!(of(0, 1 << 22, 30, false), entry(0, 1 << 40, 0));
        assert_eq!(of(0, (1 << 52) - 1, 12, true), entry(0, (1 << 52) - 1, 1));
        assert_eq!(of(0, 1 << 52, 12, true), VtdEntry::ALL);
        assert_eq!(of(0, 2, 63, true), VtdEntry::ALL);
        assert_eq!(VtdEntry::of(&invalidation(Scope::Domain, true)), VtdEntry::ALL);
        assert_eq!(VtdEntry::of(&invalidation(Scope::Pasid(Pasid(3)), true)), VtdEntry::ALL);
        assert_eq!(VtdEntry::ALL, entry(0, u64::MAX, 0));
    }

    #[test]
    fn an_invalidation_is_one_entry() {
        let of_domain = invalidation(Scope::Domain, false);
        let bytes = [0u64, u64::MAX, 0].map(u64::to_ne_bytes);
        let mut batches = Batches::default();
        Vtd.add_entries(&info(0, 0), &of_domain, &[], &mut batches);
        let expected = [Entries::of(0, &[bytes]), Entries::default(), Entries::default()];
        assert_eq!(batches, expected);
        let nothing = Invalidation { caches: Caches::empty(), ..of_domain };
        Vtd.add_entries(&info(0, 0), &nothing, &[], &mut batches);
        assert_eq!(batches, expected);
    }

    #[test]
    fn an_invalidation_concerns_the_tables_that_it_names() {
        let of = |scope| {
            [None, Some(Pasid(1)), Some(Pasid(2))]
                .map(|pasid| super::super::concerns(&invalidation(scope, false), pasid))
        };
        let addresses = |pasid| Scope::Addresses { pasid, start: 0, pages: 1, page_shift: 12 };
        assert_eq!(of(Scope::Domain), [true; 3]);
        assert_eq!(of(addresses(None)), [true; 3]);
        assert_eq!(of(Scope::Pasid(Pasid(1))), [false, true, false]);
        assert_eq!(of(addresses(Some(Pasid(2)))), [false, false, true]);
        assert_eq!(of(Scope::Pasid(Pasid(0))), [true, false, false], "accesses without a PASID");
    }
}
