// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MAP and UNMAP.

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
        let mappings = self.paging_domain(id)?;
        self.check_map_range(range, target)?;
        //= virtio#devicenormative:IOMMU/RESVMEM A51
        // What one endpoint of the domain reserves cannot be mapped for any of them.
        if self.is_reserved(id, &range) {
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
        Ok(Verdict::Change(Change::Map { domain: id, range, target }))
    }

    //= virtio#devicenormative:IOMMU/UNMAP request A38a A38b A39
    // Holes are no error; a mapping that would be cut is, and then nothing goes.
    pub(super) fn check_unmap(&self, id: DomainId, range: IovaRange) -> Result<Verdict, Reject> {
        let mappings = self.paging_domain(id)?;
        match mappings.count_within(&range) {
            Err(_) => Err(Reject::Split(range)),
            Ok(0) => Ok(Verdict::Nothing),
            Ok(_) => Ok(Verdict::Change(Change::Unmap { domain: id, range })),
        }
    }

    pub(super) fn commit_map(&mut self, id: DomainId, range: IovaRange, target: Target) {
        if let Some(mappings) = self.domains.get_mut(&id).and_then(|domain| domain.paging_mut()) {
            mappings.insert(Mapping { range, target });
            self.mapping_count = self.mapping_count.saturating_add(1);
        }
    }

    pub(super) fn commit_unmap(&mut self, id: DomainId, range: IovaRange) {
        if let Some(mappings) = self.domains.get_mut(&id).and_then(|domain| domain.paging_mut()) {
            let removed = mappings.remove_within(&range);
            self.mapping_count = self.mapping_count.saturating_sub(removed);
        }
    }

    fn paging_domain(&self, id: DomainId) -> Result<&Mappings, Reject> {
        //= virtio#devicenormative:IOMMU/MAP request A31 A32
        // Only what exists and is no bypass domain has mappings.
        //= virtio#devicenormative:IOMMU/UNMAP request A36 A37
        // The same for what takes them away.
        let domain = self.domains.get(&id).ok_or(Reject::NoDomain(id))?;
        domain.paging().ok_or(Reject::BypassDomain(id))
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

    fn is_reserved(&self, id: DomainId, range: &IovaRange) -> bool {
        let members = self.domains.get(&id).into_iter().flat_map(|domain| domain.endpoints.iter());
        members.filter_map(|id| self.endpoints.get(id)).any(|endpoint| endpoint.reserved.overlap(range))
    }
}
