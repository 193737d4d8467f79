// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arm SMMUv3: the guest's stream table entries, and the commands that invalidate.
//!
//! To read first: "Stream Table Entry", "Commands" and "Event records" in Arm's specification of the SMMUv3 (IHI 0070).
//! Words are little endian in memory and the CPU's own here.

mod commands;
mod event;

use iommufd_bindings::{
    iommu_hw_info_type_IOMMU_HW_INFO_TYPE_ARM_SMMUV3, iommu_hwpt_data_type_IOMMU_HWPT_DATA_ARM_SMMUV3,
    iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3,
    iommu_veventq_type_IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, iommu_viommu_type_IOMMU_VIOMMU_TYPE_ARM_SMMUV3,
};
use rustix::io::Errno;
use viommu_core::{Invalidation, Pasid, Table, TableFault, TableHardware};

use super::{Description, Format, Member, Nesting, Root};
use crate::device::HwInfo;
use crate::object::{Batches, Entries};

pub use commands::{PAGES_MAX, SmmuCommand, add_commands};
use event::{EVENT_BYTES, event};

/// The row.
#[derive(Debug)]
pub struct ArmSmmu3;

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

    fn add_entries(&self, info: &HwInfo, invalidation: &Invalidation, members: &[Member], to: &mut Batches) {
        add_commands(invalidation, members, Abilities::of(info), &mut to.each_mut().map(Commands));
    }

    fn repetitions(&self, info: &HwInfo) -> usize {
        if Abilities::of(info).repeat { 2 } else { 1 }
    }

    fn event(&self, record: &[u8]) -> Option<TableFault> {
        let (words, _) = record.as_chunks::<8>();
        let [first, second, third, _] = words else { return None };
        Some(event([first, second, third].map(|word| u64::from_le_bytes(*word))))
    }

    fn pasid_bits(&self, info: &HwInfo) -> u8 {
        let of_iommu = Abilities::of(info).substream_bits;
        u32::from(info.pasid_bits).min(of_iommu) as u8
    }

    /// To it that is an address like any other; the host translates it after that.
    fn translates_interrupts(&self) -> bool {
        true
    }

    fn told(&self, info: &HwInfo, ats: bool) -> TableHardware {
        TableHardware::ArmSmmu3 { idr: told(std::array::from_fn(|number| info.word(8 + 4 * number)), ats) }
    }
}

/// Commands as iommufd takes them.
struct Commands<'a>(&'a mut Entries);

impl Extend<SmmuCommand> for Commands<'_> {
    fn extend<C: IntoIterator<Item = SmmuCommand>>(&mut self, commands: C) {
        let data_type = iommu_hwpt_invalidate_data_type_IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
        self.0.extend(data_type, commands.into_iter().map(|command| command.map(u64::to_le_bytes)));
    }
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

/// Fields of the registers that user space may go by (`struct iommu_hw_info_arm_smmuv3`). `SMMU_IDR0`: `TTF`, `ASID16`,
/// `CD2L`, `TTENDIAN`, `STALL_MODEL`, `TERM_MODEL`, `ST_LEVEL`; `SMMU_IDR1`: `SIDSIZE`, `SSIDSIZE`; `SMMU_IDR3`: `RIL`, `BBML`;
/// `SMMU_IDR5`: the granules, `DS`, `VAX`, and besides `OAS`, without which a guest cannot say how large its addresses are.
const TOLD: [u32; 6] = [
    3 << 2 | 1 << 12 | 1 << 19 | 3 << 21 | 3 << 24 | 1 << 26 | 3 << 27,
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

/// The registers as a guest may know them.
fn told(idr: [u32; 6], ats: bool) -> [u32; 6] {
    let mut told: [u32; 6] = std::array::from_fn(|number| idr[number] & TOLD[number]);
    told[0] |= STAGE_1_AND_COHERENT | if ats { idr[0] & IDR0_ATS } else { 0 };
    told
}

#[cfg(test)]
mod tests;
