// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Arm SMMUv3: a stream table entry, which names a table of context descriptors that is the guest's.
//!
//! Read beside it: Arm IHI 0070, "Stream Table Entry" and "SMMU_IDR0" to "SMMU_IDR5"; `struct
//! iommu_hwpt_arm_smmuv3` of the kernel, which takes the same two words and the same fields.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use crate::{Reject, Table, TableHardware, TableSupport, wire};

use super::Described;

/// The fields of the first word: V, Config, S1Fmt, S1ContextPtr, S1CDMax.
const WORD0: u64 = 1 | 0x7 << 1 | 0x3 << 4 | 0x000f_ffff_ffff_ffc0 | 0x1f << 59;
/// The fields of the second: S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS.
const WORD1: u64 = 0xff | 1 << 27 | 0x3 << 28;

const CONFIG_ABORT: u64 = 0b000;
const CONFIG_BYPASS: u64 = 0b100;
const CONFIG_STAGE1: u64 = 0b101;

/// `SMMU_IDR0.CD2L`: tables of context descriptors can have two levels.
const IDR0_CD2L: u32 = 1 << 19;

pub(super) fn parse(descriptor: &[u8; wire::DESCRIPTOR_SIZE]) -> Result<Described, Reject> {
    let wire = wire::DescriptorArmSmmu3::read_from_bytes(descriptor).map_err(|_| Reject::Reserved)?;
    let ste = [wire.ste0.get(), wire.ste1.get()];
    let [word0, word1] = ste;
    //= tables#ATTACH_TABLE T11 T15a
    // What is no field of stage 1, or holds what no field can, is refused before it reaches hardware.
    let is_reserved = wire.reserved != [0; 3]
        || wire.reserved1 != [0; 92]
        || word0 & !WORD0 != 0
        || word1 & !WORD1 != 0
        || word0 & 1 == 0;
    let is_bad_field = match field(word0, 1, 3) {
        CONFIG_ABORT | CONFIG_BYPASS => false,
        CONFIG_STAGE1 => field(word0, 4, 2) == 3 || field(word1, 0, 2) == 3,
        _ => true,
    };
    if is_reserved || is_bad_field || field(word1, 28, 2) > 1 {
        return Err(Reject::Reserved);
    }
    Ok(Described { table: Table::ArmSmmu3 { ste }, pasid: None })
}

pub(super) fn check(table: &Table, support: &TableSupport) -> Result<(), Reject> {
    let (Table::ArmSmmu3 { ste: [word0, word1] }, TableHardware::ArmSmmu3 { idr }) =
        (*table, support.hardware)
    else {
        return Err(Reject::HardwareLacks("tables of this format"));
    };
    //= tables#ATTACH_TABLE T15b
    // EATS of an endpoint that has no ATS would have it ask for translations in vain, or be trusted with what it is not.
    if field(word1, 28, 2) == 1 && !support.ats {
        return Err(Reject::HardwareLacks("ATS"));
    }
    if field(word0, 1, 3) != CONFIG_STAGE1 {
        return Ok(());
    }
    //= tables#ATTACH_TABLE T15c T15d
    // Hardware takes a bad S1CDMax for a bad entry, and says so only when the endpoint comes.
    let [idr0, idr1, ..] = idr;
    let cd_bits = field(word0, 59, 5);
    if cd_bits > u64::from(substream_bits(idr1)) {
        return Err(Reject::PasidBits(cd_bits));
    }
    if cd_bits > 0 && field(word0, 4, 2) != 0 && idr0 & IDR0_CD2L == 0 {
        return Err(Reject::HardwareLacks("tables of context descriptors with two levels"));
    }
    Ok(())
}

pub(super) fn property(hardware: &TableHardware) -> Vec<u8> {
    let TableHardware::ArmSmmu3 { idr: [idr0, idr1, _, idr3, _, idr5] } = *hardware else {
        return Vec::new();
    };
    const LENGTH: u16 = (size_of::<wire::HwArmSmmu3>() - wire::PROPERTY_HEADER_SIZE) as u16;
    let property = wire::HwArmSmmu3 {
        kind: wire::PROPERTY_T_HW_ARM_SMMU3.into(),
        length: LENGTH.into(),
        reserved: [0; 4],
        idr0: u64::from(idr0).into(),
        idr1: u64::from(idr1).into(),
        reserved1: [0; 8],
        idr3: u64::from(idr3).into(),
        reserved2: [0; 8],
        idr5: u64::from(idr5).into(),
    };
    property.as_bytes().to_vec()
}

/// Pages and blocks of each granule that `SMMU_IDR5` names.
pub(super) fn page_sizes(hardware: &TableHardware) -> u64 {
    let TableHardware::ArmSmmu3 { idr: [.., idr5] } = *hardware else { return 0 };
    let granules: [(u32, u64); 3] =
        [(1 << 4, 1 << 12 | 1 << 21 | 1 << 30), (1 << 5, 1 << 14 | 1 << 25), (1 << 6, 1 << 16 | 1 << 29)];
    granules.iter().filter(|(bit, _)| idr5 & bit != 0).fold(0, |sizes, (_, more)| sizes | more)
}

/// The guest's tables say which PASIDs there are.
pub(super) fn pasids_end(support: &TableSupport) -> u32 {
    let TableHardware::ArmSmmu3 { idr: [_, idr1, ..] } = support.hardware else { return 0 };
    1u32.wrapping_shl(substream_bits(idr1).min(20))
}

/// `SMMU_IDR1.SSIDSIZE`.
fn substream_bits(idr1: u32) -> u32 {
    idr1.wrapping_shr(6) & 0x1f
}

/// A field of so many bits from bit `low` of a word.
fn field(word: u64, low: u32, bits: u32) -> u64 {
    word.wrapping_shr(low) & !u64::MAX.wrapping_shl(bits)
}
