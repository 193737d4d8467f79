// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Made-up lives of a device: a configuration, then steps of a driver, a host and a machine.
//!
//! The numbers come from small pools, so that steps meet each other: few ids, few granules around the
//! edges of the aperture and of the 64-bit space, limits that are soon reached. Checks nothing.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use viommu_core::{DeviceConfig, EndpointId, Features, Granule, IovaRange, Limits};

use super::request::{self, PROBE_REPLY_SIZE, Wire, range};

/// The endpoints of every plan.
pub const ENDPOINTS: [u32; 3] = [1, 2, u32::MAX];
/// An endpoint that no plan has.
pub const STRANGER: u32 = 7;

/// One life of a device.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What the device is made with.
    pub config: DeviceConfig,
    /// What happens to it.
    pub ops: Vec<Op>,
}

/// What the host says to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostAnswer {
    /// Done.
    Applied,
    /// No: this errno.
    Failed(i32),
    /// Nothing: the change stays under way.
    Silence,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Op {
    /// The driver accepts these features.
    Negotiate(u64),
    /// An endpoint reserves regions: first address, last address, whether for MSIs.
    SetReserved(u32, Vec<(u64, u64, bool)>),
    /// A request, and the host's answer should it be asked.
    Request {
        /// The readable part.
        readable: Vec<u8>,
        /// Bytes of the writable part.
        writable: usize,
        /// The answer.
        host: HostAnswer,
    },
    /// A write to the configuration space, and the host's answer should it be asked.
    ConfigWrite {
        /// Where.
        offset: usize,
        /// What.
        data: Vec<u8>,
        /// The answer.
        host: HostAnswer,
    },
    /// The host's late answer to a change that it was silent about.
    Finish(HostAnswer),
    /// A device reset.
    Reset,
    /// A reset of the machine.
    SystemReset,
    /// An endpoint was refused an access.
    Report {
        /// The endpoint.
        endpoint: u32,
        /// The address.
        address: u64,
        /// 1 read, 2 write, 3 both.
        access: u32,
        /// The reason as the event has it.
        reason: u8,
    },
    /// The driver takes an event.
    TakeEvent,
    /// An endpoint tries an access.
    Access {
        /// The endpoint.
        endpoint: u32,
        /// The address.
        iova: u64,
        /// Bytes.
        length: u64,
        /// 1 read, 2 write, 3 both.
        access: u32,
    },
}

/// Plans of up to `ops_max` steps.
pub fn plans(ops_max: usize) -> impl Strategy<Value = Plan> {
    configs().prop_flat_map(move |config| {
        let ops = vec(ops(&config), 1..=ops_max);
        (Just(config), features(), ops).prop_map(|(config, features, ops)| {
            let (readable, writable) = wire(request::attach(1, ENDPOINTS[0]));
            let attach = Op::Request { readable, writable, host: HostAnswer::Applied };
            let ops = [Op::Negotiate(features), attach].into_iter().chain(ops).collect();
            Plan { config, ops }
        })
    })
}

fn configs() -> impl Strategy<Value = DeviceConfig> {
    let masks = select(vec![0x1000, 0x4020_1000, 0x1_0000]);
    let apertures = select(vec![
        IovaRange::ALL,
        range(0, 0xffff_ffff),
        range(0x10_0000, 0x17_ffff),
        range(u64::MAX - 0xf_ffff, u64::MAX),
    ]);
    let domain_ids = select(vec![0..=u32::MAX, 1..=3]);
    let limits = (1..=4usize, 1..=8usize, 1..=3usize).prop_map(|(domains_max, mappings_max, faults_max)| {
        Limits { domains_max, mappings_max, faults_max, ..Limits::default() }
    });
    (masks, apertures, domain_ids, any::<bool>(), limits).prop_map(
        |(page_size_mask, aperture, domain_ids, boot_bypass, limits)| DeviceConfig {
            mode: viommu_core::Mode::Map,
            page_size_mask,
            aperture,
            domain_ids,
            boot_bypass,
            limits,
            endpoints: ENDPOINTS.map(EndpointId).to_vec(),
        },
    )
}

fn ops(config: &DeviceConfig) -> BoxedStrategy<Op> {
    let request = (requests(config), host_answers()).prop_map(|((readable, writable), host)| Op::Request {
        readable,
        writable,
        host,
    });
    let regions = vec((few_granules(config), any::<bool>()), 0..3).prop_map(|regions| {
        let forward = regions.into_iter().filter(|((start, last), _)| start <= last);
        forward.map(|((start, last), is_msi)| (start, last, is_msi)).collect()
    });
    let reserve = (endpoints(), regions).prop_map(|(id, regions)| Op::SetReserved(id, regions));
    let report = (endpoints(), addresses(config), 1..=3u32, 0..=2u8)
        .prop_map(|(endpoint, address, access, reason)| Op::Report { endpoint, address, access, reason });
    let access = (endpoints(), addresses(config), lengths(config), 1..=3u32)
        .prop_map(|(endpoint, iova, length, access)| Op::Access { endpoint, iova, length, access });
    prop_oneof![
        60 => request,
        3 => config_writes(),
        3 => host_answers().prop_map(Op::Finish),
        1 => features().prop_map(Op::Negotiate),
        1 => reserve,
        1 => prop_oneof![3 => Just(Op::Reset), 1 => Just(Op::SystemReset)],
        4 => report,
        4 => Just(Op::TakeEvent),
        4 => access,
    ]
    .boxed()
}

fn features() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => Just(Features::OFFERED.bits() | 1 << 32),
        1 => any::<u64>(),
    ]
}

fn host_answers() -> impl Strategy<Value = HostAnswer> {
    prop_oneof![
        8 => Just(HostAnswer::Applied),
        1 => select(vec![5, 12]).prop_map(HostAnswer::Failed),
        1 => Just(HostAnswer::Silence),
    ]
}

fn config_writes() -> impl Strategy<Value = Op> {
    let write = prop_oneof![
        (Just(36), vec(0..=2u8, 1)),
        (Just(0), vec(0..=1u8, 40)),
        (0..50usize, vec(any::<u8>(), 0..48)),
    ];
    (write, host_answers()).prop_map(|((offset, data), host)| Op::ConfigWrite { offset, data, host })
}

/// A readable part and the size of a writable one.
fn requests(config: &DeviceConfig) -> BoxedStrategy<(Vec<u8>, usize)> {
    let flags = prop_oneof![8 => Just(3u32), 8 => 0..=7u32, 1 => any::<u32>()];
    let phys = prop_oneof![4 => (0..64u64).prop_map(|page| page << 16), 1 => addresses(config)];
    let well_formed = prop_oneof![
        6 => (domains(), endpoints()).prop_map(|(domain, endpoint)| wire(request::attach(domain, endpoint))),
        1 => (2..=4u32, endpoints()).prop_map(|(domain, id)| wire(request::attach_bypass(domain, id))),
        2 => (domains(), endpoints()).prop_map(|(domain, endpoint)| wire(request::detach(domain, endpoint))),
        24 => (domains(), ranges(config), phys, flags)
            .prop_map(|(domain, range, phys, flags)| wire(request::map(domain, range, phys, flags))),
        12 => (domains(), unmap_ranges(config)).prop_map(|(domain, range)| wire(request::unmap(domain, range))),
        1 => endpoints().prop_map(|endpoint| wire(request::probe(endpoint))),
    ];
    let bent = (well_formed.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |((mut readable, writable), at, byte)| {
            let at = at.index(readable.len());
            readable[at] = byte;
            (readable, writable)
        },
    );
    let cut = (well_formed.clone(), 0..80usize, writable_sizes()).prop_map(
        |((mut readable, _), size, writable)| {
            readable.resize(size, 0);
            (readable, writable)
        },
    );
    let cramped = (endpoints(), writable_sizes())
        .prop_map(|(endpoint, writable)| (request::probe(endpoint).readable(), writable));
    let noise = (vec(any::<u8>(), 0..80), writable_sizes());
    prop_oneof![20 => well_formed, 2 => bent, 1 => cut, 1 => cramped, 1 => noise].boxed()
}

fn wire(request: impl Wire) -> (Vec<u8>, usize) {
    (request.readable(), request.writable())
}

fn writable_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![0..8usize, PROBE_REPLY_SIZE - 4..PROBE_REPLY_SIZE + 4, 0..2 * PROBE_REPLY_SIZE]
}

fn endpoints() -> impl Strategy<Value = u32> {
    prop_oneof![9 => select(ENDPOINTS.to_vec()), 1 => Just(STRANGER)]
}

fn domains() -> impl Strategy<Value = u32> {
    prop_oneof![20 => Just(1), 4 => Just(2), 1 => 0..=4u32, 1 => Just(u32::MAX)]
}

/// Granules around the edges of the aperture and of the 64-bit space, sometimes a byte or half a granule off.
fn addresses(config: &DeviceConfig) -> BoxedStrategy<u64> {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    let first = config.aperture.start();
    let near_end = |last: u64| last.wrapping_sub(granule * 6 - 1);
    let anchors = prop_oneof![
        8 => Just(first),
        2 => Just(near_end(config.aperture.last())),
        1 => Just(near_end(u64::MAX)),
        1 => Just(first.wrapping_sub(granule * 4)),
    ];
    let off = prop_oneof![20 => Just(0), 1 => select(vec![1, u64::MAX, granule / 2])];
    (anchors, 0..8u64, off)
        .prop_map(move |(anchor, page, off)| anchor.wrapping_add(page * granule).wrapping_add(off))
        .boxed()
}

fn few_granules(config: &DeviceConfig) -> impl Strategy<Value = (u64, u64)> + use<> {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    (addresses(config), 1..=3u64)
        .prop_map(move |(start, pages)| (start, start.wrapping_add(pages * granule - 1)))
}

/// First and last address of a few granules; now and then of much more, or reversed.
fn ranges(config: &DeviceConfig) -> BoxedStrategy<(u64, u64)> {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    let (first, last) = (config.aperture.start(), config.aperture.last());
    let between = (addresses(config), addresses(config))
        .prop_map(move |(one, other)| (one.min(other), one.max(other).saturating_add(granule - 1)));
    let far = select(vec![(first, last), (0, u64::MAX), (u64::MAX, u64::MAX), (last, first)]);
    let from_0 = addresses(config).prop_map(move |start| (0, start.wrapping_sub(1)));
    let to_the_end = addresses(config).prop_map(|start| (start, u64::MAX));
    prop_oneof![24 => few_granules(config), 4 => between, 2 => far, 1 => from_0, 1 => to_the_end].boxed()
}

/// As [`ranges`], and as often wide enough to hold whole mappings.
fn unmap_ranges(config: &DeviceConfig) -> BoxedStrategy<(u64, u64)> {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    let first = config.aperture.start();
    let wide = (0..4u64, 5..12u64)
        .prop_map(move |(page, end)| (first + page * granule, first + (end * granule - 1)));
    prop_oneof![ranges(config), wide].boxed()
}

fn lengths(config: &DeviceConfig) -> BoxedStrategy<u64> {
    let granule = Granule::of_mask(config.page_size_mask).map_or(1, Granule::bytes);
    prop_oneof![
        4 => (0..6u64, 0..2u64).prop_map(move |(pages, off)| pages * granule + off),
        1 => select(vec![u64::MAX, u64::MAX - 1, 1 << 63]),
    ]
    .boxed()
}
