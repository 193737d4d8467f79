// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every way in which a guest uses its IOMMU for disks, or does not.

use anyhow::Result;
use viommu_tests::l2::Guest;

use super::stage::{DISKS, FEW_MIB, FIRST, MIB, SECOND, Stage, WITHIN};

/// Writes the first disk, reads the second.
fn job() -> String {
    format!(
        "iommu_groups; {DISKS}; copy /dev/first {MIB}; checksum /dev/second {FEW_MIB}; echo disks done; sleep 2"
    )
}

/// Runs a guest with two disks and this on its kernel's command line, whose groups have to be of this type, from
/// beginning to end. `meanwhile` runs when it has used its disks.
fn guest_with(
    kernel_arg: &str,
    group_type: &str,
    meanwhile: impl FnOnce(&mut Stage, &Guest) -> Result<()>,
) -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    let guest = Guest::new(stage.iommu()).pass("00:04.0", FIRST).pass("00:05.0", SECOND);
    let guest = guest.kernel_arg(kernel_arg).job(&job());
    stage.host.boot(&guest)?;
    let first = stage.group_of("00:04.0")?;
    let second = stage.group_of("00:05.0")?;
    assert_eq!((&*first.1, &*second.1), (group_type, group_type));
    assert_ne!(first.0, second.0);
    stage.guest_copied("/dev/first", 0)?;
    stage.guest_read("/dev/second", 1)?;
    meanwhile(&mut stage, &guest)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    assert_eq!(stage.refused_dma()?, [""; 0]);
    Ok(())
}

#[test]
fn a_guest_that_unmaps_strictly_reads_and_writes_disks_in_two_domains_and_its_memory_is_pinned_once()
-> Result<()> {
    guest_with("iommu.strict=1", "DMA", |stage, guest| {
        let memory = u64::from(guest.memory_mib()) << 10;
        let pinned = stage.pinned_kib()?;
        // Beside its RAM there are some devices' memory, firmware for example: far less than half as much.
        assert!((memory..memory * 3 / 2).contains(&pinned), "{pinned} KiB pinned, {memory} KiB of RAM");
        Ok(())
    })
}

#[test]
fn a_guest_that_unmaps_lazily_reads_and_writes_its_disks() -> Result<()> {
    guest_with("iommu.strict=0", "DMA-FQ", |_, _| Ok(()))
}

#[test]
fn a_guest_in_passthrough_mode_reads_and_writes_its_disks() -> Result<()> {
    guest_with("iommu.passthrough=1", "identity", |_, _| Ok(()))
}
