// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as the threads of this process share it: one session with the VMM, and a relay for each endpoint
//! that another process serves.
//!
//! Requests and other changes are made one at a time, by whoever holds the *turn*; INVALIDATEs that lie right behind each
//! other in the ring are one change. The state itself is locked
//! only for moments, never while somebody waits: a relay can translate while a change waits for its back-end.
//! Lock order: turn, then the guest's memory, the address spaces of physical devices, state, the relays' map.
//!
//! No rule of virtio-iommu is here: those are `viommu_core`'s.

mod account;
mod apply;
mod control;
mod cut_off;
mod devices;
mod relays;
mod requests;
mod reserved;
mod serving;
mod state;
mod tables;
mod tend;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use log::{Level, info};
use viommu_core::{
    Access, CONFIG_SIZE, Change, ConfigError, DeviceConfig, EndpointId, Event, Extent, Fault, Iova,
    IovaRange, Reply,
};

use crate::Config;
use crate::orders::View;
use crate::sync::{Wake, lock};
use crate::throttle::Throttle;
use crate::vfio::Vfio;

use account::Account;
use relays::Relays;
use serving::State;
use tables::Watch;
use tend::Tender;

pub use requests::Incoming;

/// The device and everything its endpoints need of it.
#[derive(Debug)]
pub struct Iommu {
    turn: Mutex<()>,
    state: Mutex<State>,
    account: Account,
    relays: Relays,
    labels: BTreeMap<EndpointId, String>,
    /// The physical devices, where there are any.
    vfio: Option<Vfio>,
    tender: Tender,
    watch: Watch,
    aperture: IovaRange,
    msi_region: Option<IovaRange>,
    /// The guest's, as ranges of GPAs in ascending order; none while it is not known.
    memory: Mutex<Vec<IovaRange>>,
    /// Parts of the aperture that are reserved, as long as nobody has been told.
    untold_holes: Mutex<Vec<IovaRange>>,
    unmap_timeout: Duration,
    /// Readable when there may be an event for the driver.
    event_waits: Arc<Wake>,
    /// What a guest can repeat: attachments, `bypass`, resets.
    changes: Throttle,
    refusals: Throttle,
    faults: Throttle,
    host_errors: Throttle,
}

impl Iommu {
    /// The device of `config`, with no VMM connected: until then no endpoint reaches anything.
    ///
    /// # Errors
    /// A configuration that the device cannot be made with.
    pub fn new(config: &Config, vfio: Option<Vfio>, event_waits: Arc<Wake>) -> Result<Iommu, ConfigError> {
        let device = DeviceConfig {
            mode: config.mode,
            page_size_mask: config.page_size_mask,
            aperture: config.aperture,
            domain_ids: 0..=u32::MAX,
            boot_bypass: config.boot_bypass,
            limits: config.limits,
            endpoints: config.endpoints.iter().map(|endpoint| endpoint.id).collect(),
        };
        let iommu = Iommu {
            turn: Mutex::default(),
            state: Mutex::new(State::new(device)?),
            account: Account::default(),
            labels: config.endpoints.iter().map(|endpoint| (endpoint.id, endpoint.label.clone())).collect(),
            relays: Relays::default(),
            tender: Tender::of(vfio.iter().flat_map(Vfio::groups).map(|(endpoint, _)| endpoint)),
            watch: Watch::new(),
            vfio,
            aperture: config.aperture,
            msi_region: config.msi_region,
            memory: Mutex::default(),
            untold_holes: Mutex::default(),
            unmap_timeout: config.unmap_timeout,
            event_waits,
            changes: Throttle::new(Level::Info),
            refusals: Throttle::new(Level::Warn),
            faults: Throttle::new(Level::Warn),
            host_errors: Throttle::new(Level::Warn),
        };
        iommu.reserve();
        iommu.tell_groups();
        iommu.tell_tables();
        Ok(iommu)
    }

    /// The configuration space.
    pub fn config_space(&self) -> [u8; CONFIG_SIZE] {
        self.state().device().config_space()
    }

    /// A driver's write to the configuration space.
    pub fn write_config(&self, offset: usize, data: &[u8]) {
        let _turn = self.turn();
        let change = self.state().device_mut().begin_config_write(offset, data);
        let reply = change.map(|change| self.carry_out(&change));
        // A device that the VMM attaches only now may have to be taken away from it.
        self.tender.wake();
        if let Some(reject) = reply.and_then(|reply| reply.rejected) {
            self.refusals.log(|| format!("write to bypass refused: {reject}"));
        }
    }

    /// The features that the driver can choose from, as bits of the device's own.
    pub fn offered(&self) -> u64 {
        self.state().device().mode().offered_bits()
    }

    /// Takes the features that the driver accepted.
    pub fn negotiate(&self, features: u64) {
        self.state().device_mut().negotiate(features);
        self.pass_answers_on();
    }

    /// What a reset of the device by its driver does: endpoints keep their last address space until they are
    /// attached again or restart themselves, see `serving`.
    pub fn reset(&self) {
        let _turn = self.turn();
        let blocked = self.state().reset();
        self.forget(&blocked);
        self.reset_devices();
        self.pass_answers_on();
    }

    /// A VMM has connected: this is the power-on of its machine.
    pub fn connected(&self) {
        let _turn = self.turn();
        self.state().connected();
        self.relays.all().iter().for_each(|relay| relay.refresh());
        self.pass_answers_on();
        self.tender.wake();
    }

    /// The VMM is gone: no endpoint reaches anything.
    pub fn disconnected(&self) {
        let _turn = self.turn();
        self.state().disconnected();
        self.relays.all().iter().for_each(|relay| relay.forget_all());
        self.pass_answers_on();
        self.release_devices();
        info!("VMM disconnected, endpoints are blocked; {}", self.account);
        if let Some(vfio) = &self.vfio {
            vfio.released().wake();
        }
    }

    /// The endpoint comes to life: what it was attached to before a reset of the device is of no meaning to it any
    /// more. Never waits for the turn, which may be somebody's who waits for the endpoint.
    pub fn restarted(&self, endpoint: EndpointId) {
        let reset = self.state().restarted(endpoint);
        if let Some(blocked) = reset {
            self.forget(&blocked);
            self.tender.wake();
        }
    }

    /// The relay of the endpoint carries messages between a VMM and the back-end.
    pub fn relay_begins(&self, endpoint: EndpointId) {
        self.state().set_failed(endpoint, None);
    }

    /// The relay of the endpoint carries nothing more until a VMM connects anew.
    pub fn relay_failed(&self, endpoint: EndpointId, why: String) {
        self.state().set_failed(endpoint, Some(why));
    }

    /// The VMM has stopped the rings.
    pub fn stop(&self) {
        self.state().stop();
        self.tender.wake();
    }

    /// The rings are about to go on. If the guest was merely paused, its devices may be at work before the first request
    /// comes: those that have not been since are in their domains again when this returns.
    pub fn about_to_go_on(&self) {
        let _turn = self.turn();
        self.state().start();
        self.return_devices(|endpoint| self.vfio.as_ref().is_some_and(|vfio| vfio.is_quiet(endpoint)));
    }

    /// The rings go on where they were stopped.
    pub fn resume(&self) {
        let _turn = self.turn();
        self.state().resume();
        self.return_devices(|_| true);
    }

    /// Takes the guest's memory, as ranges of GPAs in ascending order. What it leaves out of the aperture is
    /// reserved for endpoints whose ring addresses the VMM takes for GPAs.
    pub fn set_guest_memory(&self, memory: &[IovaRange]) {
        if !memory.is_empty() {
            *lock(&self.memory) = memory.to_vec();
            self.reserve();
        }
    }

    /// The extent around `iova` in which `endpoint` may do `access`. A refusal is logged and becomes an event for
    /// the driver.
    ///
    /// # Errors
    /// The fault that was reported.
    pub fn translate(&self, endpoint: EndpointId, iova: Iova, access: Access) -> Result<Extent, Fault> {
        let translated = self.state().lookup(endpoint, iova, access);
        translated.inspect_err(|fault| self.report(*fault))
    }

    /// What `endpoint` reaches. If that is about to change, its relay is told to look again when it has.
    pub fn view(&self, endpoint: EndpointId) -> View {
        self.state().view(endpoint)
    }

    /// Reports an access that was refused.
    pub fn report(&self, fault: Fault) {
        self.account.count_fault();
        self.faults.log(|| {
            let is_cut_off = self.state().is_cut_off(fault.endpoint);
            let why = if is_cut_off { " (blocked by the operator)" } else { "" };
            format!("fault: {}{why}: {fault}", self.label(fault.endpoint))
        });
        self.state().device_mut().report(fault);
        self.event_waits.wake();
    }

    /// The next event for the driver; it stays the next until [`event_sent`](Iommu::event_sent).
    pub fn next_event(&self) -> Option<Event> {
        self.state().device().next_event()
    }

    /// The driver has the event that [`next_event`](Iommu::next_event) gave.
    pub fn event_sent(&self, sent: &Event) {
        self.state().device_mut().event_sent(sent);
    }

    /// The driver's buffer has no room for the event that [`next_event`](Iommu::next_event) gave.
    pub fn event_unfit(&self, event: &Event) {
        self.state().device_mut().event_unfit(event);
        self.pass_answers_on();
    }

    /// What has been served, for the log.
    pub fn account(&self) -> &Account {
        &self.account
    }

    /// The second and third step of a change that was begun in this turn.
    fn carry_out(&self, change: &Change) -> Reply {
        let applied = self.apply(change);
        if applied.is_ok() {
            self.tell(change);
        }
        let concerned = if applied.is_err() { self.concerned(change) } else { Vec::new() };
        let (reply, mut unsettled) = self.state().finish(change, applied);
        unsettled.extend(concerned);
        self.put_right(unsettled);
        // What was asked for under a table that is gone.
        self.pass_answers_on();
        if !matches!(
            change,
            Change::Map { .. } | Change::Unmap { .. } | Change::Invalidate { .. } | Change::Respond { .. }
        ) {
            // A device that the VMM has yet to bind is to be moved then.
            self.tender.wake();
        }
        reply
    }

    fn tell(&self, change: &Change) {
        match *change {
            Change::Attach { endpoint, to, bypass, .. } => {
                let kind = if bypass { "bypass" } else { "translated" };
                self.changes.log(|| format!("endpoint {} attached to {to} ({kind})", self.label(endpoint)));
            }
            Change::Detach { endpoint, from } => {
                self.changes.log(|| format!("endpoint {} detached from {from}", self.label(endpoint)));
            }
            Change::SetBypass { enabled } => {
                let state = if enabled { "bypass" } else { "are blocked" };
                self.changes.log(|| format!("unattached endpoints {state}"));
            }
            Change::AttachTable { endpoint, pasid, to, .. } => self.changes.log(|| {
                let of = pasid.map_or(String::new(), |pasid| format!(" ({pasid})"));
                format!("endpoint {}{of} attached to {to} (table)", self.label(endpoint))
            }),
            Change::DetachPasid { endpoint, pasid, from } => {
                self.changes
                    .log(|| format!("endpoint {} ({pasid}) detached from {from}", self.label(endpoint)));
            }
            Change::Map { .. }
            | Change::Unmap { .. }
            | Change::Invalidate { .. }
            | Change::Respond { .. } => {}
        }
    }

    /// Waits until it is this thread's turn.
    fn turn(&self) -> MutexGuard<'_, ()> {
        let turn = lock(&self.turn);
        let is_reset = self.state().take_untold_reset();
        if is_reset {
            self.reset_devices();
        }
        turn
    }

    /// The device has been reset, which has `blocked` these endpoints.
    fn forget(&self, blocked: &[EndpointId]) {
        let relays = blocked.iter().filter_map(|endpoint| self.relays.get(*endpoint));
        relays.for_each(|relay| relay.forget_all());
        self.changes.log(|| format!("device reset; {}", self.account));
    }

    fn label(&self, endpoint: EndpointId) -> &str {
        self.labels.get(&endpoint).map_or("?", String::as_str)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

#[cfg(test)]
mod tests;
