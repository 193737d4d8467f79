// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Endpoints that are cut off: their devices reach nothing, whatever the guest does. All that the guest does to them is
//! noted meanwhile, and refused where it always is; when they are restored they are where it has put them.
//!
//! A group is cut off with any of its members, which the host cannot tell apart.

use viommu_core::EndpointId;

use crate::device::Attach;
use crate::error::Result;

use super::{Reach, Shadow};

impl<D: Attach> Shadow<D> {
    /// Cuts an endpoint off, also one that has no device: the next one that it is given is cut off, too.
    ///
    /// # Errors
    /// Of [`Attach::detach`]; all reach what they did then.
    pub fn cut_off(&mut self, endpoint: EndpointId) -> Result<()> {
        let is_new = self.cut_off.insert(endpoint);
        let done = self.follow_cuts(endpoint);
        if done.is_err() && is_new {
            self.cut_off.remove(&endpoint);
            self.follow_cuts_or_tell(endpoint);
        }
        done
    }

    /// Lets an endpoint reach what it does by the guest's word. What it reached by the VMM's is then guest memory,
    /// untranslated.
    ///
    /// # Errors
    /// Of [`Attach::attach`]; it is cut off then.
    pub fn restore(&mut self, endpoint: EndpointId) -> Result<()> {
        let was_cut_off = self.cut_off.remove(&endpoint);
        // Its own device may be gone, and those of its group still here.
        let cut_off: Vec<EndpointId> =
            self.endpoints.keys().copied().filter(|endpoint| self.is_cut_off(*endpoint)).collect();
        let done = cut_off.into_iter().try_for_each(|endpoint| self.follow_cuts(endpoint));
        if done.is_err() && was_cut_off {
            self.cut_off.insert(endpoint);
            self.follow_cuts_or_tell(endpoint);
        }
        done
    }

    /// Whether the device of an endpoint is cut off, by itself or with another of its group.
    pub fn is_cut_off(&self, endpoint: EndpointId) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|found| found.device.is_cut_off())
    }

    /// Has all of an endpoint's group cut off if one of them is to be, whoever has attached it, and restored otherwise.
    ///
    /// # Errors
    /// Of [`Attach::attach`] and [`Attach::detach`].
    pub fn follow_cuts(&mut self, endpoint: EndpointId) -> Result<()> {
        let group = self.group_of(endpoint);
        let is_cut = group.iter().any(|member| self.cut_off.contains(member));
        for member in group {
            let Some(found) = self.endpoints.get_mut(&member) else { continue };
            if is_cut {
                found.device.cut_off()?;
            } else if found.device.is_cut_off() {
                found.device.restore()?;
                // Its address space is known to the VMM alone.
                if found.reach == Reach::Vmm && found.device.device().is_bound() {
                    self.move_to_memory(member)?;
                }
            }
        }
        Ok(())
    }

    /// The same where nobody can be told of a failure but whoever reads the log.
    pub(super) fn follow_cuts_or_tell(&mut self, endpoint: EndpointId) {
        if let Err(error) = self.follow_cuts(endpoint) {
            log::error!("{endpoint}: its group is cut off in part: {error}");
        }
    }
}
