// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon with a disk behind it, which reaches for what it was given and for what it was not.

use viommu_core::wire::BYPASS_OFFSET;
use viommu_tests::daemon::Daemon;
use viommu_tests::front_end::FrontEnd;
use viommu_tests::iotlb_disk::{Image, IotlbDisk, Options, Outcome, StrayDma};

use crate::scene::*;

/// A daemon with a disk behind it, and a VMM whose guest drives both.
pub struct WithDisk {
    pub vmm: Vmm,
    _front_end: FrontEnd,
    pub served: Served,
    pub disk: IotlbDisk,
}

impl WithDisk {
    /// The driver has said nothing to the device but that nothing bypasses it.
    pub fn new(setup: Setup) -> WithDisk {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let image = Image::memory(&[0; 4096]).expect("an image");
        let disk = IotlbDisk::serve(&path("disk.sock"), image, Options::default()).expect("a disk");
        let (socket, front) = (path("iommu.sock"), path("front.sock"));
        let endpoint = format!("00:02.0,vhost-user={},backend={}", front.display(), disk.path().display());
        let arguments = ["--aperture", "0x1000-0x1fffff", "--endpoint", &endpoint, "--socket-path"];
        let daemon = Daemon::start(arguments.into_iter().chain(socket.to_str())).expect("it gets ready");
        let served = Served { daemon, socket, folder };
        let mut vmm = served.vmm_with(setup);
        vmm.front_end.write_config(BYPASS_OFFSET as u32, &[0]).expect("written");
        let mut front_end = negotiated(&front, u64::MAX);
        front_end.set_memory(&vmm.memory).expect("two regions");
        WithDisk { vmm, _front_end: front_end, served, disk }
    }

    /// The disk reaches for this page, which is refused.
    pub fn fault(&self, page: u64) {
        let outcome = self.disk.stray_dma(page * 0x1000, StrayDma::Read(8));
        assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
}
