// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the tests have in common: a host with NVMe disks whose content is known, given to VFIO.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use viommu_tests::guest::Disk;
use viommu_tests::l1::{self, Machine};
use viommu_tests::l2::{Host, Iommu, Testbed};

/// Far more than any of it takes on a busy machine.
pub const WITHIN: Duration = Duration::from_secs(600);
/// How much of a disk has content, to be copied behind that.
pub const MIB: usize = 64;
/// How much of it is read where the way there matters more than how much goes it.
pub const FEW_MIB: usize = 8;
const DISK_MIB: u64 = 144;

/// The first disk in the host: behind a root port, so that the host can reset its bus.
pub const FIRST: &str = "0000:01:00.0";
/// The second: on the root complex, where there is no such reset.
pub const SECOND: &str = "0000:00:05.0";

/// The beginning of a guest's job: the links /dev/first and /dev/second for the disks that it has at 00:04.0 and 00:05.0.
pub const DISKS: &str = "nvme 0000:00:04.0 /dev/first; nvme 0000:00:05.0 /dev/second";

/// The page of the guest's interrupt controller that devices write to.
const DOORBELL: &str = "0x8090000-0x809ffff";

/// A host with two disks.
pub struct Stage {
    pub host: Host,
    images: [PathBuf; 2],
    _folder: TempDir,
}

impl Stage {
    pub fn new() -> Result<Option<Stage>> {
        Self::with(|_, machine| Ok(machine))
    }

    /// With more in the host.
    pub fn with(more: impl FnOnce(&Testbed, Machine) -> Result<Machine>) -> Result<Option<Stage>> {
        let Some(testbed) = Testbed::find_for_test()? else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let images = [folder.path().join("first"), folder.path().join("second")];
        for (image, seed) in images.iter().zip(1..) {
            Disk::random(image, MIB, seed)?;
            File::options().write(true).open(image)?.set_len(DISK_MIB << 20)?;
        }
        let machine = testbed
            .machine()
            .program("vhost-user-iommu", &l1::build("vhost-user-iommu", "vhost-user-iommu")?)
            .image("first", &images[0])
            .image("second", &images[1])
            .device("pcie-root-port,id=port1,chassis=1,addr=4")
            .device("nvme,bus=port1,drive=first,serial=first")
            .device("nvme,addr=5,drive=second,serial=second");
        let mut host = Host::start(&testbed, more(&testbed, machine)?)?;
        // Guest memory in large pages is pinned and mapped in far less time.
        host.execute("echo always >/sys/kernel/mm/transparent_hugepage/shmem_enabled")?;
        for disk in [FIRST, SECOND] {
            host.execute(&format!("give_to_vfio {disk}"))?;
        }
        Ok(Some(Stage { host, images, _folder: folder }))
    }

    /// Waits until the guest has read [`FEW_MIB`] of a disk, and checks what it read against the host's image.
    pub fn guest_read(&mut self, device: &str, image: usize) -> Result<()> {
        let read = self.host.guest_value(&format!("checksum {device} {FEW_MIB} "), WITHIN)?;
        let is = md5(&self.images[image], 0, FEW_MIB)?;
        ensure!(read == is, "the guest read {read} from {device}, the image has {is}");
        Ok(())
    }

    /// The same of what the guest has copied, [`MIB`], and read back.
    pub fn guest_copied(&mut self, device: &str, image: usize) -> Result<()> {
        let read = self.host.guest_value(&format!("copy {device} {MIB} "), WITHIN)?;
        let original = md5(&self.images[image], 0, MIB)?;
        let written = md5(&self.images[image], MIB, MIB)?;
        ensure!(read == original, "the guest copied {original} and read {read} back from {device}");
        ensure!(read == written, "the guest read {read} back from {device}, the image has {written}");
        Ok(())
    }

    /// The IOMMU that is tested.
    pub fn iommu(&self) -> Iommu {
        Iommu::Daemon(["--msi-region", DOORBELL].map(Into::into).into())
    }

    /// The number and the type of the group of this function of the guest's.
    pub fn group_of(&mut self, function: &str) -> Result<(String, String)> {
        let group = self.host.guest_value(&format!("iommu_groups 0000:{function} "), WITHIN)?;
        let (number, kind) = group.split_once(' ').context("no group")?;
        Ok((number.into(), kind.into()))
    }

    /// The memory of the guest's QEMU that is pinned.
    pub fn pinned_kib(&mut self) -> Result<u64> {
        let lines = self.host.execute("grep VmPin: /proc/$(pidof qemu-system-aarch64)/status")?;
        let words = lines.first().context("no QEMU")?;
        Ok(words.split_whitespace().nth(1).context("no number")?.parse()?)
    }

    /// What the host's kernel said of DMA that its IOMMU refused since this was asked last.
    pub fn refused_dma(&mut self) -> Result<Vec<String>> {
        self.host.execute("kernel_said 'arm-smmu-v3.*(event|F_[A-Z])'")
    }
}

/// The md5 of a part of an image.
fn md5(image: &Path, from_mib: usize, mib: usize) -> Result<String> {
    let mut part = vec![0; mib << 20];
    let mut file = File::open(image)?;
    file.seek(SeekFrom::Start(u64::try_from(from_mib << 20)?))?;
    file.read_exact(&mut part)?;
    let mut process = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    process.stdin.take().context("a pipe")?.write_all(&part)?;
    let output = String::from_utf8(process.wait_with_output()?.stdout)?;
    Ok(output.split_whitespace().next().context("md5sum says nothing")?.to_owned())
}
