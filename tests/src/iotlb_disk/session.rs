// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection: what the front-end says, in the order in which it says it.
//!
//! A message is served to its end before the next one, the way back-ends do: so acknowledgements keep the order of
//! their requests. Whatever touches the ring or its memory stops the ring first and starts it again afterwards.
//!
//! Read first: "Front-end message types" in `vhost-user.rst`.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{Context, bail, ensure};
use rustix::event::PollFlags;
use vhost_user_iommu::message::features::{self, protocol};
use vhost_user_iommu::message::{
    Access, Channel, ChannelError, Config, FDS_MAX, FrontendRequest, IotlbKind, IotlbMessage, Message,
    SingleRegion, VringAddress, VringFd, VringState, memory_table,
};
use zerocopy::{Immutable, IntoBytes};

use super::backend_channel::Replies;
use super::memory::{Addressing, MemoryTable};
use super::options::OnInvalidate;
use super::record::{Event, Negotiated};
use super::ring::{RingState, Worker};
use super::tlb::Tlb;
use super::wait::{Stop, wait};
use super::{Shared, blk, lock};

/// One connection with a front-end.
pub(super) struct Session {
    shared: Arc<Shared>,
    channel: Channel,
    negotiated: Negotiated,
    memory: MemoryTable,
    tlb: Arc<Tlb>,
    ring: RingState,
    worker: Option<Worker>,
    /// Cancels the misses that no ring's thread waits for.
    ended: Arc<Stop>,
    misses: Vec<JoinHandle<()>>,
}

/// What a message is answered with.
enum Answer {
    /// This reply, whether or not one was asked for.
    Reply(Message),
    /// An acknowledgement, if one was asked for.
    Done,
    /// Nothing, even if an acknowledgement was asked for.
    Silence,
}

impl Answer {
    fn reply<P: IntoBytes + Immutable>(message: &Message, payload: P) -> anyhow::Result<Self> {
        Ok(Self::Reply(message.reply(&payload)))
    }
}

impl Session {
    pub(super) fn new(socket: UnixStream, shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self {
            tlb: Arc::new(Tlb::new(shared.clone())),
            shared,
            channel: Channel::new(socket),
            negotiated: Negotiated::default(),
            memory: MemoryTable::default(),
            ring: RingState::default(),
            worker: None,
            ended: Arc::new(Stop::new()?),
            misses: Vec::new(),
        })
    }

    /// Serves messages until the front-end is gone, `stop` is signalled, or something is wrong with them.
    pub(super) fn run(&mut self, stop: &Stop) -> anyhow::Result<()> {
        while !stop.is_signalled() {
            let writing = if self.channel.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            wait(&[(self.channel.as_fd(), PollFlags::IN | writing), (stop.as_fd(), PollFlags::IN)], None)?;
            self.channel.flush()?;
            loop {
                match self.channel.receive() {
                    Ok(Some(message)) => self.serve(message, stop)?,
                    Ok(None) => break,
                    Err(ChannelError::Disconnected) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Serves a message and sends its answer. A message that fails and asks for an acknowledgement gets one that says
    /// so; any other that fails ends the connection.
    fn serve(&mut self, mut message: Message, stop: &Stop) -> anyhow::Result<()> {
        let wants_ack = message.flags.needs_reply() && self.has(protocol::REPLY_ACK);
        let request = FrontendRequest(message.request);
        let answer = match self.dispatch(request, &mut message, stop) {
            Ok(Answer::Reply(reply)) => Some(reply),
            Ok(Answer::Done) => wants_ack.then(|| message.reply(&0u64)),
            Ok(Answer::Silence) => None,
            Err(_) if wants_ack => Some(message.reply(&1u64)),
            Err(error) => return Err(error.context(format!("{request:?}"))),
        };
        if let Some(answer) = answer {
            self.channel.queue(answer)?;
            self.channel.flush()?;
        }
        self.miss_afterwards(request, &message);
        Ok(())
    }

    fn dispatch(
        &mut self,
        request: FrontendRequest,
        message: &mut Message,
        stop: &Stop,
    ) -> anyhow::Result<Answer> {
        match request {
            FrontendRequest::GET_FEATURES => Answer::reply(message, self.shared.options.features),
            FrontendRequest::GET_PROTOCOL_FEATURES => {
                Answer::reply(message, self.shared.options.protocol_features)
            }
            FrontendRequest::GET_QUEUE_NUM => Answer::reply(message, 1u64),
            FrontendRequest::GET_MAX_MEM_SLOTS => Answer::reply(message, FDS_MAX as u64),
            FrontendRequest::GET_CONFIG => self.config(message),
            FrontendRequest::SET_OWNER | FrontendRequest::RESET_OWNER | FrontendRequest::SET_CONFIG => {
                Ok(Answer::Done)
            }
            FrontendRequest::SET_PROTOCOL_FEATURES => self.set_protocol_features(message.body()?),
            FrontendRequest::SET_BACKEND_REQ_FD => self.set_backend_channel(message),
            FrontendRequest::IOTLB_MSG => self.iotlb(message.body()?, stop),
            FrontendRequest::SET_VRING_CALL | FrontendRequest::SET_VRING_ERR => {
                self.set_notifier(request, message)
            }
            FrontendRequest::GET_VRING_BASE => self.stop_for_good(message),
            _ => {
                self.stop_ring()?;
                let changed = self.change(request, message);
                self.start_ring()?;
                changed.map(|()| Answer::Done)
            }
        }
    }

    /// Does what must not be done while the ring is being served.
    fn change(&mut self, request: FrontendRequest, message: &mut Message) -> anyhow::Result<()> {
        match request {
            FrontendRequest::SET_FEATURES => self.set_features(message.body()?),
            FrontendRequest::SET_MEM_TABLE => {
                self.memory = MemoryTable::new(&memory_table(message)?, std::mem::take(&mut message.fds))?;
                self.tlb.flush();
                Ok(())
            }
            FrontendRequest::ADD_MEM_REG => {
                let fd = message.fds.pop().context("no file descriptor")?;
                self.memory.add(message.body::<SingleRegion>()?.region, fd)
            }
            FrontendRequest::REM_MEM_REG => {
                self.memory.remove(&message.body::<SingleRegion>()?.region)?;
                self.tlb.flush();
                Ok(())
            }
            FrontendRequest::RESET_DEVICE => {
                self.ring = RingState::default();
                Ok(())
            }
            _ => {
                self.ring.change(request, message)?;
                // Without protocol features nobody enables rings: one that is kicked may be served.
                self.ring.enabled |= self.negotiated.features & features::PROTOCOL_FEATURES == 0;
                Ok(())
            }
        }
    }

    fn set_features(&mut self, wanted: u64) -> anyhow::Result<()> {
        ensure!(wanted & !self.shared.options.features == 0, "features {wanted:#x} were not all offered");
        self.negotiated.features = wanted;
        self.shared.record.set_negotiated(self.negotiated);
        Ok(())
    }

    fn set_protocol_features(&mut self, wanted: u64) -> anyhow::Result<Answer> {
        let offered = self.shared.options.protocol_features;
        ensure!(wanted & !offered == 0, "protocol features {wanted:#x} were not all offered");
        self.negotiated.protocol_features = wanted;
        Ok(Answer::Done)
    }

    fn set_backend_channel(&mut self, message: &mut Message) -> anyhow::Result<Answer> {
        ensure!(self.has(protocol::BACKEND_REQ), "BACKEND_REQ was not negotiated");
        let socket = UnixStream::from(message.fds.pop().context("no file descriptor")?);
        let replies = if self.has(protocol::REPLY_ACK) { Replies::Expected } else { Replies::Never };
        self.tlb.set_backend_channel(Channel::new(socket), replies);
        Ok(Answer::Done)
    }

    fn set_notifier(&mut self, request: FrontendRequest, message: &mut Message) -> anyhow::Result<Answer> {
        let vring: VringFd = message.body()?;
        ensure!(vring.index() == 0, "ring {} of 1", vring.index());
        let notifiers = &self.ring.notifiers;
        let notifier = match request {
            FrontendRequest::SET_VRING_CALL => &notifiers.call,
            _ => &notifiers.error,
        };
        *lock(notifier) = message.fds.pop();
        Ok(Answer::Done)
    }

    fn config(&self, message: &Message) -> anyhow::Result<Answer> {
        let mut config = Config::parse(message)?;
        let space = blk::config(&self.shared.image);
        let start = config.header.offset as usize;
        let piece = start.checked_add(config.bytes.len()).and_then(|end| space.get(start..end));
        match piece {
            Some(piece) => config.bytes.copy_from_slice(piece),
            // A reply without a payload says that there is no such piece.
            None => return Ok(Answer::Reply(message.reply(&()))),
        }
        Ok(Answer::Reply(message.reply(config.payload().as_slice())))
    }

    fn stop_for_good(&mut self, message: &Message) -> anyhow::Result<Answer> {
        let VringState { index, .. } = message.body()?;
        ensure!(index == 0, "ring {index} of 1");
        self.stop_ring()?;
        self.ring.kick = None;
        Answer::reply(message, VringState { index, num: u32::from(self.ring.next_available) })
    }

    fn iotlb(&mut self, message: IotlbMessage, stop: &Stop) -> anyhow::Result<Answer> {
        let IotlbMessage { iova, size, user_address, .. } = message;
        match message.kind {
            IotlbKind::UPDATE => {
                if !self.memory.holds(user_address, size) || self.tlb.update(&message).is_err() {
                    self.shared.record.add(Event::UpdateRefused { iova, size });
                    bail!("update of {size:#x} bytes from {iova:#x} to {user_address:#x}");
                }
                Ok(Answer::Done)
            }
            IotlbKind::INVALIDATE => {
                self.tlb.invalidate(iova, size);
                let on_invalidate = *lock(&self.shared.on_invalidate);
                self.acknowledge_invalidate(on_invalidate, iova, stop)
            }
            IotlbKind(other) => bail!("IOTLB message of type {other}"),
        }
    }

    fn acknowledge_invalidate(&self, how: OnInvalidate, iova: u64, stop: &Stop) -> anyhow::Result<Answer> {
        match how {
            OnInvalidate::Acknowledge | OnInvalidate::MissAfterwards => {}
            OnInvalidate::AcknowledgeAfter(delay) => {
                wait(&[(stop.as_fd(), PollFlags::IN)], Some(delay))?;
            }
            OnInvalidate::NeverAcknowledge => return Ok(Answer::Silence),
            OnInvalidate::MissFirst => {
                self.tlb.miss(iova, Access::READ, stop);
            }
        }
        Ok(Answer::Done)
    }

    /// After the acknowledgement of an invalidation: asks again, if that is how this disk is to be.
    fn miss_afterwards(&mut self, request: FrontendRequest, message: &Message) {
        let Ok(IotlbMessage { iova, kind: IotlbKind::INVALIDATE, .. }) = message.body() else {
            return;
        };
        if request != FrontendRequest::IOTLB_MSG
            || *lock(&self.shared.on_invalidate) != OnInvalidate::MissAfterwards
        {
            return;
        }
        let (tlb, ended) = (self.tlb.clone(), self.ended.clone());
        // On a thread of its own: the answer may be an update, which only this one can take.
        self.misses.push(thread::spawn(move || {
            tlb.miss(iova, Access::READ, &ended);
        }));
    }

    fn stop_ring(&mut self) -> anyhow::Result<()> {
        if let Some(worker) = self.worker.take() {
            self.ring.next_available = worker.stop()?;
        }
        Ok(())
    }

    /// Starts the ring if everything that it needs is there.
    fn start_ring(&mut self) -> anyhow::Result<()> {
        let addressing = match self.negotiated.features & features::ACCESS_PLATFORM {
            0 => Addressing::Guest,
            _ => Addressing::Translated,
        };
        let memory = match self.memory.is_empty() {
            true => None,
            false => Some(self.memory.dma(addressing, &self.tlb, &self.ended)?),
        };
        *lock(&self.shared.memory) = memory;
        let RingState { addresses: Some(addresses), kick: Some(_), enabled: true, .. } = &self.ring else {
            return Ok(());
        };
        if self.memory.is_empty() {
            return Ok(());
        }
        let addresses = self.device_addresses(*addresses, addressing)?;
        let stop = Arc::new(Stop::new()?);
        let memory = self.memory.dma(addressing, &self.tlb, &stop)?;
        let (shared, tlb) = (self.shared.clone(), self.tlb.clone());
        self.worker = Some(Worker::start(shared, &self.ring, addresses, memory, tlb, stop)?);
        Ok(())
    }

    /// The ring's addresses as the device uses them: IOVAs came as such, others as user addresses.
    fn device_addresses(&self, ring: VringAddress, addressing: Addressing) -> anyhow::Result<VringAddress> {
        if addressing == Addressing::Translated {
            return Ok(ring);
        }
        let guest = |user_address: u64| {
            self.memory.guest_address(user_address).with_context(|| format!("ring at {user_address:#x}"))
        };
        Ok(VringAddress {
            descriptors: guest(ring.descriptors)?,
            available: guest(ring.available)?,
            used: guest(ring.used)?,
            ..ring
        })
    }

    fn has(&self, protocol_feature: u64) -> bool {
        self.negotiated.protocol_features & protocol_feature != 0
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.worker = None;
        self.ended.signal();
        self.tlb.wake();
        for miss in self.misses.drain(..) {
            // A panic there has been printed.
            let _ = miss.join();
        }
    }
}
