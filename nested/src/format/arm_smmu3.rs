// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arm SMMUv3: the guest's stream table entries, and the commands that invalidate.
//!
//! To read first: "Stream Table Entry", "Commands" and "Event records" in Arm's specification of the SMMUv3 (IHI 0070).
//! Words are little endian in memory and the CPU's own here.

use iommufd_bindings::{
    iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3, iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
    iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
    iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
};
use rustix::io::Errno;
use viommu_core::{
    Caches, EndpointId, Invalidation, Pasid, Scope, Table, TableAccess, TableFault, TableFaultReason,
    TableHardware,
};

use super::{Description, Format, Member, Nesting, Root};
use crate::device::HwInfo;
use crate::object::Entries;

/// The row.
#[derive(Debug)]
pub struct ArmSmmu3;

/// A command: two words.
pub type SmmuCommand = [u64; 2];

/// What commands depend on of the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// Whether it knows commands for ranges (`SMMU_IDR3.RIL`).
    pub ranges: bool,
    /// Bits of a SubstreamID (`SMMU_IDR1.SSIDSIZE`).
    pub substream_bits: u32,
    /// Whether every batch has to be done twice (`IOMMU_HW_INFO_ARM_SMMUV3_ERRATA_REPEAT_TLBI_CFGI`).
    pub repeat: bool,
}

/// Pages that are invalidated one by one, at most. More of them are invalidated with all of their address space, which
/// costs the guest misses and the host less.
pub const PAGES_MAX: u64 = 8192;

impl Format for ArmSmmu3 {
    fn hardware(&self) -> u32 {
        iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3
    }

    fn nesting(&self) -> Nesting {
        Nesting::Viommu {
            viommu_type: iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
            data_bytes: 0,
            event_type: iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3,
            event_bytes: EVENT_BYTES,
        }
    }

    fn description(&self, table: &Table) -> Option<Description> {
        let Table::ArmSmmu3 { ste } = table else { return None };
        let data = ste.map(u64::to_le_bytes).as_flattened().to_vec();
        let data_type = iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3;
        Some(Description { data_type, data, root: root(*ste) })
    }

    fn check(&self, _: &HwInfo, _: &Table, pasid: Option<Pasid>) -> Result<(), Errno> {
        // They are in the table that the entry names.
        if pasid.is_some() { Err(Errno::INVAL) } else { Ok(()) }
    }

    fn entries(&self, info: &HwInfo, invalidation: &Invalidation, members: &[Member]) -> Vec<Entries> {
        let data_type = iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
        let batches = commands(invalidation, members, Abilities::of(info));
        let batches = batches.into_iter().filter(|commands| !commands.is_empty());
        batches
            .map(|commands| Entries::of(data_type, &commands.iter().map(le_bytes).collect::<Vec<_>>()))
            .collect()
    }

    fn repetitions(&self, info: &HwInfo) -> usize {
        if Abilities::of(info).repeat { 2 } else { 1 }
    }

    fn event(&self, record: &[u8]) -> Option<TableFault> {
        let (words, _) = record.as_chunks::<8>();
        let [first, second, third, _] = words else { return None };
        Some(event([first, second, third].map(|word| u64::from_le_bytes(*word))))
    }

    fn told(&self, info: &HwInfo, ats: bool) -> TableHardware {
        TableHardware::ArmSmmu3 { idr: told(std::array::from_fn(|number| info.word(8 + 4 * number)), ats) }
    }
}

fn le_bytes(command: &SmmuCommand) -> [[u8; 8]; 2] {
    command.map(u64::to_le_bytes)
}

impl Abilities {
    /// By `struct iommu_hw_info_arm_smmuv3`.
    pub fn of(info: &HwInfo) -> Abilities {
        let register = |number: usize| info.word(8 + 4 * number);
        Abilities {
            ranges: register(3) & IDR3_RIL != 0 && !cfg!(feature = "no-ranges"),
            substream_bits: register(1) >> 6 & 0x1f,
            repeat: info.word(0) & ERRATA_REPEAT_TLBI_CFGI != 0,
        }
    }
}

/// `SMMU_IDR3.RIL`.
pub const IDR3_RIL: u32 = 1 << 10;
/// Since Linux 7.3.
const ERRATA_REPEAT_TLBI_CFGI: u32 = 1;

/// `STE.Config` of an entry with stage 1.
const CONFIG_STAGE_1: u64 = 0b101;
/// `STE.S1ContextPtr`.
const CONTEXT_POINTER: u64 = 0x000f_ffff_ffff_ffc0;
/// Bytes of a context descriptor.
const DESCRIPTOR_BYTES: u64 = 64;

/// Whether the entry names context descriptors.
fn has_descriptors(ste: [u64; 2]) -> bool {
    ste[0] >> 1 & 7 == CONFIG_STAGE_1
}

/// Whether the device may ask for translations (`STE.EATS`).
fn has_ats(ste: [u64; 2]) -> bool {
    ste[1] >> 28 & 3 == 1
}

/// The table of context descriptors, or its first level.
fn root(ste: [u64; 2]) -> Option<Root> {
    let (format, descriptors_lg2) = (ste[0] >> 4 & 3, ste[0] >> 59);
    let bytes = match format {
        // All of them in a row.
        0 => DESCRIPTOR_BYTES << descriptors_lg2,
        // Pointers of eight bytes to leaves of 4 KiB, or of 64 KiB.
        1 => 8 << descriptors_lg2.saturating_sub(6),
        _ => 8 << descriptors_lg2.saturating_sub(10),
    };
    has_descriptors(ste).then(|| Root::of(ste[0] & CONTEXT_POINTER, bytes))
}

/// Fields of `SMMU_IDR0`, 1, 3 and 5 that user space may go by (`struct iommu_hw_info_arm_smmuv3`): `TTF`, `ASID16`, `CD2L`,
/// `TTENDIAN`, `TERM_MODEL` and `ST_LEVEL`; `SIDSIZE` and `SSIDSIZE`; `RIL` and `BBML`; the granules, `DS` and `VAX`; and
/// `OAS`, without which a guest cannot say how large its addresses are.
const TOLD: [u32; 6] = [
    3 << 2 | 1 << 12 | 1 << 19 | 3 << 21 | 1 << 26 | 3 << 27,
    0x3f | 0x1f << 6,
    0,
    IDR3_RIL | 3 << 11,
    0,
    7 | 7 << 4 | 1 << 7 | 3 << 10,
];
/// `SMMU_IDR0.S1P` and `COHACC`: there is no nesting without.
const STAGE_1_AND_COHERENT: u32 = 1 << 1 | 1 << 4;
/// `SMMU_IDR0.ATS`.
const IDR0_ATS: u32 = 1 << 10;
/// `SMMU_IDR0.STALL_MODEL`: accesses that fail do not wait for anybody.
const NO_STALLS: u32 = 1 << 24;

/// The registers as a guest may know them.
fn told(idr: [u32; 6], ats: bool) -> [u32; 6] {
    let mut told: [u32; 6] = std::array::from_fn(|number| idr[number] & TOLD[number]);
    told[0] |= STAGE_1_AND_COHERENT | NO_STALLS | if ats { idr[0] & IDR0_ATS } else { 0 };
    told
}

const CFGI_CD: u64 = 0x05;
const CFGI_CD_ALL: u64 = 0x06;
const TLBI_NH_ALL: u64 = 0x10;
const TLBI_NH_ASID: u64 = 0x11;
const TLBI_NH_VA: u64 = 0x12;
const TLBI_NH_VAA: u64 = 0x13;
const ATC_INV: u64 = 0x40;

/// `Leaf`, in the second word.
const LEAF: u64 = 1;
/// `ATC_INV.SSV`: the SubstreamID counts. Without it all entries are meant, those of SubstreamIDs too.
const SUBSTREAM_VALID: u64 = 1 << 11;
/// `ATC_INV.Size` of all addresses.
const ATC_ALL: SmmuCommand = [0, 52];

/// The commands for these devices of one IOMMU: what it has of descriptors goes first, then what it has of translations,
/// and then what the devices have. Else one could be filled from another that is still to be emptied.
pub fn commands(
    invalidation: &Invalidation,
    members: &[Member],
    abilities: Abilities,
) -> [Vec<SmmuCommand>; 3] {
    let substream = Substream::of(invalidation, abilities);
    let of_descriptors = invalidation.caches.contains(Caches::PASID);
    let mut commands = [Vec::new(), translations(invalidation, abilities), Vec::new()];
    let [configuration, _, devices] = &mut commands;
    for member in members {
        let Table::ArmSmmu3 { ste } = member.table else { continue };
        if of_descriptors && has_descriptors(ste) {
            configuration.push(substream.configuration(member.number, invalidation.leaf));
        }
        if !invalidation.caches.is_empty() && has_descriptors(ste) && has_ats(ste) {
            let [first, second] = if of_descriptors { ATC_ALL } else { addresses(invalidation.scope) };
            devices.push([first | ATC_INV | substream.of_device() | member.number << 32, second]);
        }
    }
    commands
}

/// The SubstreamIDs concerned.
#[derive(Clone, Copy)]
enum Substream {
    All,
    One(u64),
}

impl Substream {
    fn of(invalidation: &Invalidation, abilities: Abilities) -> Substream {
        match invalidation.scope {
            Scope::Pasid(pasid) | Scope::Addresses { pasid: Some(pasid), .. }
                // The hardware would refuse others.
                if u64::from(pasid.0) < 1 << abilities.substream_bits =>
            {
                Substream::One(pasid.0.into())
            }
            _ => Substream::All,
        }
    }

    fn configuration(self, stream: u64, leaf: bool) -> SmmuCommand {
        match self {
            Substream::All => [CFGI_CD_ALL | stream << 32, 0],
            Substream::One(id) => [CFGI_CD | id << 12 | stream << 32, if leaf { LEAF } else { 0 }],
        }
    }

    /// SubstreamID 0 may be that of accesses without one, which only a command without one is for.
    fn of_device(self) -> u64 {
        match self {
            Substream::All | Substream::One(0) => 0,
            Substream::One(id) => SUBSTREAM_VALID | id << 12,
        }
    }
}

/// The smallest part of all addresses that a device can be told to forget and that has all of these.
fn addresses(scope: Scope) -> SmmuCommand {
    let Scope::Addresses { start, pages, page_shift, .. } = scope else { return ATC_ALL };
    let last = last_of(start, pages, page_shift);
    // As many bits from the lowest on differ.
    let shift = (u64::BITS - (start ^ last).leading_zeros()).max(12);
    if shift == u64::BITS {
        return ATC_ALL;
    }
    [0, start >> shift << shift | u64::from(shift - 12)]
}

fn last_of(start: u64, pages: u64, page_shift: u8) -> u64 {
    let span = u128::from(pages) << page_shift;
    u64::try_from(u128::from(start) + span - 1).unwrap_or(u64::MAX)
}

/// What the IOMMU has of translations. A descriptor that goes takes along what was translated by it.
fn translations(invalidation: &Invalidation, abilities: Abilities) -> Vec<SmmuCommand> {
    let whole = || match invalidation.id {
        Some(id) if !invalidation.global => vec![[TLBI_NH_ASID | u64::from(id) << 48, 0]],
        _ => vec![[TLBI_NH_ALL, 0]],
    };
    match invalidation.scope {
        _ if invalidation.caches.is_empty() => Vec::new(),
        Scope::Addresses { start, pages, page_shift, .. } if invalidation.caches == Caches::TLB => {
            let first = match invalidation.id {
                Some(id) => TLBI_NH_VA | u64::from(id) << 48,
                None => TLBI_NH_VAA,
            };
            let command = [first, if invalidation.leaf { LEAF } else { 0 }];
            let ranges = abilities.ranges.then(|| Granule::of(page_shift)).flatten();
            let commands = match ranges {
                Some(granule) => granule.ranges(command, start, pages, page_shift),
                None => each(command, start, pages, page_shift),
            };
            commands.unwrap_or_else(whole)
        }
        _ => whole(),
    }
}

/// A command for each page, unless there are too many of them.
fn each([first, second]: SmmuCommand, start: u64, pages: u64, page_shift: u8) -> Option<Vec<SmmuCommand>> {
    let page = |number: u64| [first, second | (start + (number << page_shift))];
    (pages <= PAGES_MAX).then(|| (0..pages).map(page).collect())
}

/// The granule of tables, which a range is counted in.
#[derive(Clone, Copy)]
struct Granule {
    shift: u8,
    /// `TG`.
    code: u64,
}

impl Granule {
    /// Of tables that have pages or blocks of this size. A size of another kind says nothing of the granule.
    fn of(page_shift: u8) -> Option<Granule> {
        match page_shift {
            12 | 21 | 30 | 39 => Some(Granule { shift: 12, code: 1 }),
            14 | 25 | 36 => Some(Granule { shift: 14, code: 2 }),
            16 | 29 | 42 => Some(Granule { shift: 16, code: 3 }),
            _ => None,
        }
    }

    /// Commands for 1 to 31 times a power of two granules each, unless that takes too many of them.
    fn ranges(
        self,
        [first, second]: SmmuCommand,
        start: u64,
        pages: u64,
        page_shift: u8,
    ) -> Option<Vec<SmmuCommand>> {
        let mut left = pages << (page_shift - self.shift);
        if left >= 32 << SCALE_MAX {
            return None;
        }
        let (mut commands, mut address) = (Vec::new(), start);
        while left > 0 {
            let scale = left.trailing_zeros().min(SCALE_MAX);
            let number = left >> scale & 31;
            commands.push(match (number, scale) {
                // A range of one granule is reserved.
                (1, 0) => [first, second | address],
                _ => {
                    [first | (number - 1) << 12 | u64::from(scale) << 20, second | self.code << 10 | address]
                }
            });
            left -= number << scale;
            address = address.wrapping_add(number << (scale + u32::from(self.shift)));
        }
        Some(commands)
    }
}

/// The greatest `SCALE`.
const SCALE_MAX: u32 = 31;

/// Bytes of an event record.
const EVENT_BYTES: usize = 32;

/// What a record says, by its first three words.
fn event([first, second, third]: [u64; 3]) -> TableFault {
    let has_substream = first & SUBSTREAM_VALID != 0;
    let is_of_stage_2 = second >> 39 & 1 != 0;
    let class = second >> 40 & 3;
    let (reason, has_address) = match first & 0xff {
        // C_BAD_STE, F_STREAM_DISABLED, C_BAD_SUBSTREAMID, C_BAD_CD.
        0x04 | 0x06 | 0x08 | 0x0a => (TableFaultReason::Table, false),
        // Of F_TRANSLATION and the like below, when guest memory itself lacks what is looked for.
        0x10..=0x13 if is_of_stage_2 => match class {
            0 => (TableFaultReason::Table, true),
            1 => (TableFaultReason::PteFetch, true),
            _ => (TableFaultReason::Unknown, true),
        },
        // F_TRANSLATION, F_ADDR_SIZE, F_ACCESS, F_PERMISSION.
        0x10 => (TableFaultReason::Mapping, true),
        0x11 => (TableFaultReason::OutOfRange, true),
        0x12 => (TableFaultReason::Access, true),
        0x13 => (TableFaultReason::Permission, true),
        _ => (TableFaultReason::Unknown, false),
    };
    TableFault {
        endpoint: EndpointId((first >> 32) as u32),
        reason,
        pasid: has_substream.then_some(Pasid((first >> 12 & 0xf_ffff) as u32)),
        address: has_address.then_some(third),
        access: if has_address { access(second) } else { TableAccess::empty() },
    }
}

/// What was tried, by a record's second word.
fn access(word: u64) -> TableAccess {
    let bit = |number: u32| word >> number & 1 != 0;
    let mut access = if bit(35) { TableAccess::READ } else { TableAccess::WRITE };
    access.set(TableAccess::EXEC, bit(34));
    access.set(TableAccess::PRIVILEGED, bit(33));
    access
}

#[cfg(test)]
mod tests;
