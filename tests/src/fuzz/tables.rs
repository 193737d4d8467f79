// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes as the life of a device of tables, which the real one and the naive one lead side by side.
//!
//! The numbers come from small pools, as those of [`plan`](crate::table_model::plan) do; comparing is the matter of
//! [`Bench`].

use viommu_core::Limits;

use super::input::Input;
use crate::model::HostAnswer;
use crate::model::request::{self, Wire};
use crate::table_model::plan::{ENDPOINTS, FEATURES, PASIDS};
use crate::table_model::{Bench, Op, Plan};

/// Steps of one life; each compares everything.
const STEPS_MAX: usize = 160;

/// One life, or as much of it as there are bytes.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let plan = plan(&mut input);
    let mut bench = Bench::new(&plan);
    bench.step(&Op::Negotiate(FEATURES[0]));
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        bench.step(&op(&mut input));
    }
    bench.end();
}

fn plan(input: &mut Input<'_>) -> Plan {
    let (sizes, switches) = (input.u8(), input.u8());
    let limit = |shift: u8| usize::from((sizes >> shift) % 4) + 1;
    let limits = Limits {
        domains_max: limit(0),
        faults_max: limit(2),
        pasids_max: limit(4),
        page_requests_max: limit(6) + 1,
        ..Limits::default()
    };
    let domain_last = if switches & 4 != 0 { 3 } else { 5 };
    Plan {
        domain_last,
        boot_bypass: switches & 1 != 0,
        limits,
        is_grouped: switches & 2 != 0,
        ops: Vec::new(),
    }
}

fn op(input: &mut Input<'_>) -> Op {
    let choice = input.u8();
    match choice % 32 {
        0 => Op::Negotiate(input.pick(&FEATURES)),
        1 => Op::Finish(host(input)),
        2 => Op::Reset,
        3 => Op::Wait(input.u8().into()),
        4 => Op::End(endpoint(input)),
        5 => {
            let (endpoint, pasid) = (endpoint(input), pasid(input));
            Op::Fault { endpoint, pasid, address: input.bool().then_some(u64::from(choice >> 5)) }
        }
        6 => Op::Refused { endpoint: endpoint(input), address: u64::from(choice >> 5) },
        7 => Op::Lost(endpoint(input)),
        8 | 9 => Op::Buffer(input.u8().into()),
        10..=14 => Op::Ask {
            endpoint: endpoint(input),
            pasid: pasid(input),
            group: u32::from(choice >> 5 & 1),
            pages: u64::from(input.u8() % 4),
        },
        15 => {
            let length = usize::from(input.u8() % 160);
            Op::Request(input.bytes(length).to_vec(), host(input))
        }
        _ => well_formed(input, choice),
    }
}

/// A request that a driver could send; one in eight with a byte changed, or cut.
fn well_formed(input: &mut Input<'_>, choice: u8) -> Op {
    let (domain, id) = (u32::from(input.u8() % 7), endpoint(input));
    let mut readable = match choice % 32 {
        16..=18 => request::attach_ste(domain, id, [0x4000_000b | entry(input), entry(input)]).readable(),
        19..=22 => request::attach_pt(domain, id, pasid(input), u64::from(input.u8()) << 12).readable(),
        23 => request::attach_none(domain, id, input.pick(&PASIDS)).readable(),
        24 => request::attach_bypass(domain, id).readable(),
        25 => request::detach(domain, id).readable(),
        26..=28 => invalidate(input, domain),
        _ => request::page_response(id, pasid(input), u32::from(choice >> 5 & 1), input.u16() % 4).readable(),
    };
    if choice >= 224 {
        let at = usize::from(input.u8()) % readable.len();
        match input.u8() % 4 {
            0 => readable.truncate(at),
            _ => readable[at] = input.u8(),
        }
    }
    Op::Request(readable, host(input))
}

fn invalidate(input: &mut Input<'_>, domain: u32) -> Vec<u8> {
    let page_size = input.pick(&[12, 21, 14, 30, 64]);
    let pages = input.pick(&[1, 0, 512, 1 << 52, u64::MAX]);
    let mut request = request::invalidate_pages(domain, u64::from(input.u16()) << 12, pages, page_size);
    (request.scope, request.caches) = (input.u8() % 5, input.u8() % 5);
    (request.flags, request.pasid) = ((input.u16() % 17).into(), input.pick(&PASIDS).into());
    request.id = u64::from(input.u32() % 0x2_0000).into();
    request.readable()
}

/// No bit, or one, of a word.
fn entry(input: &mut Input<'_>) -> u64 {
    let choice = input.u8();
    if choice < 128 { 0 } else { 1 << (choice % 64) }
}

fn host(input: &mut Input<'_>) -> HostAnswer {
    match input.u8() % 16 {
        13 => HostAnswer::Failed(14),
        14 => HostAnswer::Failed(5),
        15 => HostAnswer::Silence,
        _ => HostAnswer::Applied,
    }
}

fn endpoint(input: &mut Input<'_>) -> u32 {
    let [arm, arm2, vtd, vtd2, soft, nobody] = ENDPOINTS;
    input.pick(&[vtd, arm, vtd, arm, vtd2, arm2, soft, nobody])
}

fn pasid(input: &mut Input<'_>) -> Option<u32> {
    input.pick(&[None, None, Some(1), Some(1), Some(2), Some(0), Some(15), Some(16)])
}
