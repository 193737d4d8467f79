// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Makes the IORT with which Linux lets a guest own stage 1 of QEMU's SMMUv3, and the archive that overrides QEMU's.
//!
//! Linux wants to know that no access can go around the caches (CANWBS), or `IOMMU_VIOMMU_ALLOC` is refused. To read
//! first: Arm's DEN 0049E, "I/O Remapping Table", root complex nodes; the kernel's
//! `Documentation/admin-guide/acpi/initrd_table_override.rst`.

use acpi_tables::sdt::Sdt;
use anyhow::{Context, Result, bail, ensure};

use crate::guest::Archive;

const SIGNATURE: [u8; 4] = *b"IORT";
/// Of the header that every ACPI table has.
const HEADER: usize = 36;

const ROOT_COMPLEX: u8 = 2;
const SMMU_V3: u8 = 4;

/// In a root complex node: the memory access flags, and that of them which says that all accesses are coherent.
const ACCESS_FLAGS: usize = 23;
const CANWBS: u8 = 1 << 2;

/// In every node: how many mappings it has, and where.
const MAPPING_COUNT: usize = 8;
const MAPPINGS: usize = 12;

/// What is put before the initramfs so that the kernel takes this table instead of the firmware's.
pub(super) fn override_archive(table: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.entry("kernel/firmware/acpi/IORT.aml", 0o100_644, &coherent(table)?)?;
    archive.finish()
}

/// The table with every root complex coherent, and behind the SMMU with all its functions: QEMU leaves out those of
/// buses that the firmware has not numbered yet.
fn coherent(table: &[u8]) -> Result<Vec<u8>> {
    ensure!(table.starts_with(&SIGNATURE), "not an IORT");
    let mut changed = table.to_vec();
    let nodes = nodes(table)?;
    let smmu = match nodes_of(&nodes, SMMU_V3)[..] {
        [only] => u32::try_from(only)?,
        ref several => bail!("the IORT has {} SMMUs instead of one", several.len()),
    };
    let roots = nodes_of(&nodes, ROOT_COMPLEX);
    ensure!(!roots.is_empty(), "the IORT has no root complex");
    for root in roots {
        *changed.get_mut(root + ACCESS_FLAGS).context("a short root complex")? |= CANWBS;
        ensure!(u32_at(table, root + MAPPING_COUNT)? > 0, "a root complex without mappings");
        let mapping = root + usize::try_from(u32_at(table, root + MAPPINGS)?)?;
        put(&mut changed, root + MAPPING_COUNT, &[1])?;
        // Input, the last of the ids (not how many), output, the SMMU's node, flags.
        put(&mut changed, mapping, &[0, 0xffff, 0, smmu, 0])?;
    }
    newer(&changed)
}

/// The same content in a table that Linux holds for newer, and with its checksum.
fn newer(table: &[u8]) -> Result<Vec<u8>> {
    let (oem_id, oem_table) = (table[10..16].try_into()?, table[16..24].try_into()?);
    let oem_revision = u32_at(table, 24)?.checked_add(1).context("the newest revision there can be")?;
    let mut sdt = Sdt::new(SIGNATURE, u32::try_from(HEADER)?, table[8], oem_id, oem_table, oem_revision);
    sdt.append_slice(&table[HEADER..]);
    Ok(sdt.as_slice().into())
}

/// The type and the place of each node.
fn nodes(table: &[u8]) -> Result<Vec<(u8, usize)>> {
    let mut place = usize::try_from(u32_at(table, HEADER + 4)?)?;
    let mut nodes = Vec::new();
    for _ in 0..u32_at(table, HEADER)? {
        let head = table.get(place..).and_then(<[u8]>::first_chunk).context("the IORT is short")?;
        let [kind, length_low, length_high] = *head;
        nodes.push((kind, place));
        place += usize::from(u16::from_le_bytes([length_low, length_high]));
    }
    Ok(nodes)
}

fn nodes_of(nodes: &[(u8, usize)], kind: u8) -> Vec<usize> {
    nodes.iter().filter(|node| node.0 == kind).map(|node| node.1).collect()
}

fn u32_at(table: &[u8], place: usize) -> Result<u32> {
    let bytes = table.get(place..).and_then(<[u8]>::first_chunk).context("the IORT is short")?;
    Ok(u32::from_le_bytes(*bytes))
}

fn put(table: &mut [u8], place: usize, words: &[u32]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let target = table.get_mut(place..place + bytes.len()).context("the IORT is short")?;
    target.copy_from_slice(&bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An SMMU at 48 and, behind it, a root complex of which only bus 0 is behind the SMMU.
    fn table() -> Vec<u8> {
        let mut sdt = Sdt::new(SIGNATURE, 36, 5, *b"BOCHS ", *b"BXPC    ", 1);
        for word in [2_u32, 48, 0] {
            sdt.append_slice(&word.to_le_bytes());
        }
        sdt.append_slice(&[SMMU_V3, 16, 0, 4]);
        sdt.append_slice(&[0; 12]);
        sdt.append_slice(&[ROOT_COMPLEX, 76, 0, 3]);
        for word in [0_u32, 2, 36, 1, 0x0300_0000, 0, 0, 0x40, 0, 0xff, 0, 48, 0, 0x100, 0xfeff, 0x100, 7, 0]
        {
            sdt.append_slice(&word.to_le_bytes());
        }
        sdt.as_slice().into()
    }

    #[test]
    fn every_function_is_coherent_and_behind_the_smmu() -> Result<()> {
        let changed = coherent(&table())?;
        let root = 64;
        assert_eq!(changed[root + ACCESS_FLAGS], 0x03 | CANWBS);
        assert_eq!(u32_at(&changed, root + MAPPING_COUNT)?, 1);
        let mapping: Vec<u32> =
            (0..5).map(|word| u32_at(&changed, root + 36 + 4 * word)).collect::<Result<_>>()?;
        assert_eq!(mapping, [0, 0xffff, 0, 48, 0]);
        Ok(())
    }

    #[test]
    fn the_table_is_a_newer_one_of_the_same_maker_and_sums_up_to_zero() -> Result<()> {
        let (old, changed) = (table(), coherent(&table())?);
        assert_eq!(changed.len(), old.len());
        assert_eq!(changed[10..24], old[10..24]);
        assert_eq!(u32_at(&changed, 24)?, 2);
        assert_eq!(changed.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        Ok(())
    }

    #[test]
    fn a_table_without_exactly_one_smmu_or_cut_short_is_refused() {
        let mut none = table();
        none[48] = 0;
        assert!(coherent(&none).unwrap_err().to_string().contains("0 SMMUs"));
        assert!(coherent(&table()[..70]).is_err());
        assert!(coherent(b"VIOT").is_err());
    }
}
