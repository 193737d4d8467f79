// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with servers behind it, the guest's IOMMU driver in front, and VMMs of the devices.

use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use viommu_core::DomainId;
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::GuestMemory;
use viommu_tests::iotlb_disk::{Image, Outcome, StrayDma};
use viommu_tests::vfio_user_disk::{CAPABILITIES, Told, VfioUserDisk};
use viommu_tests::vfio_user_vmm::VfioUserVmm;

pub use viommu_tests::relayed::{Guest, PATIENCE, endpoint, has_status, succeeds};

/// The granule.
pub const PAGE: u64 = 0x1000;
/// Memory below the hole: first GPA and bytes.
pub const LOW: (u64, u64) = (0, 8 << 20);
/// Memory above the hole.
pub const HIGH: (u64, u64) = (16 << 20, 8 << 20);
/// The domain that tests use when one is enough.
pub const DOMAIN: DomainId = DomainId(1);
/// A page of its own, with the text in it.
pub const SECRET: (u64, &[u8]) = (7 << 20, b"a secret of the guest's");
/// Where tests map it; no GPA has this number.
pub const IOVA: u64 = 0xffff_f000;
/// How long the daemon waits for a server.
pub const BOUND: Duration = Duration::from_millis(300);

/// The daemon and the servers behind it.
pub struct Bed {
    /// Before the servers, so that it goes first.
    pub daemon: Daemon,
    /// By number: server 0 is 00:02.0, the others follow.
    pub disks: Vec<Option<VfioUserDisk>>,
    /// The guest's.
    pub memory: GuestMemory,
    folder: TempDir,
}

impl Bed {
    /// One server that maps memory.
    pub fn shared() -> Bed {
        Bed::with(&["shared"], &[])
    }

    /// One server that asks by messages.
    pub fn message() -> Bed {
        Bed::with(&["message"], &[])
    }

    /// These servers, and arguments for the daemon beside those that it needs.
    pub fn with(servers: &[&str], arguments: &[&str]) -> Bed {
        let folder = tempfile::Builder::new().prefix("vfio-user-").tempdir().expect("a folder");
        let path = |name: String| folder.path().join(name).display().to_string();
        let mut all = vec!["--socket-path".to_owned(), path("iommu.sock".to_owned())];
        all.extend(["--unmap-timeout".to_owned(), BOUND.as_millis().to_string()]);
        for (number, dma) in servers.iter().enumerate() {
            let [front, server] = [path(format!("front{number}")), path(format!("server{number}"))];
            let endpoint = format!("00:{:02x}.0,vfio-user={front},server={server},dma={dma}", number + 2);
            all.extend(["--endpoint".to_owned(), endpoint]);
        }
        all.extend(["--control".to_owned(), path("control.sock".to_owned())]);
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let memory = GuestMemory::new(&[LOW, HIGH]).expect("memory");
        memory.write(SECRET.0, SECRET.1);
        let daemon = Daemon::start(all).expect("the daemon starts");
        let mut bed = Bed { daemon, disks: Vec::new(), memory, folder };
        bed.disks.resize_with(servers.len(), || None);
        (0..servers.len()).for_each(|number| bed.serve(number));
        bed
    }

    /// Starts the server `number`, in place of one that there was.
    pub fn serve(&mut self, number: usize) {
        self.serve_with(number, CAPABILITIES);
    }

    /// The same, one with these capabilities.
    pub fn serve_with(&mut self, number: usize, capabilities: &str) {
        self.disks[number] = None;
        let image = Image::memory(&[0x5a; 4096]).expect("an image");
        let disk = VfioUserDisk::serve_with(&self.server_path(number), image, capabilities);
        self.disks[number] = Some(disk.expect("it serves"));
    }

    /// A server that runs.
    pub fn disk(&self, number: usize) -> &VfioUserDisk {
        self.disks[number].as_ref().expect("the server runs")
    }

    /// Where the VMM connects to the device `number`.
    pub fn front_path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("front{number}"))
    }

    /// Where the daemon looks for the server `number`.
    pub fn server_path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("server{number}"))
    }

    /// A VMM powers on, and the guest's driver finds the IOMMU.
    pub fn boot(&self) -> Guest {
        Guest::boot(&self.folder.path().join("iommu.sock"), &self.memory)
    }

    /// The VMM plugs the device `number` in, and gives it memory.
    pub fn plug(&self, number: usize) -> VfioUserVmm {
        let mut vmm = VfioUserVmm::connect(&self.front_path(number), PATIENCE).expect("connects");
        vmm.negotiate().expect("negotiates");
        vmm.give(&self.memory).expect("takes memory");
        vmm
    }

    /// A guest whose device 0 is in a domain that maps the secret.
    pub fn run(&self) -> (Guest, VfioUserVmm) {
        let mut guest = self.boot();
        let vmm = self.plug(0);
        guest.attach(0, DOMAIN);
        guest.map(DOMAIN, IOVA, PAGE, SECRET.0);
        assert_eq!(self.peek(0, IOVA), secret());
        (guest, vmm)
    }

    /// What the server `number` reads at `iova`, without any driver's asking: a text as long as the secret.
    pub fn peek(&self, number: usize, iova: u64) -> Outcome {
        self.disk(number).stray_dma(iova, StrayDma::Read(SECRET.1.len()))
    }

    /// What the server `number` has been told of: addresses and bytes.
    pub fn told(&self, number: usize) -> Vec<(u64, u64)> {
        self.disk(number).told().iter().map(|(address, size, ..)| (*address, *size)).collect()
    }

    /// Waits until the server `number` has been told of just this.
    pub fn wait_told(&self, number: usize, wanted: &[(u64, u64)]) {
        let is_it = |told: &[Told]| {
            told.iter().map(|(address, size, ..)| (*address, *size)).eq(wanted.iter().copied())
        };
        assert!(self.disk(number).wait_told(PATIENCE, is_it), "{:x?}", self.told(number));
    }

    /// Asks the daemon as an operator does.
    pub fn ctl(&self, words: &[&str]) -> anyhow::Result<String> {
        Daemon::ctl(&self.folder.path().join("control.sock"), words)
    }

    /// Waits until the daemon logs `pattern`.
    pub fn wait_log(&self, pattern: &str) {
        self.daemon.wait_for(pattern, PATIENCE).expect(pattern);
    }
}

/// What a peek at the secret shows.
pub fn secret() -> Outcome {
    Outcome::Read(SECRET.1.to_vec())
}

/// Whether an access was refused.
pub fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

/// The address of the next fault that the driver is told of.
pub fn next_fault(guest: &mut Guest) -> u64 {
    guest.driver.wait_event().expect("an event").fault.address.get()
}
