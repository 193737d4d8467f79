// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side of a relay: every message that a VMM has, in any order, and pieces of messages.
//!
//! Looks into nothing that it is answered.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_iommu::message::features::{ACCESS_PLATFORM, LOG_ALL, PROTOCOL_FEATURES, VERSION_1};
use vhost_user_iommu::message::{
    Channel, Flags, FrontendRequest as Request, MemoryRegion, Message, SingleRegion, VringAddress,
    VringState, memory_table_payload,
};

use super::super::input::Input;
use super::{flushed, sent_piece};

/// Where the VMM says it has guest memory.
const USER: u64 = 0x7f00_0000_0000;

/// A VMM.
pub struct Vmm {
    channel: Channel,
    stream: UnixStream,
    /// Its end of the channel for the back-end's requests, if it has opened one.
    requests: Option<Channel>,
    /// Whether what it said were whole messages: else one that opens a channel may be taken for a part of another.
    is_in_step: bool,
}

impl Vmm {
    /// The VMM of a connection.
    pub fn new(stream: UnixStream) -> Vmm {
        let channel = Channel::new(stream.try_clone().expect("a file descriptor"));
        Vmm { channel, stream, requests: None, is_in_step: true }
    }

    /// Sends something; false if that was nothing, or the relay has left.
    pub fn say(&mut self, input: &mut Input<'_>) -> bool {
        let choice = input.u8();
        if choice >= 250 {
            // A piece of a message, or several.
            let length = usize::from(input.u8());
            let piece = input.bytes(length);
            self.is_in_step = false;
            return sent_piece(&self.stream, piece);
        }
        let message = self.message(choice, input);
        let flags = match choice % 8 {
            0..=4 => Flags::REQUEST,
            5 | 6 => Flags::NEED_REPLY,
            _ => Flags(input.u32()),
        };
        self.channel.queue(Message { flags, ..message }).is_ok() && flushed(&mut self.channel)
    }

    /// Answers a request of the back-end, or says something of the kind.
    pub fn answer(&mut self, input: &mut Input<'_>) -> bool {
        let (request, value) = (u32::from(input.u8() % 12), u64::from(input.u8()));
        let Some(channel) = self.requests.as_mut().filter(|_| self.is_in_step) else { return false };
        let message = Message { flags: Flags::REPLY, ..Message::new(request, &value) };
        channel.queue(message).is_ok() && flushed(channel)
    }

    /// Takes all that has come.
    pub fn receive(&mut self) {
        while self.channel.receive().expect("the relay stays").is_some() {}
        // The relay lets go of it when it is told that there is none.
        while let Some(channel) = &mut self.requests {
            match channel.receive() {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(_) => self.requests = None,
            }
        }
    }

    fn message(&mut self, choice: u8, input: &mut Input<'_>) -> Message {
        let index = if choice < 200 { u32::from(choice >> 6) } else { u32::from(input.u16()) };
        match input.u8() % 20 {
            0 => Message::new(Request::GET_FEATURES, &()),
            1 => Message::new(Request::SET_FEATURES, &features(input)),
            2 => Message::new(Request::GET_PROTOCOL_FEATURES, &()),
            3 => Message::new(Request::SET_PROTOCOL_FEATURES, &u64::from(input.u32())),
            4 | 5 => {
                let regions: Vec<MemoryRegion> = (0..input.u8() % 4).map(|_| region(input)).collect();
                Message::new(Request::SET_MEM_TABLE, &memory_table_payload(&regions)[..])
                    .with_fds(fds(regions.len()))
            }
            6 => Message::new(Request::ADD_MEM_REG, &SingleRegion { padding: 0, region: region(input) })
                .with_fds(fds(1)),
            7 => Message::new(Request::REM_MEM_REG, &SingleRegion { padding: 0, region: region(input) }),
            8 => Message::new(Request::SET_VRING_BASE, &VringState { index, num: input.u8().into() }),
            9 | 10 => Message::new(Request::SET_VRING_ADDR, &ring_address(index, input)),
            11 => Message::new(Request::SET_VRING_KICK, &u64::from(index)).with_fds(fds(1)),
            12 => Message::new(Request::SET_VRING_CALL, &u64::from(index)).with_fds(fds(1)),
            13 => Message::new(Request::GET_VRING_BASE, &VringState { index, num: 0 }),
            14 => Message::new(Request::SET_VRING_ENABLE, &VringState { index, num: 1 }),
            15 => self.channel_for_requests(),
            16 => Message::new(Request::RESET_DEVICE, &()),
            17 => Message::new(Request::GET_CONFIG, input.bytes(24)),
            _ => anything(input),
        }
    }

    fn channel_for_requests(&mut self) -> Message {
        let (ours, theirs) = UnixStream::pair().expect("a file descriptor");
        self.requests = Some(Channel::new(ours));
        Message::new(Request::SET_BACKEND_REQ_FD, &()).with_fds(vec![theirs.into()])
    }
}

/// Any request, with any payload.
pub fn anything(input: &mut Input<'_>) -> Message {
    let (request, length, count) = (input.u8() % 50, usize::from(input.u8()), usize::from(input.u8()));
    let count = if count < 200 { 0 } else { count % 33 };
    Message::new(u32::from(request), input.bytes(length)).with_fds(fds(count))
}

fn fds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| eventfd(0, EventfdFlags::CLOEXEC).expect("a file descriptor")).collect()
}

fn features(input: &mut Input<'_>) -> u64 {
    let usual = VERSION_1 | PROTOCOL_FEATURES;
    match input.u8() {
        0 => usual | ACCESS_PLATFORM,
        1 => usual | LOG_ALL,
        _ => input.u64(),
    }
}

/// Memory where most IOVAs lead, a part of it, or anything.
fn region(input: &mut Input<'_>) -> MemoryRegion {
    let all = MemoryRegion { guest_address: 0, size: 0x10_0000, user_address: USER, mmap_offset: 0 };
    match input.u8() % 4 {
        0 => all,
        1 => {
            let offset = u64::from(input.u8()) << 12;
            let size = u64::from(input.u8()) << 12;
            MemoryRegion { guest_address: offset, size, user_address: USER + offset, ..all }
        }
        2 => MemoryRegion { guest_address: 1 << 32, user_address: USER + (1 << 32), ..all },
        _ => MemoryRegion {
            guest_address: input.u64(),
            size: input.u64(),
            user_address: input.u64(),
            mmap_offset: input.u64(),
        },
    }
}

fn ring_address(index: u32, input: &mut Input<'_>) -> VringAddress {
    let mut place = || USER + (u64::from(input.u8()) << 12);
    let [descriptors, used, available] = [place(), place(), place()];
    let flags = u32::from(input.u8());
    let used = if flags < 240 { used } else { input.u64() };
    VringAddress { index, flags: flags % 2, descriptors, used, available, log: 0 }
}
