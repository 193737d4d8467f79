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
//! | table                    | a nested page table over the memory's address space                         |
//!
//! Whoever runs the machine can have an endpoint cut off besides: its device is attached to nothing, whatever the guest says.
//!
//! The devices are bound to the context by another process, the VMM, which attaches them to an address space of its
//! own at first. The devices of a group of the host move together: if one of them is in a domain, all reach that.
//! Everything here is one step of the kernel's, or undoes what it did: after an error all is as it was.
//! Decides nothing: which domain an endpoint is in is the caller's matter.

mod apply;
mod base;
mod cut;
mod group;
mod invalidate;
mod mappings;
mod memory;
mod notices;
mod space;
mod tables;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::epoll;
use viommu_core::{DomainId, EndpointId, IovaRange, Pasid};

use crate::device::{Attach, Attached, DeviceId, HwInfo};
use crate::error::{Error, Result};
use crate::object::{Context, FaultQueue, PageTable};

use base::{Base, Seat};
use invalidate::Room;
use space::Space;
use tables::Placed;

pub use apply::{Goal, Known};
pub use base::nesting_of;
pub use invalidate::{OfDomain, Outcomes};
pub use memory::{GuestMemory, Lasting, MemoryRegion};
pub use notices::Notice;

/// The address spaces of one guest in one context, and the devices that use them.
#[derive(Debug)]
pub struct Shadow<D> {
    context: Arc<Context>,
    memory: GuestMemory,
    /// Where the guest's devices write interrupts.
    doorbell: Option<IovaRange>,
    /// Of the domains that a device is in.
    spaces: BTreeMap<DomainId, Space>,
    endpoints: BTreeMap<EndpointId, Endpoint<D>>,
    /// Those that reach nothing whatever the guest says, with or without a device.
    cut_off: BTreeSet<EndpointId>,
    /// Where requests for pages arrive, once somebody may make some.
    faults: Option<Arc<FaultQueue>>,
    /// An epoll instance: readable when a queue is.
    sources: OwnedFd,
    /// The kernel's numbers of requests for pages that wait for an answer.
    waiting: BTreeMap<u64, u32>,
    next_cookie: u64,
    room: Room,
}

#[derive(Debug)]
struct Endpoint<D> {
    // First: a field is dropped before those that follow it.
    device: Attached<D>,
    /// The tables of the guest that it and its PASIDs use.
    tables: BTreeMap<Option<Pasid>, Placed>,
    /// Where its tables lie, since it has had one.
    seat: Option<Seat>,
    /// The device's number in the context and its hardware, since they are known.
    identity: Option<(DeviceId, HwInfo)>,
    /// Whether its requests for pages are told.
    has_requests: bool,
    group: Option<u32>,
    reach: Reach,
    /// Whether it is in a domain by itself, and not only because its group is.
    is_member: bool,
}

impl<D> Endpoint<D> {
    fn is_over(&self, base: &Arc<Base>) -> bool {
        self.seat.as_ref().is_some_and(|seat| Arc::ptr_eq(&seat.base, base))
    }
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
    /// What the domain maps, or the guest's table that it uses in the domain.
    Domain(DomainId),
    /// What it did in a domain that does not exist any more, or one of its PASIDs did.
    Lingering,
}

impl<D: Attach> Shadow<D> {
    /// No memory and no device yet. What lies in `doorbell`, GPAs, receives interrupts and is no memory.
    ///
    /// # Errors
    /// Of `IOMMU_IOAS_ALLOC` and `epoll_create`.
    pub fn new(context: &Arc<Context>, doorbell: Option<IovaRange>) -> Result<Shadow<D>> {
        let sources = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::of_call("epoll_create", errno, format_args!("for events of devices")))?;
        Ok(Shadow {
            context: context.clone(),
            memory: GuestMemory::new(context)?,
            doorbell,
            spaces: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            faults: None,
            sources,
            waiting: BTreeMap::new(),
            next_cookie: 0,
            room: Room::default(),
        })
    }

    /// Takes the device of an endpoint, which the VMM attaches to what it likes. Devices of one IOMMU group cannot be told
    /// from each other.
    pub fn add(&mut self, endpoint: EndpointId, device: D, group: Option<u32>) {
        let new = Endpoint {
            device: Attached::new(device),
            tables: BTreeMap::new(),
            seat: None,
            identity: None,
            has_requests: false,
            group,
            reach: Reach::Vmm,
            is_member: false,
        };
        self.endpoints.insert(endpoint, new);
        self.follow_cuts_or_tell(endpoint);
    }

    /// Lets go of the device of an endpoint, which reaches nothing any more once all of its group are gone. That it
    /// cannot be detached is no error: it may have no context any more.
    pub fn remove(&mut self, endpoint: EndpointId) -> Option<D> {
        let mut others = self.group_of(endpoint);
        let mut removed = self.endpoints.remove(&endpoint)?;
        others.retain(|other| *other != endpoint);
        let pasids: Vec<Option<u32>> = removed.device.pasids().map(Some).collect();
        for pasid in pasids.into_iter().chain([None]) {
            if let Err(error) = removed.device.detach(pasid)
                && removed.device.device().is_bound()
            {
                log::error!("{endpoint}: its device is let go of, and may reach what it did: {error}");
            }
        }
        others.into_iter().for_each(|other| self.block_follower(other));
        self.forget_unused();
        Some(removed.device.into_device())
    }

    /// The context that all of it is in.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The endpoints that have a device, and what each reaches.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, Reach)> {
        self.endpoints.iter().map(|(id, endpoint)| (*id, endpoint.reach))
    }

    /// Whether the endpoint is in this domain by itself, and has not merely followed another of its group.
    pub fn is_in(&self, endpoint: EndpointId, domain: DomainId) -> bool {
        let found = self.endpoints.get(&endpoint);
        found.is_some_and(|endpoint| endpoint.is_member && endpoint.reach == Reach::Domain(domain))
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

    /// Attaches an endpoint to a bypass domain: it reaches all of the guest's memory, untranslated. One that is not bound
    /// yet is going to, by the VMM.
    ///
    /// # Errors
    /// Of [`Attach::attach`].
    pub fn attach_bypass(&mut self, endpoint: EndpointId) -> Result<()> {
        self.detach_stale(endpoint)?;
        if self.device(endpoint).is_some_and(Attach::is_bound) {
            self.move_to_memory(endpoint)?;
        }
        self.set_member(endpoint, true);
        Ok(())
    }

    /// Lets an endpoint that is in no domain reach all of the guest's memory, untranslated, unless another of its group
    /// is in a domain. One that is not bound yet is going to, by the VMM.
    ///
    /// # Errors
    /// Of [`Attach::attach`].
    pub fn bypass(&mut self, endpoint: EndpointId) -> Result<()> {
        self.detach_stale(endpoint)?;
        if !self.is_kept_by_group(endpoint) && self.device(endpoint).is_some_and(Attach::is_bound) {
            self.move_to_memory(endpoint)?;
        }
        self.set_member(endpoint, false);
        Ok(())
    }

    /// Lets an endpoint reach nothing, unless another of its group is in a domain. One that is not bound yet does not.
    ///
    /// # Errors
    /// Of [`Attach::detach`].
    pub fn block(&mut self, endpoint: EndpointId) -> Result<()> {
        self.detach_stale(endpoint)?;
        if !self.is_kept_by_group(endpoint) {
            self.block_group(endpoint)?;
        }
        self.set_member(endpoint, false);
        Ok(())
    }

    /// All domains are gone at once. Their endpoints linger: they reach what they did until they are moved.
    pub fn reset(&mut self) {
        self.spaces.clear();
        for endpoint in self.endpoints.values_mut() {
            let was_member = std::mem::take(&mut endpoint.is_member);
            endpoint.tables.clear();
            let has_pasids = endpoint.device.pasids().next().is_some();
            if was_member || has_pasids || matches!(endpoint.reach, Reach::Domain(_)) {
                endpoint.reach = Reach::Lingering;
            }
        }
    }

    fn move_to_memory(&mut self, endpoint: EndpointId) -> Result<()> {
        let ours = self.address_spaces();
        self.memory.complete(&ours);
        self.move_group(endpoint, self.memory_table(endpoint), Reach::Memory)
    }

    fn set_member(&mut self, endpoint: EndpointId, is_member: bool) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.is_member = is_member;
        }
        self.forget_unused();
    }

    /// The numbers of all address spaces that are ours.
    fn address_spaces(&self) -> BTreeSet<u32> {
        let attached = self.endpoints.values().filter_map(|endpoint| endpoint.device.table(None));
        let spaces = self.spaces.values().map(|space| space.ioas().id());
        attached.map(PageTable::id).chain(spaces).chain([self.memory.space().id()]).collect()
    }
}

impl<D> Drop for Shadow<D> {
    /// Devices go before what they are attached to.
    fn drop(&mut self) {
        self.endpoints.clear();
    }
}
