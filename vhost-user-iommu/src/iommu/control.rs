// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What those who run the machine see and change of the device, through the control socket.

use std::os::fd::OwnedFd;

use viommu_core::EndpointId;

use crate::config::Protocol;
use crate::control::Controlled;
use crate::control::protocol::{Code, EndpointStatus, Refusal, VFIO};
use crate::orders::RelayHandle;

use super::Iommu;

impl Controlled for Iommu {
    fn endpoints(&self) -> Vec<EndpointStatus> {
        self.labels.keys().map(|endpoint| self.status(*endpoint)).collect()
    }

    fn remove_device(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.check_vfio(endpoint)?;
        let _turn = self.turn();
        let removed = self.vfio.as_ref().and_then(|vfio| vfio.shadow().remove(endpoint));
        if removed.is_none() {
            return Err(Refusal::new(Code::NoDevice, "the endpoint's device is removed already"));
        }
        // What it has asked for has an answer, so the driver is told no more of it, and its own comes too late.
        self.state().device_mut().end_page_requests(endpoint);
        self.pass_answers_on();
        Ok(())
    }

    fn add_device(&self, endpoint: EndpointId, cdev: OwnedFd) -> Result<(), Refusal> {
        self.check_vfio(endpoint)?;
        let _turn = self.turn();
        let vfio = self.vfio.as_ref().filter(|vfio| vfio.shadow().device(endpoint).is_none());
        let vfio =
            vfio.ok_or_else(|| Refusal::new(Code::HasDevice, "the endpoint has a device; remove it first"))?;
        let group = vfio
            .add(endpoint, cdev)
            .map_err(|error| Refusal::new(Code::NotSuited, format!("{}: {error}", self.label(endpoint))))?;
        self.state().device_mut().set_group(endpoint, group);
        self.tender.expect(endpoint);
        Ok(())
    }
}

impl Iommu {
    fn status(&self, endpoint: EndpointId) -> EndpointStatus {
        // Before the state is locked: this looks at the address spaces.
        let name = self.vfio.as_ref().and_then(|vfio| vfio.name_of(endpoint));
        let state = self.state();
        let device = state.device();
        let domain = device.domain_of(endpoint);
        let is_bypass = match domain.and_then(|domain| device.domain(domain)) {
            Some(domain) => domain.is_bypass(),
            None => device.bypass(),
        };
        let reaches = match domain {
            _ if !state.is_connected() => "blocked",
            _ if is_bypass => "bypass",
            Some(_) => "translated",
            None => "blocked",
        };
        EndpointStatus {
            endpoint: self.label(endpoint).to_owned(),
            kind: self.kind(endpoint).to_owned(),
            device: name,
            state: reaches.to_owned(),
            domain: domain.map(|domain| domain.0),
        }
    }

    fn kind(&self, endpoint: EndpointId) -> &'static str {
        let is_vfio = self.vfio.as_ref().is_some_and(|vfio| vfio.has(endpoint));
        match self.relays.get(&endpoint).map(RelayHandle::protocol) {
            Some(Protocol::VhostUser) => "vhost-user",
            Some(Protocol::VfioUser(_)) => "vfio-user",
            None if is_vfio => VFIO,
            None => "listed",
        }
    }

    fn check_vfio(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        match self.labels.get(&endpoint) {
            None => Err(Refusal::new(Code::UnknownEndpoint, "the daemon was given no such endpoint")),
            Some(label) if self.kind(endpoint) != VFIO => {
                Err(Refusal::new(Code::NotVfio, format!("{label} is no VFIO endpoint")))
            }
            Some(_) => Ok(()),
        }
    }
}
