// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults and page requests on their way to the event queue.

use crate::{EndpointId, Event, Fault, Features, TableFault};

use super::Device;

impl Device {
    /// Queues a refused access for the driver; false when too many wait and this one is dropped.
    ///
    /// A fault of an endpoint that does not exist is dropped too: a driver could not tell what it means.
    pub fn report(&mut self, fault: Fault) -> bool {
        //= virtio#devicenormative:IOMMU/Fault reporting A54
        // No event names an endpoint that is not there.
        let queued = self.endpoints.contains_key(&fault.endpoint)
            && self.events.push(fault, self.config.limits.faults_max);
        self.count_dropped(fault.endpoint, queued)
    }

    /// As [`report`](Device::report), for a fault at a table of the guest's. Without ATTACH_TABLE negotiated there are no
    /// tables, and it is dropped.
    pub fn report_table_fault(&mut self, fault: TableFault) -> bool {
        let queued = self.endpoints.contains_key(&fault.endpoint)
            && self.has_table_events()
            && self.events.push_table(fault, self.config.limits.faults_max);
        self.count_dropped(fault.endpoint, queued)
    }

    /// Events of `endpoint` were lost before they came here: the driver is told that there were some.
    pub fn report_lost(&mut self, endpoint: EndpointId) {
        self.count_dropped(endpoint, false);
    }

    /// The next event for the driver, if there is one and the driver is up. It stays the next until
    /// [`event_sent`](Device::event_sent).
    ///
    /// Events wait for the driver's first request: Linux gives out event buffers before it can handle one.
    pub fn next_event(&self) -> Option<Event> {
        self.events.first(self.has_table_events()).filter(|_| self.driver_is_up)
    }

    /// The driver has `sent`, which [`next_event`](Device::next_event) gave. Another that has become the next since, as
    /// when the group of a page request is over, stays.
    pub fn event_sent(&mut self, sent: &Event) {
        if self.next_event().as_ref() == Some(sent) {
            self.events.remove_first();
        }
    }

    /// The driver's buffer has no room for `event`, which [`next_event`](Device::next_event) gave
    /// ([`Event::for_buffer`]). A page request is answered in the driver's stead; anything else waits for another buffer,
    /// as does another event that has become the next since.
    pub fn event_unfit(&mut self, event: &Event) {
        //= tables#Events T43b
        // It would block the queue, and the endpoint would wait for its timeout.
        if let Some(group) = self.events.first_group().filter(|_| self.next_event().as_ref() == Some(event)) {
            self.end_request(group);
        }
    }

    /// How many faults were dropped since power-on.
    pub fn faults_dropped(&self) -> u64 {
        self.faults_dropped
    }

    fn count_dropped(&mut self, endpoint: EndpointId, queued: bool) -> bool {
        if !queued {
            self.faults_dropped = self.faults_dropped.saturating_add(1);
            //= tables#Events T42
            // A driver that does not know the flag is told nothing.
            if self.endpoints.contains_key(&endpoint) && self.has_table_events() {
                self.events.lose(endpoint);
            }
        }
        queued
    }

    fn has_table_events(&self) -> bool {
        self.negotiated.contains(Features::ATTACH_TABLE)
    }
}
