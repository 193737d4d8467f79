// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Describes a guest's machine to its kernel, with an IOMMU at [`IOMMU`]: QEMU adds that description only for its own.
//!
//! The description is QEMU's, dumped with its own IOMMU there, so that the node and `iommu-map` are as they have to be.
//! To read first: the Devicetree Specification, "Flattened Devicetree Format".

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U32};

use crate::guest::dying_with_us;

/// The slot of the IOMMU on the guest's root bus.
pub(super) const IOMMU: &str = "addr=3";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: U32,
    total_size: U32,
    structure_at: U32,
    strings_at: U32,
    reservations_at: U32,
    version: U32,
    last_compatible_version: U32,
    boot_cpu: U32,
    strings_size: U32,
    structure_size: U32,
}

/// The tree of a machine with these arguments and an IOMMU.
pub(super) fn with_iommu(qemu: &Path, machine: &str, arguments: &[String]) -> Result<Vec<u8>> {
    let folder = TempDir::new()?;
    let file = folder.path().join("dtb");
    let output = dying_with_us(qemu)
        .args(["-machine", &format!("{machine},dumpdtb={}", file.display())])
        .args(["-cpu", "cortex-a57", "-nodefaults", "-display", "none"])
        .args(["-device", &format!("virtio-iommu-pci,{IOMMU}")])
        .args(arguments)
        .output()
        .context("starting QEMU through setpriv")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let tree = fs::read(&file).with_context(|| format!("QEMU dumps no device tree: {said}"))?;
    shrunk(tree)
}

/// Without the room to grow that QEMU leaves, for which it has no place itself when it loads a tree.
fn shrunk(mut tree: Vec<u8>) -> Result<Vec<u8>> {
    let (header, _) = Header::mut_from_prefix(&mut tree).ok().context("QEMU's device tree has no header")?;
    ensure!(header.magic == 0xd00d_feed, "QEMU's device tree has the magic {:#x}", header.magic);
    let end_of = |at: U32, size: U32| Some(at.get().checked_add(size.get())?.next_multiple_of(8));
    let ends =
        [end_of(header.structure_at, header.structure_size), end_of(header.strings_at, header.strings_size)];
    let end = ends.into_iter().max().flatten().context("QEMU's device tree has no end")?;
    header.total_size = end.into();
    ensure!(usize::try_from(end)? <= tree.len(), "QEMU's device tree ends too early");
    tree.truncate(usize::try_from(end)?);
    Ok(tree)
}
