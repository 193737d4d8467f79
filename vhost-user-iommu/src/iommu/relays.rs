// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The relays of endpoints that other processes serve. They come and go.

use std::collections::BTreeMap;
use std::sync::Mutex;

use viommu_core::EndpointId;

use crate::config::Protocol;
use crate::orders::RelayHandle;
use crate::sync::lock;

use super::Iommu;

/// How to reach them.
#[derive(Debug, Default)]
pub(super) struct Relays(Mutex<BTreeMap<EndpointId, RelayHandle>>);

impl Relays {
    pub(super) fn get(&self, endpoint: EndpointId) -> Option<RelayHandle> {
        lock(&self.0).get(&endpoint).cloned()
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    pub(super) fn all(&self) -> Vec<RelayHandle> {
        lock(&self.0).values().cloned().collect()
    }

    pub(super) fn protocol(&self, endpoint: EndpointId) -> Option<Protocol> {
        lock(&self.0).get(&endpoint).map(RelayHandle::protocol)
    }

    /// Whether the endpoint's back-end is told of all that it may reach.
    pub(super) fn is_told(&self, endpoint: EndpointId) -> bool {
        lock(&self.0).get(&endpoint).is_some_and(RelayHandle::is_told)
    }

    /// Whether that is so of any.
    pub(super) fn has_told(&self) -> bool {
        lock(&self.0).values().any(RelayHandle::is_told)
    }

    /// Whether a VMM takes IOVAs for GPAs, of any.
    pub(super) fn has_vhost_user(&self) -> bool {
        lock(&self.0).values().any(|relay| relay.protocol() == Protocol::VhostUser)
    }
}

impl Iommu {
    /// The endpoint is served by another process from now on.
    pub fn add_relay(&self, endpoint: EndpointId, relay: RelayHandle) {
        let _turn = self.turn();
        self.state().add_relayed(endpoint);
        lock(&self.relays.0).insert(endpoint, relay);
        self.reserve();
    }

    /// It is not any more. Its relay is over.
    pub fn remove_relay(&self, endpoint: EndpointId) {
        let _turn = self.turn();
        lock(&self.relays.0).remove(&endpoint);
        self.state().remove_relayed(endpoint);
        self.reserve();
    }

    /// The relay of the endpoint, if it has one.
    pub fn relay(&self, endpoint: EndpointId) -> Option<RelayHandle> {
        self.relays.get(endpoint)
    }
}
