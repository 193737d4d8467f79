// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What those who run the machine see and change of the device, through the control socket.

use std::os::fd::OwnedFd;

use viommu_core::{EndpointId, HostError};

use crate::config::Protocol;
use crate::control::protocol::{Cause, Code, EndpointStatus, LISTED, Reason, Refusal, VFIO};

use super::Iommu;

impl Iommu {
    /// All endpoints, in the order of their ids.
    pub fn statuses(&self) -> Vec<EndpointStatus> {
        self.labels.keys().map(|endpoint| self.status(*endpoint)).collect()
    }

    /// Lets go of an endpoint's physical device.
    ///
    /// # Errors
    /// There is none.
    pub fn remove_device(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.check_known(endpoint)?;
        let _turn = self.turn();
        let removed = self.vfio.as_ref().and_then(|vfio| vfio.shadow().remove(endpoint));
        if removed.is_none() {
            return Err(Refusal::new(Code::NoDevice, "the endpoint has no device"));
        }
        // What it has asked for has an answer, so the driver is told no more of it, and its own comes too late.
        self.state().device_mut().end_page_requests(endpoint);
        self.pass_answers_on();
        Ok(())
    }

    /// Takes a physical device for an endpoint.
    ///
    /// # Errors
    /// It has one, or this one is not suited.
    pub fn add_device(&self, endpoint: EndpointId, cdev: OwnedFd) -> Result<(), Refusal> {
        self.check_vfio(endpoint)?;
        let _turn = self.turn();
        let vfio = self.vfio.as_ref().filter(|vfio| vfio.shadow().device(endpoint).is_none());
        let vfio = vfio.ok_or_else(|| Refusal::new(Code::HasDevice, HAS_DEVICE))?;
        let group = vfio
            .add(endpoint, cdev)
            .map_err(|error| Refusal::new(Code::NotSuited, format!("{}: {error}", self.label(endpoint))))?;
        self.state().device_mut().set_group(endpoint, group);
        self.tender.expect(endpoint);
        Ok(())
    }

    /// Cuts an endpoint off from the guest's memory, whatever the guest asks for.
    ///
    /// # Errors
    /// It cannot be known that it reaches nothing.
    pub fn block_endpoint(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        let label = self.check_known(endpoint)?;
        if self.kind(endpoint) == LISTED {
            let message = format!("{label} is merely listed: nothing of it passes through the daemon");
            return Err(Refusal::new(Code::NothingBehind, message));
        }
        self.cut_off(endpoint).map_err(|error| {
            let outcome = match self.state().is_cut_off(endpoint) {
                true => {
                    "it is blocked, but may still use memory that it had: block it again, or end the back-end"
                }
                false => "it is not blocked",
            };
            self.not_done(endpoint, &error, outcome)
        })
    }

    /// Lets an endpoint reach what the guest lets it reach.
    ///
    /// # Errors
    /// It stays blocked.
    pub fn unblock_endpoint(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.check_known(endpoint)?;
        self.restore(endpoint).map_err(|error| self.not_done(endpoint, &error, "it stays blocked"))
    }

    /// Whether a device could be put behind the endpoint.
    ///
    /// # Errors
    /// There is no such endpoint, or it has a device.
    pub fn check_vacant(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.check_known(endpoint)?;
        match self.kind(endpoint) {
            LISTED => Ok(()),
            VFIO => Err(Refusal::new(Code::HasDevice, "the endpoint is that of a physical device")),
            _ => Err(Refusal::new(Code::HasDevice, HAS_DEVICE)),
        }
    }

    fn status(&self, endpoint: EndpointId) -> EndpointStatus {
        // Before the state is locked: this looks at the address spaces.
        let name = self.vfio.as_ref().and_then(|vfio| vfio.name_of(endpoint));
        let reason = self.reason(endpoint);
        let state = self.state();
        let reaches = match state.domain_served(endpoint) {
            _ if reason.is_some() => "blocked",
            Some(Some(domain)) if domain.is_bypass() => "bypass",
            Some(Some(_)) => "translated",
            Some(None) if state.device().bypass() => "bypass",
            Some(None) | None => "blocked",
        };
        EndpointStatus {
            endpoint: self.label(endpoint).to_owned(),
            kind: self.kind(endpoint).to_owned(),
            device: name,
            state: reaches.to_owned(),
            domain: state.device().domain_of(endpoint).map(|domain| domain.0),
            reason,
        }
    }

    /// Why an endpoint is blocked, where that is not by the guest's word.
    fn reason(&self, endpoint: EndpointId) -> Option<Reason> {
        // Before the state is locked, too.
        let is_with_group = self.vfio.as_ref().is_some_and(|vfio| vfio.shadow().is_cut_off(endpoint));
        let state = self.state();
        let (code, message) = if state.is_cut_off(endpoint) {
            (Cause::Operator, "by the operator")
        } else if is_with_group {
            (Cause::Operator, "by the operator, with another of its IOMMU group")
        } else if let Some(why) = state.failed(endpoint) {
            // It may be that something is to be done about it.
            (Cause::BackEnd, why)
        } else if !state.is_connected() {
            (Cause::NoVmm, "there is no VMM")
        } else if state.domain_served(endpoint).is_none() {
            (Cause::Restart, "until it restarts or is attached")
        } else {
            return None;
        };
        Some(Reason { code, message: message.to_owned() })
    }

    fn kind(&self, endpoint: EndpointId) -> &'static str {
        let is_vfio = self.vfio.as_ref().is_some_and(|vfio| vfio.has(endpoint));
        match self.relays.protocol(endpoint) {
            Some(Protocol::VhostUser) => "vhost-user",
            Some(Protocol::VfioUser(_)) => "vfio-user",
            None if is_vfio => VFIO,
            None => LISTED,
        }
    }

    /// Whether the endpoint is one of a physical device.
    ///
    /// # Errors
    /// There is no such endpoint, or it is another one.
    pub fn check_vfio(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        let label = self.check_known(endpoint)?;
        match self.kind(endpoint) {
            VFIO => Ok(()),
            _ => {
                let message =
                    format!("{label} is no VFIO endpoint; write another process's device behind the id");
                Err(Refusal::new(Code::NotVfio, message))
            }
        }
    }

    fn check_known(&self, endpoint: EndpointId) -> Result<&str, Refusal> {
        let label = self.labels.get(&endpoint).map(String::as_str);
        label.ok_or_else(|| Refusal::new(Code::UnknownEndpoint, "the daemon was given no such endpoint"))
    }

    /// Why something has not become of an endpoint as it should have; `outcome` is what has.
    fn not_done(&self, endpoint: EndpointId, error: &HostError, outcome: &str) -> Refusal {
        let label = self.label(endpoint);
        match self.relays.get(endpoint).is_some() {
            true => Refusal::new(Code::BackEnd, format!("{label}: {error}; {outcome}")),
            false => {
                Refusal::new(Code::Host, format!("{label}: the host's kernel refuses: {error}; {outcome}"))
            }
        }
    }
}

const HAS_DEVICE: &str = "the endpoint has a device; remove it first";
