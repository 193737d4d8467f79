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

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::message::{Channel, ChannelError, FrontendRequest, Message, PayloadError};

use super::Relay;
use super::iotlb::Owed;
use super::memory_table::{BadRegion, MemoryTable};
use super::rings::Rings;
use crate::orders::Orders;

/// Who left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The VMM.
    Front,
    /// The back-end.
    Back,
    /// The relay itself, which is wanted no more.
    Relay,
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
    pub(super) back_requests_end: Option<OwnedFd>,
    /// What the back-end has to answer, in order.
    pub(super) owed: VecDeque<Owed>,
    pub(super) memory: MemoryTable,
    /// Whether the back-end has been told that its addresses are IOVAs.
    pub(super) is_translating: bool,
    pub(super) rings: Rings,
}

/// What there is to read, or to notice.
#[derive(Clone, Copy, Debug)]
struct Ready {
    orders: bool,
    front: bool,
    back: bool,
    back_requests: bool,
    front_requests: bool,
}

/// Messages that are taken of whoever asks before the others, and orders, are looked at.
const ROUND: usize = 64;

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
        while !orders.is_over() {
            match self.step(orders) {
                Err(Failure::Front(ChannelError::Disconnected)) => return Ok(End::Front),
                Err(Failure::Back(ChannelError::Disconnected)) => return Ok(End::Back),
                done => done?,
            }
        }
        Ok(End::Relay)
    }

    /// Waits until there is something to read or to write, and does all of it.
    ///
    /// # Errors
    /// Why the conversation cannot go on, also when one side has just left.
    pub fn step(&mut self, orders: &Orders) -> Result<(), Failure> {
        let ready = self.wait(orders)?;
        self.receive(ready)?;
        if ready.orders {
            // After what has come, which may be an acknowledgement that is late already.
            self.obey(orders.take())?;
        }
        self.flush()
    }

    fn wait(&self, orders: &Orders) -> Result<Ready, Failure> {
        let polled_for = |channel, reading| {
            let writing = if Channel::wants_write(channel) { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(channel.as_fd(), reading | writing)
        };
        let asking = if self.is_congested() { PollFlags::empty() } else { PollFlags::IN };
        let mut polled = vec![
            PollFd::from_borrowed_fd(orders.as_fd(), PollFlags::IN),
            polled_for(&self.front, asking),
            polled_for(&self.back, PollFlags::IN),
            polled_for(&self.back_requests, asking),
        ];
        polled.extend(self.front_requests.as_ref().map(|channel| polled_for(channel, PollFlags::IN)));
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ended = PollFlags::HUP | PollFlags::ERR;
        let came =
            |place: usize, what| polled.get(place).is_some_and(|polled| polled.revents().intersects(what));
        if self.is_congested() && came(1, ended) {
            // What it said last goes nowhere, and nothing else would notice that it is gone.
            return Err(Failure::Front(ChannelError::Disconnected));
        }
        let readable = |place| came(place, PollFlags::IN | ended);
        Ok(Ready {
            orders: readable(0),
            front: readable(1),
            back: readable(2),
            back_requests: readable(3),
            front_requests: readable(4),
        })
    }

    /// Whether the back-end is behind with reading. Whoever asks has then to wait: a VMM may send as much as it likes
    /// before it waits for an answer, and a back-end may miss as often.
    fn is_congested(&self) -> bool {
        self.back.wants_write()
    }

    fn receive(&mut self, ready: Ready) -> Result<(), Failure> {
        // The back-end comes first: what it says before it leaves is carried, and so is its leaving. It owes only so many
        // answers; nothing else that comes has an end.
        while ready.back
            && let Some(message) = self.back.receive().map_err(Failure::Back)?
        {
            self.take_from_back(message)?;
            self.flush()?;
        }
        for _ in 0..ROUND {
            if !ready.front || self.is_congested() {
                break;
            }
            let Some(message) = self.front.receive().map_err(Failure::Front)? else { break };
            self.take_from_front(message)?;
            self.flush()?;
        }
        for _ in 0..ROUND {
            if !ready.back_requests || self.is_congested() {
                break;
            }
            let Some(message) = self.back_requests.receive().map_err(Failure::Back)? else { break };
            self.take_back_request(message)?;
            self.flush()?;
        }
        for _ in 0..ROUND {
            let Some(channel) = self.front_requests.as_mut().filter(|_| ready.front_requests) else { break };
            let Some(message) = channel.receive().map_err(Failure::Front)? else { break };
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

    /// Gives the answers of the relay's own whose turn it is.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        while let Some(Owed::Ready(_)) = self.owed.front() {
            if let Some(Owed::Ready(message)) = self.owed.pop_front() {
                self.front.queue(message).map_err(Failure::Front)?;
            }
        }
        Ok(())
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
