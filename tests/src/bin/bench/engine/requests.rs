// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whole requests through the device, from bytes to reply: an UNMAP and a MAP of one page in a domain that is full.

use std::hint::black_box;

use anyhow::{Result, ensure};
use viommu_core::mapping::Mappings;
use viommu_core::wire::{Head, MAP_F_READ, MAP_F_WRITE, ReqAttach, ReqMap, ReqUnmap, RequestType};
use viommu_core::{Device, DeviceConfig, EndpointId, Features, IovaRange, Limits, NoHost, Status};
use viommu_tests::peers::{PAGE, mapping};
use zerocopy::IntoBytes;

use super::clock::Clock;
use super::table::Table;
use super::workload::Workload;

/// The endpoint that is attached.
pub const ENDPOINT: EndpointId = EndpointId(8);
const DOMAIN: u32 = 1;
const TAIL: usize = 4;

/// Requests to a [`full_device`] that leave it as it was.
#[derive(Debug)]
pub struct Requests {
    name: String,
    /// An UNMAP and the MAP that undoes it.
    pairs: Vec<(ReqUnmap, ReqMap)>,
}

impl Requests {
    /// For a device with the mappings of `workload`.
    pub fn new(workload: &Workload) -> Requests {
        let pairs = workload.pair.iter().map(|range| (unmap(range), map(range))).collect();
        Requests { name: workload.name.clone(), pairs }
    }

    /// One round.
    pub fn measure(&self, device: &mut Device, table: &mut Table) -> Result<()> {
        let begin = Clock::start();
        for (unmap, map) in &self.pairs {
            let done =
                is_done(device, black_box(unmap).as_bytes()) && is_done(device, black_box(map).as_bytes());
            ensure!(done, "the device refused {unmap:x?} or {map:x?}");
        }
        let requests = 2 * self.pairs.len();
        table.add_requests(&self.name, requests as f64 / begin.elapsed().as_secs_f64());
        Ok(())
    }
}

/// A device with the mappings of `workload` in the domain of [`ENDPOINT`].
pub fn full_device(workload: &Workload) -> Result<Device> {
    let mut device = Device::new(DeviceConfig {
        mode: viommu_core::Mode::Map,
        page_size_mask: !(PAGE - 1),
        aperture: IovaRange::ALL,
        domain_ids: 0..=u32::MAX,
        boot_bypass: false,
        limits: Limits {
            mappings_max: workload.map.len(),
            mapping_bytes_max: Mappings::BYTES_LIMIT,
            ..Limits::default()
        },
        endpoints: vec![ENDPOINT],
    })?;
    device.negotiate(Features::OFFERED.bits());
    ensure!(is_done(&mut device, attach().as_bytes()), "the device refused an ATTACH");
    for range in &workload.map {
        ensure!(is_done(&mut device, map(range).as_bytes()), "the device refused a MAP of {range}");
    }
    Ok(device)
}

fn is_done(device: &mut Device, request: &[u8]) -> bool {
    let reply = device.handle(request, TAIL, &mut NoHost);
    black_box(reply.bytes).first() == Some(&(Status::Ok as u8))
}

fn head(kind: RequestType) -> Head {
    Head { kind, reserved: [0; 3] }
}

fn attach() -> ReqAttach {
    ReqAttach {
        head: head(RequestType::ATTACH),
        domain: DOMAIN.into(),
        endpoint: ENDPOINT.0.into(),
        flags: 0.into(),
        reserved: [0; 4],
    }
}

fn map(range: &IovaRange) -> ReqMap {
    ReqMap {
        head: head(RequestType::MAP),
        domain: DOMAIN.into(),
        virt_start: range.start().into(),
        virt_last: range.last().into(),
        phys_start: mapping(*range).target.gpa.0.into(),
        flags: (MAP_F_READ | MAP_F_WRITE).into(),
    }
}

fn unmap(range: &IovaRange) -> ReqUnmap {
    ReqUnmap {
        head: head(RequestType::UNMAP),
        domain: DOMAIN.into(),
        virt_start: range.start().into(),
        virt_last: range.last().into(),
        reserved: [0; 4],
    }
}
