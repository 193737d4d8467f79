// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event queue: faults that wait go out as long as the driver has given buffers.

use vhost_user_backend::VringT;
use virtio_queue::Error;

use super::chain::{BadChain, Buffers};
use super::queues::Queues;
use super::ring::Ring;

impl Queues {
    /// Writes events until there are no more, or no more buffers: then it asks to be kicked for the next.
    pub fn serve_events(&self, ring: &Ring) {
        if let Err(error) = self.serve_all_events(ring) {
            self.tell_broken(ring, "event", &error);
        }
    }

    fn serve_all_events(&self, ring: &Ring) -> Result<(), Error> {
        while let Some(event) = self.iommu.next_event().filter(|_| !self.is_over()) {
            let memory = ring.memory();
            let Some(chain) = ring.next_chain(&memory)? else {
                match ring.enable_notification()? {
                    true => continue,
                    false => return Ok(()),
                }
            };
            let head = chain.head_index();
            //= virtio#devicenormative:IOMMU/Fault reporting A56a A56b A57
            // A buffer that is too small goes back empty; a report is never spread over two.
            let written = Buffers::of(chain, &memory).and_then(|buffers| {
                let bytes = event.for_buffer(buffers.writable_size()).ok_or(BadChain)?;
                buffers.write(&memory, bytes)
            });
            if written.is_ok() {
                self.iommu.event_sent(&event);
            } else {
                self.iommu.event_unfit(&event);
                self.broken.log(|| "an event buffer is too small or outside of memory".to_owned());
            }
            ring.complete(head, written.unwrap_or(0), &memory)?;
        }
        Ok(())
    }
}
