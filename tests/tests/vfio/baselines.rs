// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Without the daemon: that the host and its guests work at all, and what users have today.

use anyhow::Result;
use viommu_tests::l2::{Guest, Iommu};

use super::stage::{DISKS, FEW_MIB, FIRST, SECOND, Stage, WITHIN};

#[test]
fn without_an_iommu_and_behind_qemus_own_a_guest_reads_its_disks() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    let job = format!("iommu_groups; {DISKS}; checksum /dev/first {FEW_MIB}; checksum /dev/second {FEW_MIB}");
    for (iommu, groups) in [(Iommu::Absent, 0), (Iommu::Qemu, 3)] {
        let guest = Guest::new(iommu).pass("00:04.0", FIRST).pass("00:05.0", SECOND).job(&job);
        stage.host.boot(&guest)?;
        for _ in 0..groups {
            stage.host.guest_line("iommu_groups 0000:00:0", WITHIN)?;
        }
        stage.host.guest_line("iommu_groups end", WITHIN)?;
        stage.guest_read("/dev/first", 0)?;
        stage.guest_read("/dev/second", 1)?;
        assert_eq!(stage.host.guest_end(WITHIN)?, 0);
        assert_eq!(stage.refused_dma()?, [""; 0]);
    }
    Ok(())
}
