// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The formats of stage-1 tables, a vendor each: lay the table beside [`manual::tables`](crate::manual::tables).
//!
//! A vendor is a file here and a row below, and what is of its kind in [`Table`], [`TableFormat`] and [`TableHardware`].
//! Nothing else asks which vendor it is.

mod arm_smmu3;
mod intel_pt;

use alloc::vec::Vec;

use crate::{Pasid, Reject, Table, TableFormat, TableHardware, TableSupport, wire};

/// What a descriptor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) table: Table,
    /// For which PASID, if for one.
    pub(crate) pasid: Option<Pasid>,
}

/// One format.
pub(crate) struct Format {
    format: TableFormat,
    /// `format` of ATTACH_TABLE.
    number: u8,
    /// Reads a descriptor; refuses what is wrong by itself.
    parse: fn(&[u8; wire::DESCRIPTOR_SIZE]) -> Result<Described, Reject>,
    /// Refuses what this endpoint's hardware cannot do.
    check: fn(&Table, &TableSupport) -> Result<(), Reject>,
    /// The property that describes the hardware.
    property: fn(&TableHardware) -> Vec<u8>,
    /// The page sizes that an INVALIDATE may name, one bit each.
    page_sizes: fn(&TableHardware) -> u64,
    /// The end of the PASIDs that an INVALIDATE may name.
    pasids_end: fn(&TableSupport) -> u32,
    /// Bits of the architecture's numbers of address spaces; 0 if it has none.
    pub(crate) id_bits: u8,
    /// Whether the table of the endpoint holds those of its PASIDs, so that none of these is attached by itself.
    pub(crate) holds_pasids: bool,
}

#[rustfmt::skip]
static FORMATS: [Format; 2] = [
    Format { format: TableFormat::ArmSmmu3, number: wire::FORMAT_ARM_SMMU3, id_bits: 16, holds_pasids: true,
             parse: arm_smmu3::parse, check: arm_smmu3::check, property: arm_smmu3::property,
             page_sizes: arm_smmu3::page_sizes, pasids_end: arm_smmu3::pasids_end },
    Format { format: TableFormat::IntelPt,  number: wire::FORMAT_INTEL_PT,  id_bits: 0,  holds_pasids: false,
             parse: intel_pt::parse,  check: intel_pt::check,  property: intel_pt::property,
             page_sizes: intel_pt::page_sizes,  pasids_end: intel_pt::pasids_end },
];

impl TableFormat {
    pub(crate) fn row(self) -> &'static Format {
        // Cannot miss: each has its row, which a test says.
        let [first, ..] = &FORMATS;
        FORMATS.iter().find(|row| row.format == self).unwrap_or(first)
    }
}

impl TableSupport {
    /// Refuses a table that this endpoint's hardware cannot walk.
    pub(crate) fn check(&self, table: &Table) -> Result<(), Reject> {
        //= tables#ATTACH_TABLE T13a
        // Hardware walks the tables of one vendor.
        if self.hardware.format() != table.format() {
            return Err(Reject::HardwareLacks("tables of this format"));
        }
        (table.format().row().check)(table, self)
    }

    pub(crate) fn page_sizes(&self) -> u64 {
        (self.hardware.format().row().page_sizes)(&self.hardware)
    }

    pub(crate) fn pasids_end(&self) -> u32 {
        (self.hardware.format().row().pasids_end)(self)
    }

    pub(crate) fn hardware_property(&self) -> Vec<u8> {
        (self.hardware.format().row().property)(&self.hardware)
    }
}

/// Reads a descriptor of the format with this number.
pub(crate) fn parse(number: u8, descriptor: &[u8; wire::DESCRIPTOR_SIZE]) -> Result<Described, Reject> {
    //= tables#ATTACH_TABLE T13a
    // A number that no vendor has.
    let row = FORMATS.iter().find(|row| row.number == number).ok_or(Reject::UnknownFormat(number))?;
    (row.parse)(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_a_row_of_its_own() {
        for format in [TableFormat::ArmSmmu3, TableFormat::IntelPt] {
            assert_eq!(FORMATS.iter().filter(|row| row.format == format).count(), 1);
            assert_eq!(format.row().format, format);
        }
    }
}
