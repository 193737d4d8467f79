// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of the host, a daemon and a VMM that share them, and what a device's write does to memory.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use viommu_core::wire::{MAP_F_READ, MAP_F_WRITE};
use viommu_tests::daemon::Daemon;
use viommu_tests::vfio_vmm::{Function, Launch, TestDevice, VfioVmm, Written};

pub const OK: u8 = 0;
pub const PAGE: u64 = 0x1000;
pub const READ: u32 = MAP_F_READ;
pub const BOTH: u32 = MAP_F_READ | MAP_F_WRITE;
/// Longest wait for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const LOW: u64 = VfioVmm::LOW;
/// An IOVA that is no GPA.
pub const IOVA: u64 = 0x12_3456_7000;

/// `iommu-testdev`s that each have a group of their own.
pub fn alone(count: usize) -> Result<Vec<Function>> {
    let all = Function::all(TestDevice::ID.0, TestDevice::ID.1)?;
    let is_alone =
        |function: &&Function| all.iter().filter(|other| other.group == function.group).count() == 1;
    let found: Vec<Function> = all.iter().filter(is_alone).take(count).cloned().collect();
    ensure!(found.len() == count, "too few iommu-testdevs with a group of their own");
    Ok(found)
}

/// A daemon with these arguments, and a VMM with `count` devices that has connected to it.
pub fn running(count: usize, arguments: &[&str]) -> Result<(Daemon, VfioVmm)> {
    let launch = Launch::of(&alone(count)?)?;
    let daemon = launch.daemon(arguments)?;
    let vmm = VfioVmm::running(launch)?;
    Ok((daemon, vmm))
}

/// What a device does to memory.
pub trait Dma {
    /// A write to `iova` ends up at `gpa`.
    fn assert_lands(&self, device: usize, iova: u64, gpa: u64);

    /// A write to `iova` is refused, and what is at `gpa` stays.
    fn assert_refused(&self, device: usize, iova: u64, gpa: u64);

    /// Whether a write to `iova` ends up at `gpa`.
    fn lands(&self, device: usize, iova: u64, gpa: u64) -> bool;
}

impl Dma for VfioVmm {
    #[track_caller]
    fn assert_lands(&self, device: usize, iova: u64, gpa: u64) {
        assert!(self.lands(device, iova, gpa), "device {device} does not reach {gpa:#x} by {iova:#x}");
    }

    #[track_caller]
    fn assert_refused(&self, device: usize, iova: u64, gpa: u64) {
        self.memory.write(gpa, &[0; 4]);
        let written = self.write(device, iova).expect("the device answers");
        assert_eq!(self.memory.read(gpa, 4), [0; 4], "device {device} reaches {gpa:#x} by {iova:#x}");
        assert_eq!(written, Written::Refused, "device {device} reaches something by {iova:#x}");
    }

    fn lands(&self, device: usize, iova: u64, gpa: u64) -> bool {
        self.memory.write(gpa, &[0; 4]);
        let written = self.write(device, iova).expect("the device answers");
        let is_there = self.memory.read(gpa, 4) == TestDevice::PATTERN;
        assert!(written == Written::All || !is_there, "refused, and {gpa:#x} is overwritten");
        is_there
    }
}

/// Waits until `condition` holds, for what has no event to wait for.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(2));
    }
}

/// The number in a line `NAME: NUMBER kB` of a process's status or of the host's memory.
pub fn kib(file: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
    Ok(line.trim_start_matches(':').trim_end_matches("kB").trim().parse()?)
}

/// Shared memory on the host, in KiB, once nothing of earlier tests is still being freed.
pub fn settled_shared_kib() -> u64 {
    let mut before = shared_kib();
    loop {
        // Nothing tells that nothing happens.
        sleep(Duration::from_millis(300));
        let now = shared_kib();
        if now == before {
            return now;
        }
        before = now;
    }
}

/// The same as it is now.
pub fn shared_kib() -> u64 {
    kib("/proc/meminfo", "Shmem").expect("the kernel counts it")
}
