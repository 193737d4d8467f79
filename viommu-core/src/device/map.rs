// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MAP and UNMAP.

use crate::domain::Domain;
use crate::mapping::{Mapping, Mappings};
use crate::{Change, DomainId, IovaRange, Reject, Target};

use super::{Device, Verdict};

impl Device {
    // The order of the checks is ours: the domain, then the range by itself, then what is there already.
    pub(super) fn check_map(
        &self,
        id: DomainId,
        range: IovaRange,
        target: Target,
    ) -> Result<Verdict, Reject> {
        let (domain, mappings) = self.paging_domain(id)?;
        self.check_map_range(range, target)?;
        //= virtio#devicenormative:IOMMU/RESVMEM A51
        // What one endpoint of the domain reserves cannot be mapped for any of them.
        if self.is_reserved(domain, &range) {
            return Err(Reject::ReservedRegion(range));
        }
        //= virtio#devicenormative:IOMMU/MAP request A29
        // A mapping is never replaced.
        if mappings.overlaps(&range) {
            return Err(Reject::Overlap(range));
        }
        let mappings_max = self.config.limits.mappings_max;
        if self.mapping_count >= mappings_max {
            return Err(Reject::MappingLimit(mappings_max));
        }
        self.check_room_for_bytes(Mappings::GROWTH_MAX, 0)?;
        Ok(Verdict::Change(Change::Map { domain: id, range, target }))
    }

    //= virtio#devicenormative:IOMMU/UNMAP request A38a A38b A39
    // Holes are no error; a mapping that would be cut is, and then nothing goes.
    pub(super) fn check_unmap(&self, id: DomainId, range: IovaRange) -> Result<Verdict, Reject> {
        let (_, mappings) = self.paging_domain(id)?;
        match mappings.any_within(&range) {
            Err(_) => Err(Reject::Split(range)),
            Ok(false) => Ok(Verdict::Nothing),
            Ok(true) => Ok(Verdict::Change(Change::Unmap { domain: id, range })),
        }
    }

    pub(super) fn commit_map(&mut self, id: DomainId, range: IovaRange, target: Target) {
        self.change_mappings(id, |mappings| mappings.insert(Mapping { range, target }));
    }

    pub(super) fn commit_unmap(&mut self, id: DomainId, range: IovaRange) {
        self.change_mappings(id, |mappings| {
            mappings.remove_within(&range);
        });
    }

    /// Changes the mappings of a domain and keeps the sums over all domains.
    fn change_mappings(&mut self, id: DomainId, change: impl FnOnce(&mut Mappings)) {
        let Some(mappings) = self.domains.get_mut(&id).and_then(|domain| domain.paging_mut()) else {
            return;
        };
        let (count, bytes) = (mappings.count(), mappings.bytes_max());
        change(mappings);
        self.mapping_count = self.mapping_count.saturating_sub(count).saturating_add(mappings.count());
        self.mapping_bytes = self.mapping_bytes.saturating_sub(bytes).saturating_add(mappings.bytes_max());
    }

    /// Whether the mappings of all domains together may take so many bytes more when others are freed.
    pub(super) fn check_room_for_bytes(&self, more: usize, freed: usize) -> Result<(), Reject> {
        let bytes_max = self.config.limits.mapping_bytes_max;
        if self.mapping_bytes.saturating_sub(freed).saturating_add(more) > bytes_max {
            return Err(Reject::MappingMemory(bytes_max));
        }
        Ok(())
    }

    fn paging_domain(&self, id: DomainId) -> Result<(&Domain, &Mappings), Reject> {
        //= virtio#devicenormative:IOMMU/MAP request A31 A32
        // Only what exists and is no bypass domain has mappings.
        //= virtio#devicenormative:IOMMU/UNMAP request A36 A37
        // The same for what takes them away.
        let domain = self.domains.get(&id).ok_or(Reject::NoDomain(id))?;
        let mappings = domain.paging().ok_or(Reject::BypassDomain(id))?;
        Ok((domain, mappings))
    }

    fn check_map_range(&self, range: IovaRange, target: Target) -> Result<(), Reject> {
        //= virtio#devicenormative:IOMMU/MAP request A28
        // Both ends, and the target.
        let granule = self.granule;
        if !granule.is_start(range.start())
            || !granule.is_last(range.last())
            || !granule.is_start(target.gpa.0)
        {
            return Err(Reject::Unaligned(range));
        }
        if target.gpa.0.checked_add(range.span()).is_none() {
            return Err(Reject::TargetWraps(range));
        }
        if !self.config.aperture.covers(&range) {
            return Err(Reject::InputRange(range));
        }
        Ok(())
    }

    fn is_reserved(&self, domain: &Domain, range: &IovaRange) -> bool {
        let mut members = domain.endpoints.iter().filter_map(|id| self.endpoints.get(id));
        members.any(|endpoint| endpoint.reserved.overlap(range))
    }
}
