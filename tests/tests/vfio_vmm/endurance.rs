// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Many mappings that come and go in any order while devices do DMA: it goes where it should, there is no limit of
//! 65,535 as VFIO's own containers have it, and nothing grows.
//!
//! The environment variable `VFIO_REQUESTS` says how many requests there are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use viommu_tests::model::request::{self, Wire};
use viommu_tests::peers::Random;
use viommu_tests::vfio_vmm::{Registers, TestDevice, VfioVmm, Written};

use crate::scene::{BOTH, Dma, IOVA, LOW, OK, PAGE, kib, running};

const DEFAULT_REQUESTS: u64 = 100_000;
/// Requests that the device has at a time.
const BATCH: usize = 32;
/// Where the mappings lie.
const BASE: u64 = 0x80_0000_0000;
const PAGES: u64 = 2 * VfioVmm::REGION / PAGE;
/// The page that the first device writes to all the time.
const ALWAYS: u64 = VfioVmm::HIGH + VfioVmm::HIGH_BYTES - PAGE;

/// Pages of IOVAs, each mapped to a page of memory or not, as the guest and the devices have to agree on.
struct Plan {
    random: Random,
    /// The page of memory that is behind each page of IOVAs.
    targets: Vec<Option<u64>>,
    /// Those that are mapped, in no order.
    mapped: Vec<usize>,
    mapped_max: usize,
}

/// What has to stay as it is, in KiB.
#[derive(Debug)]
struct Memory {
    daemon: u64,
    kernel: u64,
}

fn slot_iova(slot: usize) -> u64 {
    BASE + slot as u64 * PAGE
}

fn page_gpa(page: u64) -> u64 {
    LOW + page * PAGE
}

impl Plan {
    fn new(mapped_max: usize) -> Plan {
        Plan { random: Random::new(1), targets: vec![None; 2 * mapped_max], mapped: Vec::new(), mapped_max }
    }

    fn is_full(&self) -> bool {
        self.mapped.len() == self.mapped_max
    }

    /// The next request. Below the limit there are more MAPs than UNMAPs.
    fn next(&mut self) -> Vec<u8> {
        let is_unmap = self.is_full() || (!self.mapped.is_empty() && self.random.below(50) == 0);
        if is_unmap {
            let at = self.random.below(self.mapped.len() as u64) as usize;
            let slot = self.mapped.swap_remove(at);
            self.targets[slot] = None;
            let iova = slot_iova(slot);
            return request::unmap(1, (iova, iova + PAGE - 1)).readable();
        }
        let slot = self.free_slot();
        let page = self.random.below(PAGES);
        self.targets[slot] = Some(page);
        self.mapped.push(slot);
        let iova = slot_iova(slot);
        request::map(1, (iova, iova + PAGE - 1), page_gpa(page), BOTH).readable()
    }

    fn free_slot(&mut self) -> usize {
        loop {
            let slot = self.random.below(self.targets.len() as u64) as usize;
            if self.targets[slot].is_none() {
                return slot;
            }
        }
    }

    /// A look at one page of IOVAs by the second device.
    fn assert_agrees(&mut self, vmm: &VfioVmm) {
        let slot = self.random.below(self.targets.len() as u64) as usize;
        let at = self.random.below(PAGE / 4) * 4;
        match self.targets[slot] {
            Some(page) => vmm.assert_lands(1, slot_iova(slot) + at, page_gpa(page) + at),
            None => vmm.assert_refused(1, slot_iova(slot) + at, LOW),
        }
    }
}

impl Memory {
    fn now(daemon: u32) -> Result<Memory> {
        let of_kernel = |name| kib("/proc/meminfo", name);
        let kernel = of_kernel("Slab")? + of_kernel("SecPageTables")? + of_kernel("KernelStack")?;
        Ok(Memory { daemon: kib(&format!("/proc/{daemon}/status"), "VmRSS")?, kernel })
    }

    /// Both have grown by less than this.
    fn assert_grown_less(&self, since: &Memory, kib: u64) {
        let grown = [self.daemon.saturating_sub(since.daemon), self.kernel.saturating_sub(since.kernel)];
        assert!(grown.iter().all(|grown| *grown < kib), "from {since:?} to {self:?}");
    }
}

/// Sends `count` requests, a batch at a time, with a look at what they make of the devices after each.
fn send(vmm: &mut VfioVmm, plan: &mut Plan, count: u64) -> Result<()> {
    let mut left = count;
    while left > 0 {
        let batch = left.min(BATCH as u64);
        let driver = &mut vmm.guest().driver;
        for _ in 0..batch {
            driver.submit(&plan.next(), 4).ok_or_else(|| anyhow!("no room"))?;
        }
        driver.requests().kick_if_wanted();
        for _ in 0..batch {
            let (_, reply) = driver.complete().map_err(|error| anyhow!("{error:?}"))?;
            ensure!(reply.status() == OK, "status {}", reply.status());
        }
        left -= batch;
        plan.assert_agrees(vmm);
    }
    Ok(())
}

/// Writes to `iova` again and again, which nothing may disturb.
fn write_always(registers: &Registers, iova: u64, is_over: &AtomicBool, count: &AtomicU64) -> Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        ensure!(TestDevice(registers).write(iova, 4)? == Written::All, "refused");
        count.fetch_add(1, Ordering::Relaxed);
        // Otherwise the emulated IOMMU has time for nothing else.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn requests() -> Result<u64> {
    std::env::var("VFIO_REQUESTS").map_or(Ok(DEFAULT_REQUESTS), |count| Ok(count.parse()?))
}

#[test]
fn any_number_of_mappings_comes_and_goes_while_devices_do_dma() -> Result<()> {
    let (requests, begin) = (requests()?, Instant::now());
    let (daemon, mut vmm) = running(2, &[])?;
    for device in 0..2 {
        assert_eq!(vmm.attach(1, device, 0)?, OK);
    }
    assert_eq!(vmm.map(1, IOVA, ALWAYS, PAGE, BOTH)?, OK);
    let mut plan = Plan::new((requests * 4 / 5).min(200_000).try_into()?);
    let empty = Memory::now(daemon.pid())?;
    let (is_over, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    let registers = vmm.duplicate_registers(0)?;
    let (full, last) = thread::scope(|scope| -> Result<(Memory, Memory)> {
        let writer = scope.spawn(|| write_always(&registers, IOVA, &is_over, &writes));
        let sent = (|| {
            let mut sent = 0;
            while !plan.is_full() && sent < requests {
                send(&mut vmm, &mut plan, BATCH as u64)?;
                sent += BATCH as u64;
            }
            let full = Memory::now(daemon.pid())?;
            send(&mut vmm, &mut plan, requests.saturating_sub(sent))?;
            Ok((full, Memory::now(daemon.pid())?))
        })();
        is_over.store(true, Ordering::Relaxed);
        writer.join().expect("it does not panic")?;
        sent
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{requests} requests, up to {} mappings, {} writes meanwhile, {seconds:.1} s; KiB without mappings {empty:?}, \
         with all {full:?}, at the end {last:?}",
        plan.mapped_max,
        writes.load(Ordering::Relaxed)
    );
    assert!(plan.mapped.len() > plan.mapped_max / 2);
    last.assert_grown_less(&full, 4 << 10);
    assert_eq!(vmm.unmap(1, BASE, plan.targets.len() as u64 * PAGE)?, OK);
    plan.targets.fill(None);
    for _ in 0..100 {
        plan.assert_agrees(&vmm);
    }
    let after = Memory::now(daemon.pid())?;
    println!("without mappings again {after:?}");
    // The kernel keeps some of what it has freed for the next that wants it.
    let kept = after.kernel.saturating_sub(empty.kernel);
    let needed = full.kernel.saturating_sub(empty.kernel);
    assert!(kept < needed / 2 + 1024, "from {empty:?} to {after:?}");
    vmm.assert_lands(0, IOVA, ALWAYS);
    Ok(())
}
