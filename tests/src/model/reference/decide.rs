// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the naive device says to a request, before anything changes.
//!
//! Lengths of the writable part and unknown types are dealt with before this.

use super::{
    Effect, Endpoint, FEATURE_BYPASS_CONFIG, FEATURE_MMIO, INVAL, Mapping, NOENT, NOMEM, RANGE, Reference,
    UNSUPP,
};

const SPACE_END: u128 = 1 << 64;

pub(super) enum Decision {
    /// Accepted, and there is nothing to do.
    Nothing,
    /// Accepted, if the host can do it.
    Ask(Effect),
    /// The properties, without the zeroes that follow them.
    Properties(Vec<u8>),
}

impl Reference {
    pub(super) fn decide(&self, readable: &[u8]) -> Result<Decision, u8> {
        let size = [20, 20, 36, 28, 72][usize::from(readable[0]) - 1];
        if readable.len() < size {
            return Err(INVAL);
        }
        match readable[0] {
            1 => self.attach(readable),
            2 => self.detach(readable),
            3 => self.map(readable),
            4 => self.unmap(readable),
            _ => self.probe(readable),
        }
    }

    fn attach(&self, readable: &[u8]) -> Result<Decision, u8> {
        let (domain, id, flags) = (u32_at(readable, 4), u32_at(readable, 8), u32_at(readable, 12));
        let known_flags = if self.features & FEATURE_BYPASS_CONFIG != 0 { 1 } else { 0 };
        if readable[16..20] != [0; 4] || flags & !known_flags != 0 {
            return Err(INVAL);
        }
        let endpoint = self.endpoint(id)?;
        if domain < *self.config.domain_ids.start() || domain > *self.config.domain_ids.end() {
            return Err(RANGE);
        }
        let bypass = flags == 1;
        match self.kind_of(domain) {
            Some(kind) if kind != bypass => return Err(INVAL),
            Some(_) if endpoint.domain == Some((domain, bypass)) => return Ok(Decision::Nothing),
            Some(_) => {
                let maps_reserved = |mapping: &Mapping| {
                    mapping.domain == domain && endpoint.reserves(mapping.start, mapping.end)
                };
                if self.mappings.iter().any(maps_reserved) {
                    return Err(UNSUPP);
                }
            }
            None => {
                // The domains there would be afterwards.
                let mut domains: Vec<u32> = vec![domain];
                for other in self.endpoints.iter().filter(|other| other.id != id) {
                    domains.extend(other.domain.map(|(other, _)| other));
                }
                domains.sort();
                domains.dedup();
                if domains.len() > self.config.limits.domains_max {
                    return Err(NOMEM);
                }
            }
        }
        Ok(Decision::Ask(Effect::Attach { endpoint: id, domain, bypass }))
    }

    fn detach(&self, readable: &[u8]) -> Result<Decision, u8> {
        let (named, id) = (u32_at(readable, 4), u32_at(readable, 8));
        match self.endpoint(id)?.domain {
            // Linux names its identity domain wrongly.
            Some((domain, bypass)) if domain == named || (bypass && named == 0) => {
                Ok(Decision::Ask(Effect::Detach { endpoint: id }))
            }
            _ => Err(INVAL),
        }
    }

    fn map(&self, readable: &[u8]) -> Result<Decision, u8> {
        let (domain, flags) = (u32_at(readable, 4), u32_at(readable, 32));
        let (start, last, phys) = (u64_at(readable, 8), u64_at(readable, 16), u64_at(readable, 24));
        let end = last + 1;
        let known_flags = if self.features & FEATURE_MMIO != 0 { 7 } else { 3 };
        if flags & !known_flags != 0 {
            return Err(INVAL);
        }
        if end <= start {
            return Err(RANGE);
        }
        self.paging_domain(domain)?;
        let granule = 1u128 << self.config.page_size_mask.trailing_zeros();
        let aperture = self.config.aperture;
        if start % granule != 0
            || end % granule != 0
            || phys % granule != 0
            || phys + (end - start) > SPACE_END
            || start < u128::from(aperture.start())
            || last > u128::from(aperture.last())
        {
            return Err(RANGE);
        }
        let of_domain = |endpoint: &&Endpoint| endpoint.domain == Some((domain, false));
        if self.endpoints.iter().filter(of_domain).any(|endpoint| endpoint.reserves(start, end)) {
            return Err(INVAL);
        }
        if self.mappings.iter().any(|m| m.domain == domain && m.start < end && start < m.end) {
            return Err(INVAL);
        }
        if self.mappings.len() >= self.config.limits.mappings_max {
            return Err(NOMEM);
        }
        Ok(Decision::Ask(Effect::Map(Mapping { domain, start, end, phys, flags })))
    }

    fn unmap(&self, readable: &[u8]) -> Result<Decision, u8> {
        let domain = u32_at(readable, 4);
        let (start, end) = (u64_at(readable, 8), u64_at(readable, 16) + 1);
        if readable[24..28] != [0; 4] {
            return Err(INVAL);
        }
        if end <= start {
            return Err(RANGE);
        }
        self.paging_domain(domain)?;
        let hit: Vec<&Mapping> =
            self.mappings.iter().filter(|m| m.domain == domain && m.start < end && start < m.end).collect();
        if hit.iter().any(|m| m.start < start || m.end > end) {
            return Err(RANGE);
        }
        if hit.is_empty() {
            return Ok(Decision::Nothing);
        }
        Ok(Decision::Ask(Effect::Unmap { domain, start, end }))
    }

    fn probe(&self, readable: &[u8]) -> Result<Decision, u8> {
        let mut properties = vec![];
        for region in &self.endpoint(u32_at(readable, 4))?.reserved {
            properties.extend([1, 0, 20, 0, u8::from(region.is_msi), 0, 0, 0]);
            properties.extend((region.start as u64).to_le_bytes());
            properties.extend(((region.end - 1) as u64).to_le_bytes());
        }
        Ok(Decision::Properties(properties))
    }

    pub(super) fn endpoint(&self, id: u32) -> Result<&Endpoint, u8> {
        self.endpoints.iter().find(|endpoint| endpoint.id == id).ok_or(NOENT)
    }

    /// Whether an existing domain is a bypass domain.
    fn kind_of(&self, domain: u32) -> Option<bool> {
        let attached = self.endpoints.iter().filter_map(|endpoint| endpoint.domain);
        attached.filter(|(id, _)| *id == domain).map(|(_, bypass)| bypass).next()
    }

    fn paging_domain(&self, domain: u32) -> Result<(), u8> {
        match self.kind_of(domain) {
            None => Err(NOENT),
            Some(true) => Err(INVAL),
            Some(false) => Ok(()),
        }
    }
}

impl Endpoint {
    fn reserves(&self, start: u128, end: u128) -> bool {
        self.reserved.iter().any(|region| region.start < end && start < region.end)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (0..4).map(|i| u32::from(bytes[at + i]) << (8 * i)).sum()
}

fn u64_at(bytes: &[u8], at: usize) -> u128 {
    (0..8).map(|i| u128::from(bytes[at + i]) << (8 * i)).sum()
}
