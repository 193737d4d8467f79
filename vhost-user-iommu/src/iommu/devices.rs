// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a change, a reset and the end of a VMM mean to physical devices.
//!
//! All of this is done by whoever holds the turn, so nobody else moves a device meanwhile.

use std::os::fd::AsFd;

use log::{error, info};
use viommu_core::{Domain, DomainId, EndpointId, HostError, IovaRange, Mapping, Pasid, Table};
use viommu_nested::Result;
use viommu_nested::shadow::{Goal, Known, MemoryRegion, Reach, Shadow};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::vfio::{Device, Vfio, host_error, mend};

use super::Iommu;

impl Known for Iommu {
    fn mappings(&self, domain: DomainId) -> Vec<Mapping> {
        self.state().device().mappings(domain)
    }

    fn tables(&self, endpoint: EndpointId) -> Vec<(Option<Pasid>, DomainId, Table)> {
        self.state().device().tables(endpoint)
    }

    fn unattached(&self) -> Vec<EndpointId> {
        self.state().device().unattached()
    }

    fn bypass(&self) -> bool {
        self.state().device().bypass()
    }
}

impl Iommu {
    /// Takes the guest's memory for the physical devices.
    pub fn share_memory(&self, memory: &GuestMemoryMmap) {
        let Some(vfio) = &self.vfio else { return };
        let regions: Vec<MemoryRegion<'_>> = memory
            .iter()
            .filter_map(|region| {
                let range = IovaRange::from_length(region.start_addr().0, region.len())?;
                let file = region.file_offset().map(|place| (place.file().as_fd(), place.start()));
                Some(MemoryRegion { range, file })
            })
            .collect();
        // A guest can make its VMM change the memory again and again.
        if let Some(trouble) = vfio.set_memory(&regions, &|range| vfio.lasting().of(memory, range)) {
            self.host_errors.log(|| trouble);
        }
    }

    /// Says which endpoints the host cannot tell apart.
    pub(super) fn tell_groups(&self) {
        for (endpoint, group) in self.vfio.iter().flat_map(Vfio::groups) {
            self.state().device_mut().set_group(endpoint, group);
        }
    }

    /// Does something to the address spaces, if there are any.
    pub(super) fn on_host(&self, act: impl FnOnce(&mut Shadow<Device>) -> Result<()>) -> Done {
        let Some(vfio) = &self.vfio else { return Ok(()) };
        let done = act(&mut vfio.shadow());
        self.of_host(done)
    }

    /// What the device makes of the host's outcome. A refusal is told.
    pub(super) fn of_host(&self, done: Result<()>) -> Done {
        done.map_err(|error| {
            self.host_errors.log(|| format!("the host refuses: {error}{}", mend(&error)));
            host_error(&error)
        })
    }

    /// Moves the device of an endpoint, if it has one.
    pub(super) fn move_device(&self, endpoint: EndpointId, to: Goal) -> Done {
        self.on_host(|shadow| shadow.move_to(endpoint, to, self))
    }

    /// The device has been reset: endpoints linger. What lingers already is blocked if others linger from now on.
    pub(super) fn reset_devices(&self) {
        let Some(vfio) = &self.vfio else { return };
        let mut shadow = vfio.shadow();
        let of_old: Vec<EndpointId> = with_reach(&shadow, |reach| reach == Reach::Lingering);
        if !with_reach(&shadow, |reach| matches!(reach, Reach::Domain(_))).is_empty() {
            of_old.into_iter().for_each(|endpoint| self.block(&mut shadow, endpoint));
        }
        shadow.reset();
        drop(shadow);
        self.tender.wake();
    }

    /// Devices that were moved for want of activity go back into the domains that their endpoints are in.
    pub(super) fn return_devices(&self, is_wanted: impl Fn(EndpointId) -> bool) {
        let attached: Vec<(EndpointId, DomainId)> = {
            let state = self.state();
            let device = state.device();
            let is_bypass = |domain| device.domain(domain).is_some_and(Domain::is_bypass);
            let domains = device.endpoints().filter_map(|id| Some((id, device.domain_of(id)?)));
            domains.filter(|(_, domain)| !is_bypass(*domain)).collect()
        };
        for (endpoint, domain) in attached {
            let is_there = self.vfio.as_ref().is_none_or(|vfio| vfio.shadow().is_in(endpoint, domain));
            let back = |shadow: &mut Shadow<Device>| {
                shadow.move_to(endpoint, Goal::Domain(domain), self)?;
                shadow.attach_pasids(endpoint, self)
            };
            if !is_there
                && is_wanted(endpoint)
                && let Err(error) = self.on_host(back)
            {
                error!("endpoint {}: it stays out of its domain: {error}", self.label(endpoint));
                self.on_host(|shadow| shadow.block(endpoint)).unwrap_or_default();
            }
        }
    }

    /// The VMM or this process is at its end: the devices reach nothing, and are let go of. Nobody else can be given the
    /// same descriptors.
    pub fn release_devices(&self) {
        let Some(vfio) = &self.vfio else { return };
        let mut shadow = vfio.shadow();
        for endpoint in with_reach(&shadow, |_| true) {
            drop(shadow.remove(endpoint));
            info!("endpoint {}: its device is released", self.label(endpoint));
        }
    }

    pub(super) fn block(&self, shadow: &mut Shadow<Device>, endpoint: EndpointId) {
        if let Err(error) = shadow.block(endpoint) {
            error!("endpoint {}: it cannot be blocked: {error}", self.label(endpoint));
        }
    }
}

/// How something on the host ended.
pub type Done = std::result::Result<(), HostError>;

fn with_reach(shadow: &Shadow<Device>, is_wanted: impl Fn(Reach) -> bool) -> Vec<EndpointId> {
    shadow.endpoints().filter(|(_, reach)| is_wanted(*reach)).map(|(endpoint, _)| endpoint).collect()
}
