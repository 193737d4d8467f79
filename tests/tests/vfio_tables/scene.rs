// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices of the host, a daemon and a VMM that share them, and a guest with tables for them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use viommu_core::wire::{self, FAULT_F_ADDRESS, FAULT_F_WRITE};
use viommu_core::{Caches, Invalidation, Scope};
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::Arena;
use viommu_tests::vfio_vmm::{Allows, Descriptor, Function, Launch, Stage1, TestDevice, VfioVmm, Written};

pub const OK: u8 = 0;
pub const PAGE: u64 = 0x1000;
pub const BLOCK: u64 = 2 << 20;
/// Longest wait for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long a thing that must not happen is waited for: many times what it would take.
pub const MOMENT: Duration = Duration::from_millis(200);
/// An IOVA that is no GPA.
pub const IOVA: u64 = 0x12_3456_7000;
/// One at which blocks can begin, near the end of what the tables translate.
pub const HIGH_IOVA: u64 = 0x7f00_0000_0000;
/// Pages that devices write to.
pub const PAGES: [u64; 3] = [VfioVmm::LOW, VfioVmm::LOW + PAGE, VfioVmm::LOW + 2 * PAGE];
/// Blocks that they write to.
pub const BLOCKS: [u64; 2] = [VfioVmm::MIDDLE, VfioVmm::MIDDLE + BLOCK];
/// Where tables are made.
const TABLES: u64 = VfioVmm::LOW + (16 << 20);
const TABLES_BYTES: u64 = 16 << 20;
pub const ASID: u16 = 7;

/// A guest whose devices are the endpoints 00:03.0 and so on.
pub struct Bed {
    pub vmm: VfioVmm,
    pub daemon: Daemon,
    pub stage1: Stage1,
}

/// `iommu-testdev`s that each have a group of their own.
pub fn alone(count: usize) -> Result<Vec<Function>> {
    let all = Function::all(TestDevice::ID.0, TestDevice::ID.1)?;
    let is_alone =
        |function: &&Function| all.iter().filter(|other| other.group == function.group).count() == 1;
    let found: Vec<Function> = all.iter().filter(is_alone).take(count).cloned().collect();
    ensure!(found.len() == count, "too few iommu-testdevs with a group of their own");
    Ok(found)
}

impl Bed {
    /// With `iommu-testdev`s, attached to nothing yet.
    pub fn new(count: usize, arguments: &[&str]) -> Result<Bed> {
        Bed::of(&alone(count)?, arguments)
    }

    /// With these functions.
    pub fn of(functions: &[Function], arguments: &[&str]) -> Result<Bed> {
        let launch = Launch::of(functions)?;
        let daemon = launch.daemon(&[&["--mode", "table"], arguments].concat())?;
        Ok(Bed::with(VfioVmm::running(launch)?, daemon))
    }

    /// With `iommu-testdev`s that are not bound.
    pub fn unplugged(count: usize) -> Result<Bed> {
        let launch = Launch::of(&alone(count)?)?;
        let socket = launch.socket();
        let daemon = launch.daemon(&["--mode", "table"])?;
        let mut vmm = VfioVmm::of(launch)?;
        vmm.connect(&socket)?;
        Ok(Bed::with(vmm, daemon))
    }

    fn with(vmm: VfioVmm, daemon: Daemon) -> Bed {
        let stage1 = Stage1::new(&vmm.memory, Arena::new(TABLES, TABLES_BYTES));
        Bed { vmm, daemon, stage1 }
    }

    /// With one device, which is in domain 1 with a table that leads [`IOVA`] to the first page.
    pub fn attached(arguments: &[&str]) -> Result<(Bed, Descriptor)> {
        let mut bed = Bed::new(1, arguments)?;
        let descriptor = bed.descriptor(ASID, &[(IOVA, PAGES[0])]);
        assert_eq!(bed.vmm.attach_table(1, 0, descriptor.entry())?, OK);
        assert_eq!(bed.written(0, IOVA), Some(PAGES[0]));
        Ok((bed, descriptor))
    }

    /// A descriptor of a table with these pages.
    pub fn descriptor(&mut self, asid: u16, pages: &[(u64, u64)]) -> Descriptor {
        let descriptor = self.stage1.descriptor(asid);
        for (iova, page) in pages {
            self.map(&descriptor, *iova, *page);
        }
        descriptor
    }

    /// Has a page of a descriptor's table lead somewhere.
    pub fn map(&mut self, descriptor: &Descriptor, iova: u64, page: u64) {
        self.stage1.map(descriptor.root, iova, page, Allows::All);
    }

    /// Where a device's write to `iova` ends up, or that it is refused. It may be where a page or block for that begins, or
    /// where `iova` says.
    #[track_caller]
    pub fn written(&self, device: usize, iova: u64) -> Option<u64> {
        let in_page = |page: u64| page + iova % PAGE;
        let in_block = |block: u64| block + iova % BLOCK;
        let mut targets: Vec<u64> = PAGES.map(in_page).into_iter().chain(BLOCKS.map(in_block)).collect();
        // Untranslated.
        let is_gpa = (VfioVmm::LOW..VfioVmm::LOW + 2 * VfioVmm::REGION).contains(&iova);
        targets.extend((is_gpa && !targets.contains(&iova)).then_some(iova));
        targets.iter().for_each(|target| self.vmm.memory.write(*target, &[0; 4]));
        let written = self.vmm.write(device, iova).expect("the device answers");
        let is_there = |target: &u64| self.vmm.memory.read(*target, 4) == TestDevice::PATTERN;
        let mut reached = targets.into_iter().filter(is_there);
        let first = reached.next();
        assert_eq!(reached.next(), None, "two places were written through {iova:#x}");
        match written {
            Written::All => assert!(first.is_some(), "{iova:#x} leads to an unknown place"),
            Written::Refused => assert_eq!(first, None, "refused, and memory is overwritten"),
        }
        first
    }

    /// INVALIDATE, which is done.
    #[track_caller]
    pub fn invalidate(&mut self, domain: u32, scope: Scope, caches: Caches, id: Option<u16>) {
        let invalidation = Invalidation { scope, caches, leaf: false, id, global: false };
        let status = self.vmm.invalidate(domain, &invalidation).expect("a reply");
        assert_eq!(status, OK, "{invalidation:?}");
    }

    /// Gives the device room for so many events.
    pub fn post(&mut self, count: usize) {
        self.vmm.guest().driver.post_table_event_buffers(count);
    }

    /// The next event, all of whose bytes are written.
    pub fn event(&mut self) -> Result<wire::TableEvent> {
        let event = self.vmm.guest().driver.wait_table_event();
        let event =
            event.map_err(|error| anyhow!("no event: {error:?}\n{}", self.daemon.lines().join("\n")))?;
        ensure!(event.written == 48, "{event:?}");
        Ok(event.event)
    }

    /// What is told of a write of a device that is refused.
    #[track_caller]
    pub fn event_of(&mut self, device: usize, iova: u64) -> wire::TableEvent {
        self.post(1);
        assert_eq!(self.written(device, iova), None);
        self.event().expect("an event")
    }

    /// Waits until the daemon has been told of so many faults, 10 at most: it logs no more of them at once.
    #[track_caller]
    pub fn wait_for_faults(&self, count: usize) {
        let told = || self.daemon.lines().iter().filter(|line| line.contains("fault: ")).count();
        eventually("the daemon is told of all faults", || told() >= count);
    }

    /// That no event comes, whose buffer is there.
    pub fn assert_silent(&mut self) {
        sleep(MOMENT);
        assert_eq!(self.vmm.guest().driver.events().take_used(), None);
    }

    /// What has to be told of a refused write.
    pub fn failed_write(&self, device: usize, reason: u8, iova: u64) -> wire::TableEvent {
        wire::TableEvent {
            reason,
            flags: (FAULT_F_WRITE | FAULT_F_ADDRESS).into(),
            address: iova.into(),
            ..self.fault(device, reason)
        }
    }

    /// The same without an address.
    pub fn fault(&self, device: usize, reason: u8) -> wire::TableEvent {
        wire::TableEvent {
            reason,
            reserved: [0; 3],
            flags: 0.into(),
            endpoint: self.vmm.endpoint(device).0.into(),
            pasid: 0.into(),
            address: 0.into(),
            group_id: 0.into(),
            reserved1: [0; 4],
            reserved2: [0; 16],
        }
    }
}

/// Pages of 4 KiB.
pub fn pages(start: u64, count: u64) -> Scope {
    Scope::Addresses { pasid: None, start, pages: count, page_shift: 12 }
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
