// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver's side of a split virtqueue, well-behaved or hostile.
//!
//! [`SplitQueue::add`] and [`SplitQueue::wait_used`] are what a good driver does; what a hostile one does
//! is built from [`SplitQueue::write_descriptor`], [`SplitQueue::publish`] and [`SplitQueue::set_avail_index`].
//! Packed virtqueues are not here. To read: virtio 1.4, "Split Virtqueues".

use std::{
    collections::HashMap,
    io,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    poll::PollContext,
};
use zerocopy::{FromBytes, IntoBytes, little_endian::U32};

use super::{Arena, Buffer, Descriptor, GuestMemory, Rings, flags};

/// The driver's side of one split virtqueue.
pub struct SplitQueue {
    memory: GuestMemory,
    rings: Rings,
    size: u16,
    event_idx: EventIdx,
    free: Vec<u16>,
    /// The descriptors of each chain that the device has, by its head.
    chains: HashMap<u16, Vec<u16>>,
    /// The index of the next entry of the available ring.
    next_avail: u16,
    is_held_back: bool,
    /// `next_avail` when the device was last considered for a kick.
    considered: u16,
    /// The index of the next entry of the used ring.
    next_used: u16,
    kick: EventFd,
    call: EventFd,
    called: PollContext<()>,
}

/// Whether `VIRTIO_F_EVENT_IDX` was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventIdx {
    /// Not negotiated: the flags of the rings say who wants to be notified.
    Off,
    /// Negotiated: the event fields say it.
    On,
}

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head of the chain, as the device wrote it.
    pub head: u32,
    /// Bytes written, as the device says.
    pub written: u32,
}

/// Why no used chain came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// The device used no chain in time.
    TimedOut,
    /// The device used a chain and did not call, though it had to.
    NotCalled,
}

impl SplitQueue {
    /// A queue of `size` entries (a power of two, 2 to 32768) with its rings in `arena`.
    ///
    /// # Errors
    /// A host that is out of file descriptors.
    pub fn new(
        memory: &GuestMemory,
        arena: &mut Arena,
        size: u16,
        event_idx: EventIdx,
    ) -> io::Result<SplitQueue> {
        assert!(size.is_power_of_two() && size >= 2, "no size of a split virtqueue: {size}");
        let entries = u64::from(size);
        let rings = Rings {
            descriptors: arena.take(16 * entries, 16),
            avail: arena.take(6 + 2 * entries, 2),
            used: arena.take(6 + 8 * entries, 4),
        };
        let call = EventFd::new(EFD_NONBLOCK)?;
        let called = PollContext::new()?;
        called.add(&call, ())?;
        let mut queue = SplitQueue {
            memory: memory.clone(),
            rings,
            size,
            event_idx,
            free: Vec::new(),
            chains: HashMap::new(),
            next_avail: 0,
            is_held_back: false,
            considered: 0,
            next_used: 0,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call,
            called,
        };
        queue.restart_at(0);
        Ok(queue)
    }

    /// Empties the queue and goes on at the ring index `index`, which the device has to be told as its base.
    /// From 65535 on, indexes wrap around to 0.
    pub fn restart_at(&mut self, index: u16) {
        let entries = usize::from(self.size);
        self.memory.write(self.rings.descriptors, &vec![0; 16 * entries]);
        self.memory.write(self.rings.avail, &vec![0; 6 + 2 * entries]);
        self.memory.write(self.rings.used, &vec![0; 6 + 8 * entries]);
        // The first descriptor is taken first: only so that dumps of the rings read well.
        self.free = (0..self.size).rev().collect();
        self.chains.clear();
        self.next_used = index;
        self.considered = index;
        self.memory.store_u16(self.rings.used + 2, index);
        // As both sides leave them: waiting for the next entry. Zero would be an index far away.
        self.memory.store_u16(self.avail_event(), index);
        self.memory.store_u16(self.used_event(), index);
        self.set_avail_index(index);
        let _ = (self.kick.read(), self.take_calls());
    }

    /// The memory in which the queue lies.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Entries of the queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the parts of the queue lie.
    pub fn rings(&self) -> Rings {
        self.rings
    }

    /// The index of the next entry of the available ring.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The index of the next entry of the used ring: where a device has to begin that uses chains in order.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// What the driver signals to the device.
    pub fn kick_fd(&self) -> &EventFd {
        &self.kick
    }

    /// What the device signals to the driver.
    pub fn call_fd(&self) -> &EventFd {
        &self.call
    }

    /// Lends `buffers` to the device as one chain and returns its head; `None` when too few descriptors are free.
    pub fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let chain = self.take_free(buffers.len())?;
        for (position, (buffer, index)) in buffers.iter().zip(&chain).enumerate() {
            let next = chain.get(position + 1);
            let flags = buffer.flags | if next.is_some() { flags::NEXT } else { 0 };
            let descriptor =
                Descriptor::new(buffer.address, buffer.length, flags, next.copied().unwrap_or(0));
            self.write_descriptor(*index, descriptor);
        }
        Some(self.lend(chain))
    }

    /// Like [`add`](Self::add), with the chain in a table of its own at the GPA `table`: one descriptor is taken.
    pub fn add_indirect(&mut self, table: u64, buffers: &[Buffer]) -> Option<u16> {
        let chain = self.take_free(1)?;
        let last = buffers.len() - 1;
        for (position, buffer) in buffers.iter().enumerate() {
            let (next_flag, next) = if position < last { (flags::NEXT, position + 1) } else { (0, 0) };
            let next = u16::try_from(next).expect("at most 65535 buffers");
            let descriptor = Descriptor::new(buffer.address, buffer.length, buffer.flags | next_flag, next);
            self.memory.write(table + 16 * position as u64, descriptor.as_bytes());
        }
        let length = u32::try_from(16 * buffers.len()).expect("fits");
        self.write_descriptor(chain[0], Descriptor::new(table, length, flags::INDIRECT, 0));
        Some(self.lend(chain))
    }

    /// Overwrites the descriptor `index`, free or not.
    pub fn write_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        assert!(index < self.size, "no descriptor {index}");
        self.memory.write(self.rings.descriptors + 16 * u64::from(index), descriptor.as_bytes());
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.memory.store_u16(self.rings.avail + 4 + 2 * slot, head);
        self.set_avail_index(self.next_avail.wrapping_add(1));
    }

    /// Sets the index of the available ring, whatever it is.
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        if !self.is_held_back {
            self.memory.store_u16(self.rings.avail + 2, index);
        }
    }

    /// From now on the device does not see what is made available.
    pub fn hold_back(&mut self) {
        self.is_held_back = true;
    }

    /// The device sees all of it, at once.
    pub fn let_go(&mut self) {
        self.is_held_back = false;
        self.set_avail_index(self.next_avail);
    }

    /// Sets the flags of the available ring, such as [`flags::NO_INTERRUPT`].
    pub fn set_avail_flags(&mut self, flags: u16) {
        self.memory.store_u16(self.rings.avail, flags);
    }

    /// Kicks the device, whether it wants it or not.
    pub fn kick(&mut self) {
        self.considered = self.next_avail;
        self.kick.write(1).expect("the counter of an eventfd does not overflow");
    }

    /// Kicks the device if it asked to be kicked for what was added since the last kick; says whether it did.
    pub fn kick_if_wanted(&mut self) -> bool {
        // The index must be seen by the device before its wish is read here, or both sides sleep.
        fence(Ordering::SeqCst);
        let wanted = match self.event_idx {
            EventIdx::Off => self.memory.load_u16(self.rings.used) & flags::NO_NOTIFY == 0,
            EventIdx::On => {
                let event = self.memory.load_u16(self.rings.used + 4 + 8 * u64::from(self.size));
                passes(event, self.considered, self.next_avail)
            }
        };
        if wanted {
            self.kick();
        }
        self.considered = self.next_avail;
        wanted
    }

    /// How many chains the device has given back that are not taken yet.
    pub fn used_waiting(&self) -> u16 {
        self.memory.load_u16(self.rings.used + 2).wrapping_sub(self.next_used)
    }

    /// The next chain that the device gave back, if there is one now.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.memory.load_u16(self.rings.used + 2) == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let entry = self.memory.read(self.rings.used + 4 + 8 * slot, 8);
        let [head, written] = <[U32; 2]>::read_from_bytes(&entry).expect("eight bytes").map(U32::get);
        self.next_used = self.next_used.wrapping_add(1);
        let chain = u16::try_from(head).ok().and_then(|head| self.chains.remove(&head));
        self.free.extend(chain.unwrap_or_default().into_iter().rev());
        Some(Used { head, written })
    }

    /// The next chain that the device gives back, waiting for its call for `limit` at most.
    ///
    /// # Errors
    /// No used chain in time, and a used chain without the call that had to follow.
    pub fn wait_used(&mut self, limit: Duration) -> Result<Used, WaitError> {
        let deadline = Instant::now() + limit;
        loop {
            self.want_call();
            if let Some(used) = self.take_used() {
                return Ok(used);
            }
            if !self.wait_call(deadline) {
                return Err(self.after_silence());
            }
        }
    }

    /// How often the device called since this was last asked or a used chain was waited for.
    pub fn take_calls(&mut self) -> u64 {
        self.call.read().unwrap_or(0)
    }

    /// Asks for a call at the next used chain; from then on, a look at the ring cannot miss one.
    fn want_call(&mut self) {
        if self.event_idx == EventIdx::On {
            self.memory.store_u16(self.rings.avail + 4 + 2 * u64::from(self.size), self.next_used);
        }
        fence(Ordering::SeqCst);
    }

    /// Waits for a call until `deadline`; says whether there was one.
    fn wait_call(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        // Whole milliseconds, rounded up: a remainder would be waited for in a busy loop.
        let left = left + Duration::from_micros(999);
        self.called.wait_timeout(left).expect("the call eventfd can be waited for");
        self.take_calls() > 0
    }

    /// What it means that the device did not call since [`want_call`](Self::want_call).
    pub(super) fn after_silence(&mut self) -> WaitError {
        match self.take_used() {
            Some(_) => WaitError::NotCalled,
            None => WaitError::TimedOut,
        }
    }

    /// Where the device says at which available entry it wants a kick.
    fn avail_event(&self) -> u64 {
        self.rings.used + 4 + 8 * u64::from(self.size)
    }

    /// Where the driver says at which used entry it wants a call.
    fn used_event(&self) -> u64 {
        self.rings.avail + 4 + 2 * u64::from(self.size)
    }

    fn take_free(&mut self, count: usize) -> Option<Vec<u16>> {
        assert!(count > 0, "a chain has a descriptor");
        let rest = self.free.len().checked_sub(count)?;
        let mut chain = self.free.split_off(rest);
        chain.reverse();
        Some(chain)
    }

    fn lend(&mut self, chain: Vec<u16>) -> u16 {
        let head = chain[0];
        self.chains.insert(head, chain);
        self.publish(head);
        head
    }
}

/// Whether an index that goes from `old` to `new` passes `event`.
fn passes(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
