// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Intel VT-d: a first-stage page table, of an endpoint or of one of its PASIDs.
//!
//! Read beside it: the VT-d specification, "Scalable-Mode PASID Table Entry" and "Extended Capability Register";
//! `struct iommu_hwpt_vtd_s1` of the kernel, which takes the same fields.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use crate::{Gpa, Pasid, Reject, Table, TableHardware, TableSupport, wire};

use super::Described;

const SRE: u64 = 1 << 0;
const EAFE: u64 = 1 << 1;
const WPE: u64 = 1 << 2;

/// `FS5LP` of the capability register: first-stage tables can have five levels.
const CAP_FIVE_LEVELS: u64 = 1 << 60;
/// `FS1GP`: they can map 1 GiB at once.
const CAP_1GIB: u64 = 1 << 56;
/// `SRS` of the extended capability register: supervisor requests.
const ECAP_SUPERVISOR: u64 = 1 << 31;
/// `EAFS`: the extended accessed flag.
const ECAP_EXTENDED_ACCESSED: u64 = 1 << 34;

pub(super) fn parse(descriptor: &[u8; wire::DESCRIPTOR_SIZE]) -> Result<Described, Reject> {
    let wire = wire::DescriptorIntelPt::read_from_bytes(descriptor).map_err(|_| Reject::Reserved)?;
    //= tables#ATTACH_TABLE T11 T16a
    // Unknown bits, a root that is not on a page, a width that no table has.
    let has_pasid = match wire.attach_flags.get() {
        0 => false,
        wire::ATTACH_TABLE_F_PASID => true,
        unknown => return Err(Reject::UnknownFlags(unknown)),
    };
    let flags = wire.flags.get();
    let (root, address_bits, pasid) = (wire.pgd.get(), wire.addr_width.get(), wire.pasid.get());
    let is_reserved = wire.reserved != [0; 3]
        || wire.reserved1 != [0; 80]
        || flags & !(SRE | EAFE | WPE) != 0
        || root & 0xfff != 0
        || !matches!(address_bits, 48 | 57)
        || (!has_pasid && pasid != 0);
    if is_reserved {
        return Err(Reject::Reserved);
    }
    let table = Table::IntelPt { flags, root: Gpa(root), address_bits };
    Ok(Described { table, pasid: has_pasid.then_some(Pasid(pasid)) })
}

pub(super) fn check(table: &Table, support: &TableSupport) -> Result<(), Reject> {
    let (Table::IntelPt { flags, address_bits, .. }, TableHardware::IntelVtd { cap, ecap, .. }) =
        (*table, support.hardware)
    else {
        return Err(Reject::HardwareLacks("tables of this format"));
    };
    //= tables#ATTACH_TABLE T16b
    // Each asks for a capability of the hardware.
    let needs = [
        (flags & SRE != 0, ecap & ECAP_SUPERVISOR, "supervisor requests"),
        (flags & EAFE != 0, ecap & ECAP_EXTENDED_ACCESSED, "extended accessed flags"),
        (address_bits == 57, cap & CAP_FIVE_LEVELS, "first-stage tables of five levels"),
    ];
    let lacking = needs.iter().find(|(is_needed, has, _)| *is_needed && *has == 0);
    lacking.map_or(Ok(()), |(.., what)| Err(Reject::HardwareLacks(what)))
}

pub(super) fn property(hardware: &TableHardware) -> Vec<u8> {
    let TableHardware::IntelVtd { flags, cap, ecap } = *hardware else { return Vec::new() };
    const LENGTH: u16 = (size_of::<wire::HwIntelVtd>() - wire::PROPERTY_HEADER_SIZE) as u16;
    let property = wire::HwIntelVtd {
        kind: wire::PROPERTY_T_HW_INTEL_VTD.into(),
        length: LENGTH.into(),
        flags: flags.into(),
        cap: cap.into(),
        ecap: ecap.into(),
    };
    property.as_bytes().to_vec()
}

pub(super) fn page_sizes(hardware: &TableHardware) -> u64 {
    let TableHardware::IntelVtd { cap, .. } = *hardware else { return 0 };
    1 << 12 | 1 << 21 | if cap & CAP_1GIB != 0 { 1 << 30 } else { 0 }
}

/// Only what is attached can be named.
pub(super) fn pasids_end(support: &TableSupport) -> u32 {
    support.pasids.map_or(0, |pasids| pasids.end())
}
