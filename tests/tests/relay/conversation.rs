// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the two sides of a relay are told, and what ends their conversation: malformed, forbidden and missing
//! things, and floods.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_iommu::message::features::{self, ACCESS_PLATFORM, LOG_ALL, VERSION_1, protocol};
use vhost_user_iommu::message::{
    FrontendRequest, IotlbMessage, MemoryRegion, VringAddress, VringState, memory_table_payload,
};
use viommu_tests::front_end::{Message, NEED_REPLY, REPLY, VERSION, Wanted};
use viommu_tests::iotlb_disk::Options;
use zerocopy::{FromBytes, IntoBytes};

use crate::bed::*;
use crate::vmm::{DiskVmm, RINGS, wanted};

/// A raw message of the VMM.
fn message(request: FrontendRequest, body: &[u8]) -> Message {
    Message::new(request.0, body)
}

/// A VMM with a running disk sends `message`; the conversation ends, the log has `line`, and all works again after.
fn ends_it(message: &Message, fds: &[BorrowedFd<'_>], line: &str) {
    let bed = Bed::new();
    let (_guest, mut vmm) = bed.run();
    vmm.front.connection().send(message, fds).expect("sends");
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    bed.wait_log(line);
    vmm = DiskVmm::plug(&bed, 0);
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(5), Ok([5; SECTOR]));
}

#[test]
fn each_side_is_offered_what_translation_needs_and_the_vmm_nothing_that_is_not_carried() {
    let all = Options::default();
    let many = Options { features: all.features | LOG_ALL, protocol_features: (1 << 23) - 1, ..all };
    let bed = Bed::with(&[many], &[]);
    let mut vmm = DiskVmm::connect(&bed, 0);
    let offered = vmm.front.step(|vhost| vhost.get_features()).expect("features");
    assert_eq!(offered, all.features, "LOG_ALL is hidden, ACCESS_PLATFORM and the rest are there");
    assert_ne!(offered & ACCESS_PLATFORM, 0);

    let protocol = wanted().protocol - VhostUserProtocolFeatures::BACKEND_REQ;
    vmm.front.negotiate(Wanted { protocol, ..wanted() }).expect("negotiates");
    let get = Message::new(FrontendRequest::GET_PROTOCOL_FEATURES.0, []);
    let reply = vmm.front.connection().call(&get, &[], PATIENCE).expect("a reply");
    let offered = u64::read_from_bytes(&reply.body).expect("a number");
    let carried = protocol::MQ
        | protocol::RARP
        | protocol::REPLY_ACK
        | protocol::MTU
        | protocol::BACKEND_REQ
        | protocol::CONFIG
        | protocol::INFLIGHT_SHMFD
        | protocol::RESET_DEVICE
        | protocol::CONFIGURE_MEM_SLOTS;
    assert_eq!(offered, carried);

    // This VMM clears bit 33 and wants no BACKEND_REQ.
    assert_eq!(vmm.front.features() & ACCESS_PLATFORM, 0);
    assert!(!vmm.front.protocol_features().contains(VhostUserProtocolFeatures::BACKEND_REQ));
    let negotiated = bed.disk(0).negotiated().expect("negotiated");
    assert_eq!(negotiated.features, vmm.front.features() | ACCESS_PLATFORM);
    let needed = protocol::REPLY_ACK | protocol::BACKEND_REQ;
    assert_eq!(negotiated.protocol_features, vmm.front.protocol_features().bits() | needed);
}

#[test]
fn a_vmm_cannot_accept_what_it_was_not_offered() {
    let all = Options::default();
    let logging = Options { features: all.features | LOG_ALL, protocol_features: (1 << 23) - 1, ..all };
    let bed = Bed::with(&[logging], &[]);
    let mut vmm = DiskVmm::connect(&bed, 0);
    vmm.front.negotiate(wanted()).expect("negotiates");
    let set = |request: FrontendRequest, value: u64| message(request, value.as_bytes());
    let connection = vmm.front.connection();
    connection.send(&set(FrontendRequest::SET_PROTOCOL_FEATURES, u64::MAX), &[]).expect("sends");
    let features = LOG_ALL | VERSION_1 | features::PROTOCOL_FEATURES;
    let acked = Message { flags: VERSION | NEED_REPLY, ..set(FrontendRequest::SET_FEATURES, features) };
    let reply = connection.call(&acked, &[], PATIENCE).expect("a reply");
    assert_eq!(reply.body, 0u64.as_bytes());
    let negotiated = bed.disk(0).negotiated().expect("negotiated");
    assert_eq!(negotiated.features, VERSION_1 | features::PROTOCOL_FEATURES | ACCESS_PLATFORM);
    let hidden = protocol::LOG_SHMFD | protocol::INBAND_NOTIFICATIONS | protocol::GPA_ADDRESSES;
    assert_eq!(negotiated.protocol_features & hidden, 0);
}

#[test]
fn a_back_end_without_an_iotlb_is_refused_with_the_reason() {
    let all = Options::default();
    let cases = [
        (Options::without_iotlb(), "VIRTIO_F_ACCESS_PLATFORM"),
        (all.without_features(ACCESS_PLATFORM), "VIRTIO_F_ACCESS_PLATFORM"),
        (all.without_features(features::PROTOCOL_FEATURES), "VHOST_USER_F_PROTOCOL_FEATURES"),
        (all.without_protocol_features(protocol::REPLY_ACK), "VHOST_USER_PROTOCOL_F_REPLY_ACK"),
        (all.without_protocol_features(protocol::BACKEND_REQ), "VHOST_USER_PROTOCOL_F_BACKEND_REQ"),
    ];
    for (options, name) in cases {
        let mut bed = Bed::with(&[options], &[]);
        let mut vmm = DiskVmm::connect(&bed, 0);
        vmm.front.negotiate(wanted()).expect_err(name);
        bed.wait_log(&format!(
            "endpoint 00:02.0: the back-end does not offer {name}: it cannot work behind an IOMMU"
        ));
        bed.serve_disk(0, all);
        let (_guest, _vmm) = bed.run();
    }
}

#[test]
fn a_vmm_without_protocol_features_is_refused_with_the_reason() {
    let bed = Bed::new();
    let mut guest = bed.boot();
    let mut vmm = DiskVmm::connect(&bed, 0);
    vmm.front.step(|vhost| vhost.get_features()).expect("features");
    vmm.front.step(|vhost| vhost.set_features(VERSION_1)).expect("features");
    vmm.front.set_memory(&bed.memory).expect("memory");
    // Nothing is cached yet, and so nothing is in the way of the guest.
    guest.attach(0, DOMAIN);
    let ring = bed.memory.vmm_address(RINGS.of(0).0);
    // Fails only if the conversation has ended already.
    let _ = vmm.set_ring_addresses([ring, ring + 0x1000, ring + 0x2000]);
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    bed.wait_log("the VMM starts a ring without the protocol features that an IOTLB takes");
}

#[test]
fn a_back_end_that_takes_no_more_connections_holds_nobody_up() {
    let mut bed = Bed::new();
    bed.disks[0] = None;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).expect("a socket");
    bind(&socket, &SocketAddrUnix::new(bed.disk_path(0)).expect("an address")).expect("bound");
    listen(&socket, 0).expect("it listens and never accepts");
    let _only_one = UnixStream::connect(bed.disk_path(0)).expect("the only one that waits");
    let vmm = DiskVmm::connect(&bed, 0);
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    bed.wait_log("it takes no more connections");
    bed.boot().attach(0, DOMAIN);
}

#[test]
fn a_back_end_that_is_not_running_is_named_and_can_be_started_later() {
    let mut bed = Bed::new();
    bed.disks[0] = None;
    let vmm = DiskVmm::connect(&bed, 0);
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    bed.wait_log("endpoint 00:02.0: no back-end at ");
    bed.wait_log("start it before the VMM");
    bed.serve_disk(0, Options::default());
    let (_guest, mut vmm) = bed.run();

    // One that goes away takes the VMM's device with it, and another can take its place.
    bed.disks[0] = None;
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
    bed.wait_log("endpoint 00:02.0: the back-end disconnected; the VMM loses the device");
    bed.serve_disk(0, Options::default());
    vmm = DiskVmm::plug(&bed, 0);
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(5), Ok([5; SECTOR]));
}

#[test]
fn a_message_that_is_not_carried_ends_the_conversation_and_is_named() {
    let file = std::fs::File::open("/dev/null").expect("a file");
    let fds = [file.as_fd()];
    let cannot = |name: &str| format!("the VMM sends {name}, which cannot be carried past an IOMMU");
    ends_it(&message(FrontendRequest::SET_LOG_BASE, &[0; 16]), &fds, &cannot("SET_LOG_BASE"));
    let update = IotlbMessage::update(0, 1 << 30, 0, vhost_user_iommu::message::Access::READ_WRITE);
    ends_it(&message(FrontendRequest::IOTLB_MSG, update.as_bytes()), &[], &cannot("IOTLB_MSG"));
    ends_it(&message(FrontendRequest(999), &[]), &[], &cannot("request 999"));
}

#[test]
fn a_message_of_the_wrong_form_ends_the_conversation() {
    let short = message(FrontendRequest::SET_FEATURES, &[0; 4]);
    ends_it(&short, &[], "request 2: payload of 4 bytes, expected 8");
    let version = Message { flags: 2, ..message(FrontendRequest::GET_FEATURES, &[]) };
    ends_it(&version, &[], "request 1: flags 0x2 have another version than 1");
    let long = message(FrontendRequest::SET_CONFIG, &[0; 5000]);
    ends_it(&long, &[], "request 25: payload of 5000 bytes is over the limit");
    let unanswerable = Message { flags: VERSION | REPLY, ..message(FrontendRequest::SET_VRING_NUM, &[]) };
    ends_it(&unanswerable, &[], "endpoint 00:02.0");
}

#[test]
fn a_malformed_memory_table_ends_the_conversation() {
    let file = std::fs::File::open("/dev/zero").expect("a file");
    let table =
        |regions: &[MemoryRegion]| message(FrontendRequest::SET_MEM_TABLE, &memory_table_payload(regions));
    let region = |guest_address, size, user_address| MemoryRegion {
        guest_address,
        size,
        user_address,
        mmap_offset: 0,
    };
    let refused = "is empty or passes the end of the address space";
    ends_it(&table(&[region(0, 0, 0)]), &[file.as_fd()], refused);
    ends_it(&table(&[region(u64::MAX - 1, 0x1000, 0)]), &[file.as_fd()], refused);
    ends_it(&table(&[region(0, 0x1000, u64::MAX - 1)]), &[file.as_fd()], refused);
    // More regions are announced than there are.
    let mut cut = table(&[region(0, 0x1000, 0)]);
    cut.body[0] = 7;
    ends_it(&cut, &[file.as_fd()], "request 5: payload");
}

#[test]
fn ring_addresses_outside_memory_end_the_conversation() {
    let ring = |index, address| VringAddress {
        index,
        flags: 0,
        descriptors: address,
        used: address,
        available: address,
        log: 0,
    };
    let set = |ring: VringAddress| message(FrontendRequest::SET_VRING_ADDR, ring.as_bytes());
    ends_it(&set(ring(0, 1)), &[], "the address of ring 0 before the memory that it lies in");
    let base = VringState { index: u32::MAX, num: 0 };
    let base = message(FrontendRequest::SET_VRING_BASE, base.as_bytes());
    ends_it(&base, &[], "ring 4294967295, and no device has so many");
}

#[test]
fn a_vmm_that_reads_no_answer_is_cut_off_and_the_daemon_lives() {
    let bed = Bed::new();
    let (mut guest, vmm) = bed.run();
    let connection = vmm.front.connection();
    let get = message(FrontendRequest::GET_FEATURES, &[]).to_bytes().repeat(100);
    let refused = (0..100_000).find_map(|_| connection.send_bytes(&get, &[]).err());
    let refused = refused.expect("the daemon takes for ever what it cannot answer");
    assert!(matches!(refused.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{refused}");
    bed.wait_log("endpoint 00:02.0: the ");
    guest.unmap(DOMAIN, SECRET_IOVA, PAGE);
    let mut vmm = DiskVmm::plug(&bed, 0);
    vmm.start(SHIFT);
    assert_eq!(vmm.read_sector(5), Ok([5; SECTOR]));
}

#[test]
fn a_vmm_that_sends_many_messages_at_once_is_served() {
    let bed = Bed::new();
    let (_guest, vmm) = bed.run();
    // As many as a device of hundreds of rings needs, and none is answered.
    let num = message(FrontendRequest::SET_VRING_NUM, VringState { index: 0, num: 16 }.as_bytes());
    let flood = num.to_bytes().repeat(5000);
    let get = message(FrontendRequest::GET_FEATURES, &[]);
    thread::scope(|scope| {
        scope.spawn(|| vmm.front.connection().send_bytes(&[flood, get.to_bytes()].concat(), &[]));
        let reply = vmm.front.connection().receive(PATIENCE).expect("the answer to the last");
        assert_eq!(reply.request, FrontendRequest::GET_FEATURES.0);
    });
}

#[test]
fn a_vmms_own_channel_is_kept_and_a_closed_one_ends_the_conversation() {
    let bed = Bed::new();
    let mut vmm = DiskVmm::connect(&bed, 0);
    let mut wanted = wanted();
    wanted.protocol |= VhostUserProtocolFeatures::BACKEND_REQ;
    vmm.front.negotiate(wanted).expect("negotiates");
    let channel = vmm.front.open_back_end_channel().expect("acknowledged");
    vmm.front.set_memory(&bed.memory).expect("memory");
    // Misses of the disk do not come here.
    let _guest = bed.boot();
    assert_eq!(bed.peek(0, SECRET.0), secret());
    let silence = channel.receive(Duration::from_millis(50)).expect_err("nothing comes");
    assert_eq!(silence.kind(), ErrorKind::WouldBlock);
    drop(channel);
    vmm.front.connection().wait_closed(PATIENCE).expect("the conversation ends");
}
