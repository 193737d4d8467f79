// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that remembers what it was asked, and what that made of the world.
//!
//! It holds the device to its side of the contract: a change that does not fit what the host already has
//! is a panic. It translates nothing.

use std::collections::BTreeMap;

use viommu_core::{
    Change, Device, DomainId, EndpointId, Host, HostError, IovaRange, Mapping, Pasid, ResponseCode, Table,
    Target,
};

/// What the accepted changes come to.
#[derive(Debug, Default)]
pub struct MirrorHost {
    /// Every change that was asked for, the refused ones too.
    pub asked: Vec<Change>,
    /// The domain of each attached endpoint, and whether it is a bypass domain.
    attached: BTreeMap<EndpointId, (DomainId, bool)>,
    mappings: Vec<(DomainId, IovaRange, Target)>,
    /// What uses which table.
    tables: BTreeMap<(EndpointId, Option<Pasid>), (DomainId, Table)>,
    /// The page requests that the driver has answered, by cookie.
    pub answered: Vec<(u64, ResponseCode)>,
    bypass: bool,
    /// The call that fails, counted down to zero, and its errno.
    failing: Option<(usize, i32)>,
}

impl MirrorHost {
    /// A host of a device at power-on.
    pub fn new(bypass: bool) -> MirrorHost {
        MirrorHost { bypass, ..MirrorHost::default() }
    }

    /// Refuses the `nth` call from now, the next being 0, with `errno`.
    pub fn fail(&mut self, nth: usize, errno: i32) {
        self.failing = Some((nth, errno));
    }

    /// Forgets everything attached, as after a reset of the device.
    pub fn reset(&mut self, bypass: bool) {
        self.attached.clear();
        self.mappings.clear();
        self.tables.clear();
        self.bypass = bypass;
    }

    /// What each endpoint is attached to.
    pub fn attached(&self) -> &BTreeMap<EndpointId, (DomainId, bool)> {
        &self.attached
    }

    /// The mappings of `domain` in order of IOVA.
    pub fn mappings_of(&self, domain: DomainId) -> Vec<Mapping> {
        let of_domain = self.mappings.iter().filter(|(id, ..)| *id == domain);
        let mut mappings: Vec<_> =
            of_domain.map(|(_, range, target)| Mapping { range: *range, target: *target }).collect();
        mappings.sort_by_key(|mapping| mapping.range.start());
        mappings
    }

    /// # Panics
    /// When host and device differ in an attachment, a mapping or `bypass`.
    pub fn assert_agrees_with(&self, device: &Device) {
        let bypass = device.config_space()[viommu_core::wire::BYPASS_OFFSET] == 1;
        assert_eq!(self.bypass, bypass, "bypass");
        for endpoint in device.endpoints() {
            let domain = device.domain_of(endpoint);
            let of_device = domain.map(|id| (id, device.domain(id).is_some_and(|d| d.is_bypass())));
            assert_eq!(self.attached.get(&endpoint).copied(), of_device, "{endpoint}");
            assert_eq!(self.tables_of(endpoint), tables_of(device, endpoint), "{endpoint}");
            let Some(id) = domain else { continue };
            let of_device: Vec<Mapping> = device.domain(id).into_iter().flat_map(|d| d.mappings()).collect();
            assert_eq!(self.mappings_of(id), of_device, "mappings of {id}");
        }
    }

    /// The tables of an endpoint and its PASIDs.
    fn tables_of(&self, endpoint: EndpointId) -> Tables {
        let of_endpoint = self.tables.iter().filter(|((id, _), _)| *id == endpoint);
        of_endpoint.map(|((_, pasid), table)| (*pasid, *table)).collect()
    }

    fn is_bypass(&self, domain: DomainId) -> Option<bool> {
        self.attached.values().find(|(id, _)| *id == domain).map(|(_, bypass)| *bypass)
    }

    fn commit(&mut self, change: &Change) {
        match *change {
            Change::Attach { endpoint, from, to, bypass } => {
                let left = self.attached.insert(endpoint, (to, bypass)).map(|(domain, _)| domain);
                assert_eq!(left, from, "ATTACH from a domain the endpoint is not in");
                assert_ne!(from, Some(to), "ATTACH to where the endpoint is already");
                assert!(self.attached.values().all(|(id, kind)| *id != to || *kind == bypass));
                self.tables.retain(|(id, _), _| *id != endpoint);
            }
            Change::Detach { endpoint, from } => {
                let left = self.attached.remove(&endpoint).map(|(domain, _)| domain);
                assert_eq!(left, Some(from), "DETACH from a domain the endpoint is not in");
                self.tables.retain(|(id, _), _| *id != endpoint);
            }
            Change::Map { domain, range, target } => {
                assert_eq!(self.is_bypass(domain), Some(false), "MAP in no paging domain");
                assert!(!self.mappings.iter().any(|(id, other, _)| *id == domain && other.overlaps(&range)));
                self.mappings.push((domain, range, target));
            }
            Change::Unmap { domain, range } => {
                assert_eq!(self.is_bypass(domain), Some(false), "UNMAP in no paging domain");
                let before = self.mappings.len();
                self.mappings.retain(|(id, other, _)| {
                    let hit = *id == domain && other.overlaps(&range);
                    assert!(!hit || range.covers(other), "UNMAP splits {other}");
                    !hit
                });
                assert!(self.mappings.len() < before, "UNMAP of nothing");
            }
            Change::AttachTable { endpoint, pasid, from, to, table } => {
                let left = match pasid {
                    None => self.attached.insert(endpoint, (to, false)).map(|(domain, _)| domain),
                    Some(_) => self.tables.get(&(endpoint, pasid)).map(|(domain, _)| *domain),
                };
                assert_eq!(left, from, "ATTACH_TABLE from a domain that it is not in");
                assert!(self.attached.contains_key(&endpoint), "a PASID of an endpoint that is in no domain");
                assert_ne!(self.is_bypass(to), Some(true), "a table in a bypass domain");
                self.tables.insert((endpoint, pasid), (to, table));
                let mut others = self.tables.values().filter(|(domain, _)| *domain == to);
                assert!(others.all(|(_, other)| other.format() == table.format()), "formats in one domain");
            }
            Change::DetachPasid { endpoint, pasid, from } => {
                let left = self.tables.remove(&(endpoint, Some(pasid))).map(|(domain, _)| domain);
                assert_eq!(left, Some(from), "a PASID from a domain that it is not in");
            }
            Change::Invalidate { domain, .. } => {
                let mut tables = self.tables.values();
                assert!(tables.any(|(id, _)| *id == domain), "INVALIDATE of no domain with tables");
            }
            Change::Respond { cookie, code, .. } => self.answered.push((cookie, code)),
            Change::SetBypass { enabled } => {
                assert_ne!(self.bypass, enabled, "SetBypass that changes nothing");
                self.bypass = enabled;
            }
        }
        let attached = &self.attached;
        self.mappings.retain(|(id, ..)| attached.values().any(|(domain, _)| domain == id));
    }
}

type Tables = BTreeMap<Option<Pasid>, (DomainId, Table)>;

fn tables_of(device: &Device, endpoint: EndpointId) -> Tables {
    let all = [None].into_iter().chain(device.pasids(endpoint).map(Some));
    all.filter_map(|pasid| Some((pasid, device.table_of(endpoint, pasid)?))).collect()
}

impl Host for MirrorHost {
    fn apply(&mut self, change: &Change) -> Result<(), HostError> {
        self.asked.push(*change);
        match self.failing.take() {
            Some((0, errno)) => return Err(HostError { operation: "test", errno }),
            Some((nth, errno)) => self.failing = Some((nth - 1, errno)),
            None => {}
        }
        self.commit(change);
        Ok(())
    }
}
