// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Linux guests with a disk that is served over vfio-user behind the daemon, in both ways of reaching memory.

use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use viommu_tests::daemon::Daemon;
use viommu_tests::guest::{BootFrom, Disk, Guest, Initramfs, OnReset, Testbed};
use viommu_tests::iotlb_disk::{Image, Outcome, StrayDma};
use viommu_tests::vfio_user_disk::VfioUserDisk;

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
    daemon: Daemon,
    disk: VfioUserDisk,
    folder: TempDir,
}

impl Stage {
    fn new(testbed: Testbed, dma: &str, image: impl Fn(&Testbed, &TempDir) -> Result<Disk>) -> Result<Stage> {
        let folder = tempfile::Builder::new().prefix("vfio-user-").tempdir()?;
        let image = image(&testbed, &folder)?;
        let image_sum = image.checksum(&testbed, DISK_MIB)?;
        let path = |name: &str| folder.path().join(name);
        let disk = VfioUserDisk::serve(&path("disk.sock"), Image::open(image.path())?)?;
        let (front, server) = (path("front.sock"), path("disk.sock"));
        let endpoint = format!("00:02.0,vfio-user={},server={},dma={dma}", front.display(), server.display());
        let socket = path("iommu.sock").display().to_string();
        let daemon = Daemon::start(["--socket-path", &socket, "--endpoint", &endpoint])?;
        Daemon::write_viot(&["--iommu", "00:01.0", "--endpoint", "00:02.0"], &path("viot.dat"))?;
        Ok(Stage { testbed, image_sum, daemon, disk, folder })
    }

    fn of_random(dma: &str) -> Result<Option<Stage>> {
        let Some(testbed) = Testbed::find_for_test()? else { return Ok(None) };
        let image =
            |_: &Testbed, folder: &TempDir| Disk::random(&folder.path().join("disk.img"), DISK_MIB, 1);
        Stage::new(testbed, dma, image).map(Some)
    }

    fn guest(&self) -> Guest {
        let path = |name: &str| self.folder.path().join(name);
        let front = path("front.sock").display().to_string();
        let device = format!(
            r#"{{"driver":"vfio-user-pci","socket":{{"type":"unix","path":"{front}"}},"addr":"2.0"}}"#
        );
        Guest::new(&self.testbed)
            .memory_mib(MEMORY_MIB)
            .cpus(2)
            .viot(&path("viot.dat"))
            .chardev("iommu", &path("iommu.sock"))
            .device("vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=iommu,addr=1")
            .device(&device)
    }
}

fn a_disk_is_read_and_a_stray_access_refused(dma: &str) -> Result<()> {
    let Some(stage) = Stage::of_random(dma)? else { return Ok(()) };
    let job = format!("{READ}; echo read; until dmesg | grep 'fault from EP'; do usleep 100000; done");
    let mut guest = stage.guest().kernel_arg("iommu.strict=1").job(&job).spawn()?;
    assert_eq!(guest.group_type(DISK, BOOT)?, "DMA");
    guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    stage.daemon.wait_for("endpoint 00:02.0 attached to domain 1 (translated)", BOOT)?;
    guest.wait_for("read", BOOT)?;
    let files = stage.disk.told().iter().filter(|(.., has_file)| *has_file).count();
    assert_eq!(files > 0, dma == "shared", "{:x?}", stage.disk.told());
    // A page of the guest's that nobody has mapped: GPAs are no IOVAs.
    let outcome = stage.disk.stray_dma(16 << 20, StrayDma::Read(16));
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    guest.wait_for(&format!("page fault from EP 16 at {:#x} [R]", 16 << 20), BOOT)?;
    Ok(())
}

#[test]
fn a_guest_reads_a_disk_that_maps_memory_and_a_stray_access_is_refused() -> Result<()> {
    a_disk_is_read_and_a_stray_access_refused("shared")
}

#[test]
fn a_guest_reads_a_disk_that_asks_by_messages_and_a_stray_access_is_refused() -> Result<()> {
    a_disk_is_read_and_a_stray_access_refused("message")
}

#[test]
fn a_guest_that_unmaps_lazily_or_bypasses_reads_its_disk_as_well() -> Result<()> {
    for (argument, group) in [("iommu.strict=0", "DMA-FQ"), ("iommu.passthrough=1", "identity")] {
        let Some(stage) = Stage::of_random("shared")? else { return Ok(()) };
        let mut guest = stage.guest().kernel_arg(argument).job(READ).spawn()?;
        assert_eq!(guest.group_type(DISK, BOOT)?, group);
        guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
    }
    Ok(())
}

#[test]
fn firmware_reads_the_disk_behind_the_iommu_before_and_after_a_reboot() -> Result<()> {
    for dma in ["shared", "message"] {
        let Some(testbed) = Testbed::find_for_test()? else { return Ok(()) };
        let initramfs = Initramfs::new().job(&format!("{READ}; reboot -f"));
        let image = |testbed: &Testbed, folder: &TempDir| {
            Disk::bootable(testbed, &folder.path().join("disk.img"), 64, &initramfs, "")
        };
        let stage = Stage::new(testbed, dma, image)?;
        let guest = stage.guest().boot_from(BootFrom::Disk).on_reset(OnReset::Reboot);
        let mut guest = guest.spawn()?;
        for boot in 1..=2 {
            guest.wait_for("GRUB reads the kernel", BOOT).with_context(|| format!("{dma}, boot {boot}"))?;
            assert_eq!(guest.group_type(DISK, BOOT)?, "DMA-FQ");
            guest.reads(DISK_MIB, &stage.image_sum, BOOT)?;
        }
    }
    Ok(())
}
