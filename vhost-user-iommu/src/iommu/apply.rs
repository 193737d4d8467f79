// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Applying a change to the endpoints: to what caches translations, and to what the hardware translates.
//!
//! A change that gives access needs nothing of caches: endpoints ask when they miss. A change that takes access away
//! waits until every back-end concerned has acknowledged that its entries are gone; the device refuses their misses for
//! the same range meanwhile. If one fails, the others have merely lost entries that they can ask for again. The
//! hardware comes last, since that cannot be undone so easily.

use std::sync::mpsc;
use std::time::Instant;

use rustix::io::Errno;
use viommu_core::{Change, EndpointId, HostError, IovaRange};
use viommu_nested::shadow::Known;

use super::Iommu;

impl Iommu {
    pub(super) fn apply(&self, change: &Change) -> Result<(), HostError> {
        match *change {
            Change::Map { .. } | Change::SetBypass { enabled: true } => {}
            Change::Unmap { domain, range } => {
                let members = self.state().device().domain(domain).map(|domain| domain.endpoints().collect());
                self.invalidate(members.unwrap_or_default(), range)?;
            }
            //= virtio#devicenormative:IOMMU/DETACH request A26
            // The request is answered only when the back-end has lost what it had cached.
            Change::Attach { endpoint, .. } | Change::Detach { endpoint, .. } => {
                self.invalidate(vec![endpoint], IovaRange::ALL)?;
            }
            // Tables are walked by hardware; no back-end has anything of them.
            Change::AttachTable { .. }
            | Change::DetachPasid { .. }
            | Change::Invalidate { .. }
            | Change::Respond { .. } => {}
            Change::SetBypass { enabled: false } => self.invalidate(self.unattached(), IovaRange::ALL)?,
        }
        self.on_host(|shadow| shadow.apply(change, self))
    }

    fn invalidate(&self, endpoints: Vec<EndpointId>, range: IovaRange) -> Result<(), HostError> {
        let concerned: Vec<_> =
            endpoints.iter().filter_map(|endpoint| self.invalidators.get(endpoint)).collect();
        if concerned.is_empty() {
            return Ok(());
        }
        let (done, outcomes) = mpsc::channel();
        for invalidator in &concerned {
            invalidator.invalidate(range, done.clone());
        }
        let deadline = Instant::now() + self.unmap_timeout;
        for _ in concerned {
            match outcomes.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(outcome) => outcome?,
                Err(_) => return Err(self.not_acknowledged(&endpoints)),
            }
        }
        Ok(())
    }

    fn not_acknowledged(&self, endpoints: &[EndpointId]) -> HostError {
        let labels: Vec<&str> = endpoints.iter().map(|endpoint| self.label(*endpoint)).collect();
        log::error!(
            "a back-end of {} did not acknowledge an invalidation within {} ms: it may still use memory that the \
             guest takes back; the guest is told that its request failed",
            labels.join(", "),
            self.unmap_timeout.as_millis()
        );
        HostError { operation: "IOTLB invalidation", errno: Errno::TIMEDOUT.raw_os_error() }
    }
}
