// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bytes of requests into a device, with a host that sometimes fails or stays silent.
//!
//! Asks what needs no second device to tell: the invariants hold, a rejected request changes nothing, and what the
//! host was told is what the device says. Which answer is right is the `model` target's question.

use std::time::Duration;

use viommu_core::{
    Access, Device, DeviceConfig, EndpointId, Fault, FaultReason, Host, Iova, IovaRange, Limits, Mode,
    PROBE_SIZE, PageRequest, Pasid, Reply, RequestGroup, ReservedKind, ReservedRegion, TableAccess,
};

use super::input::Input;
use crate::model::MirrorHost;
use crate::table_model::plan;

const ENDPOINTS: [u32; 4] = [0x10, 0x18, 1, u32::MAX];
const TAIL_SIZE: usize = 4;
const ERRNO: i32 = 12;

/// The life of one device.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut life = Life::new(&mut input);
    while !input.is_empty() {
        life.step(&mut input);
        assert_eq!(life.device.check_invariants(), Ok(()));
        life.host.assert_agrees_with(&life.device);
    }
}

struct Life {
    device: Device,
    host: MirrorHost,
}

impl Life {
    fn new(input: &mut Input<'_>) -> Life {
        let config = config(input);
        let host = MirrorHost::new(config.boot_bypass);
        let offered = config.mode.offered_bits();
        let mut device = Device::new(config).expect("a configuration that can be served");
        device.negotiate(offered | 1 << 32);
        for (endpoint, support) in ENDPOINTS.into_iter().zip(plan::ENDPOINTS.map(plan::support)) {
            device.set_tables(EndpointId(endpoint), support);
        }
        Life { device, host }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        match choice % 16 {
            0 => self.write_config(input),
            1 => self.reset(),
            2 => {
                self.reset();
                self.device.restore_boot_bypass();
                self.host.reset(self.bypass());
            }
            3 => self.device.negotiate(input.u64()),
            4 => self.reserve(input),
            5 if self.device.mode().is_table() => self.ask(input),
            5 => self.report(input),
            6 => {
                if let Some(event) = self.device.next_event() {
                    self.device.event_sent(&event);
                }
            }
            7 => self.access(input),
            _ => self.request(input, choice >> 4),
        }
    }

    fn request(&mut self, input: &mut Input<'_>, host: u8) {
        let length = usize::from(input.u8());
        let writable = usize::from(input.u16()) % (2 * PROBE_SIZE);
        let readable = input.bytes(length);
        if host == 15 {
            // The host never answers: the next request counts as if it had refused.
            let _ = self.device.begin(readable, writable);
            return;
        }
        if host == 14 {
            self.host.fail(0, ERRNO);
        }
        let mut before = self.device.clone();
        let reply = self.device.handle(readable, writable, &mut self.host);
        check_reply(&reply, writable);
        if reply.rejected.is_some() || reply.row.is_none() {
            // What was under way before is over, whatever this request comes to.
            let _ = before.begin(&[], 0);
            assert_unchanged(&before, &self.device);
        }
    }

    fn write_config(&mut self, input: &mut Input<'_>) {
        let (offset, length) = (usize::from(input.u8()), usize::from(input.u8() % 64));
        let data = input.bytes(length);
        if let Some(change) = self.device.begin_config_write(offset, data) {
            let applied = self.host.apply(&change);
            let is_refused = applied.is_err();
            let reply = self.device.finish(applied);
            assert!(reply.bytes.is_empty() && reply.rejected.is_some() == is_refused);
        }
    }

    fn reset(&mut self) {
        let lingering = self.device.reset();
        assert_eq!(lingering.len(), self.host.attached().len());
        for old in lingering {
            let (id, bypass) = self.host.attached()[&old.endpoint];
            assert_eq!(old.domain.is_bypass(), bypass);
            assert_eq!(old.domain.mappings().collect::<Vec<_>>(), self.host.mappings_of(id));
        }
        self.host.reset(self.bypass());
    }

    fn reserve(&mut self, input: &mut Input<'_>) {
        let endpoint = EndpointId(input.pick(&ENDPOINTS));
        let regions: Vec<ReservedRegion> = (0..input.u8() % 32)
            .filter_map(|_| {
                let range = IovaRange::new(input.u32().into(), input.u32().into())?;
                let kind =
                    if input.u8().is_multiple_of(16) { ReservedKind::Msi } else { ReservedKind::Reserved };
                Some(ReservedRegion { range, kind })
            })
            .collect();
        let before = self.device.clone();
        if self.device.set_reserved(endpoint, &regions).is_err() {
            assert_unchanged(&before, &self.device);
        }
    }

    fn report(&mut self, input: &mut Input<'_>) {
        let fault = Fault {
            endpoint: EndpointId(input.pick(&ENDPOINTS)),
            address: Iova(input.u64()),
            access: Access::from_bits_truncate(input.u8().into()),
            reason: input.pick(&[FaultReason::Unknown, FaultReason::Domain, FaultReason::Mapping]),
        };
        let dropped = self.device.faults_dropped();
        let queued = self.device.report(fault);
        assert_eq!(self.device.faults_dropped() - dropped, u64::from(!queued));
    }

    /// An endpoint asks for pages, and some time goes by.
    fn ask(&mut self, input: &mut Input<'_>) {
        let to = RequestGroup {
            endpoint: EndpointId(input.pick(&ENDPOINTS)),
            pasid: input.pick(&[None, Some(Pasid(1)), Some(Pasid(2))]),
            group: u32::from(input.u8() % 4),
        };
        let page = PageRequest { address: input.u64(), access: TableAccess::READ };
        let taken = self.device.request_pages(to, 0, &[page], Duration::ZERO);
        assert!(taken || !self.device.take_page_answers().is_empty());
        self.device.expire_page_requests(Duration::from_millis(input.u8().into()));
        self.device.take_page_answers();
    }

    /// The pieces of an access are as long as the access, and each lies in what a lookup gives.
    fn access(&mut self, input: &mut Input<'_>) {
        let endpoint = EndpointId(input.pick(&ENDPOINTS));
        let (mut iova, length) = (input.u64(), u64::from(input.u32()));
        let access = Access::from_bits_truncate(u32::from(input.u8() % 3) + 1);
        let mut left = length;
        for piece in self.device.translate(endpoint, Iova(iova), length, access) {
            let Ok(segment) = piece else { return };
            let extent = self.device.lookup(endpoint, Iova(iova), access).expect("a piece was translated");
            assert_eq!(segment.gpa.0, extent.gpa.0 + (iova - extent.range.start()));
            assert!(segment.length >= 1 && segment.length <= left);
            assert!(extent.range.contains(iova + (segment.length - 1)) && extent.access.contains(access));
            iova = iova.wrapping_add(segment.length);
            left -= segment.length;
        }
        assert_eq!(left, 0);
    }

    fn bypass(&self) -> bool {
        self.device.config_space()[viommu_core::wire::BYPASS_OFFSET] == 1
    }
}

fn config(input: &mut Input<'_>) -> DeviceConfig {
    let range = |start, last| IovaRange::new(start, last).expect("start <= last");
    let apertures = [
        IovaRange::ALL,
        range(0x10_0000, 0x1fff_ffff),
        range(u64::MAX - 0xf_ffff, u64::MAX),
        range(0, 0xffff),
    ];
    let small = Limits {
        domains_max: 2,
        mappings_max: 8,
        mapping_bytes_max: 16 << 10,
        faults_max: 2,
        pasids_max: 2,
        page_requests_max: 3,
    };
    let page_size_mask = input.pick(&[0x1000, 0x4020_1000, 0x1_0000]);
    let aperture = input.pick(&apertures);
    let domain_ids = if input.bool() { 1..=3 } else { 0..=u32::MAX };
    let switches = input.u8();
    DeviceConfig {
        mode: if switches & 2 != 0 { Mode::Table { feature_bit: 7 } } else { Mode::Map },
        page_size_mask,
        aperture,
        domain_ids,
        boot_bypass: switches & 1 != 0,
        limits: if input.bool() { small } else { Limits::default() },
        endpoints: ENDPOINTS.map(EndpointId).to_vec(),
    }
}

fn check_reply(reply: &Reply, writable: usize) {
    assert!(reply.bytes.len() <= writable);
    match reply.row {
        None => assert!(reply.bytes.is_empty() && reply.rejected.is_none()),
        Some(_) => {
            let tail = reply.bytes.len() - TAIL_SIZE;
            assert_eq!(reply.bytes[tail] != 0, reply.rejected.is_some(), "{:?}", reply.rejected);
            assert_eq!(reply.bytes[tail + 1..], [0; 3]);
        }
    }
}

/// Only that the driver is up may have become known.
fn assert_unchanged(before: &Device, after: &Device) {
    let state = |device: &Device| format!("{device:?}").replace("driver_is_up: true", "driver_is_up: false");
    assert_eq!(state(before), state(after));
}
