// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver against a device that virtio-queue plays in this process.

use std::{
    thread::{self, JoinHandle},
    time::Duration,
};

use viommu_core::{
    DomainId, EndpointId, Gpa, IovaRange,
    wire::{MAP_F_READ, ReqMap},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    poll::PollContext,
};
use zerocopy::FromBytes;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const MOMENT: Duration = Duration::from_millis(20);

/// What a played device saw of one chain.
#[derive(Debug, PartialEq)]
struct Seen {
    readable: Vec<u8>,
    writable: usize,
}

/// A device that answers each chain of one queue with what `answer` makes of it.
struct Played {
    memory: GuestMemory,
    queue: Queue,
    kick: EventFd,
    call: EventFd,
}

impl Played {
    fn of(driver: &SplitQueue, memory: &GuestMemory, event_idx: EventIdx) -> Played {
        let mut queue = Queue::new(driver.size()).expect("a valid size");
        let low = |address: u64| Some(address as u32);
        let high = |address: u64| Some((address >> 32) as u32);
        let rings = driver.rings();
        queue.set_desc_table_address(low(rings.descriptors), high(rings.descriptors));
        queue.set_avail_ring_address(low(rings.avail), high(rings.avail));
        queue.set_used_ring_address(low(rings.used), high(rings.used));
        queue.set_event_idx(event_idx == EventIdx::On);
        queue.set_next_avail(driver.next_avail());
        queue.set_next_used(driver.next_avail());
        queue.set_ready(true);
        assert!(queue.is_valid(memory.mmap()));
        Played {
            memory: memory.clone(),
            queue,
            kick: driver.kick_fd().try_clone().expect("an eventfd"),
            call: driver.call_fd().try_clone().expect("an eventfd"),
        }
    }

    /// Serves every chain that is available now.
    fn serve(&mut self, answer: impl Fn(&Seen) -> Vec<u8>) -> Vec<Seen> {
        let mmap = self.memory.mmap();
        let mut all = Vec::new();
        loop {
            self.queue.disable_notification(mmap).expect("rings in memory");
            while let Some(chain) = self.queue.iter(mmap).expect("a valid index").next() {
                let (head, mut seen) = (chain.head_index(), Seen { readable: Vec::new(), writable: 0 });
                let mut place = None;
                for descriptor in chain {
                    if descriptor.is_write_only() {
                        place.get_or_insert(descriptor.addr());
                        seen.writable += descriptor.len() as usize;
                    } else {
                        seen.readable
                            .extend(self.memory.read(descriptor.addr().0, descriptor.len() as usize));
                    }
                }
                let bytes = answer(&seen);
                mmap.write_slice(&bytes, place.unwrap_or(GuestAddress(0))).expect("in memory");
                self.queue.add_used(mmap, head, bytes.len() as u32).expect("rings in memory");
                all.push(seen);
            }
            if !self.queue.enable_notification(mmap).expect("rings in memory") {
                break;
            }
        }
        if self.queue.needs_notification(mmap).expect("rings in memory") {
            self.call.write(1).expect("an eventfd");
        }
        all
    }

    /// Serves at each kick, on a thread, until the returned handle is stopped.
    fn run(mut self, answer: impl Fn(&Seen) -> Vec<u8> + Send + 'static) -> Running {
        let stop = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        let stopped = stop.try_clone().expect("an eventfd");
        let thread = thread::spawn(move || {
            let context = PollContext::<u32>::new().expect("an epoll");
            context.add(&self.kick, 0).expect("an eventfd");
            context.add(&stopped, 1).expect("an eventfd");
            let mut all = Vec::new();
            while !context.wait().expect("an epoll").iter_readable().any(|event| event.token() == 1) {
                self.kick.read().expect("it was kicked");
                all.extend(self.serve(&answer));
            }
            all
        });
        Running { stop, thread }
    }
}

struct Running {
    stop: EventFd,
    thread: JoinHandle<Vec<Seen>>,
}

impl Running {
    fn stop(self) -> Vec<Seen> {
        self.stop.write(1).expect("an eventfd");
        self.thread.join().expect("the played device does not panic")
    }
}

fn memory() -> (GuestMemory, Arena) {
    let memory = GuestMemory::new(&[(0x10_0000, 0x20_0000), (0x1_0000_0000, 0x20_0000)]).expect("memory");
    (memory, Arena::new(0x10_0000, 0x20_0000))
}

fn queue(size: u16, event_idx: EventIdx) -> (GuestMemory, Arena, SplitQueue, Played) {
    let (memory, mut arena) = memory();
    let queue = SplitQueue::new(&memory, &mut arena, size, event_idx).expect("a queue");
    let played = Played::of(&queue, &memory, event_idx);
    (memory, arena, queue, played)
}

#[test]
fn memory_regions_have_a_hole_and_share_one_file() {
    let (memory, _) = memory();
    memory.write(0x1_0000_0000, b"high");
    assert_eq!(memory.read(0x1_0000_0000, 4), b"high");
    assert_eq!(memory.clone().read(0x1_0000_0000, 4), b"high");
    let offsets = memory.mmap().iter().map(|region| region.file_offset().expect("a file").start());
    assert_eq!(offsets.collect::<Vec<_>>(), [0, 0x20_0000]);
    assert!(memory.mmap().write_slice(b"hole", GuestAddress(0x8000_0000)).is_err());
}

#[test]
fn direct_and_indirect_chains_arrive_whole() {
    for size in [4, 256, 32768] {
        let (memory, mut arena, mut queue, mut played) = queue(size, EventIdx::Off);
        memory.write(0x1_0000_0000, b"abcdef");
        let buffers = [
            Buffer::readable(0x1_0000_0000, 2),
            Buffer::readable(0x1_0000_0004, 2),
            Buffer::writable(0x1_0000_1000, 8),
        ];
        let direct = queue.add(&buffers).expect("room");
        let indirect = queue.add_indirect(arena.take(48, 16), &buffers).expect("room");
        assert!(queue.kick_if_wanted());
        let seen = played.serve(|_| b"reply".to_vec());
        let expected = || Seen { readable: b"abef".to_vec(), writable: 8 };
        assert_eq!(seen, [expected(), expected()]);
        for head in [direct, indirect] {
            let used = queue.wait_used(MINUTE).expect("used");
            assert_eq!((used.head, used.written), (head.into(), 5));
        }
        assert_eq!(memory.read(0x1_0000_1000, 5), b"reply");
        assert_eq!(queue.take_used(), None);
    }
}

#[test]
fn every_descriptor_can_be_lent_and_comes_back() {
    let (_, _, mut queue, mut played) = queue(8, EventIdx::Off);
    let buffer = Buffer::writable(0x1_0000_0000, 8);
    for _ in 0..3 {
        let heads: Vec<u16> = (0..4).map(|_| queue.add(&[buffer, buffer]).expect("room")).collect();
        assert_eq!(queue.add(&[buffer]), None);
        assert_eq!(played.serve(|_| Vec::new()).len(), 4);
        let used: Vec<u32> = std::iter::from_fn(|| queue.take_used()).map(|used| used.head).collect();
        assert_eq!(used, heads.into_iter().map(u32::from).collect::<Vec<_>>());
    }
}

#[test]
fn indexes_wrap_around_with_and_without_event_indexes() {
    for event_idx in [EventIdx::Off, EventIdx::On] {
        let (memory, _, mut queue, _) = queue(4, event_idx);
        queue.restart_at(65533);
        let running = Played::of(&queue, &memory, event_idx).run(|seen| seen.readable.clone());
        for round in 0..20u8 {
            memory.write(0x1_0000_0000, &[round]);
            let buffers = [Buffer::readable(0x1_0000_0000, 1), Buffer::writable(0x1_0000_0100, 1)];
            let head = queue.add(&buffers).expect("room");
            queue.kick_if_wanted();
            let used = queue.wait_used(MINUTE).expect("used");
            assert_eq!((used.head, used.written), (head.into(), 1));
            assert_eq!(memory.read(0x1_0000_0100, 1), [round]);
        }
        assert_eq!(queue.next_avail(), 65533u16.wrapping_add(20));
        assert_eq!(running.stop().len(), 20);
    }
}

#[test]
fn a_device_that_does_not_want_a_kick_gets_none() {
    for event_idx in [EventIdx::Off, EventIdx::On] {
        let (memory, _, mut queue, mut played) = queue(8, event_idx);
        let buffer = Buffer::writable(0x1_0000_0000, 8);
        queue.add(&[buffer]).expect("room");
        assert!(queue.kick_if_wanted());
        played.queue.disable_notification(memory.mmap()).expect("rings in memory");
        queue.add(&[buffer]).expect("room");
        assert!(!queue.kick_if_wanted(), "{event_idx:?}");
        assert_eq!(queue.kick_fd().read().expect("kicked once"), 1);
        played.serve(|_| Vec::new());
        queue.add(&[buffer]).expect("room");
        assert!(queue.kick_if_wanted(), "{event_idx:?}");
    }
}

#[test]
fn a_silent_device_and_a_missing_call_are_told_apart() {
    let (memory, _, mut queue, mut played) = queue(8, EventIdx::Off);
    let buffer = Buffer::writable(0x1_0000_0000, 8);
    let head = queue.add(&[buffer]).expect("room");
    assert_eq!(queue.wait_used(MOMENT), Err(WaitError::TimedOut));
    played.queue.add_used(memory.mmap(), head, 0).expect("rings in memory");
    assert_eq!(queue.after_silence(), WaitError::NotCalled);
    assert_eq!(queue.after_silence(), WaitError::TimedOut);
}

#[test]
fn hostile_chains_reach_the_device_as_they_are_written() {
    let (_, _, mut queue, mut played) = queue(8, EventIdx::Off);
    // A descriptor that is its own successor, and a head that does not exist.
    queue.write_descriptor(3, Descriptor::new(0x1_0000_0000, 1, flags::NEXT, 3));
    queue.publish(3);
    queue.publish(8);
    let chains: Vec<_> = {
        let mmap = played.memory.mmap().clone();
        std::iter::from_fn(|| played.queue.pop_descriptor_chain(&mmap))
            .map(|chain| (chain.head_index(), chain.count()))
            .collect()
    };
    assert_eq!(chains, [(3, 8), (8, 0)]);
    queue.set_avail_index(queue.next_avail().wrapping_add(9));
    assert!(
        played.queue.iter(played.memory.mmap()).is_err(),
        "the index jumped further than the queue is long"
    );
}

#[test]
fn a_request_is_the_one_the_specification_lays_out_and_its_reply_comes_back() {
    for event_idx in [EventIdx::Off, EventIdx::On] {
        let (memory, mut arena) = memory();
        let requests = SplitQueue::new(&memory, &mut arena, 16, event_idx).expect("a queue");
        let events = SplitQueue::new(&memory, &mut arena, 16, event_idx).expect("a queue");
        let running =
            Played::of(&requests, &memory, event_idx).run(|seen| vec![seen.readable[0]; seen.writable]);
        let mut driver = IommuDriver::new(&mut arena, requests, events, 512, MINUTE);
        let (domain, endpoint) = (DomainId(7), EndpointId(9));
        let range = IovaRange::new(0x1000, 0x1fff).expect("ordered");
        let replies = [
            driver.attach(domain, endpoint, 0),
            driver.detach(domain, endpoint),
            driver.map(domain, range, Gpa(0x5000), MAP_F_READ),
            driver.unmap(domain, range),
            driver.probe(endpoint),
        ];
        let replies = replies.map(|reply| reply.expect("a reply"));
        let lengths =
            replies.each_ref().map(|reply| (reply.status(), reply.written, reply.properties().len()));
        assert_eq!(lengths, [(1, 4, 0), (2, 4, 0), (3, 4, 0), (4, 4, 0), (5, 516, 512)]);
        let seen = running.stop();
        assert_eq!(seen.iter().map(|seen| seen.readable.len()).collect::<Vec<_>>(), [20, 20, 36, 28, 72]);
        let map = ReqMap::read_from_bytes(&seen[2].readable).expect("its size");
        assert_eq!((map.domain.get(), map.virt_start.get(), map.virt_last.get()), (7, 0x1000, 0x1fff));
        assert_eq!((map.phys_start.get(), map.flags.get()), (0x5000, MAP_F_READ));
    }
}

#[test]
fn requests_can_be_outstanding_together_and_untouched_bytes_show() {
    let (memory, mut arena) = memory();
    let requests = SplitQueue::new(&memory, &mut arena, 8, EventIdx::Off).expect("a queue");
    let events = SplitQueue::new(&memory, &mut arena, 2, EventIdx::Off).expect("a queue");
    let mut played = Played::of(&requests, &memory, EventIdx::Off);
    let mut driver = IommuDriver::new(&mut arena, requests, events, 0, MINUTE);
    let heads: Vec<_> = (0..4).map(|byte| driver.submit(&[byte], 2).expect("room")).collect();
    assert_eq!(driver.submit(&[4], 2), None);
    played.serve(|seen| seen.readable.clone());
    for (byte, head) in heads.into_iter().enumerate() {
        let expected = Reply { written: 1, bytes: vec![byte as u8, UNTOUCHED] };
        assert_eq!(driver.complete(), Ok((head, expected)));
    }
    assert!(driver.submit(&[4], 2).is_some());
    driver.restart();
    assert_eq!(driver.requests().next_avail(), 0);
    assert_eq!((0..5).filter_map(|byte| driver.submit(&[byte], 2)).count(), 4);
}

#[test]
fn posted_event_buffers_come_back_as_events() {
    let (memory, mut arena) = memory();
    let requests = SplitQueue::new(&memory, &mut arena, 2, EventIdx::Off).expect("a queue");
    let events = SplitQueue::new(&memory, &mut arena, 4, EventIdx::Off).expect("a queue");
    let mut played = Played::of(&events, &memory, EventIdx::Off);
    let mut driver = IommuDriver::new(&mut arena, requests, events, 0, MINUTE);
    for _ in 0..3 {
        driver.post_event_buffers(9);
        let seen = played.serve(|_| [&[2, 0, 0, 0, 1, 1, 0, 0, 9][..], &[0; 15]].concat());
        assert_eq!(seen.len(), 4);
        for _ in 0..4 {
            let event = driver.wait_event().expect("an event");
            assert_eq!((event.written, event.fault.reason), (24, 2));
            assert_eq!((event.fault.flags.get(), event.fault.endpoint.get()), (0x101, 9));
        }
    }
}
