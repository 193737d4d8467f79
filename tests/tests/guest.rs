// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux guests whose disk is behind the daemon: every way in which a guest uses its IOMMU, or does not.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use viommu_tests::daemon::Daemon;
use viommu_tests::guest::{BootFrom, Disk, Guest, Initramfs, OnReset, Testbed};
use viommu_tests::iotlb_disk::{Event, Image, IotlbDisk, Options, Outcome, StrayDma};
use viommu_tests::scene::{self, Behind, IOMMU, Scene};

const MEMORY_MIB: u32 = 512;
/// The disk, as the guest calls it.
const DISK: &str = "0000:00:02.0";
/// Behind the first port of the machine.
const LATE: &str = "01:00.0";
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

/// The whole life of a device that is plugged into a running guest: a process that serves it, an endpoint, a slot.
#[test]
fn a_disk_that_is_plugged_into_a_running_guest_is_behind_the_iommu_until_it_is_unplugged() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (control, front, back) = (path("control.sock"), path("front.sock"), path("back.sock"));
    let Some(stage) = Stage::new(&["--endpoint", LATE, "--control", &control])? else { return Ok(()) };
    let image = Disk::random(&folder.path().join("late.img"), DISK_MIB, 2)?;
    let viot = folder.path().join("viot.dat");
    Daemon::write_viot(&["--iommu", IOMMU, "--endpoint", scene::DISK, "--endpoint", LATE], &viot)?;
    let plain = Guest::new(&stage.testbed).memory_mib(MEMORY_MIB).cpus(2);
    let job = format!("{READ}; wait_for /dev/vdb; iommu_groups; checksum /dev/vdb 4; wait_gone /dev/vdb");
    let guest =
        stage.scene.give_to_with_viot(plain, &viot).device("pcie-root-port,id=root3,addr=3,chassis=1");
    let mut guest = guest.job(&job).spawn()?;
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;

    let late = IotlbDisk::serve(Path::new(&back), Image::open(image.path())?, Options::default())?;
    Daemon::ctl(Path::new(&control), &["add", &format!("{LATE},vhost-user={front},backend={back}")])?;
    let address = format!(r#"{{"type":"unix","data":{{"path":"{front}"}}}}"#);
    let backend = format!(r#"{{"type":"socket","data":{{"server":false,"addr":{address}}}}}"#);
    guest.monitor_with("chardev-add", &format!(r#"{{"id":"late","backend":{backend}}}"#))?;
    guest.monitor_with(
        "device_add",
        r#"{"driver":"vhost-user-blk-pci","id":"late","chardev":"late","bus":"root3","num-queues":1,"iommu_platform":true,"disable-legacy":"on"}"#,
    )?;
    assert_eq!(guest.group_type("0000:01:00.0", BOOT)?, "DMA-FQ");
    let sum = guest.value_of("checksum /dev/vdb 4 ", BOOT)?;
    assert_eq!(sum, image.checksum(&stage.testbed, DISK_MIB)?);
    assert!(late.events().iter().any(|event| matches!(event, Event::Miss { .. })), "{:?}", late.events());

    guest.monitor_with("device_del", r#"{"id":"late"}"#)?;
    guest.wait_for("wait_gone /dev/vdb", BOOT)?;
    stage.daemon_says(&format!("endpoint {LATE}: VMM disconnected"))?;
    Daemon::ctl(Path::new(&control), &["remove", LATE])?;
    let list = Daemon::ctl(Path::new(&control), &["list"])?;
    assert!(list.contains(&format!("{LATE}: listed, ")), "{list}");
    Ok(())
}
