// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults on their way to the event queue.

use crate::Fault;
use crate::fault::EVENT_SIZE;

use super::Device;

impl Device {
    /// Queues a refused access for the driver; false when too many wait and this one is dropped.
    ///
    /// A fault of an endpoint that does not exist is dropped too: a driver could not tell what it means.
    pub fn report(&mut self, fault: Fault) -> bool {
        //= virtio#devicenormative:IOMMU/Fault reporting A54
        // No event names an endpoint that is not there.
        let queued = self.endpoints.contains_key(&fault.endpoint)
            && self.faults.push(fault, self.config.limits.faults_max);
        if !queued {
            self.faults_dropped = self.faults_dropped.saturating_add(1);
        }
        queued
    }

    /// The next event for the driver, if there is one and the driver is up. It stays the next until
    /// [`event_sent`](Device::event_sent).
    ///
    /// Events wait for the driver's first request: Linux gives out event buffers before it can handle one.
    pub fn next_event(&self) -> Option<[u8; EVENT_SIZE]> {
        self.faults.first().filter(|_| self.driver_is_up).map(Fault::event)
    }

    /// Forgets the event that [`next_event`](Device::next_event) gave.
    pub fn event_sent(&mut self) {
        self.faults.remove_first();
    }

    /// How many faults were dropped since power-on.
    pub fn faults_dropped(&self) -> u64 {
        self.faults_dropped
    }
}
