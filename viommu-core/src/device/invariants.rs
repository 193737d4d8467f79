// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is always true of a device between two requests.

use crate::{Domain, DomainId, EndpointId};

use super::Device;

/// An invariant that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// I1: the domain of every attached endpoint exists and counts it as its own.
    DomainOfEndpoint(EndpointId),
    /// I2: every domain has an endpoint, and every endpoint of it is attached to it.
    EndpointsOfDomain(DomainId),
    /// I3: the mappings of a domain are disjoint, lie in the aperture and begin and end on the granule.
    Mappings(DomainId),
    /// I4: count and bytes of the mappings are right and, like the counts of domains and faults, within their
    /// limits.
    Counts,
}

impl Device {
    /// Checks the invariants, in time proportional to the state.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub fn check_invariants(&self) -> Result<(), Broken> {
        for (id, endpoint) in &self.endpoints {
            let Some(domain) = endpoint.domain else { continue };
            if !self.domains.get(&domain).is_some_and(|domain| domain.endpoints.contains(id)) {
                return Err(Broken::DomainOfEndpoint(*id));
            }
        }
        for (id, domain) in &self.domains {
            let belongs = |endpoint| self.domain_of(endpoint) == Some(*id);
            if domain.endpoints.is_empty() || !domain.endpoints().all(belongs) {
                return Err(Broken::EndpointsOfDomain(*id));
            }
            self.check_mappings(*id)?;
        }
        let limits = &self.config.limits;
        let count: usize = self.domains.values().map(Domain::mapping_count).sum();
        let bytes: usize = self.domains.values().map(Domain::mapping_bytes).sum();
        if count != self.mapping_count
            || bytes != self.mapping_bytes
            || bytes > limits.mapping_bytes_max
            || count > limits.mappings_max
            || self.domains.len() > limits.domains_max
            || self.faults.len() > limits.faults_max
        {
            return Err(Broken::Counts);
        }
        Ok(())
    }

    fn check_mappings(&self, id: DomainId) -> Result<(), Broken> {
        let mut last = None;
        for mapping in self.domains.get(&id).into_iter().flat_map(Domain::mappings) {
            let range = mapping.range;
            let aligned = self.granule.is_start(range.start()) && self.granule.is_last(range.last());
            if !aligned
                || !self.config.aperture.covers(&range)
                || last.is_some_and(|last| last >= range.start())
            {
                return Err(Broken::Mappings(id));
            }
            last = Some(range.last());
        }
        Ok(())
    }
}
