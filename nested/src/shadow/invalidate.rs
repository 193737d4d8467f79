// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations of a domain's tables: to every vIOMMU that has a device of the domain, or to each of its page tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use viommu_core::{Caches, DomainId, Invalidation, Scope};

use crate::device::Attach;
use crate::error::Result;
use crate::format::{self, Member};
use crate::object::{Entries, Hwpt, Invalidated};

use super::Shadow;
use super::base::Base;

impl<D: Attach> Shadow<D> {
    /// Has caches forget what they hold of a domain's tables.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_INVALIDATE`; caches may have forgotten a part of it, or all.
    pub fn invalidate(&self, domain: DomainId, invalidation: &Invalidation) -> Result<()> {
        for base in self.bases() {
            let done = match base.viommu() {
                Some(_) => self.invalidate_devices(&base, domain, invalidation),
                None => self.invalidate_tables(&base, domain, invalidation),
            };
            done.map_err(|stopped| {
                log::debug!("{domain}: {stopped}");
                stopped.error
            })?;
        }
        Ok(())
    }

    /// Has the IOMMU of a base forget all translations of the guest's tables, if devices in different domains share them
    /// there: by the numbers of address spaces, which domains do not have each for themselves. What it knows of a device's
    /// own goes with its attachment, which is the kernel's.
    ///
    /// # Errors
    /// Of `IOMMU_HWPT_INVALIDATE`.
    pub(super) fn invalidate_base(&self, base: &Base) -> Result<()> {
        let Some(viommu) = base.viommu() else { return Ok(()) };
        let all =
            Invalidation { scope: Scope::Domain, caches: Caches::TLB, leaf: false, id: None, global: true };
        let batches = base.format().entries(base.info(), &all, &[]);
        repeat(base, &batches, |entries| viommu.invalidate_entries(entries)).map_err(|stopped| stopped.error)
    }

    /// Of a vIOMMU, by the devices in it.
    fn invalidate_devices(&self, base: &Arc<Base>, domain: DomainId, invalidation: &Invalidation) -> Done {
        let done = self.invalidate_members(base, invalidation, &self.members(base, domain, |_| true));
        match done {
            // A device that the VMM has let go of is unknown, and keeps nothing.
            Err(_) if !self.members(base, domain, |device| !device.is_bound()).is_empty() => {
                self.invalidate_members(base, invalidation, &self.members(base, domain, Attach::is_bound))
            }
            done => done,
        }
    }

    fn invalidate_members(&self, base: &Base, invalidation: &Invalidation, members: &[Member]) -> Done {
        let Some(viommu) = base.viommu().filter(|_| !members.is_empty()) else { return Ok(()) };
        let batches = base.format().entries(base.info(), invalidation, members);
        repeat(base, &batches, |entries| viommu.invalidate_entries(entries))
    }

    fn members(&self, base: &Arc<Base>, domain: DomainId, is_wanted: impl Fn(&D) -> bool) -> Vec<Member> {
        let endpoints = self.endpoints.iter().filter(|(_, endpoint)| endpoint.is_over(base));
        let endpoints = endpoints.filter(|(_, endpoint)| is_wanted(endpoint.device.device()));
        endpoints
            .filter_map(|(id, endpoint)| {
                let placed = endpoint.tables.get(&None).filter(|placed| placed.domain == domain)?;
                Some(Member { number: id.0.into(), table: placed.table })
            })
            .collect()
    }

    /// Of the page tables that are concerned, each once.
    fn invalidate_tables(&self, base: &Arc<Base>, domain: DomainId, invalidation: &Invalidation) -> Done {
        let mut concerned: BTreeMap<u32, &Arc<Hwpt>> = BTreeMap::new();
        let endpoints = self.endpoints.values().filter(|endpoint| endpoint.is_over(base));
        for (pasid, placed) in endpoints.flat_map(|endpoint| &endpoint.tables) {
            if placed.domain == domain && format::concerns(invalidation, *pasid) {
                concerned.insert(placed.hwpt.id(), &placed.hwpt);
            }
        }
        let batches = base.format().entries(base.info(), invalidation, &[]);
        concerned
            .into_values()
            .try_for_each(|hwpt| repeat(base, &batches, |entries| hwpt.invalidate_entries(entries)))
    }
}

type Done = std::result::Result<(), Invalidated>;

/// Each batch as often as the hardware wants it.
fn repeat(base: &Base, batches: &[Entries], mut invalidate: impl FnMut(&Entries) -> Done) -> Done {
    let repetitions = base.format().repetitions(base.info());
    let mut batches = batches.iter().filter(|entries| !entries.is_empty());
    batches.try_for_each(|entries| (0..repetitions).try_for_each(|_| invalidate(entries)))
}
