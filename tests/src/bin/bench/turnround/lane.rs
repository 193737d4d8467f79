// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver that costs next to nothing: descriptors that are made once, requests written in place, and a look at the used
//! index instead of an interrupt, as Linux' driver does it.

use std::hint::spin_loop;

use anyhow::Result;
use viommu_tests::driver::{Arena, Descriptor, EventIdx, GuestMemory, SplitQueue};

/// Requests that can be in flight.
pub const SLOTS: u16 = 64;
/// Bytes of the guest's memory.
pub const MEMORY: u64 = 1 << 20;
/// Entries of the ring: two for each request.
pub const ENTRIES: u16 = 2 * SLOTS;

/// Bytes between requests, and from a request to its tail.
const SLOT: u64 = 128;
const TAIL: u64 = 64;
const TAIL_SIZE: u32 = 4;

/// A ring and the requests in it.
pub struct Lane {
    pub memory: GuestMemory,
    pub queue: SplitQueue,
    first: u64,
    /// Chains that have come back.
    done: u16,
}

impl Lane {
    /// A ring whose requests have these lengths, one after another.
    pub fn new(memory: &GuestMemory, arena: &mut Arena, event_idx: EventIdx) -> Result<Lane> {
        let queue = SplitQueue::new(memory, arena, ENTRIES, event_idx)?;
        let first = arena.take(SLOT * u64::from(SLOTS), SLOT);
        Ok(Lane { memory: memory.clone(), queue, first, done: 0 })
    }

    /// Has the chain of `slot` hold a request of `length` bytes.
    pub fn prepare(&mut self, slot: u16, length: usize) {
        const NEXT: u16 = 1;
        const WRITE: u16 = 2;
        let (head, place) = (2 * slot, self.place(slot));
        let request = Descriptor::new(place, length as u32, NEXT, head + 1);
        self.queue.write_descriptor(head, request);
        self.queue.write_descriptor(head + 1, Descriptor::new(place + TAIL, TAIL_SIZE, WRITE, 0));
    }

    /// Makes the request of `slot` available, with these bytes.
    pub fn send(&mut self, slot: u16, request: &[u8]) {
        self.memory.write(self.place(slot), request);
        self.queue.publish(2 * slot);
    }

    /// Kicks if that is wanted, and waits until `count` more chains have come back.
    pub fn finish(&mut self, count: u16) {
        self.queue.kick_if_wanted();
        let used = self.queue.rings().used + 2;
        while self.memory.load_u16(used).wrapping_sub(self.done) < count {
            spin_loop();
        }
        self.done = self.done.wrapping_add(count);
    }

    /// What the device said of the request of `slot`.
    pub fn status(&self, slot: u16) -> u8 {
        self.memory.read(self.place(slot) + TAIL, 1)[0]
    }

    fn place(&self, slot: u16) -> u64 {
        self.first + SLOT * u64::from(slot)
    }
}
