// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM and the driver of its guest: requests through the ring, and events of 48 bytes out of the other.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use viommu_core::wire::TableEvent;
use viommu_tests::driver::{
    Arena, Buffer, DriverError, EventIdx, GuestMemory, IommuDriver, SplitQueue, WaitError,
};
use viommu_tests::front_end::{Connection, FrontEnd, Wanted};
use viommu_tests::model::request::Wire;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use zerocopy::FromBytes;

/// Where the guest's memory begins: the mock's aperture does.
pub const START: u64 = 16 << 20;
/// How much there is.
pub const LENGTH: u64 = 4 << 20;
pub const PAGE: u64 = 4096;
/// The end of the pages that hold tables; rings and buffers follow.
const TABLES_END: u64 = START + LENGTH / 2;

/// Longest wait for what has to come; the host is emulated, and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing comes that must not.
const SILENCE: Duration = Duration::from_millis(50);

/// Bytes of an event.
pub const EVENT: u32 = size_of::<TableEvent>() as u32;
const UNTOUCHED: u8 = 0xa5;

pub struct Guest {
    pub front_end: FrontEnd,
    pub driver: IommuDriver,
    memory: GuestMemory,
    free: Vec<u64>,
    /// The event buffers that the device has, by the heads of their chains.
    lent: HashMap<u32, u64>,
}

/// What came out of the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Bytes, as the device says.
    pub written: u32,
    pub reason: u8,
    pub flags: u32,
    pub endpoint: u32,
    pub pasid: u32,
    pub address: u64,
    pub group: u32,
}

impl Guest {
    /// Everything that the device offers, but the ring's event fields.
    pub fn connect(stream: UnixStream, memory: &GuestMemory) -> Guest {
        let mut front_end = FrontEnd::of(Connection::of(stream)).expect("a connection");
        let features = !(1 << VIRTIO_RING_F_EVENT_IDX);
        front_end.negotiate(Wanted { features, ..Wanted::default() }).expect("it is negotiated");
        front_end.set_memory(memory).expect("it is taken");
        let mut arena = Arena::new(TABLES_END, START + LENGTH - TABLES_END);
        let mut queue = || SplitQueue::new(memory, &mut arena, 128, EventIdx::Off).expect("a queue");
        let (requests, events) = (queue(), queue());
        front_end.start_ring(0, &requests).expect("it starts");
        front_end.start_ring(1, &events).expect("it starts");
        let probe_size = front_end.config().expect("a configuration").probe_size.get();
        let free = (0..events.size()).map(|_| arena.take(EVENT.into(), 8)).collect();
        let driver = IommuDriver::new(&mut arena, requests, events, probe_size, PATIENCE);
        Guest { front_end, driver, memory: memory.clone(), free, lent: HashMap::new() }
    }

    /// A request, and its status.
    #[track_caller]
    pub fn send(&mut self, request: impl Wire) -> u8 {
        let reply = self.driver.request(&request.readable(), request.writable()).expect("a reply");
        assert_eq!(reply.written as usize, request.writable());
        reply.status()
    }

    /// Puts a request into the ring; nobody is told yet.
    pub fn submit(&mut self, request: impl Wire) -> u32 {
        self.driver.submit(&request.readable(), request.writable()).expect("there is room")
    }

    /// Tells the device of requests.
    pub fn kick(&mut self) {
        self.driver.requests().kick();
    }

    /// The next reply: the number that [`submit`](Guest::submit) gave, and the status.
    #[track_caller]
    pub fn complete(&mut self) -> (u32, u8) {
        let (number, reply) = self.driver.complete().expect("a reply");
        (number, reply.status())
    }

    /// Gives the device so many event buffers of this many bytes.
    pub fn lend(&mut self, count: usize, bytes: u32) {
        for _ in 0..count {
            let buffer = self.free.pop().expect("a buffer");
            self.memory.write(buffer, &[UNTOUCHED; EVENT as usize]);
            let head = self.driver.events().add(&[Buffer::writable(buffer, bytes)]).expect("there is room");
            self.lent.insert(head.into(), buffer);
        }
        self.driver.events().kick_if_wanted();
    }

    /// The next event.
    #[track_caller]
    pub fn event(&mut self) -> Told {
        self.event_within(PATIENCE).expect("an event")
    }

    /// There is no event.
    #[track_caller]
    pub fn no_event(&mut self) {
        let told = self.event_within(SILENCE);
        assert_eq!(told, Err(DriverError::Wait(WaitError::TimedOut)), "an event that nobody expects");
    }

    fn event_within(&mut self, limit: Duration) -> Result<Told, DriverError> {
        let used = self.driver.events().wait_used(limit).map_err(DriverError::Wait)?;
        let buffer = self.lent.remove(&used.head).ok_or(DriverError::UnknownChain(used))?;
        self.free.push(buffer);
        let bytes = self.memory.read(buffer, EVENT as usize);
        let (written, rest) = bytes.split_at(used.written as usize);
        assert!(rest.iter().all(|byte| *byte == UNTOUCHED), "more was written than the device says");
        let mut whole = [0; EVENT as usize];
        whole[..written.len()].copy_from_slice(written);
        let event = TableEvent::read_from_bytes(&whole).expect("the size of an event");
        assert_eq!((event.reserved, event.reserved1, event.reserved2), ([0; 3], [0; 4], [0; 16]));
        Ok(Told {
            written: used.written,
            reason: event.reason,
            flags: event.flags.get(),
            endpoint: event.endpoint.get(),
            pasid: event.pasid.get(),
            address: event.address.get(),
            group: event.group_id.get(),
        })
    }

    /// Takes everything back and begins anew, as a driver does after it has reset the device.
    pub fn restart(&mut self) {
        self.driver.restart();
        self.free.extend(self.lent.drain().map(|(_, buffer)| buffer));
        let features = self.front_end.features();
        self.front_end
            .step(|vhost| vhost::VhostBackend::set_features(vhost, features))
            .expect("they are accepted");
        self.start_rings();
    }

    /// Stops both rings, as a VMM does whose guest is paused or resets the device.
    pub fn stop_rings(&mut self) {
        for index in 0..2 {
            self.front_end.stop_ring(index).expect("it stops");
        }
    }

    /// Starts both where they are.
    pub fn start_rings(&mut self) {
        self.front_end.start_ring(0, self.driver.requests()).expect("it starts");
        self.front_end.start_ring(1, self.driver.events()).expect("it starts");
    }
}
