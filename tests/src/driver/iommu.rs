// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio-iommu driver: requests with their replies, and fault events.
//!
//! One request at a time, or as many as fit in the queue; what the device answers is returned and never
//! judged. To read: virtio 1.4, "IOMMU device".

use std::{collections::HashMap, time::Duration};

use viommu_core::{
    DomainId, EndpointId, Gpa, IovaRange,
    wire::{Fault, Head, ReqAttach, ReqDetach, ReqMap, ReqProbe, ReqUnmap, RequestType, Tail},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::tables::TABLE_EVENT_SIZE;
use super::{Arena, Buffer, GuestMemory, SplitQueue, Used, WaitError};

/// A virtio-iommu driver with its two queues.
pub struct IommuDriver {
    memory: GuestMemory,
    requests: SplitQueue,
    events: SplitQueue,
    /// The buffers of requests that no request uses.
    slots: Vec<u64>,
    /// The requests that the device has, by the heads of their chains.
    pending: HashMap<u32, Pending>,
    /// The event buffers that the device does not have.
    event_buffers: Vec<u64>,
    /// Those that it has, by the heads of their chains.
    posted: HashMap<u32, u64>,
    probe_size: usize,
    limit: Duration,
}

/// What the device answered to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes written, as the device says.
    pub written: u32,
    /// The whole writable part of the request. Where the device wrote nothing, it holds [`UNTOUCHED`].
    pub bytes: Vec<u8>,
}

/// What the device put into the event queue.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Bytes written, as the device says.
    pub written: u32,
    /// The event. Where the device wrote nothing, it holds [`UNTOUCHED`].
    pub fault: Fault,
}

/// Why there is no reply or event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverError {
    /// No chain came back as it had to.
    Wait(WaitError),
    /// The device gave back a chain that it did not have.
    UnknownChain(Used),
}

/// A request that the device has.
struct Pending {
    slot: u64,
    reply_length: usize,
}

/// What buffers for the device hold before it writes.
pub const UNTOUCHED: u8 = 0xa5;

impl Reply {
    /// The status byte, as it lies at the beginning of the last four bytes.
    pub fn status(&self) -> u8 {
        let tail = self.bytes.len().checked_sub(size_of::<Tail>()).expect("the reply has a tail");
        self.bytes[tail]
    }

    /// The properties of a PROBE: everything before the tail.
    pub fn properties(&self) -> &[u8] {
        let tail = self.bytes.len().checked_sub(size_of::<Tail>()).expect("the reply has a tail");
        &self.bytes[..tail]
    }
}

impl IommuDriver {
    /// A driver on these queues, with its buffers in `arena`. `probe_size` is the field of the device's
    /// configuration space; `limit` is how long a reply or an event may take.
    pub fn new(
        arena: &mut Arena,
        requests: SplitQueue,
        events: SplitQueue,
        probe_size: u32,
        limit: Duration,
    ) -> IommuDriver {
        let slots = (0..SLOTS_MAX.min(requests.size() / 2)).map(|_| arena.take(2 * PART_MAX, 16)).collect();
        let event_buffers =
            (0..SLOTS_MAX.min(events.size())).map(|_| arena.take(TABLE_EVENT_SIZE.into(), 8)).collect();
        IommuDriver {
            memory: requests.memory().clone(),
            requests,
            events,
            slots,
            pending: HashMap::new(),
            event_buffers,
            posted: HashMap::new(),
            probe_size: usize::try_from(probe_size).expect("fits"),
            limit,
        }
    }

    /// ATTACH, with `flags` such as [`ATTACH_F_BYPASS`](viommu_core::wire::ATTACH_F_BYPASS).
    ///
    /// # Errors
    /// No reply, as for all requests.
    pub fn attach(
        &mut self,
        domain: DomainId,
        endpoint: EndpointId,
        flags: u32,
    ) -> Result<Reply, DriverError> {
        self.request_of(&ReqAttach {
            head: head(RequestType::ATTACH),
            domain: domain.0.into(),
            endpoint: endpoint.0.into(),
            flags: flags.into(),
            reserved: [0; 4],
        })
    }

    /// DETACH.
    ///
    /// # Errors
    /// No reply.
    pub fn detach(&mut self, domain: DomainId, endpoint: EndpointId) -> Result<Reply, DriverError> {
        self.request_of(&ReqDetach {
            head: head(RequestType::DETACH),
            domain: domain.0.into(),
            endpoint: endpoint.0.into(),
            reserved: [0; 8],
        })
    }

    /// MAP of `range` to `target` and the GPAs after it, with `flags` such as
    /// [`MAP_F_READ`](viommu_core::wire::MAP_F_READ).
    ///
    /// # Errors
    /// No reply.
    pub fn map(
        &mut self,
        domain: DomainId,
        range: IovaRange,
        target: Gpa,
        flags: u32,
    ) -> Result<Reply, DriverError> {
        self.request_of(&ReqMap {
            head: head(RequestType::MAP),
            domain: domain.0.into(),
            virt_start: range.start().into(),
            virt_last: range.last().into(),
            phys_start: target.0.into(),
            flags: flags.into(),
        })
    }

    /// UNMAP of every mapping in `range`.
    ///
    /// # Errors
    /// No reply.
    pub fn unmap(&mut self, domain: DomainId, range: IovaRange) -> Result<Reply, DriverError> {
        self.request_of(&ReqUnmap {
            head: head(RequestType::UNMAP),
            domain: domain.0.into(),
            virt_start: range.start().into(),
            virt_last: range.last().into(),
            reserved: [0; 4],
        })
    }

    /// PROBE, with room for `probe_size` bytes of properties.
    ///
    /// # Errors
    /// No reply.
    pub fn probe(&mut self, endpoint: EndpointId) -> Result<Reply, DriverError> {
        let request =
            ReqProbe { head: head(RequestType::PROBE), endpoint: endpoint.0.into(), reserved: [0; 64] };
        self.request(request.as_bytes(), self.probe_size + size_of::<Tail>())
    }

    /// Any request: `readable` is sent, and there are `reply_length` bytes of room for the answer.
    ///
    /// # Errors
    /// No reply.
    pub fn request(&mut self, readable: &[u8], reply_length: usize) -> Result<Reply, DriverError> {
        let head = self.submit(readable, reply_length).expect("there is room for one request");
        self.requests.kick_if_wanted();
        let (answered, reply) = self.complete()?;
        assert_eq!(answered, head, "other requests are outstanding: use complete");
        Ok(reply)
    }

    /// Puts a request into the queue, without a kick, and returns the number under which
    /// [`complete`](Self::complete) reports it; `None` when there is no room.
    pub fn submit(&mut self, readable: &[u8], reply_length: usize) -> Option<u32> {
        assert!(
            readable.len().max(reply_length) as u64 <= PART_MAX,
            "such a chain is made with the queue itself"
        );
        let slot = *self.slots.last()?;
        let reply = slot + PART_MAX;
        self.memory.write(slot, readable);
        self.memory.write(reply, &vec![UNTOUCHED; reply_length]);
        let parts =
            [Buffer::readable(slot, readable.len() as u32), Buffer::writable(reply, reply_length as u32)];
        let parts: Vec<_> = parts.into_iter().filter(|part| part.length > 0).collect();
        let head = self.requests.add(&parts)?.into();
        self.slots.pop();
        self.pending.insert(head, Pending { slot, reply_length });
        Some(head)
    }

    /// The next reply, with the number of its request.
    ///
    /// # Errors
    /// No reply.
    pub fn complete(&mut self) -> Result<(u32, Reply), DriverError> {
        let used = self.requests.wait_used(self.limit).map_err(DriverError::Wait)?;
        let pending = self.pending.remove(&used.head).ok_or(DriverError::UnknownChain(used))?;
        self.slots.push(pending.slot);
        let reply = Reply {
            written: used.written,
            bytes: self.memory.read(pending.slot + PART_MAX, pending.reply_length),
        };
        Ok((used.head, reply))
    }

    /// Gives `count` event buffers to the device; fewer when there are no more.
    pub fn post_event_buffers(&mut self, count: usize) {
        self.post_buffers(count, EVENT_SIZE);
    }

    pub(super) fn post_buffers(&mut self, count: usize, room: u32) {
        for _ in 0..count {
            let Some(buffer) = self.event_buffers.last().copied() else {
                break;
            };
            self.memory.write(buffer, &[UNTOUCHED; TABLE_EVENT_SIZE as usize]);
            let Some(head) = self.events.add(&[Buffer::writable(buffer, room)]) else {
                break;
            };
            self.event_buffers.pop();
            self.posted.insert(head.into(), buffer);
        }
        self.events.kick_if_wanted();
    }

    /// The next event. Its buffer can be posted again.
    ///
    /// # Errors
    /// No event.
    pub fn wait_event(&mut self) -> Result<Event, DriverError> {
        let (written, bytes) = self.wait_event_bytes(EVENT_SIZE)?;
        Ok(Event { written, fault: Fault::read_from_bytes(&bytes).expect("the size of an event") })
    }

    pub(super) fn wait_event_bytes(&mut self, length: u32) -> Result<(u32, Vec<u8>), DriverError> {
        let used = self.events.wait_used(self.limit).map_err(DriverError::Wait)?;
        let buffer = self.posted.remove(&used.head).ok_or(DriverError::UnknownChain(used))?;
        self.event_buffers.push(buffer);
        Ok((used.written, self.memory.read(buffer, length as usize)))
    }

    /// Takes everything back and begins anew, as a driver does after it has reset the device.
    pub fn restart(&mut self) {
        self.slots.extend(self.pending.drain().map(|(_, pending)| pending.slot));
        self.event_buffers.extend(self.posted.drain().map(|(_, buffer)| buffer));
        self.requests.restart_at(0);
        self.events.restart_at(0);
    }

    /// The request queue, for everything that a good driver does not do.
    pub fn requests(&mut self) -> &mut SplitQueue {
        &mut self.requests
    }

    /// The event queue.
    pub fn events(&mut self) -> &mut SplitQueue {
        &mut self.events
    }

    /// A request whose reply is a status.
    ///
    /// # Errors
    /// No reply.
    pub fn request_of<T: IntoBytes + Immutable>(&mut self, request: &T) -> Result<Reply, DriverError> {
        self.request(request.as_bytes(), size_of::<Tail>())
    }
}

fn head(kind: RequestType) -> Head {
    Head { kind, reserved: [0; 3] }
}

const EVENT_SIZE: u32 = size_of::<Fault>() as u32;
/// Requests or event buffers at most.
const SLOTS_MAX: u16 = 64;
/// Bytes at most in the readable or the writable part of a request.
const PART_MAX: u64 = 2048;
