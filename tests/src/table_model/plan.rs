// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Made-up lives of a device of tables. The numbers come from small pools, so that steps meet each other.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use viommu_core::{
    DeviceConfig, EndpointId, IovaRange, Limits, Mode, PageRequestSupport, PasidSupport, TableHardware,
    TableSupport,
};

use crate::model::HostAnswer;
use crate::model::request::{self, Wire};

/// Two endpoints of SMMUs, two of a VT-d unit, one without any, and one that does not exist.
pub const ENDPOINTS: [u32; 6] = [ARM, ARM2, VTD, VTD2, SOFT, 9];
pub(super) const ARM: u32 = 1;
pub(super) const ARM2: u32 = 2;
pub(super) const VTD: u32 = 3;
pub(super) const VTD2: u32 = 4;
pub(super) const SOFT: u32 = 5;
/// PASIDs of the requests that are made up.
pub const PASIDS: [u32; 6] = [0, 1, 2, 15, 16, 1 << 20];
/// What a driver accepts: all, or all but tables.
pub const FEATURES: [u64; 2] = [0xd3, 0x53];

/// One life of a device.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Domain ids are 1 to this.
    pub domain_last: u32,
    /// Whether unattached endpoints bypass.
    pub boot_bypass: bool,
    /// How much the device holds.
    pub limits: Limits,
    /// Whether the two endpoints of each vendor are of one group of the host.
    pub is_grouped: bool,
    /// What happens to it.
    pub ops: Vec<Op>,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Op {
    /// The driver accepts these features.
    Negotiate(u64),
    /// The readable part of a request, and the host's answer should it be asked.
    Request(Vec<u8>, HostAnswer),
    /// The host's late answer.
    Finish(HostAnswer),
    /// A device reset.
    Reset,
    /// An endpoint asks for so many pages.
    Ask {
        /// The endpoint.
        endpoint: u32,
        /// For which PASID.
        pasid: Option<u32>,
        /// Its number of the group.
        group: u32,
        /// How many.
        pages: u64,
    },
    /// So many milliseconds go by.
    Wait(u64),
    /// The device of an endpoint is gone.
    End(u32),
    /// A fault at a table.
    Fault {
        /// The endpoint.
        endpoint: u32,
        /// With which PASID.
        pasid: Option<u32>,
        /// Where.
        address: Option<u64>,
    },
    /// A refused access, as devices of mappings have them.
    Refused {
        /// The endpoint.
        endpoint: u32,
        /// Where.
        address: u64,
    },
    /// Events of an endpoint were lost.
    Lost(u32),
    /// The driver has a buffer of so many bytes.
    Buffer(usize),
}

impl Plan {
    /// What the device is made with.
    pub fn config(&self) -> DeviceConfig {
        DeviceConfig {
            mode: Mode::Table { feature_bit: 7 },
            page_size_mask: 0x1000,
            aperture: IovaRange::ALL,
            domain_ids: 1..=self.domain_last,
            boot_bypass: self.boot_bypass,
            limits: self.limits,
            endpoints: ENDPOINTS[..5].iter().map(|id| EndpointId(*id)).collect(),
        }
    }

    /// The group of an endpoint, if it is of one.
    pub fn group(&self, endpoint: u32) -> Option<u32> {
        self.is_grouped.then_some((endpoint - 1) / 2)
    }
}

/// What an endpoint can do. The first SMMU has ATS, 16 KiB granules and tables of two levels; only the VT-d endpoints ask for
/// pages, and the first SMMU.
pub fn support(endpoint: u32) -> Option<TableSupport> {
    let page_requests = PageRequestSupport { requests_max: 2, timeout: Duration::from_millis(100) };
    let smmu = |idr0, granules| TableHardware::ArmSmmu3 { idr: [idr0, 4 << 6, 0, 0, 0, granules] };
    let (hardware, ats, pasids, page_requests) = match endpoint {
        ARM => (smmu(1 << 19, 0x30), true, None, Some(page_requests)),
        ARM2 => (smmu(0, 0x10), false, None, None),
        VTD | VTD2 => {
            let hardware = TableHardware::IntelVtd { flags: 0, cap: 1 << 60, ecap: 1 << 31 };
            let pasids = PasidSupport { bits: 4, exec: false, privileged: false };
            (hardware, true, Some(pasids), Some(page_requests))
        }
        _ => return None,
    };
    Some(TableSupport { hardware, ats, pasids, page_requests })
}

/// Plans of up to `ops_max` steps.
pub fn plans(ops_max: usize) -> impl Strategy<Value = Plan> {
    let limits = (1..=4usize, 1..=3usize, 1..=3usize, 1..=6usize);
    (select(vec![3, 5]), any::<bool>(), limits, any::<bool>(), vec(ops(), 1..=ops_max)).prop_map(
        |(
            domain_last,
            boot_bypass,
            (domains_max, faults_max, pasids_max, page_requests_max),
            is_grouped,
            ops,
        )| {
            let limits =
                Limits { domains_max, faults_max, pasids_max, page_requests_max, ..Limits::default() };
            let ops = beginning().chain(ops).collect();
            Plan { domain_last, boot_bypass, limits, is_grouped, ops }
        },
    )
}

/// Something to begin with, so that pages can be asked for.
fn beginning() -> impl Iterator<Item = Op> {
    let requests = [
        request::attach_pt(1, VTD, None, 0x1000),
        request::attach_pt(1, VTD, Some(1), 0x2000),
        request::attach_ste(2, ARM, [0x4000_000b, 0]),
    ];
    let attach = requests.map(|request| Op::Request(request.readable(), HostAnswer::Applied));
    [Op::Negotiate(FEATURES[0])].into_iter().chain(attach)
}

fn ops() -> BoxedStrategy<Op> {
    let request = (requests(), answers()).prop_map(|(readable, host)| Op::Request(readable, host));
    let ask = (askers(), maybe_pasids(), 0..2u32, prop_oneof![4 => 1..3u64, 1 => 0..5u64])
        .prop_map(|(endpoint, pasid, group, pages)| Op::Ask { endpoint, pasid, group, pages });
    let fault = (endpoints(), maybe_pasids(), prop::option::of(0..3u64))
        .prop_map(|(endpoint, pasid, address)| Op::Fault { endpoint, pasid, address });
    let refused = (endpoints(), 0..3u64).prop_map(|(endpoint, address)| Op::Refused { endpoint, address });
    prop_oneof![
        40 => request,
        2 => answers().prop_map(Op::Finish),
        1 => select(FEATURES.to_vec()).prop_map(Op::Negotiate),
        1 => Just(Op::Negotiate(FEATURES[0])),
        1 => Just(Op::Reset),
        12 => ask,
        3 => (0..60u64).prop_map(Op::Wait),
        1 => endpoints().prop_map(Op::End),
        3 => fault,
        2 => refused,
        1 => endpoints().prop_map(Op::Lost),
        8 => select(vec![48, 48, 64, 24, 30, 10]).prop_map(Op::Buffer),
    ]
    .boxed()
}

fn answers() -> impl Strategy<Value = HostAnswer> {
    prop_oneof![
        8 => Just(HostAnswer::Applied),
        1 => select(vec![5, 12, 14]).prop_map(HostAnswer::Failed),
        1 => Just(HostAnswer::Silence),
    ]
}

fn requests() -> BoxedStrategy<Vec<u8>> {
    let well_formed = prop_oneof![
        8 => (domains(), endpoints(), entries())
            .prop_map(|(domain, id, ste)| request::attach_ste(domain, id, ste).readable()),
        8 => (domains(), endpoints(), maybe_pasids(), select(vec![0x1000, 0x2000, 0x1001]))
            .prop_map(|(domain, id, pasid, root)| request::attach_pt(domain, id, pasid, root).readable()),
        3 => (domains(), endpoints(), select(PASIDS.to_vec()))
            .prop_map(|(domain, id, pasid)| request::attach_none(domain, id, pasid).readable()),
        2 => (domains(), endpoints())
            .prop_map(|(domain, id)| request::attach_bypass(domain, id).readable()),
        1 => (domains(), endpoints()).prop_map(|(domain, id)| request::attach(domain, id).readable()),
        1 => endpoints().prop_map(|id| request::probe(id).readable()),
        2 => (domains(), endpoints()).prop_map(|(domain, id)| request::detach(domain, id).readable()),
        6 => invalidations(),
        14 => (askers(), maybe_pasids(), 0..2u32, 0..4u16)
            .prop_map(|(id, pasid, group, code)| request::page_response(id, pasid, group, code).readable()),
    ]
    .boxed();
    let bent = (well_formed.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut readable, at, byte)| {
            let at = at.index(readable.len());
            readable[at] = byte;
            readable
        },
    );
    let cut = (well_formed.clone(), 0..140usize).prop_map(|(mut readable, size)| {
        readable.resize(size, 0);
        readable
    });
    prop_oneof![20 => well_formed, 3 => bent, 1 => cut].boxed()
}

/// Entries of stage 1 with all kinds of fields, abort and bypass.
fn entries() -> impl Strategy<Value = [u64; 2]> {
    let fields = (0..4u64, select(vec![0, 0, 3, 4, 5]), 0..4u64, 0..3u64);
    let stage_1 = fields.prop_map(|(format, contexts, default, eats)| {
        [0x4000_000b | format << 4 | contexts << 59, default | eats << 28]
    });
    prop_oneof![4 => Just([0x4000_000b, 0]), 2 => stage_1, 1 => Just([1, 0]), 1 => Just([9, 1 << 28])]
}

fn invalidations() -> impl Strategy<Value = Vec<u8>> {
    let numbers = (select(PASIDS.to_vec()), select(vec![0, 7, 0xffff, 0x1_0000]));
    let range = (
        select(vec![0, 0x1000, 0x20_0000, 1, u64::MAX - 0xfff]),
        select(vec![0, 1, 512, u64::MAX, 1 << 52]),
        select(vec![12, 21, 14, 30, 16, 64]),
    );
    (domains(), 0..5u8, 0..4u8, 0..17u16, numbers, range).prop_map(
        |(domain, scope, caches, flags, (pasid, id), (address, pages, page_size))| {
            let mut request = request::invalidate_pages(domain, address, pages, page_size);
            (request.scope, request.caches) = (scope, caches);
            (request.flags, request.pasid, request.id) = (flags.into(), pasid.into(), id.into());
            request.readable()
        },
    )
}

fn endpoints() -> impl Strategy<Value = u32> {
    prop_oneof![4 => select(vec![ARM, VTD]), 2 => select(vec![ARM2, VTD2]), 1 => select(ENDPOINTS.to_vec())]
}

fn askers() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(VTD), 2 => Just(ARM), 1 => endpoints()]
}

fn domains() -> impl Strategy<Value = u32> {
    prop_oneof![6 => Just(1), 3 => Just(2), 1 => 0..=6u32]
}

fn maybe_pasids() -> impl Strategy<Value = Option<u32>> {
    prop_oneof![4 => Just(None), 4 => Just(Some(1)), 1 => select(PASIDS.to_vec()).prop_map(Some)]
}
