// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Every way in which a guest uses its IOMMU for disks, or does not.

use anyhow::Result;
use viommu_tests::l2::Guest;

use super::stage::{DISKS, FEW_MIB, FIRST, MIB, SECOND, Stage, WITHIN};

/// A mode of the guest's kernel, and what it calls the groups' domains in it.
const MODES: [(&str, &str); 3] =
    [("iommu.strict=1", "DMA"), ("iommu.strict=0", "DMA-FQ"), ("iommu.passthrough=1", "identity")];

#[test]
fn in_every_mode_a_guest_reads_and_writes_disks_in_two_groups_and_its_memory_is_pinned_once() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    for (kernel_arg, group_type) in MODES {
        println!("{kernel_arg}");
        let guest = Guest::new(stage.iommu())
            .pass("00:04.0", FIRST)
            .pass("00:05.0", SECOND)
            .kernel_arg(kernel_arg)
            .job(&format!("iommu_groups; {DISKS}; copy /dev/first {MIB}; checksum /dev/second {FEW_MIB}"));
        stage.host.boot(&guest)?;
        let first = stage.group_of("00:04.0")?;
        let second = stage.group_of("00:05.0")?;
        assert_eq!((&*first.1, &*second.1), (group_type, group_type));
        assert_ne!(first.0, second.0);
        pinned_once(&mut stage, &guest)?;
        stage.guest_copied("/dev/first", 0)?;
        stage.guest_read("/dev/second", 1)?;
        assert_eq!(stage.host.guest_end(WITHIN)?, 0);
        assert_eq!(stage.refused_dma()?, [""; 0]);
    }
    Ok(())
}

/// Beside its RAM there are some devices' memory, firmware for example: far less than half as much.
fn pinned_once(stage: &mut Stage, guest: &Guest) -> Result<()> {
    let memory = u64::from(guest.memory_mib()) << 10;
    let pinned = stage.pinned_kib()?;
    assert!((memory..memory * 3 / 2).contains(&pinned), "{pinned} KiB are pinned of {memory} KiB");
    Ok(())
}
