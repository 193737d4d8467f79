// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that says anything to the device, with any file descriptors, while its guest writes anything into its rings.
//!
//! The session runs as it does in the daemon, over a socket and with threads of its own. However the connection ends,
//! the session ends with it, and no endpoint reaches anything afterwards.

mod vmm;

use std::io;
use std::os::unix::net::UnixStream;
use std::thread;

use vhost_user_iommu::message::features::{PROTOCOL_FEATURES, VERSION_1, protocol};
use vhost_user_iommu::message::{
    ConfigHeader, FrontendRequest as Request, MemoryRegion, SingleRegion, VringAddress, VringState,
    memory_table_payload,
};
use vhost_user_iommu::session::Session;
use viommu_core::Features;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::IntoBytes;

use super::device::{self, POLL};
use super::input::Input;
use crate::driver::Descriptor;
use crate::front_end::{Message, NEED_REPLY, REPLY, VERSION};

use vmm::{SIZE, Vmm};

/// Where the VMM says that it has guest memory.
const USER: u64 = 0x7f00_0000_0000;
/// Descriptor table, available ring and used ring of either queue, as places in guest memory.
const RINGS: [[u64; 3]; 2] = [[0, 0x1000, 0x2000], [0x4000, 0x5000, 0x6000]];
const REQUEST: u64 = 0x9000;
const REPLY_PLACE: u64 = 0xa000;

/// The life of one connection.
pub fn run(data: &[u8]) {
    let (iommu, event_waits) = device::iommu();
    let (theirs, stream) = UnixStream::pair().expect("sockets");
    let session = Session::new(iommu.clone(), event_waits, POLL).expect("file descriptors");
    thread::scope(|scope| {
        let served = scope.spawn(|| session.serve_one(theirs));
        let mut vmm = Vmm::new(stream).expect("file descriptors");
        // Ends when the session has closed the connection, or nothing is left to be said.
        let _ = vmm.live(&mut Input::new(data));
        drop(vmm);
        let served = served.join().expect("the session does not panic");
        assert!(served.is_ok(), "{served:?}");
    });
    device::assert_blocked(&iommu);
}

impl Vmm {
    fn live(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        while !input.is_empty() {
            for _ in 0..UNREAD_MAX {
                self.step(input)?;
            }
            self.wait()?;
        }
        Ok(())
    }

    fn step(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        if input.is_empty() {
            return Ok(());
        }
        let choice = input.u8();
        let queue = choice >> 7;
        match choice % 20 {
            0 => self.say_anything(input),
            1 => self.negotiate(input),
            2 => self.set_memory_table(input),
            3 => self.change_memory(input),
            4 => self.set_ring_size(input, queue),
            5 => self.set_ring_address(input, queue),
            6 => self.set_ring_base(input, queue),
            7 => self.give_event(input, queue),
            8 => self.say(Request::SET_VRING_ENABLE, &state(input, queue, 1), &[]),
            9 => self.say(Request::GET_VRING_BASE, &state(input, queue, 0), &[]),
            10 => self.access_config(input),
            11 => self.write_anything(input),
            12 | 13 => self.kick(queue),
            14 => self.wait(),
            15 => self.say(input.pick(&PLAIN), &(), &[]),
            16 => self.start(queue),
            17 | 18 => self.lend_request(input, queue),
            _ => self.end_within_a_message(input),
        }
    }

    fn say_anything(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let request = u32::from(input.u8() % 50);
        let flags = input.pick(&[VERSION, VERSION | NEED_REPLY, VERSION | REPLY, 0, 2, u32::MAX]);
        let (length, count) = (usize::from(input.u8()), usize::from(input.u8()));
        // Of a message with more than 32 the crate loses the header, and waits for another: nothing to wait for here.
        let count = if count < 200 { count % 4 } else { count % 33 };
        let fds: Vec<u8> = (0..count).map(|_| input.u8()).collect();
        let body = input.bytes(length);
        self.send(&Message { flags, ..Message::new(request, body) }, &fds)
    }

    fn negotiate(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let choice = input.u8();
        let features = if choice & 1 == 0 { FEATURES } else { input.u64() };
        let protocol = if choice & 2 == 0 { PROTOCOL } else { input.u64() };
        self.say(Request::GET_FEATURES, &(), &[])?;
        self.say(Request::SET_OWNER, &(), &[])?;
        self.say(Request::SET_FEATURES, &features, &[])?;
        self.say(Request::GET_PROTOCOL_FEATURES, &(), &[])?;
        self.say(Request::SET_PROTOCOL_FEATURES, &protocol, &[])
    }

    fn set_memory_table(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let choice = input.u8();
        let regions: Vec<MemoryRegion> = (0..choice % 4).map(|_| region(input)).collect();
        let fds: Vec<u8> = regions.iter().map(|_| if choice < 200 { 0 } else { input.u8() }).collect();
        self.say(Request::SET_MEM_TABLE, &memory_table_payload(&regions)[..], &fds)
    }

    fn change_memory(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let request = input.pick(&[Request::ADD_MEM_REG, Request::REM_MEM_REG]);
        let region = SingleRegion { padding: 0, region: region(input) };
        self.say(request, &region, &fds_if(request == Request::ADD_MEM_REG, 0))
    }

    fn set_ring_size(&mut self, input: &mut Input<'_>, queue: u8) -> io::Result<()> {
        let num = u32::from(input.pick(&[16, 1, 2, 256, 1024, 0, 3, u16::MAX]));
        self.say(Request::SET_VRING_NUM, &state(input, queue, num), &[])
    }

    fn set_ring_base(&mut self, input: &mut Input<'_>, queue: u8) -> io::Result<()> {
        let base = input.u16();
        self.next_avail[usize::from(queue)] = base;
        self.say(Request::SET_VRING_BASE, &state(input, queue, base.into()), &[])
    }

    fn give_event(&mut self, input: &mut Input<'_>, queue: u8) -> io::Result<()> {
        let events = [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR];
        let (request, fd, no_fd) = (input.pick(&events), input.u8(), input.u8() % 8 == 7);
        let index = u64::from(queue) | u64::from(no_fd) << 8;
        self.say(request, &index, &fds_if(!no_fd, fd))
    }

    fn write_anything(&self, input: &mut Input<'_>) -> io::Result<()> {
        let (place, count) = (u64::from(input.u16()), usize::from(input.u8()));
        self.write(place, input.bytes(count))
    }

    /// Leaves, with a message half said.
    fn end_within_a_message(&self, input: &mut Input<'_>) -> io::Result<()> {
        let length = usize::from(input.u8());
        self.send_bytes(input.bytes(length))?;
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn set_ring_address(&mut self, input: &mut Input<'_>, queue: u8) -> io::Result<()> {
        let choice = input.u8();
        let place = |usual: u64, input: &mut Input<'_>| match choice & 3 {
            0 => USER + usual,
            1 => USER + u64::from(input.u16()),
            _ => input.u64(),
        };
        let [descriptors, available, used] = RINGS[usize::from(queue)].map(|usual| place(usual, input));
        let ring =
            VringAddress { index: index(input, queue), flags: 0, descriptors, used, available, log: 0 };
        self.say(Request::SET_VRING_ADDR, &ring, &[])
    }

    fn access_config(&mut self, input: &mut Input<'_>) -> io::Result<()> {
        let request = input.pick(&[Request::GET_CONFIG, Request::SET_CONFIG]);
        let (offset, size) = (u32::from(input.u8()), u32::from(input.u8()));
        let header = ConfigHeader { offset, size, flags: u32::from(input.u8() % 2) };
        let bytes = vec![input.u8(); size as usize];
        self.say(request, &[header.as_bytes(), &bytes].concat()[..], &[])
    }

    /// Everything that a queue takes to run.
    fn start(&mut self, queue: u8) -> io::Result<()> {
        let nothing = &mut Input::new(&[]);
        self.next_avail[usize::from(queue)] = 0;
        self.say(Request::SET_MEM_TABLE, &memory_table_payload(&[region(nothing)])[..], &[0])?;
        self.say(Request::SET_VRING_NUM, &state(nothing, queue, 16), &[])?;
        self.say(Request::SET_VRING_BASE, &state(nothing, queue, 0), &[])?;
        self.set_ring_address(nothing, queue)?;
        self.say(Request::SET_VRING_KICK, &u64::from(queue), &[1 + 2 * queue])?;
        self.say(Request::SET_VRING_CALL, &u64::from(queue), &[2 + 2 * queue])?;
        self.say(Request::SET_VRING_ENABLE, &state(nothing, queue, 1), &[])
    }

    /// A request in a good chain, published and kicked.
    fn lend_request(&mut self, input: &mut Input<'_>, queue: u8) -> io::Result<()> {
        let (readable, writable) = device::request(input);
        let chain = [
            Descriptor::new(REQUEST, readable.len() as u32, 1, 1),
            Descriptor::new(REPLY_PLACE, writable as u32, 2, 0),
        ];
        let [descriptors, available, _] = RINGS[usize::from(queue)];
        let next = &mut self.next_avail[usize::from(queue)];
        let slot = u64::from(*next % 16);
        *next = next.wrapping_add(1);
        let index = *next;
        self.write(REQUEST, &readable)?;
        self.write(descriptors, chain.as_bytes())?;
        self.write(available + 4 + 2 * slot, &[0; 2])?;
        self.write(available + 2, &index.to_le_bytes())?;
        self.kick(queue)
    }
}

/// What a VMM accepts: everything that the device has.
const FEATURES: u64 = Features::OFFERED.bits()
    | PROTOCOL_FEATURES
    | VERSION_1
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;
const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::CONFIG
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS;
/// Steps after which the VMM reads what it was answered: before the answers fill the socket.
const UNREAD_MAX: usize = 32;

/// Requests without a payload.
const PLAIN: [Request; 7] = [
    Request::GET_QUEUE_NUM,
    Request::GET_MAX_MEM_SLOTS,
    Request::RESET_DEVICE,
    Request::RESET_OWNER,
    Request::SET_OWNER,
    Request::GET_FEATURES,
    Request::GET_PROTOCOL_FEATURES,
];

fn fds_if(with: bool, fd: u8) -> Vec<u8> {
    if with { vec![fd] } else { Vec::new() }
}

/// Of the queue that is meant; now and then of one that does not exist.
fn index(input: &mut Input<'_>, queue: u8) -> u32 {
    match input.u8() {
        255 => input.u32(),
        _ => queue.into(),
    }
}

fn state(input: &mut Input<'_>, queue: u8, num: u32) -> VringState {
    VringState { index: index(input, queue), num }
}

/// All of guest memory, a part of it, or anything.
fn region(input: &mut Input<'_>) -> MemoryRegion {
    let choice = input.u8();
    let all = MemoryRegion { guest_address: 0, size: SIZE, user_address: USER, mmap_offset: 0 };
    match choice % 4 {
        0 => all,
        1 => {
            let offset = u64::from(input.u8()) << 8;
            MemoryRegion {
                guest_address: offset,
                size: SIZE - offset,
                mmap_offset: offset,
                user_address: USER + offset,
            }
        }
        2 => MemoryRegion { guest_address: u64::from(input.u8()) << 16, size: input.u16().into(), ..all },
        _ => MemoryRegion {
            guest_address: input.u64(),
            size: input.u64(),
            user_address: input.u64(),
            mmap_offset: u64::from(input.u32()),
        },
    }
}
