// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-iommu device written a second time, to be compared with the real one.
//!
//! Everything is a list that is searched from end to end. Ranges are half-open in 128 bits, where nothing
//! wraps. There is no table of domains: a domain is what its endpoints say. Offsets, statuses and flags are
//! numbers, as the specification's tables have them, so that a wrong constant of `viommu-core` shows.
//!
//! Not meant to be fast or to be used. Read beside it: virtio 1.4, "IOMMU device".

mod decide;
mod translate;

use std::collections::BTreeSet;

use viommu_core::DeviceConfig;

pub use translate::{Piece, REASON_DOMAIN, REASON_MAPPING};

const FEATURE_MAP_UNMAP: u64 = 1 << 2;
const FEATURE_MMIO: u64 = 1 << 5;
const FEATURE_BYPASS_CONFIG: u64 = 1 << 6;

const OK: u8 = 0;
const UNSUPP: u8 = 2;
const DEVERR: u8 = 3;
const INVAL: u8 = 4;
const RANGE: u8 = 5;
const NOENT: u8 = 6;
const NOMEM: u8 = 8;

const PROBE_SIZE: usize = 512;
const ENOMEM: i32 = 12;

/// The naive device.
#[derive(Clone, Debug)]
pub struct Reference {
    config: DeviceConfig,
    features: u64,
    bypass: bool,
    endpoints: Vec<Endpoint>,
    mappings: Vec<Mapping>,
    driver_is_up: bool,
    events: Vec<[u8; 24]>,
    dropped: u64,
    /// What the host was asked to do, and the answer should it succeed.
    under_way: Option<(Effect, Vec<u8>)>,
}

#[derive(Clone, Debug)]
struct Endpoint {
    id: u32,
    /// The domain's id, and whether it is a bypass domain.
    domain: Option<(u32, bool)>,
    reserved: Vec<Reserved>,
}

/// `start..end`.
#[derive(Clone, Debug)]
struct Reserved {
    start: u128,
    end: u128,
    is_msi: bool,
}

/// `start..end` of a domain.
#[derive(Clone, Debug)]
struct Mapping {
    domain: u32,
    start: u128,
    end: u128,
    phys: u128,
    flags: u32,
}

/// What an accepted request does.
#[derive(Clone, Debug)]
enum Effect {
    Attach { endpoint: u32, domain: u32, bypass: bool },
    Detach { endpoint: u32 },
    Map(Mapping),
    Unmap { domain: u32, start: u128, end: u128 },
    SetBypass(bool),
}

/// What a request, or a write to the configuration space, comes to at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// These are the bytes of the answer.
    Answered(Vec<u8>),
    /// The host is asked first.
    HostIsAsked,
}

impl Reference {
    /// The device at power-on.
    pub fn new(config: DeviceConfig) -> Reference {
        let endpoint = |id: &viommu_core::EndpointId| Endpoint { id: id.0, domain: None, reserved: vec![] };
        Reference {
            endpoints: config.endpoints.iter().map(endpoint).collect(),
            bypass: config.boot_bypass,
            features: 0,
            mappings: vec![],
            driver_is_up: false,
            events: vec![],
            dropped: 0,
            under_way: None,
            config,
        }
    }

    /// Takes the driver's features.
    pub fn negotiate(&mut self, features: u64) {
        self.features = features;
    }

    /// Replaces the reserved regions of an endpoint; false when the specification forbids the list.
    pub fn set_reserved(&mut self, endpoint: u32, regions: &[(u64, u64, bool)]) -> bool {
        let mut reserved: Vec<Reserved> = vec![];
        for &(start, last, is_msi) in regions {
            let region = Reserved { start: start.into(), end: u128::from(last) + 1, is_msi };
            let clash = |other: &Reserved| other.start < region.end && region.start < other.end;
            if reserved.iter().any(|other| clash(other) || (other.is_msi && is_msi)) {
                return false;
            }
            reserved.push(region);
        }
        if reserved.len() * 24 > PROBE_SIZE {
            return false;
        }
        reserved.sort_by_key(|region| region.start);
        for known in self.endpoints.iter_mut().filter(|known| known.id == endpoint) {
            known.reserved.clone_from(&reserved);
        }
        true
    }

    /// The first half of a request.
    pub fn begin(&mut self, readable: &[u8], writable: usize) -> Begun {
        self.under_way = None;
        let has_map = self.features & FEATURE_MAP_UNMAP != 0;
        let is_known = match readable.first() {
            Some(1 | 2 | 5) => true,
            Some(3 | 4) => has_map,
            _ => false,
        };
        if !is_known || writable < 4 {
            return Begun::Answered(vec![]);
        }
        self.driver_is_up = true;
        let whole = if readable[0] == 5 { PROBE_SIZE + 4 } else { 4 };
        let size = writable.min(whole);
        if size < whole {
            return Begun::Answered(answer(size, INVAL));
        }
        match self.decide(readable) {
            Ok(decide::Decision::Properties(properties)) => {
                let mut bytes = answer(size, OK);
                bytes[..properties.len()].copy_from_slice(&properties);
                Begun::Answered(bytes)
            }
            Ok(decide::Decision::Nothing) => Begun::Answered(answer(size, OK)),
            Ok(decide::Decision::Ask(effect)) => {
                self.under_way = Some((effect, answer(size, OK)));
                Begun::HostIsAsked
            }
            Err(status) => Begun::Answered(answer(size, status)),
        }
    }

    /// The first half of a write to the configuration space.
    pub fn begin_config_write(&mut self, offset: usize, data: &[u8]) -> Begun {
        self.under_way = None;
        let written = (0..data.len()).find(|at| offset + at == 36).map(|at| data[at]);
        let value = written.filter(|value| *value <= 1).map(|value| value == 1);
        match value {
            Some(value) if self.features & FEATURE_BYPASS_CONFIG != 0 && value != self.bypass => {
                self.under_way = Some((Effect::SetBypass(value), vec![]));
                Begun::HostIsAsked
            }
            _ => Begun::Answered(vec![]),
        }
    }

    /// The second half: `errno` is the host's, or `None` when it succeeded. Returns the answer.
    pub fn finish(&mut self, errno: Option<i32>) -> Vec<u8> {
        let Some((effect, mut bytes)) = self.under_way.take() else { return vec![] };
        if let Some(errno) = errno {
            if let Some(status) = bytes.len().checked_sub(4) {
                bytes[status] = if errno == ENOMEM { NOMEM } else { DEVERR };
            }
            return bytes;
        }
        match effect {
            Effect::Attach { endpoint, domain, bypass } => self.put(endpoint, Some((domain, bypass))),
            Effect::Detach { endpoint } => self.put(endpoint, None),
            Effect::Map(mapping) => self.mappings.push(mapping),
            Effect::Unmap { domain, start, end } => {
                self.mappings.retain(|m| m.domain != domain || m.end <= start || end <= m.start);
            }
            Effect::SetBypass(bypass) => self.bypass = bypass,
        }
        bytes
    }

    /// A device reset. Returns the endpoints that were attached, and to what.
    pub fn reset(&mut self) -> Vec<(u32, u32)> {
        let mut attached = vec![];
        for endpoint in &mut self.endpoints {
            attached.extend(endpoint.domain.take().map(|(domain, _)| (endpoint.id, domain)));
        }
        self.mappings.clear();
        self.events.clear();
        self.driver_is_up = false;
        self.under_way = None;
        attached
    }

    /// What the reset of a whole machine does besides.
    pub fn restore_boot_bypass(&mut self) {
        self.bypass = self.config.boot_bypass;
    }

    /// A refused access, for the driver; false when it is dropped.
    pub fn report(&mut self, endpoint: u32, address: u64, access: u32, reason: u8) -> bool {
        let mut event = [0; 24];
        event[0] = reason;
        event[4..8].copy_from_slice(&(0x100 | access).to_le_bytes());
        event[8..12].copy_from_slice(&endpoint.to_le_bytes());
        event[16..24].copy_from_slice(&address.to_le_bytes());
        let exists = self.endpoints.iter().any(|known| known.id == endpoint);
        let waits = self.events.contains(&event);
        let fits = self.events.len() < self.config.limits.faults_max;
        if exists && !waits && fits {
            self.events.push(event);
        }
        let queued = exists && (waits || fits);
        self.dropped += u64::from(!queued);
        queued
    }

    /// The next event, taken away.
    pub fn take_event(&mut self) -> Option<[u8; 24]> {
        (self.driver_is_up && !self.events.is_empty()).then(|| self.events.remove(0))
    }

    /// Reports dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The configuration space.
    pub fn config_space(&self) -> Vec<u8> {
        let mut bytes = self.config.page_size_mask.to_le_bytes().to_vec();
        bytes.extend(self.config.aperture.start().to_le_bytes());
        bytes.extend(self.config.aperture.last().to_le_bytes());
        bytes.extend(self.config.domain_ids.start().to_le_bytes());
        bytes.extend(self.config.domain_ids.end().to_le_bytes());
        bytes.extend((PROBE_SIZE as u32).to_le_bytes());
        bytes.extend([u8::from(self.bypass), 0, 0, 0]);
        bytes
    }

    /// Every mapping in order: domain, first and last IOVA, GPA of the first, flags.
    pub fn mappings(&self) -> BTreeSet<(u32, u64, u64, u64, u32)> {
        let shown = |m: &Mapping| (m.domain, m.start as u64, (m.end - 1) as u64, m.phys as u64, m.flags);
        self.mappings.iter().map(shown).collect()
    }

    fn put(&mut self, endpoint: u32, domain: Option<(u32, bool)>) {
        for known in self.endpoints.iter_mut().filter(|known| known.id == endpoint) {
            known.domain = domain;
        }
        let alive: Vec<u32> = self.endpoints.iter().filter_map(|known| Some(known.domain?.0)).collect();
        self.mappings.retain(|mapping| alive.contains(&mapping.domain));
    }
}

/// Zeroes and a tail, `size` bytes together.
fn answer(size: usize, status: u8) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[size - 4] = status;
    bytes
}
