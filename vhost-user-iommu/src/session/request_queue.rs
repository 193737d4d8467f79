// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: each chain becomes a request, each reply a used entry. The chains that are there are looked at in
//! one go, and those that the device may do together are handed to it together.

use std::ops::ControlFlow;

use vhost_user_backend::VringT;
use viommu_core::{Device, Reply};
use virtio_queue::{DescriptorChain, Error};
use vm_memory::GuestMemoryMmap;

use crate::iommu::Incoming;
use crate::sync::lock;

use super::chain::Buffers;
use super::queues::Queues;
use super::ring::Ring;

impl Queues {
    /// Serves requests until there are none, and asks to be kicked for the next. What is to be done `between` requests is
    /// done whenever those are served that were there.
    pub fn serve_requests(&self, ring: &Ring, between: impl Fn()) {
        lock(&self.polling).woken();
        while let Err(error) = self.serve_all_requests(ring, &between) {
            self.tell_broken(ring, "request", &error);
            // The driver may have put the ring right before it could see that it is to kick again. Where even this
            // fails, the ring is out of reach for the driver's wishes, too.
            let may_be_right = ring.enable_notification().unwrap_or(false);
            if !may_be_right || self.serve_next_requests(ring, &ring.memory()).is_err() {
                return;
            }
        }
    }

    fn serve_all_requests(&self, ring: &Ring, between: &impl Fn()) -> Result<(), Error> {
        ring.disable_notification()?;
        loop {
            let memory = ring.memory();
            self.serve_next_requests(ring, &memory)?;
            between();
            let is_there_more = || self.is_over() || ring.has_news(&memory);
            let found = lock(&self.polling).finds(is_there_more) && ring.is_running();
            if self.is_over() || !found && !ring.enable_notification()? {
                return Ok(());
            }
            if !found {
                ring.disable_notification()?;
            }
        }
    }

    fn serve_next_requests(&self, ring: &Ring, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let mut taken = lock(&self.taken);
        // The ring is locked while its next chains are looked at, not while requests are served.
        take(ring, memory, &mut taken)?;
        let mut left = taken.as_slice();
        while !left.is_empty() {
            let count = self.answer(ring, left, memory)?;
            left = left.get(count..).unwrap_or_default();
            // The driver finds in a ring that stops what is left.
            if !left.is_empty() && (self.is_over() || !ring.is_running()) {
                break;
            }
        }
        Ok(())
    }

    /// Answers the first of these and those that are done together with it; how many.
    fn answer(&self, ring: &Ring, taken: &[Taken], memory: &GuestMemoryMmap) -> Result<usize, Error> {
        let (mut left, mut returned) = (taken.iter(), Ok(()));
        let mut give_back = |taken: &Taken, reply: Option<&Reply>| {
            let written = reply.and_then(|reply| taken.write(memory, reply));
            //= virtio#devicenormative:IOMMU/Device operations A9a A9b A12
            // The length is that of the answer: nothing, if there is none.
            let length = written.unwrap_or_else(|| {
                self.broken.log(|| "a request's buffers are malformed or outside of memory".to_owned());
                0
            });
            let added = ring.give_back(taken.head, length, memory);
            returned = std::mem::replace(&mut returned, Ok(())).and(added);
        };
        self.iommu.requests(taken.iter().map_while(Taken::request), |reply| {
            left.next().into_iter().for_each(|taken| give_back(taken, Some(reply)));
        });
        if left.len() == taken.len() {
            // The first makes no sense, and is returned as an unknown request is: unwritten.
            left.next().into_iter().for_each(|taken| give_back(taken, None));
        }
        returned?;
        ring.signal_if_wanted(memory)?;
        Ok(taken.len() - left.len())
    }
}

/// A chain that has been taken out of the ring.
#[derive(Debug)]
pub struct Taken {
    head: u16,
    /// Nothing if it makes no sense.
    buffers: Option<Buffers>,
}

impl Taken {
    fn of(chain: DescriptorChain<&GuestMemoryMmap>, memory: &GuestMemoryMmap) -> Taken {
        Taken { head: chain.head_index(), buffers: Buffers::of(chain, memory).ok() }
    }

    fn request(&self) -> Option<Incoming<'_>> {
        let buffers = self.buffers.as_ref()?;
        Some(Incoming { readable: buffers.readable(), writable: buffers.writable_size() })
    }

    fn write(&self, memory: &GuestMemoryMmap, reply: &Reply) -> Option<u32> {
        self.buffers.as_ref()?.write(memory, &reply.bytes).ok()
    }
}

/// Takes the next requests: no more than are done at a time, whatever the driver adds meanwhile, and none behind one of many
/// pieces.
fn take(ring: &Ring, memory: &GuestMemoryMmap, taken: &mut Vec<Taken>) -> Result<(), Error> {
    taken.clear();
    let all = ring.next_chains(memory, |chain| {
        let next = Taken::of(chain, memory);
        let is_small = next.buffers.as_ref().is_none_or(Buffers::is_small);
        taken.push(next);
        let is_enough = !is_small || taken.len() == Device::UNDER_WAY_MAX;
        if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    // A ring that is broken is so still when these are done.
    if taken.is_empty() { all } else { Ok(()) }
}
