// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small front-end with a driver and an IOMMU of its own: enough of each to drive the disk and to refuse it.
//!
//! The IOMMU maps pages; no IOVA equals the guest address behind it, and pages that follow each other as IOVAs do not
//! do so in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use vhost_user_iommu::message::features::{self, protocol};
use vhost_user_iommu::message::{
    Access, Channel, FrontendRequest, IotlbKind, IotlbMessage, MemoryRegion, Message, SingleRegion,
    VringAddress, VringState, memory_table_payload,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The IOMMU's granule.
pub const PAGE: u64 = 0x1000;
/// Where the front-end claims to see guest memory: a key, backed by nothing in this process.
pub const USER: u64 = 0x7f12_3456_0000;
/// Where the guest sees it.
pub const GUEST: u64 = 0x4000_0000;
/// Bytes of guest memory.
pub const MEMORY_LEN: u64 = 1 << 20;
/// Longest wait for anything that has to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// IOVA of the descriptor table, and of what belongs to it.
pub const RING: u64 = 0x10_0000;
const AVAILABLE: u64 = RING + PAGE;
const USED: u64 = RING + 2 * PAGE;
const RING_SIZE: u16 = 16;

/// IOVA of a request's header.
pub const HEADER: u64 = 0x20_0000;
/// IOVA of its status byte, on the same page.
pub const STATUS: u64 = HEADER + 0x800;
/// IOVA of a table for indirect descriptors, on the same page.
const INDIRECT: u64 = HEADER + 0x400;
/// IOVA of its data.
pub const DATA: u64 = 0x30_0000;

/// Feature bits that the front-end sets unless a test says otherwise.
pub const FEATURES: u64 = features::VERSION_1 | features::ACCESS_PLATFORM | features::PROTOCOL_FEATURES;
/// Protocol features that the front-end sets unless a test says otherwise.
pub const PROTOCOL_FEATURES: u64 = protocol::REPLY_ACK | protocol::BACKEND_REQ | protocol::CONFIG;

/// A piece of a request's data: IOVA and length.
pub type Buffer = (u64, u32);

const IN: u32 = 0;
const OUT: u32 = 1;
/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

/// A front-end that is connected to the disk.
pub struct Frontend {
    /// The main connection.
    pub main: Channel,
    /// Our end of the disk's own connection.
    pub backend: Channel,
    /// What the IOMMU allows, by page.
    pub mappings: BTreeMap<u64, (u64, Access)>,
    /// Misses that came, and whether they were granted.
    pub misses: Vec<(IotlbMessage, bool)>,
    /// The driver puts its descriptors into an indirect table.
    pub indirect: bool,
    memory: File,
    features: u64,
    protocol_features: u64,
    kick: OwnedFd,
    call: OwnedFd,
    available: u16,
    /// The disk's end of its own connection, where it is not given to it.
    unsent: Option<UnixStream>,
}

impl Frontend {
    /// Connects and negotiates; shares memory; does not start the ring.
    pub fn connect(path: &Path) -> Self {
        Self::connect_with(path, FEATURES, PROTOCOL_FEATURES)
    }

    /// The same, with other features.
    pub fn connect_with(path: &Path, features: u64, protocol_features: u64) -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(MEMORY_LEN).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut frontend = Self {
            main: Channel::new(UnixStream::connect(path).unwrap()),
            backend: Channel::new(ours),
            mappings: BTreeMap::new(),
            misses: Vec::new(),
            indirect: false,
            memory,
            features,
            protocol_features,
            kick: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            call: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
            available: 0,
            unsent: Some(theirs),
        };
        assert_eq!(frontend.ask(FrontendRequest::GET_FEATURES, &()) & features, features);
        let offered = frontend.ask(FrontendRequest::GET_PROTOCOL_FEATURES, &());
        assert_eq!(offered & protocol_features, protocol_features);
        frontend.send(Message::new(FrontendRequest::SET_PROTOCOL_FEATURES, &protocol_features));
        frontend.send(Message::new(FrontendRequest::SET_OWNER, &()));
        if protocol_features & protocol::BACKEND_REQ != 0 {
            let fds = vec![frontend.unsent.take().unwrap().into()];
            frontend.send(Message::new(FrontendRequest::SET_BACKEND_REQ_FD, &()).with_fds(fds));
        }
        frontend.send(Message::new(FrontendRequest::SET_FEATURES, &features));
        frontend.share_memory();
        frontend
    }

    fn share_memory(&mut self) {
        // Two regions, the second first: order and gaps must not matter.
        let half = MEMORY_LEN / 2;
        let region = |start: u64| MemoryRegion {
            guest_address: GUEST + 3 * start,
            size: half,
            user_address: USER + start,
            mmap_offset: start,
        };
        let fds = (0..2).map(|_| self.memory.try_clone().unwrap().into()).collect();
        let payload = memory_table_payload(&[region(half), region(0)]);
        let message = Message::new(FrontendRequest::SET_MEM_TABLE, payload.as_slice()).with_fds(fds);
        self.send_and_check(message);
    }

    /// Maps the ring, and the page with the header and the status.
    pub fn map_ring(&mut self) {
        for iova in [RING, AVAILABLE, USED, HEADER] {
            self.map(iova, Access::READ_WRITE);
        }
    }

    /// Lets the device reach the page at `iova`, when it asks for it.
    pub fn map(&mut self, iova: u64, access: Access) {
        self.mappings.insert(iova & !(PAGE - 1), (USER + page_offset(iova), access));
    }

    /// Takes a page away: first from those that are granted, then from the disk. The acknowledgement.
    pub fn unmap(&mut self, iova: u64) -> u64 {
        self.forget(iova);
        let invalidate = Message::from(&IotlbMessage::invalidate(iova, PAGE)).with_need_reply();
        self.send(invalidate);
        self.acknowledgement(FrontendRequest::IOTLB_MSG)
    }

    /// Grants a page no more, but does not tell the disk.
    pub fn forget(&mut self, iova: u64) {
        assert!(self.mappings.remove(&iova).is_some());
    }

    /// Gives the disk its ring and enables it.
    pub fn start_ring(&mut self, base: u16) {
        // What the ring's addresses are depends on whether they are IOVAs.
        let at = |iova| {
            if self.features & features::ACCESS_PLATFORM != 0 { iova } else { USER + page_offset(iova) }
        };
        let (descriptors, available, used) = (at(RING), at(AVAILABLE), at(USED));
        let addresses = VringAddress { index: 0, flags: 0, descriptors, used, available, log: 0 };
        let vring = |num: u32| VringState { index: 0, num };
        self.send(Message::new(FrontendRequest::SET_VRING_NUM, &vring(RING_SIZE.into())));
        self.send(Message::new(FrontendRequest::SET_VRING_BASE, &vring(base.into())));
        self.send(Message::new(FrontendRequest::SET_VRING_ADDR, &addresses));
        let (kick, call) = (self.kick.try_clone().unwrap(), self.call.try_clone().unwrap());
        self.send(Message::new(FrontendRequest::SET_VRING_CALL, &0u64).with_fds(vec![call]));
        self.send(Message::new(FrontendRequest::SET_VRING_KICK, &0u64).with_fds(vec![kick]));
        self.send(Message::new(FrontendRequest::SET_VRING_ENABLE, &vring(1)));
    }

    /// Stops the ring: the available index it would go on from.
    pub fn stop_ring(&mut self) -> u16 {
        self.send(Message::new(FrontendRequest::GET_VRING_BASE, &VringState { index: 0, num: 0 }));
        self.reply(FrontendRequest::GET_VRING_BASE).body::<VringState>().unwrap().num as u16
    }

    /// Reads from the disk into these buffers, and waits until it is done: its status.
    pub fn read_disk(&mut self, sector: u64, buffers: &[Buffer]) -> u8 {
        self.request(IN, sector, buffers)
    }

    /// Writes these buffers to the disk, and waits until it is done: its status.
    pub fn write_disk(&mut self, sector: u64, buffers: &[Buffer]) -> u8 {
        self.request(OUT, sector, buffers)
    }

    /// Does a request of any type; for OUT alone the device reads the buffers.
    pub fn request(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> u8 {
        self.submit(kind, sector, buffers);
        self.complete()
    }

    /// Makes a request available and kicks.
    pub fn submit(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) {
        self.write(HEADER, [u64::from(kind), sector].as_bytes());
        self.write(STATUS, &[0xee]);
        let data_flags = if kind == OUT { 0 } else { WRITE };
        let mut chain = vec![(HEADER, 16, 0)];
        chain.extend(buffers.iter().map(|&(iova, len)| (iova, len, data_flags)));
        chain.push((STATUS, 1, WRITE));
        let table = if self.indirect { INDIRECT } else { RING };
        for (index, &(iova, len, flags)) in chain.iter().enumerate() {
            let more = index + 1 < chain.len();
            self.write_descriptor(table, index, iova, len, if more { flags | NEXT } else { flags });
        }
        if self.indirect {
            self.write_descriptor(RING, 0, INDIRECT, 16 * chain.len() as u32, INDIRECT_FLAG);
        }
        self.write(AVAILABLE + 4 + 2 * u64::from(self.available % RING_SIZE), 0u16.as_bytes());
        self.available = self.available.wrapping_add(1);
        self.write(AVAILABLE + 2, self.available.as_bytes());
        self.kick();
    }

    /// Says that a request is available.
    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Serves misses until the disk has used everything; the status of the last request.
    pub fn complete(&mut self) -> u8 {
        let available = self.available;
        self.serve_until(|frontend| frontend.used() == available);
        self.read::<u8>(STATUS)
    }

    /// How many requests the disk has used.
    pub fn used(&self) -> u16 {
        self.read(USED + 2)
    }

    /// Serves misses until `condition` holds.
    pub fn serve_until(&mut self, mut condition: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "in vain: misses {:x?}", self.misses);
            self.serve_misses();
            // Short, since a condition may be about something that makes no file descriptor ready.
            readable(&[self.backend.as_fd(), self.call.as_fd()], Duration::from_millis(5));
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
        }
    }

    /// Answers the misses that have come.
    pub fn serve_misses(&mut self) {
        while let Some(message) = self.backend.receive().unwrap() {
            let miss: IotlbMessage = message.body().unwrap();
            assert_eq!((message.request, miss.kind), (1, IotlbKind::MISS));
            assert_eq!(message.flags.needs_reply(), self.protocol_features & protocol::REPLY_ACK != 0);
            let page = miss.iova & !(PAGE - 1);
            let granted = match self.mappings.get(&page).copied() {
                Some((user_address, access)) if access.allows(miss.access) => {
                    self.update(IotlbMessage::update(page, PAGE, user_address, access)) == 0
                }
                _ => false,
            };
            self.misses.push((miss, granted));
            if message.flags.needs_reply() {
                self.backend.queue(message.reply(&u64::from(!granted))).unwrap();
                self.backend.flush().unwrap();
            }
        }
    }

    /// Sends an update; its acknowledgement, or 0 where there are none.
    pub fn update(&mut self, update: IotlbMessage) -> u64 {
        if self.protocol_features & protocol::REPLY_ACK == 0 {
            self.send(Message::from(&update));
            return 0;
        }
        self.send(Message::from(&update).with_need_reply());
        self.acknowledgement(FrontendRequest::IOTLB_MSG)
    }

    /// Asks for a number.
    pub fn ask<P: IntoBytes + Immutable>(&mut self, request: FrontendRequest, payload: &P) -> u64 {
        self.send(Message::new(request, payload));
        self.acknowledgement(request)
    }

    /// Sends a message.
    pub fn send(&mut self, message: Message) {
        self.main.queue(message).unwrap();
        self.main.flush().unwrap();
    }

    /// Sends a message, and checks that it succeeds where that can be known.
    pub fn send_and_check(&mut self, message: Message) {
        if self.protocol_features & protocol::REPLY_ACK == 0 {
            return self.send(message);
        }
        let request = FrontendRequest(message.request);
        self.send(message.with_need_reply());
        assert_eq!(self.acknowledgement(request), 0, "{request:?}");
    }

    /// The number in the reply to `request`, which must be the next message.
    pub fn acknowledgement(&mut self, request: FrontendRequest) -> u64 {
        self.reply(request).body().unwrap()
    }

    /// The reply to `request`, which must be the next message.
    pub fn reply(&mut self, request: FrontendRequest) -> Message {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(reply) = self.main.receive().unwrap() {
                assert!(reply.flags.is_reply());
                assert_eq!(FrontendRequest(reply.request), request);
                return reply;
            }
            assert!(Instant::now() < deadline, "no reply to {request:?}");
            readable(&[self.main.as_fd()], PATIENCE);
        }
    }

    /// Whether anything comes on the main connection within `timeout`.
    pub fn hears_within(&self, timeout: Duration) -> bool {
        readable(&[self.main.as_fd()], timeout)
    }

    /// Puts bytes where the device finds them at `iova`.
    pub fn write(&self, iova: u64, bytes: &[u8]) {
        for (index, byte_page) in bytes.chunks(PAGE as usize).enumerate() {
            self.memory.write_all_at(byte_page, page_offset(iova + index as u64 * PAGE)).unwrap();
        }
    }

    /// What the device has put at `iova`, which must not cross a page.
    pub fn read<T: FromBytes>(&self, iova: u64) -> T {
        let mut bytes = vec![0; size_of::<T>()];
        self.memory.read_exact_at(&mut bytes, page_offset(iova)).unwrap();
        T::read_from_bytes(&bytes).ok().unwrap()
    }

    fn write_descriptor(&self, table: u64, index: usize, iova: u64, len: u32, flags: u16) {
        let address = if self.features & features::ACCESS_PLATFORM != 0 { iova } else { guest_address(iova) };
        let next = index as u16 + 1;
        let descriptor = [address.as_bytes(), len.as_bytes(), flags.as_bytes(), next.as_bytes()];
        self.write(table + 16 * index as u64, &descriptor.concat());
    }
}

/// Where in memory the IOMMU's target for `iova` lies: pages in descending order.
pub fn page_offset(iova: u64) -> u64 {
    let slot = match iova & !(PAGE - 1) {
        page @ RING..HEADER => (page - RING) / PAGE,
        page @ HEADER..DATA => 16 + (page - HEADER) / PAGE,
        page => 32 + (page - DATA) / PAGE,
    };
    MEMORY_LEN - (slot + 1) * PAGE + iova % PAGE
}

/// The same place as the guest sees it.
pub fn guest_address(iova: u64) -> u64 {
    let offset = page_offset(iova);
    let region = if offset < MEMORY_LEN / 2 { 0 } else { MEMORY_LEN / 2 };
    GUEST + 3 * region + (offset - region)
}

/// Waits until one of the file descriptors is readable; false if none is within `timeout`.
fn readable(fds: &[std::os::fd::BorrowedFd<'_>], timeout: Duration) -> bool {
    let mut fds: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    poll(&mut fds, Some(&Timespec::try_from(timeout).unwrap())).unwrap() > 0
}

/// A region of memory besides that of the guest.
pub struct ExtraRegion {
    file: File,
    region: MemoryRegion,
}

impl ExtraRegion {
    /// A page, at an `offset` from the guest's memory that is at least its length.
    pub fn new(offset: u64) -> Self {
        let file = File::from(memfd_create("extra", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(PAGE).unwrap();
        let region = MemoryRegion {
            guest_address: GUEST + 4 * offset,
            size: PAGE,
            user_address: USER + offset,
            mmap_offset: 0,
        };
        Self { file, region }
    }

    pub fn user_address(&self) -> u64 {
        self.region.user_address
    }

    pub fn add(&self) -> Message {
        let fd = self.file.try_clone().unwrap().into();
        Message::new(FrontendRequest::ADD_MEM_REG, &SingleRegion { padding: 0, region: self.region })
            .with_fds(vec![fd])
    }

    pub fn remove(&self) -> Message {
        Message::new(FrontendRequest::REM_MEM_REG, &SingleRegion { padding: 0, region: self.region })
    }

    /// Its first sector.
    pub fn start(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}
