// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that reboot, are reset, lose and get devices, and start from a disk.

use std::fs;

use anyhow::Result;
use viommu_tests::l2::{BootFrom, Guest};

use super::stage::{FEW_MIB, FIRST, MIB, SECOND, Stage, WITHIN};

const RESET: &str = r#"{"execute": "system_reset"}"#;

#[test]
fn a_guest_reads_its_disk_again_after_a_reboot_and_a_reset() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    let job = format!(
        "nvme 0000:00:04.0 /dev/first; checksum /dev/first {FEW_MIB}
        case $(boot_number /dev/first {}) in
          *' 1') reboot -f;;
          *' 2') dd if=/dev/first of=/dev/null bs=1M iflag=direct & echo to be reset; sleep 1000;;
        esac",
        2 * MIB
    );
    stage.host.boot(&Guest::new(stage.iommu()).pass("00:04.0", FIRST).job(&job))?;
    stage.guest_read("/dev/first", 0)?;
    stage.guest_read("/dev/first", 0)?;
    stage.host.guest_line("to be reset", WITHIN)?;
    stage.host.monitor(RESET)?;
    stage.guest_read("/dev/first", 0)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    Ok(())
}

#[test]
fn a_disk_that_is_unplugged_is_gone_and_the_other_is_read_on() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    let job = format!(
        "nvme 0000:01:00.0 /dev/first; nvme 0000:00:05.0 /dev/second; checksum /dev/first {FEW_MIB}
        while [ -e /sys/bus/pci/devices/0000:01:00.0 ]; do
            dd if=/dev/second of=/dev/null bs=64k count=1 iflag=direct status=none
        done
        echo unplugged; checksum /dev/second {FEW_MIB}"
    );
    let guest = Guest::new(stage.iommu()).pass("01:00.0", FIRST).pass("00:05.0", SECOND).job(&job);
    stage.host.boot(&guest)?;
    stage.guest_read("/dev/first", 0)?;
    let name = Guest::device_name("01:00.0");
    stage.host.monitor(&format!(r#"{{"execute": "device_del", "arguments": {{"id": "{name}"}}}}"#))?;
    stage.host.guest_line("unplugged", WITHIN)?;
    stage.host.monitor_line("DEVICE_DELETED", WITHIN)?;
    stage.guest_read("/dev/second", 1)?;
    assert_eq!(stage.host.guest_end(WITHIN)?, 0);
    assert_eq!(stage.refused_dma()?, [""; 0]);
    Ok(())
}

/// The kernel is its own boot loader. It finds no file system, says so, and stops.
#[test]
fn firmware_starts_a_guest_from_its_disk_before_and_after_a_reset() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let boot = folder.path().join("EFI/BOOT");
    fs::create_dir_all(&boot)?;
    let disk = format!("if=none,id=esp,snapshot=on,format=raw,file=fat:16:{}", folder.path().display());
    let stage = Stage::with(|testbed, machine| {
        fs::copy(&testbed.host.kernel, boot.join("BOOTAA64.EFI"))?;
        Ok(machine.argument("-drive").argument(disk).device("nvme,addr=6,drive=esp,serial=esp"))
    })?;
    let Some(mut stage) = stage else { return Ok(()) };
    stage.host.execute("give_to_vfio 0000:00:06.0")?;
    let guest = Guest::new(stage.iommu()).pass("00:04.0", "0000:00:06.0").boot_from(BootFrom::Disk);
    stage.host.boot(&guest)?;
    const STARTED: &str = r#"starting Boot0001 "UEFI QEMU NVMe"#;
    stage.host.guest_line(STARTED, WITHIN)?;
    stage.host.guest_line("nvme nvme0: pci function 0000:00:04.0", WITHIN)?;
    stage.host.guest_line("Kernel panic", WITHIN)?;
    stage.host.monitor(RESET)?;
    stage.host.guest_line(STARTED, WITHIN)?;
    stage.host.guest_line("Linux version", WITHIN)?;
    Ok(())
}
