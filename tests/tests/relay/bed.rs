// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with disks behind it, and the guest's IOMMU driver in front: a machine without its VMM's disks.
//!
//! What the VMM does with a disk is [`vmm`](crate::vmm)'s matter. To read: `vhost-user-iommu/src/relay/mod.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use viommu_core::DomainId;
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::GuestMemory;
use viommu_tests::iotlb_disk::{Event, Image, IotlbDisk, Options, Outcome, StrayDma};

use crate::vmm::{DATA, DiskVmm, RINGS};

pub use viommu_tests::relayed::{Guest, PATIENCE, endpoint, has_status, range, succeeds};

/// The granule.
pub const PAGE: u64 = 0x1000;
/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// Memory below the hole: first GPA and bytes.
pub const LOW: (u64, u64) = (0, 8 << 20);
/// Memory above the hole.
pub const HIGH: (u64, u64) = (16 << 20, 8 << 20);
/// Memory right after that, but a region of its own.
pub const TOP: (u64, u64) = (HIGH.0 + HIGH.1, 1 << 20);
/// The domain that tests use when one is enough.
pub const DOMAIN: DomainId = DomainId(1);
/// How far the IOVAs of a disk lie above the GPAs behind them.
pub const SHIFT: u64 = 2 << 20;
/// A page of its own, with the text in it.
pub const SECRET: (u64, &[u8]) = (7 << 20, b"a secret of the guest's");

/// The daemon and the disks behind it.
pub struct Bed {
    /// Before the disks, so that it goes first.
    pub daemon: Daemon,
    /// By number: disk 0 is 00:02.0, the others follow.
    pub disks: Vec<Option<IotlbDisk>>,
    /// The guest's.
    pub memory: GuestMemory,
    /// With all sockets.
    pub folder: TempDir,
}

impl Bed {
    /// One well-behaved disk.
    pub fn new() -> Bed {
        Bed::with(&[Options::default()], &[])
    }

    /// These disks, and arguments for the daemon beside those that it needs.
    pub fn with(disks: &[Options], arguments: &[&str]) -> Bed {
        let folder = tempfile::Builder::new().prefix("relay-").tempdir().expect("a folder");
        let path = |name: String| folder.path().join(name).display().to_string();
        let mut all = vec!["--socket-path".to_owned(), path("iommu.sock".to_owned())];
        all.extend(["--aperture".to_owned(), format!("{:#x}-{:#x}", 1 << 20, TOP.0 + TOP.1 - 1)]);
        for number in 0..disks.len() {
            let sockets = [path(format!("front{number}")), path(format!("disk{number}"))];
            let [front, back] = sockets;
            all.extend(["--endpoint".to_owned()]);
            all.push(format!("00:{:02x}.0,vhost-user={front},backend={back}", number + 2));
        }
        all.extend(["--control".to_owned(), path("control.sock".to_owned())]);
        all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        let memory = GuestMemory::new(&[LOW, HIGH, TOP]).expect("memory");
        memory.write(SECRET.0, SECRET.1);
        let daemon = Daemon::start(all).expect("the daemon starts");
        let mut bed = Bed { daemon, disks: Vec::new(), memory, folder };
        bed.disks.resize_with(disks.len(), || None);
        for (number, options) in disks.iter().enumerate() {
            bed.serve_disk(number, *options);
        }
        bed
    }

    /// Starts the disk `number` where the daemon looks for it; its sectors are filled with their own numbers.
    pub fn serve_disk(&mut self, number: usize, options: Options) {
        let content: Vec<u8> = (0..64u8).flat_map(|sector| [sector; SECTOR]).collect();
        let image = Image::memory(&content).expect("an image");
        self.disks[number] = None;
        let disk = IotlbDisk::serve(&self.disk_path(number), image, options);
        self.disks[number] = Some(disk.expect("the disk serves"));
    }

    /// A disk that runs.
    pub fn disk(&self, number: usize) -> &IotlbDisk {
        self.disks[number].as_ref().expect("the disk runs")
    }

    /// Where the VMM connects to the disk `number`.
    pub fn front_path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("front{number}"))
    }

    /// Where the daemon looks for the disk `number`.
    pub fn disk_path(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("disk{number}"))
    }

    /// Where the VMM connects to the IOMMU.
    pub fn iommu_path(&self) -> PathBuf {
        self.folder.path().join("iommu.sock")
    }

    /// A VMM powers on, and the guest's driver finds the IOMMU.
    pub fn boot(&self) -> Guest {
        Guest::boot(&self.iommu_path(), &self.memory)
    }

    /// A guest whose disk 0 runs behind a domain that maps what it needs, and the secret at its IOVA.
    pub fn run(&self) -> (Guest, DiskVmm) {
        let mut guest = self.boot();
        guest.attach(0, DOMAIN);
        map_disk(&mut guest, DOMAIN, 0);
        guest.map(DOMAIN, SECRET_IOVA, PAGE, SECRET.0);
        let mut vmm = DiskVmm::plug(self, 0);
        vmm.start(SHIFT);
        assert_eq!(vmm.read_sector(5), Ok([5; SECTOR]));
        (guest, vmm)
    }

    /// What the disk `number` reads at `iova`, without any driver's asking: a text as long as the secret.
    pub fn peek(&self, number: usize, iova: u64) -> Outcome {
        self.disk(number).stray_dma(iova, StrayDma::Read(SECRET.1.len()))
    }

    /// Waits until an event of the disk `number` fulfils `condition`.
    pub fn wait_for(&self, number: usize, condition: impl Fn(&Event) -> bool) {
        let disk = self.disk(number);
        let came = disk.wait_until(PATIENCE, |_, events| events.iter().any(&condition));
        assert!(came, "{:x?}", disk.events());
    }

    /// Asks the daemon as an operator does.
    pub fn ctl(&self, words: &[&str]) -> anyhow::Result<String> {
        Daemon::ctl(&self.folder.path().join("control.sock"), words)
    }

    /// Waits until the daemon logs `pattern`.
    pub fn wait_log(&self, pattern: &str) {
        self.daemon.wait_for(pattern, PATIENCE).expect(pattern);
    }

    /// Processor time that the daemon has used, in hundredths of a second.
    pub fn processor_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.pid())).expect("the daemon lives");
        // The fields after the name, which ends with the last parenthesis: the state is number 3.
        let fields = stat.rsplit(')').next().expect("a rest").split_whitespace().skip(14 - 3);
        fields.take(2).map(|field| field.parse::<u64>().expect("a number")).sum()
    }

    /// The daemon's open file descriptors and threads, by number.
    pub fn resources(&self) -> [BTreeSet<String>; 2] {
        ["fd", "task"].map(|kind| {
            let folder = format!("/proc/{}/{kind}", self.daemon.pid());
            let entries = fs::read_dir(folder).expect("the daemon lives");
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
        })
    }
}

/// The IOVA at which [`Bed::run`] maps the secret.
pub const SECRET_IOVA: u64 = SECRET.0 + SHIFT - (4 << 20);

/// What a peek at the secret shows.
pub fn secret() -> Outcome {
    Outcome::Read(SECRET.1.to_vec())
}

/// Whether an access was refused.
pub fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(_))
}

/// Maps the rings and buffers of the disk `number`, [`SHIFT`] above where they are.
pub fn map_disk(guest: &mut Guest, domain: DomainId, number: usize) {
    for (start, length) in [RINGS, DATA].map(|area| area.of(number)) {
        guest.map(domain, start + SHIFT, length, start);
    }
}
