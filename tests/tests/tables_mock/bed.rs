// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The daemon with two mock devices, and a guest that it serves.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use log::LevelFilter;
use vhost_user_iommu::iommu::Iommu;
use vhost_user_iommu::session::Session;
use vhost_user_iommu::sync::Wake;
use vhost_user_iommu::vfio::{Facts, Given, Vfio};
use vhost_user_iommu::{Config, EndpointConfig, EndpointKind, Listen};
use viommu_core::wire::{
    FAULT_F_ADDRESS, FAULT_F_GROUP_ID, FAULT_F_LAST, FAULT_F_PAGE_REQ, FAULT_F_PASID, FAULT_F_READ,
    FAULT_F_WRITE,
};
use viommu_core::{
    Access, EndpointId, Iova, IovaRange, Limits, Mode, PageRequestSupport, PasidSupport, Status,
};
use viommu_nested::HwInfo;
use viommu_nested::format::mock::{InViommu, OnParent};
use viommu_nested::format::{Format, TableFacts};
use viommu_nested::mock;
use viommu_nested::object::{Context, Ioas};
use viommu_tests::driver::GuestMemory;
use viommu_tests::model::request::{self, Wire, attach_pt, attach_ste};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::answers::{Answer, Answers};
use crate::device::Mock;
use crate::group::{Group, Member};
use crate::guest::{EVENT, Guest, LENGTH, PAGE, PATIENCE, START, Told};

/// The endpoints, of which devices 0 and 1 are.
pub const ENDPOINTS: [u32; 2] = [0x10, 0x18];
pub const ONE: u32 = ENDPOINTS[0];
pub const OTHER: u32 = ENDPOINTS[1];

pub const OK: u8 = Status::Ok as u8;
pub const UNSUPP: u8 = Status::Unsupp as u8;
pub const DEVERR: u8 = Status::DevErr as u8;
pub const INVAL: u8 = Status::Inval as u8;
pub const RANGE: u8 = Status::Range as u8;
pub const NOENT: u8 = Status::NoEnt as u8;
pub const FAULT: u8 = Status::Fault as u8;
pub const NOMEM: u8 = Status::NoMem as u8;

/// What the mock's IOMMU is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardware {
    /// One with a page table for each PASID.
    Vtd,
    /// One with a vIOMMU.
    Smmu,
}

/// What a bed is made with.
#[derive(Clone, Debug)]
pub struct Made {
    pub hardware: Hardware,
    /// Whether both devices share a group.
    pub is_group: bool,
    pub bypass: bool,
    pub requests_max: u32,
    pub timeout: Duration,
    pub limits: Limits,
}

/// No request gets that old.
pub const FOR_EVER: Duration = Duration::from_secs(3600);

impl Default for Made {
    fn default() -> Made {
        Made {
            hardware: Hardware::Vtd,
            is_group: false,
            bypass: true,
            requests_max: 8,
            timeout: FOR_EVER,
            limits: Limits::default(),
        }
    }
}

impl Made {
    pub fn of(hardware: Hardware) -> Made {
        Made { hardware, ..Made::default() }
    }
}

/// All of it. When it is dropped the VMM is gone, and every page request that was made has had one answer.
pub struct Bed {
    pub iommu: Arc<Iommu>,
    pub devices: [Mock; 2],
    pub answers: Answers,
    hardware: Hardware,
    guest: Option<Guest>,
    session: Option<JoinHandle<()>>,
    /// The numbers of the daemon's threads that serve the rings and wait for the kernel.
    pub threads: Threads,
    memory: GuestMemory,
    /// The VMM's own address space.
    vmm: Arc<Ioas>,
    asked: u64,
}

/// Numbers of threads, as `/proc/self/task` has them.
#[derive(Clone, Debug)]
pub struct Threads {
    pub rings: String,
    pub notices: String,
}

impl Bed {
    pub fn new(made: &Made) -> Bed {
        let answers = Answers::begin();
        let context = Context::open(Path::new("/dev/iommu")).expect("a kernel with iommufd");
        let memory = GuestMemory::new(&[(START, LENGTH)]).expect("memory");
        let vmm = Ioas::new(&context).expect("an address space");
        let file = file_of(&memory);
        vmm.map_file(&all(), file.as_fd(), 0, Access::all().into()).expect("it maps");
        let members: [Member; 2] = if made.is_group {
            Group::of_mocks(&context, &vmm)
        } else {
            [(); 2].map(|()| Group::of_mocks::<1>(&context, &vmm)).map(|[member]| member)
        };
        let devices = members.map(Mock::of);
        let (iommu, event_waits, notices) = daemon(made, &context, &devices);
        let (theirs, stream) = UnixStream::pair().expect("sockets");
        let serving = Session::new(iommu.clone(), event_waits, Duration::ZERO).expect("file descriptors");
        let session = thread::spawn(move || {
            serving.serve_one(theirs).expect("the session ends by itself");
        });
        let guest = Some(Guest::connect(stream, &memory));
        let threads = Threads { rings: thread_of_rings(), notices };
        let (hardware, session) = (made.hardware, Some(session));
        Bed { iommu, devices, answers, hardware, guest, session, threads, memory, vmm, asked: 0 }
    }

    /// With the first endpoint in domain 1, and as many event buffers as there are.
    pub fn attached(made: &Made) -> Bed {
        let mut bed = Bed::new(made);
        assert_eq!(bed.attach(1, ONE, 1), OK);
        bed.guest().lend(64, EVENT);
        bed
    }

    pub fn guest(&mut self) -> &mut Guest {
        self.guest.as_mut().expect("the VMM is there")
    }

    /// A request, and its status.
    #[track_caller]
    pub fn send(&mut self, request: impl Wire) -> u8 {
        self.guest().send(request)
    }

    /// ATTACH_TABLE of an endpoint to the table in this page.
    #[track_caller]
    pub fn attach(&mut self, domain: u32, endpoint: u32, page: u64) -> u8 {
        let hardware = self.hardware;
        self.send(table(hardware, domain, endpoint, page))
    }

    /// The same of a PASID, on VT-d.
    #[track_caller]
    pub fn attach_pasid(&mut self, domain: u32, endpoint: u32, pasid: u32, page: u64) -> u8 {
        self.send(attach_pt(domain, endpoint, Some(pasid), root(page)))
    }

    #[track_caller]
    pub fn detach(&mut self, domain: u32, endpoint: u32) -> u8 {
        self.send(request::detach(domain, endpoint))
    }

    #[track_caller]
    pub fn respond(&mut self, endpoint: u32, pasid: Option<u32>, group: u32, code: u16) -> u8 {
        self.send(request::page_response(endpoint, pasid, group, code))
    }

    /// The device of an endpoint.
    pub fn device(&self, endpoint: u32) -> &Mock {
        &self.devices[usize::from(endpoint == OTHER)]
    }

    /// The kernel has the endpoint, or its PASID, at the table in this page.
    #[track_caller]
    pub fn assert_at(&self, endpoint: u32, pasid: Option<u32>, page: u64) {
        self.device(endpoint).assert_at(pasid, word(self.hardware, page));
    }

    /// The device of an endpoint reaches the guest's memory as it is.
    pub fn has_memory(&self, endpoint: u32) -> bool {
        let regions = self.memory.mmap();
        let region = regions.iter().next().expect("a region");
        let memory = region.get_slice(vm_memory::MemoryRegionAddress(0), PAGE as usize).expect("a page");
        mock::check_map(&self.vmm, self.device(endpoint).member().hwpt(), Iova(START), &memory).is_ok()
    }

    /// A device asks for a page; without a PASID that is 0.
    pub fn ask(&mut self, endpoint: u32, pasid: u32, group: u32) {
        self.device(endpoint).mock().request_page(pasid, group, READ | WRITE, ADDRESS).expect("it is raised");
        self.asked += 1;
    }

    /// A device asks for a page, and the driver gets to know of it.
    #[track_caller]
    pub fn ask_and_be_told(&mut self, endpoint: u32, pasid: Option<u32>, group: u32) {
        self.ask(endpoint, pasid.unwrap_or(0), group);
        let told = self.guest().event();
        assert_eq!(told, request_event(endpoint, pasid, group));
        self.guest().lend(1, EVENT);
    }

    /// Waits for these answers, groups and codes in their order, which are all since the last time.
    #[track_caller]
    pub fn answered(&self, expected: &[(u32, u32)]) {
        let deadline = Instant::now() + PATIENCE;
        let mut found = self.answers.take();
        while found.len() < expected.len() && Instant::now() < deadline {
            sleep(MOMENT);
            found.extend(self.answers.take());
        }
        found.sort_unstable();
        let found: Vec<_> = found.iter().map(|Answer { group, code, .. }| (*group, *code)).collect();
        assert_eq!(found, expected, "groups and codes");
    }

    /// How many page requests were made.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// How many faults the daemon has been told of.
    pub fn faults(&self) -> u64 {
        let account = self.iommu.account().to_string();
        let mut words = account.rsplit(' ');
        assert_eq!(words.next(), Some("faults"));
        words.next().and_then(|count| count.parse().ok()).expect("a number")
    }

    /// The VMM goes.
    pub fn disconnect(&mut self) {
        self.guest = None;
        if let Some(session) = self.session.take() {
            session.join().expect("the session does not panic");
        }
    }

    /// Removes the device of an endpoint, as before its hot-unplug.
    pub fn remove(&self, endpoint: u32) {
        self.iommu.remove_device(EndpointId(endpoint)).expect("it is there");
    }

    /// The number that the kernel gives to the next object in the context: the lowest that is free.
    pub fn next_number(&self) -> u32 {
        Ioas::new(self.vmm.context()).expect("an address space").id()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.disconnect();
            assert_eq!(self.answers.count(), self.asked, "a page request has one answer");
        }
    }
}

/// What a device asks for, and the address.
pub const READ: u32 = FAULT_F_READ;
pub const WRITE: u32 = FAULT_F_WRITE;
pub const ADDRESS: u64 = 0x12_dead_b000;

/// How long to wait before one looks again.
const MOMENT: Duration = Duration::from_millis(2);

/// The event that tells of [`Bed::ask`].
pub fn request_event(endpoint: u32, pasid: Option<u32>, group: u32) -> Told {
    let constant = FAULT_F_PAGE_REQ | FAULT_F_LAST | FAULT_F_ADDRESS | FAULT_F_GROUP_ID;
    let of_pasid = if pasid.is_some() { FAULT_F_PASID } else { 0 };
    Told {
        written: EVENT,
        reason: viommu_core::wire::FAULT_R_MAPPING,
        flags: constant | READ | WRITE | of_pasid,
        endpoint,
        pasid: pasid.unwrap_or(0),
        address: ADDRESS,
        group,
    }
}

/// The root of the table in a page.
pub fn root(page: u64) -> u64 {
    START + page * PAGE
}

/// A stream table entry with stage 1, whose table of context descriptors is in this page.
pub fn ste(page: u64) -> [u64; 2] {
    [root(page) | 0b1011, 0]
}

/// ATTACH_TABLE of an endpoint to the table in a page.
pub fn table(hardware: Hardware, domain: u32, endpoint: u32, page: u64) -> viommu_core::wire::ReqAttachTable {
    match hardware {
        Hardware::Vtd => attach_pt(domain, endpoint, None, root(page)),
        Hardware::Smmu => attach_ste(domain, endpoint, ste(page)),
    }
}

/// By what the mock driver knows a table: the beginning of its description.
pub fn word(hardware: Hardware, page: u64) -> u32 {
    match hardware {
        Hardware::Vtd => root(page) as u32,
        Hardware::Smmu => ste(page)[0] as u32,
    }
}

/// Waits until `condition` holds, for what has no event to wait for.
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(MOMENT);
    }
}

fn all() -> IovaRange {
    IovaRange::from_length(START, LENGTH).expect("a range")
}

fn file_of(memory: &GuestMemory) -> &File {
    let region = memory.mmap().iter().next().expect("a region");
    region.file_offset().expect("its file").file()
}

/// The daemon's device with its threads, what tells of events, and the number of the thread that waits for the kernel.
fn daemon(made: &Made, context: &Arc<Context>, devices: &[Mock; 2]) -> (Arc<Iommu>, Arc<Wake>, String) {
    let given = ENDPOINTS.into_iter().zip(devices).map(|(endpoint, device)| Given {
        endpoint: EndpointId(endpoint),
        file: Box::new(device.clone()),
        facts: facts(made, context, device),
        shows_pasids: true,
    });
    let config = config(made);
    let requests = PageRequestSupport { requests_max: made.requests_max, timeout: made.timeout };
    let vfio = Vfio::with(&config, context, given.collect(), requests).expect("a kernel that is suited");
    let event_waits = Arc::new(Wake::new().expect("a file descriptor"));
    let iommu = Iommu::new(&config, Some(vfio), event_waits.clone());
    let iommu = Arc::new(iommu.expect("a device that can be made"));
    // For the life of the process, as in the daemon.
    let (watched, tended) = (iommu.clone(), iommu.clone());
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        tell.send(thread_number()).expect("somebody wants to know");
        watched.watch_tables();
    });
    thread::spawn(move || tended.tend_devices());
    (iommu, event_waits, told.recv().expect("its number"))
}

fn thread_number() -> String {
    let link = fs::read_link("/proc/thread-self").expect("its number");
    link.file_name().and_then(|name| name.to_str()).expect("a number").to_owned()
}

/// The worker of the only session that there is.
fn thread_of_rings() -> String {
    let threads =
        fs::read_dir("/proc/self/task").expect("threads").map(|thread| thread.expect("a thread").path());
    let is_worker = |path: &PathBuf| {
        fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "vring_worker")
    };
    let found: Vec<PathBuf> = threads.filter(is_worker).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].file_name().and_then(|name| name.to_str()).expect("a number").to_owned()
}

/// What the host would say of the device: all that the mock can do.
fn facts(made: &Made, context: &Arc<Context>, device: &Mock) -> Facts {
    let info = HwInfo::of(context, device.mock().device()).expect("it is known");
    let format: &dyn Format = match made.hardware {
        Hardware::Vtd => &OnParent,
        Hardware::Smmu => &InViommu,
    };
    let (hardware, translates_interrupts) = (format.told(&info, true), format.translates_interrupts());
    let pasids = PasidSupport { bits: info.pasid_bits, exec: false, privileged: false };
    let tables =
        TableFacts { hardware, ats: true, pasids: Some(pasids), page_requests: true, translates_interrupts };
    Facts {
        name: "mock".to_owned(),
        group: made.is_group.then_some(7),
        reserved: Vec::new(),
        translated: None,
        tables: Some(tables),
    }
}

fn config(made: &Made) -> Config {
    let endpoint = |id: u32| EndpointConfig {
        id: EndpointId(id),
        label: format!("{id:#x}"),
        pci: None,
        kind: EndpointKind::Listed,
    };
    Config {
        listen: Listen::Path("unused".into()),
        endpoints: ENDPOINTS.map(endpoint).to_vec(),
        iommufd: None,
        exit_with: None,
        page_size_mask: PAGE,
        aperture: IovaRange::ALL,
        boot_bypass: made.bypass,
        msi_region: None,
        msi_region_is_given: true,
        limits: made.limits,
        control: None,
        unmap_timeout: PATIENCE,
        poll: Duration::ZERO,
        mode: Mode::Table { feature_bit: Mode::FEATURE_BIT },
        log_level: LevelFilter::Warn,
    }
}
