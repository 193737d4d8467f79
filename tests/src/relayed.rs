// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest whose devices are relayed, as far as its IOMMU is concerned: the VMM's connection and the driver.
//!
//! What is expected has to come about, or it panics. What a VMM does with the devices themselves is the tests' matter.

use std::path::Path;
use std::time::Duration;

use vhost::VhostBackend;
use viommu_core::wire::{MAP_F_READ, MAP_F_WRITE};
use viommu_core::{DomainId, EndpointId, Gpa, IovaRange, Status};

use crate::driver::{Arena, EventIdx, GuestMemory, IommuDriver, Reply, SplitQueue};
use crate::front_end::{FrontEnd, Wanted};

/// Longest wait for anything that has to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The guest and its VMM.
pub struct Guest {
    /// The VMM's.
    pub front: FrontEnd,
    /// The guest's.
    pub driver: IommuDriver,
}

impl Guest {
    /// A VMM powers on at `socket`, and the guest's driver finds the IOMMU. Its rings lie in the second MiB of `memory`.
    pub fn boot(socket: &Path, memory: &GuestMemory) -> Guest {
        let mut front = FrontEnd::connect(socket, PATIENCE).expect("connects");
        front.negotiate(Wanted::default()).expect("negotiates");
        front.set_memory(memory).expect("memory");
        let mut arena = Arena::new(1 << 20, 1 << 20);
        let mut queue = || SplitQueue::new(memory, &mut arena, 64, EventIdx::On).expect("a queue");
        let (requests, events) = (queue(), queue());
        let probe_size = front.config().expect("configuration").probe_size.get();
        let driver = IommuDriver::new(&mut arena, requests, events, probe_size, PATIENCE);
        let mut guest = Guest { front, driver };
        guest.start_rings();
        guest.driver.post_event_buffers(32);
        guest
    }

    /// The VMM starts both rings where the driver stands.
    pub fn start_rings(&mut self) {
        self.front.start_ring(0, self.driver.requests()).expect("request queue");
        self.front.start_ring(1, self.driver.events()).expect("event queue");
    }

    /// The VMM stops both rings.
    pub fn stop_rings(&mut self) {
        for ring in 0..2 {
            self.front.stop_ring(ring).expect("stops");
        }
    }

    /// The driver starts anew, as it does after it has reset the device; of that the VMM tells by the features.
    pub fn restart(&mut self) {
        let features = self.front.features();
        self.front.step(|vhost| vhost.set_features(features)).expect("features");
        self.driver.restart();
        self.start_rings();
        self.driver.post_event_buffers(32);
    }

    /// Attaches the device `number`.
    pub fn attach(&mut self, number: usize, domain: DomainId) {
        succeeds(self.driver.attach(domain, endpoint(number), 0).expect("a reply"));
    }

    /// Detaches the device `number`.
    pub fn detach(&mut self, number: usize, domain: DomainId) {
        succeeds(self.driver.detach(domain, endpoint(number)).expect("a reply"));
    }

    /// Maps `length` bytes for reading and writing.
    pub fn map(&mut self, domain: DomainId, iova: u64, length: u64, gpa: u64) {
        succeeds(self.try_map(domain, iova, length, gpa, MAP_F_READ | MAP_F_WRITE));
    }

    /// Maps `length` bytes for `access`, or does not.
    pub fn try_map(&mut self, domain: DomainId, iova: u64, length: u64, gpa: u64, access: u32) -> Reply {
        self.driver.map(domain, range(iova, length), Gpa(gpa), access).expect("a reply")
    }

    /// Unmaps `length` bytes.
    pub fn unmap(&mut self, domain: DomainId, iova: u64, length: u64) {
        succeeds(self.try_unmap(domain, iova, length));
    }

    /// Unmaps `length` bytes, or does not.
    pub fn try_unmap(&mut self, domain: DomainId, iova: u64, length: u64) -> Reply {
        self.driver.unmap(domain, range(iova, length)).expect("a reply")
    }
}

/// The id of the endpoint that the device `number` is, the first of which is 00:02.0: its bus and function in one number,
/// as in VIOT.
pub fn endpoint(number: usize) -> EndpointId {
    EndpointId((number as u32 + 2) << 3)
}

/// `length` bytes from `start` on.
pub fn range(start: u64, length: u64) -> IovaRange {
    IovaRange::from_length(start, length).expect("a range")
}

/// Checks that a request succeeded.
pub fn succeeds(reply: Reply) {
    has_status(reply, Status::Ok);
}

/// Checks how a request ended.
pub fn has_status(reply: Reply, status: Status) {
    assert_eq!(reply.status(), status as u8, "{reply:x?}");
}
