// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an endpoint reaches, when the device alone does not say.
//!
//! A guest that shuts down stops its IOMMU before its disks. So the reset of the device leaves each endpoint that
//! was attached with its last address space, apart from the device, until the endpoint is attached again or
//! restarts; until then its IOVAs are never taken for GPAs. And without a VMM nothing is reached at all: an
//! endpoint that was running then stays blocked until it restarts, since nobody knows what its addresses mean.
//!
//! A VMM that stops the device's rings does not say whether the device is reset or the guest is paused. The device
//! stays as it is, until the rings start anew or an endpoint comes to life, which tell a reset.
//!
//! | event                         | Live             | Lingering | Blocked |
//! |-------------------------------|------------------|-----------|---------|
//! | device reset, was attached    | Lingering        | -         | -       |
//! | device reset, was not         | Live             | (1)       | Blocked |
//! | ATTACH begins                 | Live             | Blocked   | Blocked |
//! | ATTACH done                   | Live             | -         | Live    |
//! | endpoint restarts or connects | Live             | Live      | Live    |
//! | VMM gone                      | Blocked          | Blocked   | Blocked |
//! | operator blocks, or unblocks  | Live             | Lingering | Blocked |
//!
//! (1) Lingering, unless others were attached and linger from now on: then Blocked.
//!
//! What whoever runs the machine has blocked is *cut off*: it reaches nothing, while all of this goes on beneath. None of the
//! other events ends that, and where it ends the endpoint reaches what it would have without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use viommu_core::mapping::Mapping;
use viommu_core::{
    Access, Change, ConfigError, Device, DeviceConfig, Domain, EndpointId, Extent, Fault, FaultReason,
    HostError, Iova, Lingering, Reply, Step,
};

use crate::orders::View;

/// Where the translations of a relayed endpoint come from.
#[derive(Clone, Debug)]
enum Serving {
    /// The device.
    Live,
    /// The domain it was attached to before the device was reset.
    Lingering(Arc<Domain>),
    /// Nowhere.
    Blocked,
}

/// The device, and what its endpoints reach in its stead.
#[derive(Debug)]
pub struct State {
    device: Device,
    is_connected: bool,
    is_stopped: bool,
    /// The rings are about to go on, anew or where they were.
    is_starting: bool,
    /// Physical devices have not followed the last reset yet.
    has_untold_reset: bool,
    serving: BTreeMap<EndpointId, Serving>,
    /// Those that reach nothing, however they are served.
    cut_off: BTreeSet<EndpointId>,
    /// Relayed endpoints that nothing is carried for, and why.
    failed: BTreeMap<EndpointId, String>,
    /// Endpoints that were looked at while a change was under way.
    unsettled: BTreeSet<EndpointId>,
}

impl State {
    /// A new device without a VMM.
    pub fn new(config: DeviceConfig) -> Result<State, ConfigError> {
        Ok(State {
            device: Device::new(config)?,
            is_connected: false,
            is_stopped: false,
            is_starting: false,
            has_untold_reset: false,
            serving: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            failed: BTreeMap::new(),
            unsettled: BTreeSet::new(),
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn device_mut(&mut self) -> &mut Device {
        &mut self.device
    }

    /// Whether a VMM has stopped the rings, for whatever reason, and is not about to let them go on.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped && !self.is_starting
    }

    /// Whether there is a VMM.
    pub fn is_connected(&self) -> bool {
        self.is_connected
    }

    /// The first step of a request.
    pub fn begin(&mut self, readable: &[u8], writable: usize) -> Step {
        let step = self.device.begin(readable, writable);
        if let Step::Apply(Change::Attach { endpoint, .. }) = step {
            // From here on nothing of the old address space may be cached anew.
            self.move_endpoint(endpoint, |serving| match serving {
                Serving::Live => Serving::Live,
                Serving::Lingering(_) | Serving::Blocked => Serving::Blocked,
            });
        }
        step
    }

    /// The last step of a change. Comes with the endpoints that were looked at since it was begun.
    pub fn finish(
        &mut self,
        change: &Change,
        applied: Result<(), HostError>,
    ) -> (Reply, BTreeSet<EndpointId>) {
        if let (Change::Attach { endpoint, .. }, Ok(())) = (change, &applied) {
            self.move_endpoint(*endpoint, |_| Serving::Live);
        }
        (self.device.finish(applied), std::mem::take(&mut self.unsettled))
    }

    /// The rings have been stopped, for whatever reason.
    pub fn stop(&mut self) {
        self.is_stopped = true;
        self.is_starting = false;
    }

    /// The rings are about to go on; whether they do so anew shows in the first request.
    pub fn start(&mut self) {
        self.is_starting = true;
    }

    /// The rings go on where they were stopped.
    pub fn resume(&mut self) {
        self.is_stopped = false;
    }

    /// Returns the endpoints that are blocked from now on, and have to forget what they know.
    pub fn reset(&mut self) -> Vec<EndpointId> {
        self.is_stopped = false;
        let lingering = self.device.reset();
        // Two generations would let a guest hold more and more.
        let blocked = if lingering.is_empty() { Vec::new() } else { self.block_lingering() };
        for Lingering { endpoint, domain } in lingering {
            self.move_endpoint(endpoint, |_| Serving::Lingering(domain));
        }
        blocked
    }

    pub fn connected(&mut self) {
        //= virtio#devicenormative:IOMMU/Device configuration layout A6b
        // No VMM tells of a reset of the machine; one that connects has powered it on.
        self.device.reset();
        self.device.restore_boot_bypass();
        self.is_connected = true;
        self.is_stopped = false;
    }

    pub fn disconnected(&mut self) {
        self.device.reset();
        self.is_connected = false;
        self.serving.values_mut().for_each(|serving| *serving = Serving::Blocked);
    }

    /// The endpoint comes to life. If that tells of a reset of the device, returns what [`reset`](State::reset) does.
    pub fn restarted(&mut self, endpoint: EndpointId) -> Option<Vec<EndpointId>> {
        let tells_reset = self.is_stopped.then(|| self.reset());
        self.has_untold_reset |= tells_reset.is_some();
        self.move_endpoint(endpoint, |_| Serving::Live);
        tells_reset
    }

    /// The endpoint is relayed from now on.
    pub fn add_relayed(&mut self, endpoint: EndpointId) {
        self.serving.insert(endpoint, Serving::Live);
    }

    /// The endpoint is relayed no more.
    pub fn remove_relayed(&mut self, endpoint: EndpointId) {
        self.serving.remove(&endpoint);
        self.failed.remove(&endpoint);
    }

    /// The endpoint reaches nothing until it is restored.
    pub fn cut_off(&mut self, endpoint: EndpointId) {
        self.cut_off.insert(endpoint);
    }

    /// The endpoint reaches again what it is served.
    pub fn restore(&mut self, endpoint: EndpointId) {
        self.cut_off.remove(&endpoint);
    }

    /// Whether the endpoint is cut off.
    pub fn is_cut_off(&self, endpoint: EndpointId) -> bool {
        self.cut_off.contains(&endpoint)
    }

    /// The relay of the endpoint carries nothing any more, for this reason, or begins anew.
    pub fn set_failed(&mut self, endpoint: EndpointId, why: Option<String>) {
        match why {
            Some(why) => drop(self.failed.insert(endpoint, why)),
            None => drop(self.failed.remove(&endpoint)),
        }
    }

    /// Why the relay of the endpoint carries nothing, if that is so.
    pub fn failed(&self, endpoint: EndpointId) -> Option<&str> {
        self.failed.get(&endpoint).map(String::as_str)
    }

    /// The domain that a relayed endpoint is in, or lingers in; `None` for one that is blocked until it restarts.
    pub fn domain_served(&self, endpoint: EndpointId) -> Option<Option<&Domain>> {
        match self.serving.get(&endpoint) {
            Some(Serving::Blocked) => None,
            Some(Serving::Lingering(domain)) => Some(Some(domain)),
            Some(Serving::Live) | None => {
                Some(self.device.domain_of(endpoint).and_then(|id| self.device.domain(id)))
            }
        }
    }

    /// Whether an endpoint has told of a reset, of which physical devices are to be told now.
    pub fn take_untold_reset(&mut self) -> bool {
        std::mem::take(&mut self.has_untold_reset)
    }

    pub fn lookup(&self, endpoint: EndpointId, iova: Iova, access: Access) -> Result<Extent, Fault> {
        let refuse = |reason| Fault { endpoint, address: iova, access, reason };
        //= virtio#devicenormative:IOMMU/Device operations A11
        // What lingers is the last address space; an IOVA of it is never taken for a GPA.
        match self.serving.get(&endpoint) {
            _ if !self.is_connected || self.is_cut_off(endpoint) => Err(refuse(FaultReason::Domain)),
            Some(Serving::Lingering(domain)) => {
                domain.lookup(iova, access).ok_or(refuse(FaultReason::Mapping))
            }
            Some(Serving::Blocked) => Err(refuse(FaultReason::Domain)),
            Some(Serving::Live) | None => self.device.lookup(endpoint, iova, access),
        }
    }

    /// All that `lookup` would allow an endpoint.
    pub fn view(&mut self, endpoint: EndpointId) -> View {
        if self.device.change_under_way().is_some() {
            self.unsettled.insert(endpoint);
        }
        match self.serving.get(&endpoint) {
            _ if !self.is_connected || self.is_cut_off(endpoint) => View::Nothing,
            Some(Serving::Blocked) => View::Nothing,
            Some(Serving::Lingering(domain)) => view_of(domain, |_| true),
            Some(Serving::Live) | None => {
                let domain = self.device.domain_of(endpoint).and_then(|id| self.device.domain(id));
                let is_allowed = |iova, access| self.device.lookup(endpoint, Iova(iova), access).is_ok();
                match domain {
                    Some(domain) => {
                        view_of(domain, |mapping| is_allowed(mapping.range.start(), mapping.target.access))
                    }
                    None if is_allowed(0, Access::READ) => View::Identity,
                    None => View::Nothing,
                }
            }
        }
    }

    fn block_lingering(&mut self) -> Vec<EndpointId> {
        let lingering =
            self.serving.iter_mut().filter(|(_, serving)| matches!(serving, Serving::Lingering(_)));
        lingering
            .map(|(endpoint, serving)| {
                *serving = Serving::Blocked;
                *endpoint
            })
            .collect()
    }

    fn move_endpoint(&mut self, endpoint: EndpointId, to: impl FnOnce(Serving) -> Serving) {
        if let Some(serving) = self.serving.get_mut(&endpoint) {
            *serving = to(serving.clone());
        }
    }
}

/// What a domain's endpoints reach of it.
fn view_of(domain: &Domain, is_allowed: impl Fn(&Mapping) -> bool) -> View {
    if domain.is_bypass() {
        return View::Identity;
    }
    View::Mappings(domain.mappings().filter(is_allowed).collect())
}
