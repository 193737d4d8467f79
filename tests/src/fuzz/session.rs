// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A VMM that says anything to the device, with any file descriptors, while its guest writes anything into its rings.
//!
//! The session runs as it does in the daemon, over a socket and with threads of its own. However the connection ends,
//! the session ends with it, and no endpoint reaches anything afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::pipe::pipe;
use vhost::vhost_user::Listener;
use vhost_user_iommu::message::features::{PROTOCOL_FEATURES, VERSION_1, protocol};
use vhost_user_iommu::message::{ConfigHeader, memory_table_payload};
use vhost_user_iommu::message::{
    FrontendRequest as Request, MemoryRegion, SingleRegion, VringAddress, VringState,
};
use vhost_user_iommu::session::serve_one;
use viommu_core::Features;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::{Immutable, IntoBytes};

use super::device;
use super::input::Input;
use crate::driver::Descriptor;
use crate::front_end::{Connection, Message, NEED_REPLY, REPLY, VERSION};

/// Bytes of guest memory, and where the VMM says it has them.
const SIZE: u64 = 0x1_0000;
const USER: u64 = 0x7f00_0000_0000;
/// Descriptor table, available ring and used ring of either queue, as places in guest memory.
const RINGS: [[u64; 3]; 2] = [[0, 0x1000, 0x2000], [0x4000, 0x5000, 0x6000]];
const REQUEST: u64 = 0x9000;
const REPLY_PLACE: u64 = 0xa000;
/// No answer takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The life of one connection.
pub fn run(data: &[u8]) {
    let (iommu, event_waits) = device::iommu(BTreeMap::new());
    let (listener, stream) = connected().expect("a socket");
    thread::scope(|scope| {
        let served = scope.spawn(|| serve_one(&mut Listener::from(listener), &iommu, &event_waits));
        // Ends when the session has closed the connection, or nothing is left to be said.
        let _ = Vmm::new(stream).and_then(|mut vmm| vmm.live(&mut Input::new(data)));
        let served = served.join().expect("the session does not panic");
        assert!(served.is_ok(), "{served:?}");
    });
    device::assert_blocked(&iommu);
}

/// A listener that nobody else knows, and a connection to it.
fn connected() -> io::Result<(UnixListener, UnixStream)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("viommu-fuzz-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let address = SocketAddr::from_abstract_name(name)?;
    let listener = UnixListener::bind_addr(&address)?;
    let stream = UnixStream::connect_addr(&address)?;
    Ok((listener, stream))
}

struct Vmm {
    connection: Connection,
    memory: OwnedFd,
    /// Kick and call of either queue.
    events: [OwnedFd; 4],
    /// What is no good for anything: a file that is too short, pipes, a device.
    odd: Vec<OwnedFd>,
    next_avail: [u16; 2],
    /// How many answers to [`Request::GET_FEATURES`] have not come yet.
    unanswered: u32,
}

impl Vmm {
    fn new(stream: UnixStream) -> io::Result<Vmm> {
        let file = |size| -> io::Result<OwnedFd> {
            let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
            ftruncate(&file, size)?;
            Ok(file)
        };
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let ((reader, writer), (hung_up, _)) = (pipe()?, pipe()?);
        Ok(Vmm {
            connection: Connection::of(stream),
            memory: file(SIZE)?,
            events: [event()?, event()?, event()?, event()?],
            odd: vec![file(100)?, reader, writer, hung_up, File::open("/dev/null")?.into()],
            next_avail: [0; 2],
            unanswered: 0,
        })
    }

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
            3 => {
                let request = input.pick(&[Request::ADD_MEM_REG, Request::REM_MEM_REG]);
                let region = SingleRegion { padding: 0, region: region(input) };
                let memory = fds_if(request == Request::ADD_MEM_REG, 0);
                self.say(request, &region, &memory)
            }
            4 => {
                let num = u32::from(input.pick(&[16, 1, 2, 256, 1024, 0, 3, u16::MAX]));
                self.say(Request::SET_VRING_NUM, &state(input, queue, num), &[])
            }
            5 => self.set_ring_address(input, queue),
            6 => {
                let base = input.u16();
                self.next_avail[usize::from(queue)] = base;
                self.say(Request::SET_VRING_BASE, &state(input, queue, base.into()), &[])
            }
            7 => {
                let events = [Request::SET_VRING_KICK, Request::SET_VRING_CALL, Request::SET_VRING_ERR];
                let (request, fd, no_fd) = (input.pick(&events), input.u8(), input.u8() % 8 == 7);
                let index = u64::from(queue) | u64::from(no_fd) << 8;
                self.say(request, &index, &fds_if(!no_fd, fd))
            }
            8 => self.say(Request::SET_VRING_ENABLE, &state(input, queue, 1), &[]),
            9 => self.say(Request::GET_VRING_BASE, &state(input, queue, 0), &[]),
            10 => self.access_config(input),
            11 => {
                let (place, count) = (u64::from(input.u16()), usize::from(input.u8()));
                self.write(place, input.bytes(count))
            }
            12 | 13 => self.kick(queue),
            14 => self.wait(),
            15 => self.say(input.pick(&PLAIN), &(), &[]),
            16 => self.start(queue),
            17 | 18 => self.lend_request(input, queue),
            _ => {
                // Not a whole message: the end of the input is in the middle of it.
                let length = usize::from(input.u8());
                self.connection.send_bytes(input.bytes(length), &[])?;
                Err(io::ErrorKind::UnexpectedEof.into())
            }
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
        self.unanswered += u32::from(request == Request::GET_FEATURES.0);
        self.send(&Message { flags, ..Message::new(request, body) }, &fds)
    }

    fn say<P: IntoBytes + Immutable + ?Sized>(
        &mut self,
        request: Request,
        payload: &P,
        fds: &[u8],
    ) -> io::Result<()> {
        self.unanswered += u32::from(request == Request::GET_FEATURES);
        self.send(&Message::new(request.0, payload.as_bytes()), fds)
    }

    fn send(&self, message: &Message, fds: &[u8]) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(|fd| self.fd(*fd)).collect();
        self.connection.send(message, &fds)
    }

    /// The memory, the four events, and what is odd.
    fn fd(&self, number: u8) -> BorrowedFd<'_> {
        let all = [&self.memory].into_iter().chain(&self.events).chain(&self.odd);
        let number = usize::from(number) % (5 + self.odd.len());
        all.map(AsFd::as_fd).nth(number).expect("so many")
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

    fn write(&self, place: u64, bytes: &[u8]) -> io::Result<()> {
        let room = usize::try_from(SIZE - place).unwrap_or(0);
        rustix::io::pwrite(&self.memory, &bytes[..bytes.len().min(room)], place)?;
        Ok(())
    }

    fn kick(&self, queue: u8) -> io::Result<()> {
        rustix::io::write(&self.events[usize::from(queue) * 2], &1u64.to_ne_bytes())?;
        Ok(())
    }

    /// Until the session has taken all that was said.
    fn wait(&mut self) -> io::Result<()> {
        self.say(Request::GET_FEATURES, &(), &[])?;
        while self.unanswered > 0 {
            let answer = self.connection.receive(PATIENCE).inspect_err(|error| {
                assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "the session says nothing");
            })?;
            self.unanswered -= u32::from(answer.request == Request::GET_FEATURES.0);
        }
        Ok(())
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
