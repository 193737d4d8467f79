// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The VMM's side against a back-end that vhost-user-backend plays in this process.

use std::{
    io,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use tempfile::TempDir;
use vhost::vhost_user::{Listener, message::VhostUserProtocolFeatures};
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringRwLock, VringT};
use viommu_core::{DomainId, EndpointId, wire::BYPASS_OFFSET};
use virtio_bindings::{virtio_config::VIRTIO_F_VERSION_1, virtio_ring::VIRTIO_RING_F_EVENT_IDX};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::{
    epoll::EventSet,
    event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier},
};

use super::*;
use crate::driver::{Arena, EventIdx, GuestMemory, IommuDriver, SplitQueue};

const MINUTE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(20);

/// A back-end that answers every request with status 0 and as many bytes as there is room for.
struct Played {
    memory: Option<GuestMemoryAtomic<GuestMemoryMmap>>,
    config: Vec<u8>,
    resets: usize,
}

impl VhostUserBackendMut for Played {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        2
    }

    fn max_queue_size(&self) -> usize {
        256
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 30 | 1
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn reset_device(&mut self) {
        self.resets += 1;
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config[offset as usize..][..size as usize].to_vec()
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        self.config[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &mut self,
        device_event: u16,
        _: EventSet,
        rings: &[VringRwLock],
        _: usize,
    ) -> io::Result<()> {
        let memory = self.memory.as_ref().expect("the memory table comes first").memory();
        let ring = &rings[usize::from(device_event)];
        loop {
            let next = ring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
            let Some(chain) = next else {
                match ring.enable_notification().expect("rings in memory") {
                    true => continue,
                    false => break,
                }
            };
            let head = chain.head_index();
            let reply = chain.writable().next().expect("a tail");
            memory.write_slice(&vec![0; reply.len() as usize], reply.addr()).expect("in memory");
            ring.add_used(head, reply.len()).expect("rings in memory");
            ring.signal_used_queue().expect("an eventfd");
        }
        Ok(())
    }
}

/// A played back-end that serves one connection at a socket in a directory of its own.
fn played() -> (TempDir, FrontEnd, Arc<Mutex<Played>>, JoinHandle<()>) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("played.sock");
    let backend = Arc::new(Mutex::new(Played { memory: None, config: (0..40).collect(), resets: 0 }));
    let (shared, path) = (backend.clone(), socket.clone());
    let serving = thread::spawn(move || {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("played".to_owned(), shared, memory).expect("a daemon");
        let mut listener = Listener::new(&path, true).expect("a socket");
        daemon.start(&mut listener).expect("a connection");
        // An ordinary end of the connection is an error to the crate.
        let _ = daemon.wait();
    });
    let front_end = FrontEnd::connect(&socket, MINUTE).expect("it listens soon");
    (directory, front_end, backend, serving)
}

#[test]
fn a_guest_is_served_through_the_connection_until_it_ends() {
    for features in [u64::MAX, !(1 << VIRTIO_RING_F_EVENT_IDX)] {
        let (_directory, mut front_end, backend, serving) = played();
        front_end.negotiate(Wanted { features, ..Wanted::default() }).expect("negotiated");
        let accepted_event_idx = front_end.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        assert_eq!(accepted_event_idx, features == u64::MAX);
        let event_idx = if accepted_event_idx { EventIdx::On } else { EventIdx::Off };

        let memory = GuestMemory::new(&[(0, 0x10_0000), (0x1_0000_0000, 0x10_0000)]).expect("memory");
        let mut arena = Arena::new(0x1_0000_0000, 0x10_0000);
        let mut requests = SplitQueue::new(&memory, &mut arena, 16, event_idx).expect("a queue");
        requests.restart_at(65535);
        let events = SplitQueue::new(&memory, &mut arena, 16, event_idx).expect("a queue");
        front_end.set_memory(&memory).expect("two regions");
        front_end.start_ring(0, &requests).expect("started");
        let mut driver = IommuDriver::new(&mut arena, requests, events, 0, MINUTE);
        for _ in 0..40 {
            let reply = driver.attach(DomainId(1), EndpointId(2), 0).expect("a reply");
            assert_eq!((reply.written, reply.status()), (4, 0));
        }
        assert_eq!(front_end.stop_ring(0).expect("stopped"), 39);

        front_end.reset_device().expect("reset");
        assert_eq!(backend.lock().expect("no panic").resets, 1);
        drop(front_end);
        serving.join().expect("the back-end saw the end");
    }
}

#[test]
fn configuration_space_is_read_and_written() {
    let (_directory, mut front_end, backend, serving) = played();
    front_end.negotiate(Wanted::default()).expect("negotiated");
    assert!(front_end.protocol_features().contains(VhostUserProtocolFeatures::REPLY_ACK));
    assert_eq!(front_end.read_config(4, 3).expect("three bytes"), [4, 5, 6]);
    front_end.write_config(BYPASS_OFFSET as u32, &[1]).expect("written");
    let config = front_end.config().expect("forty bytes");
    assert_eq!((config.bypass, config.domain_start.get()), (1, 0x1b1a_1918));
    assert_eq!(backend.lock().expect("no panic").config[BYPASS_OFFSET], 1);
    drop(front_end);
    serving.join().expect("the back-end saw the end");
}

#[test]
fn a_feature_that_is_not_wanted_is_not_accepted() {
    let (_directory, mut front_end, _, serving) = played();
    let wanted = Wanted { features: 1 << VIRTIO_F_VERSION_1, protocol: VhostUserProtocolFeatures::empty() };
    front_end.negotiate(wanted).expect("negotiated");
    assert_eq!(front_end.features(), 1 << VIRTIO_F_VERSION_1 | 1 << 30);
    assert!(front_end.read_config(0, 1).is_err(), "without CONFIG there is no configuration space");
    drop(front_end);
    serving.join().expect("the back-end saw the end");
}

#[test]
fn a_malformed_message_is_sent_as_it_is_and_the_end_of_the_connection_is_seen() {
    let (_directory, front_end, _, serving) = played();
    let connection = front_end.connection();
    assert_eq!(connection.wait_closed(MOMENT).expect_err("open").kind(), io::ErrorKind::WouldBlock);
    let features = connection.call(&Message::new(1, []), &[], MINUTE).expect("features");
    assert_eq!((features.request, features.flags, features.body.len()), (1, VERSION | REPLY, 8));
    connection.send(&Message::new(9999, [1, 2, 3]), &[]).expect("sent");
    connection.wait_closed(MINUTE).expect("the back-end gave up");
    serving.join().expect("the back-end ended");
}

#[test]
fn messages_carry_as_many_descriptors_as_a_test_likes() {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let (ours, theirs) = (Connection::of(ours), Connection::of(theirs));
    let fd = theirs.stream().as_fd();
    let message = Message { request: 5, flags: VERSION | NEED_REPLY, body: vec![7; 300] };
    ours.send(&message, &[fd; 33]).expect("sent");
    assert_eq!(theirs.receive(MINUTE).expect("received"), message);
    ours.send_bytes(&message.to_bytes()[..13], &[]).expect("sent");
    drop(ours);
    assert_eq!(theirs.receive(MINUTE).expect_err("cut short").kind(), io::ErrorKind::UnexpectedEof);
}
