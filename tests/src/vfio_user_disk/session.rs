// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One connection: the client's commands, and what a test orders, one after the other in one thread.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use vhost_user_iommu::message::{Channel, ChannelError, Frame};
use vhost_user_iommu::vfio_user::message::{Command, DmaMap, DmaUnmap, Message, RegionAccess};
use zerocopy::{FromBytes, IntoBytes};

use crate::iotlb_disk::wait::{Stop, wait};
use crate::iotlb_disk::{Outcome, StrayDma};

use super::dma::Mappings;
use super::function::{Effect, Function, IRQ_COUNTS, MSIX, REGION_SIZES};
use super::{Conduct, Order, Shared, lock};

/// What is known of one client.
pub(super) struct Session {
    channel: Channel<Message>,
    pub(super) shared: Arc<Shared>,
    stop: Arc<Stop>,
    pub(super) mappings: Mappings,
    function: Function,
    /// Commands that came while the server waited for an answer.
    stash: VecDeque<Message>,
    next_id: u16,
    is_deaf: bool,
}

/// Longest wait for an answer of the client.
const PATIENCE: Duration = Duration::from_secs(20);

impl Session {
    pub(super) fn new(socket: UnixStream, shared: Arc<Shared>, stop: Arc<Stop>) -> Session {
        let function = Function::new(shared.image.sectors());
        Session {
            channel: Channel::new(socket),
            shared,
            stop,
            mappings: Mappings::default(),
            function,
            stash: VecDeque::new(),
            next_id: 0x8000,
            is_deaf: false,
        }
    }

    /// Serves until somebody leaves.
    pub(super) fn run(&mut self, orders: &Receiver<Order>) -> Result<()> {
        loop {
            while let Some(message) = self.stash.pop_front() {
                self.serve(message)?;
            }
            self.flush()?;
            let hears = if self.is_deaf { PollFlags::empty() } else { PollFlags::IN };
            let [is_message, is_order, is_over] = self.wait(hears, None)?;
            if is_over {
                return Ok(());
            }
            if is_order {
                self.shared.wake.clear();
                for order in orders.try_iter() {
                    self.obey(order)?;
                }
            }
            if is_message && hears.is_empty() {
                // It is only told that the client has left.
                return Ok(());
            }
            if self.is_deaf {
                continue;
            }
            match self.channel.receive() {
                Ok(message) => self.stash.extend(message),
                Err(ChannelError::Disconnected) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Access(address, dma, done) => {
                let outcome = match dma {
                    StrayDma::Read(length) => {
                        let mut bytes = vec![0; length];
                        self.read(address, &mut bytes).map(|()| Outcome::Read(bytes))
                    }
                    StrayDma::Write(bytes) => self.write(address, &bytes).map(|()| Outcome::Written),
                };
                // Fails only when the test has given up.
                let _ = done.send(outcome.unwrap_or_else(|error| Outcome::Refused(format!("{error:#}"))));
            }
            Order::Say(bytes) => {
                // Fails when the client has left, which shows.
                let _ = send(self.channel.as_fd(), &bytes, SendFlags::NOSIGNAL);
            }
            Order::Deafen => self.is_deaf = true,
            Order::Tell(message, done) => {
                let answer = self.ask_anything(message);
                let is_over = answer.is_err();
                let _ = done.send(answer.ok());
                ensure!(!is_over, "no answer");
            }
        }
        Ok(())
    }

    /// Sends a command and waits for the answer.
    pub(super) fn ask_anything(&mut self, message: Message) -> Result<Message> {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.channel.queue(Message { id, ..message })?;
        loop {
            self.flush()?;
            while let Some(message) = self.channel.receive()? {
                if message.flags.is_reply() {
                    ensure!(message.id == id, "the answer to {} where {id} was asked", message.id);
                    return Ok(message);
                }
                self.stash.push_back(message);
            }
            let [is_message, _, is_over] = self.wait(PollFlags::IN, Some(PATIENCE))?;
            ensure!(!is_over, "stopped");
            // An order that waits is one more reason to look.
            if !is_message {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.channel.flush()?;
        while self.channel.wants_write() && !self.stop.is_signalled() {
            self.wait(PollFlags::OUT, None)?;
            self.channel.flush()?;
        }
        Ok(())
    }

    fn wait(&self, channel: PollFlags, limit: Option<Duration>) -> Result<[bool; 3]> {
        let ready = wait(
            &[
                (self.channel.as_fd(), channel),
                (self.shared.wake.as_fd(), PollFlags::IN),
                (self.stop.as_fd(), PollFlags::IN),
            ],
            limit,
        )?;
        Ok([ready[0], ready[1], ready[2]])
    }

    fn serve(&mut self, message: Message) -> Result<()> {
        ensure!(!message.flags.is_reply(), "an answer that nothing was asked for");
        match message.command {
            Command::DMA_MAP => return self.map(message),
            Command::DMA_UNMAP => return self.unmap(&message),
            Command::REGION_WRITE => return self.write_region(&message),
            _ => {}
        }
        let reply = match message.command {
            Command::VERSION => {
                let version = [&message.payload[..4], self.shared.capabilities.as_bytes(), &[0]].concat();
                message.reply(&version[..])
            }
            Command::DEVICE_GET_INFO => {
                let (regions, irqs) = (REGION_SIZES.len() as u32, IRQ_COUNTS.len() as u32);
                message.reply(&[16, 3, regions, irqs])
            }
            Command::DEVICE_GET_REGION_INFO => {
                let index = words(&message)?[2];
                let size = REGION_SIZES.get(index as usize).copied().unwrap_or(0);
                message.reply(&[32, 3, index, 0, size as u32, 0, 0, 0])
            }
            Command::DEVICE_GET_IRQ_INFO => {
                let index = words(&message)?[2];
                message.reply(&[16, 9, index, IRQ_COUNTS.get(index as usize).copied().unwrap_or(0)])
            }
            Command::DEVICE_SET_IRQS => self.set_interrupts(message)?,
            Command::REGION_READ => {
                let access: RegionAccess = message.body().context("a read of another form")?;
                let data = self.function.read(access.region, access.offset, access.count as usize);
                message.reply(&[access.as_bytes(), &data].concat()[..])
            }
            Command::DEVICE_RESET => {
                self.function = Function::new(self.shared.image.sectors());
                message.reply(&())
            }
            _ => message.refusal(Errno::NOTSUP),
        };
        Ok(self.channel.queue(reply)?)
    }

    fn map(&mut self, mut message: Message) -> Result<()> {
        let map: DmaMap = message.body().context("a mapping of another form")?;
        let fd = message.fds.pop();
        ensure!(message.fds.is_empty(), "too many files");
        match *lock(&self.shared.conduct) {
            Conduct::IgnoresMap => return Ok(()),
            Conduct::RefusesMap => return Ok(self.channel.queue(message.refusal(Errno::NOMEM))?),
            _ => {}
        }
        self.mappings.add(map, fd)?;
        self.shared.set_told(self.mappings.told());
        Ok(self.channel.queue(message.reply(&()))?)
    }

    fn unmap(&mut self, message: &Message) -> Result<()> {
        let unmap: DmaUnmap = message.body().context("a mapping of another form")?;
        let reply = message.reply(&unmap);
        let conduct = *lock(&self.shared.conduct);
        let reply = match conduct {
            Conduct::IgnoresUnmap => return Ok(()),
            Conduct::RefusesUnmap => message.refusal(Errno::INVAL),
            Conduct::WrongId => Message { id: message.id.wrapping_add(77), ..reply },
            Conduct::WrongCommand => Message { command: Command::DMA_MAP, ..reply },
            Conduct::WrongAddress => message.reply(&DmaUnmap { address: unmap.address + 0x1000, ..unmap }),
            Conduct::WrongSize => message.reply(&DmaUnmap { size: unmap.size + 0x1000, ..unmap }),
            Conduct::HalfAnAnswer => {
                let (bytes, _) = reply.into_parts()?;
                send(self.channel.as_fd(), &bytes[..bytes.len() / 2], SendFlags::NOSIGNAL)?;
                return Ok(());
            }
            Conduct::Leaves => bail!("it leaves, as it was told to"),
            Conduct::Deaf => {
                self.is_deaf = true;
                return Ok(());
            }
            Conduct::UnmapsLate(delay) => {
                // Nothing tells of this moment but the clock.
                thread::sleep(delay);
                self.forget(&unmap)?;
                reply
            }
            Conduct::Honest | Conduct::IgnoresMap | Conduct::RefusesMap => {
                self.forget(&unmap)?;
                reply
            }
        };
        Ok(self.channel.queue(reply)?)
    }

    fn forget(&mut self, unmap: &DmaUnmap) -> Result<()> {
        self.mappings.remove(unmap.address, unmap.size)?;
        self.shared.set_told(self.mappings.told());
        Ok(())
    }

    fn write_region(&mut self, message: &Message) -> Result<()> {
        let (access, data) = message.body_with_data::<RegionAccess>().context("a write of another form")?;
        let effect = self.function.write(access.region, access.offset, data);
        if message.flags.wants_reply() {
            // The guest's processor goes on while the ring is served.
            self.channel.queue(message.reply(&access))?;
            self.flush()?;
        }
        if effect == Effect::Notified {
            let mut ring = self.function.ring;
            match self.serve_ring(&mut ring) {
                Ok(true) => {
                    let interrupt = self.function.ring_interrupt();
                    // Fails only when it is signalled already.
                    let _ = interrupt.map(|fd| rustix::io::write(fd, &1u64.to_ne_bytes()));
                }
                Ok(false) => {}
                Err(error) => eprintln!("vfio-user disk: the ring: {error:#}"),
            }
            self.function.ring.next = ring.next;
        }
        Ok(())
    }

    /// Takes the eventfds of MSI-X, or lets go of them.
    fn set_interrupts(&mut self, mut message: Message) -> Result<Message> {
        const EVENTFD: u32 = 1 << 2;
        let [_, flags, index, start, count, ..] = words(&message)?[..] else {
            bail!("interrupts of another form")
        };
        if index == MSIX {
            let mut fds = std::mem::take(&mut message.fds).into_iter();
            let all = count == 0;
            for (number, place) in self.function.vectors.iter_mut().enumerate() {
                let number = number as u32;
                if all {
                    *place = None;
                } else if flags & EVENTFD != 0 && (start..start.saturating_add(count)).contains(&number) {
                    *place = fds.next();
                }
            }
        }
        let set = self.function.vectors.iter().flatten().count();
        self.shared.vectors.store(set, Ordering::Release);
        Ok(message.reply(&()))
    }
}

fn words(message: &Message) -> Result<Vec<u32>> {
    let words: Vec<u32> =
        message.payload.chunks_exact(4).filter_map(|word| u32::read_from_bytes(word).ok()).collect();
    ensure!(words.len() >= 3, "{:?} of another form", message.command);
    Ok(words)
}
