// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Relays: each sits between the VMM and the process that serves another device, and is that device's IOMMU. This is what
//! all of them have in common, and the ones for vhost-user; [`vfio_user`] has the others.
//!
//! Everything the two say to each other passes through, except what has to do with addresses. Towards the VMM a
//! relay offers what makes it present the device to the guest as one behind an IOMMU. Towards a
//! vhost-user back-end it is a front-end with an IOTLB: it answers misses, sends invalidations, and turns ring addresses back into IOVAs.
//!
//! A vhost-user relay never looks at guest memory: addresses are keys into the memory table, nothing more.

mod back_side;
pub mod conversation;
mod front_side;
mod iotlb;
pub(crate) mod leave;
mod memory_table;
mod messages;
mod rings;

use std::fmt::Display;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use log::{error, info};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use viommu_core::{EndpointId, IovaRange};

use crate::config::Protocol;
use crate::iommu::Iommu;
use crate::listen::connect;
use crate::orders::Orders;
use crate::throttle::Throttle;
use crate::vfio_user;

use conversation::{Conversation, End};

/// One relay.
#[derive(Debug)]
pub struct Relay {
    /// The endpoint whose accesses are translated.
    pub endpoint: EndpointId,
    /// How the user calls it.
    pub label: String,
    /// What both sides speak.
    pub protocol: Protocol,
    /// Where the device's own back-end, or server, listens.
    pub backend: PathBuf,
    /// What translates.
    pub iommu: Arc<Iommu>,
    /// The page sizes of mappings.
    pub page_size_mask: u64,
    /// The IOVAs of mappings.
    pub aperture: IovaRange,
    /// How long an invalidation may go unacknowledged.
    pub unmap_timeout: Duration,
    /// For what a back-end can repeat.
    pub complaints: Throttle,
}

impl Relay {
    /// Serves the VMMs that connect to `listener`, one at a time, until the orders are over.
    pub fn serve(self, listener: &UnixListener, orders: &Orders) {
        while !orders.is_over() {
            match self.wait_for_front(listener, orders) {
                Ok(Some(front)) => self.converse(front, orders),
                Ok(None) => {}
                Err(error) => {
                    error!("endpoint {}: cannot accept a connection: {error}", self.label);
                    std::thread::sleep(RETRY);
                }
            }
        }
    }

    /// Until a VMM is here nothing is cached anywhere, so orders are done as they come. None comes any more when they are
    /// over.
    fn wait_for_front(&self, listener: &UnixListener, orders: &Orders) -> io::Result<Option<UnixStream>> {
        while !orders.is_over() {
            let mut polled = [
                PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(orders.as_fd(), PollFlags::IN),
            ];
            match poll(&mut polled, None) {
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let [is_connecting, has_orders] = polled.map(|polled| !polled.revents().is_empty());
            if has_orders {
                orders.take().for_each(drop);
            }
            if is_connecting {
                return listener.accept().map(|(front, _)| Some(front));
            }
        }
        Ok(None)
    }

    fn converse(&self, front: UnixStream, orders: &Orders) {
        let label = &self.label;
        let back = match connect(&self.backend) {
            Ok(back) => back,
            Err(error) => {
                let path = self.backend.display();
                error!("endpoint {label}: no back-end at {path}: {error}; start it before the VMM");
                return;
            }
        };
        info!("endpoint {label}: VMM connected");
        self.iommu.relay_begins(self.endpoint);
        match self.protocol {
            Protocol::VhostUser => match Conversation::new(self, front, back) {
                Ok(mut conversation) => {
                    self.tell_end(conversation.run(orders));
                    conversation.take_leave(orders);
                }
                Err(error) => error!("endpoint {label}: {error}"),
            },
            Protocol::VfioUser(dma) => {
                let mut conversation = vfio_user::Conversation::new(self, dma, front, back);
                self.tell_end(conversation.run(orders));
                conversation.take_leave(orders);
            }
        }
    }

    fn tell_end(&self, end: Result<End, impl Display>) {
        let label = &self.label;
        match end {
            Ok(End::Front) => info!("endpoint {label}: VMM disconnected"),
            Ok(End::Relay) => info!("endpoint {label}: the VMM loses the device, as asked for"),
            Ok(End::Back) => {
                error!("endpoint {label}: the back-end disconnected; the VMM loses the device");
                self.iommu.relay_failed(self.endpoint, "the back-end disconnected".to_owned());
            }
            Err(error) => {
                error!("endpoint {label}: {error}; the connection ends");
                self.iommu.relay_failed(self.endpoint, error.to_string());
            }
        }
    }
}

const RETRY: Duration = Duration::from_secs(1);
