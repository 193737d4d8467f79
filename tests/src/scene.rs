// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The whole chain: a daemon, a disk behind it, and a guest that is given both.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::guest::{Guest, Testbed};
use crate::iotlb_disk::{Image, IotlbDisk, Options};

/// Which IOMMU the guest's disk is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behind {
    /// The daemon, which also lists the disk as its endpoint.
    Daemon,
    /// QEMU's own virtio-iommu.
    Qemu,
    /// None at all.
    Nothing,
}

/// A disk, and the IOMMU that it is behind.
#[derive(Debug)]
pub struct Scene {
    behind: Behind,
    folder: TempDir,
    /// Before the disk, so that it goes first.
    pub daemon: Option<Daemon>,
    /// The disk's back-end.
    pub disk: IotlbDisk,
}

/// Where the IOMMU is in the guest.
pub const IOMMU: &str = "00:01.0";
/// Where the disk is.
pub const DISK: &str = "00:02.0";

impl Scene {
    /// Serves `image` to a guest of `memory_mib` MiB; `arguments` are added to the daemon's.
    ///
    /// # Errors
    /// The daemon is not built or refuses its arguments.
    pub fn new(behind: Behind, image: &Path, memory_mib: u32, arguments: &[&str]) -> Result<Scene> {
        let folder = tempfile::Builder::new().prefix("scene-").tempdir()?;
        let disk =
            IotlbDisk::serve(&folder.path().join("disk.sock"), Image::open(image)?, Options::default())?;
        let mut scene = Scene { behind, folder, daemon: None, disk };
        if behind == Behind::Daemon {
            scene.daemon = Some(scene.start_daemon(memory_mib, arguments)?);
            let viot = scene.path("viot.dat");
            Daemon::write_viot(&["--iommu", IOMMU, "--endpoint", DISK], &viot)?;
        }
        Ok(scene)
    }

    /// A guest with the disk, and with the IOMMU if it is behind one. It has the memory that the scene is made for
    /// when `guest` is a plain one of that size.
    pub fn give_to(&self, guest: Guest) -> Guest {
        self.give_to_with_viot(guest, &self.path("viot.dat"))
    }

    /// The same, with another VIOT than the daemon's own.
    pub fn give_to_with_viot(&self, guest: Guest, viot: &Path) -> Guest {
        const PLAIN: &str = "vhost-user-blk-pci,chardev=disk,num-queues=1,addr=2";
        let behind_iommu = format!("{PLAIN},iommu_platform=on,disable-legacy=on");
        match self.behind {
            Behind::Daemon => guest
                .viot(viot)
                .chardev("iommu", &self.path("iommu.sock"))
                .device(
                    "vhost-user-test-device-pci,virtio-id=23,num_vqs=2,vq_size=256,config_size=40,chardev=iommu,addr=1",
                )
                .chardev("disk", &self.path("front.sock"))
                .device(&behind_iommu),
            Behind::Qemu => {
                guest.device("virtio-iommu-pci,addr=1").chardev("disk", self.disk.path()).device(&behind_iommu)
            }
            Behind::Nothing => guest.chardev("disk", self.disk.path()).device(PLAIN),
        }
    }

    /// A guest of `memory_mib` MiB with the disk, still to be given its job.
    pub fn guest(&self, testbed: &Testbed, memory_mib: u32) -> Guest {
        self.give_to(Guest::new(testbed).memory_mib(memory_mib).cpus(2))
    }

    fn start_daemon(&self, memory_mib: u32, arguments: &[&str]) -> Result<Daemon> {
        let (front, back) = (self.path("front.sock"), self.disk.path().to_owned());
        let endpoint = format!("{DISK},vhost-user={},backend={}", front.display(), back.display());
        let socket = self.path("iommu.sock").display().to_string();
        let memory = format!("{memory_mib}M");
        let own = ["--socket-path", &socket, "--guest-memory", &memory, "--endpoint", &endpoint];
        Daemon::start(own.iter().chain(arguments))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
