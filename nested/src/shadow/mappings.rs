// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Domains that are made of mappings: an address space each, in which a mapping is a copy of a part of the memory's.

use rustix::io::Errno;
use viommu_core::{DomainId, EndpointId, IovaRange, Mapping, Target};

use crate::device::Attach;
use crate::error::{Error, Result};

use super::space::Space;
use super::{Reach, Shadow};

impl<D: Attach> Shadow<D> {
    /// Whether an address space exists for this domain, which has to be told of its changes.
    pub fn has_domain(&self, domain: DomainId) -> bool {
        self.spaces.contains_key(&domain)
    }

    /// Attaches an endpoint to a domain in place of what it reaches; `mappings` are those of the domain, for when no
    /// device has been in it. An endpoint without a device needs nothing, and one whose device the VMM has yet to bind has
    /// to be attached again then.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC` and `IOMMU_IOAS_COPY`, and of [`Attach::attach`].
    pub fn attach(
        &mut self,
        endpoint: EndpointId,
        to: DomainId,
        mappings: impl IntoIterator<Item = Mapping>,
    ) -> Result<()> {
        if !self.device(endpoint).is_some_and(Attach::is_bound) {
            return Ok(());
        }
        self.detach_stale(endpoint)?;
        let new = if self.has_domain(to) { None } else { Some(self.filled(mappings)?) };
        let Some(table) = new.as_ref().or(self.spaces.get(&to)).map(Space::table) else { return Ok(()) };
        self.move_group(endpoint, table, Reach::Domain(to))?;
        self.spaces.extend(new.map(|space| (to, space)));
        self.set_member(endpoint, true);
        Ok(())
    }

    /// Adds a mapping to a domain.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_COPY`: ENOENT when the target is no memory.
    pub fn map(&mut self, domain: DomainId, range: &IovaRange, target: Target) -> Result<()> {
        let Some(space) = self.spaces.get(&domain) else { return Ok(()) };
        let is_held = self.copy(space, range, target)?;
        if let Some(space) = self.spaces.get_mut(&domain).filter(|_| !is_held) {
            space.keep_idle(range);
        }
        Ok(())
    }

    /// Removes what a domain maps within `range`, none of it only in part.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_UNMAP`.
    pub fn unmap(&mut self, domain: DomainId, range: &IovaRange) -> Result<()> {
        self.spaces.get_mut(&domain).map_or(Ok(()), |space| space.unmap(range))
    }

    /// A new address space with these mappings.
    fn filled(&self, mappings: impl IntoIterator<Item = Mapping>) -> Result<Space> {
        let mut space = Space::new(&self.context)?;
        for mapping in mappings {
            if !self.copy(&space, &mapping.range, mapping.target)? {
                space.keep_idle(&mapping.range);
            }
        }
        Ok(space)
    }

    /// Whether the kernel has the mapping now; otherwise it needs none.
    fn copy(&self, space: &Space, range: &IovaRange, target: Target) -> Result<bool> {
        if target.access.is_empty() {
            return Ok(false);
        }
        match self.memory.copy(space.ioas(), range, target, || self.address_spaces()) {
            // Interrupts reach the VMM by themselves: what a device writes there is not for memory to receive.
            Err(error) if self.is_doorbell(range, target, &error) => Ok(false),
            copied => copied.map(|()| true),
        }
    }

    fn is_doorbell(&self, range: &IovaRange, target: Target, error: &Error) -> bool {
        let gpas = target.gpa.0.checked_add(range.span()).and_then(|last| IovaRange::new(target.gpa.0, last));
        let doorbell = self.doorbell.zip(gpas).is_some_and(|(doorbell, gpas)| doorbell.covers(&gpas));
        target.mmio && doorbell && error.errno() == Errno::NOENT
    }

    /// A domain without a device needs no address space.
    pub(super) fn forget_unused(&mut self) {
        let endpoints = &self.endpoints;
        self.spaces
            .retain(|domain, _| endpoints.values().any(|endpoint| endpoint.reach == Reach::Domain(*domain)));
    }
}
