// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Endpoints that whoever runs the machine has cut off from its memory, for as long as they say.
//!
//! The guest's requests go on as ever, and a reset or another VMM changes nothing: see [`serving`](super::serving) for what
//! is relayed, and `viommu_nested`'s shadow for physical devices.

use viommu_core::EndpointId;

use crate::orders::{View, Work};

use super::Iommu;
use super::devices::Done;

impl Iommu {
    /// Has an endpoint reach nothing until it is restored, and returns when that is so.
    ///
    /// # Errors
    /// Its back-end has not acknowledged that it has forgotten everything: it gets nothing more, and counts as cut off. Or
    /// the host refuses, and nothing is changed.
    pub(super) fn cut_off(&self, endpoint: EndpointId) -> Done {
        let was_cut_off = self.state().is_cut_off(endpoint);
        self.state().cut_off(endpoint);
        if let Some(relay) = self.relays.get(endpoint) {
            // Not in turn: that may be somebody's who waits for this very back-end.
            let entered = self.order(vec![endpoint], &Work::Enter(View::Nothing));
            // A back-end that is behind is not waited for, and not told either.
            return entered.inspect_err(|_| relay.forget_all());
        }
        let _turn = self.turn();
        let done = self.on_host(|shadow| shadow.cut_off(endpoint));
        match done {
            Ok(()) => self.end_page_requests(endpoint),
            Err(_) if was_cut_off => {}
            Err(_) => self.state().restore(endpoint),
        }
        // The VMM may have yet to attach the device.
        self.tender.wake();
        done
    }

    /// Lets an endpoint reach what it does by the guest's word.
    ///
    /// # Errors
    /// Its server does not take that, or the host refuses; it is cut off then.
    pub(super) fn restore(&self, endpoint: EndpointId) -> Done {
        let _turn = self.turn();
        let was_cut_off = self.state().is_cut_off(endpoint);
        self.state().restore(endpoint);
        let done = self.on_host(|shadow| shadow.restore(endpoint));
        if !was_cut_off {
            // At most another of its group is.
            return done;
        }
        let done = done.and_then(|()| self.order(self.told(vec![endpoint]), &Work::Refresh));
        if done.is_err() {
            self.state().cut_off(endpoint);
            // What it has been told of is taken away again, however long that takes.
            let _ = self.order(vec![endpoint], &Work::Enter(View::Nothing));
        }
        self.tender.wake();
        done
    }

    /// What the endpoint's group has asked for has an answer of the host's, so the driver's comes too late.
    fn end_page_requests(&self, endpoint: EndpointId) {
        let group = self.vfio.as_ref().map(|vfio| vfio.shadow().group_of(endpoint));
        for member in group.unwrap_or_default() {
            self.state().device_mut().end_page_requests(member);
        }
        self.pass_answers_on();
    }
}
