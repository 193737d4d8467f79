// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The request queue: each chain becomes a request, each reply a used entry.

use log::Level;
use vhost_user_backend::VringT;
use virtio_queue::Error;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::iommu::Iommu;
use crate::throttle::Throttle;

use super::chain::Buffers;
use super::ring::Ring;

/// What the request queue needs beside its ring.
#[derive(Debug)]
pub struct RequestQueue {
    broken: Throttle,
}

impl Default for RequestQueue {
    fn default() -> RequestQueue {
        RequestQueue { broken: Throttle::new(Level::Warn) }
    }
}

impl RequestQueue {
    /// Serves requests until there are none, and asks to be kicked for the next. A ring that is broken is left
    /// alone until its next kick.
    pub fn serve(&self, ring: &Ring, memory: &GuestMemoryAtomic<GuestMemoryMmap>, iommu: &Iommu) {
        if let Err(error) = self.serve_all(ring, memory, iommu) {
            self.broken.log(|| format!("the request queue is broken: {error}"));
            // Where even this fails, the ring is out of reach for the driver's wishes, too.
            let _ = ring.enable_notification();
        }
    }

    fn serve_all(
        &self,
        ring: &Ring,
        memory: &GuestMemoryAtomic<GuestMemoryMmap>,
        iommu: &Iommu,
    ) -> Result<(), Error> {
        loop {
            ring.disable_notification()?;
            loop {
                let memory = memory.memory();
                // The ring is locked while its next chain is taken, not while the request is served.
                let chain = ring.next_chain(memory.clone())?;
                let Some(chain) = chain else { break };
                let head = chain.head_index();
                ring.complete(head, self.answer(Buffers::of(chain, &*memory).ok(), &memory, iommu), &memory)?;
            }
            if !ring.enable_notification()? {
                return Ok(());
            }
        }
    }

    /// The used length of a chain. A chain that makes no sense is returned as an unknown request is: unwritten.
    fn answer(&self, buffers: Option<Buffers>, memory: &GuestMemoryMmap, iommu: &Iommu) -> u32 {
        let written = buffers.and_then(|buffers| {
            let reply = iommu.request(&buffers.readable, buffers.writable_size());
            buffers.write(memory, &reply.bytes).ok()
        });
        written.unwrap_or_else(|| {
            self.broken.log(|| "a request's buffers are malformed or outside of memory".to_owned());
            0
        })
    }
}
