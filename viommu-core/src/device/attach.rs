// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! ATTACH and DETACH.

use crate::domain::Domain;
use crate::mapping::Mappings;
use crate::{Change, DomainId, EndpointId, Reject};

use super::{Device, Verdict};

impl Device {
    pub(super) fn check_attach(&self, id: EndpointId, to: DomainId, bypass: bool) -> Result<Verdict, Reject> {
        //= virtio#devicenormative:IOMMU/ATTACH request A17
        // Only endpoints behind this device can be attached.
        let endpoint = self.endpoints.get(&id).ok_or(Reject::NoEndpoint(id))?;
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
            None => self.check_room_for_domain(endpoint.domain, bypass)?,
        }
        self.check_group(id, to, bypass)?;
        Ok(Verdict::Change(Change::Attach { endpoint: id, from: endpoint.domain, to, bypass }))
    }

    /// Refuses to separate `id` from the others of its group. In bypass all domains are one.
    fn check_group(&self, id: EndpointId, to: DomainId, bypass: bool) -> Result<(), Reject> {
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

    /// A domain ends with its last endpoint, and its mappings with it.
    pub(super) fn commit_detach(&mut self, id: EndpointId) {
        //= virtio#devicenormative:IOMMU/DETACH request A26 A27
        // The endpoint loses its way to the domain, and the domain its mappings with the last endpoint.
        let Some(from) = self.endpoints.get_mut(&id).and_then(|endpoint| endpoint.domain.take()) else {
            return;
        };
        let Some(domain) = self.domains.get_mut(&from) else {
            return;
        };
        domain.endpoints.remove(&id);
        if domain.endpoints.is_empty() {
            self.mapping_count = self.mapping_count.saturating_sub(domain.mapping_count());
            self.mapping_bytes = self.mapping_bytes.saturating_sub(domain.mapping_bytes());
            self.domains.remove(&from);
        }
    }

    /// Whether one more domain may exist, given that `leaves` loses an endpoint and may end.
    fn check_room_for_domain(&self, leaves: Option<DomainId>, bypass: bool) -> Result<(), Reject> {
        let domains_max = self.config.limits.domains_max;
        let old = leaves.and_then(|domain| self.domains.get(&domain));
        let ending = old.filter(|domain| domain.endpoints.len() == 1);
        let left = self.domains.len().saturating_sub(usize::from(ending.is_some()));
        if left >= domains_max {
            return Err(Reject::DomainLimit(domains_max));
        }
        let freed = ending.map_or(0, Domain::mapping_bytes);
        if bypass { Ok(()) } else { self.check_room_for_bytes(Mappings::EMPTY_BYTES_MAX, freed) }
    }
}
