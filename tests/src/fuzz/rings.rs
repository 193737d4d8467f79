// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Both virtqueues of the device with any content, wherever they lie, and a VMM that moves the memory below them.
//!
//! The daemon's worker is played: the back-end is told of kicks as the worker would tell it. Whatever a guest did,
//! the device serves good rings afterwards. How rings come to be is the `session` target's matter.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use vhost_user_backend::{VhostUserBackend, VringT};
use vhost_user_iommu::iommu::Iommu;
use vhost_user_iommu::session::backend::{Backend, EVENT_WAITS};
use vhost_user_iommu::session::ring::Ring;
use viommu_core::{Access, Fault, FaultReason, Iova, Status};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use zerocopy::IntoBytes;

use super::device::{self, ENDPOINT, OTHER, POLL};
use super::input::Input;
use crate::driver::Descriptor;

/// Where the memory begins in which rings and buffers usually lie; below 4 GiB there is a little, too.
const HIGH: u64 = 1 << 32;
const SIZE: usize = 0x1_0000;
const LOW_SIZE: usize = 0x2000;
/// Descriptor table, available ring and used ring of either queue.
const RINGS: [[u64; 3]; 2] =
    [[HIGH, HIGH + 0x1000, HIGH + 0x2000], [HIGH + 0x4000, HIGH + 0x5000, HIGH + 0x6000]];
/// A table for indirect descriptors.
const INDIRECT: u64 = HIGH + 0x8000;
/// Sixteen places for requests, and as many for replies.
const REQUESTS: u64 = HIGH + 0x9000;
const REPLIES: u64 = HIGH + 0xa000;
/// A guest can feed a ring for ever; then its VMM stops it.
const VMM_PATIENCE: Duration = Duration::from_millis(300);

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// The life of two rings.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut machine = Machine::new(&mut input);
    thread::scope(|scope| {
        let (running, ended) = mpsc::channel::<()>();
        let (rings, is_overdue) = (machine.rings.clone(), Arc::new(AtomicBool::default()));
        let patience = is_overdue.clone();
        scope.spawn(move || stop_when_overdue(&ended, &rings, &patience));
        while !input.is_empty() && !is_overdue.load(Ordering::Relaxed) {
            machine.step(&mut input);
        }
        drop(running);
    });
    machine.assert_serves_good_rings();
}

/// The VMM waits; then it stops the rings, and the life of the rings ends when that has worked.
fn stop_when_overdue(ended: &Receiver<()>, rings: &[Ring], is_overdue: &AtomicBool) {
    let mut patience = VMM_PATIENCE;
    while ended.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
        is_overdue.store(true, Ordering::Relaxed);
        rings.iter().for_each(|ring| ring.set_queue_ready(false));
        // The step that was under way may be one that starts a ring.
        patience = Duration::from_millis(1);
    }
}

struct Machine {
    iommu: Arc<Iommu>,
    backend: Backend,
    memory: Memory,
    rings: [Ring; 2],
    /// The index of the next entry of either available ring.
    next_avail: [u16; 2],
}

impl Machine {
    fn new(input: &mut Input<'_>) -> Machine {
        let (iommu, event_waits) = device::iommu();
        let memory = Memory::new(guest_memory(SIZE));
        let backend = Backend::new(iommu.clone(), event_waits, POLL).expect("a file descriptor");
        let ring = || Ring::new(memory.clone(), 1024).expect("a size of rings");
        let rings = [ring(), ring()];
        let features = backend.features();
        backend.acked_features(features);
        let mut machine = Machine { iommu, backend, memory, rings, next_avail: [0; 2] };
        machine.start(0, input);
        machine.start(1, input);
        machine
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let choice = input.u8();
        let queue = usize::from(choice >> 7);
        match choice % 16 {
            0 => self.write(HIGH + u64::from(input.u16()), &any_bytes(input)),
            1 | 2 => self.describe(input, queue),
            3 => {
                let slot = u64::from(input.u8() % 16);
                self.write(REQUESTS + 0x100 * slot, &device::request(input).0);
            }
            4 => self.publish(queue, u16::from(input.u8())),
            5 => self.set_avail_index(queue, input.u16()),
            6 => self.write(RINGS[queue][1] + 2 * u64::from(input.u8() % 32), &input.u16().to_le_bytes()),
            7..=9 => self.kick(queue),
            10 => self.good_chain(input, queue),
            11 => self.stop_and_start(input, queue),
            12 => self.change_memory(input),
            13 => self.rings[queue].set_enabled(input.bool()),
            14 => self.report(input),
            _ => self.backend.acked_features(input.u64()),
        }
    }

    /// As the VMM's messages come to it: a size, the addresses, the first index.
    fn start(&mut self, queue: usize, input: &mut Input<'_>) {
        let ring = &self.rings[queue];
        let choice = input.u8();
        ring.set_queue_size(input.pick(&[16, 1, 2, 64, 256, 1024]));
        let mut places = RINGS[queue];
        if choice & 2 != 0 {
            places = places.map(|place| place.wrapping_add(u64::from(input.u16()) << 2));
        }
        if choice & 4 != 0 {
            places = [input.u64(), input.u64(), input.u64()];
        }
        ring.set_queue_event_idx(choice & 1 != 0);
        self.next_avail[queue] = if choice & 8 != 0 { input.u16() } else { 0 };
        // A place that cannot be ends the VMM's connection.
        if ring.set_queue_info(places[0], places[1], places[2]).is_err() {
            return;
        }
        ring.set_queue_next_avail(self.next_avail[queue]);
        if let Ok(used) = ring.queue_used_idx() {
            ring.set_queue_next_used(used);
        }
        ring.set_call(eventfd(0, EventfdFlags::CLOEXEC).ok().map(File::from));
        ring.set_queue_ready(true);
        ring.set_enabled(true);
    }

    fn stop_and_start(&mut self, input: &mut Input<'_>, queue: usize) {
        self.stop(queue);
        if input.bool() {
            self.backend.reset_device();
        }
        self.start(queue, input);
    }

    fn stop(&self, queue: usize) {
        self.rings[queue].set_queue_ready(false);
        self.backend.stop_vring(queue as u32).expect("it can be stopped");
    }

    fn describe(&self, input: &mut Input<'_>, queue: usize) {
        let table = if input.u8() % 4 == 3 { INDIRECT } else { RINGS[queue][0] };
        let index = u64::from(input.u8() % 64);
        self.write(table + 16 * index, descriptor(input).as_bytes());
    }

    /// A request and room for its reply, direct or by way of a table, published and kicked.
    fn good_chain(&mut self, input: &mut Input<'_>, queue: usize) {
        let (readable, writable) = device::request(input);
        let choice = input.u8();
        let slot = u64::from(choice % 16);
        let (request, reply) = (REQUESTS + 0x100 * slot, REPLIES + 0x100 * slot);
        self.write(request, &readable);
        let chain = [
            Descriptor::new(request, readable.len() as u32, 1, 1),
            Descriptor::new(reply, writable as u32, 2, 0),
        ];
        match choice & 0x80 == 0 {
            true => self.write(RINGS[queue][0], chain.as_bytes()),
            false => {
                self.write(INDIRECT, chain.as_bytes());
                self.write(RINGS[queue][0], Descriptor::new(INDIRECT, 32, 4, 0).as_bytes());
            }
        }
        self.publish(queue, 0);
        self.kick(queue);
    }

    fn publish(&mut self, queue: usize, head: u16) {
        let size = self.rings[queue].get_ref().get_queue().size();
        let slot = u64::from(self.next_avail[queue] % size);
        self.write(RINGS[queue][1] + 4 + 2 * slot, &head.to_le_bytes());
        self.set_avail_index(queue, self.next_avail[queue].wrapping_add(1));
    }

    fn set_avail_index(&mut self, queue: usize, index: u16) {
        self.next_avail[queue] = index;
        self.write(RINGS[queue][1] + 2, &index.to_le_bytes());
    }

    fn kick(&self, queue: usize) {
        self.tell(queue as u16);
    }

    fn tell(&self, source: u16) {
        self.backend.handle_event(source, EventSet::IN, &self.rings, 0).expect("never an error");
    }

    /// An access that may be refused, or a refusal: an event for the driver.
    fn report(&self, input: &mut Input<'_>) {
        let endpoint = input.pick(&[ENDPOINT, OTHER]);
        let (iova, access) = (Iova(u64::from(input.u16()) << 8), Access::READ);
        match input.bool() {
            true => drop(self.iommu.translate(endpoint, iova, access)),
            false => {
                self.iommu.report(Fault { endpoint, address: iova, access, reason: FaultReason::Unknown })
            }
        }
        self.tell(EVENT_WAITS);
    }

    fn change_memory(&self, input: &mut Input<'_>) {
        let size = input.pick(&[SIZE, 0x1000, 0x9000]);
        self.replace_memory(guest_memory(size));
    }

    fn replace_memory(&self, memory: GuestMemoryMmap) {
        self.memory.lock().expect("nobody panicked with it").replace(memory);
        self.backend.update_memory(self.memory.clone()).expect("memory without a file");
        self.tell(EVENT_WAITS);
    }

    /// What lies outside of memory is lost.
    fn write(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.memory().write(bytes, GuestAddress(address));
    }

    /// New rings in new memory: a request is answered.
    fn assert_serves_good_rings(&mut self) {
        self.stop(0);
        self.stop(1);
        self.replace_memory(guest_memory(SIZE));
        self.start(0, &mut Input::new(&[]));
        // A DETACH of an endpoint that does not exist.
        self.good_chain(&mut Input::new(&[3, 0, 3]), 0);
        let memory = self.memory.memory();
        let read = |address| memory.read_obj::<u16>(GuestAddress(address)).expect("in memory");
        let [index, head, length] = [2, 4, 8].map(|offset| read(RINGS[0][2] + offset));
        assert_eq!((index, head, length, read(REPLIES)), (1, 0, 4, Status::NoEnt as u16));
    }
}

fn guest_memory(size: usize) -> GuestMemoryMmap {
    let ranges = [(GuestAddress(0), LOW_SIZE), (GuestAddress(HIGH), size)];
    GuestMemoryMmap::from_ranges(&ranges).expect("memory")
}

fn any_bytes(input: &mut Input<'_>) -> Vec<u8> {
    let count = usize::from(input.u8());
    input.bytes(count).to_vec()
}

fn descriptor(input: &mut Input<'_>) -> Descriptor {
    let slot = input.u8();
    let place = 0x100 * u64::from(slot % 16);
    let address = match slot >> 4 {
        0..=5 => REQUESTS + place,
        6..=9 => REPLIES + place,
        10 => INDIRECT + 16 * u64::from(slot % 16),
        11 => input.u64(),
        12 => HIGH + u64::from(input.u16()),
        13 => {
            input.pick(&[0, HIGH - 4, HIGH + SIZE as u64 - 4, LOW_SIZE as u64 - 4, u64::MAX, u64::MAX - 15])
        }
        _ => input.pick(&RINGS.concat()) + u64::from(input.u8()),
    };
    let lengths = [0, 1, 4, 16, 20, 28, 36, 72, 255, 257, 516, 32, 0x1000, 1 << 31, 16 * 65536, u32::MAX];
    let (length, flags) = (input.pick(&lengths), u16::from(input.u8() % 8));
    Descriptor::new(address, length, flags, u16::from(input.u8()))
}
