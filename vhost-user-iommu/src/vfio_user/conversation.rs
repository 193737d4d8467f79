// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One VMM and one server, and the messages between them.
//!
//! Nothing ever waits on one of the two, so that a server that asks while it should answer is served all the same.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use thiserror::Error;
use viommu_core::IovaRange;

use crate::config::Dma;
use crate::message::{Channel, ChannelError};
use crate::orders::{Order, Orders, Work};
use crate::relay::Relay;
use crate::relay::conversation::End;
use crate::relay::leave::leave;

use super::message::{Command, Message};
use super::owed::{Errand, Owed};
use super::regions::Regions;
use super::space::{Space, Step};
use super::telling::Queue;
use super::version::{BadVersion, MAPS_MAX};

/// Why a conversation cannot go on.
#[derive(Debug, Error)]
pub enum Failure {
    /// The VMM's connection.
    #[error("the VMM's connection: {0}")]
    Front(ChannelError),
    /// The server's.
    #[error("the server's connection: {0}")]
    Server(ChannelError),
    /// Something else where a version is needed.
    #[error("the VMM sends {0:?} where the version is to be negotiated")]
    NoVersion(Command),
    /// A version that cannot be.
    #[error("the {0} sends {1}")]
    BadVersion(&'static str, BadVersion),
    /// A VMM that answers what nobody asked.
    #[error("the VMM answers {0:?}, which it was not asked")]
    FrontReplies(Command),
    /// A server that does the same.
    #[error("the server answers {command:?} with the id {id}, which it was not asked")]
    WrongReply {
        /// What it answers.
        command: Command,
        /// By which id.
        id: u16,
    },
    /// A server that asks for what it cannot have.
    #[error("the server sends {0:?} of the wrong form")]
    Malformed(Command),
    /// A server that keeps memory.
    #[error("the server does not let go of {0}: it may still use memory of the guest")]
    NotUnmapped(IovaRange),
    /// A server that does not say.
    #[error("the server does not answer in time what it is told of mappings")]
    Unresponsive,
    /// The system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Io(errno.into())
    }
}

/// How far the two have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The VMM has said nothing.
    New,
    /// The server has been asked for a version.
    Negotiating,
    /// Both have agreed on one.
    Running,
}

/// The state of one conversation.
#[derive(Debug)]
pub struct Conversation<'a> {
    pub(super) relay: &'a Relay,
    pub(super) dma: Dma,
    pub(super) front: Channel<Message>,
    pub(super) server: Channel<Message>,
    pub(super) phase: Phase,
    pub(super) owed: Owed,
    /// What the VMM gave.
    pub(super) regions: Regions,
    /// What the server is told, where it maps memory itself.
    pub(super) space: Space,
    pub(super) queue: Queue,
    /// Whether the device may access memory, as far as the VMM has said.
    pub(super) is_master: bool,
    /// Up to where the server may ask, where it does: the first address beyond, if there is one.
    pub(super) window_start: Option<u64>,
}

/// Messages that are taken from one side before the others are looked at.
const ROUND: usize = 64;

impl<'a> Conversation<'a> {
    /// A new conversation over two connected sockets.
    pub fn new(relay: &'a Relay, dma: Dma, front: UnixStream, server: UnixStream) -> Conversation<'a> {
        Conversation {
            relay,
            dma,
            front: Channel::new(front),
            server: Channel::new(server),
            phase: Phase::New,
            owed: Owed::default(),
            regions: Regions::default(),
            space: Space::new(MAPS_MAX as usize),
            queue: Queue::default(),
            is_master: false,
            window_start: Some(0),
        }
    }

    /// Carries messages until one side leaves.
    ///
    /// # Errors
    /// Why the conversation cannot go on. Either way [`take_leave`](Conversation::take_leave) has to follow.
    pub fn run(&mut self, orders: &Orders) -> Result<End, Failure> {
        while !orders.is_over() {
            match self.step(orders) {
                Err(Failure::Front(ChannelError::Disconnected)) => return Ok(End::Front),
                Err(Failure::Server(ChannelError::Disconnected)) => return Ok(End::Back),
                done => done?,
            }
        }
        Ok(End::Relay)
    }

    /// Waits until there is something to do, and does all of it.
    ///
    /// # Errors
    /// Why the conversation cannot go on, also when one side has just left.
    pub fn step(&mut self, orders: &Orders) -> Result<(), Failure> {
        let [has_orders, is_front, is_server] = self.wait(orders)?;
        for _ in 0..ROUND {
            // The server comes first: what it says before it leaves is carried, and so is its leaving.
            if !is_server || !self.hears_server() {
                break;
            }
            let Some(message) = self.server.receive().map_err(Failure::Server)? else { break };
            self.take_from_server(message)?;
            self.flush()?;
        }
        for _ in 0..ROUND {
            if !is_front || !self.hears_front() {
                break;
            }
            let Some(message) = self.front.receive().map_err(Failure::Front)? else { break };
            self.take_from_front(message)?;
            self.flush()?;
        }
        if has_orders {
            self.obey(orders.take())?;
        }
        self.send_steps()?;
        self.flush()?;
        // After what has come, which may be the answer.
        if self.time_left().is_none_or(|left| !left.is_zero()) {
            return Ok(());
        }
        // However soon it leaves now.
        let errands =
            self.owed.steps().map(|(.., errand)| errand).chain(self.queue.steps().map(|(_, errand)| errand));
        errands.for_each(|errand| errand.fail(Errno::TIMEDOUT));
        Err(Failure::Unresponsive)
    }

    /// Waits; whether there are orders, something of the VMM, something of the server.
    fn wait(&self, orders: &Orders) -> Result<[bool; 3], Failure> {
        let polled_for = |channel, is_heard| {
            let reading = if is_heard { PollFlags::IN } else { PollFlags::empty() };
            let writing = if Channel::wants_write(channel) { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(channel.as_fd(), reading | writing)
        };
        let mut polled = [
            PollFd::from_borrowed_fd(orders.as_fd(), PollFlags::IN),
            polled_for(&self.front, self.hears_front()),
            polled_for(&self.server, self.hears_server()),
        ];
        let timeout = self.time_left().and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ended = PollFlags::HUP | PollFlags::ERR;
        let [_, front, server] = polled.each_ref().map(|polled| polled.revents().intersects(ended));
        // What one said last goes nowhere while it is not heard, and nothing else would notice that it is gone.
        if front && !self.hears_front() {
            return Err(Failure::Front(ChannelError::Disconnected));
        }
        if server && !self.hears_server() {
            return Err(Failure::Server(ChannelError::Disconnected));
        }
        Ok(polled.map(|polled| polled.revents().intersects(PollFlags::IN | ended)))
    }

    /// Whether the VMM is read: a server that is behind is not sent more and more, and it has a version first.
    fn hears_front(&self) -> bool {
        let has_room = self.server.has_room() && self.front.has_room() && !self.owed.is_full();
        has_room && self.phase != Phase::Negotiating
    }

    /// Whether the server is read: one that does not take its answers, or whose answers the VMM does not take, waits.
    fn hears_server(&self) -> bool {
        self.server.has_room() && self.front.has_room()
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.server.flush().map_err(Failure::Server)?;
        self.front.flush().map_err(Failure::Front)
    }

    pub(super) fn complain(&self, line: impl FnOnce() -> String) {
        self.relay.complaints.log(|| format!("endpoint {}: {}", self.relay.label, line()));
    }

    /// Leaves both. A server that has memory is waited for, as long as for an acknowledgement; what it may still use is
    /// not unmapped until it is gone.
    pub fn take_leave(self, orders: &Orders) {
        let Conversation { relay, front, server, owed, mut space, queue, .. } = self;
        drop(front);
        let sent = owed.steps().map(|(step, _, errand)| (Some(step), errand));
        let (steps, errands): (Vec<Option<&Step>>, Vec<&Errand>) = sent.chain(queue.steps()).unzip();
        steps.into_iter().flatten().for_each(|step| space.keep(step));
        if !space.reaches(IovaRange::ALL) {
            return;
        }
        let is_awaited = |order: &Order| match order.work {
            Work::Forget(range) => space.reaches(range),
            Work::Enter(_) => space.reaches(IovaRange::ALL),
            // It is told of nothing any more.
            Work::Learn(_) | Work::Refresh => false,
        };
        let overdue = || errands.iter().for_each(|errand| errand.fail(Errno::TIMEDOUT));
        leave(relay, server.as_fd(), orders, is_awaited, overdue);
    }
}
