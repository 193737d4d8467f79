// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real device and the naive one side by side, with a host between.
//!
//! Every difference is a panic that says what differs. After each step it also looks at what no reply
//! shows: translations, the configuration space, the invariants, and what the host was told.

use std::borrow::Cow;
use std::collections::BTreeSet;

use viommu_core::wire::MAP_F_MMIO;
use viommu_core::{
    Access, Change, Device, DomainId, EndpointId, Fault, FaultReason, Host, HostError, Iova, Mapping, Reply,
    ReservedKind, ReservedRegion, Step,
};

use super::plan::{ENDPOINTS, STRANGER};
use super::reference::{Begun, Piece, REASON_DOMAIN, REASON_MAPPING};
use super::request::{TAIL_SIZE, range};
use super::{HostAnswer, MirrorHost, Op, Plan, Reference};

/// Two devices that must not differ.
#[derive(Debug)]
pub struct Bench {
    device: Device,
    reference: Reference,
    host: MirrorHost,
    /// A change that the host is silent about.
    under_way: Option<Change>,
    /// Type and status of every request so far.
    outcomes: BTreeSet<(u8, u8)>,
    /// How often the host was asked.
    asked: usize,
    /// The one time that the host refuses, counted from 0, whatever the plan says; or as the plan says.
    only_failure: Option<(usize, i32)>,
}

impl Bench {
    /// Both devices at power-on.
    ///
    /// # Panics
    /// When the plan's configuration is refused.
    pub fn new(plan: &Plan) -> Bench {
        Bench {
            device: Device::new(plan.config.clone()).expect("a configuration that can be served"),
            reference: Reference::new(plan.config.clone()),
            host: MirrorHost::new(plan.config.boot_bypass),
            under_way: None,
            outcomes: BTreeSet::new(),
            asked: 0,
            only_failure: None,
        }
    }

    /// Both devices at power-on, with a host that does all that it is asked, except at the `nth` time, from 0: then it
    /// fails with `errno`.
    pub fn failing(plan: &Plan, nth: usize, errno: i32) -> Bench {
        Bench { only_failure: Some((nth, errno)), ..Bench::new(plan) }
    }

    /// How often the host was asked so far.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// The type and the status of every request that was answered with one.
    pub fn outcomes(&self) -> &BTreeSet<(u8, u8)> {
        &self.outcomes
    }

    /// Takes one step on both.
    ///
    /// # Panics
    /// When the devices come to differ, or one of them to contradict itself.
    pub fn step(&mut self, op: &Op) {
        match op {
            Op::Negotiate(features) => {
                self.device.negotiate(*features);
                self.reference.negotiate(*features);
            }
            Op::SetReserved(endpoint, regions) => self.set_reserved(*endpoint, regions),
            Op::Request { readable, writable, host } => {
                let before = self.settled();
                let step = self.device.begin(readable, *writable);
                let begun = self.reference.begin(readable, *writable);
                self.go_on(before, step, begun, *host);
            }
            Op::ConfigWrite { offset, data, host } => {
                let before = self.settled();
                let nothing = || Step::Done(Reply { bytes: Cow::default(), row: None, rejected: None });
                let step = self.device.begin_config_write(*offset, data).map_or_else(nothing, Step::Apply);
                let begun = self.reference.begin_config_write(*offset, data);
                self.go_on(before, step, begun, *host);
            }
            Op::Finish(answer) => self.finish(self.settled(), *answer),
            Op::Reset => self.reset(),
            Op::SystemReset => {
                self.reset();
                self.device.restore_boot_bypass();
                self.reference.restore_boot_bypass();
                self.host.reset(self.bypass());
            }
            Op::Report { endpoint, address, access, reason } => {
                let fault = Fault {
                    endpoint: EndpointId(*endpoint),
                    address: Iova(*address),
                    access: Access::from_bits_truncate(*access),
                    reason: reason_of(*reason),
                };
                let queued = self.reference.report(*endpoint, *address, *access, *reason);
                assert_eq!(self.device.report(fault), queued, "{fault}");
            }
            Op::TakeEvent => {
                let event = self.device.next_event();
                let bytes = event.map(|event| event.bytes().to_vec());
                assert_eq!(bytes, self.reference.take_event().map(|event| event.to_vec()));
                if let Some(event) = event {
                    self.device.event_sent(&event);
                }
            }
            Op::Access { endpoint, iova, length, access } => {
                self.compare_access(*endpoint, *iova, *length, *access);
            }
        }
        self.compare();
    }

    fn set_reserved(&mut self, endpoint: u32, regions: &[(u64, u64, bool)]) {
        let of_device: Vec<ReservedRegion> = regions
            .iter()
            .map(|&(start, last, is_msi)| ReservedRegion {
                range: range(start, last),
                kind: if is_msi { ReservedKind::Msi } else { ReservedKind::Reserved },
            })
            .collect();
        let taken = self.device.set_reserved(EndpointId(endpoint), &of_device);
        assert_eq!(taken.is_ok(), self.reference.set_reserved(endpoint, regions), "{taken:?}");
    }

    /// From the first half of a request to its answer, unless the host stays silent.
    fn go_on(&mut self, before: Device, step: Step, begun: Begun, answer: HostAnswer) {
        self.under_way = None;
        match (step, begun) {
            (Step::Done(reply), Begun::Answered(bytes)) => {
                self.check_reply(&reply, &bytes);
                assert_unchanged(before, &self.device);
            }
            (Step::Apply(change), Begun::HostIsAsked) => {
                self.under_way = Some(change);
                self.compare();
                let answer = match self.only_failure {
                    Some((nth, errno)) if nth == self.asked => HostAnswer::Failed(errno),
                    Some(_) => HostAnswer::Applied,
                    None => answer,
                };
                self.asked += 1;
                self.finish(before, answer);
            }
            (step, begun) => panic!("{step:?} where the reference has {begun:?}"),
        }
    }

    /// The second half. `before` is the device as it was before the first, with no change under way.
    fn finish(&mut self, before: Device, answer: HostAnswer) {
        if answer == HostAnswer::Silence {
            return;
        }
        let (applied, errno) = match answer {
            HostAnswer::Failed(errno) => (Err(HostError { operation: "test", errno }), Some(errno)),
            _ => (Ok(()), None),
        };
        let committed = match self.under_way.take() {
            Some(change) if applied.is_ok() => self.host.apply(&change).is_ok(),
            _ => false,
        };
        let reply = self.device.finish(applied);
        let bytes = self.reference.finish(errno);
        self.check_reply(&reply, &bytes);
        if !committed {
            assert_unchanged(before, &self.device);
        }
    }

    fn reset(&mut self) {
        let lingering = self.device.reset();
        self.reference.reset();
        self.under_way = None;
        let attached: BTreeSet<EndpointId> = self.host.attached().keys().copied().collect();
        assert_eq!(lingering.iter().map(|old| old.endpoint).collect::<BTreeSet<_>>(), attached);
        assert_eq!(lingering.len(), attached.len(), "an endpoint lingers twice");
        for old in lingering {
            let (id, bypass) = self.host.attached()[&old.endpoint];
            assert_eq!(old.domain.is_bypass(), bypass);
            assert_eq!(old.domain.mappings().collect::<Vec<_>>(), self.host.mappings_of(id));
        }
        self.host.reset(self.bypass());
    }

    fn check_reply(&mut self, reply: &Reply, bytes: &[u8]) {
        assert_eq!(reply.bytes, bytes, "{:?}", reply.rejected);
        let tail = reply.bytes.len().checked_sub(TAIL_SIZE);
        if let (Some(row), Some(tail)) = (reply.row, tail) {
            let status = reply.bytes[tail];
            assert_eq!(reply.rejected.is_some(), status != 0, "{:?}", reply.rejected);
            self.outcomes.insert((row.kind.0, status));
        }
    }

    /// What both devices show between two steps.
    fn compare(&self) {
        assert_eq!(self.device.check_invariants(), Ok(()));
        assert_eq!(self.device.config_space().to_vec(), self.reference.config_space());
        assert_eq!(self.device.faults_dropped(), self.reference.dropped());
        self.host.assert_agrees_with(&self.device);
        assert_eq!(self.mappings(), self.reference.mappings());
        let mut addresses = BTreeSet::from([0, u64::MAX]);
        for (_, start, last, ..) in self.reference.mappings() {
            for edge in [start, last] {
                addresses.extend([edge.wrapping_sub(1), edge, edge.wrapping_add(1)]);
            }
        }
        for endpoint in ENDPOINTS {
            for iova in &addresses {
                self.compare_access(endpoint, *iova, 1, 1);
                self.compare_access(endpoint, *iova, 1, 2);
                self.compare_access(endpoint, *iova, 1, 3);
            }
            let first = addresses.iter().find(|iova| **iova != 0).copied().unwrap_or(0);
            self.compare_access(endpoint, first, 0x4001, 1);
        }
        self.compare_access(STRANGER, 0, 1, 1);
    }

    fn compare_access(&self, endpoint: u32, iova: u64, length: u64, access: u32) {
        let access_of = Access::from_bits_truncate(access);
        let pieces = self.device.translate(EndpointId(endpoint), Iova(iova), length, access_of);
        let pieces: Vec<Piece> = pieces
            .map(|piece| match piece {
                Ok(segment) => Ok((segment.gpa.0, segment.length)),
                Err(fault) => {
                    assert_eq!((fault.endpoint.0, fault.access), (endpoint, access_of));
                    Err((fault.address.0, fault.event()[0]))
                }
            })
            .collect();
        let expected = self.reference.translate(endpoint, iova, length, access);
        assert_eq!(pieces, expected, "endpoint {endpoint}, {length} bytes at {iova:#x}, access {access}");
    }

    /// Every mapping of the real device, as [`Reference::mappings`] has them.
    fn mappings(&self) -> BTreeSet<(u32, u64, u64, u64, u32)> {
        let ids: BTreeSet<DomainId> =
            self.device.endpoints().filter_map(|endpoint| self.device.domain_of(endpoint)).collect();
        let domains = ids.into_iter().filter_map(|id| Some((id, self.device.domain(id)?)));
        domains
            .flat_map(|(id, domain)| domain.mappings().map(move |mapping| (id, mapping)))
            .map(|(id, Mapping { range, target })| {
                let flags = target.access.bits() | if target.mmio { MAP_F_MMIO } else { 0 };
                (id.0, range.start(), range.last(), target.gpa.0, flags)
            })
            .collect()
    }

    fn bypass(&self) -> bool {
        self.device.config_space()[viommu_core::wire::BYPASS_OFFSET] == 1
    }

    /// The device with no change under way, which is how it is when the next request is looked at.
    fn settled(&self) -> Device {
        let mut device = self.device.clone();
        assert!(matches!(device.begin(&[], 0), Step::Done(_)));
        device
    }
}

/// Only that the driver is up may have become known.
fn assert_unchanged(before: Device, after: &Device) {
    let state = |device: &Device| format!("{device:?}").replace("driver_is_up: true", "driver_is_up: false");
    assert_eq!(state(&before), state(after));
}

fn reason_of(reason: u8) -> FaultReason {
    match reason {
        REASON_DOMAIN => FaultReason::Domain,
        REASON_MAPPING => FaultReason::Mapping,
        _ => FaultReason::Unknown,
    }
}
