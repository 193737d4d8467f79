// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: each chain becomes a request, each reply a used entry.

use vhost_user_backend::VringT;
use virtio_queue::Error;
use vm_memory::GuestMemoryMmap;

use crate::sync::lock;

use super::chain::Buffers;
use super::queues::Queues;
use super::ring::Ring;

impl Queues {
    /// Serves requests until there are none, and asks to be kicked for the next. What is to be done `between` requests is
    /// done whenever there are none for now.
    pub fn serve_requests(&self, ring: &Ring, between: impl Fn()) {
        lock(&self.polling).woken();
        while let Err(error) = self.serve_all_requests(ring, &between) {
            self.tell_broken(ring, "request", &error);
            // The driver may have put the ring right before it could see that it is to kick again. Where even this
            // fails, the ring is out of reach for the driver's wishes, too.
            let may_be_right = ring.enable_notification().unwrap_or(false);
            if !may_be_right || self.serve_available_requests(ring).is_err() {
                return;
            }
        }
    }

    fn serve_all_requests(&self, ring: &Ring, between: &impl Fn()) -> Result<(), Error> {
        loop {
            ring.disable_notification()?;
            self.serve_available_requests(ring)?;
            between();
            let found = lock(&self.polling).finds(|| self.is_over() || ring.has_news()) && ring.is_running();
            let is_more = found || ring.enable_notification()?;
            if !is_more || self.is_over() {
                return Ok(());
            }
        }
    }

    fn serve_available_requests(&self, ring: &Ring) -> Result<(), Error> {
        while !self.is_over() {
            let memory = ring.memory();
            // The ring is locked while its next chain is taken, not while the request is served.
            let Some(chain) = ring.next_chain(memory.clone())? else { break };
            let head = chain.head_index();
            let used_length = self.answer(Buffers::of(chain, &*memory).ok(), &memory);
            ring.complete(head, used_length, &memory)?;
        }
        Ok(())
    }

    /// The used length of a chain. A chain that makes no sense is returned as an unknown request is: unwritten.
    fn answer(&self, buffers: Option<Buffers>, memory: &GuestMemoryMmap) -> u32 {
        let written = buffers.and_then(|buffers| {
            let reply = self.iommu.request(&buffers.readable, buffers.writable_size());
            buffers.write(memory, &reply.bytes).ok()
        });
        //= virtio#devicenormative:IOMMU/Device operations A9a A9b A12
        // The length is that of the answer: nothing, if there is none.
        written.unwrap_or_else(|| {
            self.broken.log(|| "a request's buffers are malformed or outside of memory".to_owned());
            0
        })
    }
}
