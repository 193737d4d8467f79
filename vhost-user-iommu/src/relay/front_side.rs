// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM says: carried to the back-end, with the relay's own part added.
//!
//! Which message is treated how is in the table of `messages`.

use std::os::unix::net::UnixStream;

use crate::message::features::{ACCESS_PLATFORM, LOG_ALL, protocol};
use crate::message::{
    Channel, FrontendRequest, Message, SingleRegion, VringAddress, VringFd, VringState, memory_table,
};

use super::conversation::{Conversation, Failure};
use super::iotlb::Owed;
use super::memory_table::MemoryTable;
use super::messages::{self, Answered, Treatment};
use super::rings::Start;

impl Conversation<'_> {
    /// Takes a message of the VMM.
    pub(super) fn take_from_front(&mut self, message: Message) -> Result<(), Failure> {
        let request = FrontendRequest(message.request);
        let row = messages::row_of(request).ok_or(Failure::NotCarried(request))?;
        match row.treatment {
            Treatment::Pass => self.carry(message, row.answered),
            Treatment::Features => {
                let features = message.body::<u64>()? & !LOG_ALL | ACCESS_PLATFORM;
                self.is_translating = true;
                self.carry(message.with_payload(&features), row.answered)
            }
            Treatment::ProtocolFeatures => self.set_protocol_features(message),
            Treatment::BackendChannel => self.keep_channel(message),
            Treatment::MemoryTable => {
                self.memory = MemoryTable::new(memory_table(&message)?)?;
                self.carry_memory(message)
            }
            Treatment::AddRegion => {
                self.memory.add(message.body::<SingleRegion>()?.region)?;
                self.carry_memory(message)
            }
            Treatment::RemoveRegion => {
                self.memory.remove(&message.body::<SingleRegion>()?.region);
                self.carry_memory(message)
            }
            Treatment::RingBase => {
                let VringState { index, num } = message.body()?;
                let start = self.rings.set_base(index, num).map_err(|_| Failure::NoRing(index))?;
                self.note(start)?;
                self.carry(message, row.answered)
            }
            Treatment::RingAddress => self.set_ring_address(message),
            Treatment::RingStart => {
                let index = message.body::<VringFd>()?.index();
                let start = self.rings.set_up(index).map_err(|_| Failure::NoRing(index))?;
                self.note(start)?;
                self.carry(message, row.answered)
            }
            Treatment::Reset => {
                self.rings.reset();
                self.carry(message, row.answered)
            }
        }
    }

    /// Sends a message of the VMM on to the back-end.
    fn carry(&mut self, message: Message, answered: Answered) -> Result<(), Failure> {
        if answered == Answered::Always || message.flags.needs_reply() {
            self.owe(Owed::Front(FrontendRequest(message.request)))?;
        }
        self.send_back(message)
    }

    /// What the back-end knows of the old memory, it forgets first.
    fn carry_memory(&mut self, message: Message) -> Result<(), Failure> {
        self.forget_all()?;
        self.carry(message, Answered::OnDemand)
    }

    /// The back-end needs two features whatever the VMM wants; with them it gets the channel for its misses.
    fn set_protocol_features(&mut self, message: Message) -> Result<(), Failure> {
        let accepted = message.body::<u64>()? & messages::PROTOCOL_FEATURES;
        let features = accepted | protocol::REPLY_ACK | protocol::BACKEND_REQ;
        self.carry(message.with_payload(&features), Answered::OnDemand)?;
        if let Some(end) = self.back_requests_end.take() {
            self.owe(Owed::Channel)?;
            let message = Message::new(FrontendRequest::SET_BACKEND_REQ_FD, &()).with_need_reply();
            self.send_back(message.with_fds(vec![end]))?;
        }
        Ok(())
    }

    /// The VMM's channel for the back-end's requests stays here; the back-end has one of ours.
    fn keep_channel(&mut self, mut message: Message) -> Result<(), Failure> {
        self.front_requests = message.fds.pop().map(|fd| Channel::new(UnixStream::from(fd)));
        if message.flags.needs_reply() {
            let refused = u64::from(self.front_requests.is_none());
            self.owe(Owed::Ready(message.reply(&refused)))?;
        }
        self.settle()
    }

    /// The VMM took the ring's IOVAs for GPAs and gives its own addresses of those: this undoes it.
    fn set_ring_address(&mut self, message: Message) -> Result<(), Failure> {
        const LOG: u32 = 1;
        let ring: VringAddress = message.body()?;
        let iova = |user| self.memory.gpa_of(user).map(|gpa| gpa.0).ok_or(Failure::RingOutside(ring.index));
        let [descriptors, available, used] =
            [iova(ring.descriptors)?, iova(ring.available)?, iova(ring.used)?];
        let start = self.rings.set_place(ring.index, [descriptors, available, used]);
        self.note(start.map_err(|_| Failure::NoRing(ring.index))?)?;
        let ring = VringAddress { flags: ring.flags & !LOG, descriptors, used, available, log: 0, ..ring };
        self.carry(message.with_payload(&ring), Answered::OnDemand)
    }

    /// For a device that comes to life: whatever its addresses meant before, they now mean what the IOMMU says.
    fn note(&mut self, start: Start) -> Result<(), Failure> {
        if !self.has_channel() {
            return Err(Failure::NoProtocolFeatures);
        }
        if start == Start::Fresh {
            self.forget_all()?;
            self.relay.iommu.restarted(self.relay.endpoint);
        }
        Ok(())
    }

    /// Whether the back-end can report misses.
    pub(super) fn has_channel(&self) -> bool {
        self.back_requests_end.is_none()
    }
}
