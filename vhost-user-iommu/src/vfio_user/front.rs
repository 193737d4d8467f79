// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a VMM says: carried to the server, except what has to do with memory.

use rustix::io::Errno;

use super::conversation::{Conversation, Failure, Phase};
use super::message::{Command, DmaMap, DmaUnmap, Message, RegionAccess};
use super::owed::Asked;
use super::version::Proposal;

/// The commands that are carried: none holds an address of memory. DEVICE_FEATURE, and with it migration, is not among
/// them: the addresses of dirty pages would be IOVAs.
const CARRIED: [Command; 9] = [
    Command::DEVICE_GET_INFO,
    Command::DEVICE_GET_REGION_INFO,
    Command::DEVICE_GET_REGION_IO_FDS,
    Command::DEVICE_GET_IRQ_INFO,
    Command::DEVICE_SET_IRQS,
    Command::REGION_READ,
    Command::REGION_WRITE,
    Command::REGION_WRITE_MULTI,
    Command::DEVICE_RESET,
];

impl Conversation<'_> {
    /// Takes a message of the VMM.
    pub(super) fn take_from_front(&mut self, message: Message) -> Result<(), Failure> {
        if message.flags.is_reply() {
            return Err(Failure::FrontReplies(message.command));
        }
        match (self.phase, message.command) {
            (Phase::New, Command::VERSION) => self.propose(message),
            (Phase::New | Phase::Negotiating, command) => Err(Failure::NoVersion(command)),
            (Phase::Running, Command::DMA_MAP) => self.map(message),
            (Phase::Running, Command::DMA_UNMAP) => self.unmap(message),
            (Phase::Running, command) if CARRIED.contains(&command) => self.carry(message),
            (Phase::Running, command) => {
                self.complain(|| format!("{command:?} of the VMM is not carried"));
                self.answer_front(&message, message.refusal(Errno::NOTSUP))
            }
        }
    }

    /// Proposes to the server what the relay can in the VMM's stead.
    fn propose(&mut self, message: Message) -> Result<(), Failure> {
        let proposed = Proposal::of(&message).map_err(|bad| Failure::BadVersion("VMM", bad))?;
        let payload = proposed.towards_server(self.relay.page_size_mask).payload();
        let command = Message::command(message.id, Command::VERSION, &());
        let asked = Asked::Version { command, proposed };
        let id = self.owed.add(Command::VERSION, asked);
        self.phase = Phase::Negotiating;
        self.server.queue(Message::command(id, Command::VERSION, &payload[..])).map_err(Failure::Server)
    }

    /// Memory of the guest's that is there from now on.
    fn map(&mut self, mut message: Message) -> Result<(), Failure> {
        let fds = std::mem::take(&mut message.fds);
        let added = match message.body::<DmaMap>() {
            Some(map) => self.regions.add(&map, fds),
            None => Err(Errno::INVAL),
        };
        self.memory_changed(message, added)
    }

    /// Memory of the guest's that is going to be gone: its VMM waits until the server has let go of it.
    fn unmap(&mut self, message: Message) -> Result<(), Failure> {
        let removed =
            message.body::<DmaUnmap>().map_or(Err(Errno::INVAL), |unmap| self.regions.remove(&unmap));
        self.memory_changed(message, removed)
    }

    fn memory_changed(&mut self, command: Message, done: Result<(), Errno>) -> Result<(), Failure> {
        match done {
            Ok(()) => self.tell_of_memory(command),
            Err(errno) => {
                let what = command.command;
                self.complain(|| format!("{what:?} of the VMM is refused: {errno}"));
                self.answer_front(&command, command.refusal(errno))
            }
        }
    }

    /// Sends a command of the VMM on to the server, under an id of the relay's own.
    fn carry(&mut self, message: Message) -> Result<(), Failure> {
        if let Some(is_master) = bus_master_of(&message)
            && is_master != std::mem::replace(&mut self.is_master, is_master)
            && is_master
        {
            self.begin_telling()?;
        }
        let id = match message.flags.wants_reply() {
            true => self.owed.add(message.command, Asked::Front(message.id)),
            false => self.owed.unanswered(),
        };
        self.server.queue(Message { id, ..message }).map_err(Failure::Server)
    }

    /// Gives the VMM a reply to `command`, if it wants one.
    pub(super) fn answer_front(&mut self, command: &Message, reply: Message) -> Result<(), Failure> {
        if !command.flags.wants_reply() {
            return Ok(());
        }
        self.front.queue(reply).map_err(Failure::Front)
    }
}

/// Whether the device may access memory from now on, as PCI functions are told; nothing if the message says nothing of it.
fn bus_master_of(message: &Message) -> Option<bool> {
    const COMMAND: u64 = 4;
    const MASTER: u8 = 1 << 2;
    match message.command {
        // A function that is reset may not.
        Command::DEVICE_RESET => Some(false),
        Command::REGION_WRITE => {
            let (access, data) = message.body_with_data::<RegionAccess>()?;
            let at =
                COMMAND.checked_sub(access.offset).filter(|_| access.region == RegionAccess::PCI_CONFIG)?;
            data.get(usize::try_from(at).ok()?).map(|command| command & MASTER != 0)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn what_writes_the_command_register_tells_of_bus_mastering_and_nothing_else_but_a_reset_does() {
        const CONFIG: u32 = RegionAccess::PCI_CONFIG;
        for (region, offset, data, told) in [
            (CONFIG, 4, &[6, 0][..], Some(true)),
            (CONFIG, 4, &[4], Some(true)),
            (CONFIG, 4, &[2, 4], Some(false)),
            (CONFIG, 0, &[0, 0, 0, 0, 4], Some(true)),
            (CONFIG, 0, &[4, 4, 4, 4], None),
            (CONFIG, 5, &[4], None),
            (CONFIG, u64::MAX, &[4], None),
            (CONFIG, 4, &[], None),
            (0, 4, &[4], None),
        ] {
            let access = RegionAccess { offset, region, count: data.len() as u32 };
            let payload = [access.as_bytes(), data].concat();
            let of = |command| bus_master_of(&Message::command(1, command, &payload[..]));
            assert_eq!(of(Command::REGION_WRITE), told, "{data:?} at {offset} of {region}");
            assert_eq!(of(Command::REGION_READ), None);
            assert_eq!(of(Command::DEVICE_RESET), Some(false));
        }
    }
}
