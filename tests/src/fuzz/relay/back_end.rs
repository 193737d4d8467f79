// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The back-end's side of a relay: answers, right or wrong, misses, and an IOTLB that remembers when it got what.
//!
//! Entries of an invalidation are gone as soon as it has come, whether it is acknowledged or not.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

use vhost_user_iommu::message::features::{ACCESS_PLATFORM, PROTOCOL_FEATURES, VERSION_1};
use vhost_user_iommu::message::{
    Access, BackendRequest, Channel, Flags, FrontendRequest as Request, IotlbKind, IotlbMessage, Message,
    VringState,
};
use viommu_core::IovaRange;

use super::super::input::Input;
use super::vmm::anything;
use super::{flushed, sent_piece};

/// A back-end.
pub struct BackEnd {
    channel: Channel,
    stream: UnixStream,
    /// Its end of the channel for its requests, once it has got one.
    requests: Option<Channel>,
    /// What it has to answer.
    owed: VecDeque<Message>,
    /// Entries, and when they came.
    entries: Vec<(IovaRange, u64)>,
    time: u64,
}

impl BackEnd {
    /// The back-end of a connection.
    pub fn new(stream: UnixStream) -> BackEnd {
        let channel = Channel::new(stream.try_clone().expect("a file descriptor"));
        BackEnd { channel, stream, requests: None, owed: VecDeque::new(), entries: Vec::new(), time: 0 }
    }

    /// A number that grows with every entry.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Whether it has an entry in `range` that it got before `time`.
    pub fn has_entry_of_before(&self, range: &IovaRange, time: u64) -> bool {
        self.entries.iter().any(|(entry, since)| *since < time && entry.overlaps(range))
    }

    /// Takes all that has come, and gives the new entries.
    pub fn receive(&mut self) -> Vec<IotlbMessage> {
        let mut new = Vec::new();
        while let Some(message) = self.channel.receive().expect("the relay stays") {
            new.extend(self.take(message));
        }
        while let Some(channel) = &mut self.requests
            && channel.receive().expect("the relay stays").is_some()
        {}
        new
    }

    /// Answers what it has to answer first, in the right form; false if there is nothing, or the relay has left.
    pub fn answer(&mut self, input: &mut Input<'_>) -> bool {
        let Some(message) = self.owed.pop_front() else { return false };
        let value = input.u8();
        let reply = match Request(message.request) {
            Request::GET_FEATURES => message.reply(&features(value, input)),
            Request::GET_PROTOCOL_FEATURES => {
                message.reply(&if value < 200 { u64::from(u32::MAX) } else { input.u64() })
            }
            Request::GET_VRING_BASE => {
                message.reply(&VringState { index: index_of(&message), num: value.into() })
            }
            Request::GET_CONFIG => message.reply(&message.payload[..]),
            _ => message.reply(&u64::from(value >= 200)),
        };
        self.channel.queue(reply).is_ok() && flushed(&mut self.channel)
    }

    /// Says something that nobody asked for.
    pub fn say_anything(&mut self, input: &mut Input<'_>) -> bool {
        let choice = input.u8();
        if choice < 16 {
            let length = usize::from(input.u8());
            let piece = input.bytes(length);
            return sent_piece(&self.stream, piece);
        }
        let flags = if choice < 128 { Flags::REPLY } else { Flags(input.u32()) };
        self.channel.queue(Message { flags, ..anything(input) }).is_ok() && flushed(&mut self.channel)
    }

    /// Asks for something on its own channel.
    pub fn ask(&mut self, input: &mut Input<'_>) -> bool {
        let choice = input.u8();
        let message = match choice % 8 {
            0..=3 => {
                let access = Access(input.u8() % 4);
                Message::from(&IotlbMessage::miss(u64::from(input.u16()) << 8, access))
            }
            4 => Message::new(BackendRequest::IOTLB_MSG, &any_iotlb(input)),
            5 => Message::new(BackendRequest::CONFIG_CHANGE_MSG, &()),
            6 => {
                if choice >= 250 {
                    return self.requests.take().is_some();
                }
                Message::new(BackendRequest::IOTLB_MSG, input.bytes(40))
            }
            _ => anything(input),
        };
        let message = if choice & 0x80 == 0 { message } else { message.with_need_reply() };
        let Some(channel) = &mut self.requests else { return false };
        channel.queue(message).is_ok() && flushed(channel)
    }

    /// Gives a new entry, if that is what has come.
    fn take(&mut self, mut message: Message) -> Option<IotlbMessage> {
        let request = Request(message.request);
        if request == Request::SET_BACKEND_REQ_FD {
            let socket = message.fds.pop().expect("a channel");
            self.requests = Some(Channel::new(UnixStream::from(socket)));
        }
        let entry = (request == Request::IOTLB_MSG).then(|| self.take_iotlb(&message)).flatten();
        if ALWAYS_ANSWERED.contains(&request) || message.flags.needs_reply() {
            self.owed.push_back(message);
        }
        entry
    }

    fn take_iotlb(&mut self, message: &Message) -> Option<IotlbMessage> {
        let iotlb: IotlbMessage = message.body().expect("its size");
        let range = IovaRange::from_length(iotlb.iova, iotlb.size).expect("some size");
        match iotlb.kind {
            IotlbKind::UPDATE => {
                assert!(IovaRange::from_length(iotlb.user_address, iotlb.size).is_some(), "{iotlb:?}");
                self.entries.push((range, self.time));
                self.time += 1;
                Some(iotlb)
            }
            IotlbKind::INVALIDATE => {
                self.entries.retain(|(entry, _)| !entry.overlaps(&range));
                None
            }
            kind => panic!("{kind:?} is no message to a back-end"),
        }
    }
}

const ALWAYS_ANSWERED: [Request; 7] = [
    Request::GET_FEATURES,
    Request::GET_PROTOCOL_FEATURES,
    Request::GET_VRING_BASE,
    Request::GET_QUEUE_NUM,
    Request::GET_CONFIG,
    Request::GET_INFLIGHT_FD,
    Request::GET_MAX_MEM_SLOTS,
];

fn features(value: u8, input: &mut Input<'_>) -> u64 {
    if value < 200 { VERSION_1 | PROTOCOL_FEATURES | ACCESS_PLATFORM } else { input.u64() }
}

fn index_of(message: &Message) -> u32 {
    message.body::<VringState>().map_or(0, |state| state.index)
}

fn any_iotlb(input: &mut Input<'_>) -> IotlbMessage {
    IotlbMessage {
        iova: input.u64(),
        size: input.u64(),
        user_address: 0,
        access: Access(input.u8()),
        kind: IotlbKind(input.u8() % 6),
        padding: [0; 6],
    }
}
