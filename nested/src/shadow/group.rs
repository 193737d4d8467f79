// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that the host cannot tell from each other: all of an IOMMU group move with any of them.

use viommu_core::EndpointId;

use crate::device::Attach;
use crate::error::Result;
use crate::object::PageTable;

use super::{Endpoint, Reach, Shadow};

impl<D: Attach> Shadow<D> {
    /// The endpoints that cannot be told from this one, itself among them.
    pub fn group_of(&self, endpoint: EndpointId) -> Vec<EndpointId> {
        let group = self.endpoints.get(&endpoint).and_then(|endpoint| endpoint.group);
        let is_in_it =
            |id: EndpointId, other: &Endpoint<D>| id == endpoint || (group.is_some() && other.group == group);
        self.endpoints.iter().filter(|(id, other)| is_in_it(**id, other)).map(|(id, _)| *id).collect()
    }

    /// Blocks what has followed another of its group into a domain and is left alone there.
    pub(super) fn block_follower(&mut self, endpoint: EndpointId) {
        let is_in_domain = matches!(self.reach(endpoint), Some(Reach::Domain(_)));
        let is_member = self.endpoints.get(&endpoint).is_some_and(|endpoint| endpoint.is_member);
        if is_in_domain
            && !is_member
            && let Err(error) = self.block(endpoint)
        {
            log::error!("{endpoint}: it cannot be blocked: {error}");
        }
    }

    /// Attaches an endpoint, and with it all of its group.
    pub(super) fn move_group(&mut self, endpoint: EndpointId, to: PageTable, reach: Reach) -> Result<()> {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.device.attach(to.clone(), None)?;
        }
        for id in self.group_of(endpoint) {
            self.followed(id, Some(to.clone()), reach);
        }
        Ok(())
    }

    /// The kernel keeps a group attached until the last of it is detached. So the others are still attached if one of them
    /// cannot be.
    pub(super) fn block_group(&mut self, endpoint: EndpointId) -> Result<()> {
        let mut bound = self.group_of(endpoint);
        bound.retain(|id| self.device(*id).is_some_and(Attach::is_bound));
        bound.iter().filter_map(|id| self.device(*id)).try_for_each(|device| device.detach(None))?;
        for id in bound {
            self.followed(id, None, Reach::Nothing);
        }
        Ok(())
    }

    /// Takes note of where the kernel has a device now.
    fn followed(&mut self, id: EndpointId, table: Option<PageTable>, reach: Reach) {
        if let Some(endpoint) = self.endpoints.get_mut(&id) {
            endpoint.device.followed(table);
            endpoint.tables.remove(&None);
            endpoint.reach = reach;
        }
    }

    pub(super) fn is_kept_by_group(&self, endpoint: EndpointId) -> bool {
        let mut others = self.group_of(endpoint).into_iter().filter(|other| *other != endpoint);
        others.any(|other| self.endpoints.get(&other).is_some_and(|other| other.is_member))
    }
}
