// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VIOT table: tells a guest's ACPI which PCI functions are behind the IOMMU, and their endpoint ids.
//!
//! Describes PCI functions only, with the IOMMU itself on PCI. To read: ACPI 6.5, Virtual I/O
//! Translation Table; Linux, `drivers/acpi/viot.c`.

mod output;

use std::path::PathBuf;

use acpi_tables::sdt::Sdt;
use zerocopy::{
    Immutable, IntoBytes,
    little_endian::{U16, U32},
};

use crate::{config::EndpointConfig, pci::PciAddress, usage_error::UsageError};

/// Write the table for these functions to this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViotCommand {
    iommu: PciAddress,
    /// In ascending order, each once.
    endpoints: Vec<PciAddress>,
    output: Option<PathBuf>,
}

impl ViotCommand {
    /// A table for the IOMMU at `iommu` and the `endpoints` behind it, to be written to the file
    /// `output` or else to standard output.
    ///
    /// # Errors
    /// No endpoint, an endpoint given twice, one that was not given as a PCI function, and the IOMMU itself.
    pub fn new(
        iommu: PciAddress,
        endpoints: &[EndpointConfig],
        output: Option<PathBuf>,
    ) -> Result<ViotCommand, UsageError> {
        if endpoints.is_empty() {
            return Err(UsageError::new(
                "no endpoint is named",
                "add --endpoint for every function behind the IOMMU, or --config FILE with the daemon's options",
            ));
        }
        EndpointConfig::check_ids(endpoints)?;
        let functions = endpoints.iter().map(|endpoint| pci_function(iommu, endpoint));
        let mut endpoints = functions.collect::<Result<Vec<_>, _>>()?;
        endpoints.sort_unstable();
        Ok(ViotCommand { iommu, endpoints, output })
    }

    /// Writes the table: the whole of it, or nothing.
    ///
    /// # Errors
    /// A file or standard output that cannot be written, and standard output that is a terminal.
    pub fn run(&self) -> Result<(), UsageError> {
        output::write(self.output.as_deref(), &self.table()?)
    }

    /// The bytes of the table.
    ///
    /// # Errors
    /// More ranges of functions than a table can hold.
    pub fn table(&self) -> Result<Vec<u8>, UsageError> {
        let ranges = neighbours(&self.endpoints);
        let node_count = u16::try_from(ranges.len() + 1).map_err(|_| {
            UsageError::new("the table cannot hold so many endpoints", "name at most 65534 of them")
        })?;
        let mut table = Sdt::new(*b"VIOT", ACPI_HEADER_SIZE, REVISION, *OEM_ID, *OEM_TABLE_ID, OEM_REVISION);
        table.append_slice(Head::new(node_count).as_bytes());
        table.append_slice(IommuNode::new(self.iommu).as_bytes());
        for (first, last) in ranges {
            table.append_slice(RangeNode::new(first, last).as_bytes());
        }
        Ok(table.as_slice().to_vec())
    }
}

fn pci_function(iommu: PciAddress, endpoint: &EndpointConfig) -> Result<PciAddress, UsageError> {
    match endpoint.pci {
        Some(address) if address == iommu => Err(UsageError::new(
            "this is the IOMMU itself, which is not translated",
            "leave it out, or correct --iommu",
        )),
        Some(address) => Ok(address),
        None => Err(UsageError::new(
            "VIOT cannot describe an endpoint that is given by number",
            format!(
                "write the PCI address, {} for this number, or describe the endpoint in the device tree",
                PciAddress::of_endpoint_id(endpoint.id)
            ),
        )),
    }
    .map_err(|error| error.about("endpoint", &endpoint.label))
}

/// The first and last of each run of functions whose ids follow one another within a segment.
fn neighbours(functions: &[PciAddress]) -> Vec<(PciAddress, PciAddress)> {
    let follow = |a: &PciAddress, b: &PciAddress| {
        a.segment() == b.segment() && a.bdf().checked_add(1) == Some(b.bdf())
    };
    let runs = functions.chunk_by(follow);
    runs.filter_map(|run| Some((*run.first()?, *run.last()?))).collect()
}

/// What follows the ACPI header.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Head {
    node_count: U16,
    /// From the start of the table.
    node_offset: U16,
    reserved: [u8; 8],
}

impl Head {
    fn new(node_count: u16) -> Head {
        Head { node_count: node_count.into(), node_offset: FIRST_NODE.into(), reserved: [0; 8] }
    }
}

/// A virtio-iommu that is a PCI function.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IommuNode {
    kind: u8,
    reserved: u8,
    length: U16,
    segment: U16,
    bdf: U16,
    reserved2: [u8; 8],
}

impl IommuNode {
    fn new(address: PciAddress) -> IommuNode {
        IommuNode {
            kind: 3,
            reserved: 0,
            length: 16.into(),
            segment: address.segment().into(),
            bdf: address.bdf().into(),
            reserved2: [0; 8],
        }
    }
}

/// A run of PCI functions behind an IOMMU, with consecutive ids.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RangeNode {
    kind: u8,
    reserved: u8,
    length: U16,
    endpoint_start: U32,
    segment_start: U16,
    segment_last: U16,
    bdf_start: U16,
    bdf_last: U16,
    /// The IOMMU's node, from the start of the table.
    output_node: U16,
    reserved2: [u8; 6],
}

impl RangeNode {
    fn new(first: PciAddress, last: PciAddress) -> RangeNode {
        RangeNode {
            kind: 1,
            reserved: 0,
            length: 24.into(),
            endpoint_start: first.endpoint_id().0.into(),
            segment_start: first.segment().into(),
            segment_last: last.segment().into(),
            bdf_start: first.bdf().into(),
            bdf_last: last.bdf().into(),
            output_node: FIRST_NODE.into(),
            reserved2: [0; 6],
        }
    }
}

const _: () = assert!(size_of::<Head>() == 12);
const _: () = assert!(size_of::<IommuNode>() == 16);
const _: () = assert!(size_of::<RangeNode>() == 24);

const ACPI_HEADER_SIZE: u32 = 36;
/// The IOMMU's node comes first, right behind the heads.
const FIRST_NODE: u16 = 48;
const REVISION: u8 = 0;
const OEM_ID: &[u8; 6] = b"VHUSER";
const OEM_TABLE_ID: &[u8; 8] = b"VUIOMMU ";
const OEM_REVISION: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn command(iommu: &str, endpoints: &[&str]) -> Result<ViotCommand, UsageError> {
        let endpoints: Vec<_> = endpoints.iter().map(|spec| spec.parse().expect(spec)).collect();
        ViotCommand::new(iommu.parse().expect(iommu), &endpoints, None)
    }

    fn table(iommu: &str, endpoints: &[&str]) -> Vec<u8> {
        command(iommu, endpoints).and_then(|command| command.table()).expect("valid")
    }

    /// The bytes that `text` spells in hexadecimal, white space aside.
    fn bytes(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let pair =
            |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hex");
        digits.chunks(2).map(pair).collect()
    }

    #[test]
    fn the_table_is_this_one_byte_for_byte() {
        let table = table("00:01.0", &["00:02.0", "1:65:00.1"]);
        let checksum = table[9];
        let head = bytes("56494f54 70000000 00") // VIOT, 112 bytes, revision 0
            .into_iter()
            .chain([checksum])
            .chain(*b"VHUSERVUIOMMU ")
            .chain(bytes("01000000"));
        assert_eq!(table[..28], head.collect::<Vec<_>>());
        assert_eq!(
            table[36..],
            bytes(
                "0300 3000 0000000000000000
                 03 00 1000 0000 0800 0000000000000000
                 01 00 1800 10000000 0000 0000 1000 1000 3000 000000000000
                 01 00 1800 01650100 0100 0100 0165 0165 3000 000000000000"
            )
        );
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }

    #[test]
    fn neighbours_are_one_range_in_whatever_order_they_are_given() {
        let ordered = table("00:01.0", &["00:02.0", "00:02.1", "00:02.2", "00:03.0"]);
        assert_eq!(table("00:01.0", &["00:03.0", "00:02.2", "00:02.0", "00:02.1"]), ordered);
        assert_eq!(
            ordered[64..],
            bytes(
                "01 00 1800 10000000 0000 0000 1000 1200 3000 000000000000
                 01 00 1800 18000000 0000 0000 1800 1800 3000 000000000000"
            )
        );
    }

    #[test]
    fn a_range_ends_with_its_segment_and_before_the_iommu() {
        let across = table("2:00:00.0", &["0:ff:1f.7", "1:00:00.0"]);
        assert_eq!(across[36..38], [3, 0]);
        let around = table("00:02.1", &["00:02.0", "00:02.2"]);
        assert_eq!(around[36..38], [3, 0]);
    }

    #[test]
    fn what_the_table_cannot_say_is_refused() {
        for (endpoints, line) in [
            (&[][..], "no endpoint is named; "),
            (&["00:01.0"][..], "--endpoint 00:01.0: this is the IOMMU itself, which is not translated; "),
            (
                &["0x10"][..],
                "--endpoint 0x10: VIOT cannot describe an endpoint that is given by number; write the PCI address, 00:02.0 ",
            ),
            (&["00:02.0", "0:2.0"][..], "--endpoint 0:2.0: this is the same endpoint as 00:02.0; "),
        ] {
            let error = command("0000:00:01.0", endpoints).expect_err("refused").to_string();
            assert!(error.starts_with(line), "{error}");
        }
    }
}
