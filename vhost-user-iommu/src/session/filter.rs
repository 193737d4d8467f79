// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Between the VMM and `vhost-user-backend`: what the crate does not speak.
//!
//! The crate has neither the device status nor anything to tell the VMM by itself, and ends a connection without a word of
//! which message it refused. So the VMM's socket ends here, the crate has one of this process's, and what it does know
//! passes through. One message at a time: each is followed by a question that the crate always answers, so that whatever
//! it answers before is the answer to the message, and its silence the refusal of it.
//!
//! Knows whether the request ring runs, and nothing of what is in it. Read first: "Front-end message types" in QEMU's
//! `docs/interop/vhost-user.rst`.

use std::os::unix::net::UnixStream;

use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use thiserror::Error;

use crate::message::features::protocol;
use crate::message::{
    BackendRequest, Channel, ChannelError, FrontendRequest, Message, PayloadError, VringFd, VringState,
};
use crate::sync::Wake;

use super::backend::{Backend, REQUEST_QUEUE};

/// Why a conversation has ended.
#[derive(Debug, Error)]
pub enum End {
    /// The VMM has left, or what it sends is no message.
    #[error(transparent)]
    Vmm(ChannelError),
    /// The crate refuses this message, and says itself why; it does so to be asked for the next one, too.
    #[error("{0:?} is refused")]
    Refused(FrontendRequest),
    /// The crate ends the conversation without having been sent anything.
    #[error("the session has ended")]
    Over,
    /// A message whose payload is too short or too long.
    #[error("{0:?}: {1}")]
    Payload(FrontendRequest, PayloadError),
    /// A message that has to bring a file descriptor, and brings none or several.
    #[error("{0:?} brings {1} file descriptors instead of one")]
    Descriptors(FrontendRequest, usize),
    /// The system.
    #[error(transparent)]
    Io(#[from] Errno),
}

/// One conversation.
#[derive(Debug)]
pub struct Filter<'a> {
    backend: &'a Backend,
    vmm: Channel,
    crate_side: Channel,
    /// Where the VMM takes what it is told without having asked.
    told: Option<Channel>,
    /// The protocol features that the VMM has accepted.
    accepted: u64,
    /// The virtio device status, as the VMM has set it.
    status: u64,
    /// What the crate is at.
    under_way: Option<UnderWay>,
    /// Whether the request ring has been started since it was last stopped.
    is_started: bool,
}

/// A message of the VMM that the crate has.
#[derive(Debug)]
struct UnderWay {
    request: FrontendRequest,
    /// What the VMM is answered when the crate is done, beside what the crate says itself.
    answer: Option<Message>,
}

/// Features whose messages are answered here.
const OWN_FEATURES: u64 = protocol::STATUS | protocol::BACKEND_REQ;
/// What the crate is always asked as well.
const PROBE: FrontendRequest = FrontendRequest::GET_FEATURES;
/// `VIRTIO_CONFIG_S_NEEDS_RESET`, in the device status.
const NEEDS_RESET: u64 = 0x40;

impl<'a> Filter<'a> {
    /// Between a VMM and the crate that asks `backend`.
    pub fn new(backend: &'a Backend, vmm: UnixStream, crate_side: UnixStream) -> Filter<'a> {
        Filter {
            backend,
            vmm: Channel::new(vmm),
            crate_side: Channel::new(crate_side),
            told: None,
            accepted: 0,
            status: 0,
            under_way: None,
            is_started: false,
        }
    }

    /// Carries messages until one side leaves or is not understood.
    pub fn run(mut self) -> End {
        loop {
            if let Err(end) = self.step() {
                // What the crate has answered before it ended.
                let _ = self.vmm.flush();
                return end;
            }
        }
    }

    fn step(&mut self) -> Result<(), End> {
        let [vmm, crate_side, told, changed] = self.wait()?;
        while crate_side && let Some(message) = self.crate_side.receive().map_err(|_| self.refused())? {
            self.take_answer(message)?;
        }
        while vmm
            && self.under_way.is_none()
            && let Some(message) = self.vmm.receive().map_err(End::Vmm)?
        {
            self.take(message)?;
        }
        if changed {
            self.backend.changed().clear();
            self.tell_change();
        }
        if told {
            self.take_acknowledgements();
        }
        self.crate_side.flush().map_err(|_| self.refused())?;
        self.vmm.flush().map_err(End::Vmm)
    }

    /// Waits until there is something to read or to write; what there is to read.
    fn wait(&self) -> Result<[bool; 4], End> {
        let changed = self.backend.changed();
        let mut polled = [
            // The next message waits until this one is answered.
            watched(Some(&self.vmm), self.under_way.is_none(), changed),
            watched(Some(&self.crate_side), true, changed),
            watched(self.told.as_ref(), true, changed),
            PollFd::new(changed, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ok(polled.map(|polled| polled.revents().intersects(readable)))
    }

    /// Takes a message of the VMM.
    fn take(&mut self, message: Message) -> Result<(), End> {
        let request = FrontendRequest(message.request);
        match request {
            FrontendRequest::SET_PROTOCOL_FEATURES => {
                self.accepted = number(&message)?;
                // A reset by way of the status is one of the crate's, too.
                let features = self.accepted & !OWN_FEATURES | protocol::RESET_DEVICE;
                return self.pass(message.with_payload(&features), None);
            }
            FrontendRequest::SET_BACKEND_REQ_FD if self.has(protocol::BACKEND_REQ) => {
                return self.keep_channel(message);
            }
            FrontendRequest::GET_STATUS if self.has(protocol::STATUS) => {
                let needs_reset = if self.backend.needs_reset() { NEEDS_RESET } else { 0 };
                return self.answer(message.reply(&(self.status | needs_reset)));
            }
            FrontendRequest::SET_STATUS if self.has(protocol::STATUS) => return self.set_status(&message),
            FrontendRequest::SET_VRING_KICK => {
                let ring = message.body::<VringFd>().map(VringFd::index);
                self.is_started |= ring == Ok(REQUEST_QUEUE.into());
            }
            FrontendRequest::GET_VRING_BASE => {
                let ring = message.body::<VringState>().map(|ring| ring.index);
                self.is_started &= ring != Ok(REQUEST_QUEUE.into());
            }
            _ => {}
        }
        self.pass(message, None)
    }

    /// Has the crate do this, and the VMM answered when it is done.
    fn pass(&mut self, message: Message, answer: Option<Message>) -> Result<(), End> {
        let request = FrontendRequest(message.request);
        self.under_way = Some(UnderWay { request, answer });
        let probe = (request != PROBE).then(|| Message::new(PROBE, &()));
        let mut messages = [Some(message), probe].into_iter().flatten();
        messages.try_for_each(|message| self.crate_side.queue(message)).map_err(End::Vmm)
    }

    fn take_answer(&mut self, mut message: Message) -> Result<(), End> {
        if message.request == PROBE.0 {
            let done = self.under_way.take().ok_or(End::Over)?;
            return match done.answer {
                _ if done.request == PROBE => self.answer(message),
                Some(answer) => self.answer(answer),
                None => Ok(()),
            };
        }
        if message.request == FrontendRequest::GET_PROTOCOL_FEATURES.0 {
            let features = number(&message)? | OWN_FEATURES;
            message = message.with_payload(&features);
        }
        self.answer(message)
    }

    fn answer(&mut self, message: Message) -> Result<(), End> {
        self.vmm.queue(message).map_err(End::Vmm)
    }

    fn acknowledgement(&self, message: &Message) -> Option<Message> {
        let is_wanted = message.flags.needs_reply() && self.has(protocol::REPLY_ACK);
        is_wanted.then(|| message.reply(&0u64))
    }

    fn keep_channel(&mut self, mut message: Message) -> Result<(), End> {
        let count = message.fds.len();
        let Some(fd) = message.fds.pop().filter(|_| count == 1) else {
            return Err(End::Descriptors(FrontendRequest(message.request), count));
        };
        self.told = Some(Channel::new(UnixStream::from(fd)));
        self.acknowledgement(&message).map_or(Ok(()), |acknowledgement| self.answer(acknowledgement))
    }

    /// A status of 0 is a reset of the device. But a VMM sends it as well when it pauses the guest, with the rings stopped:
    /// then it shows when they start again which of the two it was.
    fn set_status(&mut self, message: &Message) -> Result<(), End> {
        self.status = number(message)? & 0xff & !NEEDS_RESET;
        let acknowledgement = self.acknowledgement(message);
        if self.status == 0 && self.is_started {
            self.is_started = false;
            return self.pass(Message::new(FrontendRequest::RESET_DEVICE, &()), acknowledgement);
        }
        acknowledgement.map_or(Ok(()), |acknowledgement| self.answer(acknowledgement))
    }

    /// Has the VMM look at the configuration space and the status again.
    fn tell_change(&mut self) {
        let change = Message::new(BackendRequest::CONFIG_CHANGE_MSG, &());
        if self.has(protocol::CONFIG)
            && let Some(told) = &mut self.told
            && let Err(error) = told.queue(change).and_then(|()| told.flush())
        {
            warn!("the VMM cannot be told of a change: {error}");
            self.told = None;
        }
    }

    /// Nothing that is sent there has to be acknowledged, and nothing that is said there is of use.
    fn take_acknowledgements(&mut self) {
        let mut receive = || self.told.as_mut().map_or(Ok(None), Channel::receive);
        while let Ok(Some(_)) = receive() {}
        if receive().is_err() || self.told.as_mut().is_some_and(|told| told.flush().is_err()) {
            self.told = None;
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.accepted & feature != 0
    }

    fn refused(&self) -> End {
        self.under_way.as_ref().map_or(End::Over, |under_way| End::Refused(under_way.request))
    }
}

/// What is waited for at a channel, in whose place somebody else's descriptor stands while there is nothing to wait for:
/// that the other side has left is no news then.
fn watched<'a>(channel: Option<&'a Channel>, is_read: bool, else_idle: &'a Wake) -> PollFd<'a> {
    let reading = if is_read { PollFlags::IN } else { PollFlags::empty() };
    match channel {
        Some(channel) if channel.wants_write() => PollFd::new(channel, reading | PollFlags::OUT),
        Some(channel) if is_read => PollFd::new(channel, reading),
        _ => PollFd::new(else_idle, PollFlags::empty()),
    }
}

fn number(message: &Message) -> Result<u64, End> {
    message.body().map_err(|error| End::Payload(FrontendRequest(message.request), error))
}
