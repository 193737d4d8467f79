// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the README says of physical devices, as it is written there.

use anyhow::{Context, Result};
use viommu_tests::l2::{Guest, Iommu};

use super::stage::{FEW_MIB, Stage, WITHIN};

const README: &str = include_str!("../../../README.md");

/// The block of commands about physical devices that has these words.
fn block(words: &str) -> Result<&'static str> {
    let mut sections = README.split("\n## ");
    let section = sections.find(|section| section.starts_with("Physical devices")).context("no section")?;
    let mut blocks = section.split("```").skip(1).step_by(2);
    blocks.find(|block| block.contains(words)).map(str::trim).context("no block")
}

/// The command that QEMU dumps its device tree by: with its own IOMMU in place of ours, and without the device.
fn dumping(launch: &str) -> Result<String> {
    let (_, qemu) = launch.split_once("-- \\\n").context("no VMM")?;
    let of_iommu = |line: &&str| {
        !["-chardev ", "-object iommufd", "-device "].iter().any(|own| line.trim().starts_with(own))
    };
    let lines: Vec<&str> = qemu.lines().filter(of_iommu).collect();
    let command = lines.join("\n").replace("memory-backend=m ", "memory-backend=m,dumpdtb=guest.dtb ");
    Ok(format!(
        "{} -device virtio-iommu-pci,addr=3",
        command.trim_end_matches('\\').replace("-dtb guest.dtb", "")
    ))
}

#[test]
fn the_readme_passes_a_device_through() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    stage.host.execute(block("driver_override")?)?;
    let launch = block("vhost-user-iommu launch")?;
    stage.host.execute(&format!("cd /run\n{} -nodefaults -display none", dumping(launch)?))?;
    let streams = Guest::QEMU_STREAMS;
    let rest = format!("{streams} {} '{}'", Guest::KERNEL, Guest::KERNEL_ARGS);
    let guest = Guest::new(Iommu::Absent)
        .job(&format!("iommu_groups; nvme 0000:00:04.0 /dev/first; checksum /dev/first {FEW_MIB}"));
    stage.host.boot_by(&format!("cd /run\n{}", launch.replace("...", &rest)), &guest)?;
    assert!(stage.group_of("00:04.0")?.1.starts_with("DMA"));
    stage.guest_read("/dev/first", 1)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    assert_eq!(stage.refused_dma()?, [""; 0]);
    Ok(())
}
