// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The server's side: answers, right or wrong, accesses, and mappings that it remembers when it got.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::fs::fstat;
use rustix::net::{SendFlags, send};
use vhost_user_iommu::Dma;
use vhost_user_iommu::iommu::Iommu;
use vhost_user_iommu::message::Channel;
use vhost_user_iommu::vfio_user::message::{Command, DmaAccess, DmaMap, DmaUnmap, Flags, Message};
use viommu_core::{Access, Iova, IovaRange};
use zerocopy::IntoBytes;

use super::super::device::ENDPOINT;
use super::super::input::Input;
use super::vmm::{Vmm, version};

/// A server.
pub struct Server {
    channel: Channel<Message>,
    stream: UnixStream,
    dma: Dma,
    /// What it has to answer.
    owed: VecDeque<Message>,
    mappings: Vec<Mapping>,
    time: u64,
    /// Whether it has lied about what it maps: then it is on its own.
    has_lied: bool,
}

struct Mapping {
    range: IovaRange,
    map: DmaMap,
    /// The file, by its number.
    file: Option<u64>,
    since: u64,
}

impl Server {
    pub fn new(stream: UnixStream, dma: Dma) -> Server {
        let channel = Channel::new(stream.try_clone().expect("a file descriptor"));
        Server { channel, stream, dma, owed: VecDeque::new(), mappings: Vec::new(), time: 0, has_lied: false }
    }

    /// A number that grows with every mapping.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Whether everything that it was told is answered.
    pub fn is_quiet(&self) -> bool {
        self.owed.is_empty() && !self.has_lied
    }

    /// Whether it has a mapping in `range` that it got before `time`, and has not said that it has none.
    pub fn has_mapping_of_before(&self, range: &IovaRange, time: u64) -> bool {
        let is_of_before = |known: &Mapping| known.since < time && known.range.overlaps(range);
        self.dma == Dma::Shared && !self.has_lied && self.mappings.iter().any(is_of_before)
    }

    /// Takes all that has come.
    pub fn receive(&mut self, iommu: &Iommu) {
        while let Ok(Some(message)) = self.channel.receive() {
            if message.flags.is_reply() {
                self.check_reply(&message, iommu);
                continue;
            }
            if let (Command::DMA_MAP, Some(map)) = (message.command, message.body::<DmaMap>()) {
                assert!(self.dma == Dma::Shared || message.fds.is_empty(), "a file of memory");
                let file = message.fds.first().map(|fd| fstat(fd.as_fd()).expect("a file").st_ino);
                let range = IovaRange::from_length(map.address, map.size).expect("a mapping of some size");
                assert!(!self.mappings.iter().any(|known| known.range.overlaps(&range)), "{range} is mapped");
                self.mappings.push(Mapping { range, map, file, since: self.time });
                self.time += 1;
            }
            if message.flags.wants_reply() {
                self.owed.push_back(message);
            }
        }
    }

    /// What it read by a message it may read.
    fn check_reply(&self, reply: &Message, iommu: &Iommu) {
        let access = match reply.command {
            _ if reply.flags.is_error() => return,
            Command::DMA_READ => Access::READ,
            _ => Access::WRITE,
        };
        let (done, _) = reply.body_with_data::<DmaAccess>().expect("an access");
        if done.count == 0 {
            return;
        }
        for page in (done.address & !0xfff..done.address.saturating_add(done.count)).step_by(0x1000) {
            let allowed = iommu.translate(ENDPOINT, Iova(page.max(done.address)), access);
            assert!(allowed.is_ok(), "{page:#x}: {allowed:?}");
        }
    }

    /// What it was told it may reach, where it was told.
    pub fn check(&self, iommu: &Iommu, vmm: &Vmm) {
        if self.dma == Dma::Message {
            return;
        }
        let memory = fstat(vmm.memory().as_fd()).expect("a file").st_ino;
        for Mapping { range, map, file, .. } in &self.mappings {
            let access = Access::from_bits_truncate(map.flags);
            let extent = iommu.translate(ENDPOINT, Iova(range.start()), access).expect("it is allowed");
            assert!(extent.range.covers(range), "{range} of {extent:?}");
            let gpa = extent.gpa.0 + (range.start() - extent.range.start());
            assert!(
                file.is_none_or(|file| file == memory && map.offset == gpa),
                "{map:x?} leads to {gpa:#x}"
            );
        }
    }

    /// Answers what it has to answer first, mostly in the right form.
    pub fn answer(&mut self, input: &mut Input<'_>) {
        let Some(message) = self.owed.pop_front() else { return };
        let reply = match (message.command, input.u8()) {
            (Command::DMA_MAP, 200..=215) => {
                let map: DmaMap = message.body().expect("a mapping");
                self.mappings.retain(|known| known.range.start() != map.address);
                message.refusal(rustix::io::Errno::NOMEM)
            }
            (_, 240..) => {
                self.has_lied = true;
                let (id, flags) = (message.id ^ u16::from(input.u8()), Flags(u32::from(input.u8())));
                Message { id, flags, ..message.reply(input.bytes(24)) }
            }
            (Command::VERSION, _) => message.reply(&version(input)[..]),
            (Command::DMA_UNMAP, _) => {
                let unmap: DmaUnmap = message.body().expect("a mapping");
                let count = self.mappings.len();
                self.mappings
                    .retain(|known| (known.map.address, known.map.size) != (unmap.address, unmap.size));
                assert!(self.mappings.len() < count, "{unmap:x?} was never mapped");
                message.reply(&unmap)
            }
            _ => message.reply(&()),
        };
        // Fails when the relay has left, which shows.
        let _ = self.channel.queue(reply);
        let _ = self.channel.flush();
    }

    /// Asks for memory.
    pub fn ask(&mut self, input: &mut Input<'_>) {
        let address = (u64::from(input.u8()) << 12) + u64::from(input.u8());
        let count = input.pick(&[0, 1, 16, 0x1000, 0x3000]);
        let access = DmaAccess { address, count };
        let message = match input.bool() {
            true => Message::command(1, Command::DMA_READ, &access),
            false => {
                let payload = [access.as_bytes(), &vec![0; count as usize]].concat();
                Message::command(2, Command::DMA_WRITE, &payload[..])
            }
        };
        let _ = self.channel.queue(message);
        let _ = self.channel.flush();
    }

    pub fn say_anything(&mut self, input: &mut Input<'_>) {
        let length = usize::from(input.u8() % 64);
        self.has_lied |= length > 0;
        let _ = send(&self.stream, input.bytes(length), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}
