// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device: its state, and a request's way through it.
//!
//! A request takes three steps. **Check** decides and changes nothing. **Apply** is the outside's: it gets
//! a [`Change`] and does all of it or none. **Commit** follows and cannot fail. [`Device::begin`] and
//! [`Device::finish`] are the steps apart, so that a caller who serves accesses of several endpoints can let
//! go of the device while the outside works; [`Device::handle`] is all three. [`Device::begin_another`] lets it work for
//! several requests at once, where that makes no difference to any of them.
//!
//! No fd, thread, lock or clock, and nothing of descriptors: bytes come in, bytes go out.

mod attach;
mod config_space;
mod events;
mod invariants;
mod map;
mod page_requests;
mod probe;
mod reply;
mod tables;
mod together;
mod translate;

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::domain::Domain;
use crate::event::PendingEvents;
use crate::page_request::PageRequests;
use crate::request::{self, Request};
use crate::reserved::ReservedRegions;
use crate::wire::RequestType;
use crate::{
    Change, ConfigError, DeviceConfig, DomainId, EndpointId, Features, Granule, Host, HostError, IovaRange,
    Mode, Pasid, Reject, ReservedError, ReservedRegion, Table, TableSupport,
};

pub use config_space::CONFIG_SIZE;
pub use invariants::Broken;
pub use reply::Reply;
pub use translate::{Segment, Translation};

use reply::Form;

/// An endpoint behind the device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Endpoint {
    domain: Option<DomainId>,
    reserved: ReservedRegions,
    group: Option<u32>,
    /// What it can do with tables, if it can.
    tables: Option<TableSupport>,
    /// The table of its domain, if that is one of tables.
    table: Option<Table>,
    /// Those of its PASIDs that have a table of their own; only while the endpoint itself is in a domain.
    pasids: BTreeMap<Pasid, PasidAttachment>,
}

/// What a PASID of an endpoint uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PasidAttachment {
    domain: DomainId,
    table: Table,
}

/// A change that the outside is at work on, and how its request is answered.
#[derive(Clone, Copy, Debug)]
struct UnderWay {
    change: Change,
    form: Form,
}

/// One virtio-iommu device.
#[derive(Clone, Debug)]
pub struct Device {
    config: DeviceConfig,
    granule: Granule,
    negotiated: Features,
    /// `bypass` in the configuration space.
    bypass: bool,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    domains: BTreeMap<DomainId, Domain>,
    /// Mappings of all domains together.
    mapping_count: usize,
    /// The most bytes that they take.
    mapping_bytes: usize,
    /// In the order in which they were begun; several only of invalidations.
    under_way: VecDeque<UnderWay>,
    events: PendingEvents,
    faults_dropped: u64,
    page_requests: PageRequests,
    /// Whether the driver has sent a request since the last reset, and so can take events.
    driver_is_up: bool,
}

/// What the check of a request came to.
enum Verdict {
    /// Accepted, if the outside can do it.
    Change(Change),
    /// Accepted, and nothing is to be done.
    Nothing,
    /// The properties that were asked for.
    Properties(Vec<u8>),
}

/// What [`Device::begin`] came to.
#[derive(Debug)]
#[must_use]
pub enum Step {
    /// The request is answered.
    Done(Reply),
    /// The outside applies this change; then [`Device::finish`] gives the answer.
    Apply(Change),
}

/// What an endpoint was attached to when the device was reset: its own last address space.
#[derive(Clone, Debug)]
pub struct Lingering {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Its domain, as it was.
    pub domain: Arc<Domain>,
}

impl Device {
    /// A device as it is at power-on.
    ///
    /// # Errors
    /// A configuration that cannot be served.
    pub fn new(config: DeviceConfig) -> Result<Device, ConfigError> {
        let granule = config.check()?;
        let mut endpoints = BTreeMap::new();
        for id in &config.endpoints {
            if endpoints.insert(*id, Endpoint::default()).is_some() {
                return Err(ConfigError::EndpointTwice(*id));
            }
        }
        Ok(Device {
            granule,
            negotiated: Features::empty(),
            //= virtio#devicenormative:IOMMU/Device configuration layout A5
            // Firmware may need its disks before there is a driver.
            bypass: config.boot_bypass,
            endpoints,
            domains: BTreeMap::new(),
            mapping_count: 0,
            mapping_bytes: 0,
            under_way: VecDeque::new(),
            events: PendingEvents::default(),
            faults_dropped: 0,
            page_requests: PageRequests::default(),
            driver_is_up: false,
            config,
        })
    }

    /// Takes the features that the driver accepted; bits of other meaning are ignored.
    pub fn negotiate(&mut self, features: u64) {
        self.negotiated = self.config.mode.accepted(features);
        if !self.negotiated.contains(Features::ATTACH_TABLE) {
            self.end_requests(|_| true);
            self.events.forget_tables();
        }
    }

    /// The features that the driver accepted.
    pub(crate) fn negotiated_bits(&self) -> u64 {
        self.negotiated.bits()
    }

    /// Mappings that there can be.
    pub(crate) fn mappings_max(&self) -> usize {
        self.config.limits.mappings_max
    }

    /// Says which IOVAs `endpoint` cannot have mapped. Mappings that exist stay.
    ///
    /// # Errors
    /// A list that the specification forbids; the old one then stays. An unknown endpoint is ignored.
    pub fn set_reserved(
        &mut self,
        endpoint: EndpointId,
        regions: &[ReservedRegion],
    ) -> Result<(), ReservedError> {
        let regions = ReservedRegions::new(regions)?;
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.reserved = regions;
        }
        Ok(())
    }

    /// Says which endpoints the outside cannot tell apart: those of one `group` can only be in one domain at a time, or in
    /// bypass domains. Endpoints are of no group until this says so; an unknown endpoint is ignored, and who is attached
    /// stays so.
    pub fn set_group(&mut self, endpoint: EndpointId, group: Option<u32>) {
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.group = group;
        }
    }

    /// Says what `endpoint` can do with tables, if anything; an unknown endpoint is ignored. Tables that are attached stay,
    /// but an endpoint that asks for no pages any more waits for none.
    pub fn set_tables(&mut self, endpoint: EndpointId, support: Option<TableSupport>) {
        if let Some(found) = self.endpoints.get_mut(&endpoint) {
            found.tables = support;
        }
        if support.is_none_or(|support| support.page_requests.is_none()) {
            self.end_page_requests(endpoint);
        }
    }

    /// All three steps of one request: `readable` is its readable part, `writable` the size in bytes of its
    /// writable part.
    pub fn handle(&mut self, readable: &[u8], writable: usize, host: &mut dyn Host) -> Reply {
        match self.begin(readable, writable) {
            Step::Done(reply) => reply,
            Step::Apply(change) => {
                let applied = host.apply(&change);
                self.finish(applied)
            }
        }
    }

    /// Checks a request; the first step of three.
    ///
    /// A change that was begun and never finished counts as refused by the host.
    pub fn begin(&mut self, readable: &[u8], writable: usize) -> Step {
        self.abandon();
        match self.judge(readable, writable) {
            Ok(under_way) => Step::Apply(self.start(under_way)),
            Err(reply) => Step::Done(reply),
        }
    }

    /// What the outside has to do for a request, or the answer.
    fn judge(&mut self, readable: &[u8], writable: usize) -> Result<UnderWay, Reply> {
        //= virtio#devicenormative:IOMMU/Device operations A9a A9b A10a A12
        // A type that is not recognised, or no room for a status: nothing is written. The rest of the head is ignored.
        let row = readable.first().and_then(|kind| request::row(RequestType(*kind), self.negotiated));
        let Some((row, form)) = row.and_then(|row| Some((row, Form::of(row, writable, self.probe_size())?)))
        else {
            return Err(Reply::unrecognised());
        };
        self.driver_is_up = true;
        let checked = form.check_room().and_then(|()| request::parse(row, readable, self.negotiated));
        match checked.and_then(|request| self.check(&request)) {
            Ok(Verdict::Change(change)) => Ok(UnderWay { change, form }),
            Ok(Verdict::Nothing) => Err(form.done()),
            Ok(Verdict::Properties(properties)) => Err(form.properties(properties)),
            Err(reject) => Err(form.rejected(reject)),
        }
    }

    /// Commits the change that [`begin`](Device::begin) asked for, or drops it if the outside refused; the
    /// last step. Of several under way that is the one which was begun first.
    pub fn finish(&mut self, applied: Result<(), HostError>) -> Reply {
        let Some(UnderWay { change, form }) = self.under_way.front().copied() else {
            return Reply::unrecognised();
        };
        //= tables#ATTACH_TABLE T24
        // Nothing has changed until here.
        if applied.is_ok() {
            self.commit(change);
        }
        self.end_first();
        debug_assert_eq!(self.check_invariants(), Ok(()));
        match applied {
            Ok(()) => form.done(),
            //= tables#ATTACH_TABLE T22
            // The guest's memory is known to the host alone.
            Err(error) if is_bad_table(&change, &error) => form.rejected(Reject::TableAddress(error)),
            //= tables#ATTACH_TABLE T25
            // The status is chosen where all are.
            Err(error) => form.rejected(Reject::Host(error)),
        }
    }

    /// Forgets domains, mappings and faults, as a device reset does; `bypass` stays.
    ///
    /// Gives back what endpoints were attached to, for an outside whose endpoints go on for a while.
    pub fn reset(&mut self) -> Vec<Lingering> {
        //= virtio#devicenormative:IOMMU/Device configuration layout A6a
        // The bypass field outlives a device reset.
        self.abandon();
        self.mapping_count = 0;
        self.mapping_bytes = 0;
        self.driver_is_up = false;
        //= tables#Domains T8
        // The driver may have its memory back now.
        self.end_requests(|_| true);
        self.events.clear();
        for endpoint in self.endpoints.values_mut() {
            endpoint.domain = None;
            endpoint.table = None;
            endpoint.pasids.clear();
        }
        let mut lingering = Vec::new();
        for domain in core::mem::take(&mut self.domains).into_values() {
            let domain = Arc::new(domain);
            lingering
                .extend(domain.endpoints().map(|endpoint| Lingering { endpoint, domain: domain.clone() }));
        }
        lingering
    }

    /// Gives `bypass` its value of power-on again, as a reset of the whole machine does.
    pub fn restore_boot_bypass(&mut self) {
        //= virtio#devicenormative:IOMMU/Device configuration layout A6b
        // The machine begins anew, and with it the firmware.
        self.bypass = self.config.boot_bypass;
    }

    /// Whether unattached endpoints reach guest memory untranslated: `bypass` in the configuration space.
    pub fn bypass(&self) -> bool {
        self.bypass
    }

    /// The endpoints behind the device.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> {
        self.endpoints.keys().copied()
    }

    /// The domain that `endpoint` is attached to.
    pub fn domain_of(&self, endpoint: EndpointId) -> Option<DomainId> {
        self.endpoints.get(&endpoint)?.domain
    }

    /// The table that `endpoint`, or one of its PASIDs, uses, and the domain that is in.
    pub fn table_of(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> Option<(DomainId, Table)> {
        let endpoint = self.endpoints.get(&endpoint)?;
        match pasid {
            Some(pasid) => {
                endpoint.pasids.get(&pasid).map(|attachment| (attachment.domain, attachment.table))
            }
            None => endpoint.domain.zip(endpoint.table),
        }
    }

    /// The PASIDs of `endpoint` that have a table of their own.
    pub fn pasids(&self, endpoint: EndpointId) -> impl Iterator<Item = Pasid> {
        self.endpoints.get(&endpoint).into_iter().flat_map(|endpoint| endpoint.pasids.keys().copied())
    }

    /// What domains are made of.
    pub fn mode(&self) -> Mode {
        self.config.mode
    }

    /// A domain that exists.
    pub fn domain(&self, id: DomainId) -> Option<&Domain> {
        self.domains.get(&id)
    }

    /// The outside is at work on this change, too, from now on.
    fn start(&mut self, under_way: UnderWay) -> Change {
        self.under_way.push_back(under_way);
        if let Change::Unmap { domain, range } = under_way.change {
            self.close(domain, Some(range));
        }
        under_way.change
    }

    /// The outside is no more at work on the change that was begun first.
    fn end_first(&mut self) {
        let ended = self.under_way.pop_front();
        if let Some(UnderWay { change: Change::Unmap { domain, .. }, .. }) = ended {
            self.close(domain, None);
        }
    }

    /// The outside is at work on nothing any more.
    fn abandon(&mut self) {
        while !self.under_way.is_empty() {
            self.end_first();
        }
    }

    /// Readers of a domain find nothing in a range that is being unmapped.
    fn close(&self, domain: DomainId, range: Option<IovaRange>) {
        if let Some(mappings) = self.domains.get(&domain).and_then(Domain::paging) {
            mappings.close(range);
        }
    }

    fn check(&self, request: &Request) -> Result<Verdict, Reject> {
        match *request {
            Request::Attach { endpoint, domain, bypass } => self.check_attach(endpoint, domain, bypass),
            Request::Detach { endpoint, domain } => self.check_detach(endpoint, domain),
            Request::Map { domain, range, target } => self.check_map(domain, range, target),
            Request::Unmap { domain, range } => self.check_unmap(domain, range),
            Request::Probe { endpoint } => self.probe(endpoint),
            Request::AttachTable { endpoint, pasid, domain, table } => {
                self.check_attach_table(endpoint, pasid, domain, table)
            }
            Request::DetachPasid { endpoint, pasid, domain } => {
                self.check_detach_pasid(endpoint, pasid, domain)
            }
            Request::Invalidate { domain, invalidation } => self.check_invalidate(domain, invalidation),
            Request::PageResponse { to, code } => self.check_page_response(to, code),
        }
    }

    fn commit(&mut self, change: Change) {
        match change {
            Change::Attach { endpoint, to, bypass, .. } => self.commit_attach(endpoint, to, bypass),
            Change::Detach { endpoint, .. } => self.commit_detach(endpoint),
            Change::Map { domain, range, target } => self.commit_map(domain, range, target),
            Change::Unmap { domain, range } => self.commit_unmap(domain, range),
            Change::SetBypass { enabled } => self.bypass = enabled,
            Change::AttachTable { endpoint, pasid, to, table, .. } => {
                self.commit_attach_table(endpoint, pasid, to, table);
            }
            Change::DetachPasid { endpoint, pasid, .. } => self.commit_detach_pasid(endpoint, pasid),
            Change::Invalidate { .. } => {}
            Change::Respond { to, cookie, .. } => self.commit_page_response(to, cookie),
        }
    }
}

/// Whether the host found no guest memory where the table should be.
fn is_bad_table(change: &Change, error: &HostError) -> bool {
    matches!(change, Change::AttachTable { .. }) && error.errno == HostError::EFAULT
}
