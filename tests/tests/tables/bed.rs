// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device in table mode, the host behind it, and a driver's hand on both.
//!
//! Every request is checked for what holds of all of them: the length of the answer, the invariants, that host and
//! device agree, and that a refusal changes nothing.

use std::time::Duration;

use viommu_core::{
    Change, Device, DeviceConfig, DomainId, EndpointId, IovaRange, Limits, Mode, PageRequest,
    PageRequestSupport, Pasid, PasidSupport, RequestGroup, Status, Table, TableAccess, TableHardware,
    TableSupport,
};
use viommu_tests::model::MirrorHost;
use viommu_tests::model::request::{self, TAIL_SIZE, Wire};

/// Two endpoints behind SMMUs, one with ATS.
pub const ARM: u32 = 0x10;
pub const ARM_ATS: u32 = 0x11;
/// Two behind a VT-d unit, with PASIDs and page requests.
pub const VTD: u32 = 0x20;
pub const VTD2: u32 = 0x21;
/// One without hardware that walks tables.
pub const SOFT: u32 = 0x30;
/// One that does not exist.
pub const NOBODY: u32 = 0x99;

/// A stream table entry: valid, stage 1, a linear table at this address.
pub const fn ste(contexts: u64) -> [u64; 2] {
    [1 | 0b101 << 1 | contexts, 0]
}

pub const STE: [u64; 2] = ste(0x4000_0000);
pub const ABORT: [u64; 2] = [1, 0];
pub const BYPASS: [u64; 2] = [1 | 0b100 << 1, 0];

pub struct Bed {
    pub device: Device,
    pub host: MirrorHost,
}

pub fn config() -> DeviceConfig {
    DeviceConfig {
        mode: Mode::Table { feature_bit: Mode::FEATURE_BIT },
        page_size_mask: 0x1000,
        aperture: IovaRange::ALL,
        domain_ids: 0..=u32::MAX,
        boot_bypass: false,
        limits: Limits::default(),
        endpoints: [ARM, ARM_ATS, VTD, VTD2, SOFT].map(EndpointId).to_vec(),
    }
}

/// Ten bits of substreams, tables of two levels, granules of 4 and 64 KiB.
pub fn arm(ats: bool) -> TableSupport {
    let hardware = TableHardware::ArmSmmu3 { idr: [1 << 19, 10 << 6, 0, 0, 0, 1 << 4 | 1 << 6] };
    TableSupport { hardware, ats, pasids: None, page_requests: None }
}

/// Supervisor requests, five levels, no 1 GiB pages; eight bits of PASIDs, two groups of requests, a second for each.
pub fn vtd() -> TableSupport {
    TableSupport {
        hardware: TableHardware::IntelVtd { flags: 0, cap: 1 << 60, ecap: 1 << 31 },
        ats: true,
        pasids: Some(PasidSupport { bits: 8, exec: false, privileged: true }),
        page_requests: Some(PageRequestSupport { requests_max: 2, timeout: Duration::from_secs(1) }),
    }
}

impl Bed {
    pub fn new() -> Bed {
        Bed::with(config())
    }

    pub fn with(config: DeviceConfig) -> Bed {
        let host = MirrorHost::new(config.boot_bypass);
        let mode = config.mode;
        let mut device = Device::new(config).expect("a configuration that can be served");
        device.negotiate(mode.offered_bits());
        for (endpoint, support) in
            [(ARM, arm(false)), (ARM_ATS, arm(true)), (VTD, vtd()), (VTD2, vtd()), (NOBODY, vtd())]
        {
            device.set_tables(EndpointId(endpoint), Some(support));
        }
        Bed { device, host }
    }

    pub fn limited(limits: Limits) -> Bed {
        Bed::with(DeviceConfig { limits, ..config() })
    }

    /// Bytes to the device, and the status that it answers with.
    pub fn raw(&mut self, readable: &[u8]) -> Status {
        let before = state(&self.device);
        let reply = self.device.handle(readable, TAIL_SIZE, &mut self.host);
        assert_eq!(self.device.check_invariants(), Ok(()));
        self.host.assert_agrees_with(&self.device);
        if reply.rejected.is_some() {
            assert_eq!(before, state(&self.device), "{:?}", reply.rejected);
        }
        assert_eq!((reply.bytes.len(), &reply.bytes[1..]), (TAIL_SIZE, &[0; 3][..]));
        let statuses = [
            Status::Ok,
            Status::IoErr,
            Status::Unsupp,
            Status::DevErr,
            Status::Inval,
            Status::Range,
            Status::NoEnt,
            Status::Fault,
            Status::NoMem,
        ];
        statuses[usize::from(reply.bytes[0])]
    }

    pub fn send(&mut self, request: impl Wire) -> Status {
        self.raw(&request.readable())
    }

    /// As [`send`](Bed::send), for what has to succeed.
    pub fn done(&mut self, request: impl Wire) {
        assert_eq!(self.send(request), Status::Ok);
    }

    /// Attaches a stream table entry.
    pub fn ste(&mut self, domain: u32, endpoint: u32, ste: [u64; 2]) -> Status {
        self.send(request::attach_ste(domain, endpoint, ste))
    }

    /// Attaches a table of VT-d.
    pub fn pt(&mut self, domain: u32, endpoint: u32, pasid: Option<u32>, root: u64) -> Status {
        self.send(request::attach_pt(domain, endpoint, pasid, root))
    }

    /// The domain and the root of what a VT-d endpoint, or a PASID, uses.
    pub fn root(&self, endpoint: u32, pasid: Option<u32>) -> Option<(u32, u64)> {
        match self.device.table_of(EndpointId(endpoint), pasid.map(Pasid))? {
            (domain, Table::IntelPt { root, .. }) => Some((domain.0, root.0)),
            (_, table) => panic!("{table:?}"),
        }
    }

    pub fn domain_of(&self, endpoint: u32) -> Option<u32> {
        self.device.domain_of(EndpointId(endpoint)).map(|domain| domain.0)
    }

    pub fn exists(&self, domain: u32) -> bool {
        self.device.domain(DomainId(domain)).is_some()
    }

    /// What the host was asked last.
    pub fn last(&self) -> Change {
        *self.host.asked.last().expect("the host was asked")
    }

    /// A group of page requests, for one page each, that comes at `now` milliseconds and is known by its own number.
    pub fn ask(&mut self, group: RequestGroup, pages: u64, now: u64) -> bool {
        self.ask_by(group, group.group.into(), pages, now)
    }

    pub fn ask_by(&mut self, group: RequestGroup, cookie: u64, pages: u64, now: u64) -> bool {
        let pages: Vec<PageRequest> = (1..=pages)
            .map(|page| PageRequest { address: page << 12, access: TableAccess::READ | TableAccess::WRITE })
            .collect();
        let taken = self.device.request_pages(group, cookie, &pages, Duration::from_millis(now));
        assert_eq!(self.device.check_invariants(), Ok(()));
        taken
    }

    /// The cookies of the groups that the device has answered by itself, all of them INVALID.
    pub fn refused(&mut self) -> Vec<u64> {
        let answers = self.device.take_page_answers();
        assert!(answers.iter().all(|answer| answer.code == viommu_core::ResponseCode::Invalid));
        assert_eq!(self.device.check_invariants(), Ok(()));
        answers.iter().map(|answer| answer.cookie).collect()
    }

    /// The next event, which is taken.
    pub fn take_event(&mut self) -> Vec<u8> {
        let event = self.device.next_event().expect("one waits");
        self.device.event_sent(&event);
        event.bytes().to_vec()
    }

    /// All events that wait, which are taken.
    pub fn events(&mut self) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        while let Some(event) = self.device.next_event() {
            events.push(event.bytes().to_vec());
            self.device.event_sent(&event);
        }
        events
    }
}

pub fn group(endpoint: u32, pasid: Option<u32>, group: u32) -> RequestGroup {
    RequestGroup { endpoint: EndpointId(endpoint), pasid: pasid.map(Pasid), group }
}

/// Everything about a device but whether its driver is up.
pub fn state(device: &Device) -> String {
    format!("{device:?}").replace("driver_is_up: true", "driver_is_up: false")
}
