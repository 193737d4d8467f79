// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes as the life of a device, which the real one and the naive one lead side by side.
//!
//! The numbers come from small pools, as those of [`plan`](crate::model::plan) do; comparing is the matter of
//! [`Bench`].

use viommu_core::{DeviceConfig, EndpointId, Features, Granule, IovaRange, Limits};

use super::input::Input;
use crate::model::plan::{ENDPOINTS, STRANGER};
use crate::model::request::{self, Wire};
use crate::model::{Bench, HostAnswer, Op, Plan};

/// Steps of one life; each compares everything.
const STEPS_MAX: usize = 160;

/// One life, or as much of it as there are bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let plan = Plan { config: config(&mut input), ops: Vec::new() };
    let mut bench = Bench::new(&plan);
    bench.step(&Op::Negotiate(Features::OFFERED.bits() | 1 << 32));
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        bench.step(&op(&mut input, &plan.config));
    }
}

fn config(input: &mut Input<'_>) -> DeviceConfig {
    let range = request::range;
    let apertures = [
        IovaRange::ALL,
        range(0, 0xffff_ffff),
        range(0x10_0000, 0x17_ffff),
        range(u64::MAX - 0xf_ffff, u64::MAX),
    ];
    let sizes = input.u8();
    let limit = |shift: u8, max: u8| usize::from((sizes >> shift) % max) + 1;
    DeviceConfig {
        mode: viommu_core::Mode::Map,
        page_size_mask: input.pick(&[0x1000, 0x4020_1000, 0x1_0000]),
        aperture: input.pick(&apertures),
        domain_ids: if input.bool() { 1..=3 } else { 0..=u32::MAX },
        boot_bypass: input.bool(),
        limits: Limits {
            domains_max: limit(0, 4),
            mappings_max: limit(2, 16),
            faults_max: limit(6, 4),
            ..Limits::default()
        },
        endpoints: ENDPOINTS.map(EndpointId).to_vec(),
    }
}

fn op(input: &mut Input<'_>, config: &DeviceConfig) -> Op {
    let choice = input.u8();
    match choice % 32 {
        0 => Op::Negotiate(if choice < 64 { Features::OFFERED.bits() } else { input.u64() }),
        1 => Op::SetReserved(endpoint(input), regions(input, config)),
        2 => Op::ConfigWrite { offset: 36, data: vec![input.u8() % 3], host: host(input) },
        3 => {
            let (offset, length) = (usize::from(input.u8() % 64), usize::from(input.u8() % 64));
            Op::ConfigWrite { offset, data: input.bytes(length).to_vec(), host: host(input) }
        }
        4 => Op::Finish(host(input)),
        5 => Op::Reset,
        6 => Op::SystemReset,
        7 => Op::Report {
            endpoint: endpoint(input),
            address: address(input, config),
            access: u32::from(input.u8() % 3) + 1,
            reason: input.u8() % 3,
        },
        8 => Op::TakeEvent,
        9 => Op::Access {
            endpoint: endpoint(input),
            iova: address(input, config),
            length: if choice < 128 { input.u16().into() } else { u64::MAX - u64::from(input.u16()) },
            access: u32::from(input.u8() % 3) + 1,
        },
        10 | 11 => {
            let (length, writable) = (usize::from(input.u8()), usize::from(input.u16()) % 1024);
            Op::Request { readable: input.bytes(length).to_vec(), writable, host: host(input) }
        }
        _ => well_formed(input, config, choice),
    }
}

/// A request that a driver could send; one in eight with a byte changed, or cut.
fn well_formed(input: &mut Input<'_>, config: &DeviceConfig, choice: u8) -> Op {
    let (mut readable, mut writable) = match choice % 32 {
        12..=14 => wire(request::attach(domain(input), endpoint(input))),
        15 => wire(request::attach_bypass(domain(input), endpoint(input))),
        16 | 17 => wire(request::detach(domain(input), endpoint(input))),
        18 => wire(request::probe(endpoint(input))),
        19..=24 => wire(request::unmap(domain(input), range_of(input, config))),
        _ => {
            let (domain, range) = (domain(input), range_of(input, config));
            wire(request::map(domain, range, address(input, config), u32::from(input.u8() % 8)))
        }
    };
    if choice >= 224 {
        let at = usize::from(input.u8()) % readable.len();
        match input.u8() % 4 {
            0 => readable.truncate(at),
            1 => writable = usize::from(input.u16()) % 1024,
            _ => readable[at] = input.u8(),
        }
    }
    Op::Request { readable, writable, host: host(input) }
}

fn wire(request: impl Wire) -> (Vec<u8>, usize) {
    (request.readable(), request.writable())
}

fn host(input: &mut Input<'_>) -> HostAnswer {
    match input.u8() % 16 {
        14 => HostAnswer::Failed(5),
        15 => HostAnswer::Silence,
        _ => HostAnswer::Applied,
    }
}

fn endpoint(input: &mut Input<'_>) -> u32 {
    let [one, other, last] = ENDPOINTS;
    input.pick(&[one, other, last, one, other, one, one, STRANGER])
}

fn domain(input: &mut Input<'_>) -> u32 {
    input.pick(&[1, 1, 1, 2, 2, 3, 0, u32::MAX])
}

/// A granule near the aperture's start, its end, or the end of the 64-bit space; sometimes a byte off.
fn address(input: &mut Input<'_>, config: &DeviceConfig) -> u64 {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    let choice = input.u8();
    let anchor = match choice >> 6 {
        0 | 1 => config.aperture.start(),
        2 => config.aperture.last().wrapping_sub(granule * 8 - 1),
        _ => u64::MAX - (granule * 8 - 1),
    };
    let off = if choice & 0x30 == 0x30 { input.u16().into() } else { 0 };
    anchor.wrapping_add(u64::from(choice & 0xf) * granule).wrapping_add(off)
}

/// First and last address; of a few granules, or from one address to another, which may be reversed.
fn range_of(input: &mut Input<'_>, config: &DeviceConfig) -> (u64, u64) {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    let start = address(input, config);
    let choice = input.u8();
    let last = match choice % 16 {
        0 => address(input, config),
        1 => u64::MAX,
        2 => config.aperture.last(),
        _ => start.wrapping_add((u64::from(choice >> 4) + 1) * granule - 1),
    };
    (if choice == 1 { 0 } else { start }, last)
}

fn regions(input: &mut Input<'_>, config: &DeviceConfig) -> Vec<(u64, u64, bool)> {
    let count = input.u8() % 4;
    let regions = (0..count).map(|_| (range_of(input, config), input.bool()));
    let forward = regions.filter(|((start, last), _)| start <= last);
    forward.map(|((start, last), is_msi)| (start, last, is_msi)).collect()
}
