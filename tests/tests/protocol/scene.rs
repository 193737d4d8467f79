// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A daemon with two endpoints, and VMMs that connect to it.
//!
//! Judges nothing but what every test expects: that a good request is answered.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use viommu_core::{DomainId, EndpointId, Gpa, IovaRange, wire::MAP_F_READ};
use viommu_tests::daemon::Daemon;
use viommu_tests::driver::{
    Arena, Buffer, Descriptor, EventIdx, GuestMemory, IommuDriver, Reply, SplitQueue, Used,
};
use viommu_tests::front_end::{Connection, FrontEnd, Wanted};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vmm_sys_util::poll::PollContext;

/// Longest wait for anything that has to come.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a thing that must not come is waited for.
pub const MOMENT: Duration = Duration::from_millis(50);
/// An endpoint that the daemon lists, 00:02.0.
pub const ENDPOINT: EndpointId = EndpointId(0x10);
pub const OTHER_ENDPOINT: EndpointId = EndpointId(0x18);
pub const DOMAIN: DomainId = DomainId(7);
/// Bytes of each of the two regions of guest memory.
pub const REGION: u64 = 2 << 20;
/// Where the second region begins; rings and buffers lie there.
pub const HIGH: u64 = 1 << 32;
pub const OK: u8 = 0;
pub const INVALID: u8 = 4;
pub const NO_ENTRY: u8 = 6;
pub const NO_MEMORY: u8 = 8;

/// A running daemon and its socket.
pub struct Served {
    pub daemon: Daemon,
    pub socket: PathBuf,
    pub folder: TempDir,
}

/// How a VMM drives the device.
#[derive(Clone, Copy)]
pub struct Setup {
    /// Entries of both queues.
    pub size: u16,
    /// The features it accepts.
    pub features: u64,
    /// The ring index at which the request queue begins.
    pub first: u16,
}

/// A VMM whose guest drives the device.
pub struct Vmm {
    /// Before the memory, so that the device lets go of it first.
    pub front_end: FrontEnd,
    pub driver: IommuDriver,
    pub memory: GuestMemory,
    pub arena: Arena,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup { size: 64, features: u64::MAX, first: 0 }
    }
}

impl Setup {
    /// Without EVENT_IDX.
    pub fn plain() -> Setup {
        Setup { features: !(1 << VIRTIO_RING_F_EVENT_IDX), ..Setup::default() }
    }
}

impl Served {
    pub fn new() -> Served {
        Served::with(&[])
    }

    /// With further arguments.
    pub fn with(arguments: &[&str]) -> Served {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("iommu.sock");
        let path = socket.to_str().expect("UTF-8");
        let own = ["--socket-path", path, "--endpoint", "00:02.0", "--endpoint", "00:03.0"];
        let daemon = Daemon::start(own.iter().chain(arguments)).expect("the daemon gets ready");
        Served { daemon, socket, folder }
    }

    /// A connection on which nothing was said.
    pub fn connection(&self) -> Connection {
        Connection::open(&self.socket, PATIENCE).expect("the daemon listens")
    }

    /// A VMM that has accepted these features and done no more.
    pub fn front_end(&self, features: u64) -> FrontEnd {
        negotiated(&self.socket, features)
    }

    pub fn vmm(&self) -> Vmm {
        self.vmm_with(Setup::default())
    }

    pub fn vmm_with(&self, setup: Setup) -> Vmm {
        Vmm::at(&self.socket, setup)
    }

    /// A new VMM gets its requests answered.
    pub fn assert_serves(&self) {
        self.vmm().assert_served();
    }

    /// The log since the start, of lines that contain `pattern`.
    pub fn lines_with(&self, pattern: &str) -> usize {
        self.daemon.lines().iter().filter(|line| line.contains(pattern)).count()
    }

    /// Processor time that the daemon spends in half a second.
    pub fn processor_time_in_half_a_second(&self) -> Duration {
        let before = self.processor_time();
        // The interval is what is measured.
        std::thread::sleep(Duration::from_millis(500));
        self.processor_time() - before
    }

    /// Entries of a folder in the daemon's /proc: `fd` or `task`.
    pub fn count(&self, folder: &str) -> usize {
        fs::read_dir(format!("/proc/{}/{folder}", self.daemon.pid())).expect("it runs").count()
    }

    /// Memory that the daemon occupies, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        line.trim_end_matches("kB").trim().parse().expect("a number")
    }

    fn processor_time(&self) -> Duration {
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.pid())).expect("it runs");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let ticks = fields.split_whitespace().skip(11).take(2);
        TICK * ticks.map(|ticks| ticks.parse::<u32>().expect("a number")).sum::<u32>()
    }
}

impl Vmm {
    /// A VMM at `socket`, both of whose queues run.
    pub fn at(socket: &Path, setup: Setup) -> Vmm {
        Vmm::of(negotiated(socket, setup.features), setup)
    }

    /// A VMM that has accepted its features, both of whose queues run.
    pub fn of(mut front_end: FrontEnd, setup: Setup) -> Vmm {
        let on = front_end.features() & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let event_idx = if on { EventIdx::On } else { EventIdx::Off };
        let memory = GuestMemory::new(&[(0, REGION), (HIGH, REGION)]).expect("memory");
        let mut arena = Arena::new(HIGH + 0x1000, REGION - 0x1000);
        let queue =
            |arena: &mut Arena| SplitQueue::new(&memory, arena, setup.size, event_idx).expect("a queue");
        let (mut requests, events) = (queue(&mut arena), queue(&mut arena));
        requests.restart_at(setup.first);
        front_end.set_memory(&memory).expect("two regions");
        front_end.start_ring(0, &requests).expect("started");
        front_end.start_ring(1, &events).expect("started");
        let probe_size = front_end.config().expect("a configuration space").probe_size.get();
        let driver = IommuDriver::new(&mut arena, requests, events, probe_size, PATIENCE);
        Vmm { front_end, driver, memory, arena }
    }

    /// Attaches the endpoint, which must work.
    pub fn attach(&mut self) {
        assert_ok(&self.driver.attach(DOMAIN, ENDPOINT, 0).expect("a reply"));
    }

    /// Maps the page `page`, and says with which status.
    pub fn map(&mut self, page: u64) -> u8 {
        let reply = self.driver.map(DOMAIN, page_range(page), Gpa(0), MAP_F_READ).expect("a reply");
        assert_eq!(reply.written, 4);
        reply.status()
    }

    /// A request that is refused for what it says is answered: the device works, and is as it was.
    pub fn assert_served(&mut self) {
        let reply = self.driver.detach(DomainId(u32::MAX), ENDPOINT).expect("a reply");
        assert!(reply.written == 4 && matches!(reply.status(), INVALID | NO_ENTRY), "{reply:?}");
    }

    /// Whether the domain with its first page mapped is still there.
    pub fn assert_keeps_page_0(&mut self) {
        assert_eq!(self.map(0), INVALID, "page 0 was mapped, and is mapped no more");
    }

    /// No chain comes back for a moment.
    pub fn assert_rests(&mut self) {
        // Nothing tells that nothing happens.
        std::thread::sleep(MOMENT);
        assert_eq!(self.driver.requests().take_used(), None);
    }

    /// Guest memory of these bytes.
    pub fn place(&mut self, bytes: &[u8]) -> u64 {
        let address = self.arena.take(bytes.len().max(1) as u64, 16);
        self.memory.write(address, bytes);
        address
    }

    /// Lends `buffers` as one chain and waits until it comes back.
    pub fn lend(&mut self, buffers: &[Buffer]) -> Used {
        let queue = self.driver.requests();
        queue.add(buffers).expect("there is room");
        queue.kick_if_wanted();
        queue.wait_used(PATIENCE).expect("it comes back")
    }

    /// Publishes a chain of these descriptors, which lie at the end of the table, the first at `head`.
    pub fn publish_raw(&mut self, head: u16, descriptors: &[Descriptor]) {
        let queue = self.driver.requests();
        for (index, descriptor) in (head..).zip(descriptors) {
            queue.write_descriptor(index, *descriptor);
        }
        queue.publish(head);
        queue.kick();
    }

    /// The chain that comes back next.
    pub fn used(&mut self) -> Used {
        self.driver.requests().wait_used(PATIENCE).expect("it comes back")
    }
}

/// A VMM at `socket` that has accepted these features and done no more.
pub fn negotiated(socket: &Path, features: u64) -> FrontEnd {
    let mut front_end = FrontEnd::connect(socket, PATIENCE).expect("the daemon listens");
    front_end.negotiate(Wanted { features, ..Wanted::default() }).expect("negotiated");
    front_end
}

pub fn page_range(page: u64) -> IovaRange {
    IovaRange::from_length(page * 0x1000, 0x1000).expect("a page")
}

pub fn assert_ok(reply: &Reply) {
    assert_eq!((reply.written as usize, reply.status()), (reply.bytes.len(), OK), "{reply:?}");
}

/// Whether `fd` becomes readable within `limit`.
pub fn becomes_readable(fd: &dyn AsRawFd, limit: Duration) -> bool {
    let polled: PollContext<()> = PollContext::new().expect("a poll set");
    polled.add(fd, ()).expect("a descriptor that can be waited for");
    polled.wait_timeout(limit).expect("waited").iter_readable().next().is_some()
}

/// Waits until `condition` holds, for what has no event to wait for.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
