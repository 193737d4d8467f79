// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Accesses of a server by message: translated when they come, checked as a whole, then done.
//!
//! An access that is refused in part is refused, and nothing of it is done. Each refusal is reported to the guest.

use rustix::io::Errno;
use viommu_core::{Access, EndpointId, Extent, Fault, FaultReason, Iova, IovaRange};
use vm_memory::VolatileSlice;

use super::conversation::{Conversation, Failure};
use super::message::{DATA_LEN_MAX, DmaAccess, Message};

impl Conversation<'_> {
    /// Reads for the server: the reply.
    pub(super) fn read_memory(&self, message: &Message) -> Result<Message, Failure> {
        let wanted: DmaAccess = message.body().ok_or(Failure::Malformed(message.command))?;
        let count = count_of(&wanted, message)?;
        let Some(slices) = self.reach(&wanted, Access::READ) else {
            return Ok(message.refusal(Errno::FAULT));
        };
        let mut data = vec![0; count];
        let mut rest = &mut data[..];
        for slice in slices {
            let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(now);
            rest = later;
        }
        let mut reply = message.reply(&wanted);
        reply.payload.extend(data);
        Ok(reply)
    }

    /// Writes for the server: the reply.
    pub(super) fn write_memory(&self, message: &Message) -> Result<Message, Failure> {
        let malformed = || Failure::Malformed(message.command);
        let (wanted, mut rest) = message.body_with_data::<DmaAccess>().ok_or_else(malformed)?;
        if count_of(&wanted, message)? != rest.len() {
            return Err(malformed());
        }
        let Some(slices) = self.reach(&wanted, Access::WRITE) else {
            return Ok(message.refusal(Errno::FAULT));
        };
        for slice in slices {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
        Ok(message.reply(&wanted))
    }

    /// The memory that an access leads to, if all of it is allowed and there; otherwise the guest is told.
    fn reach(&self, wanted: &DmaAccess, access: Access) -> Option<Vec<VolatileSlice<'_>>> {
        let mut slices = Vec::new();
        if wanted.count == 0 {
            return Some(slices);
        }
        let endpoint = self.relay.endpoint;
        let Some(range) = IovaRange::from_length(wanted.address, wanted.count) else {
            self.report(endpoint, wanted.address, access);
            return None;
        };
        let mut next = range.start();
        loop {
            let extent = self.relay.iommu.translate(endpoint, Iova(next), access).ok()?;
            let slice = self.slice_of(&extent, next, range.last(), access);
            let Some((slice, last)) = slice else {
                self.report(endpoint, next, access);
                return None;
            };
            slices.push(slice);
            if last == range.last() {
                return Some(slices);
            }
            next = last + 1;
        }
    }

    /// Memory from `iova` on as far as the extent, the region and the access go together, and the last IOVA of it.
    fn slice_of(
        &self,
        extent: &Extent,
        iova: u64,
        last: u64,
        access: Access,
    ) -> Option<(VolatileSlice<'_>, u64)> {
        let gpa = extent.gpa.0.checked_add(iova.checked_sub(extent.range.start())?)?;
        let length = last.min(extent.range.last()).checked_sub(iova)?;
        let gpas = IovaRange::new(gpa, gpa.saturating_add(length))?;
        let (part, _) = self.regions.parts(gpas).next().filter(|(part, _)| part.start() == gpa)?;
        Some((self.regions.slice(part, access)?, iova + part.span()))
    }

    fn report(&self, endpoint: EndpointId, address: u64, access: Access) {
        let reason = FaultReason::Unknown;
        self.relay.iommu.report(Fault { endpoint, address: Iova(address), access, reason });
    }
}

/// How many bytes an access has, if it may have as many.
fn count_of(wanted: &DmaAccess, message: &Message) -> Result<usize, Failure> {
    let count = usize::try_from(wanted.count).ok().filter(|count| *count <= DATA_LEN_MAX);
    count.ok_or(Failure::Malformed(message.command))
}
