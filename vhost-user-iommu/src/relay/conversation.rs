// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One VMM and one back-end, and the messages between them.
//!
//! Four channels meet here: the main connections of the two, and for each the one on which the back-end asks.
//! Nothing ever waits on one of them, so that a back-end that answers late, or asks while it should answer, is
//! served all the same. Replies keep their order: the back-end owes them one by one, and those that the relay gives
//! itself queue up with them.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::message::features::{ACCESS_PLATFORM, LOG_ALL, PROTOCOL_FEATURES, protocol};
use crate::message::{
    BackendRequest, Channel, ChannelError, FrontendRequest, Message, PayloadError, SingleRegion,
    VringAddress, VringFd, VringState, memory_table,
};

use super::Relay;
use super::iotlb::Owed;
use super::memory_table::{BadRegion, MemoryTable};
use super::messages::{self, Answered, Treatment};
use super::orders::Orders;
use super::rings::{Rings, Start};

/// Who left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The VMM.
    Front,
    /// The back-end.
    Back,
}

/// Why a conversation cannot go on.
#[derive(Debug, Error)]
pub enum Failure {
    /// The VMM's connection.
    #[error("the VMM's connection: {0}")]
    Front(ChannelError),
    /// The back-end's.
    #[error("the back-end's connection: {0}")]
    Back(ChannelError),
    /// A message that could hold addresses that are not translated.
    #[error("the VMM sends {0:?}, which cannot be carried past an IOMMU")]
    NotCarried(FrontendRequest),
    /// A message of the wrong form.
    #[error(transparent)]
    Payload(#[from] PayloadError),
    /// A memory region that cannot be.
    #[error(transparent)]
    Region(#[from] BadRegion),
    /// A ring outside of the memory that the VMM gave.
    #[error("the VMM sets the address of ring {0} before the memory that it lies in")]
    RingOutside(u32),
    /// A ring that cannot be.
    #[error("the VMM sets up ring {0}, and no device has so many")]
    NoRing(u32),
    /// A VMM that speaks no protocol features, and so none of those that an IOTLB takes.
    #[error(
        "the VMM starts a ring without the protocol features that an IOTLB takes; use one that negotiates them"
    )]
    NoProtocolFeatures,
    /// A back-end without an IOTLB.
    #[error(
        "the back-end does not offer {0}: it cannot work behind an IOMMU; use one that supports IOTLB messages"
    )]
    NoIotlb(&'static str),
    /// A back-end that answers what nobody asked.
    #[error("the back-end answers {found:?} where {expected:?} was asked")]
    WrongReply {
        /// What was asked, if anything.
        expected: Option<FrontendRequest>,
        /// What it answers.
        found: FrontendRequest,
    },
    /// A back-end that asks and asks, and answers nothing.
    #[error("the back-end owes {0} answers")]
    TooManyOwed(usize),
    /// The system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Io(errno.into())
    }
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Conversation<'a> {
    pub(super) relay: &'a Relay,
    pub(super) front: Channel,
    pub(super) back: Channel,
    /// Where the VMM wants the back-end's requests.
    pub(super) front_requests: Option<Channel>,
    /// Where the back-end sends them.
    pub(super) back_requests: Channel,
    /// The other end of that, until the back-end gets it.
    back_requests_end: Option<OwnedFd>,
    /// What the back-end has to answer, in order.
    pub(super) owed: VecDeque<Owed>,
    pub(super) memory: MemoryTable,
    /// Whether the back-end has been told that its addresses are IOVAs.
    pub(super) is_translating: bool,
    rings: Rings,
}

/// Answers that a back-end may owe at once.
const OWED_MAX: usize = 1024;

impl<'a> Conversation<'a> {
    /// A new conversation over two connected sockets.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new(relay: &'a Relay, front: UnixStream, back: UnixStream) -> Result<Conversation<'a>, Failure> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok(Conversation {
            relay,
            front: Channel::new(front),
            back: Channel::new(back),
            front_requests: None,
            back_requests: Channel::new(ours),
            back_requests_end: Some(theirs.into()),
            owed: VecDeque::new(),
            memory: MemoryTable::default(),
            is_translating: false,
            rings: Rings::default(),
        })
    }

    /// Carries messages until one side leaves.
    ///
    /// # Errors
    /// Why the conversation cannot go on. Either way [`take_leave`](Conversation::take_leave) has to follow.
    pub fn run(&mut self, orders: &Orders) -> Result<End, Failure> {
        loop {
            match self.step(orders) {
                Err(Failure::Front(ChannelError::Disconnected)) => return Ok(End::Front),
                Err(Failure::Back(ChannelError::Disconnected)) => return Ok(End::Back),
                done => done?,
            }
        }
    }

    fn step(&mut self, orders: &Orders) -> Result<(), Failure> {
        self.wait(orders)?;
        self.receive_all()?;
        // After what has come, which may be an acknowledgement that is late already.
        self.obey(orders.take())?;
        self.flush()
    }

    fn wait(&self, orders: &Orders) -> Result<(), Failure> {
        let polled_for = |channel, reading| {
            let writing = if Channel::wants_write(channel) { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(channel.as_fd(), reading | writing)
        };
        let front_reading = if self.is_congested() { PollFlags::empty() } else { PollFlags::IN };
        let mut polled = vec![polled_for(&self.front, front_reading)];
        let others = [Some(&self.back), Some(&self.back_requests), self.front_requests.as_ref()];
        polled.extend(others.into_iter().flatten().map(|channel| polled_for(channel, PollFlags::IN)));
        polled.push(PollFd::from_borrowed_fd(orders.as_fd(), PollFlags::IN));
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let front_ended = polled[0].revents().intersects(PollFlags::HUP | PollFlags::ERR);
        if self.is_congested() && front_ended {
            // What it said last goes nowhere, and nothing else would notice that it is gone.
            return Err(Failure::Front(ChannelError::Disconnected));
        }
        Ok(())
    }

    /// Whether the back-end is behind with reading. The VMM then has to wait: it may send as much as it likes
    /// before it waits for an answer.
    fn is_congested(&self) -> bool {
        self.back.wants_write()
    }

    fn receive_all(&mut self) -> Result<(), Failure> {
        // The back-end comes first: what it says before it leaves is carried, and so is its leaving.
        while let Some(message) = self.back.receive().map_err(Failure::Back)? {
            self.take_from_back(message)?;
            self.flush()?;
        }
        while !self.is_congested()
            && let Some(message) = self.front.receive().map_err(Failure::Front)?
        {
            self.take_from_front(message)?;
            self.flush()?;
        }
        while let Some(message) = self.back_requests.receive().map_err(Failure::Back)? {
            self.take_back_request(message)?;
            self.flush()?;
        }
        while let Some(channel) = &mut self.front_requests
            && let Some(message) = channel.receive().map_err(Failure::Front)?
        {
            // Only answers come from there.
            self.back_requests.queue(message).map_err(Failure::Back)?;
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.back.flush().map_err(Failure::Back)?;
        self.back_requests.flush().map_err(Failure::Back)?;
        self.front.flush().map_err(Failure::Front)?;
        self.front_requests.as_mut().map_or(Ok(()), Channel::flush).map_err(Failure::Front)
    }

    fn take_from_front(&mut self, message: Message) -> Result<(), Failure> {
        let request = FrontendRequest(message.request);
        let row = messages::row_of(request).ok_or(Failure::NotCarried(request))?;
        match row.treatment {
            Treatment::Pass => self.carry(message, row.answered),
            Treatment::Features => {
                let features = message.body::<u64>()? & !LOG_ALL | ACCESS_PLATFORM;
                self.is_translating = true;
                self.carry(with_payload(message, features), row.answered)
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
        self.carry(with_payload(message, features), Answered::OnDemand)?;
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
        self.carry(with_payload(message, ring), Answered::OnDemand)
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

    fn take_from_back(&mut self, message: Message) -> Result<(), Failure> {
        let found = FrontendRequest(message.request);
        let owed = self.owed.pop_front();
        let expected = owed.as_ref().map(Owed::request);
        let Some(owed) = owed.filter(|owed| message.flags.is_reply() && owed.request() == found) else {
            return Err(Failure::WrongReply { expected, found });
        };
        match owed {
            Owed::Front(_) => self.answer_front(message)?,
            owed => self.settle_own(owed, &message)?,
        }
        self.settle()
    }

    /// Carries an answer to the VMM, less what the relay does not let it have.
    fn answer_front(&mut self, message: Message) -> Result<(), Failure> {
        let message = match FrontendRequest(message.request) {
            FrontendRequest::GET_FEATURES => {
                let features = message.body::<u64>()?;
                require(features, ACCESS_PLATFORM, "VIRTIO_F_ACCESS_PLATFORM")?;
                require(features, PROTOCOL_FEATURES, "VHOST_USER_F_PROTOCOL_FEATURES")?;
                with_payload(message, features & !LOG_ALL)
            }
            FrontendRequest::GET_PROTOCOL_FEATURES => {
                let features = message.body::<u64>()?;
                require(features, protocol::REPLY_ACK, "VHOST_USER_PROTOCOL_F_REPLY_ACK")?;
                require(features, protocol::BACKEND_REQ, "VHOST_USER_PROTOCOL_F_BACKEND_REQ")?;
                with_payload(message, features & messages::PROTOCOL_FEATURES)
            }
            FrontendRequest::GET_VRING_BASE => {
                let VringState { index, num } = message.body()?;
                self.rings.stop(index, num);
                message
            }
            _ => message,
        };
        self.front.queue(message).map_err(Failure::Front)
    }

    /// Gives the answers of the relay's own whose turn it is.
    fn settle(&mut self) -> Result<(), Failure> {
        while let Some(Owed::Ready(_)) = self.owed.front() {
            if let Some(Owed::Ready(message)) = self.owed.pop_front() {
                self.front.queue(message).map_err(Failure::Front)?;
            }
        }
        Ok(())
    }

    fn take_back_request(&mut self, message: Message) -> Result<(), Failure> {
        match (BackendRequest(message.request), &mut self.front_requests) {
            (BackendRequest::IOTLB_MSG, _) => self.take_iotlb(&message),
            (BackendRequest::CONFIG_CHANGE_MSG, Some(channel)) => {
                channel.queue(message).map_err(Failure::Front)
            }
            (request, _) => {
                warn!("endpoint {}: the back-end's {request:?} is not carried", self.relay.label);
                self.answer_back(message.flags.needs_reply().then(|| message.reply(&1u64)))
            }
        }
    }

    pub(super) fn answer_back(&mut self, answer: Option<Message>) -> Result<(), Failure> {
        answer.map_or(Ok(()), |answer| self.back_requests.queue(answer)).map_err(Failure::Back)
    }

    pub(super) fn send_back(&mut self, message: Message) -> Result<(), Failure> {
        self.back.queue(message).map_err(Failure::Back)
    }

    pub(super) fn owe(&mut self, owed: Owed) -> Result<(), Failure> {
        if self.owed.len() >= OWED_MAX {
            return Err(Failure::TooManyOwed(OWED_MAX));
        }
        self.owed.push_back(owed);
        Ok(())
    }
}

fn with_payload(message: Message, payload: impl IntoBytes + zerocopy::Immutable) -> Message {
    Message { payload: payload.as_bytes().to_vec(), ..message }
}

fn require(features: u64, needed: u64, name: &'static str) -> Result<(), Failure> {
    if features & needed == needed { Ok(()) } else { Err(Failure::NoIotlb(name)) }
}
