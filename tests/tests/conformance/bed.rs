// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device, the host behind it, and a driver's hand on both.
//!
//! Every request that goes through [`Bed::send`] is checked for what holds of all of them: the used length,
//! the reserved bytes of the tail, the invariants, and that a refusal changes nothing.

use viommu_core::{
    Access, Device, DeviceConfig, EndpointId, FaultReason, Features, Gpa, Iova, IovaRange, Reply, Segment,
    Status,
};
use viommu_tests::model::MirrorHost;
use viommu_tests::model::request::{self, TAIL_SIZE, Wire};

/// The endpoints of a bed.
pub const EP: u32 = 0x10;
/// Another one.
pub const EP2: u32 = 0x11;
/// A third.
pub const EP3: u32 = 0x12;
/// One that does not exist.
pub const NOBODY: u32 = 0x99;
/// Both rights.
pub const RW: u32 = 3;
/// The whole space.
pub const ALL: (u64, u64) = (0, u64::MAX);

pub struct Bed {
    pub device: Device,
    pub host: MirrorHost,
}

/// 4 KiB granule, the whole space, any domain id, no bypass at boot, three endpoints.
pub fn config() -> DeviceConfig {
    DeviceConfig {
        mode: viommu_core::Mode::Map,
        page_size_mask: 0x20_1000,
        aperture: IovaRange::ALL,
        domain_ids: 0..=u32::MAX,
        boot_bypass: false,
        limits: viommu_core::Limits::default(),
        endpoints: [EP, EP2, EP3].map(EndpointId).to_vec(),
    }
}

impl Bed {
    /// A device with everything negotiated.
    pub fn new() -> Bed {
        Bed::with(config())
    }

    pub fn with(config: DeviceConfig) -> Bed {
        let host = MirrorHost::new(config.boot_bypass);
        let mut device = Device::new(config).expect("a configuration that can be served");
        device.negotiate(Features::OFFERED.bits());
        Bed { device, host }
    }

    /// A device whose driver did not accept `feature`.
    pub fn without(feature: Features) -> Bed {
        let mut bed = Bed::new();
        bed.device.negotiate((Features::OFFERED - feature).bits());
        bed
    }

    /// Bytes to the device, and what it answers.
    pub fn raw(&mut self, readable: &[u8], writable: usize) -> Reply {
        let before = state(&self.device);
        let reply = self.device.handle(readable, writable, &mut self.host);
        assert_eq!(self.device.check_invariants(), Ok(()));
        self.host.assert_agrees_with(&self.device);
        if reply.row.is_none() || reply.rejected.is_some() {
            assert_eq!(before, state(&self.device), "{:?}", reply.rejected);
        }
        reply
    }

    /// A request with a writable part of exactly the right size.
    pub fn send(&mut self, request: impl Wire) -> Status {
        let reply = self.raw(&request.readable(), request.writable());
        assert_eq!(reply.bytes.len(), request.writable(), "the used length is not the driver's");
        status(&reply)
    }

    pub fn attach(&mut self, domain: u32, endpoint: u32) -> Status {
        self.send(request::attach(domain, endpoint))
    }

    pub fn detach(&mut self, domain: u32, endpoint: u32) -> Status {
        self.send(request::detach(domain, endpoint))
    }

    pub fn map(&mut self, domain: u32, range: (u64, u64), phys: u64) -> Status {
        self.send(request::map(domain, range, phys, RW))
    }

    pub fn unmap(&mut self, domain: u32, range: (u64, u64)) -> Status {
        self.send(request::unmap(domain, range))
    }

    /// The next event as the driver would read it.
    pub fn next_event(&self) -> Option<Vec<u8>> {
        self.device.next_event().map(|event| event.bytes().to_vec())
    }

    /// Where a byte that is read leads.
    pub fn reads(&self, endpoint: u32, iova: u64) -> Result<u64, FaultReason> {
        self.pieces(endpoint, iova, 1, Access::READ).remove(0).map(|(gpa, _)| gpa)
    }

    /// Where a byte that is written leads.
    pub fn writes(&self, endpoint: u32, iova: u64) -> Result<u64, FaultReason> {
        self.pieces(endpoint, iova, 1, Access::WRITE).remove(0).map(|(gpa, _)| gpa)
    }

    /// The pieces of an access as GPA and length.
    pub fn pieces(
        &self,
        endpoint: u32,
        iova: u64,
        length: u64,
        access: Access,
    ) -> Vec<Result<(u64, u64), FaultReason>> {
        let pieces = self.device.translate(EndpointId(endpoint), Iova(iova), length, access);
        pieces
            .map(|piece| match piece {
                Ok(Segment { gpa: Gpa(gpa), length }) => Ok((gpa, length)),
                Err(fault) => {
                    assert_eq!((fault.endpoint, fault.access), (EndpointId(endpoint), access));
                    Err(fault.reason)
                }
            })
            .collect()
    }

    /// The ranges that a domain maps; nothing when there is no such domain.
    pub fn mapped(&self, domain: u32) -> Vec<(u64, u64)> {
        let domain = self.device.domain(viommu_core::DomainId(domain));
        let mappings = domain.into_iter().flat_map(|domain| domain.mappings());
        mappings.map(|mapping| (mapping.range.start(), mapping.range.last())).collect()
    }

    pub fn domain_of(&self, endpoint: u32) -> Option<u32> {
        self.device.domain_of(EndpointId(endpoint)).map(|domain| domain.0)
    }

    /// A driver's write to the configuration space.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let Some(change) = self.device.begin_config_write(offset, data) {
            let applied = viommu_core::Host::apply(&mut self.host, &change);
            let _ = self.device.finish(applied);
        }
        self.host.assert_agrees_with(&self.device);
    }

    pub fn bypass_byte(&self) -> u8 {
        self.device.config_space()[36]
    }
}

/// The status of a reply, which must have one and nothing else in its tail.
pub fn status(reply: &Reply) -> Status {
    let tail = reply.bytes.len().checked_sub(TAIL_SIZE).expect("room for a tail");
    assert_eq!(reply.bytes[tail + 1..], [0; 3], "reserved bytes of the tail");
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
    statuses[usize::from(reply.bytes[tail])]
}

/// Everything about a device but whether its driver is up.
pub fn state(device: &Device) -> String {
    format!("{device:?}").replace("driver_is_up: true", "driver_is_up: false")
}
