// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The codec against a raw socket: every split of the stream, and every peer that does not keep to the protocol.

use std::fs::File;
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg, sockopt};
use zerocopy::IntoBytes;

use super::{
    Access, Channel, ChannelError, Config, ConfigHeader, FDS_MAX, Flags, FrontendRequest, IotlbKind,
    IotlbMessage, MemoryRegion, Message, PAYLOAD_LEN_MAX, PayloadError, QUEUED_MESSAGES_MAX, VringFd,
    memory_table, memory_table_payload,
};

/// The tests of this module count this process's file descriptors: one at a time.
static FD_TABLE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    FD_TABLE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// How many memfds named `NAME` this process has open: no other test's descriptors are counted.
fn open_fds() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().contains(NAME)).count()
}

const NAME: &str = "message-codec-test";

fn memfds(count: usize) -> Vec<OwnedFd> {
    (0..count).map(|_| memfd_create(NAME, MemfdFlags::CLOEXEC).unwrap()).collect()
}

fn pair() -> (Channel, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Channel::new(ours), theirs)
}

fn raw(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    [[request, flags, payload.len() as u32].as_bytes(), payload].concat()
}

fn send_with_fds(socket: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    assert_eq!(
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap(),
        bytes.len()
    );
}

#[test]
fn a_message_split_at_every_byte_comes_whole_and_blocks_nobody() {
    let bytes = raw(9, 9, &[7; 40]);
    for split in 0..bytes.len() {
        let (mut channel, mut peer) = pair();
        peer.write_all(&bytes[..split]).unwrap();
        assert!(channel.receive().unwrap().is_none(), "split at {split}");
        peer.write_all(&bytes[split..]).unwrap();
        let message = channel.receive().unwrap().unwrap();
        assert_eq!((message.request, message.flags), (9, Flags::NEED_REPLY));
        assert_eq!(message.payload, [7; 40]);
        assert!(channel.receive().unwrap().is_none());
    }
}

#[test]
fn fds_stay_with_the_message_whose_first_byte_they_came_with() {
    let _alone = alone();
    let (mut channel, mut peer) = pair();
    let mut files = memfds(2);
    File::from(files[1].try_clone().unwrap()).write_all(b"second").unwrap();
    peer.write_all(&raw(1, 1, b"")).unwrap();
    send_with_fds(&peer, &raw(5, 1, b"payload")[..3], &files);
    peer.write_all(&raw(5, 1, b"payload")[3..]).unwrap();
    peer.write_all(&raw(3, 1, b"")).unwrap();
    assert!(channel.receive().unwrap().unwrap().fds.is_empty());
    let mut message = channel.receive().unwrap().unwrap();
    assert_eq!((message.request, message.fds.len()), (5, 2));
    assert!(channel.receive().unwrap().unwrap().fds.is_empty());

    let flags = rustix::io::fcntl_getfd(&message.fds[1]).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    let mut received = File::from(message.fds.pop().unwrap());
    let mut text = String::new();
    received.rewind().unwrap();
    received.read_to_string(&mut text).unwrap();
    assert_eq!(text, "second");
    files.clear();
    drop((message, received));
    assert_eq!(open_fds(), 0);
}

#[test]
fn channels_carry_a_message_with_as_many_fds_as_the_limit_allows() {
    let _alone = alone();
    let (mut sender, socket) = pair();
    let mut receiver = Channel::new(socket);
    let message =
        Message::new(FrontendRequest::SET_MEM_TABLE, &[1u8; PAYLOAD_LEN_MAX]).with_fds(memfds(FDS_MAX));
    sender.queue(message).unwrap();
    sender.flush().unwrap();
    assert!(!sender.wants_write());
    let message: Message = receiver.receive().unwrap().unwrap();
    assert_eq!((message.payload.len(), message.fds.len()), (PAYLOAD_LEN_MAX, FDS_MAX));
    assert_eq!(open_fds(), FDS_MAX, "the sender's are closed, the receiver's are open");
    drop(message);
    assert_eq!(open_fds(), 0);
}

#[test]
fn a_sender_that_is_stopped_in_the_middle_sends_the_rest_and_the_fds_once() {
    let _alone = alone();
    let (ours, theirs) = UnixStream::pair().unwrap();
    sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
    let (mut sender, mut receiver) = (Channel::new(ours), Channel::new(theirs));
    for number in 0..12u8 {
        let message = Message::new(u32::from(number), &[number; PAYLOAD_LEN_MAX]).with_fds(memfds(1));
        sender.queue(message).unwrap();
    }
    sender.flush().unwrap();
    assert!(sender.wants_write(), "the socket took everything: the buffer is too large for this test");
    for number in 0..12u8 {
        let message: Message = loop {
            match receiver.receive().unwrap() {
                Some(message) => break message,
                None => sender.flush().unwrap(),
            }
        };
        assert_eq!((message.request, message.fds.len()), (u32::from(number), 1));
        assert!(message.payload.iter().all(|&byte| byte == number));
    }
    assert!(!sender.wants_write());
    assert_eq!(open_fds(), 0);
}

#[test]
fn a_peer_that_reads_nothing_cannot_grow_the_queue() {
    let (mut channel, _peer) = pair();
    for _ in 0..QUEUED_MESSAGES_MAX {
        channel.queue(Message::new(FrontendRequest::IOTLB_MSG, &IotlbMessage::invalidate(0, 1))).unwrap();
    }
    let one_more = channel.queue(Message::new(FrontendRequest::IOTLB_MSG, &()));
    assert!(matches!(one_more, Err(ChannelError::QueueFull { messages: QUEUED_MESSAGES_MAX, .. })));

    let (mut channel, _peer) = pair();
    let long = || Message::new(1u32, &[0u8; PAYLOAD_LEN_MAX]);
    let refused = (0..QUEUED_MESSAGES_MAX).find_map(|_| channel.queue(long()).err()).unwrap();
    assert!(matches!(refused, ChannelError::QueueFull { messages: 15, .. }), "{refused}");
}

#[test]
fn an_end_between_messages_differs_from_an_end_inside_one() {
    let (mut channel, mut peer) = pair();
    peer.write_all(&raw(1, 1, b"")).unwrap();
    drop(peer);
    assert!(channel.receive().unwrap().is_some());
    assert!(matches!(channel.receive(), Err(ChannelError::Disconnected)));
    channel.queue(Message::new(1u32, &())).unwrap();
    assert!(matches!(channel.flush(), Err(ChannelError::Disconnected)));

    for kept in [1, 11, 12, 13, 19] {
        let (mut channel, mut peer) = pair();
        peer.write_all(&raw(1, 1, &[0; 8])[..kept]).unwrap();
        drop(peer);
        let error = channel.receive().unwrap_err();
        assert!(matches!(error, ChannelError::Truncated { received } if received == kept), "{error}");
    }
}

#[test]
fn an_oversized_message_is_named_and_its_fds_are_closed() {
    let _alone = alone();
    let (mut channel, peer) = pair();
    let files = memfds(3);
    send_with_fds(&peer, [37, 1, PAYLOAD_LEN_MAX as u32 + 1].as_bytes(), &files);
    drop(files);
    let error = channel.receive().unwrap_err();
    assert!(matches!(error, ChannelError::TooLong { request: 37, size: 4097 }), "{error}");
    assert_eq!(open_fds(), 0);

    let refused = channel.queue(Message::new(37u32, &[0u8; PAYLOAD_LEN_MAX + 1])).unwrap_err();
    assert!(matches!(refused, ChannelError::TooLong { request: 37, size: 4097 }), "{refused}");
    let refused = channel.queue(Message::new(37u32, &()).with_fds(memfds(FDS_MAX + 1))).unwrap_err();
    assert!(matches!(refused, ChannelError::TooManyFds), "{refused}");
    assert!(!channel.wants_write());
}

#[test]
fn too_many_fds_are_refused_and_closed_whether_they_come_at_once_or_in_parts() {
    let _alone = alone();
    for count in [FDS_MAX + 1, FDS_MAX + 2, 64] {
        let (mut channel, peer) = pair();
        send_with_fds(&peer, &raw(5, 1, b""), &memfds(count));
        assert!(matches!(channel.receive(), Err(ChannelError::TooManyFds)), "{count}");
        assert_eq!(open_fds(), 0);
    }
    let (mut channel, peer) = pair();
    send_with_fds(&peer, &raw(5, 1, b"")[..6], &memfds(20));
    send_with_fds(&peer, &raw(5, 1, b"")[6..], &memfds(20));
    assert!(matches!(channel.receive(), Err(ChannelError::TooManyFds)));
    assert_eq!(open_fds(), 0);
}

#[test]
fn fds_of_an_unfinished_message_are_closed_with_the_channel() {
    let _alone = alone();
    let (mut channel, peer) = pair();
    send_with_fds(&peer, &raw(5, 1, b"payload")[..5], &memfds(4));
    assert!(channel.receive().unwrap().is_none());
    assert_eq!(open_fds(), 4);
    channel.queue(Message::new(5u32, &()).with_fds(memfds(1))).unwrap();
    drop(channel);
    assert_eq!(open_fds(), 0);
}

#[test]
fn garbage_is_refused_by_its_version() {
    let (mut channel, mut peer) = pair();
    peer.write_all(&[0xff; 64]).unwrap();
    let error = channel.receive().unwrap_err();
    assert!(matches!(error, ChannelError::BadVersion { request: u32::MAX, flags: u32::MAX }), "{error}");
}

#[test]
fn payloads_are_read_back_as_they_were_written() {
    let update = IotlbMessage::update(0x1000, 0x2000, 0x7f00_0000_0000, Access::READ_WRITE);
    let message = Message::from(&update);
    assert_eq!((message.request, message.payload.len()), (22, 32));
    assert_eq!(message.payload[24..26], [3, 2]);
    assert_eq!(message.body::<IotlbMessage>(), Ok(update));
    let miss = Message::from(&IotlbMessage::miss(0x1000, Access::WRITE)).with_need_reply();
    assert_eq!(
        (miss.request, miss.flags.needs_reply(), miss.payload[24..26].to_vec()),
        (1, true, vec![2, 1])
    );
    assert_eq!(miss.body::<IotlbMessage>().unwrap().kind, IotlbKind::MISS);

    let region = |n| MemoryRegion { guest_address: n, size: n + 1, user_address: n + 2, mmap_offset: n + 3 };
    let table = Message::new(5u32, memory_table_payload(&[region(1), region(9)]).as_slice());
    assert_eq!(memory_table(&table), Ok(vec![region(1), region(9)]));

    let header = ConfigHeader { offset: 8, size: 3, flags: 0 };
    let config = Config { header, bytes: vec![1, 2, 3] };
    assert_eq!(Config::parse(&Message::new(24u32, config.payload().as_slice())), Ok(config));

    assert_eq!((VringFd(0x1ff).index(), VringFd(0x1ff).has_no_fd()), (0xff, true));
    assert_eq!(message.reply(&0u64).flags, Flags::REPLY);
    assert_eq!(
        format!("{:?} {:?}", FrontendRequest::GET_SHMEM_CONFIG, FrontendRequest(99)),
        "GET_SHMEM_CONFIG request 99"
    );
    assert_eq!(FrontendRequest::GET_SHMEM_CONFIG.0, 44);
}

#[test]
fn payloads_of_another_length_are_refused() {
    let short = Message::new(8u32, &[0u8; 31]);
    assert_eq!(short.body::<IotlbMessage>(), Err(PayloadError { request: 8, expected: 32, found: 31 }));
    for (count, len) in [(1u32, 8usize), (1, 39), (1, 41), (33, 8 + 33 * 32), (u32::MAX, 40), (0, 4)] {
        let mut payload = memory_table_payload(&[]);
        payload[..4].copy_from_slice(&count.to_ne_bytes());
        payload.resize(len, 0);
        assert!(
            memory_table(&Message::new(5u32, payload.as_slice())).is_err(),
            "{count} regions in {len} bytes"
        );
    }
    for (size, len) in [(4u32, 15usize), (4, 17), (u32::MAX, 16), (0, 11)] {
        let mut payload = vec![0; len];
        payload[4..8].copy_from_slice(&size.to_ne_bytes());
        assert!(Config::parse(&Message::new(24u32, payload.as_slice())).is_err(), "{size} in {len} bytes");
    }
}
