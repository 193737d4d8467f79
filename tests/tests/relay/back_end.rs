// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A back-end that says what a test wants it to say, where [`IotlbDisk`](viommu_tests::iotlb_disk::IotlbDisk) has
//! manners. It serves no ring.

use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user_iommu::message::features::{self, ACCESS_PLATFORM, VERSION_1, protocol};
use vhost_user_iommu::message::{Access, Channel, FrontendRequest, IotlbMessage, Message};
use viommu_tests::front_end::{Connection, Wanted};

use crate::bed::{Bed, PATIENCE};
use crate::vmm::DiskVmm;

/// The back-end's side of a conversation.
pub struct BackEnd {
    /// The main connection.
    pub main: Channel,
    /// The one on which it asks.
    pub requests: Channel,
    /// The same, for what a channel would not do.
    pub raw_requests: Connection,
}

impl BackEnd {
    /// Takes the place of disk 0; a VMM has found it and given it memory.
    pub fn replace_disk(bed: &mut Bed, wanted: Wanted) -> (BackEnd, DiskVmm) {
        BackEnd::replace_disk_for(bed, |bed| DiskVmm::plug_with(bed, 0, wanted))
    }

    /// The same, with a VMM that does what `plug` does; it ends with giving memory.
    pub fn replace_disk_for(bed: &mut Bed, plug: impl FnOnce(&Bed) -> DiskVmm) -> (BackEnd, DiskVmm) {
        bed.disks[0] = None;
        let listener = UnixListener::bind(bed.disk_path(0)).expect("the place is free");
        let bed = &*bed;
        let replaced = thread::scope(|scope| {
            let back_end = scope.spawn(move || BackEnd::negotiate(&listener));
            let vmm = plug(bed);
            (back_end.join().expect("negotiates"), vmm)
        });
        std::fs::remove_file(bed.disk_path(0)).expect("was bound");
        replaced
    }

    fn negotiate(listener: &UnixListener) -> BackEnd {
        let mut main = Channel::new(listener.accept().expect("a connection").0);
        let mut requests = None;
        loop {
            let mut message = receive(&mut main);
            match FrontendRequest(message.request) {
                FrontendRequest::GET_FEATURES => {
                    let features = VERSION_1 | ACCESS_PLATFORM | features::PROTOCOL_FEATURES;
                    send(&mut main, message.reply(&features));
                }
                FrontendRequest::GET_PROTOCOL_FEATURES => {
                    let features = protocol::REPLY_ACK | protocol::BACKEND_REQ;
                    send(&mut main, message.reply(&features));
                }
                FrontendRequest::SET_BACKEND_REQ_FD => {
                    let socket = UnixStream::from(message.fds.pop().expect("a channel"));
                    let raw = Connection::of(socket.try_clone().expect("a descriptor"));
                    requests = Some((Channel::new(socket), raw));
                    send(&mut main, message.reply(&0u64));
                }
                _ if message.flags.needs_reply() => send(&mut main, message.reply(&0u64)),
                _ => {}
            }
            if message.request == FrontendRequest::SET_MEM_TABLE.0 {
                let (requests, raw_requests) = requests.expect("a channel");
                return BackEnd { main, requests, raw_requests };
            }
        }
    }

    /// The next message about the IOTLB.
    pub fn receive_iotlb(&mut self) -> (Message, IotlbMessage) {
        let message = receive(&mut self.main);
        assert_eq!(FrontendRequest(message.request), FrontendRequest::IOTLB_MSG);
        let iotlb = message.body().expect("an IOTLB message");
        (message, iotlb)
    }

    /// Answers a message.
    pub fn answer(&mut self, message: &Message, value: u64) {
        send(&mut self.main, message.reply(&value));
    }

    /// Reports a miss.
    pub fn miss(&mut self, iova: u64, access: Access) {
        self.ask(Message::from(&IotlbMessage::miss(iova, access)).with_need_reply());
    }

    /// Asks the front-end for something.
    pub fn ask(&mut self, message: Message) {
        send(&mut self.requests, message);
    }

    /// What the front-end answers.
    pub fn receive_answer(&mut self) -> u64 {
        receive(&mut self.requests).body().expect("a number")
    }
}

/// The next message on `channel`.
pub fn receive(channel: &mut Channel) -> Message {
    loop {
        if let Some(message) = channel.receive().expect("the connection is open") {
            return message;
        }
        let mut polled = [PollFd::new(channel, PollFlags::IN)];
        let limit = Timespec::try_from(PATIENCE).expect("a time");
        assert!(poll(&mut polled, Some(&limit)).expect("polls") > 0, "nothing comes");
    }
}

/// Sends all of `message`, which fits into the socket.
pub fn send(channel: &mut Channel, message: Message) {
    channel.queue(message).expect("room");
    channel.flush().expect("sends");
    assert!(!channel.wants_write(), "nobody reads");
}
