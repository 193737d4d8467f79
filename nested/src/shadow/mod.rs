// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The domains of a guest as address spaces of iommufd, each following its mappings.
//!
//! | the guest's              | is here                                                                     |
//! |--------------------------|-----------------------------------------------------------------------------|
//! | memory                   | one address space at IOVA = GPA, see [`GuestMemory`]                        |
//! | domain, not empty        | an address space of its own; a mapping is a copy of a part of the memory's  |
//! | endpoint in a domain     | a device attached to the domain's address space                             |
//! | endpoint in bypass mode  | a device attached to the memory's address space, or to the VMM's            |
//! | endpoint that is blocked | a device attached to nothing                                                |
//!
//! The devices are bound to the context by another process, the VMM, which attaches them to an address space of its
//! own at first. Everything here is one step of the kernel's, or undoes what it did: after an error all is as it was.
//! Decides nothing: which domain an endpoint is in is the caller's matter.

mod apply;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustix::io::Errno;
use viommu_core::{DomainId, EndpointId, IovaRange, Mapping, Target};

use crate::device::{Attach, Attached};
use crate::error::{Error, Result};
use crate::object::{Context, Ioas, PageTable};

pub use apply::{Goal, Known};
pub use memory::{GuestMemory, Lasting, MemoryRegion};

/// The address spaces of one guest in one context, and the devices that use them.
#[derive(Debug)]
pub struct Shadow<D> {
    context: Arc<Context>,
    memory: GuestMemory,
    /// Where the guest's devices write interrupts.
    doorbell: Option<IovaRange>,
    /// Of the domains that a device is in.
    spaces: BTreeMap<DomainId, Arc<Ioas>>,
    endpoints: BTreeMap<EndpointId, Endpoint<D>>,
}

#[derive(Debug)]
struct Endpoint<D> {
    device: Attached<D>,
    reach: Reach,
}

/// What a device reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What the VMM has attached it to: all of the guest's memory, if it is bound yet.
    Vmm,
    /// Nothing.
    Nothing,
    /// The guest's memory, untranslated.
    Memory,
    /// What the domain maps.
    Domain(DomainId),
    /// What a domain mapped that does not exist any more.
    Lingering,
}

impl<D: Attach> Shadow<D> {
    /// No memory and no device yet. What lies in `doorbell`, GPAs, receives interrupts and is no memory.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC`.
    pub fn new(context: &Arc<Context>, doorbell: Option<IovaRange>) -> Result<Shadow<D>> {
        Ok(Shadow {
            context: context.clone(),
            memory: GuestMemory::new(context)?,
            doorbell,
            spaces: BTreeMap::new(),
            endpoints: BTreeMap::new(),
        })
    }

    /// Takes the device of an endpoint, which the VMM attaches to what it likes.
    pub fn add(&mut self, endpoint: EndpointId, device: D) {
        self.endpoints.insert(endpoint, Endpoint { device: Attached::new(device), reach: Reach::Vmm });
    }

    /// Blocks the device of an endpoint and lets go of it. That it cannot be blocked, since the VMM has taken it away
    /// already, is no error.
    pub fn remove(&mut self, endpoint: EndpointId) -> Option<D> {
        let blocked = self.block(endpoint);
        blocked.unwrap_or_else(|error| log::debug!("{endpoint}, which goes: {error}"));
        let removed = self.endpoints.remove(&endpoint)?;
        self.forget_unused();
        Some(removed.device.into_device())
    }

    /// The endpoints that have a device, and what each reaches.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, Reach)> {
        self.endpoints.iter().map(|(id, endpoint)| (*id, endpoint.reach))
    }

    /// What an endpoint's device reaches, if it has one.
    pub fn reach(&self, endpoint: EndpointId) -> Option<Reach> {
        Some(self.endpoints.get(&endpoint)?.reach)
    }

    /// The device of an endpoint.
    pub fn device(&self, endpoint: EndpointId) -> Option<&D> {
        Some(self.endpoints.get(&endpoint)?.device.device())
    }

    /// Takes all of the guest's memory as it is now.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_MAP_FILE` or `IOMMU_IOAS_MAP`, for the first region that cannot be had; the others are there.
    pub fn set_memory(&mut self, regions: &[MemoryRegion<'_>], lasting: Lasting<'_>) -> Result<()> {
        let ours = self.address_spaces();
        self.memory.set(regions, lasting, &ours)
    }

    /// Whether an address space exists for this domain, which has to be told of its changes.
    pub fn has_domain(&self, domain: DomainId) -> bool {
        self.spaces.contains_key(&domain)
    }

    /// Attaches an endpoint to a domain in place of what it reaches; `mappings` are those of the domain, for when no
    /// device has been in it. An endpoint without a device needs nothing.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC` and `IOMMU_IOAS_COPY`, and of [`Attach::attach`].
    pub fn attach(
        &mut self,
        endpoint: EndpointId,
        to: DomainId,
        mappings: impl IntoIterator<Item = Mapping>,
    ) -> Result<()> {
        if !self.endpoints.contains_key(&endpoint) {
            return Ok(());
        }
        let space = match self.spaces.get(&to) {
            Some(space) => space.clone(),
            None => self.filled(mappings)?,
        };
        self.move_device(endpoint, PageTable::Auto(space.clone()), Reach::Domain(to))?;
        self.spaces.insert(to, space);
        Ok(())
    }

    /// Lets an endpoint reach all of the guest's memory, untranslated.
    ///
    /// # Errors
    /// Of [`Attach::attach`].
    pub fn bypass(&mut self, endpoint: EndpointId) -> Result<()> {
        self.move_device(endpoint, PageTable::Auto(self.memory.space().clone()), Reach::Memory)
    }

    /// Lets an endpoint reach nothing.
    ///
    /// # Errors
    /// Of [`Attach::detach`].
    pub fn block(&mut self, endpoint: EndpointId) -> Result<()> {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.device.detach(None)?;
            endpoint.reach = Reach::Nothing;
        }
        self.forget_unused();
        Ok(())
    }

    /// Adds a mapping to a domain.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_COPY`: ENOENT when the target is no memory.
    pub fn map(&self, domain: DomainId, range: &IovaRange, target: Target) -> Result<()> {
        self.spaces.get(&domain).map_or(Ok(()), |space| self.copy(space, range, target))
    }

    /// Removes what a domain maps within `range`, none of it only in part.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_UNMAP`.
    pub fn unmap(&self, domain: DomainId, range: &IovaRange) -> Result<()> {
        let Some(space) = self.spaces.get(&domain) else { return Ok(()) };
        match space.unmap(range) {
            // Every area of the kernel's lies within one mapping, so none is cut: none is there. Such mappings lead to
            // the doorbell, or allow nothing.
            Err(error) if error.errno() != Errno::NOENT => Err(error),
            _ => Ok(()),
        }
    }

    /// All domains are gone at once. Their endpoints linger: they reach what they did until they are moved.
    pub fn reset(&mut self) {
        self.spaces.clear();
        for endpoint in self.endpoints.values_mut() {
            if let Reach::Domain(_) = endpoint.reach {
                endpoint.reach = Reach::Lingering;
            }
        }
    }

    fn move_device(&mut self, endpoint: EndpointId, to: PageTable, reach: Reach) -> Result<()> {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.device.attach(to, None)?;
            endpoint.reach = reach;
        }
        self.forget_unused();
        Ok(())
    }

    /// A new address space with these mappings.
    fn filled(&self, mappings: impl IntoIterator<Item = Mapping>) -> Result<Arc<Ioas>> {
        let space = Ioas::new(&self.context)?;
        mappings.into_iter().try_for_each(|mapping| self.copy(&space, &mapping.range, mapping.target))?;
        Ok(space)
    }

    fn copy(&self, space: &Ioas, range: &IovaRange, target: Target) -> Result<()> {
        if target.access.is_empty() {
            // The kernel has no mapping that allows nothing, and to have none is the same.
            return Ok(());
        }
        let copied = self.memory.copy(space, range, target, || self.address_spaces());
        // Interrupts reach the VMM by themselves: what a device writes there is not for memory to receive.
        copied.or_else(|error| if self.is_doorbell(range, target, &error) { Ok(()) } else { Err(error) })
    }

    fn is_doorbell(&self, range: &IovaRange, target: Target, error: &Error) -> bool {
        let gpas = target.gpa.0.checked_add(range.span()).and_then(|last| IovaRange::new(target.gpa.0, last));
        let doorbell = self.doorbell.zip(gpas).is_some_and(|(doorbell, gpas)| doorbell.covers(&gpas));
        target.mmio && doorbell && error.errno() == Errno::NOENT
    }

    /// The numbers of all address spaces that are ours.
    fn address_spaces(&self) -> BTreeSet<u32> {
        let attached = self.endpoints.values().filter_map(|endpoint| endpoint.device.table(None));
        let spaces = self.spaces.values().map(|space| space.id());
        attached.map(PageTable::id).chain(spaces).chain([self.memory.space().id()]).collect()
    }

    /// A domain without a device needs no address space.
    fn forget_unused(&mut self) {
        let endpoints = &self.endpoints;
        self.spaces
            .retain(|domain, _| endpoints.values().any(|endpoint| endpoint.reach == Reach::Domain(*domain)));
    }
}

impl<D> Drop for Shadow<D> {
    /// Devices go before what they are attached to.
    fn drop(&mut self) {
        self.endpoints.clear();
    }
}
