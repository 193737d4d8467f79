// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What nobody asks for and still has to be done to physical devices in time.
//!
//! A device that does no DMA any more, its bus mastering being off, is at an end of its activity: its driver has shut
//! it down, or it was reset with its machine. While the device's rings are stopped, or after its reset, such a device
//! gets what unattached endpoints have, so that firmware finds its disks. Nobody tells of that moment, so devices that
//! might reach it are looked at again and again.
//!
//! And a VMM binds and attaches its devices when it likes. One that must not bypass is taken out of the VMM's address
//! space as soon as it is there.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use log::debug;
use viommu_core::EndpointId;
use viommu_nested::Attach;
use viommu_nested::shadow::{Goal, Reach, Shadow};

use crate::sync::lock;
use crate::vfio::Device;

use super::Iommu;

/// How often devices are looked at. Firmware takes much longer from the reset of a device to its first access.
const PERIOD: Duration = Duration::from_millis(5);

/// How long after the VMM has bound a device it may still attach it to an address space of its own; it does one right
/// after the other.
const SETTLING: Duration = Duration::from_millis(500);

/// Whoever looks after the devices.
#[derive(Debug)]
pub struct Tender {
    thread: OnceLock<Thread>,
    /// Devices that the VMM may not have attached yet, and since when they are where they belong.
    unsettled: Mutex<BTreeMap<EndpointId, Option<Instant>>>,
}

impl Tender {
    /// Of the devices of these endpoints, none of which the VMM has bound yet.
    pub fn of(endpoints: impl Iterator<Item = EndpointId>) -> Tender {
        let unsettled = endpoints.map(|endpoint| (endpoint, None)).collect();
        Tender { thread: OnceLock::new(), unsettled: Mutex::new(unsettled) }
    }

    /// The VMM is going to bind and attach a device for this endpoint.
    pub fn expect(&self, endpoint: EndpointId) {
        lock(&self.unsettled).insert(endpoint, None);
        self.wake();
    }

    /// There may be something to do.
    pub fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Iommu {
    /// Looks after the physical devices for the life of the process; to be called by one thread.
    pub fn tend_devices(&self) {
        let _ = self.tender.thread.set(thread::current());
        loop {
            match self.tend() {
                true => thread::park_timeout(PERIOD),
                false => thread::park(),
            }
        }
    }

    /// Does what is to be done now; whether there is more to come.
    fn tend(&self) -> bool {
        let _turn = self.turn();
        if !self.state().is_connected() {
            return false;
        }
        let reaches: Vec<_> =
            self.vfio.iter().flat_map(|vfio| vfio.shadow().endpoints().collect::<Vec<_>>()).collect();
        let mut is_more = false;
        for (endpoint, reach) in reaches {
            is_more |= self.settle(endpoint, reach);
            let Some(goal) = self.goal_when_quiet(endpoint, reach) else { continue };
            is_more = true;
            let is_quiet = self.vfio.as_ref().is_some_and(|vfio| vfio.is_quiet(endpoint));
            if is_quiet && self.move_device(endpoint, goal).is_ok() {
                debug!(
                    "endpoint {}: its device is quiet, so it is where unattached ones are",
                    self.label(endpoint)
                );
            }
        }
        is_more
    }

    /// Where a device goes once it is quiet, unless it is there.
    fn goal_when_quiet(&self, endpoint: EndpointId, reach: Reach) -> Option<Goal> {
        let state = self.state();
        let is_waiting = match reach {
            Reach::Lingering => true,
            Reach::Domain(_) => state.is_stopped(),
            Reach::Nothing => state.device().bypass() && state.device().domain_of(endpoint).is_none(),
            Reach::Memory | Reach::Vmm => false,
        };
        is_waiting.then(|| Goal::of_unattached(state.device().bypass()))
    }

    /// Has a device that is new to the VMM where it belongs, again and again until the VMM is done with it. Whether it
    /// may not be done yet.
    fn settle(&self, endpoint: EndpointId, reach: Reach) -> bool {
        let mut unsettled = lock(&self.tender.unsettled);
        let Some(since) = unsettled.get_mut(&endpoint) else { return false };
        let is_cut_off = self.vfio.as_ref().is_some_and(|vfio| vfio.shadow().is_cut_off(endpoint));
        // A guest moves devices that it has seen, which the VMM is done with by then.
        let is_moved = match reach {
            _ if is_cut_off => false,
            Reach::Vmm => false,
            Reach::Nothing | Reach::Domain(_) => since.is_none(),
            Reach::Memory | Reach::Lingering => true,
        };
        if is_moved || since.is_some_and(|since| since.elapsed() > SETTLING) {
            unsettled.remove(&endpoint);
            return false;
        }
        let (goal, Some(vfio)) = (self.goal_of_new(endpoint), &self.vfio) else { return false };
        if goal.is_none() && !is_cut_off && !self.has_pasids(endpoint) {
            // It may be where the VMM has it, until `bypass` changes.
            return false;
        }
        let mut shadow = vfio.shadow();
        let is_bound = shadow.device(endpoint).is_some_and(Device::is_bound);
        if is_bound {
            since.get_or_insert_with(Instant::now);
            self.place_new(&mut shadow, endpoint, goal);
        }
        true
    }

    /// The guest was told that its request is done before there was a device. So one that the host keeps out of where it
    /// belongs reaches nothing; it is tried again for a while.
    fn place_new(&self, shadow: &mut Shadow<Device>, endpoint: EndpointId, goal: Option<Goal>) {
        let moved = goal.map_or(Ok(()), |goal| shadow.move_to(endpoint, goal, self));
        if moved.is_err() {
            self.block(shadow, endpoint);
        }
        let attached = moved.and_then(|()| shadow.attach_pasids(endpoint, self));
        let kept = shadow.follow_cuts(endpoint);
        if let Err(error) = attached.and(kept) {
            self.host_errors.log(|| format!("endpoint {}: {error}", self.label(endpoint)));
        }
    }

    fn has_pasids(&self, endpoint: EndpointId) -> bool {
        self.state().device().pasids(endpoint).next().is_some()
    }

    /// Where a new device belongs, if not where the VMM puts it.
    fn goal_of_new(&self, endpoint: EndpointId) -> Option<Goal> {
        let state = self.state();
        let device = state.device();
        match device.domain_of(endpoint) {
            None => (!device.bypass()).then_some(Goal::Nothing),
            Some(id) if device.domain(id).is_some_and(|domain| !domain.is_bypass()) => Some(Goal::Domain(id)),
            Some(_) => None,
        }
    }
}
