// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Applying a change to the endpoints: to what caches translations, to what is told of mappings, and to what the hardware
//! translates.
//!
//! A change that gives access needs nothing of caches: endpoints ask when they miss. A change that takes access away
//! waits until every back-end concerned has acknowledged that its entries are gone; the device refuses their misses for
//! the same range meanwhile. If one fails, the others have merely lost entries that they can ask for again.
//!
//! A server that maps memory itself does not ask: it is told of each mapping, and the guest's request waits for that, too.
//! What it was told of a change that fails is put right after. The hardware comes last, since that cannot be undone so
//! easily.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::Instant;

use log::error;
use rustix::io::Errno;
use viommu_core::mapping::Mapping;
use viommu_core::{Change, Domain, DomainId, EndpointId, HostError, IovaRange};
use viommu_nested::shadow::Known;

use crate::orders::{Outcome, RelayHandle, View, Work};

use super::Iommu;

impl Iommu {
    pub(super) fn apply(&self, change: &Change) -> Result<(), HostError> {
        match *change {
            Change::Map { domain, range, target } if self.relays.has_told() => {
                let members = self.told(self.members(domain));
                self.order(members, &Work::Learn(Mapping { range, target }))?;
            }
            Change::Unmap { domain, range } => self.order(self.members(domain), &Work::Forget(range))?,
            //= virtio#devicenormative:IOMMU/DETACH request A26
            // The request is answered only when the back-end has lost what it had cached.
            Change::Attach { endpoint, bypass: true, .. } => self.enter(endpoint, || View::Identity)?,
            Change::Attach { endpoint, to, .. } => {
                self.enter(endpoint, || View::Mappings(self.mappings(to)))?;
            }
            Change::Detach { endpoint, .. } => self.enter(endpoint, || of_unattached(self.bypass()))?,
            Change::Map { .. } => {}
            // Tables are walked by hardware; no back-end has anything of them.
            Change::AttachTable { .. }
            | Change::DetachPasid { .. }
            | Change::Invalidate { .. }
            | Change::Respond { .. } => {}
            Change::SetBypass { enabled } => {
                let unattached = self.unattached();
                let concerned = if enabled { self.told(unattached) } else { unattached };
                self.order(concerned, &Work::Enter(of_unattached(enabled)))?;
            }
        }
        self.on_host(|shadow| shadow.apply(change, self))
    }

    /// The endpoints that may have been told of a change that has failed.
    pub(super) fn concerned(&self, change: &Change) -> Vec<EndpointId> {
        self.told(match *change {
            Change::Map { domain, .. } | Change::Unmap { domain, .. } => self.members(domain),
            Change::Attach { endpoint, .. } | Change::Detach { endpoint, .. } => vec![endpoint],
            Change::SetBypass { .. } => self.unattached(),
            _ => Vec::new(),
        })
    }

    /// Has these endpoints reach what they are to reach, whatever they were told meanwhile.
    pub(super) fn put_right(&self, endpoints: BTreeSet<EndpointId>) {
        if !endpoints.is_empty() {
            // A failure has been told of, and the relay blocks an endpoint that does not follow.
            let _ = self.order(self.told(endpoints.into_iter().collect()), &Work::Refresh);
        }
    }

    /// The endpoints of a domain, if other processes serve any at all.
    fn members(&self, domain: DomainId) -> Vec<EndpointId> {
        if self.relays.is_empty() {
            return Vec::new();
        }
        self.state().device().domain(domain).into_iter().flat_map(Domain::endpoints).collect()
    }

    /// Those of `endpoints` that are told what they may reach.
    pub(super) fn told(&self, mut endpoints: Vec<EndpointId>) -> Vec<EndpointId> {
        endpoints.retain(|endpoint| self.relays.is_told(*endpoint));
        endpoints
    }

    /// Moves an endpoint, and tells it what it reaches from now on if it is told that.
    fn enter(&self, endpoint: EndpointId, view: impl FnOnce() -> View) -> Result<(), HostError> {
        let Some(relay) = self.relays.get(endpoint) else { return Ok(()) };
        let work = if relay.is_told() { Work::Enter(view()) } else { Work::Forget(IovaRange::ALL) };
        self.order(vec![endpoint], &work)
    }

    pub(super) fn order(&self, endpoints: Vec<EndpointId>, work: &Work) -> Result<(), HostError> {
        let relay_of = |endpoint: &EndpointId| Some((*endpoint, self.relays.get(*endpoint)?));
        let concerned: Vec<_> = endpoints.iter().filter_map(relay_of).collect();
        if concerned.is_empty() {
            return Ok(());
        }
        let (done, outcomes) = mpsc::channel();
        for (endpoint, relay) in &concerned {
            self.give(*endpoint, relay, work.clone(), done.clone());
        }
        let deadline = Instant::now() + self.unmap_timeout;
        let mut all = Ok(());
        for _ in concerned {
            match outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                // One that fails does not keep the others from being waited for.
                Ok(outcome) => all = all.and(outcome),
                Err(_) => return Err(self.not_acknowledged(&endpoints)),
            }
        }
        all
    }

    /// Gives an order. An endpoint that is cut off enters nothing; one that will be a moment later is ordered so after this.
    fn give(&self, endpoint: EndpointId, relay: &RelayHandle, work: Work, done: mpsc::Sender<Outcome>) {
        match work {
            Work::Enter(view) => {
                let state = self.state();
                let view = if state.is_cut_off(endpoint) { View::Nothing } else { view };
                relay.order(Work::Enter(view), done);
            }
            work => relay.order(work, done),
        }
    }

    fn not_acknowledged(&self, endpoints: &[EndpointId]) -> HostError {
        let labels: Vec<&str> = endpoints.iter().map(|endpoint| self.label(*endpoint)).collect();
        error!(
            "a back-end of {} did not acknowledge an invalidation within {} ms: it may still use memory that is \
             taken from it; whoever asked for that is told that it failed",
            labels.join(", "),
            self.unmap_timeout.as_millis()
        );
        HostError { operation: "telling a back-end", errno: Errno::TIMEDOUT.raw_os_error() }
    }
}

/// What unattached endpoints reach.
fn of_unattached(bypass: bool) -> View {
    if bypass { View::Identity } else { View::Nothing }
}
