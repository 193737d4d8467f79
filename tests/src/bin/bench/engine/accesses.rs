// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM that links the library calls for each access of an endpoint: the device itself, and the adapter to
//! vm-memory with its IOTLB.

use std::hint::black_box;

use anyhow::{Context, Result, ensure};
use viommu_core::vm_memory::EndpointIommu;
use viommu_core::{Access, Device, Iova};
use vm_memory::{GuestAddress, Iommu, Permissions};

use super::clock::Clock;
use super::requests::ENDPOINT;
use super::table::Table;
use super::workload::{ACCESS, Workload};

/// Addresses whose mappings the IOTLB has after the first time: those of a ring and its buffers, say.
const KNOWN: usize = 64;

/// One round on a device that has the mappings of `workload`.
pub fn measure(device: &Device, workload: &Workload, table: &mut Table) -> Result<()> {
    let anywhere = &workload.lookup;
    let known: Vec<u64> = anywhere.iter().take(KNOWN).cycle().take(anywhere.len()).copied().collect();
    let iommu = EndpointIommu::new();
    iommu.follow(device, ENDPOINT);
    let translate = |iova| device.translate(ENDPOINT, Iova(iova), ACCESS, Access::READ).next()?.ok();
    let by_device = |iova| translate(iova).map(|piece| piece.gpa.0);
    let by_adapter = |iova| {
        let mut pieces = iommu.translate(GuestAddress(iova), ACCESS as usize, Permissions::Read).ok()?;
        pieces.next().map(|piece| piece.base.0)
    };
    let (device_ns, device_sum) = each(anywhere, by_device)?;
    let (adapter_ns, adapter_sum) = each(anywhere, by_adapter)?;
    ensure!(device_sum == adapter_sum, "the device and its adapter lead to different places");
    each(&known[..KNOWN.min(known.len())], by_adapter)?;
    let (known_ns, _) = each(&known, by_adapter)?;
    table.add_access("Device::translate, anywhere", device_ns);
    table.add_access("vm-memory adapter, anywhere", adapter_ns);
    table.add_access("vm-memory adapter, in 64 places that it knows", known_ns);
    Ok(())
}

/// Nanoseconds for each address, and a sum of where they lead.
fn each(iovas: &[u64], translate: impl Fn(u64) -> Option<u64>) -> Result<(f64, u64)> {
    let mut sum = 0u64;
    let begin = Clock::start();
    for iova in iovas {
        sum = sum.wrapping_add(translate(black_box(*iova)).context("a mapped address leads nowhere")?);
    }
    Ok((begin.elapsed().as_nanos() as f64 / iovas.len() as f64, sum))
}
