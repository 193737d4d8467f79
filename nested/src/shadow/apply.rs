// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a change of the device means to the address spaces: all of it is done, or none.

use viommu_core::{Change, Device, DomainId, EndpointId, Mapping, Pasid, Table};

use crate::device::Attach;
use crate::error::Result;

use super::{Reach, Shadow};

/// Where the device of an endpoint is to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// To where it reaches nothing.
    Nothing,
    /// To guest memory, untranslated, as unattached endpoints are in bypass mode.
    Memory,
    /// Into a bypass domain, which is guest memory too.
    BypassDomain,
    /// Into a domain.
    Domain(DomainId),
}

impl Goal {
    /// Of an unattached endpoint, by the device's `bypass`.
    pub fn of_unattached(bypass: bool) -> Goal {
        if bypass { Goal::Memory } else { Goal::Nothing }
    }
}

/// What a change does not say of the device that it is going to change.
pub trait Known {
    /// What a domain maps.
    fn mappings(&self, domain: DomainId) -> Vec<Mapping>;

    /// The tables that an endpoint and its PASIDs use, and the domains that they are in.
    fn tables(&self, endpoint: EndpointId) -> Vec<(Option<Pasid>, DomainId, Table)>;

    /// The endpoints that are in no domain.
    fn unattached(&self) -> Vec<EndpointId>;

    /// Whether those are in bypass mode.
    fn bypass(&self) -> bool;
}

impl Known for Device {
    fn mappings(&self, domain: DomainId) -> Vec<Mapping> {
        self.domain(domain).into_iter().flat_map(|domain| domain.mappings()).collect()
    }

    fn tables(&self, endpoint: EndpointId) -> Vec<(Option<Pasid>, DomainId, Table)> {
        let pasids = self.pasids(endpoint).map(Some);
        let attached = |pasid| self.table_of(endpoint, pasid).map(|(domain, table)| (pasid, domain, table));
        [None].into_iter().chain(pasids).filter_map(attached).collect()
    }

    fn unattached(&self) -> Vec<EndpointId> {
        self.endpoints().filter(|endpoint| self.domain_of(*endpoint).is_none()).collect()
    }

    fn bypass(&self) -> bool {
        Device::bypass(self)
    }
}

impl<D: Attach> Shadow<D> {
    /// Applies a change to the endpoints that have a device.
    ///
    /// # Errors
    /// The first call that failed; all is as it was then.
    pub fn apply(&mut self, change: &Change, known: &impl Known) -> Result<()> {
        match *change {
            Change::Map { domain, range, target } => self.map(domain, &range, target),
            Change::Unmap { domain, range } => self.unmap(domain, &range),
            Change::Attach { endpoint, to, bypass, .. } => self.without_pasids(endpoint, |shadow| {
                shadow.move_to(endpoint, if bypass { Goal::BypassDomain } else { Goal::Domain(to) }, known)
            }),
            Change::Detach { endpoint, .. } => self.without_pasids(endpoint, |shadow| {
                shadow.move_to(endpoint, Goal::of_unattached(known.bypass()), known)
            }),
            Change::AttachTable { endpoint, pasid, to, table, .. } => {
                self.attach_table(endpoint, pasid, to, table)
            }
            Change::DetachPasid { endpoint, pasid, .. } => self.detach_pasid(endpoint, pasid),
            Change::Invalidate { domain, invalidation } => self.invalidate(domain, &invalidation),
            Change::Respond { cookie, code, .. } => self.respond(cookie, code),
            Change::SetBypass { enabled } => self.move_all(&known.unattached(), enabled, known),
        }
    }

    /// Moves the device of an endpoint, if it has one.
    ///
    /// # Errors
    /// Of the kernel's; it is where it was then.
    pub fn move_to(&mut self, endpoint: EndpointId, goal: Goal, known: &impl Known) -> Result<()> {
        if self.reach(endpoint).is_none() {
            return Ok(());
        }
        match goal {
            Goal::Nothing => self.block(endpoint),
            Goal::Memory => self.bypass(endpoint),
            Goal::BypassDomain => self.attach_bypass(endpoint),
            Goal::Domain(domain) => match of_device(&known.tables(endpoint)) {
                Some((domain, table)) => self.attach_table(endpoint, None, domain, table),
                None => {
                    let mappings = if self.has_domain(domain) { Vec::new() } else { known.mappings(domain) };
                    self.attach(endpoint, domain, mappings)
                }
            },
        }
    }

    /// Attaches the PASIDs of an endpoint that should have tables and have none, since the VMM had not bound the device.
    ///
    /// # Errors
    /// Of [`attach_table`](Shadow::attach_table), for the first that cannot have its own; the others have theirs.
    pub fn attach_pasids(&mut self, endpoint: EndpointId, known: &impl Known) -> Result<()> {
        let mut result = Ok(());
        for (pasid, domain, table) in known.tables(endpoint) {
            if pasid.is_some() && !self.has_table(endpoint, pasid) {
                result = result.and(self.attach_table(endpoint, pasid, domain, table));
            }
        }
        result
    }

    /// Moves all of these that are in no domain, be it by their group, and do not linger: that is of an earlier life.
    fn move_all(&mut self, endpoints: &[EndpointId], bypass: bool, known: &impl Known) -> Result<()> {
        let mut moved = Vec::new();
        for endpoint in endpoints {
            let before = match self.reach(*endpoint) {
                Some(before @ (Reach::Vmm | Reach::Nothing | Reach::Memory)) => before,
                Some(Reach::Domain(_) | Reach::Lingering) | None => continue,
            };
            if let Err(failure) = self.move_to(*endpoint, Goal::of_unattached(bypass), known) {
                self.move_back(&moved, known);
                return Err(failure);
            }
            moved.push((*endpoint, before));
        }
        Ok(())
    }

    fn move_back(&mut self, moved: &[(EndpointId, Reach)], known: &impl Known) {
        for (endpoint, before) in moved {
            let did_bypass = matches!(before, Reach::Vmm | Reach::Memory);
            if let Err(error) = self.move_to(*endpoint, Goal::of_unattached(did_bypass), known) {
                log::error!("{endpoint} cannot be moved back: {error}");
            }
        }
    }
}

/// The table of an endpoint's own.
fn of_device(tables: &[(Option<Pasid>, DomainId, Table)]) -> Option<(DomainId, Table)> {
    let mut found = tables.iter().filter(|(pasid, ..)| pasid.is_none());
    found.next().map(|(_, domain, table)| (*domain, *table))
}
