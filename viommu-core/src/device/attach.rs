// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH and DETACH.

use alloc::collections::BTreeSet;

use crate::domain::Domain;
use crate::mapping::Mappings;
use crate::{Change, DomainId, EndpointId, Pasid, Reject};

use super::{Device, Verdict};

impl Device {
    pub(super) fn check_attach(&self, id: EndpointId, to: DomainId, bypass: bool) -> Result<Verdict, Reject> {
        //= virtio#devicenormative:IOMMU/ATTACH request A17
        // Only endpoints behind this device can be attached.
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        //= tables#Feature bit T3
        // Mappings are what such a domain would be there for.
        if self.config.mode.is_table() && !bypass {
            return Err(Reject::NoMappings);
        }
        if !self.config.domain_ids.contains(&to.0) {
            return Err(Reject::DomainRange(to));
        }
        match self.domains.get(&to) {
            //= virtio#devicenormative:IOMMU/ATTACH request A19
            // The driver means another kind of domain than there is.
            Some(domain) if domain.is_bypass() != bypass => return Err(Reject::BypassMismatch(to)),
            Some(_) if endpoint.domain == Some(to) => return Ok(Verdict::Nothing),
            //= virtio#devicenormative:IOMMU/ATTACH request A18a A18b A20c A21a A21b
            // Endpoints share a domain, or move to it, unless one reserves what it maps.
            Some(domain) => {
                let maps_reserved =
                    |space: &Mappings| endpoint.reserved.ranges().any(|range| space.overlaps(&range));
                if domain.paging().is_some_and(maps_reserved) {
                    return Err(Reject::Incompatible(id, to));
                }
            }
            None => self.check_room_for_domain(id, bypass)?,
        }
        self.check_group(id, to, bypass)?;
        Ok(Verdict::Change(Change::Attach { endpoint: id, from: endpoint.domain, to, bypass }))
    }

    /// Refuses to separate `id` from the others of its group. In bypass all domains are one.
    pub(super) fn check_group(&self, id: EndpointId, to: DomainId, bypass: bool) -> Result<(), Reject> {
        //= virtio#devicenormative:IOMMU/ATTACH request A21a
        // What the host cannot isolate cannot have address spaces of its own.
        let group = self.endpoints.get(&id).and_then(|endpoint| endpoint.group);
        let others =
            self.endpoints.iter().filter(|(other, endpoint)| **other != id && endpoint.group == group);
        for (other, domain) in others.filter_map(|(other, endpoint)| Some((*other, endpoint.domain?))) {
            let is_bypass = self.domains.get(&domain).is_some_and(Domain::is_bypass);
            if group.is_some() && domain != to && !(bypass && is_bypass) {
                return Err(Reject::GroupElsewhere(id, other, domain));
            }
        }
        Ok(())
    }

    pub(super) fn check_detach(&self, id: EndpointId, named: DomainId) -> Result<Verdict, Reject> {
        //= virtio#devicenormative:IOMMU/DETACH request A24 A25
        // The endpoint has to exist, and to be in the domain that is named; but Linux calls its identity domain 0 here,
        // whatever id it attached it by.
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
        let from = endpoint.domain.ok_or(Reject::NotAttached(id, named))?;
        let is_bypass = self.domains.get(&from).is_some_and(Domain::is_bypass);
        let is_identity_of_linux = is_bypass && named == DomainId(0);
        if from != named && !is_identity_of_linux {
            return Err(Reject::NotAttached(id, named));
        }
        Ok(Verdict::Change(Change::Detach { endpoint: id, from }))
    }

    pub(super) fn commit_attach(&mut self, id: EndpointId, to: DomainId, bypass: bool) {
        //= virtio#devicenormative:IOMMU/ATTACH request A20a A20b A22
        // A move is a DETACH and an ATTACH, and after either the endpoint is in the domain.
        self.commit_detach(id);
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.domain = Some(to);
            let mapping_bytes = &mut self.mapping_bytes;
            let new = || {
                let domain = Domain::new(bypass, self.granule);
                *mapping_bytes = mapping_bytes.saturating_add(domain.mapping_bytes());
                domain
            };
            self.domains.entry(to).or_insert_with(new).endpoints.insert(id);
        }
    }

    /// The endpoint leaves its domain, and its PASIDs theirs.
    pub(super) fn commit_detach(&mut self, id: EndpointId) {
        //= virtio#devicenormative:IOMMU/DETACH request A26
        // The endpoint loses its way to the domain.
        //= tables#Domains T6
        // And all that it has beside it.
        self.end_requests(|group| group.endpoint == id);
        let Some(endpoint) = self.endpoints.get_mut(&id) else { return };
        endpoint.table = None;
        let from = endpoint.domain.take();
        let pasids = core::mem::take(&mut endpoint.pasids);
        if let Some(from) = from {
            self.leave(from, id, None);
        }
        pasids.into_iter().for_each(|(pasid, attachment)| self.leave(attachment.domain, id, Some(pasid)));
    }

    /// A domain ends with the last of it, and its mappings with it.
    pub(super) fn leave(&mut self, from: DomainId, id: EndpointId, pasid: Option<Pasid>) {
        //= virtio#devicenormative:IOMMU/DETACH request A27
        // Nobody is left who could use the mappings.
        //= tables#Domains T5
        // PASIDs count as much as endpoints.
        let Some(domain) = self.domains.get_mut(&from) else { return };
        match pasid {
            Some(pasid) => domain.pasids.remove(&(id, pasid)),
            None => domain.endpoints.remove(&id),
        };
        if domain.is_empty() {
            self.mapping_count = self.mapping_count.saturating_sub(domain.mapping_count());
            self.mapping_bytes = self.mapping_bytes.saturating_sub(domain.mapping_bytes());
            self.domains.remove(&from);
        }
    }

    /// Whether one more domain may exist, given that those end which only `id` is in.
    fn check_room_for_domain(&self, id: EndpointId, bypass: bool) -> Result<(), Reject> {
        let (count, freed) = self.ending_with(id);
        self.check_domain_count(count)?;
        if bypass { Ok(()) } else { self.check_room_for_bytes(Mappings::EMPTY_BYTES_MAX, freed) }
    }

    /// Whether one more domain may exist when so many end.
    pub(super) fn check_domain_count(&self, ending: usize) -> Result<(), Reject> {
        let domains_max = self.config.limits.domains_max;
        if self.domains.len().saturating_sub(ending) >= domains_max {
            return Err(Reject::DomainLimit(domains_max));
        }
        Ok(())
    }

    /// How many domains end with this endpoint, and the bytes of their mappings.
    fn ending_with(&self, id: EndpointId) -> (usize, usize) {
        let Some(endpoint) = self.endpoints.get(&id) else { return (0, 0) };
        let of_pasids = endpoint.pasids.values().map(|attachment| attachment.domain);
        let domains: BTreeSet<DomainId> = endpoint.domain.into_iter().chain(of_pasids).collect();
        let domains = domains.iter().filter_map(|domain| self.domains.get(domain));
        domains.filter(|domain| domain.is_only_of(id)).fold((0, 0), |(count, bytes), domain| {
            (count.saturating_add(1), domain.mapping_bytes().saturating_add(bytes))
        })
    }

    /// How many PASIDs have a table.
    pub(super) fn pasid_count(&self) -> usize {
        self.endpoints.values().map(|endpoint| endpoint.pasids.len()).sum()
    }
}
