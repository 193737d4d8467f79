// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux guests whose disk is behind the daemon: every way in which a guest uses its IOMMU, or does not.

use std::time::Duration;

use anyhow::{Context, Result};
use viommu_tests::daemon::Daemon;
use viommu_tests::guest::{BootFrom, Disk, Guest, Initramfs, OnReset, Testbed};
use viommu_tests::iotlb_disk::{Event, Outcome, StrayDma};
use viommu_tests::scene::{Behind, Scene};

const MEMORY_MIB: u32 = 512;
/// The disk, as the guest calls it.
const DISK: &str = "0000:00:02.0";
const DISK_MIB: usize = 4;
const BOOT: Duration = Duration::from_secs(120);
const READ: &str = "wait_for /dev/vda; iommu_groups; checksum /dev/vda 4";

/// A disk behind the daemon, for one test.
struct Stage {
    testbed: Testbed,
    image_sum: String,
    scene: Scene,
    _folder: tempfile::TempDir,
}

impl Stage {
    fn new(daemon_arguments: &[&str]) -> Result<Option<Stage>> {
        let Some(testbed) = Testbed::find_for_test()? else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let image = Disk::random(&folder.path().join("disk.img"), DISK_MIB, 1)?;
        let image_sum = image.checksum(&testbed, DISK_MIB)?;
        let scene = Scene::new(Behind::Daemon, image.path(), MEMORY_MIB, daemon_arguments)?;
        Ok(Some(Stage { testbed, image_sum, scene, _folder: folder }))
    }

    fn guest(&self) -> Guest {
        self.scene.guest(&self.testbed, MEMORY_MIB)
    }

    fn daemon_says(&self, pattern: &str) -> Result<String> {
        self.scene.daemon.as_ref().context("no daemon")?.wait_for(pattern, Duration::from_secs(20))
    }
}

#[test]
fn a_guest_that_unmaps_lazily_reads_its_disk_through_the_iommu() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let mut guest = stage.guest().kernel_arg("iommu.strict=0").job(READ).spawn()?;
    assert_eq!(guest.group_type(DISK, BOOT)?, "DMA-FQ");
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    stage.daemon_says("attached to domain 1 (translated)")?;
    Ok(())
}

#[test]
fn a_guest_that_unmaps_strictly_reads_its_disk_and_leaves_no_entry_behind() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let job = format!("{READ}; echo read; until dmesg | grep 'fault from EP'; do usleep 100000; done");
    let mut guest = stage.guest().kernel_arg("iommu.strict=1").job(&job).spawn()?;
    assert_eq!(guest.group_type(DISK, BOOT)?, "DMA");
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    guest.wait_for("read", BOOT)?;
    // Where the data buffers were a moment ago there is nothing now.
    let gone = stage.scene.disk.events().into_iter().rev().find_map(|event| match event {
        Event::Invalidate { iova, size } if size < 1 << 32 => Some(iova),
        _ => None,
    });
    let gone = gone.context("nothing was ever unmapped")?;
    let outcome = stage.scene.disk.stray_dma(gone, StrayDma::Read(16));
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    guest.wait_for(&format!("page fault from EP 16 at {gone:#x} [R]"), BOOT)?;
    Ok(())
}

#[test]
fn a_guest_in_passthrough_mode_puts_its_disk_into_a_bypass_domain() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let mut guest = stage.guest().kernel_arg("iommu.passthrough=1").job(READ).spawn()?;
    assert_eq!(guest.group_type(DISK, BOOT)?, "identity");
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    stage.daemon_says("attached to domain 0 (bypass)")?;
    Ok(())
}

#[test]
fn without_bypass_at_boot_the_firmware_reaches_nothing_and_the_guest_still_reads_its_disk() -> Result<()> {
    let Some(stage) = Stage::new(&["--boot-bypass", "off"])? else { return Ok(()) };
    // The firmware sets the disk's ring up at GPAs; the disk asks for them and is refused.
    let firmware = stage.guest().spawn()?;
    stage.daemon_says("it is attached to no domain")?;
    drop(firmware);
    // Firmware that leaves a disk alone which is not to be booted from lets Linux have it.
    let mut guest = stage.guest().argument("-boot").argument("strict=on").job(READ).spawn()?;
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    Ok(())
}

#[test]
fn a_device_that_is_not_listed_works_beside_the_ones_behind_the_iommu() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let job = format!("{READ}; hexdump -n 4 /dev/hwrng && echo random");
    let guest = stage.guest().device("virtio-rng-pci,addr=3").module("virtio_rng").job(&job);
    let mut guest = guest.spawn()?;
    assert_eq!(guest.group_type(DISK, BOOT)?, "DMA-FQ");
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    guest.wait_for("random", BOOT)?;
    assert!(!guest.lines().iter().any(|line| line.contains("iommu_groups 0000:00:03.0")));
    Ok(())
}

/// Linux gives up the whole IOMMU when it may not probe one endpoint: the log has to say what to mend.
#[test]
fn an_endpoint_that_only_the_viot_lists_is_named_in_the_log_and_the_guest_still_boots() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let viot = tempfile::NamedTempFile::new()?;
    Daemon::write_viot(
        &["--iommu", "00:01.0", "--endpoint", "00:02.0", "--endpoint", "00:03.0"],
        viot.path(),
    )?;
    let plain = Guest::new(&stage.testbed).memory_mib(MEMORY_MIB).cpus(2);
    let guest = stage.scene.give_to_with_viot(plain, viot.path()).device("virtio-rng-pci,addr=3");
    let mut guest = guest.job("wait_for /dev/vda; checksum /dev/vda 4").spawn()?;
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    stage.daemon_says("PROBE refused: endpoint 0x18 does not exist; the guest's VIOT names it")?;
    Ok(())
}

#[test]
fn firmware_reads_the_disk_behind_the_iommu_before_and_after_each_reboot() -> Result<()> {
    let Some(testbed) = Testbed::find_for_test()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    // The guest reboots itself each time; the monitor may be faster.
    let job = format!("{READ}; reboot -f");
    let initramfs = Initramfs::new().job(&job);
    let image = Disk::bootable(&testbed, &folder.path().join("disk.img"), 64, &initramfs, "")?;
    let image_sum = image.checksum(&testbed, DISK_MIB)?;
    let scene = Scene::new(Behind::Daemon, image.path(), MEMORY_MIB, &[])?;
    let guest = scene.guest(&testbed, MEMORY_MIB).boot_from(BootFrom::Disk).on_reset(OnReset::Reboot);
    let mut guest = guest.spawn()?;
    for boot in 1..=3 {
        guest.wait_for("GRUB reads the kernel", BOOT).with_context(|| format!("boot {boot}"))?;
        assert_eq!(guest.group_type(DISK, BOOT)?, "DMA-FQ");
        guest.reads(DISK_MIB, &image_sum, BOOT).with_context(|| format!("boot {boot}"))?;
        if boot == 2 {
            guest.monitor("system_reset")?;
        }
    }
    let log = scene.daemon.as_ref().context("no daemon")?.lines();
    let resets = log.iter().filter(|line| line.contains("device reset")).count();
    assert!(resets >= 2, "{resets} resets in\n{}", log.join("\n"));
    Ok(())
}

#[test]
fn a_guest_that_is_paused_goes_on_where_it_was() -> Result<()> {
    let Some(stage) = Stage::new(&[])? else { return Ok(()) };
    let job = format!("{READ}; sleep 2; checksum /dev/vda 4");
    let mut guest = stage.guest().job(&job).spawn()?;
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    guest.monitor("stop")?;
    guest.monitor("cont")?;
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    let log = stage.scene.daemon.as_ref().context("no daemon")?.lines();
    assert!(!log.iter().any(|line| line.contains("device reset")), "{}", log.join("\n"));
    Ok(())
}
