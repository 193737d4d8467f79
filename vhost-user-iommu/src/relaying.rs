// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The relays of this process: made at the start, made and ended while it runs, as those who run the machine ask.
//!
//! Each has a thread and a socket that the VMM connects to. An endpoint's relay ends when its back-end has left, and no
//! earlier: until then the back-end may use memory, and the endpoint gets no other.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use log::Level;
use viommu_core::{EndpointId, IovaRange};

use crate::config::{Config, EndpointConfig, Relayed};
use crate::control::Controlled;
use crate::control::protocol::{Code, EndpointStatus, Refusal};
use crate::iommu::Iommu;
use crate::listen::{SocketFile, listen};
use crate::orders::{Orders, orders};
use crate::relay::Relay;
use crate::sync::lock;
use crate::throttle::Throttle;
use crate::usage_error::UsageError;

/// All of them.
#[derive(Debug)]
pub struct Relaying {
    iommu: Arc<Iommu>,
    /// As it was given.
    config: Config,
    /// What the device has of the aperture that was given.
    aperture: IovaRange,
    running: Mutex<BTreeMap<EndpointId, Running>>,
}

/// One of them.
#[derive(Debug)]
struct Running {
    /// What it was made for.
    endpoint: EndpointConfig,
    /// Disconnected when its thread has ended.
    ended: Receiver<Infallible>,
    /// There as long as VMMs are served.
    file: Option<SocketFile>,
}

impl Relaying {
    /// None yet, for a daemon that was given this `config` and serves this `aperture`.
    pub fn new(iommu: Arc<Iommu>, config: Config, aperture: IovaRange) -> Relaying {
        Relaying { iommu, config, aperture, running: Mutex::default() }
    }

    /// Makes the relay of an endpoint, if it is to have one.
    ///
    /// # Errors
    /// The VMM's socket cannot be made, or the system has no file descriptor or thread left.
    pub fn start(&self, endpoint: &EndpointConfig) -> Result<(), UsageError> {
        let Some(relayed) = endpoint.kind.relayed() else { return Ok(()) };
        let (listener, file) = listen("endpoint", relayed.front)?;
        let (handle, orders) = orders(relayed.protocol).map_err(UsageError::short_of)?;
        let (ending, ended) = channel();
        // A VMM may connect as soon as there is a thread.
        self.iommu.add_relay(endpoint.id, handle);
        if let Err(error) = self.run(endpoint, relayed, listener, orders, ending) {
            self.iommu.remove_relay(endpoint.id);
            return Err(UsageError::short_of(error));
        }
        let running = Running { endpoint: endpoint.clone(), ended, file: Some(file) };
        lock(&self.running).insert(endpoint.id, running);
        Ok(())
    }

    /// Removes the sockets of all of them; the process is about to end.
    pub fn remove_sockets(&self) {
        lock(&self.running).clear();
    }

    fn run(
        &self,
        endpoint: &EndpointConfig,
        Relayed { protocol, back, .. }: Relayed<'_>,
        listener: UnixListener,
        orders: Orders,
        ending: Sender<Infallible>,
    ) -> io::Result<()> {
        let relay = Relay {
            endpoint: endpoint.id,
            label: endpoint.label.clone(),
            protocol,
            backend: back.to_owned(),
            iommu: self.iommu.clone(),
            page_size_mask: self.config.page_size_mask,
            aperture: self.aperture,
            unmap_timeout: self.config.unmap_timeout,
            complaints: Throttle::new(Level::Warn),
        };
        let serve = move || {
            relay.serve(&listener, &orders);
            drop(ending);
        };
        thread::Builder::new().name("relay".to_owned()).spawn(serve).map(drop)
    }

    fn add_relay(&self, endpoint: &EndpointConfig) -> Result<(), Refusal> {
        self.iommu.check_vacant(endpoint.id)?;
        let others: Vec<EndpointConfig> =
            lock(&self.running).values().map(|running| running.endpoint.clone()).collect();
        let suits = self.config.check_addition(&others, endpoint);
        suits
            .and_then(|()| self.start(endpoint))
            .map_err(|error| Refusal::new(Code::NotSuited, error.of_no_option().to_string()))
    }

    /// What the back-end had cached or mapped is gone when this returns.
    fn remove_relay(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        let found = lock(&self.running).remove(&endpoint);
        let (Some(relay), Some(mut found)) = (self.iommu.relay(endpoint), found) else {
            return Err(Refusal::new(Code::NoDevice, "the endpoint has no device"));
        };
        relay.end();
        // No VMM is to wait there for nothing.
        found.file = None;
        // It says so itself when the back-end takes its time.
        if found.ended.recv_timeout(self.config.unmap_timeout) == Err(RecvTimeoutError::Timeout) {
            lock(&self.running).insert(endpoint, found);
            let message =
                "the back-end does not leave: it may still use memory of the guest; end it, and ask again";
            return Err(Refusal::new(Code::BackEnd, message));
        }
        self.iommu.remove_relay(endpoint);
        Ok(())
    }
}

impl Controlled for Relaying {
    fn endpoints(&self) -> Vec<EndpointStatus> {
        self.iommu.statuses()
    }

    fn block(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.iommu.block_endpoint(endpoint)
    }

    fn unblock(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        self.iommu.unblock_endpoint(endpoint)
    }

    fn remove(&self, endpoint: EndpointId) -> Result<(), Refusal> {
        match self.iommu.relay(endpoint) {
            Some(_) => self.remove_relay(endpoint),
            None => self.iommu.remove_device(endpoint),
        }
    }

    fn add(&self, endpoint: &EndpointConfig, file: Option<OwnedFd>) -> Result<(), Refusal> {
        if endpoint.kind.relayed().is_some() {
            return self.add_relay(endpoint);
        }
        self.iommu.check_vfio(endpoint.id)?;
        let missing = "the VFIO device file has to come as a file descriptor with the line";
        let cdev = file.ok_or_else(|| Refusal::new(Code::NoDescriptor, missing))?;
        self.iommu.add_device(endpoint.id, cdev)
    }
}
