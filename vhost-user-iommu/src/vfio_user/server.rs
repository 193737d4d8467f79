// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a server says: answers, which go to the VMM or end what the relay asked, and accesses to memory.

use rustix::io::Errno;

use super::conversation::{Conversation, Failure, Phase};
use super::message::{Command, Message};
use super::owed::Asked;
use super::space::Space;
use super::version::{MAPS_MAX, Proposal};

impl Conversation<'_> {
    /// Takes a message of the server.
    pub(super) fn take_from_server(&mut self, message: Message) -> Result<(), Failure> {
        match message.flags.is_reply() {
            true => self.take_reply(message),
            false => self.take_command(message),
        }
    }

    fn take_reply(&mut self, reply: Message) -> Result<(), Failure> {
        let (command, id) = (reply.command, reply.id);
        match self.owed.take(&reply).ok_or(Failure::WrongReply { command, id })? {
            Asked::Front(id) => {
                let is_reset = command == Command::DEVICE_RESET && !reply.flags.is_error();
                self.front.queue(Message { id, ..reply }).map_err(Failure::Front)?;
                // A device that comes to life: what its addresses meant before is of no meaning to it.
                if is_reset { self.begin_telling() } else { Ok(()) }
            }
            Asked::Version { command, proposed } => self.agree(&command, &proposed, &reply),
            Asked::Relay { step, errand, .. } => self.end_step(&step, errand, &reply),
        }
    }

    /// Takes the server's version.
    fn agree(&mut self, command: &Message, proposed: &Proposal, reply: &Message) -> Result<(), Failure> {
        if reply.flags.is_error() {
            self.phase = Phase::New;
            let errno = i32::try_from(reply.error).map_or(Errno::INVAL, Errno::from_raw_os_error);
            return self.answer_front(command, command.refusal(errno));
        }
        let bad = |bad| Failure::BadVersion("server", bad);
        let answer = Proposal::of(reply).map_err(bad)?;
        if !reply.fds.is_empty() {
            return Err(Failure::Malformed(Command::VERSION));
        }
        let (granule, pgsizes) =
            (1 << self.relay.page_size_mask.trailing_zeros(), answer.capabilities.pgsizes);
        if pgsizes & ((granule << 1) - 1) == 0 {
            self.complain(|| {
                format!(
                    "the server maps pages of {:#x} bytes at least; see --granule",
                    pgsizes & pgsizes.wrapping_neg()
                )
            });
        }
        self.space = Space::new(answer.capabilities.max_dma_maps.min(MAPS_MAX) as usize);
        self.phase = Phase::Running;
        let payload = answer.towards_vmm(proposed).payload();
        self.answer_front(command, command.reply(&payload[..]))?;
        self.begin_telling()
    }

    /// Takes a command of the server, which is about memory: no other goes in this direction.
    fn take_command(&mut self, message: Message) -> Result<(), Failure> {
        if self.phase != Phase::Running || !message.fds.is_empty() {
            return Err(Failure::Malformed(message.command));
        }
        let reply = match message.command {
            Command::DMA_READ => self.read_memory(&message)?,
            Command::DMA_WRITE => self.write_memory(&message)?,
            command => {
                self.complain(|| format!("{command:?} of the server is not carried"));
                message.refusal(Errno::NOTSUP)
            }
        };
        match message.flags.wants_reply() {
            true => self.server.queue(reply).map_err(Failure::Server),
            false => Ok(()),
        }
    }
}
