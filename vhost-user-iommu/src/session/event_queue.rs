// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event queue: faults that wait go out as long as the driver has given buffers.

use log::Level;
use vhost_user_backend::VringT;
use virtio_queue::Error;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};

use crate::iommu::Iommu;
use crate::throttle::Throttle;

use super::chain::Buffers;
use super::ring::Ring;

/// What the event queue needs beside its ring.
#[derive(Debug)]
pub struct EventQueue {
    broken: Throttle,
}

impl Default for EventQueue {
    fn default() -> EventQueue {
        EventQueue { broken: Throttle::new(Level::Warn) }
    }
}

impl EventQueue {
    /// Writes events until there are no more, or no more buffers: then it asks to be kicked for the next.
    pub fn serve(&self, ring: &Ring, memory: &GuestMemoryAtomic<GuestMemoryMmap>, iommu: &Iommu) {
        if let Err(error) = self.serve_all(ring, memory, iommu) {
            self.broken.log(|| format!("the event queue is broken: {error}"));
        }
    }

    fn serve_all(
        &self,
        ring: &Ring,
        memory: &GuestMemoryAtomic<GuestMemoryMmap>,
        iommu: &Iommu,
    ) -> Result<(), Error> {
        while let Some(event) = iommu.next_event() {
            let memory = memory.memory();
            let chain = ring.next_chain(memory.clone())?;
            let Some(chain) = chain else {
                match ring.enable_notification()? {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let head = chain.head_index();
            //= virtio#devicenormative:IOMMU/Fault reporting
            // A buffer that is too small goes back empty; a report is never spread over two.
            let written = Buffers::of(chain, &*memory).and_then(|buffers| buffers.write(&*memory, &event));
            if written.is_ok() {
                iommu.event_sent();
            } else {
                self.broken.log(|| "an event buffer is too small or outside of memory".to_owned());
            }
            ring.complete(head, written.unwrap_or(0), &memory)?;
        }
        Ok(())
    }
}
