// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The real device and the naive one side by side, with a host between. Every difference is a panic.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use viommu_core::{
    Access, Change, Device, EndpointId, Fault, FaultReason, Host, HostError, Iova, PageRequest, Pasid, Reply,
    RequestGroup, Step, Table, TableAccess, TableFault, TableFaultReason,
};

use super::plan::{ENDPOINTS, Op, Plan, support};
use super::reference::{Attachments, Begun, Kind, Reference};
use crate::model::request::TAIL_SIZE;
use crate::model::{HostAnswer, MirrorHost};

/// Two devices that must not differ.
#[derive(Debug)]
pub struct Bench {
    device: Device,
    reference: Reference,
    host: MirrorHost,
    under_way: Option<Change>,
    boot_bypass: bool,
    now: u64,
    /// How often each group that came was answered, by its cookie.
    answered: BTreeMap<u64, usize>,
    outcomes: BTreeSet<(u8, u8)>,
    asked: usize,
    only_failure: Option<(usize, i32)>,
}

impl Bench {
    /// Both devices at power-on.
    ///
    /// # Panics
    /// When the plan's configuration is refused.
    pub fn new(plan: &Plan) -> Bench {
        let mut device = Device::new(plan.config()).expect("a configuration that can be served");
        for id in ENDPOINTS {
            device.set_tables(EndpointId(id), support(id));
            device.set_group(EndpointId(id), plan.group(id));
        }
        Bench {
            device,
            reference: Reference::new(plan),
            host: MirrorHost::new(plan.boot_bypass),
            under_way: None,
            boot_bypass: plan.boot_bypass,
            now: 0,
            answered: BTreeMap::new(),
            outcomes: BTreeSet::new(),
            asked: 0,
            only_failure: None,
        }
    }

    /// With a host that does all that it is asked, except at the `nth` time, from 0: then it fails with `errno`.
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
            Op::Negotiate(bits) => {
                self.device.negotiate(*bits);
                self.reference.negotiate(*bits);
            }
            Op::Request(readable, answer) => self.request(readable, *answer),
            Op::Finish(answer) => self.finish(&self.settled(), *answer),
            Op::Reset => {
                self.device.reset();
                self.reference.reset();
                self.host.reset(self.boot_bypass);
                self.under_way = None;
            }
            Op::Ask { endpoint, pasid, group, pages } => self.ask((*endpoint, *pasid, *group), *pages),
            Op::Wait(time) => {
                self.now += time;
                self.device.expire_page_requests(Duration::from_millis(self.now));
                self.reference.expire(self.now);
                let next = self.device.next_page_deadline();
                assert!(next.is_none_or(|next| next > Duration::from_millis(self.now)));
            }
            Op::End(endpoint) => {
                self.device.end_page_requests(EndpointId(*endpoint));
                self.reference.end_of(*endpoint);
            }
            Op::Fault { endpoint, pasid, address } => {
                let fault = TableFault {
                    endpoint: EndpointId(*endpoint),
                    pasid: pasid.map(Pasid),
                    address: *address,
                    access: TableAccess::WRITE,
                    reason: TableFaultReason::Permission,
                };
                let queued = self.reference.table_fault(*endpoint, *pasid, *address);
                assert_eq!(self.device.report_table_fault(fault), queued);
            }
            Op::Refused { endpoint, address } => {
                let (endpoint, address) = (EndpointId(*endpoint), Iova(*address));
                let fault = Fault { endpoint, address, access: Access::READ, reason: FaultReason::Mapping };
                assert_eq!(self.device.report(fault), self.reference.refused(endpoint.0, address.0));
            }
            Op::Lost(endpoint) => {
                self.device.report_lost(EndpointId(*endpoint));
                self.reference.lose(*endpoint);
            }
            Op::Buffer(room) => self.buffer(*room),
        }
        self.compare();
    }

    /// Every group that came has had one answer, once nothing can come any more.
    ///
    /// # Panics
    /// When one has had none.
    pub fn end(mut self) {
        self.step(&Op::Reset);
        assert!(self.answered.values().all(|count| *count == 1), "{:?}", self.answered);
    }

    fn request(&mut self, readable: &[u8], answer: HostAnswer) {
        let before = self.settled();
        self.under_way = None;
        let begun = self.reference.begin(readable);
        match (self.device.begin(readable, TAIL_SIZE), begun) {
            (Step::Done(reply), Begun::Nothing) => assert!(reply.row.is_none() && reply.bytes.is_empty()),
            (Step::Done(reply), Begun::Answered(status)) => {
                self.check_reply(&reply, status);
                assert_unchanged(&before, &self.device);
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
                self.finish(&before, answer);
            }
            (step, begun) => panic!("{step:?} where the reference has {begun:?}"),
        }
    }

    /// `before` is the device as it was before the request, with nothing under way.
    fn finish(&mut self, before: &Device, answer: HostAnswer) {
        if answer == HostAnswer::Silence {
            return;
        }
        let errno = if let HostAnswer::Failed(errno) = answer { Some(errno) } else { None };
        let applied = errno.map_or(Ok(()), |errno| Err(HostError { operation: "test", errno }));
        let committed = self.under_way.take().filter(|_| errno.is_none());
        if let Some(change) = committed {
            self.host.apply(&change).expect("a host that takes it");
        }
        let reply = self.device.finish(applied);
        if let Some(status) = self.reference.finish(errno) {
            self.check_reply(&reply, status);
        } else {
            assert!(reply.row.is_none() && reply.bytes.is_empty());
        }
        if committed.is_none() {
            assert_unchanged(before, &self.device);
        }
    }

    fn ask(&mut self, (endpoint, pasid, group): (u32, Option<u32>, u32), pages: u64) {
        let cookie = self.answered.len() as u64;
        self.answered.insert(cookie, 0);
        let to = RequestGroup { endpoint: EndpointId(endpoint), pasid: pasid.map(Pasid), group };
        let wanted: Vec<PageRequest> =
            (1..=pages).map(|page| PageRequest { address: page * 4096, access: TableAccess::READ }).collect();
        let taken = self.device.request_pages(to, cookie, &wanted, Duration::from_millis(self.now));
        assert_eq!(taken, self.reference.ask((endpoint, pasid, group), cookie, pages, self.now));
    }

    fn buffer(&mut self, room: usize) {
        let event = self.device.next_event();
        let written = event.as_ref().and_then(|event| event.for_buffer(room)).map(<[u8]>::to_vec);
        match (&event, &written) {
            (Some(event), Some(_)) => self.device.event_sent(event),
            (Some(event), None) => self.device.event_unfit(event),
            (None, _) => {}
        }
        assert_eq!(written, self.reference.buffer(room));
    }

    fn check_reply(&mut self, reply: &Reply, status: u8) {
        assert_eq!(*reply.bytes, [status, 0, 0, 0], "{:?}", reply.rejected);
        assert_eq!(reply.rejected.is_some(), status != 0);
        let kind = reply.row.expect("a request that is known").kind.0;
        self.outcomes.insert((kind, status));
    }

    /// What both devices show between two steps.
    fn compare(&mut self) {
        assert_eq!(self.device.check_invariants(), Ok(()));
        self.host.assert_agrees_with(&self.device);
        let mut ours: Vec<u64> = self.device.take_page_answers().iter().map(|answer| answer.cookie).collect();
        let mut theirs = self.reference.take_answers();
        ours.sort();
        theirs.sort();
        assert_eq!(ours, theirs, "answers of the device's own");
        let of_driver = self.host.answered.drain(..).map(|(cookie, _)| cookie);
        for cookie in ours.into_iter().chain(of_driver) {
            let count = self.answered.entry(cookie).or_default();
            *count += 1;
            assert_eq!(*count, 1, "group {cookie} is answered twice");
        }
        let mut attached = BTreeMap::new();
        for id in ENDPOINTS {
            attached.extend(self.attachments(id));
            self.compare_access(id);
        }
        assert_eq!(attached, *self.reference.attachments());
    }

    fn attachments(&self, id: u32) -> Attachments {
        let endpoint = EndpointId(id);
        let mut all = Attachments::new();
        if let Some(domain) = self.device.domain_of(endpoint)
            && self.device.domain(domain).is_some_and(|domain| domain.is_bypass())
        {
            all.insert((id, None), (domain.0, Kind::Bypass));
        }
        for pasid in [None].into_iter().chain(self.device.pasids(endpoint).map(Some)) {
            let kind = |table| match table {
                Table::ArmSmmu3 { ste } => Kind::Ste(ste),
                Table::IntelPt { flags, root, address_bits } => Kind::Pt(flags, root.0, address_bits),
            };
            let table = self.device.table_of(endpoint, pasid);
            let number = pasid.map(|pasid| pasid.0);
            all.extend(table.map(|(domain, table)| ((id, number), (domain.0, kind(table)))));
        }
        all
    }

    /// Only bypass leads anywhere.
    fn compare_access(&self, id: u32) {
        let is_known = ENDPOINTS[..5].contains(&id);
        let bypasses = match self.reference.attachments().get(&(id, None)) {
            Some((_, kind)) => *kind == Kind::Bypass,
            None => self.boot_bypass,
        };
        let expected = is_known && bypasses && !self.reference.is_moving(id);
        let found = self.device.lookup(EndpointId(id), Iova(0x1000), Access::READ);
        assert_eq!(found.is_ok(), expected, "endpoint {id}");
    }

    fn settled(&self) -> Device {
        let mut device = self.device.clone();
        assert!(matches!(device.begin(&[], 0), Step::Done(_)));
        device
    }
}

/// Only that the driver is up may have become known.
fn assert_unchanged(before: &Device, after: &Device) {
    let state = |device: &Device| format!("{device:?}").replace("driver_is_up: true", "driver_is_up: false");
    assert_eq!(state(before), state(after));
}
